//! The map of KV-cache blocks: what engines announce, every router knows, whichever of them dies.

use anyhow::ensure;
use http::Method;
use quorate_tests::http::{Client, chat, get, metric, post};
use quorate_tests::{Fleet, cli, until};
use std::time::Duration;

pub const MODEL: &str = "echo-model";
pub const SOON: Duration = Duration::from_secs(60);
/// Tokens that no whole prompt of this test has: the last block is never looked for, and a question of its own follows the topic.
const TAIL: f64 = 64.0;

/// The preset, with the tokenizer that the servers have and the algorithm by which they hash.
/// It is fetched from one of the servers, and kept: a router that starts again has it.
pub async fn config(fleet: &Fleet) -> anyhow::Result<String> {
    let preset = cli::run(&["config", "presets", "precise-prefix"])
        .await?
        .ok()?;
    let files = format!("http://{}/sim/tokenizer", fleet.sims[0].address);
    let tokens = format!("- type: token-producer\n    parameters: {{local: {{url: '{files}'}}}}\n");
    let precise = "- type: precise-prefix-cache-producer\n    parameters: {tokenProcessorConfig: {engineHashAlgorithm: sha256_cbor}}\n";
    let text = preset
        .replacen("- type: token-producer\n", &tokens, 1)
        .replacen("- type: precise-prefix-cache-producer\n", precise, 1);
    ensure!(
        text.contains(&files) && text.contains("sha256_cbor"),
        "{preset}"
    );
    Ok(text)
}

pub fn prompt(topic: usize, question: usize) -> String {
    let topic = format!("Topic {topic} is long and has its own words. ").repeat(60);
    format!("{topic} Question {question}.")
}

/// Asks a server without any router: only its events can tell of it.
pub async fn fill(fleet: &Fleet, sim: usize, topic: usize) -> anyhow::Result<()> {
    let body = chat(MODEL, &prompt(topic, 0), 2, false);
    post(fleet.sims[sim].address, "/v1/chat/completions", &body)
        .await?
        .ok()?;
    Ok(())
}

/// Asks through a router; gives the server's number, and of the prompt's tokens those that it did not have.
pub async fn ask(fleet: &Fleet, router: usize, text: &str) -> anyhow::Result<(usize, f64)> {
    let mut before = Vec::new();
    for sim in &fleet.sims {
        before.push(sim.stat("requests").await?);
    }
    let body = chat(MODEL, text, 2, false).to_string();
    let reply = Client::connect(fleet.routers[router].gateway())
        .await?
        .call(Method::POST, "/v1/chat/completions", body.into())
        .await?
        .ok()?
        .json()?;
    let usage = &reply["usage"];
    let tokens = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let missed =
        tokens(&usage["prompt_tokens"]) - tokens(&usage["prompt_tokens_details"]["cached_tokens"]);
    let mut grown = Vec::new();
    for (number, sim) in fleet.sims.iter().enumerate() {
        if sim.stat("requests").await? > before[number] {
            grown.push(number);
        }
    }
    ensure!(grown.len() == 1, "{before:?}, then {grown:?}");
    Ok((grown[0], missed))
}

/// Blocks in a router's map.
async fn blocks(fleet: &Fleet, router: usize) -> anyhow::Result<f64> {
    let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
    Ok(metric(&page, "quorate_cache_map_blocks", "tier=\"gpu\"").unwrap_or(0.0))
}

/// Waits until these routers' maps have the same, and more than `than`. Gives how much.
pub async fn agreed(fleet: &Fleet, routers: &[usize], than: f64) -> anyhow::Result<f64> {
    let mut last = 0.0;
    until("the maps to agree", SOON, async || {
        let before = last;
        last = blocks(fleet, routers[0]).await?;
        for router in routers {
            let here = blocks(fleet, *router).await?;
            ensure!(
                here == last,
                "router {router} has {here} blocks, router {} {last}",
                routers[0]
            );
        }
        ensure!(
            last > than && last == before,
            "{last} blocks, {before} before, {than} at the beginning"
        );
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        anyhow::Ok(())
    })
    .await?;
    Ok(last)
}

pub async fn in_effect(fleet: &Fleet, router: usize) -> anyhow::Result<()> {
    until("the config to be in effect", SOON, async || {
        let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
        let gauge = metric(
            &page,
            "quorate_scheduling_config_generation",
            "pool=\"pool\"",
        );
        ensure!(gauge == Some(1.0), "{gauge:?}");
        anyhow::Ok(())
    })
    .await
}

/// Waits until a router has the tokenizer that it fetches.
pub async fn tokenizes(fleet: &Fleet, router: usize) -> anyhow::Result<()> {
    until("the tokenizer to be there", SOON, async || {
        let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
        let fetched = metric(&page, "quorate_tokenizer_files_total", "result=\"fetched\"");
        ensure!(fetched.is_some_and(|n| n > 0.0), "{fetched:?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test]
async fn every_router_knows_what_engines_announce_and_a_restarted_one_too() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let tokenizer = dir.path().join("tokenizer").display().to_string();
    cli::run(&["sim", "--write-tokenizer", &tokenizer])
        .await?
        .ok()?;
    let mut fleet = Fleet::of(3, 3)
        .sim_args(&[
            "--tokenizer",
            &tokenizer,
            "--kv-events-format",
            "vllm-0.33",
            "--prefix-caching-hash-algo",
            "sha256_cbor",
            "--kv-events-config",
            "{\"endpoint\": \"tcp://{host}:5557\", \"replay_endpoint\": \"tcp://{host}:6557\", \"bind\": true}",
        ])
        .start()
        .await?;
    let text = config(&fleet).await?;
    fleet
        .cli_with(&[0], &["apply", "-f", "-"], &text)
        .await?
        .ok()?;
    for router in 0..3 {
        in_effect(&fleet, router).await?;
        tokenizes(&fleet, router).await?;
    }

    // Nobody but the servers saw these prompts.
    for topic in 0..6 {
        fill(&fleet, topic % 3, topic).await?;
    }
    let known = agreed(&fleet, &[0, 1, 2], 0.0).await?;
    for topic in 0..6 {
        let (there, missed) = ask(&fleet, topic % 2, &prompt(topic, 1)).await?;
        ensure!(
            there == topic % 3 && missed < TAIL,
            "topic {topic} went to server {there}, which had to compute {missed} tokens"
        );
    }

    // The owner of some servers dies: the others follow them from where it had come to.
    fleet.routers[1].kill().await?;
    for topic in 6..12 {
        fill(&fleet, topic % 3, topic).await?;
    }
    let more = agreed(&fleet, &[0, 2], known * 1.8).await?;
    for topic in 0..12 {
        let (there, missed) = ask(&fleet, 2 * (topic % 2), &prompt(topic, 2)).await?;
        ensure!(
            there == topic % 3 && missed < TAIL,
            "topic {topic} went to server {there}, which had to compute {missed} tokens"
        );
    }

    // It is warm before it says that it is ready.
    fleet.routers[1].start()?;
    fleet.routers[1].ready().await?;
    in_effect(&fleet, 1).await?;
    let mut first = Vec::new();
    for topic in 0..3 {
        first.push(ask(&fleet, 1, &prompt(topic, 3)).await?.0);
    }
    ensure!(first == [0, 1, 2], "{first:?}");
    agreed(&fleet, &[0, 1, 2], more).await?;

    // An engine that begins anew has nothing, and every router knows that.
    let all = blocks(&fleet, 0).await?;
    fleet.sims[0].kill().await?;
    fleet.sims[0].start().await?;
    until(
        "the blocks of the engine that died to be forgotten",
        SOON,
        async || {
            for router in 0..3 {
                let here = blocks(&fleet, router).await?;
                ensure!(
                    here < all * 0.8,
                    "router {router} still has {here} of {all} blocks"
                );
            }
            anyhow::Ok(())
        },
    )
    .await?;
    fleet.finish().await
}
