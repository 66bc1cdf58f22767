//! The services over real sockets, on a cluster of one in memory.

use super::{ControlContext, routes};
use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use quorate_endpoint::{Declare, DeclareError, Declared, DiscoveryOp, EndpointPlane, PlaneOptions};
use quorate_proto::v1::{
    self, ApplyOutcome, Kind, cluster_client::ClusterClient, endpoints_client::EndpointsClient,
    resource::Spec, resources_client::ResourcesClient, watch_response::Type,
};
use quorate_raft::{Cluster, Options};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

struct NoDiscovery;

#[tonic::async_trait]
impl Declare for NoDiscovery {
    async fn apply(&self, _: Vec<DiscoveryOp>) -> Result<(), DeclareError> {
        Ok(())
    }
}

struct Node {
    channel: Channel,
    cluster: Cluster,
    stop: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Pools and endpoints, as they change.
fn declared(cluster: &Cluster) -> watch::Receiver<Declared> {
    let list = |cluster: &Cluster| {
        let view = cluster.view();
        let of = |kind| view.list(kind).map(|r| v1::Resource::clone(r)).collect();
        Declared {
            pools: of(Kind::Pool),
            endpoints: of(Kind::Endpoint),
        }
    };
    let (sender, receiver) = watch::channel(list(cluster));
    let (cluster, mut revision) = (cluster.clone(), cluster.revision());
    tokio::spawn(async move {
        while revision.changed().await.is_ok() && sender.send(list(&cluster)).is_ok() {}
    });
    receiver
}

impl Node {
    async fn start() -> Self {
        let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = Options::new("node-1", peer);
        options.region = "eu".to_owned();
        let cluster = Cluster::start(options).await.unwrap();
        cluster.ready(Duration::from_secs(20)).await.unwrap();
        let plane = EndpointPlane::start(PlaneOptions {
            node_id: cluster.node_id(),
            instance: cluster.instance().to_owned(),
            cluster_id: cluster.cluster_id().to_owned(),
            region: "eu".into(),
            declared: declared(&cluster),
            peers: watch::channel(Vec::new()).1,
            view: Arc::new(ArcSwap::from_pointee(
                quorate_routing::RoutingView::default(),
            )),
            declare: Arc::new(NoDiscovery),
            tls: None,
            timing: quorate_endpoint::Timing::default(),
        })
        .await
        .unwrap();
        let stop = CancellationToken::new();
        let routes = routes(ControlContext {
            cluster: cluster.clone(),
            plane: Arc::new(plane),
            stop: stop.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped),
        );
        let channel = Channel::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            channel,
            cluster,
            stop,
        }
    }

    fn resources(&self) -> ResourcesClient<Channel> {
        ResourcesClient::new(self.channel.clone())
    }

    fn endpoints(&self) -> EndpointsClient<Channel> {
        EndpointsClient::new(self.channel.clone())
    }

    fn members(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    async fn apply(&self, resource: v1::Resource) -> Result<v1::ApplyResponse, Status> {
        let request = v1::ApplyRequest {
            resource: Some(resource),
            ..v1::ApplyRequest::default()
        };
        Ok(self.resources().apply(request).await?.into_inner())
    }
}

fn resource(name: &str, spec: Spec) -> v1::Resource {
    let metadata = v1::Metadata {
        name: name.to_owned(),
        ..v1::Metadata::default()
    };
    v1::Resource {
        metadata: Some(metadata),
        spec: Some(spec),
    }
}

fn pool(name: &str) -> v1::Resource {
    resource(name, Spec::Pool(v1::PoolSpec::default()))
}

fn setting(name: &str, bytes: usize) -> v1::Resource {
    resource(
        name,
        Spec::Setting(v1::SettingSpec {
            json: format!("{:?}", "x".repeat(bytes)),
        }),
    )
}

fn endpoint(name: &str, pool: &str) -> v1::Resource {
    let spec = v1::EndpointSpec {
        pool: pool.to_owned(),
        url: "http://127.0.0.1:9".to_owned(),
        ..v1::EndpointSpec::default()
    };
    resource(name, Spec::Endpoint(spec))
}

fn field_of(status: &Status) -> String {
    let details = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
    details.field_violations[0].field.clone()
}

fn version(resource: Option<&v1::Resource>) -> u64 {
    resource
        .and_then(|r| r.metadata.as_ref())
        .map(|m| m.resource_version)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_are_written_read_and_deleted() {
    let node = Node::start().await;
    let mut api = node.resources();

    // A check writes nothing.
    let mut request = v1::ApplyRequest {
        idempotency_key: "k1".to_owned(),
        expected_version: Some(0),
        resource: Some(pool("chat")),
        validate_only: true,
    };
    let checked = api.apply(request.clone()).await.unwrap().into_inner();
    assert_eq!(checked.outcome(), ApplyOutcome::Created);
    let get = |kind: Kind, name: &str| v1::GetRequest {
        kind: kind.into(),
        name: name.to_owned(),
        consistency: 0,
    };
    assert_eq!(
        api.get(get(Kind::Pool, "chat")).await.unwrap_err().code(),
        Code::NotFound
    );

    request.validate_only = false;
    let created = api.apply(request.clone()).await.unwrap().into_inner();
    assert_eq!(created.outcome(), ApplyOutcome::Created);
    // The same call again is answered like the first one.
    assert_eq!(
        api.apply(request.clone()).await.unwrap().into_inner(),
        created
    );
    request.idempotency_key.clear();
    let exists = api.apply(request.clone()).await.unwrap_err();
    assert_eq!(exists.code(), Code::AlreadyExists);
    assert_eq!(
        exists.get_details_resource_info().unwrap().resource_name,
        "chat"
    );
    request.expected_version = Some(version(created.resource.as_ref()) + 1);
    assert_eq!(
        api.apply(request.clone()).await.unwrap_err().code(),
        Code::Aborted
    );

    // An endpoint gets the region of the node that took the write, and keeps its pool from being deleted.
    let applied = node.apply(endpoint("gpu-1", "chat")).await.unwrap();
    assert!(
        matches!(applied.resource.unwrap().spec, Some(Spec::Endpoint(spec)) if spec.region == "eu")
    );
    let mut delete = v1::DeleteRequest {
        kind: Kind::Pool.into(),
        name: "chat".to_owned(),
        ..Default::default()
    };
    let held = api.delete(delete.clone()).await.unwrap_err();
    assert_eq!(held.code(), Code::FailedPrecondition);
    assert_eq!(
        held.get_details_precondition_failure().unwrap().violations[0].subject,
        "pool/chat"
    );

    let read = api
        .get(v1::GetRequest {
            consistency: 2,
            ..get(Kind::Pool, "chat")
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(read.resource, created.resource);
    assert_eq!(read.stamp.unwrap().node_id, node.cluster.node_id());

    delete.kind = Kind::Endpoint.into();
    delete.name = "gpu-1".to_owned();
    let deleted = api.delete(delete.clone()).await.unwrap().into_inner();
    assert_eq!(deleted.resource.unwrap().metadata.unwrap().name, "gpu-1");
    assert_eq!(api.delete(delete).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_the_field() {
    let node = Node::start().await;
    let mut api = node.resources();
    let before = node.cluster.view().revision();
    let apply = |resource| v1::ApplyRequest {
        resource,
        ..v1::ApplyRequest::default()
    };
    let node_spec = resource("n", Spec::Node(v1::NodeSpec::default()));
    let bad_port = resource(
        "p",
        Spec::Pool(v1::PoolSpec {
            target_ports: vec![0],
            ..v1::PoolSpec::default()
        }),
    );
    for (request, field) in [
        (apply(None), "resource"),
        (apply(Some(v1::Resource::default())), "metadata"),
        (apply(Some(pool("No"))), "metadata.name"),
        (apply(Some(node_spec)), "spec.node"),
        (apply(Some(bad_port)), "spec.pool.target_ports[0]"),
        (
            v1::ApplyRequest {
                idempotency_key: "x".repeat(129),
                ..apply(Some(pool("p")))
            },
            "idempotency_key",
        ),
    ] {
        let status = api.apply(request.clone()).await.unwrap_err();
        assert_eq!(
            (status.code(), field_of(&status).as_str()),
            (Code::InvalidArgument, field),
            "{status:?}"
        );
        let status = api
            .apply(v1::ApplyRequest {
                validate_only: true,
                ..request
            })
            .await
            .unwrap_err();
        assert_eq!(field_of(&status), field);
    }
    let list = v1::ListRequest {
        kind: Kind::Pool.into(),
        ..v1::ListRequest::default()
    };
    for (request, field) in [
        (
            v1::ListRequest {
                kind: 0,
                ..list.clone()
            },
            "kind",
        ),
        (
            v1::ListRequest {
                kind: 99,
                ..list.clone()
            },
            "kind",
        ),
        (
            v1::ListRequest {
                consistency: 9,
                ..list.clone()
            },
            "consistency",
        ),
        (
            v1::ListRequest {
                pool: "a".to_owned(),
                ..list.clone()
            },
            "pool",
        ),
        (
            v1::ListRequest {
                page_token: "endpoint/a".to_owned(),
                ..list
            },
            "page_token",
        ),
    ] {
        assert_eq!(field_of(&api.list(request).await.unwrap_err()), field);
    }
    for (request, field) in [
        (
            v1::WatchRequest {
                kinds: vec![0],
                ..Default::default()
            },
            "kind",
        ),
        (
            v1::WatchRequest {
                resume_token: "what".to_owned(),
                ..Default::default()
            },
            "resume_token",
        ),
    ] {
        assert_eq!(field_of(&api.watch(request).await.unwrap_err()), field);
    }
    let status = node
        .members()
        .promote(v1::PromoteRequest::default())
        .await
        .unwrap_err();
    assert_eq!(field_of(&status), "node_id");
    let drain = v1::DrainEndpointRequest {
        name: "none".to_owned(),
        drain: true,
        ..Default::default()
    };
    assert_eq!(
        node.endpoints().drain(drain).await.unwrap_err().code(),
        Code::NotFound
    );
    let describe = v1::DescribeEndpointRequest {
        name: "none".to_owned(),
    };
    assert_eq!(
        node.endpoints()
            .describe(describe)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    // A setting may have 512 KiB, a log entry little more; larger requests are not even read.
    let status = node.apply(setting("large", 600 << 10)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = node.apply(setting("huge", 5 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert_eq!(
        node.cluster.view().revision(),
        before,
        "nothing was written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_come_in_pages_of_bounded_size() {
    let node = Node::start().await;
    for i in 0..10 {
        node.apply(setting(&format!("s{i}"), 500 << 10))
            .await
            .unwrap();
    }
    for i in 0..5 {
        let mut pool = pool(&format!("p{i}"));
        let parity = if i % 2 == 0 { "even" } else { "odd" };
        pool.metadata
            .as_mut()
            .unwrap()
            .labels
            .insert("parity".to_owned(), parity.to_owned());
        node.apply(pool).await.unwrap();
    }
    let pages = async |request: v1::ListRequest| {
        let (mut names, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            // The client reads at most 4 MiB, gRPC's default.
            let request = v1::ListRequest {
                page_token,
                ..request.clone()
            };
            let page = node.resources().list(request).await.unwrap().into_inner();
            sizes.push(page.resources.len());
            names.extend(page.resources.into_iter().map(|r| r.metadata.unwrap().name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return (names, sizes);
            }
        }
    };
    let list = |kind: Kind| v1::ListRequest {
        kind: kind.into(),
        ..v1::ListRequest::default()
    };
    let (names, sizes) = pages(list(Kind::Setting)).await;
    assert_eq!(names, (0..10).map(|i| format!("s{i}")).collect::<Vec<_>>());
    assert!(sizes.len() > 1, "{sizes:?}");
    let (names, sizes) = pages(v1::ListRequest {
        page_size: 2,
        ..list(Kind::Pool)
    })
    .await;
    assert_eq!((names.len(), sizes), (5, vec![2, 2, 1]));
    let labels = BTreeMap::from([("parity".to_owned(), "odd".to_owned())]);
    let (names, _) = pages(v1::ListRequest {
        labels,
        ..list(Kind::Pool)
    })
    .await;
    assert_eq!(names, ["p1", "p3"]);
    node.apply(endpoint("e1", "p1")).await.unwrap();
    node.apply(endpoint("e2", "p2")).await.unwrap();
    let (names, _) = pages(v1::ListRequest {
        pool: "p2".to_owned(),
        ..list(Kind::Endpoint)
    })
    .await;
    assert_eq!(names, ["e2"]);
}

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
