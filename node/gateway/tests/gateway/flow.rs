//! Requests that wait for their turn, and those that do not get one.

use crate::support::*;
use quorate_gateway::{GatewayConfig, HumanDuration};
use quorate_routing::PoolPolicy;
use quorate_routing::config::flow::{
    BandConfig, ConcurrencyMode, FlowControlConfig, SaturationDetector,
};
use quorate_routing::flow::FlowControl;
use std::sync::Arc;

/// One request at a time, and one more may wait.
fn one_at_a_time(front: GatewayConfig, engine: &Engine) -> Front {
    let band = BandConfig {
        max_requests: 1,
        ..BandConfig::default()
    };
    let flow = FlowControl::new(
        "p",
        FlowControlConfig {
            default_band: band.clone(),
            bands: vec![band],
            saturation: SaturationDetector::Concurrency {
                max_concurrency: 1,
                max_token_concurrency: 1_000_000,
                mode: ConcurrencyMode::Requests,
                headroom: 0.0,
            },
            ..FlowControlConfig::default()
        },
    );
    let endpoints = endpoints(&[engine]);
    flow.observe(&endpoints);
    let policy = PoolPolicy {
        flow: Some(flow),
        ..PoolPolicy::default()
    };
    Front::with(front, policy, endpoints)
}

/// An engine that answers once it is told to.
async fn held() -> (Engine, Arc<tokio::sync::Semaphore>) {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let engine = Engine::start(move |_| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.unwrap().forget();
            json("{}")
        }
    })
    .await;
    (engine, gate)
}

#[tokio::test]
async fn the_next_goes_when_the_one_before_has_ended_and_the_rest_are_told() {
    let (engine, gate) = held().await;
    let front = one_at_a_time(config(), &engine);
    let mut first = front.connect().await;
    first.post(CHAT_PATH, CHAT).await;
    eventually("the first is at the engine", || engine.requests() == 1).await;
    let mut second = front.connect().await;
    second.post(CHAT_PATH, CHAT).await;
    eventually("the second waits", || front.handle.in_flight() == 2).await;
    let third = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(
        (third.status, third.header("x-llm-d-request-dropped-reason")),
        (429, Some("rejected-saturated"))
    );
    assert_eq!(third.json()["error"]["code"], "request_rejected");
    assert_eq!(engine.requests(), 1);
    gate.add_permits(1);
    assert_eq!(first.reply().await.status, 200);
    eventually("the second is at the engine", || engine.requests() == 2).await;
    // A client that leaves gives its place to the next.
    drop(second);
    eventually("its place is free", || front.handle.in_flight() == 0).await;
    gate.add_permits(2);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
}

#[tokio::test]
async fn nobody_waits_longer_than_the_request_may_take() {
    let (engine, gate) = held().await;
    let limits = GatewayConfig {
        total_timeout: HumanDuration::secs(3),
        ..config()
    };
    let front = one_at_a_time(limits, &engine);
    let mut first = front.connect().await;
    first.post(CHAT_PATH, CHAT).await;
    eventually("the first is at the engine", || engine.requests() == 1).await;
    let mut gone = front.connect().await;
    gone.post(CHAT_PATH, CHAT).await;
    eventually("the second waits", || front.handle.in_flight() == 2).await;
    drop(gone);
    eventually("it has left the queue", || front.handle.in_flight() == 1).await;
    gate.add_permits(1);
    assert_eq!(first.reply().await.status, 200);
    assert_eq!(engine.requests(), 1);
}

#[tokio::test]
async fn the_clients_own_deadline_ends_its_wait_and_its_answer() {
    let (engine, gate) = held().await;
    let front = one_at_a_time(config(), &engine);
    let mut first = front.connect().await;
    first.post(CHAT_PATH, CHAT).await;
    eventually("the first is at the engine", || engine.requests() == 1).await;
    // The engine is busy for ever: what ends the wait is the deadline alone.
    let mut second = front.connect().await;
    let head = format!(
        "POST {CHAT_PATH} HTTP/1.1\r\nhost: front\r\nx-llm-d-request-timeout-ms: 50\r\ncontent-length: {}\r\n\r\n{CHAT}",
        CHAT.len()
    );
    second.send(head.as_bytes()).await;
    eventually("the second waits", || front.handle.in_flight() == 2).await;
    // Somebody has to let time pass for the engine of flow control, as the node does.
    let flow = front.view.load().pools()[0].policy.flow.clone().unwrap();
    let clock = tokio::spawn(async move {
        loop {
            flow.tick();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    let second = second.reply().await;
    clock.abort();
    assert_eq!(
        (
            second.status,
            second.header("x-llm-d-request-dropped-reason")
        ),
        (429, Some("rejected-ttl-expired"))
    );
    assert_eq!(engine.requests(), 1);
    gate.add_permits(1);
    assert_eq!(first.reply().await.status, 200);
    // At the engine: the answer does not come, and the same deadline holds.
    let late = front
        .post_with(CHAT_PATH, "x-gateway-request-timeout-ms: 50\r\n", CHAT)
        .await;
    assert_eq!(late.status, 504);
    assert_eq!(late.json()["error"]["code"], "upstream_timeout");
}

#[tokio::test]
async fn a_strangers_deadline_header_counts_for_nothing() {
    let (engine, gate) = held().await;
    let front = one_at_a_time(
        GatewayConfig {
            trust_headers: Some(false),
            ..config()
        },
        &engine,
    );
    gate.add_permits(1);
    let reply = front
        .post_with(CHAT_PATH, "x-llm-d-request-timeout-ms: 0\r\n", CHAT)
        .await;
    assert_eq!(reply.status, 200);
}
