//! Requests that wait for their pool.

use super::talk::*;
use crate::config::ExtProcConfig;
use quorate_routing::PoolPolicy;
use quorate_routing::config::flow::{
    BandConfig, ConcurrencyMode, FlowControlConfig, SaturationDetector,
};
use quorate_routing::explain::{Recorder, RecorderOptions, RequestRecord};
use quorate_routing::flow::FlowControl;
use std::sync::Arc;
use std::time::Duration;

/// One request at a time, and one more may wait.
fn one_at_a_time() -> World {
    world_and_flow().0
}

fn world_and_flow() -> (World, Arc<FlowControl>) {
    let band = BandConfig {
        max_requests: 1,
        ..BandConfig::default()
    };
    let config = FlowControlConfig {
        default_band: band.clone(),
        bands: vec![band],
        saturation: SaturationDetector::Concurrency {
            max_concurrency: 1,
            max_token_concurrency: 1_000_000,
            mode: ConcurrencyMode::Requests,
            headroom: 0.0,
        },
        ..FlowControlConfig::default()
    };
    let flow = FlowControl::new("p", config);
    let policy = PoolPolicy {
        flow: Some(Arc::clone(&flow)),
        ..PoolPolicy::default()
    };
    let config = ExtProcConfig {
        trust_headers: Some(true),
        ..ExtProcConfig::default()
    };
    (with_policy(1, config, policy), flow)
}

#[tokio::test]
async fn the_next_goes_when_the_one_before_has_ended_and_the_rest_are_told() {
    let world = one_at_a_time();
    let mut first = world.open();
    assert_eq!(lb(&first.request(CHAT, BODY)[0]), "10.0.0.1:8000");
    let mut second = world.open();
    assert!(second.request(CHAT, BODY).is_empty(), "it waits");
    let third = world.open().refused(CHAT, BODY);
    assert_eq!(code(&third), 429);
    assert_eq!(
        set(&third.headers.unwrap(), "x-llm-d-request-dropped-reason").as_deref(),
        Some("rejected-saturated")
    );
    assert_eq!(world.in_flight(), [1]);
    first.send(response_head("200", "text/plain", true));
    assert_eq!(first.said().len(), 1);
    assert_eq!(lb(&second.said()[0]), "10.0.0.1:8000");
    assert_eq!(world.in_flight(), [1]);

    // One that is given up while it waits leaves the queue, and makes room in it.
    let mut fourth = world.open();
    assert!(fourth.request(CHAT, BODY).is_empty());
    drop(fourth);
    let mut fifth = world.open();
    assert!(fifth.request(CHAT, BODY).is_empty());
    drop(second);
    assert_eq!(lb(&fifth.said()[0]), "10.0.0.1:8000");
    drop(fifth);
    assert_eq!(world.in_flight(), [0]);
}

#[tokio::test]
async fn nobody_waits_longer_than_its_client_says() {
    let (world, flow) = world_and_flow();
    let mut first = world.open();
    assert_eq!(lb(&first.request(CHAT, BODY)[0]), "10.0.0.1:8000");
    let mut second = world.open();
    let limit = [("x-llm-d-request-timeout-ms", "20")];
    second.send(head("POST", CHAT, false, &limit));
    second.send(request_body(BODY, true));
    assert!(second.said().is_empty(), "it waits");
    tokio::time::sleep(Duration::from_millis(30)).await;
    flow.tick();
    let said = second.said();
    let refused = second.immediate(said);
    assert_eq!(code(&refused), 429);
    assert_eq!(
        set(&refused.headers.unwrap(), "x-llm-d-request-dropped-reason").as_deref(),
        Some("rejected-ttl-expired")
    );
}

#[tokio::test]
async fn every_request_leaves_its_record() {
    let world = one_at_a_time();
    let recorder = Arc::new(Recorder::new(RecorderOptions {
        capacity: 10,
        max_bytes: 1 << 20,
        share: 1.0,
        max_per_second: 1000,
    }));
    world.shared.set_recorder(Arc::clone(&recorder));
    let mut first = world.open();
    assert!(!first.request(CHAT, BODY).is_empty());
    let mut second = world.open();
    assert!(second.request(CHAT, BODY).is_empty());
    assert_eq!(code(&world.open().refused(CHAT, BODY)), 429);
    first.send(response_head("200", "text/plain", true));
    assert!(!first.said().is_empty());
    assert!(!second.said().is_empty());
    drop(second);
    let records: Vec<_> = recorder.records().collect();
    let [second, first, third] = &records[..] else {
        panic!("{records:?}");
    };
    let flow = |record: &RequestRecord| {
        let flow = record.flow.as_ref().unwrap();
        (flow.queued, flow.outcome.to_string())
    };
    assert_eq!(flow(first), (false, "Dispatched".to_owned()));
    assert_eq!(flow(second), (true, "Dispatched".to_owned()));
    assert_eq!(flow(third), (false, "RejectedCapacity".to_owned()));
    assert_eq!((&*first.door, first.ending.status), ("ext-proc", 200));
    assert_eq!(first.attempts[0].endpoint.as_deref(), Some("e1"));
    assert_eq!(
        (&*second.ending.end, second.ending.status),
        ("client_gone", 0)
    );
    assert_eq!(
        third.ending.dropped_reason.as_deref(),
        Some("rejected-saturated")
    );
    assert!(third.attempts.is_empty() && third.request.is_none());
}
