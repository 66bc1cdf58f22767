//! One node and engines on real sockets: what probes find out, and how fast.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_proto::v1::{self, HealthPolicy, PoolSpec, endpoint_status, resource::Spec};
use quorate_routing::{Failure, LoadFigures, now_ms};
use std::time::{Duration, Instant};
use support::cluster::{Node, Peers, State};
use support::engine::{Engine, VLLM};
use support::{patiently, until};

fn ms(ms: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: i64::from(ms / 1000),
        nanos: (ms % 1000) * 1_000_000,
    })
}

/// The defaults, but for intervals that keep a test short.
fn fast() -> PoolSpec {
    PoolSpec {
        health: Some(HealthPolicy {
            interval: ms(100),
            unhealthy_interval: ms(20),
            metrics_interval: ms(20),
            timeout: ms(5_000),
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn node(pool: PoolSpec, engine: &Engine) -> (Node, State) {
    let state = State::default();
    state.pool("p", pool);
    state.endpoint("e", "p", &engine.url());
    let node = Node::start(1, &state, &Peers::default()).await;
    (node, state)
}

fn load(node: &Node) -> Option<LoadFigures> {
    node.endpoint("e")?.load(now_ms()).map(|(load, _)| load)
}

#[tokio::test]
async fn each_engine_is_recognised_and_read() {
    let page = |text: &'static str| text;
    let dialects = [
        (
            v1::Engine::Vllm,
            "/metrics",
            page(include_str!("../src/engine/scrape/testdata/vllm.txt")),
            (5, 2, 0.25),
        ),
        (
            v1::Engine::Sglang,
            "/metrics",
            page(include_str!("../src/engine/scrape/testdata/sglang.txt")),
            (5, 4, 0.5),
        ),
        (
            v1::Engine::Trtllm,
            "/prometheus/metrics",
            page(include_str!("../src/engine/scrape/testdata/trtllm.txt")),
            (8, 1, 0.75),
        ),
        (
            v1::Engine::Triton,
            "/metrics",
            page(include_str!("../src/engine/scrape/testdata/triton.txt")),
            (6, 2, 0.125),
        ),
    ];
    for (engine, path, page, (running, waiting, usage)) in dialects {
        let server = Engine::empty("127.0.0.1:0").await;
        server.set("/health", 200, "");
        server.set(path, 200, page);
        let (node, _state) = node(fast(), &server).await;
        let expected = LoadFigures {
            running: Some(running),
            waiting: Some(waiting),
            kv_cache_usage: Some(usage),
        };
        until("the figures", || load(&node) == Some(expected)).await;
        until("readiness", || node.is_ready("e")).await;
        let status = node.describe("e");
        assert_eq!(status.engine(), engine);
        assert_eq!(
            (status.running, status.waiting),
            (Some(running), Some(waiting))
        );
        assert!(status.load_age.is_some());
    }
}

#[tokio::test]
async fn triton_has_its_own_health_path_and_metrics_port() {
    let server = Engine::empty("127.0.0.1:0").await;
    server.set("/v2/health/ready", 200, "");
    let metrics = Engine::empty("[::1]:0").await;
    metrics.set(
        "/metrics",
        200,
        include_str!("../src/engine/scrape/testdata/triton.txt"),
    );
    let state = State::default();
    state.pool("p", fast());
    let spec = v1::EndpointSpec {
        pool: "p".into(),
        url: server.url(),
        engine: v1::Engine::Triton.into(),
        metrics_url: format!("{}/metrics", metrics.url()),
        ..Default::default()
    };
    state.put("e", Spec::Endpoint(spec), &[]);
    let node = Node::start(1, &state, &Peers::default()).await;
    until("readiness", || node.is_ready("e")).await;
    until("the figures", || {
        load(&node).is_some_and(|l| l.running == Some(6))
    })
    .await;
}

#[tokio::test]
async fn no_metrics_page_is_no_reason_not_to_be_used() {
    let server = Engine::empty("127.0.0.1:0").await;
    server.set("/health", 200, "");
    let (node, _state) = node(fast(), &server).await;
    until("readiness", || node.is_ready("e")).await;
    until("several reads", || server.asked("/prometheus/metrics") > 3).await;
    let status = node.describe("e");
    assert!(
        node.is_ready("e") && status.reasons.is_empty(),
        "{status:?}"
    );
    assert!(
        status.load_age.is_none() && status.last_error.contains("/metrics answers 404"),
        "{status:?}"
    );
    // Later it has one, and loses it again: the figures stay and age.
    server.set("/metrics", 200, VLLM);
    until("the figures", || {
        load(&node).is_some_and(|l| l.running == Some(3))
    })
    .await;
    server.set("/metrics", 500, "");
    until("the trouble", || {
        node.describe("e").last_error.contains("500")
    })
    .await;
    assert!(node.is_ready("e") && load(&node).is_some());
}

#[tokio::test]
async fn models_and_adapters_become_routes() {
    let server = Engine::vllm().await;
    server.set(
        "/v1/models",
        200,
        r#"{"data":[{"id":"m"},{"id":"lora-a","parent":"m"}]}"#,
    );
    let (node, _state) = node(fast(), &server).await;
    // Before its engines have spoken, the only pool takes every name.
    until("routes", || {
        let view = node.view.load();
        view.route("lora-a").is_some() && view.route("m").is_some() && view.route("x").is_none()
    })
    .await;
    let status = node.describe("e");
    assert_eq!(
        (status.models, status.adapters),
        (vec!["m".to_owned()], vec!["lora-a".to_owned()])
    );
    // An adapter at work that the last list did not have: the list is read again at once.
    server.set(
        "/v1/models",
        200,
        r#"{"data":[{"id":"m"},{"id":"lora-a","parent":"m"},{"id":"lora-b","parent":"m"}]}"#,
    );
    let info = "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"lora-b\",waiting_lora_adapters=\"\"} 1.0\n";
    server.set("/metrics", 200, &format!("{VLLM}{info}"));
    until("the new adapter", || {
        node.view.load().route("lora-b").is_some()
    })
    .await;
    assert_eq!(node.describe("e").adapters, ["lora-a", "lora-b"]);
}

#[tokio::test]
async fn ready_comes_with_the_models() {
    let server = Engine::vllm().await;
    server.set("/v1/models", 0, "");
    let (node, _state) = node(fast(), &server).await;
    until("several good probes", || server.asked("/health") > 3).await;
    assert!(!node.is_ready("e"));
    server.set("/v1/models", 200, r#"{"data":[{"id":"m"}]}"#);
    until("readiness", || node.is_ready("e")).await;
    assert_eq!(node.endpoint("e").unwrap().models()[0].id, "m");
}

#[tokio::test]
async fn an_engine_without_a_model_list_is_ready_too() {
    let server = Engine::vllm().await;
    server.set("/v1/models", 404, "");
    let (node, _state) = node(fast(), &server).await;
    until("readiness", || node.is_ready("e")).await;
}

#[tokio::test]
async fn a_killed_engine_is_known_at_once_and_used_again_within_a_second_of_its_return() {
    let mut server = Engine::vllm().await;
    // Default intervals: 2 s while healthy, 250 ms while not.
    let (node, _state) = node(PoolSpec::default(), &server).await;
    let first = until("readiness", || node.is_ready("e")).await;
    println!("start to ready {first:?}");
    let endpoint = node.endpoint("e").unwrap();

    server.kill().await;
    // What the gateway would see: three failed connects, and the breaker opens.
    for _ in 0..3 {
        endpoint
            .reserve(now_ms())
            .unwrap()
            .failed(Failure::Connect, now_ms());
    }
    let noticed = until("unhealthy", || node.is_unhealthy("e")).await;
    assert!(
        noticed < Duration::from_secs(1),
        "took {noticed:?}: it waited for the next regular probe"
    );
    let status = node.describe("e");
    assert!(status.reasons[0].contains("refused"), "{status:?}");
    assert_eq!(endpoint.tier(now_ms()), None);

    server.start().await;
    let back = Instant::now();
    until("readiness", || node.is_ready("e")).await;
    // Usable at once, too: the breaker does not sit out its time.
    let trial = endpoint.reserve(now_ms()).expect("a trial is let through");
    trial.succeeded();
    drop(trial);
    assert!(endpoint.reserve(now_ms()).is_some());
    println!(
        "down noticed after {noticed:?}, used again {:?} after its return",
        back.elapsed()
    );
    assert!(
        back.elapsed() < Duration::from_secs(1),
        "took {:?}",
        back.elapsed()
    );
    assert!(
        node.describe("e")
            .reasons
            .iter()
            .all(|r| r.starts_with("slow start"))
    );
}

#[tokio::test]
async fn an_engine_that_answers_health_and_moves_no_token_is_not_used() {
    let server = Engine::vllm().await;
    let mut pool = fast();
    pool.health.as_mut().unwrap().stall_timeout = ms(300);
    let (node, _state) = node(pool, &server).await;
    until("readiness", || node.is_ready("e")).await;
    let endpoint = node.endpoint("e").unwrap();

    // Bytes keep it healthy, however long the request lasts.
    let request = endpoint.reserve(now_ms()).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        request.progress(now_ms());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(node.is_ready("e"));

    // Then none comes.
    server.set("/v1/completions", 0, "");
    until("the stall", || node.is_unhealthy("e")).await;
    let status = node.describe("e");
    assert!(status.reasons[0].contains("stalled"), "{status:?}");
    // Good health probes change nothing, nor does the end of the requests; a request of the owner's own is tried.
    let probes = server.asked("/health");
    drop(request);
    until("a proof is asked for", || {
        server.asked("/v1/completions") > 0
    })
    .await;
    until("more health probes", || {
        server.asked("/health") > probes + 5
    })
    .await;
    assert!(node.is_unhealthy("e"));
    // The engine is restarted: connections break, the stalled process is gone, the new one works.
    server.set("/v1/completions", 200, "{}");
    let mut server = server;
    server.kill().await;
    until("refused", || {
        node.describe("e").last_error.contains("refused")
    })
    .await;
    server.start().await;
    until("readiness", || node.is_ready("e")).await;
}

#[tokio::test]
async fn a_stall_ends_when_tokens_move_again() {
    let server = Engine::vllm().await;
    let mut pool = fast();
    pool.health.as_mut().unwrap().stall_timeout = ms(200);
    let (node, _state) = node(pool, &server).await;
    until("readiness", || node.is_ready("e")).await;
    let endpoint = node.endpoint("e").unwrap();
    let request = endpoint.reserve(now_ms()).unwrap();
    until("the stall", || node.is_unhealthy("e")).await;
    request.progress(now_ms());
    until("progress clears it", || node.is_ready("e")).await;
    until("the next stall", || node.is_unhealthy("e")).await;
    drop(request);
    until("a proof clears it", || node.is_ready("e")).await;
    assert!(server.asked("/v1/completions") > 0);
}

#[tokio::test]
async fn a_long_request_without_a_byte_is_no_stall_while_the_engine_counts_tokens() {
    let server = Engine::vllm().await;
    let mut pool = fast();
    pool.health.as_mut().unwrap().stall_timeout = ms(300);
    let (node, _state) = node(pool, &server).await;
    until("readiness", || node.is_ready("e")).await;
    let request = node.endpoint("e").unwrap().reserve(now_ms()).unwrap();
    let begun = Instant::now();
    let mut tokens = 0;
    while begun.elapsed() < Duration::from_millis(900) {
        tokens += 1;
        let count =
            format!("vllm:generation_tokens_total{{engine=\"0\",model_name=\"m\"}} {tokens}.0\n");
        server.set("/metrics", 200, &format!("{VLLM}{count}"));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!node.is_unhealthy("e"), "{:?}", node.describe("e"));
    }
    until("the stall once the count stands still", || {
        node.is_unhealthy("e")
    })
    .await;
    drop(request);
}

#[tokio::test]
async fn a_sleeping_engine_is_not_used_until_it_wakes() {
    let server = Engine::vllm().await;
    server.set("/is_sleeping", 200, r#"{"is_sleeping": false}"#);
    let (node, _state) = node(fast(), &server).await;
    until("readiness", || node.is_ready("e")).await;
    server.set("/is_sleeping", 200, r#"{"is_sleeping": true}"#);
    until("sleep", || node.is_unhealthy("e")).await;
    assert!(node.describe("e").reasons[0].contains("sleeping"));
    server.set("/is_sleeping", 200, r#"{"is_sleeping": false}"#);
    until("readiness", || node.is_ready("e")).await;
}

#[tokio::test]
async fn health_needs_failures_in_a_row_and_says_what_failed() {
    let server = Engine::vllm().await;
    let (node, _state) = node(fast(), &server).await;
    until("readiness", || node.is_ready("e")).await;
    let mut events = node.plane.events();
    server.set("/health", 503, "loading");
    let event = patiently("an event", events.recv()).await.unwrap();
    assert!(
        matches!(&event, quorate_endpoint::PlaneEvent::Health { why, .. } if why.contains("/health answers 503")),
        "{event:?}"
    );
    assert!(node.describe("e").reasons[0].contains("503"));
    server.set("/health", 200, "");
    until("readiness", || node.is_ready("e")).await;
}

#[tokio::test]
async fn a_changed_spec_keeps_counts_and_health_and_a_new_incarnation_does_not() {
    let server = Engine::vllm().await;
    let (node, state) = node(fast(), &server).await;
    until("readiness", || node.is_ready("e")).await;
    let before = node.endpoint("e").unwrap();
    let request = before.reserve(now_ms()).unwrap();
    let spec = |draining: bool| {
        Spec::Endpoint(v1::EndpointSpec {
            pool: "p".into(),
            url: server.url(),
            region: "r".into(),
            draining,
            ..Default::default()
        })
    };
    state.put("e", spec(false), &[("tier", "a")]);
    until("the new spec", || {
        node.endpoint("e").unwrap().spec().labels.len() == 1
    })
    .await;
    let after = node.endpoint("e").unwrap();
    until("the count is kept", || after.total_in_flight() == 1).await;
    assert!(node.is_ready("e"), "it is the same server");
    drop(request);
    until("the count ends with its stream", || {
        after.total_in_flight() == 0
    })
    .await;

    // Draining is no new endpoint.
    state.put("e", spec(true), &[("tier", "a")]);
    until("draining", || {
        node.describe("e").state() == endpoint_status::State::Draining
    })
    .await;
    assert!(std::sync::Arc::ptr_eq(&after, &node.endpoint("e").unwrap()));

    let held = after.reserve(now_ms()).unwrap();
    state.delete_endpoint("e");
    until("deleted", || node.endpoint("e").is_none()).await;
    assert!(node.plane.describe("e").is_none());
    state.put("e", spec(false), &[]);
    until("another one", || node.is_ready("e")).await;
    assert_eq!(node.endpoint("e").unwrap().total_in_flight(), 0);
    drop(held);
}

#[tokio::test]
async fn endpoints_without_a_place_say_why() {
    let state = State::default();
    state.pool("p", fast());
    state.endpoint("lost", "nowhere", "http://127.0.0.1:1");
    state.endpoint("alone", "", "http://127.0.0.1:1");
    let node = Node::start(1, &state, &Peers::default()).await;
    until("described", || node.plane.describe("lost").is_some()).await;
    assert!(node.describe("lost").reasons[0].contains("\"nowhere\" does not exist"));
    assert!(node.describe("alone").reasons[0].contains("no pool's selector"));
    assert!(node.plane.describe("undeclared").is_none());
}
