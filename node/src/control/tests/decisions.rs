//! Records of requests over the control API.

use super::*;
use quorate_proto::v1::{
    ExplainRequest, ListDecisionsRequest, StartRecordingRequest, StopRecordingRequest,
    decisions_client::DecisionsClient,
};
use quorate_routing::explain::{Ending, RequestRecord};

fn record(id: &str, pool: &str, end: &str, time_ms: u64) -> RequestRecord {
    RequestRecord {
        request_id: id.to_owned(),
        node: "node-1".to_owned(),
        time_ms,
        pool: pool.into(),
        model: "m".to_owned(),
        target_model: "m-lora".to_owned(),
        ending: Ending {
            end: end.into(),
            ..Ending::default()
        },
        ..RequestRecord::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_found_by_id_and_by_what_they_are() {
    let node = Node::start().await;
    let mut client = DecisionsClient::new(node.channel.clone());
    for (id, pool, end, time) in [
        ("a", "chat", "complete", 1_000),
        ("b", "code", "complete", 2_000),
        ("c", "chat", "client_gone", 3_000),
        ("a", "chat", "complete", 4_000),
    ] {
        node.recorder.finish(record(id, pool, end, time), 0);
    }
    let explain = |id: &str| ExplainRequest {
        request_id: id.to_owned(),
    };
    let found = client.explain(explain("a")).await.unwrap().into_inner();
    assert_eq!(
        (found.answered, found.silent.len()),
        (vec!["node-1".to_owned()], 0)
    );
    let times: Vec<i64> = found
        .records
        .iter()
        .map(|r| r.time.unwrap().seconds)
        .collect();
    assert_eq!(times, [4, 1], "newest first");
    let back: RequestRecord = serde_json::from_str(&found.records[1].json).unwrap();
    assert_eq!(back, record("a", "chat", "complete", 1_000));
    let none = client
        .explain(explain("nobody"))
        .await
        .unwrap()
        .into_inner();
    assert!(none.records.is_empty());
    for id in ["", &"x".repeat(129)] {
        let status = client.explain(explain(id)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let list = |limit, pool: &str, model: &str, outcome: &str| ListDecisionsRequest {
        limit,
        pool: pool.to_owned(),
        model: model.to_owned(),
        outcome: outcome.to_owned(),
    };
    for (asked, expected) in [
        (list(0, "", "", ""), vec!["a", "c", "b", "a"]),
        (list(2, "", "", ""), vec!["a", "c"]),
        (list(0, "code", "", ""), vec!["b"]),
        (list(0, "chat", "m-lora", "client_gone"), vec!["c"]),
        (list(0, "", "m", "complete"), vec!["a", "b", "a"]),
        (list(0, "", "other", ""), vec![]),
    ] {
        let found = client.list(asked.clone()).await.unwrap().into_inner();
        let ids: Vec<&str> = found
            .records
            .iter()
            .map(|r| r.request_id.as_str())
            .collect();
        assert_eq!(ids, expected, "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_until_it_is_stopped() {
    let node = Node::start().await;
    let mut client = DecisionsClient::new(node.channel.clone());
    let start = |file: &str, share| StartRecordingRequest {
        file: file.to_owned(),
        share,
        duration: None,
    };
    for (file, share) in [("", 1.0), ("a", 1.5), ("a", f64::NAN), ("a", -0.1)] {
        let status = client
            .start_recording(start(file, share))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{file} {share}");
    }
    let bad = client
        .start_recording(start("../a", 1.0))
        .await
        .unwrap()
        .into_inner();
    assert!(bad.nodes[0].problem.contains("no file name"), "{bad:?}");
    let started = client
        .start_recording(start("a.jsonl", 0.0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            started.nodes[0].node.as_str(),
            started.nodes[0].problem.as_str()
        ),
        ("node-1", "")
    );
    let again = client
        .start_recording(start("b.jsonl", 1.0))
        .await
        .unwrap()
        .into_inner();
    assert!(again.nodes[0].problem.contains("already"), "{again:?}");
    node.recorder.finish(record("a", "chat", "complete", 1), 0);
    let stop = StopRecordingRequest {};
    let stopped = client.stop_recording(stop).await.unwrap().into_inner();
    assert_eq!((stopped.nodes[0].written, stopped.nodes[0].lost), (1, 0));
    let path = node.data.path().join("decisions/a.jsonl");
    assert_eq!(stopped.nodes[0].path, path.display().to_string());
    let text = std::fs::read_to_string(path).unwrap();
    let back: RequestRecord = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(back.request_id, "a");
    let nothing = client.stop_recording(stop).await.unwrap().into_inner();
    assert_eq!(nothing.nodes[0].path, "");
}
