//! How pools schedule, changed while requests run: configs with history, rewrites and objectives, through the command line.

use anyhow::{Context, ensure};
use quorate_tests::http::{chat, get, metric, post};
use quorate_tests::{Fleet, Load, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const ALL: [usize; 3] = [0, 1, 2];

/// A config that differs from its sisters in one weight.
fn config(weight: u32) -> String {
    format!(
        "# Weight {weight}.
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: max-score-picker
- type: single-profile-handler
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
    weight: {weight}
  - pluginRef: kv-cache-utilization-scorer
  - pluginRef: max-score-picker
"
    )
}

/// The fewest prompt tokens to compute, and nothing else.
const QUEUES: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: token-load-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: token-load-scorer
  - pluginRef: max-score-picker
";

async fn apply(fleet: &Fleet, router: usize, text: &str) -> anyhow::Result<String> {
    fleet
        .cli_with(&[router], &["apply", "-f", "-"], text)
        .await?
        .ok()
}

/// Waits until every router schedules by this version of the config.
async fn in_effect(fleet: &Fleet, version: u32) -> anyhow::Result<()> {
    for router in ALL {
        let what = format!("router {router} to schedule by version {version}");
        until(&what, SOON, async || {
            let about = fleet
                .cli(&[router], &["describe", "pool", "pool", "-o", "json"])
                .await?
                .json()?;
            let said = &about["status"]["scheduling"];
            ensure!(said["version"] == version, "{said}");
            let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
            let gauge = metric(
                &page,
                "quorate_scheduling_config_generation",
                "pool=\"pool\"",
            );
            ensure!(gauge == Some(f64::from(version)), "{gauge:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn configs_change_under_load_and_back_without_a_failed_request() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 2).sim_args(&["--itl", "2ms"]).start().await?;
    let gateways = fleet.gateways(&ALL);
    let load = Load::start(&fleet.load(&ALL, 4));
    load.progress(&gateways, 10, SOON).await?;

    for version in 1..=4 {
        let router = ALL[version as usize % ALL.len()];
        let applied = apply(&fleet, router, &config(version)).await?;
        ensure!(applied.contains("schedulingconfig/pool"), "{applied}");
        in_effect(&fleet, version).await?;
        load.progress(&gateways, 5, SOON).await?;
    }
    let again = apply(&fleet, 0, &config(4)).await?;
    ensure!(again.contains("unchanged"), "{again}");

    let history = fleet
        .cli(&[1], &["config", "history", "pool"])
        .await?
        .ok()?;
    ensure!(history.lines().count() == 5, "{history}");
    let diff = fleet
        .cli(&[2], &["config", "diff", "pool", "2", "3"])
        .await?
        .ok()?;
    ensure!(
        diff.contains("-    weight: 2") && diff.contains("+    weight: 3"),
        "{diff}"
    );
    let rolled = fleet
        .cli(&[0], &["config", "rollback", "pool", "2"])
        .await?
        .ok()?;
    ensure!(rolled.contains("version 5"), "{rolled}");
    in_effect(&fleet, 5).await?;
    let shown = fleet.cli(&[1], &["config", "show", "pool"]).await?.ok()?;
    ensure!(shown == config(2), "{shown}");
    let presets = fleet.cli(&[1], &["config", "presets"]).await?.ok()?;
    ensure!(presets.contains("optimized-baseline"), "{presets}");

    // Without a config the built-in scheduling is back.
    load.progress(&gateways, 5, SOON).await?;
    fleet
        .cli(&[2], &["delete", "schedulingconfig", "pool"])
        .await?
        .ok()?;
    until("the built-in scheduling", SOON, async || {
        let about = fleet.cli(&[0], &["describe", "pool", "pool"]).await?.ok()?;
        ensure!(about.contains("built in"), "{about}");
        anyhow::Ok(())
    })
    .await?;
    load.progress(&gateways, 10, SOON).await?;
    load.stop().await?.all_good(&gateways)?;
    fleet.finish().await
}

/// Heavy prompts that come to all routers at one instant: the routers take turns, and no server is left without work.
#[tokio::test]
async fn routers_place_a_burst_of_heavy_prompts_one_after_the_other() -> anyhow::Result<()> {
    const EACH: usize = 3;
    let fleet = Fleet::of(3, 3).start().await?;
    apply(&fleet, 0, QUEUES).await?;
    in_effect(&fleet, 1).await?;
    let burst = async || -> anyhow::Result<Vec<u64>> {
        let asked = ALL.into_iter().flat_map(|router| {
            let gateway = fleet.routers[router].gateway();
            (0..EACH).map(move |n| async move {
                let text = format!("{router} {n} ").repeat(4_000);
                let body = chat("echo-model", &text, 2, false);
                post(gateway, "/v1/chat/completions", &body).await
            })
        });
        for answer in futures_util::future::try_join_all(asked).await? {
            answer.ok()?;
        }
        let mut served = Vec::new();
        for sim in &fleet.sims {
            served.push(sim.stat("requests").await?);
        }
        Ok(served)
    };
    let mut before = burst().await?;
    until("turns and an even burst", SOON, async || {
        let after = burst().await?;
        let got: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        before = after;
        for router in ALL {
            let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
            let begun = metric(&page, "quorate_turns_total", "result=\"begun\"");
            ensure!(begun > Some(0.0), "router {router}: {begun:?}");
        }
        ensure!(got.iter().all(|n| *n == EACH as u64), "{got:?}");
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}

#[tokio::test]
async fn a_bad_config_changes_nothing_and_says_all_that_is_wrong() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 1).start().await?;
    apply(&fleet, 0, &config(1)).await?;
    in_effect(&fleet, 1).await?;
    let bad = config(2)
        .replace("type: queue-scorer", "type: queue-scorrer")
        .replace(
            "pluginRef: kv-cache-utilization-scorer",
            "pluginRef: nobody",
        );
    let refused = fleet.cli_with(&[1], &["apply", "-f", "-"], &bad).await?;
    refused.fails(5, &["queue-scorrer", "did you mean", "stdin:"])?;
    let listed = fleet
        .cli(&[2], &["config", "history", "pool"])
        .await?
        .ok()?;
    ensure!(listed.lines().count() == 2, "{listed}");
    in_effect(&fleet, 1).await?;
    // Without a server, too.
    let checked = fleet
        .cli_with(&[1], &["config", "validate", "-"], &bad)
        .await?;
    checked.fails(5, &["queue-scorrer"])?;
    // A pool is not deleted under its config, and has one config only.
    fleet
        .cli(&[0], &["delete", "pool", "pool"])
        .await?
        .fails(4, &["named by"])?;
    let second = config(3) + "metadata: {name: second, annotations: {quorate/pool: pool}}\n";
    fleet
        .cli_with(&[0], &["apply", "-f", "-"], &second)
        .await?
        .fails(4, &["there can be only one"])?;
    fleet.finish().await
}

#[tokio::test]
async fn rewrites_and_objectives_take_effect_everywhere() -> anyhow::Result<()> {
    let fleet = Fleet::of(3, 1).start().await?;
    let ask = async |router: usize, model: &str| {
        post(
            fleet.routers[router].gateway(),
            "/v1/chat/completions",
            &chat(model, "hello", 4, false),
        )
        .await
    };
    ensure!(
        ask(0, "assistant").await?.status == 404,
        "no such model yet"
    );
    let manifest = "\
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {name: urgent, namespace: prod}
spec: {priority: 100, poolRef: {name: pool}}
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceModelRewrite
metadata: {name: alias}
spec:
  poolRef: {name: pool}
  rules:
  - matches: [{model: {type: Exact, value: assistant}}]
    targets: [{modelRewrite: echo-model}]
";
    let applied = fleet
        .cli_with(&[1], &["apply", "-f", "-"], manifest)
        .await?;
    ensure!(
        applied.code == 0 && applied.stderr.contains("metadata.namespace"),
        "{applied:?}"
    );
    for router in ALL {
        until("the alias to be served", SOON, async || {
            let answer = ask(router, "assistant").await?.ok()?.json()?;
            // The client sees the name that it asked for.
            ensure!(answer["model"] == "assistant", "{answer}");
            anyhow::Ok(())
        })
        .await?;
        let about = fleet
            .cli(&[router], &["describe", "pool", "pool", "-o", "json"])
            .await?
            .json()?;
        let scheduling = &about["status"]["scheduling"];
        ensure!(
            scheduling["objectives"] == 1 && scheduling["rewriteRules"] == 1,
            "{scheduling}"
        );
    }
    let all = fleet.cli(&[2], &["get", "all"]).await?.ok()?;
    ensure!(all.contains("urgent") && all.contains("alias"), "{all}");
    fleet
        .cli(&[0], &["delete", "modelrewrite", "alias"])
        .await?
        .ok()?;
    for router in ALL {
        until("the alias to be gone", SOON, async || {
            let status = ask(router, "assistant").await?.status;
            ensure!(status == 404, "{status}");
            anyhow::Ok(())
        })
        .await?;
    }
    fleet.finish().await.context("after the alias was gone")
}
