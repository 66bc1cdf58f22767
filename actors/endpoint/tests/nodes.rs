//! Several nodes on real sockets: who owns what, what each knows of the others' load, and what a death changes.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_endpoint::{Pace, PlaneEvent, Timing};
use quorate_proto::peer::v1::load_exchange_client::LoadExchangeClient;
use quorate_proto::peer::v1::{InFlight, LoadHello, LoadUpdate};
use quorate_proto::v1::{HealthPolicy, PoolSpec};
use quorate_routing::{Failure, now_ms};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::cluster::{Config, Node, Peers, State, config};
use support::engine::Engine;
use support::{patiently, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const ENDPOINTS: usize = 12;

fn name(i: usize) -> String {
    format!("e{i}")
}

/// Endpoints that all lead to one engine.
async fn fleet() -> (State, Engine) {
    let engine = Engine::vllm().await;
    let state = State::default();
    state.pool("p", PoolSpec::default());
    for i in 0..ENDPOINTS {
        state.endpoint(&name(i), "p", &engine.url());
    }
    (state, engine)
}

fn owners(node: &Node) -> Vec<u64> {
    (0..ENDPOINTS)
        .map(|i| node.describe(&name(i)).owner_node_id)
        .collect()
}

/// Each node sees all nodes, all agree on owners, and all see every endpoint ready.
async fn settled(nodes: &[&Node]) -> Duration {
    let ids: BTreeSet<u64> = nodes.iter().map(|n| n.id).collect();
    until("all nodes agree and see all endpoints ready", || {
        nodes
            .iter()
            .all(|n| n.live().into_iter().collect::<BTreeSet<_>>() == ids)
            && nodes.iter().all(|n| owners(n) == owners(nodes[0]))
            && owners(nodes[0]).iter().all(|o| ids.contains(o))
            && nodes
                .iter()
                .all(|n| (0..ENDPOINTS).all(|i| n.is_ready(&name(i))))
    })
    .await
}

#[tokio::test]
async fn ownership_counts_and_reports_follow_the_living() {
    let (state, engine) = fleet().await;
    let peers = Peers::default();
    let a = Node::start(1, &state, &peers).await;
    let b = Node::start(2, &state, &peers).await;
    let c = Node::start(3, &state, &peers).await;
    settled(&[&a, &b, &c]).await;
    let before = owners(&a);
    assert_eq!(
        before.iter().collect::<BTreeSet<_>>().len(),
        3,
        "each owns some: {before:?}"
    );

    // Everybody knows the figures and models, whoever reads them.
    for node in [&a, &b, &c] {
        until("figures everywhere", || {
            (0..ENDPOINTS).all(|i| node.describe(&name(i)).running == Some(3))
        })
        .await;
        until("models everywhere", || {
            node.view
                .load()
                .route("m")
                .is_some_and(|r| r.endpoints.len() == ENDPOINTS)
        })
        .await;
    }

    // Counts add up by origin, and are told soon.
    let of_a: Vec<_> = (0..5)
        .map(|_| a.endpoint("e0").unwrap().reserve(now_ms()).unwrap())
        .collect();
    let of_b: Vec<_> = (0..2)
        .map(|_| b.endpoint("e0").unwrap().reserve(now_ms()).unwrap())
        .collect();
    let told = until("c counts 7", || {
        c.endpoint("e0").unwrap().total_in_flight() == 7
    })
    .await;
    println!("in-flight counts known after {told:?}");
    until("a counts 7", || {
        a.endpoint("e0").unwrap().total_in_flight() == 7
    })
    .await;
    drop(of_b);
    until("c counts 5", || {
        c.endpoint("e0").unwrap().total_in_flight() == 5
    })
    .await;

    // A node dies with requests in flight: its counts go, its endpoints move, nobody else's do.
    drop(a);
    let died = Instant::now();
    until("its counts are gone", || {
        c.endpoint("e0").unwrap().total_in_flight() == 0
            && b.endpoint("e0").unwrap().total_in_flight() == 0
    })
    .await;
    settled(&[&b, &c]).await;
    println!("owners moved {:?} after a node's death", died.elapsed());
    assert!(
        died.elapsed() < Duration::from_secs(2),
        "took {:?}",
        died.elapsed()
    );
    for (was, is) in before.iter().zip(owners(&b)) {
        assert!(*was == is || *was == 1, "{was} -> {is}");
    }
    drop(of_a);

    // The engine is watched by the new owners: all of its endpoints fail and come back everywhere.
    let mut engine = engine;
    engine.kill().await;
    for i in 0..ENDPOINTS {
        for _ in 0..3 {
            // The failures are seen by one node only; the owner hears of them.
            if let Some(r) = c.endpoint(&name(i)).unwrap().reserve(now_ms()) {
                r.failed(Failure::Connect, now_ms());
            }
        }
    }
    let noticed = until("unhealthy everywhere", || {
        [&b, &c]
            .iter()
            .all(|n| (0..ENDPOINTS).all(|i| n.is_unhealthy(&name(i))))
    })
    .await;
    println!("a dead engine is known everywhere after {noticed:?}");
    engine.start().await;
    let back = settled(&[&b, &c]).await;
    println!("its return is known everywhere after {back:?}");

    // The dead node comes back as another process: it takes its endpoints again.
    let a = Node::start(1, &state, &peers).await;
    settled(&[&a, &b, &c]).await;
    assert_eq!(owners(&b), before);
}

#[tokio::test]
async fn a_node_that_shuts_down_hands_over_at_once() {
    let (state, _engine) = fleet().await;
    let peers = Peers::default();
    let a = Node::start(1, &state, &peers).await;
    let b = Node::start(2, &state, &peers).await;
    settled(&[&a, &b]).await;
    patiently("shutdown", a.plane.shutdown()).await;
    // Its process is still there and its streams to others would go on; what counts is that it says goodbye.
    until("b owns all", || owners(&b).iter().all(|o| *o == 2)).await;
}

#[tokio::test]
async fn requests_of_another_node_count_for_the_stall_rule() {
    let engine = Engine::vllm().await;
    engine.set("/v1/completions", 0, "");
    let state = State::default();
    let ms = |ms: i32| {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: ms * 1_000_000,
        })
    };
    let health = HealthPolicy {
        stall_timeout: ms(900),
        interval: ms(50),
        unhealthy_interval: ms(20),
        metrics_interval: ms(20),
        ..Default::default()
    };
    state.pool(
        "p",
        PoolSpec {
            health: Some(health),
            ..Default::default()
        },
    );
    state.endpoint("e0", "p", &engine.url());
    let peers = Peers::default();
    let a = Node::start(1, &state, &peers).await;
    let b = Node::start(2, &state, &peers).await;
    until("both ready", || {
        a.is_ready("e0") && b.is_ready("e0") && a.live() == b.live()
    })
    .await;
    let (owner, other) = if a.describe("e0").owner_node_id == 1 {
        (a, b)
    } else {
        (b, a)
    };
    let request = other.endpoint("e0").unwrap().reserve(now_ms()).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_700) {
        request.progress(now_ms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        owner.is_ready("e0") && other.is_ready("e0"),
        "its bytes are known to the owner"
    );
    until("the stall is known to both", || {
        owner.is_unhealthy("e0") && other.is_unhealthy("e0")
    })
    .await;
    assert!(other.describe("e0").reasons[0].contains("stalled"));
    // The owner dies; the stall outlives it.
    drop(owner);
    until("the other one owns it", || {
        other.describe("e0").owner_node_id == other.id
    })
    .await;
    drop(request);
    let probes = engine.asked("/health");
    until("more health probes", || {
        engine.asked("/health") > probes + 10
    })
    .await;
    assert!(other.is_unhealthy("e0"));
    engine.set("/v1/completions", 200, "{}");
    let mut engine = engine;
    // The request that hangs is the proof under way: break it.
    engine.kill().await;
    engine.start().await;
    until("ready again", || other.is_ready("e0")).await;
}

#[tokio::test]
async fn regions_keep_their_endpoints_to_themselves() {
    let (state, _engine) = fleet().await;
    let peers = Peers::default();
    let near = Node::start(1, &state, &peers).await;
    let far = Node::start_with(
        Config {
            region: "far",
            ..config(2)
        },
        &state,
        &peers,
    )
    .await;
    peers.add(2, "far", far.address);
    settled(&[&near, &far]).await;
    assert!(
        owners(&far).iter().all(|o| *o == 1),
        "the endpoints are of region r"
    );
    drop(near);
    until("a region without nodes is looked after by others", || {
        owners(&far).iter().all(|o| *o == 2)
    })
    .await;
}

/// A peer made of nothing but a stream.
struct Stranger {
    messages: mpsc::Sender<LoadUpdate>,
}

async fn stranger(
    to: &Node,
    cluster: &str,
    node_id: u64,
    start_id: u64,
) -> Result<Stranger, tonic::Status> {
    let mut client = LoadExchangeClient::connect(format!("http://{}", to.address))
        .await
        .unwrap();
    let (messages, outgoing) = mpsc::channel(8);
    let hello = LoadHello {
        cluster_id: cluster.into(),
        node_id,
        instance: format!("copy-{start_id}"),
        start_id,
        region: "r".into(),
    };
    let first = LoadUpdate {
        hello: Some(hello),
        in_flight: vec![InFlight {
            endpoint: "e0".into(),
            incarnation: 1,
            requests: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    messages.send(first).await.unwrap();
    client.report(ReceiverStream::new(outgoing)).await?;
    Ok(Stranger { messages })
}

fn short_silence() -> Timing {
    let near = Pace {
        gap: Duration::from_millis(5),
        hurry: Duration::from_millis(1),
        keep_alive: Duration::from_millis(50),
        silence: Duration::from_millis(400),
    };
    Timing { near, far: near }
}

#[tokio::test]
async fn a_heavy_request_is_told_before_the_gap_is_over() {
    let (state, _engine) = fleet().await;
    let peers = Peers::default();
    let timing = || {
        let near = Pace {
            gap: Duration::from_secs(3_600),
            keep_alive: Duration::from_secs(60),
            silence: Duration::from_secs(120),
            ..Timing::default().near
        };
        Timing { near, far: near }
    };
    let with_long_gap = |id| Config {
        timing: timing(),
        ..config(id)
    };
    let one = Node::start_with(with_long_gap(1), &state, &peers).await;
    let two = Node::start_with(with_long_gap(2), &state, &peers).await;
    // Each has probed all endpoints before they meet: what they say at first is all there is to say, and nothing waits for the gap.
    settled(&[&one]).await;
    settled(&[&two]).await;
    peers.add(1, "r", one.address);
    peers.add(2, "r", two.address);
    settled(&[&one, &two]).await;
    let mut places = Vec::new();
    for seen in 1..=3u64 {
        places.push(
            one.endpoint("e0")
                .unwrap()
                .reserve_with(now_ms(), 5_000)
                .unwrap(),
        );
        until("the other node counts its tokens", || {
            two.endpoint("e0").unwrap().total_tokens() == seen * 5_000
        })
        .await;
    }
}

#[tokio::test]
async fn a_silent_node_is_dead_and_strangers_are_refused() {
    let (state, _engine) = fleet().await;
    let node = Node::start_with(
        Config {
            timing: short_silence(),
            ..config(1)
        },
        &state,
        &Peers::default(),
    )
    .await;
    let silent = stranger(&node, "c", 7, 70).await.unwrap();
    until("it is alive", || node.live() == [1, 7]).await;
    until("it is dead", || node.live() == [1]).await;
    drop(silent);
    let refused = |r: Result<Stranger, tonic::Status>| r.err().map(|s| s.code());
    assert_eq!(
        refused(stranger(&node, "other", 7, 70).await),
        Some(tonic::Code::FailedPrecondition)
    );
    let mut events = node.plane.events();
    assert_eq!(
        refused(stranger(&node, "c", 1, 70).await),
        Some(tonic::Code::AlreadyExists)
    );
    let event = patiently("an event", events.recv()).await.unwrap();
    assert!(
        matches!(event, PlaneEvent::NodeIdUsedTwice { node_id: 1, .. }),
        "{event:?}"
    );
    assert_eq!(node.live(), [1]);
}

/// What the check says is the answer, and nothing that the stream says is taken, the caller's own id included.
#[tokio::test]
async fn a_caller_speaks_for_its_own_node_only() {
    let (state, _engine) = fleet().await;
    let check = |node_id: u64, _: &tonic::Extensions| match node_id {
        7 => Ok(()),
        other => Err(tonic::Status::permission_denied(format!(
            "the certificate is that of node 7, not of {other}"
        ))),
    };
    let node = Node::start_with(
        Config {
            check_caller: Arc::new(check),
            ..config(1)
        },
        &state,
        &Peers::default(),
    )
    .await;
    let mut events = node.plane.events();
    for id in [1, 8] {
        let refused = stranger(&node, "c", id, 70).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("node 7"), "{refused}");
    }
    let _own = stranger(&node, "c", 7, 70).await.unwrap();
    until("the one that may speak is alive", || node.live() == [1, 7]).await;
    while let Ok(event) = events.try_recv() {
        assert!(
            !matches!(event, PlaneEvent::NodeIdUsedTwice { .. }),
            "a forged id raises the alarm about a doubled one: {event:?}"
        );
    }
}

#[tokio::test]
async fn two_living_processes_with_one_node_id_are_reported() {
    let (state, _engine) = fleet().await;
    let node = Node::start_with(
        Config {
            timing: short_silence(),
            ..config(1)
        },
        &state,
        &Peers::default(),
    )
    .await;
    let mut events = node.plane.events();
    let first = stranger(&node, "c", 7, 70).await.unwrap();
    let second = stranger(&node, "c", 7, 71).await.unwrap();
    let told = async {
        loop {
            if let PlaneEvent::NodeIdUsedTwice { node_id, instances } = events.recv().await.unwrap()
            {
                return (node_id, instances);
            }
        }
    };
    let both_talk = async {
        loop {
            for s in [&first, &second] {
                s.messages.send(LoadUpdate::default()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let told = tokio::select! {
        told = patiently("the report", told) => told,
        () = both_talk => unreachable!(),
    };
    assert_eq!(told, (7, ["copy-70".to_owned(), "copy-71".to_owned()]));
}
