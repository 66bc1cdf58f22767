//! The ways by which engines' KV events come, and what an endpoint's status says where something is wrong with them.

use anyhow::{Context, ensure};
use http::Method;
use quorate_tests::http::{Client, chat, get, metric, post};
use quorate_tests::{Fleet, cli, until};
use std::time::Duration;

const MODEL: &str = "echo-model";
const SOON: Duration = Duration::from_secs(60);
/// Tokens that no whole prompt of this test has: the last block is never looked for, and a question of its own follows the topic.
const TAIL: f64 = 64.0;

/// A fleet of two routers whose servers tokenize as the routers do.
async fn fleet(
    dir: &tempfile::TempDir,
    sims: usize,
    sim_args: &[&str],
    parameters: &str,
) -> anyhow::Result<Fleet> {
    let tokenizer = dir.path().join("tokenizer").display().to_string();
    cli::run(&["sim", "--write-tokenizer", &tokenizer])
        .await?
        .ok()?;
    let mut args = vec!["--tokenizer", &tokenizer];
    args.extend(sim_args);
    let fleet = Fleet::of(2, sims).sim_args(&args).start().await?;
    let preset = cli::run(&["config", "presets", "precise-prefix"])
        .await?
        .ok()?;
    let tokens = format!(
        "- type: token-producer\n    parameters: {{local: {{directory: '{tokenizer}'}}}}\n"
    );
    let precise = format!("- type: precise-prefix-cache-producer\n    parameters: {parameters}\n");
    let text = preset
        .replacen("- type: token-producer\n", &tokens, 1)
        .replacen("- type: precise-prefix-cache-producer\n", &precise, 1);
    ensure!(
        text.contains(&tokenizer) && text.contains(parameters),
        "{preset}"
    );
    fleet
        .cli_with(&[0], &["apply", "-f", "-"], &text)
        .await?
        .ok()?;
    for router in 0..2 {
        until(
            "the config to be in effect on routers that know each other",
            SOON,
            async || {
                let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
                let gauge = metric(
                    &page,
                    "quorate_scheduling_config_generation",
                    "pool=\"pool\"",
                );
                ensure!(gauge == Some(1.0), "{gauge:?}");
                // A router that has not heard of the other one yet follows servers that are the other one's, and reading a poll empties it.
                let live = metric(&page, "quorate_nodes_live", "");
                ensure!(live == Some(2.0), "{live:?}");
                anyhow::Ok(())
            },
        )
        .await?;
    }
    Ok(fleet)
}

fn prompt(topic: usize, question: usize) -> String {
    let topic = format!("Topic {topic} is long and has its own words. ").repeat(60);
    format!("{topic} Question {question}.")
}

/// Fills each server with a topic without any router, and waits until both routers send further questions to where the topic is.
async fn routers_know_what_servers_announce(fleet: &Fleet) -> anyhow::Result<()> {
    let servers = fleet.sims.len();
    let before = blocks(fleet, 0).await?;
    for topic in 0..servers {
        let body = chat(MODEL, &prompt(topic, 0), 2, false);
        post(fleet.sims[topic].address, "/v1/chat/completions", &body)
            .await?
            .ok()?;
    }
    until("the maps to have the servers' blocks", SOON, async || {
        let maps = [blocks(fleet, 0).await?, blocks(fleet, 1).await?];
        let least = before + 50.0 * servers as f64;
        ensure!(maps.iter().all(|blocks| *blocks > least), "{maps:?}");
        anyhow::Ok(())
    })
    .await?;
    for router in 0..2 {
        // A router looks prompts up once it has read the tokenizer.
        until("prompts to be looked for in the map", SOON, async || {
            ask(fleet, router, &prompt(99, router)).await?;
            let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
            let sought = |result: &str| {
                let label = format!("result=\"{result}\"");
                metric(&page, "quorate_precise_prefix_total", &label).unwrap_or(0.0)
            };
            ensure!(
                sought("found") + sought("nothing") > 0.0,
                "{} without tokens",
                sought("no-tokens")
            );
            anyhow::Ok(())
        })
        .await?;
        for topic in 0..servers {
            let reply = ask(fleet, router, &prompt(topic, 1 + router)).await?;
            let usage = &reply["usage"];
            let all = usage["prompt_tokens"].as_f64().unwrap_or(0.0);
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_f64();
            let missed = all - cached.unwrap_or(0.0);
            ensure!(
                missed < TAIL,
                "{missed} tokens of topic {topic} were computed anew: {usage}"
            );
        }
    }
    Ok(())
}

async fn ask(fleet: &Fleet, router: usize, text: &str) -> anyhow::Result<serde_json::Value> {
    let body = chat(MODEL, text, 2, false).to_string();
    Client::connect(fleet.routers[router].gateway())
        .await?
        .call(Method::POST, "/v1/chat/completions", body.into())
        .await?
        .ok()?
        .json()
}

async fn blocks(fleet: &Fleet, router: usize) -> anyhow::Result<f64> {
    let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
    Ok(metric(&page, "quorate_cache_map_blocks", "tier=\"gpu\"").unwrap_or(0.0))
}

/// Waits until this router says of the server that it has conditions of exactly these names. Gives all of their text.
async fn conditions(
    fleet: &Fleet,
    router: usize,
    sim: usize,
    names: &[&str],
) -> anyhow::Result<String> {
    let control = fleet.control(router)?;
    let mut text = String::new();
    until("the endpoint's conditions", SOON, async || {
        let all = control.describe(&fleet.sims[sim].name).await?.conditions;
        let found: Vec<&str> = all
            .iter()
            .filter_map(|condition| Some(condition.split_once(':')?.0))
            .collect();
        ensure!(found == names, "router {router}: {all:?}");
        text = all.join("\n");
        anyhow::Ok(())
    })
    .await?;
    Ok(text)
}

#[tokio::test]
async fn polled_servers_are_known_to_every_router() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let args = ["--kv-events-format", "trtllm", "--kv-events-config", "{}"];
    let parameters = "{kvEventsConfig: {engineType: trtllm}}";
    let fleet = fleet(&dir, 2, &args, parameters).await?;
    routers_know_what_servers_announce(&fleet).await?;
    for router in 0..2 {
        conditions(&fleet, router, 0, &[]).await?;
    }
    fleet.finish().await
}

#[tokio::test]
async fn servers_that_dial_in_are_known_to_every_router() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // The routers of this machine cannot all have the port: the one that has it gets all streams.
    let events = r#"{"endpoint": "tcp://{host}:25557", "bind": false, "topic": "kv@{host}:8000@echo-model"}"#;
    let args = ["--kv-events-config", events];
    let parameters = "{tokenProcessorConfig: {engineHashAlgorithm: sha256_cbor}, kvEventsConfig: {zmqEndpoint: 'tcp://*:25557'}}";
    let fleet = fleet(&dir, 2, &args, parameters).await?;
    for sim in 0..2 {
        until("the server to have dialled", SOON, async || {
            let shown = get(fleet.sims[sim].address, "/sim/kv-events")
                .await?
                .json()?;
            ensure!(shown["subscribers"] == 1, "{shown}");
            anyhow::Ok(())
        })
        .await?;
    }
    routers_know_what_servers_announce(&fleet).await?;
    for router in 0..2 {
        conditions(&fleet, router, 1, &[]).await?;
    }
    fleet.finish().await
}

#[tokio::test]
async fn a_server_that_hashes_otherwise_is_named_before_any_request() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let args = [
        "--hash-seed",
        "0",
        "--kv-events-config",
        r#"{"endpoint": "tcp://{host}:5557", "replay_endpoint": "tcp://{host}:6557", "bind": true}"#,
    ];
    let parameters = "{tokenProcessorConfig: {engineHashAlgorithm: sha256_cbor}}";
    let fleet = fleet(&dir, 1, &args, parameters).await?;
    // Nobody asked anything: the owner's own prompt shows it, and the other router hears of it.
    for router in 0..2 {
        let text = conditions(&fleet, router, 0, &["KvEventsHashMismatch"]).await?;
        ensure!(text.contains("sha256_cbor with the seed \"0\""), "{text}");
    }
    let told = fleet
        .cli(&[0], &["describe", "endpoint", fleet.sims[0].name.as_str()])
        .await?
        .ok()?;
    let line = told.lines().find(|line| line.contains("Condition"));
    let line = line.with_context(|| told.clone())?;
    ensure!(line.contains("KvEventsHashMismatch"), "{told}");
    // Its blocks are found all the same.
    routers_know_what_servers_announce(&fleet).await?;
    fleet.finish().await
}

#[tokio::test]
async fn what_a_server_loads_in_a_second_is_learnt() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // Topics of about 170 blocks: the accelerator has two of them at a time, memory 23. 16 tokens in 0.4 ms: 40,000 a second.
    let args = [
        "--num-gpu-blocks",
        "400",
        "--num-cpu-blocks",
        "4000",
        "--cpu-block-load-time",
        "0.4ms",
        "--kv-events-config",
        r#"{"endpoint": "tcp://{host}:5557", "replay_endpoint": "tcp://{host}:6557", "bind": true}"#,
        "--self-describing-kv-events",
    ];
    let parameters = "{tokenProcessorConfig: {engineHashAlgorithm: sha256_cbor}}";
    let fleet = fleet(&dir, 1, &args, parameters).await?;
    let mut new = 100..;
    until("the rates to be learnt", SOON, async || {
        for topic in (0..5).chain(new.by_ref().take(5)) {
            let words = format!("Topic {topic} is long and has its own words. ").repeat(250);
            let mut client = Client::connect(fleet.routers[0].gateway()).await?;
            let body = chat(MODEL, &words, 2, true);
            let mut events = client.stream("/v1/chat/completions", &body).await?;
            events.rest().await?;
        }
        let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
        let rate = |how: &str| {
            let name = "quorate_endpoint_prompt_tokens_per_second";
            metric(&page, name, &format!("how=\"{how}\"")).unwrap_or(0.0)
        };
        let (computed, loaded) = (rate("prefill"), rate("cpu"));
        ensure!(
            computed > 45_000.0 && (10_000.0..45_000.0).contains(&loaded),
            "computed {computed}, loaded {loaded}"
        );
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}
