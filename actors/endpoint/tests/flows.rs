//! Flow control of one pool on three nodes over real sockets: one limit, whoever asks, and a death in between.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_routing::config::{ConcurrencyMode, FlowControlConfig, SaturationDetector};
use quorate_routing::flow::{FlowControl, FlowRequest, Permit};
use quorate_routing::{
    BreakerPolicy, Endpoint, EndpointSpec, PoolPolicy, PoolSpec, RoutingView, Target,
};
use std::sync::Arc;
use std::time::Duration;
use support::cluster::{Node, Peers, State};
use support::until;

const LIMIT: u64 = 12;
/// Longer than the directory waits before it publishes.
const QUIET: Duration = Duration::from_millis(500);

fn config() -> FlowControlConfig {
    FlowControlConfig {
        saturation: SaturationDetector::Concurrency {
            max_concurrency: LIMIT,
            max_token_concurrency: 0,
            mode: ConcurrencyMode::Requests,
            headroom: 0.0,
        },
        ..FlowControlConfig::default()
    }
}

/// Publishes a pool with one endpoint and this flow control, as the directory would.
fn publish(node: &Node, flow: &Arc<FlowControl>) {
    let endpoint = Endpoint::new(
        EndpointSpec {
            name: "e".into(),
            incarnation: 1,
            pool: "p".into(),
            target: Target::new(false, "127.0.0.1", 1),
            h2c: false,
            region: "r".into(),
            rank: None,
            labels: Default::default(),
            breaker: BreakerPolicy::default(),
            slow_start: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
        },
        None,
    );
    let spec = PoolSpec {
        name: "p".into(),
        ..PoolSpec::default()
    };
    let policy = PoolPolicy {
        flow: Some(Arc::clone(flow)),
        ..PoolPolicy::default()
    };
    let view = RoutingView::with_policies([(spec, Arc::new(policy), vec![Arc::new(endpoint)])]);
    node.view.store(Arc::new(view));
}

fn in_flight(flows: &[Arc<FlowControl>]) -> u64 {
    flows.iter().map(|f| f.status().in_flight.requests).sum()
}

async fn admit(flow: &Arc<FlowControl>) -> Permit {
    let admitted = flow.admit(FlowRequest::default());
    tokio::time::timeout(Duration::from_secs(20), admitted)
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn one_limit_for_all_routers_also_after_a_death() {
    let (state, peers) = (State::default(), Peers::default());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(id, &state, &peers).await);
    }
    until("all see all", || nodes.iter().all(|n| n.live().len() == 3)).await;
    let mut flows: Vec<_> = nodes
        .iter()
        .map(|_| FlowControl::new("p", config()))
        .collect();
    let show = |nodes: &[Node], flows: &[Arc<FlowControl>]| {
        for (node, flow) in nodes.iter().zip(flows) {
            publish(node, flow);
        }
    };
    // The directory publishes for the last time shortly after it has heard of the last node.
    tokio::time::sleep(QUIET).await;
    show(&nodes, &flows);
    until("flow control is shared", || {
        flows.iter().all(|f| f.status().shared)
    })
    .await;

    // One router takes the whole pool, though each was given a part of it at first.
    let mut held = Vec::new();
    for _ in 0..LIMIT {
        held.push(admit(&flows[0]).await);
    }
    let waiting: Vec<_> = flows
        .iter()
        .map(|f| tokio::spawn(f.admit(FlowRequest::default())))
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(waiting.iter().all(|w| !w.is_finished()));
    assert_eq!(in_flight(&flows), LIMIT);
    // Three places become free: one goes to each router.
    held.truncate(LIMIT as usize - 3);
    for waiting in waiting {
        held.push(waiting.await.unwrap().unwrap());
    }
    assert_eq!(in_flight(&flows), LIMIT);

    // Whoever dies, its places are the others'.
    drop(held);
    for _ in 0..2 {
        let mut of_the_dead = Vec::new();
        for _ in 0..LIMIT {
            of_the_dead.push(admit(&flows[0]).await);
        }
        drop(nodes.remove(0));
        flows.remove(0);
        until("the dead one is missed", || {
            nodes.iter().all(|n| n.live().len() == nodes.len())
        })
        .await;
        tokio::time::sleep(QUIET).await;
        show(&nodes, &flows);
        let mut held = Vec::new();
        for i in 0..LIMIT as usize {
            held.push(admit(&flows[i % flows.len()]).await);
        }
        assert_eq!(in_flight(&flows), LIMIT);
    }
}
