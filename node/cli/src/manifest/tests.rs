//! Tables of good and bad manifests.

mod llmd;
mod round_trip;

use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_proto::v1::{
    BreakerPolicy, Discovery, DnsDiscovery, EndpointSpec, Engine, HealthPolicy, PoolSpec,
    SettingSpec, discovery::Source, resource::Spec,
};

use super::*;

fn one(text: &str) -> Document {
    let mut manifest = parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(manifest.warnings, vec![], "{text}");
    assert_eq!(manifest.documents.len(), 1);
    manifest.documents.remove(0)
}

fn pool_of(document: &Document) -> &PoolSpec {
    match &document.resource.spec {
        Some(Spec::Pool(spec)) => spec,
        other => panic!("not a pool: {other:?}"),
    }
}

const FULL_POOL: &str = r#"# A comment
apiVersion: quorate/v1
kind: Pool
metadata:
  name: chat
  labels: {team: search, tier: "1"}
  annotations:
    note: any text
  resourceVersion: 17
  generation: 2
  createdAt: 2026-01-02T03:04:05Z
spec:
  models: [llama-3-8b, "1"]
  selector:
    app: vllm
  targetPorts: [8000, 8001]
  discovery:
    dns:
      name: _vllm._tcp.gpu.example.org
      port: 8000
      interval: 30s
      scheme: https
  health:
    path: /healthz
    interval: 2s
    unhealthyInterval: 250ms
    timeout: 1s
    unhealthyThreshold: 2
    healthyThreshold: 1
    slowStart: 0
    stallTimeout: 1m30s
    metricsInterval: 500ms
  breaker: {consecutiveFailures: 3, open: 500ms, maxOpen: 10s}
  fallback: true
  appProtocol: kubernetes.io/h2c
  engine: sglang
"#;

#[test]
fn every_field_of_a_pool_is_read() {
    let document = one(FULL_POOL);
    assert_eq!(
        (document.kind, document.name(), document.resource_version),
        (Kind::Pool, "chat", Some(17))
    );
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let millis = |ms: i32| {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: ms * 1_000_000,
        })
    };
    let expected = PoolSpec {
        models: vec!["llama-3-8b".into(), "1".into()],
        selector: BTreeMap::from([("app".into(), "vllm".into())]),
        target_ports: vec![8000, 8001],
        discovery: Some(Discovery {
            source: Some(Source::Dns(DnsDiscovery {
                name: "_vllm._tcp.gpu.example.org".into(),
                port: 8000,
                interval: seconds(30),
                scheme: "https".into(),
            })),
        }),
        health: Some(HealthPolicy {
            path: "/healthz".into(),
            interval: seconds(2),
            unhealthy_interval: millis(250),
            timeout: seconds(1),
            unhealthy_threshold: 2,
            healthy_threshold: 1,
            slow_start: seconds(0),
            stall_timeout: seconds(90),
            metrics_interval: millis(500),
        }),
        breaker: Some(BreakerPolicy {
            consecutive_failures: 3,
            open: millis(500),
            max_open: seconds(10),
        }),
        fallback: true,
        app_protocol: "kubernetes.io/h2c".into(),
        engine: Engine::Sglang.into(),
    };
    assert_eq!(pool_of(&document), &expected);
    let metadata = document.resource.metadata.as_ref().unwrap();
    assert_eq!(
        metadata.labels,
        BTreeMap::from([
            ("team".into(), "search".into()),
            ("tier".into(), "1".into())
        ])
    );
    // What only the server sets is not sent back to it.
    assert_eq!(
        (
            metadata.resource_version,
            metadata.generation,
            &metadata.created_at
        ),
        (0, 0, &None)
    );
    assert_eq!(document.line_of("spec.health.interval"), 25);
    assert_eq!(document.line_of("spec.targetPorts[1]"), 16);
    assert_eq!(document.line_of("spec.nothing.like.it"), 12);
}

#[test]
fn several_documents_lists_and_json_are_read() {
    let yaml = "---\n---\napiVersion: quorate/v1\nkind: Region\nmetadata: {name: a}\n---\n# nothing\n---\n\
                apiVersion: quorate/v1\nkind: Region\nmetadata: {name: b}\nspec:\n";
    let manifest = parse(yaml).unwrap();
    assert_eq!(
        manifest
            .documents
            .iter()
            .map(Document::name)
            .collect::<Vec<_>>(),
        ["a", "b"]
    );

    let json = r#"{"apiVersion": "quorate/v1", "kind": "List", "items": [
        {"apiVersion": "quorate/v1", "kind": "Endpoint", "metadata": {"name": "e"},
         "spec": {"pool": "p", "url": "http://[::1]:1", "dataParallelRank": 0, "draining": true}},
        {"apiVersion": "quorate/v1", "kind": "Setting", "metadata": {"name": "s"}, "spec": {"value": null}}
    ]}"#;
    let manifest = parse(json).unwrap();
    let endpoint = EndpointSpec {
        pool: "p".into(),
        url: "http://[::1]:1".into(),
        data_parallel_rank: Some(0),
        draining: true,
        ..EndpointSpec::default()
    };
    assert_eq!(
        manifest.documents[0].resource.spec,
        Some(Spec::Endpoint(endpoint))
    );
    assert_eq!(
        manifest.documents[1].resource.spec,
        Some(Spec::Setting(SettingSpec {
            json: "null".into()
        }))
    );
    assert_eq!(manifest.documents[1].line, 4);
}

/// Puts a spec line into a pool; it is on line 5.
fn pool(line: &str) -> String {
    format!("apiVersion: quorate/v1\nkind: Pool\nmetadata: {{name: p}}\nspec:\n  {line}\n")
}

#[test]
fn bad_input_is_named_with_its_line_and_field() {
    let endpoint = |spec: &str| {
        format!("apiVersion: quorate/v1\nkind: Endpoint\nmetadata: {{name: e}}\nspec: {spec}\n")
    };
    let setting = |spec: &str| {
        format!("apiVersion: quorate/v1\nkind: Setting\nmetadata: {{name: s}}\nspec: {spec}\n")
    };
    let named =
        |name: &str| format!("apiVersion: quorate/v1\nkind: Region\nmetadata:\n  name: {name}\n");
    for (text, expected) in [
        (
            String::new(),
            "the file declares nothing that can be applied",
        ),
        (
            "- a".into(),
            "line 1: a document must be an object, not a list",
        ),
        (
            "text".into(),
            "line 1: a document must be an object, not a string",
        ),
        (
            "kind: Pool".into(),
            "line 1: apiVersion: is missing: expected quorate/v1",
        ),
        ("apiVersion: quorate/v1".into(), "line 1: kind: is missing"),
        (
            "apiVersion: quorate/v2\nkind: Pool\n".into(),
            "line 1: apiVersion: \"quorate/v2\" is not known for Pool: expected quorate/v1",
        ),
        (
            "apiVersion: quorate/v1\nkind: Pol\nmetadata: {name: a}\n".into(),
            "line 2: kind: \"Pol\" is not known, did you mean \"Pool\"? (kinds: Region, Pool, Endpoint, Setting, SchedulingConfig, Objective, ModelRewrite, Tenant, ApiKey)",
        ),
        (
            "apiVersion: quorate/v1\nkind: Node\nmetadata: {name: a}\nspec: {}\n".into(),
            "line 2: kind: Node is written by the cluster itself (a node joins with `quorate router --join`)",
        ),
        (
            "apiVersion: quorate/v1\nkind: Pool\nspec: {}\n".into(),
            "line 1: metadata: is missing",
        ),
        (
            "apiVersion: quorate/v1\nkind: Pool\nmetadata: {name: a}\n".into(),
            "line 1: spec: is missing",
        ),
        (
            "apiVersion: quorate/v1\nkind: Pool\nmetadata: {}\nspec: {}\n".into(),
            "line 3: metadata.name: is missing",
        ),
        (
            "apiVersion: quorate/v1\nkind: List\nitems: 3\n".into(),
            "line 1: items: must be a list",
        ),
        (
            named("Chat"),
            "line 4: metadata.name: must consist of lower-case letters, digits, '-', '.', '_' and ':', and begin and end \
             with a letter or digit",
        ),
        (
            named("17"),
            "line 4: metadata.name: must be a string, not a number: put it in quotes",
        ),
        (
            named("a\n  labels: {x: true}"),
            "line 5: metadata.labels.x: must be a string, not a boolean: put it in quotes",
        ),
        (named("a\n  name: b"), "line 5: "),
        (
            pool("modles: [a]"),
            "line 5: spec.modles: unknown field, did you mean \"models\"?",
        ),
        (
            pool("target_ports: [1]"),
            "line 5: spec.target_ports: unknown field, did you mean \"targetPorts\"?",
        ),
        (pool("colour: red"), "line 5: spec.colour: unknown field"),
        (
            pool("models: a"),
            "line 5: spec.models: must be a list, not a string",
        ),
        (
            pool("models: [1]"),
            "line 5: spec.models[0]: must be a string, not a number",
        ),
        (
            pool("targetPorts: [0]"),
            "line 5: spec.targetPorts[0]: must be a whole number from 1 to 65535, not 0",
        ),
        (
            pool("targetPorts: [70000]"),
            "line 5: spec.targetPorts[0]: must be a whole number from 1 to 65535, not 70000",
        ),
        (
            pool("targetPorts: [\"80\"]"),
            "line 5: spec.targetPorts[0]: must be a whole number from 1 to 65535: take the quotes off",
        ),
        (
            pool("health: {interval: 2}"),
            "line 5: spec.health.interval: \"2\" has no unit: write for example 2s or 2ms",
        ),
        (
            pool("health: {interval: -2s}"),
            "line 5: spec.health.interval: \"-2s\" is negative",
        ),
        (
            pool("health: {intervall: 2s}"),
            "line 5: spec.health.intervall: unknown field, did you mean \"interval\"?",
        ),
        (
            pool("health: 3"),
            "line 5: spec.health: must be an object, not a number",
        ),
        (
            pool("health: {healthyThreshold: 4294967296}"),
            "line 5: spec.health.healthyThreshold: must be a whole number from 0 to 4294967295, not 4294967296",
        ),
        (
            pool("fallback: yes"),
            "line 5: spec.fallback: must be true or false, not a string",
        ),
        (
            pool("engine: vlm"),
            "line 5: spec.engine: \"vlm\" is none of vllm, sglang, trtllm, triton, did you mean \"vllm\"?",
        ),
        (
            pool("appProtocol: grpc"),
            "line 5: spec.appProtocol: \"grpc\" is none of http, kubernetes.io/h2c",
        ),
        (
            pool("discovery: {file: {}}"),
            "line 5: spec.discovery.file.path: is missing",
        ),
        (
            pool("discovery: {file: {path: /x}, dns: {name: a}}"),
            "line 5: spec.discovery.dns: a pool has one source of endpoints: file or dns, not both",
        ),
        (endpoint("{pool: p}"), "line 4: spec.url: is missing"),
        (
            endpoint("{url: \"http://h:1\", dataParallelRank: -1}"),
            "line 4: spec.dataParallelRank: must be a whole number",
        ),
        (setting("{}"), "line 4: spec.value: is missing"),
        (
            setting("{value: 1, json: \"1\"}"),
            "line 4: spec.json: a setting has a value or a json text, not both",
        ),
        (setting("{json: \"{\"}"), "line 4: spec.json: is not JSON: "),
        (setting("{value: .nan}"), "line 4: "),
        ("apiVersion: quorate/v1\nkind: [\n".into(), "line "),
        ("a: b: c\n".into(), "line 1: "),
        ("a: &x [*x]\n".into(), "line 1: "),
    ] {
        let error = parse(&text).expect_err(&text).to_string();
        assert!(
            error.starts_with(expected),
            "{text}\n is: {error}\nnot: {expected}"
        );
        assert!(
            error.lines().count() == 1,
            "{text}: one line for one problem: {error}"
        );
    }
}

#[test]
fn all_problems_of_a_file_are_found_at_once_and_in_order() {
    let text = format!(
        "{}---\n{}---\n{}",
        pool("modles: [a]"),
        pool("fallback: 1"),
        pool("targetPorts: [0, 0]")
    );
    let error = parse(&text).expect_err("five problems");
    let at: Vec<_> = error
        .problems
        .iter()
        .map(|p| (p.line, p.path.as_str()))
        .collect();
    let expected = [
        (5, "spec.modles"),
        (9, "metadata.name"),
        (11, "spec.fallback"),
        (15, "metadata.name"),
    ];
    assert_eq!(at[..4], expected);
    assert_eq!(
        at[4..],
        [(17, "spec.targetPorts[0]"), (17, "spec.targetPorts[1]")]
    );
    assert_eq!(error.problems[1].message, "pool \"p\" is declared twice");
}

#[test]
fn an_inference_pool_is_taken_as_it_is() {
    let v1 = r"
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: vllm-llama3
  namespace: llm-d
  labels: {app.kubernetes.io/managed-by: Helm}
  creationTimestamp: null
  uid: 4f0b
spec:
  selector:
    matchLabels:
      app: vllm-llama3
  targetPorts:
  - number: 8000
  - number: 8001
  appProtocol: http
  endpointPickerRef:
    name: vllm-llama3-epp
    port:
      number: 9002
    failureMode: FailOpen
  futureField: 1
status:
  parents: []
";
    let manifest = parse(v1).unwrap();
    let warnings: Vec<_> = manifest
        .warnings
        .iter()
        .map(|w| (w.line, w.path.as_str()))
        .collect();
    let expected = [
        (6, "metadata.namespace"),
        (8, "metadata.creationTimestamp"),
        (9, "metadata.uid"),
        (18, "spec.endpointPickerRef"),
        (23, "spec.futureField"),
        (24, "status"),
    ];
    assert_eq!(warnings, expected);
    let document = &manifest.documents[0];
    let mut pool = PoolSpec {
        selector: BTreeMap::from([("app".into(), "vllm-llama3".into())]),
        target_ports: vec![8000, 8001],
        app_protocol: "http".into(),
        ..PoolSpec::default()
    };
    assert_eq!((document.name(), pool_of(document)), ("vllm-llama3", &pool));

    let v1alpha2 = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferencePool\nmetadata: {name: a}\n\
                    spec:\n  targetPortNumber: 8000\n  selector: {app: vllm-llama3}\n  extensionRef: {name: epp}\n";
    let manifest = parse(v1alpha2).unwrap();
    pool.target_ports = vec![8000];
    pool.app_protocol.clear();
    assert_eq!(pool_of(&manifest.documents[0]), &pool);
    assert_eq!(manifest.warnings.len(), 1);

    for (spec, expected) in [
        ("{targetPorts: [{number: 1}]}", "spec.selector: is missing"),
        (
            "{selector: {matchLabels: {a: 1}}}",
            "spec.selector.matchLabels.a: must be a string, not a number: put it in quotes",
        ),
        (
            "{selector: {a: b}, targetPorts: [8000]}",
            "spec.targetPorts[0]: must be an object, not a number",
        ),
        (
            "{selector: {a: b}, targetPorts: [{}]}",
            "spec.targetPorts[0].number: is missing",
        ),
        (
            "{selector: {a: b}, targetPortNumber: 0}",
            "spec.targetPortNumber: must be a whole number from 1 to 65535, not 0",
        ),
    ] {
        let text = format!(
            "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: a}}\nspec: {spec}\n"
        );
        let error = parse(&text).expect_err(spec).to_string();
        assert_eq!(error, format!("line 4: {expected}"));
    }
}

#[test]
fn other_peoples_documents_are_skipped_with_a_warning() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: epp}\nspec: {}\n";
    let text = format!("{service}---\n{}", pool("models: [a]"));
    let manifest = parse(&text).unwrap();
    assert_eq!(manifest.documents.len(), 1);
    assert_eq!(
        manifest.warnings[0].to_string(),
        "line 1: Service \"epp\" of v1 has no meaning to this version of Quorate and is skipped"
    );
    let error = parse(service).expect_err("nothing is left to apply");
    assert!(error.to_string().contains("Service \"epp\""), "{error}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "(?s).{0,200}") {
        let _ = parse(&text);
    }

    /// Damage anywhere in a good file gives a good file or an error, never a panic.
    #[test]
    fn no_damage_panics(at in 0..FULL_POOL.len(), with in "[ -~\n]{0,3}") {
        let mut text = FULL_POOL.to_owned();
        text.replace_range(at..(at + 1).min(text.len()), &with);
        let _ = parse(&text);
    }
}
