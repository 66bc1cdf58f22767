//! The metrics page against llm-d's names and labels: dashboards and autoscalers move over unchanged.

use anyhow::{Context, ensure};
use http::Method;
use quorate_tests::http::{Client, chat, get, metric};
use quorate_tests::{Fleet, until};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const MODEL: &str = "echo-model";

const REQUEST: &[&str] = &["model_name", "target_model_name", "fairness_id", "priority"];
const QUEUE: &[&str] = &[
    "fairness_id",
    "priority",
    "inference_pool",
    "model_name",
    "target_model_name",
];

/// Names without their prefix `llm_d_epp_`, and their labels. `+` continues the labels of the list that is named.
const GOLDEN: &[(&str, &[&str], &[&str])] = &[
    ("request_total", REQUEST, &[]),
    ("request_error_total", REQUEST, &["error_code"]),
    ("request_duration_seconds", REQUEST, &[]),
    ("request_size_bytes", REQUEST, &[]),
    ("response_size_bytes", REQUEST, &[]),
    ("request_input_tokens", REQUEST, &[]),
    ("request_output_tokens", REQUEST, &[]),
    ("request_running", REQUEST, &[]),
    ("request_ntpot_seconds", REQUEST, &[]),
    ("request_ttft_seconds", REQUEST, &["streaming"]),
    ("request_streaming_tpot_seconds", REQUEST, &[]),
    ("request_streaming_itl_seconds", REQUEST, &[]),
    ("average_kv_cache_utilization", &["name"], &[]),
    ("average_queue_size", &["name"], &[]),
    ("average_running_requests", &["name"], &[]),
    ("std_dev_kv_cache_utilization", &["name"], &[]),
    ("std_dev_queue_size", &["name"], &[]),
    ("std_dev_running_requests", &["name"], &[]),
    ("ready_endpoints", &["name"], &[]),
    (
        "per_endpoint_queue_size",
        &["name", "model_server_endpoint"],
        &[],
    ),
    ("scheduler_e2e_duration_seconds", &[], &[]),
    (
        "scheduler_attempts_total",
        &[
            "status",
            "target_model_name",
            "endpoint_name",
            "namespace",
            "port",
        ],
        &[],
    ),
    ("request_processing_duration_seconds", &[], &[]),
    ("response_processing_duration_seconds", &[], &[]),
    ("info", &["commit", "build_ref"], &[]),
    (
        "model_rewrite_decisions_total",
        &["model_rewrite_name", "model_name", "target_model"],
        &[],
    ),
    (
        "flow_control_request_queue_duration_seconds",
        QUEUE,
        &["outcome"],
    ),
    ("flow_control_dispatch_cycle_duration_seconds", &[], &[]),
    (
        "flow_control_request_enqueue_duration_seconds",
        &["fairness_id", "priority", "outcome"],
        &[],
    ),
    ("flow_control_queue_size", QUEUE, &[]),
    ("flow_control_queue_bytes", QUEUE, &[]),
    (
        "flow_control_pool_saturation",
        &["inference_pool", "stage"],
        &[],
    ),
    ("flow_control_stale_endpoints", &["detector"], &[]),
    (
        "flow_control_capacity_utilization_requests",
        &["priority", "inference_pool"],
        &[],
    ),
    (
        "flow_control_capacity_utilization_bytes",
        &["priority", "inference_pool"],
        &[],
    ),
    (
        "flow_control_global_capacity_utilization_requests",
        &["inference_pool"],
        &[],
    ),
    (
        "flow_control_global_capacity_utilization_bytes",
        &["inference_pool"],
        &[],
    ),
    (
        "flow_control_requests_total",
        &["outcome", "priority", "inference_pool"],
        &[],
    ),
];

const RULES: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: queue-scorer
- type: concurrency-detector
  parameters: {maxConcurrency: 1}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer}]
flowControl:
  maxRequests: 100
  maxBytes: 1Gi
  saturationDetector: {pluginRef: concurrency-detector}
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: alias}
spec:
  poolRef: {name: pool}
  rules:
  - matches: [{model: {type: Exact, value: other-name}}]
    targets: [{modelRewrite: echo-model}]
";

/// The labels of each series of a page, without those that a histogram adds.
fn series(page: &str) -> BTreeMap<&str, BTreeSet<BTreeSet<&str>>> {
    let mut all: BTreeMap<&str, BTreeSet<BTreeSet<&str>>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, _)) = line.rsplit_once(' ') else {
            continue;
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split("\",");
        let labels = labels.filter_map(|label| Some(label.split_once('=')?.0));
        let labels = labels.filter(|label| !matches!(*label, "le" | "quantile"));
        all.entry(name).or_default().insert(labels.collect());
    }
    all
}

#[tokio::test]
async fn names_and_labels_are_llm_ds() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 1)
        .sim_args(&["--itl", "5ms", "--ttft", "50ms"])
        .start()
        .await?;
    let applied = fleet.cli_with(&[0], &["apply", "-f", "-"], RULES).await?;
    applied.ok()?;
    let (gateway, admin) = (fleet.gateways(&[0])[0], fleet.routers[0].admin());
    until("the rules in force", SOON, async || {
        let about = fleet
            .cli(&[0], &["describe", "pool", "pool", "-o", "json"])
            .await?
            .json()?;
        let said = &about["status"]["scheduling"];
        ensure!(said["version"] == 1 && said["rewriteRules"] == 1, "{said}");
        anyhow::Ok(())
    })
    .await?;
    let ask = async |model: &str| -> anyhow::Result<()> {
        let body = chat(model, "one two three four", 4, false);
        let mut client = Client::connect(gateway).await?;
        client
            .call(
                Method::POST,
                "/v1/chat/completions",
                body.to_string().into(),
            )
            .await?
            .ok()?;
        Ok(())
    };
    // One streams and holds the only place, two wait for it; then one that fails.
    let mut streaming = Client::connect(gateway).await?;
    let body = chat(MODEL, "one two three four five six", 6, true);
    let mut events = streaming.stream("/v1/chat/completions", &body).await?;
    let (rest, named, renamed) = tokio::join!(events.rest(), ask(MODEL), ask("other-name"));
    rest?;
    named?;
    renamed?;
    let mut client = Client::connect(gateway).await?;
    let refused = client
        .call(Method::POST, "/v1/chat/completions", "{}".into())
        .await?;
    ensure!(refused.status == 400, "{}", refused.status);
    until("the whole page", SOON, async || {
        let page = get(admin, "/metrics").await?.text();
        let found = series(&page);
        for (name, labels, more) in GOLDEN {
            let wanted: BTreeSet<&str> = labels.iter().chain(*more).copied().collect();
            let name = format!("llm_d_epp_{name}");
            // A histogram shows itself by its count.
            let sets = found
                .get(format!("{name}_count").as_str())
                .or_else(|| found.get(name.as_str()))
                .with_context(|| format!("no {name}"))?;
            ensure!(
                sets.iter().all(|set| *set == wanted),
                "{name}: {sets:?}, not {wanted:?}"
            );
        }
        // All three that were dispatched, whether they waited or not.
        let waits = metric(
            &page,
            "llm_d_epp_flow_control_request_queue_duration_seconds_count",
            "outcome=\"Dispatched\"",
        );
        ensure!(waits == Some(3.0), "{waits:?} of three waits");
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}
