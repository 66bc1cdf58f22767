//! What became of a request, asked of another router than the one that handled it; and its decision under another config.

use anyhow::{Context, ensure};
use http::Method;
use quorate_tests::http::{Client, chat};
use quorate_tests::{Fleet, until};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

fn config(flow: &str) -> String {
    format!(
        "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
{flow}"
    )
}

const ONE_AT_A_TIME: &str = "featureGates: [flowControl]
plugins:
- type: active-request-scorer
- type: concurrency-detector
  parameters: {maxConcurrency: 1}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: active-request-scorer}]
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
";
const PLAIN: &str = "plugins: [{type: active-request-scorer}]\n";
const BY_HEADER: &str = "plugins: [{type: header-based-testing-filter}]\n";

async fn apply(fleet: &Fleet, version: u32, text: &str) -> anyhow::Result<()> {
    fleet
        .cli_with(&[1], &["apply", "-f", "-"], text)
        .await?
        .ok()?;
    for router in 0..3 {
        until("the config on all routers", SOON, async || {
            let about = fleet
                .cli(&[router], &["describe", "pool", "pool", "-o", "json"])
                .await?
                .json()?;
            let said = &about["status"]["scheduling"];
            ensure!(said["version"] == version, "{said}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn ask(
    gateway: SocketAddr,
    id: &str,
    model: &str,
    headers: &[(&str, &str)],
) -> anyhow::Result<String> {
    let body = chat(model, "a secret prompt of some words", 8, false);
    let mut all = vec![("x-request-id", id)];
    all.extend_from_slice(headers);
    let reply = Client::connect(gateway)
        .await?
        .call_with(
            Method::POST,
            "/v1/chat/completions",
            &all,
            body.to_string().into(),
        )
        .await?
        .ok()?;
    let id = reply.headers.get("x-request-id").context("no request id")?;
    Ok(id.to_str()?.to_owned())
}

/// The record, as the router with this number tells it.
async fn record(fleet: &Fleet, router: usize, id: &str) -> anyhow::Result<Value> {
    let record = fleet
        .cli(&[router], &["explain", id, "-o", "json"])
        .await?
        .json()?;
    ensure!(record["request_id"] == id, "{record}");
    Ok(record)
}

#[tokio::test]
async fn every_router_tells_what_became_of_a_request() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2)
        .sim_args(&["--itl", "10ms", "--ttft", "20ms"])
        .start()
        .await?;
    let rewrite = "---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: alias}
spec:
  poolRef: {name: pool}
  rules:
  - matches: [{model: {type: Exact, value: assistant}}]
    targets: [{modelRewrite: echo-model}]
";
    apply(&fleet, 1, &format!("{}{rewrite}", config(ONE_AT_A_TIME))).await?;
    let (first, last) = (fleet.routers[0].gateway(), fleet.routers[2].gateway());

    // A rewrite, seen from another router.
    let id = until("the rewrite", SOON, async || {
        ask(first, "one", "assistant", &[]).await
    })
    .await?;
    let seen = record(&fleet, 1, &id).await?;
    ensure!(
        seen["node"] == "router-1" && seen["door"] == "gateway",
        "{seen}"
    );
    ensure!(
        seen["model"] == "assistant" && seen["target_model"] == "echo-model",
        "{seen}"
    );
    ensure!(
        seen["rewrite"] == "alias" && seen["ending"]["status"] == 200,
        "{seen}"
    );
    ensure!(seen["ending"]["output_tokens"].as_u64() > Some(0), "{seen}");
    let decision = &seen["attempts"][0]["decision"];
    ensure!(
        decision["candidates"]
            .as_array()
            .is_some_and(|c| c.len() == 2),
        "{seen}"
    );
    ensure!(
        decision["profiles"][0]["scores"][0]["plugin"] == "active-request-scorer",
        "{seen}"
    );
    ensure!(
        !seen.to_string().contains("secret"),
        "the prompt is in the record: {seen}"
    );
    let shown = fleet.cli(&[2], &["explain", &id]).await?.ok()?;
    for word in [
        "assistant -> echo-model",
        "active-request-scorer x1",
        "* sim-",
        "200 complete",
    ] {
        ensure!(shown.contains(word), "{word}: {shown}");
    }

    // Requests at the same time in a pool that takes two: some wait.
    let ids: Vec<String> = (0..6).map(|i| format!("queued-{i}")).collect();
    let asked = ids.iter().map(|id| ask(last, id, "echo-model", &[]));
    for answered in futures_util::future::join_all(asked).await {
        answered?;
    }
    let mut waited = 0.0;
    for id in &ids {
        let seen = record(&fleet, 0, id).await?;
        ensure!(seen["flow"]["outcome"] == "Dispatched", "{seen}");
        if seen["flow"]["queued"] == true {
            waited = f64::max(
                waited,
                seen["flow"]["queue_ms"].as_f64().context("no time")?,
            );
        }
    }
    ensure!(waited > 10.0, "waited {waited} ms at most");

    // Another config would have sent them elsewhere.
    apply(&fleet, 2, &config(PLAIN)).await?;
    let other = fleet.sims[1].address.to_string();
    let header = [("test-epp-endpoint-selection", other.as_str())];
    for i in 0..6 {
        ask(first, &format!("replayed-{i}"), "echo-model", &header).await?;
    }
    let path = fleet.dir().join("new.yaml");
    std::fs::write(&path, config(BY_HEADER))?;
    let path = path.to_str().context("no text")?;
    let replayed = ["replay", "--config", path, "--last", "6"];
    let said = fleet.cli(&[1], &replayed).await?.ok()?;
    ensure!(
        said.contains("6 decisions replayed, 3 would change (50.0 %)"),
        "{said}"
    );
    ensure!(
        said.contains("sim-1      3      0") && said.contains("sim-2      3      6"),
        "{said}"
    );

    // Records in files of all routers, and replayed from there.
    let started = fleet
        .cli(&[1], &["explain", "--record", "all.jsonl"])
        .await?
        .ok()?;
    ensure!(started.lines().count() == 3, "{started}");
    for i in 0..4 {
        ask(first, &format!("filed-{i}"), "echo-model", &header).await?;
    }
    let stopped = fleet
        .cli(&[2], &["explain", "--stop-recording"])
        .await?
        .ok()?;
    let own = stopped.lines().find(|line| line.starts_with("router-1: "));
    let own = own.context("router-1 is missing")?;
    ensure!(own.ends_with("4 written, 0 lost"), "{stopped}");
    let file = own
        .trim_start_matches("router-1: stopped ")
        .split(',')
        .next()
        .unwrap_or_default();
    let said = fleet
        .cli(&[1], &["replay", "--config", path, "--records", file])
        .await?
        .ok()?;
    ensure!(
        said.contains("4 decisions replayed, 2 would change"),
        "{said}"
    );

    // A model server dies: the next one is tried.
    fleet.sims[0].kill().await?;
    let mut retried = None;
    for i in 0..4 {
        let id = format!("retried-{i}");
        ask(first, &id, "echo-model", &[]).await?;
        let seen = record(&fleet, 2, &id).await?;
        if seen["attempts"]
            .as_array()
            .is_some_and(|attempts| attempts.len() == 2)
        {
            retried = Some(seen);
            break;
        }
    }
    let seen = retried.context("nothing was tried again")?;
    ensure!(seen["attempts"][0]["endpoint"] == "sim-1", "{seen}");
    ensure!(seen["attempts"][1]["outcome"] == "answered", "{seen}");
    ensure!(
        seen["attempts"][1]["decision"]["unusable"][0] == "sim-1",
        "{seen}"
    );
    ensure!(seen["ending"]["endpoint"] == "sim-2", "{seen}");

    // The router that handled it dies: nobody else knows, and says so.
    fleet.routers[0].kill().await?;
    let gone = fleet.cli(&[1], &["explain", "one"]).await?;
    gone.fails(
        3,
        &["no record of request", "router-1", "could not be asked"],
    )?;
    let left = fleet.cli(&[1], &["explain", "--last", "10"]).await?;
    ensure!(
        left.code == 0 && left.stderr.contains("router-1"),
        "{}",
        left.stderr
    );
    ensure!(left.stdout.contains("queued-"), "{}", left.stdout);
    fleet.finish().await
}
