//! What became of requests, as the command line shows it.

use super::*;
use quorate_proto::v1::{
    DecisionRecord, DecisionRecords, ExplainRequest, ListDecisionsRequest, NodeRecording,
    RecordingResponse, SilentNode, StartRecordingRequest, StopRecordingRequest,
    decisions_server::Decisions,
};
use quorate_routing::config::EndpointPickerConfig;
use quorate_routing::explain::{Attempt, Ending, FlowRecord, RequestFacts, RequestRecord};
use quorate_routing::{
    Decision, Endpoint, EndpointSpec, Health, LoadFigures, PoolSpec, RoutingView, Scheduler as _,
    SchedulingRequest, Target, Tried,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Decisions for Fake {
    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<DecisionRecords>, Status> {
        let id = request.into_inner().request_id;
        let mut found = self.lock().decisions.clone();
        found.records.retain(|record| record.request_id == id);
        Ok(Response::new(found))
    }

    async fn list(
        &self,
        request: Request<ListDecisionsRequest>,
    ) -> Result<Response<DecisionRecords>, Status> {
        self.lock().listed.push(request.into_inner());
        Ok(Response::new(self.lock().decisions.clone()))
    }

    async fn start_recording(
        &self,
        request: Request<StartRecordingRequest>,
    ) -> Result<Response<RecordingResponse>, Status> {
        let request = request.into_inner();
        let node = |node: &str, path: String, problem: &str| NodeRecording {
            node: node.to_owned(),
            path,
            problem: problem.to_owned(),
            ..NodeRecording::default()
        };
        let path = format!(
            "/data/{} {} {:?}",
            request.file, request.share, request.duration
        );
        Ok(Response::new(RecordingResponse {
            nodes: vec![
                node("router-1", path, ""),
                node("router-2", String::new(), "this node keeps nothing on disk"),
            ],
            silent: Vec::new(),
        }))
    }

    async fn stop_recording(
        &self,
        _: Request<StopRecordingRequest>,
    ) -> Result<Response<RecordingResponse>, Status> {
        let node = NodeRecording {
            node: "router-1".to_owned(),
            path: "/data/a.jsonl".to_owned(),
            written: 7,
            lost: 1,
            ..NodeRecording::default()
        };
        Ok(Response::new(RecordingResponse {
            nodes: vec![node],
            silent: Vec::new(),
        }))
    }
}

fn endpoint(name: &str, role: &str, waiting: u32, usage: f32) -> Arc<Endpoint> {
    let endpoint = Endpoint::new(
        EndpointSpec {
            name: name.into(),
            incarnation: 1,
            pool: "chat".into(),
            target: Target::new(false, name, 8000),
            h2c: false,
            region: "eu".into(),
            rank: None,
            labels: [("llm-d.ai/role".to_owned(), role.to_owned())].into(),
            breaker: quorate_routing::BreakerPolicy::default(),
            slow_start: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
        },
        None,
    );
    endpoint.set_health(Health::Ready, 1);
    let figures = LoadFigures {
        running: Some(1),
        waiting: Some(waiting),
        kv_cache_usage: Some(usage),
    };
    endpoint.set_load(figures, 90);
    Arc::new(endpoint)
}

const THEN: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
metadata: {name: chat}
plugins: [{type: decode-filter}, {type: queue-scorer}, {type: max-score-picker}]
";

/// A request that was made in earnest, on endpoints that are not there any more.
fn record(id: &str) -> RequestRecord {
    let endpoints = vec![
        endpoint("gpu-1", "decode", 3, 0.25),
        endpoint("gpu-2", "decode", 0, 0.75),
        endpoint("gpu-3", "prefill", 0, 0.5),
    ];
    let pool = PoolSpec {
        name: "chat".into(),
        fallback: true,
        ..PoolSpec::default()
    };
    let view = RoutingView::build([(pool, endpoints)]);
    let scheduler = EndpointPickerConfig::parse(THEN)
        .unwrap()
        .config
        .compile()
        .unwrap()
        .scheduler;
    let request = SchedulingRequest {
        prompt_bytes: 400,
        ..SchedulingRequest::default()
    };
    let mut decision = Decision::default();
    let route = view.route("m").unwrap();
    let tried = Tried::default();
    drop(scheduler.schedule(&request, route, &tried, 100, 1, Some(&mut decision)));
    // Schedulers begin their turns anywhere.
    for profile in &mut decision.profiles {
        profile.turn = profile.turn.map(|_| 7);
    }
    RequestRecord {
        request_id: id.to_owned(),
        node: "router-1".to_owned(),
        time_ms: 1_700_000_000_250,
        door: "gateway".into(),
        pool: "chat".into(),
        model: "alias".to_owned(),
        target_model: "base".to_owned(),
        rewrite: Some("canary".into()),
        tenant: Some("search".to_owned()),
        fairness_id: "search".to_owned(),
        objective: Some("batch".into()),
        priority: -1,
        flow: Some(FlowRecord {
            queued: true,
            queue_ms: 12.34,
            outcome: "Dispatched".into(),
        }),
        request: Some(RequestFacts::of(&request)),
        attempts: vec![
            Attempt {
                at_ms: 12.5,
                endpoint: decision.picked.first().cloned(),
                decision: Some(decision),
                outcome: "status 503".into(),
                ..Attempt::default()
            },
            Attempt {
                at_ms: 14.0,
                endpoint: Some("gpu-1".into()),
                outcome: "answered".into(),
                ..Attempt::default()
            },
        ],
        ending: Ending {
            status: 200,
            end: "complete".into(),
            endpoint: Some("gpu-1".into()),
            duration_ms: 250.0,
            ttft_ms: Some(80.0),
            input_tokens: Some(100),
            output_tokens: Some(20),
            cached_tokens: Some(64),
            ..Ending::default()
        },
    }
}

fn stored(record: &RequestRecord) -> DecisionRecord {
    DecisionRecord {
        request_id: record.request_id.clone(),
        node: record.node.clone(),
        time: None,
        json: serde_json::to_string(record).unwrap(),
    }
}

async fn with_records(ids: &[&str]) -> Running {
    let server = Fake::default().start().await;
    server.state().decisions = DecisionRecords {
        records: ids.iter().map(|id| stored(&record(id))).collect(),
        answered: vec!["router-1".to_owned(), "router-2".to_owned()],
        silent: vec![SilentNode {
            node_id: 3,
            name: "router-3".to_owned(),
            why: "connection refused".to_owned(),
        }],
    };
    server
}

const SHOWN: &str = "\
Request     a
Handled by  router-1 (gateway) at 2023-11-14T22:13:20.250Z
Pool        chat
Model       alias -> base (rewrite canary)
Tenant      search
Flow        search, priority -1, objective batch
Queue       waited 12.3 ms, Dispatched
Prompt      400 bytes
Outcome     200 complete, served by gpu-1, 250.0 ms, first token after 80.0 ms, 100 tokens in (64 cached), 20 tokens out

Attempt 1 after 12.5 ms: gpu-2: status 503
  chat: 3 candidates, 100 prompt tokens reserved
  profile default: max-score-picker
  ENDPOINT   queue-scorer x1   TOTAL   QUEUE   RUNNING   KV     IN FLIGHT   AGE     REMOVED BY
  * gpu-2    1.000             1.000   0       1         0.75   0           10 ms   -
    gpu-1    0.000             0.000   3       1         0.25   0           10 ms   -
    gpu-3    -                 -       0       1         0.50   0           10 ms   decode-filter

Attempt 2 after 14.0 ms: gpu-1: answered
  a fallback of the decision before
";

#[tokio::test]
async fn a_request_is_explained() {
    let server = with_records(&["a"]).await;
    let said = run(&server, "explain a").await;
    assert!(
        said.err
            .contains("warning: node 3 (router-3) could not be asked"),
        "{said:?}"
    );
    let shown = said.ok();
    assert_eq!(shown, SHOWN, "{shown}");
    let json = run(&server, "explain a -o json").await.ok();
    assert_eq!(
        serde_json::from_str::<RequestRecord>(&json).unwrap(),
        record("a")
    );
    let yaml = run(&server, "explain a -o yaml").await.ok();
    assert!(
        yaml.contains("request_id: a") && yaml.contains("rewrite: canary"),
        "{yaml}"
    );
    let none = run(&server, "explain b").await.failed(Exit::NotFound);
    for word in [
        "\"b\" on router-1, router-2",
        "node 3 (router-3)",
        "connection refused",
    ] {
        assert!(none.contains(word), "{none}");
    }
}

#[tokio::test]
async fn the_latest_requests_are_listed() {
    let server = with_records(&["a", "b"]).await;
    let shown = run(&server, "explain --last 5 --pool chat --outcome complete")
        .await
        .ok();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(
        lines[1].contains("2023-11-14T22:13:20.250Z   router-1   a "),
        "{shown}"
    );
    assert!(
        lines[1].contains(" gpu-1 ") && lines[1].contains("12.3 ms"),
        "{shown}"
    );
    let asked = server.state().listed.remove(0);
    assert_eq!(
        (asked.limit, asked.pool.as_str(), asked.outcome.as_str()),
        (5, "chat", "complete")
    );
    let json = run(&server, "explain --last 5 -o json").await.ok();
    let all: Vec<RequestRecord> = serde_json::from_str(&json).unwrap();
    assert_eq!(all.len(), 2);
    for wrong in [
        "explain",
        "explain --pool chat",
        "explain a --last 5",
        "explain --last 0",
    ] {
        assert_eq!(run(&server, wrong).await.exit, Exit::Usage, "{wrong}");
    }
}

#[tokio::test]
async fn recording_is_switched_on_every_node() {
    let server = with_records(&[]).await;
    let on = run(&server, "explain --record a.jsonl --rate 0.1 --for 60s").await;
    assert!(
        on.err
            .contains("error: router-2: this node keeps nothing on disk"),
        "{on:?}"
    );
    assert_eq!(on.exit, Exit::Conflict);
    assert!(
        on.out
            .starts_with("router-1: recording to /data/a.jsonl 0.1 Some("),
        "{on:?}"
    );
    assert!(on.out.contains("seconds: 60"), "{on:?}");
    let off = run(&server, "explain --stop-recording").await.ok();
    assert_eq!(off, "router-1: stopped /data/a.jsonl, 7 written, 1 lost\n");
    for rate in ["0", "1.5", "-1"] {
        let said = run(&server, &format!("explain --record a --rate={rate}")).await;
        assert_eq!(said.exit, Exit::Usage, "{rate}");
    }
}

#[tokio::test]
async fn decisions_are_made_again_under_another_config() {
    let server = with_records(&["a", "b"]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let config = |plugins: &str| {
        format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{plugins}]\n")
    };
    let same = file("same.yaml", THEN);
    let said = run(&server, &format!("replay --config {same}")).await.ok();
    assert!(
        said.starts_with("2 decisions replayed, 0 would change (0.0 %)\n"),
        "{said}"
    );
    let other = file("other.yaml", &config("{type: kv-cache-utilization-scorer}"));
    let said = run(&server, &format!("replay --config {other} --last 7"))
        .await
        .ok();
    assert_eq!(
        said,
        "\
REQUEST   ATTEMPT   THEN    NOW     WHY
a         1         gpu-2   gpu-1   -
b         1         gpu-2   gpu-1   -

2 decisions replayed, 2 would change (100.0 %)
refused: 0 then, 0 now

ENDPOINT   THEN   NOW
gpu-1      0      2
gpu-2      2      0
"
    );
    assert_eq!(server.state().listed.last().unwrap().limit, 7);
    let prefix = file("prefix.yaml", &config("{type: prefix-cache-scorer}"));
    let said = run(&server, &format!("replay --config {prefix}"))
        .await
        .ok();
    assert!(
        said.contains("2 not replayed: the record does not say how much of the prompt"),
        "{said}"
    );

    // From a file, of two pools.
    let mut lines = String::new();
    for pool in ["chat", "code"] {
        let mut record = record(pool);
        record.pool = pool.into();
        lines.push_str(&serde_json::to_string(&record).unwrap());
        lines.push('\n');
    }
    let records = file("r.jsonl", &lines);
    let both = format!("replay --config {other} --records {records}");
    let said = run(&server, &both).await.failed(Exit::Usage);
    assert!(said.contains("chat, code"), "{said}");
    let said = run(&server, &format!("{both} --pool code --all"))
        .await
        .ok();
    assert!(
        said.contains("1 decisions replayed, 1 would change"),
        "{said}"
    );
    let broken = file("b.jsonl", "{}\nnothing\n");
    let said = run(
        &server,
        &format!("replay --config {other} --records {broken}"),
    )
    .await;
    assert!(said.failed(Exit::Invalid).contains("b.jsonl:2: no record"));
    let wrong = file("wrong.yaml", &config("{type: queue-scorrer}"));
    let said = run(&server, &format!("replay --config {wrong}"))
        .await
        .failed(Exit::Invalid);
    assert!(said.contains("queue-scorrer"), "{said}");
    let none = run(&server, "replay --config /nowhere/at-all").await;
    none.failed(Exit::NotFound);
}
