//! A pool whose endpoints come from a file: added, changed, removed, broken.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_endpoint::PlaneEvent;
use quorate_proto::v1::{self, Discovery, FileDiscovery, PoolSpec, discovery, resource::Spec};
use std::path::Path;
use support::cluster::{Node, Peers, State};
use support::engine::Engine;
use support::{patiently, until};

/// As an editor does it: a new file in place of the old one.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[tokio::test]
async fn the_cluster_follows_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endpoints.yaml");
    let engine = Engine::vllm().await;
    let port = engine.address.port();
    write(
        &path,
        &format!(
            "endpoints:\n- {{name: a, url: \"{}\"}}\n- {{name: b, address: localhost, port: \"{port}\"}}\n",
            engine.url()
        ),
    );
    let state = State::default();
    let source = discovery::Source::File(FileDiscovery {
        path: path.to_str().unwrap().into(),
    });
    state.pool(
        "p",
        PoolSpec {
            discovery: Some(Discovery {
                source: Some(source),
            }),
            ..Default::default()
        },
    );
    state.endpoint("by-hand", "p", &engine.url());
    let peers = Peers::default();
    // Whichever node owns the pool's discovery, one and only one does the work.
    let one = Node::start(1, &state, &peers).await;
    let two = Node::start(2, &state, &peers).await;
    until("found and ready on both nodes", || {
        [&one, &two]
            .iter()
            .all(|n| n.is_ready("a") && n.is_ready("b"))
    })
    .await;
    let source_of = |name: &str| {
        let declared = state.declared.borrow();
        declared.endpoints.iter().find_map(|r| match &r.spec {
            Some(Spec::Endpoint(e)) if r.metadata.as_ref().unwrap().name == name => {
                Some(e.source.clone())
            }
            _ => None,
        })
    };
    assert_eq!(source_of("a").as_deref(), Some("file:p"));

    // An operator drains one; the file does not know of that and does not undo it.
    let drained = v1::EndpointSpec {
        pool: "p".into(),
        url: engine.url(),
        source: "file:p".into(),
        draining: true,
        ..Default::default()
    };
    state.put("a", Spec::Endpoint(drained), &[]);

    let mut events = [one.plane.events(), two.plane.events()];
    write(&path, "endpoints:\n- {name: c, url: ");
    let [first, second] = &mut events;
    let told = async {
        loop {
            let event = tokio::select! { e = first.recv() => e, e = second.recv() => e }.unwrap();
            if let PlaneEvent::Discovery { why, .. } = event {
                return why;
            }
        }
    };
    let why = patiently("the complaint", told).await;
    assert!(
        why.contains("endpoints.yaml") && why.contains("line"),
        "{why}"
    );
    assert_eq!(
        state.endpoint_names(),
        ["a", "b", "by-hand"],
        "a bad file changes nothing"
    );

    write(
        &path,
        &format!(
            "endpoints:\n- {{name: a, url: \"{}\"}}\n- {{name: c, url: \"{}\"}}\n",
            engine.url(),
            engine.url()
        ),
    );
    until("b went, c came", || {
        state.endpoint_names() == ["a", "by-hand", "c"]
    })
    .await;
    assert!(
        one.describe("a").state() == v1::endpoint_status::State::Draining,
        "still drained"
    );

    // Emptied: believed after three looks, and what is declared by hand stays.
    write(&path, "endpoints: []\n");
    until("all of the file's went", || {
        state.endpoint_names() == ["by-hand"]
    })
    .await;
    let deleted = state
        .proposed
        .lock()
        .unwrap()
        .iter()
        .filter(|op| matches!(op, quorate_endpoint::DiscoveryOp::Delete { .. }))
        .count();
    assert_eq!(deleted, 3, "each was removed once");
}
