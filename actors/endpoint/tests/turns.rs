//! Heavy requests that come to several routers at the same moment are placed one router after the other.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use futures_util::future::join_all;
use quorate_proto::v1::PoolSpec;
use quorate_routing::turns::Turn;
use quorate_routing::{Endpoint, Reservation, now_ms};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::cluster::{Node, Peers, State};
use support::engine::Engine;
use support::{PATIENCE, patiently, until};

const HEAVY: u64 = 5_000;

/// Three nodes that know each other and one endpoint.
async fn region() -> (Vec<Node>, Engine) {
    let engine = Engine::vllm().await;
    let state = State::default();
    state.pool("p", PoolSpec::default());
    state.endpoint("e", "p", &engine.url());
    let peers = Peers::default();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(id, &state, &peers).await);
    }
    until("all to know each other and the endpoint", || {
        let knows = |n: &Node| n.live().len() == 3 && n.is_ready("e");
        nodes.iter().all(knows)
    })
    .await;
    (nodes, engine)
}

fn endpoint(node: &Node) -> Arc<Endpoint> {
    node.endpoint("e").unwrap()
}

/// Places one request when its turn comes, and tells what was known to be placed before.
async fn place(node: &Node, turn: Option<Turn>) -> (u64, Reservation) {
    let placing = match turn {
        Some(turn) => Some(patiently("a turn", turn).await),
        None => None,
    };
    let before = endpoint(node).total_tokens();
    let place = endpoint(node).reserve_with(now_ms(), HEAVY).unwrap();
    drop(placing);
    (before, place)
}

/// Every node gets one at the same moment, again and again, until each has known all that was placed before its own ten times. (On a
/// busy machine a turn may come late, and is passed over.)
async fn in_order(nodes: &[Node]) {
    let all: Vec<u64> = (0..nodes.len() as u64).map(|n| n * HEAVY).collect();
    let begun = Instant::now();
    let mut times = 0;
    while times < 10 {
        assert!(begun.elapsed() < PATIENCE, "{times} of 10 times");
        until("all to be idle", || {
            nodes.iter().all(|node| endpoint(node).total_tokens() == 0)
        })
        .await;
        let turns: Vec<_> = nodes.iter().map(|node| endpoint(node).turn()).collect();
        let placed = nodes
            .iter()
            .zip(turns)
            .map(|(node, turn)| place(node, turn));
        let placed = join_all(placed).await;
        let mut before: Vec<u64> = placed.iter().map(|(before, _)| *before).collect();
        before.sort_unstable();
        times += usize::from(before == all);
        // Long enough that all hear of it, and that the next is another moment.
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test]
async fn each_router_knows_what_those_before_it_placed() {
    let (mut nodes, _engine) = region().await;
    let asked = nodes.iter().map(|node| endpoint(node).turn());
    assert_eq!(asked.flatten().count(), 0, "nothing was placed yet");
    in_order(&nodes).await;
    // The one that keeps the turns goes.
    drop(nodes.remove(0));
    until("the others to miss it", || {
        nodes.iter().all(|node| node.live().len() == 2)
    })
    .await;
    in_order(&nodes).await;
    drop(nodes.remove(0));
    until("the last to be alone", || nodes[0].live().len() == 1).await;
    assert!(endpoint(&nodes[0]).turn().is_none(), "alone");
}
