//! The records that requests leave.

use crate::support::*;
use quorate_gateway::GatewayConfig;
use quorate_routing::explain::{Recorder, RecorderOptions, RequestRecord};
use std::sync::Arc;

fn recorder(front: &Front, share: f64) -> Arc<Recorder> {
    let recorder = Arc::new(Recorder::new(RecorderOptions {
        capacity: 100,
        max_bytes: 1 << 20,
        share,
        max_per_second: 1000,
    }));
    front.shared.set_recorder(Arc::clone(&recorder));
    recorder
}

/// Newest first.
async fn records(recorder: &Recorder, count: usize) -> Vec<Arc<RequestRecord>> {
    eventually("the records", || recorder.records().count() == count).await;
    recorder.records().collect()
}

const ANSWER: &str = r#"{"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}}"#;

#[tokio::test]
async fn attempts_outcome_and_usage_are_in_the_record() {
    let down = Engine::start(|_| async { answer(503, "application/json", "{}") }).await;
    let good = Engine::start(|_| async { json(ANSWER) }).await;
    let front = Front::before(config(), &[&down, &good]);
    let recorder = recorder(&front, 1.0);
    let mut count = 0;
    let record = loop {
        let id = format!(
            "x-request-id: id-{count}\r\nx-session-id: s\r\nauthorization: Bearer secret\r\n"
        );
        let reply = front.post_with(CHAT_PATH, &id, CHAT).await;
        assert_eq!(reply.status, 200);
        count += 1;
        let newest = Arc::clone(&records(&recorder, count).await[0]);
        if newest.attempts.len() == 2 {
            break newest;
        }
        assert!(count < 50, "the broken engine is never asked");
    };
    assert_eq!(record.request_id, format!("id-{}", count - 1));
    assert_eq!(
        (record.node.as_str(), &*record.door, &*record.pool),
        ("node-1", "gateway", "p")
    );
    assert_eq!((record.model.as_str(), record.flow.is_none()), ("m", true));
    let [first, second] = &record.attempts[..] else {
        panic!("{record:?}");
    };
    assert_eq!(
        (first.endpoint.as_deref(), &*first.outcome),
        (Some("e0"), "status 503")
    );
    assert_eq!(
        (second.endpoint.as_deref(), &*second.outcome),
        (Some("e1"), "answered")
    );
    let decision = first.decision.as_ref().unwrap();
    assert_eq!(
        (&*decision.scheduler, decision.candidates.len()),
        ("power-of-two", 2)
    );
    assert_eq!(second.decision.as_ref().unwrap().unusable, ["e0"]);
    let ending = &record.ending;
    assert_eq!(
        (ending.status, &*ending.end, ending.endpoint.as_deref()),
        (200, "complete", Some("e1"))
    );
    let tokens = (
        ending.input_tokens,
        ending.output_tokens,
        ending.cached_tokens,
    );
    assert_eq!(tokens, (Some(9), Some(3), Some(8)));
    assert!(ending.ttft_ms.unwrap() <= ending.duration_ms);
    let request = record.request.as_ref().unwrap();
    assert_eq!(request.headers["x-session-id"], ["s"]);
    assert!(!request.headers.contains_key("authorization"));
    assert_eq!(request.session.as_deref(), Some("s"));
}

#[tokio::test]
async fn a_request_that_went_nowhere_says_why() {
    let front = Front::of(config(), vec![endpoint("e0", "http://127.0.0.1:9", false)]);
    front.endpoints[0].set_draining(true);
    let recorder = recorder(&front, 1.0);
    let reply = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(reply.status, 503);
    let record = Arc::clone(&records(&recorder, 1).await[0]);
    assert_eq!(
        reply.header("x-request-id"),
        Some(record.request_id.as_str())
    );
    assert_eq!(record.ending.status, 503);
    assert_eq!(
        record.ending.dropped_reason.as_deref(),
        Some("rejected-no-endpoints")
    );
    let [attempt] = &record.attempts[..] else {
        panic!("{record:?}");
    };
    assert_eq!(&*attempt.outcome, "not-picked");
    assert_eq!(attempt.decision.as_ref().unwrap().unusable, ["e0"]);
    // Nothing of it was ever classified.
    assert_eq!(front.post(CHAT_PATH, "no json").await.status, 400);
    assert_eq!(recorder.records().count(), 1);
}

#[tokio::test]
async fn only_who_is_trusted_may_ask_for_a_record() {
    let engine = Engine::start(|_| async { json(ANSWER) }).await;
    for (trusted, expected) in [(true, 1), (false, 0)] {
        let config = GatewayConfig {
            trust_headers: Some(trusted),
            ..config()
        };
        let front = Front::before(config, &[&engine]);
        let recorder = recorder(&front, 0.0);
        assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
        let asked = front.post_with(CHAT_PATH, "x-quorate-explain: 1\r\n", CHAT);
        assert_eq!(asked.await.status, 200);
        eventually("the end of both", || front.reserved() == 0).await;
        assert_eq!(records(&recorder, expected).await.len(), expected);
    }
}
