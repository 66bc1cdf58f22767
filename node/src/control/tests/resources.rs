//! Declared state: writing, reading, refusing.

use super::*;

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
