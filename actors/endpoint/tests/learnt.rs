//! What one router learns from its picks, known to the others over real sockets; and to one that starts later.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_routing::config::{EndpointPickerConfig, Registry};
use quorate_routing::{
    BreakerPolicy, Endpoint, EndpointSpec, Health, PoolPolicy, PoolSpec, RoutingView,
    SchedulingRequest, Target, Tried, now_ms,
};
use std::sync::Arc;
use std::time::Duration;
use support::cluster::{Node, Peers, State};
use support::until;

/// Longer than the directory waits before it publishes.
const QUIET: Duration = Duration::from_millis(500);
const CONFIG: &str = "
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: prefix-cache-scorer}, {type: max-score-picker}]
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: max-score-picker}]
";

/// Publishes a pool with eight endpoints, as the directory would.
fn publish(node: &Node) {
    let endpoints = (0..8).map(|i| {
        let spec = EndpointSpec {
            name: format!("e{i}").into(),
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
        };
        let endpoint = Endpoint::new(spec, None);
        endpoint.set_health(Health::Ready, 1);
        Arc::new(endpoint)
    });
    let spec = PoolSpec {
        name: "p".into(),
        fallback: true,
        ..PoolSpec::default()
    };
    let registry = Registry::default().with_secret(5);
    let parsed = EndpointPickerConfig::parse(CONFIG).unwrap();
    let compiled = parsed.config.compile_with(&registry).unwrap();
    let policy = PoolPolicy {
        scheduler: compiled.scheduler,
        learners: compiled.learners,
        ..PoolPolicy::default()
    };
    let view = RoutingView::with_policies([(spec, Arc::new(policy), endpoints.collect())]);
    node.view.store(Arc::new(view));
}

/// Which endpoint the node sends a prompt to.
fn pick(node: &Node, prompt: &str) -> String {
    let view = node.view.load();
    let request = SchedulingRequest {
        model: "m",
        prompt: Some(&prompt),
        ..SchedulingRequest::default()
    };
    let route = view.route("m").unwrap();
    let scheduler = &route.pool.policy.scheduler;
    let random = fastrand::u64(..);
    let picked = scheduler.schedule(&request, route, &Tried::default(), now_ms(), random, None);
    picked.unwrap().destination().name().to_owned()
}

/// Hashes of blocks that the node has for all endpoints.
fn knows(node: &Node) -> usize {
    let view = node.view.load();
    let Some(pool) = view.pool("p") else { return 0 };
    let learners = pool.policy.learners.iter();
    learners
        .flat_map(|l| {
            let copies = pool.endpoints.iter();
            copies.filter_map(|e| l.plugin.copy(e, 1 << 20, now_ms()))
        })
        .map(|learnt| learnt.words())
        .sum()
}

fn prompt(i: usize) -> String {
    format!("{i:04} ").repeat(300)
}

#[tokio::test]
async fn routers_send_a_prompt_where_another_sent_it() {
    let (state, peers) = (State::default(), Peers::default());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(id, &state, &peers).await);
    }
    until("all see all", || nodes.iter().all(|n| n.live().len() == 3)).await;
    tokio::time::sleep(QUIET).await;
    nodes.iter().for_each(publish);

    // 1,500 bytes are six blocks of 256.
    let picked: Vec<String> = (0..30).map(|i| pick(&nodes[i % 3], &prompt(i))).collect();
    until("all know all", || nodes.iter().all(|n| knows(n) == 30 * 6)).await;
    for (i, picked) in picked.iter().enumerate() {
        for node in &nodes {
            assert_eq!(pick(node, &prompt(i)), *picked);
        }
    }

    // One dies and comes back: the lowest of the others tells it everything, also of what the dead one learnt.
    drop(nodes.remove(1));
    let late = Node::start(2, &state, &peers).await;
    until("the new one sees all", || late.live().len() == 3).await;
    // It learns which endpoints there are after it was told of their blocks.
    tokio::time::sleep(QUIET).await;
    publish(&late);
    until("it knows all", || knows(&late) == 30 * 6).await;
    for (i, picked) in picked.iter().enumerate() {
        assert_eq!(pick(&late, &prompt(i)), *picked);
    }
}
