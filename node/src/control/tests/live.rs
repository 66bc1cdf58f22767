//! Watches, endpoints, membership, health and reflection.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_follows_resumes_and_ends_with_the_node() {
    let node = Node::start().await;
    node.apply(pool("a")).await.unwrap();
    let request = v1::WatchRequest {
        kinds: vec![Kind::Pool.into()],
        ..v1::WatchRequest::default()
    };
    let mut watch = node
        .resources()
        .watch(request.clone())
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        let message = watch.next().await.unwrap().unwrap();
        let name = message
            .resource
            .as_ref()
            .map(|r| r.metadata.as_ref().unwrap().name.clone());
        (
            message.r#type(),
            name.unwrap_or_default(),
            message.resume_token,
        )
    };
    assert_eq!(next().await, (Type::Put, "a".to_owned(), String::new()));
    let (kind, _, synced) = next().await;
    assert_eq!(kind, Type::Synced);
    node.apply(setting("other", 1)).await.unwrap();
    node.apply(pool("b")).await.unwrap();
    let (kind, name, token) = next().await;
    assert_eq!((kind, name.as_str()), (Type::Put, "b"));
    assert_ne!(token, synced);
    // Quiet for a while: the token moves past what does not match.
    node.apply(setting("other", 2)).await.unwrap();
    let (kind, _, bookmark) = next().await;
    assert_eq!(kind, Type::Bookmark);
    assert_ne!(bookmark, token);

    let resumed = v1::WatchRequest {
        resume_token: synced,
        ..request
    };
    let mut resumed = node.resources().watch(resumed).await.unwrap().into_inner();
    assert_eq!(
        resumed
            .next()
            .await
            .unwrap()
            .unwrap()
            .resource
            .unwrap()
            .metadata
            .unwrap()
            .name,
        "b"
    );
    node.stop.cancel();
    let end = resumed.next().await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_described_and_drained() {
    let node = Node::start().await;
    node.apply(pool("chat")).await.unwrap();
    node.apply(endpoint("gpu-1", "chat")).await.unwrap();
    let describe = v1::DescribeEndpointRequest {
        name: "gpu-1".to_owned(),
    };
    // Nothing listens on that port, which the endpoint's actor finds out by and by.
    let described = loop {
        let described = node
            .endpoints()
            .describe(describe.clone())
            .await
            .unwrap()
            .into_inner();
        let status = described.status.clone().unwrap();
        if status.state() == v1::endpoint_status::State::Unhealthy {
            break described;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(!described.status.unwrap().reasons.is_empty());

    // Many at once, while others write the endpoint too: each of them ends well.
    let tasks = (0..8).map(|i| {
        let mut api = node.endpoints();
        let request = v1::DrainEndpointRequest {
            idempotency_key: format!("drain-{i}"),
            name: "gpu-1".to_owned(),
            drain: true,
        };
        tokio::spawn(async move { api.drain(request).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        let resource = task.await.unwrap().unwrap().into_inner().resource.unwrap();
        assert!(matches!(resource.spec, Some(Spec::Endpoint(spec)) if spec.draining));
    }
    let undo = v1::DrainEndpointRequest {
        name: "gpu-1".to_owned(),
        drain: false,
        ..Default::default()
    };
    let resource = node
        .endpoints()
        .drain(undo)
        .await
        .unwrap()
        .into_inner()
        .resource
        .unwrap();
    assert_eq!(
        resource.metadata.unwrap().generation,
        3,
        "drained once, taken back once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_answers_for_itself() {
    let node = Node::start().await;
    let status = node
        .members()
        .status(v1::ClusterStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.node_id, status.leader_id, status.timing.as_str()),
        (1, 1, "lan")
    );
    assert_eq!(status.members[0].name, "node-1");
    let request = v1::PromoteRequest {
        node_id: 1,
        ..v1::PromoteRequest::default()
    };
    assert_eq!(
        node.members()
            .promote(request)
            .await
            .unwrap()
            .into_inner()
            .voters,
        [1]
    );
    let request = v1::RemoveNodeRequest {
        node_id: 1,
        ..v1::RemoveNodeRequest::default()
    };
    let only = node.members().remove(request).await.unwrap_err();
    assert_eq!(only.code(), Code::FailedPrecondition);
    let request = v1::DemoteRequest {
        node_id: 77,
        ..v1::DemoteRequest::default()
    };
    let unknown = node.members().demote(request).await.unwrap_err();
    assert_eq!(
        unknown.get_details_resource_info().unwrap().resource_name,
        "77"
    );
    let request = v1::TransferLeadershipRequest { node_id: 1 };
    assert_eq!(
        node.members()
            .transfer_leadership(request)
            .await
            .unwrap()
            .into_inner()
            .leader_id,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let node = Node::start().await;
    for service in ["", "quorate.v1.Resources"] {
        let mut health = HealthClient::new(node.channel.clone());
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        while watch.next().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    }
    let ask = async |message| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let mut reflection = ServerReflectionClient::new(node.channel.clone());
        let mut answers = reflection
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap()
            .into_inner();
        answers
            .next()
            .await
            .unwrap()
            .unwrap()
            .message_response
            .unwrap()
    };
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list of services");
    };
    let names: BTreeSet<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in [
        "quorate.v1.Resources",
        "quorate.v1.Endpoints",
        "quorate.v1.Cluster",
    ] {
        assert!(names.contains(name), "{names:?}");
    }
    assert!(names.iter().all(|name| !name.contains("peer")), "{names:?}");
    let symbol = MessageRequest::FileContainingSymbol("quorate.v1.Resources".to_owned());
    assert!(
        matches!(ask(symbol).await, MessageResponse::FileDescriptorResponse(files) if !files.file_descriptor_proto.is_empty())
    );
}
