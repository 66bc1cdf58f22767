//! What one router learnt from its picks the others know: prefixes of prompts, sessions; also one that was away.

use anyhow::{Context, ensure};
use http::Method;
use quorate_tests::http::{Client, chat, get, metric};
use quorate_tests::{Fleet, until};
use std::time::Duration;

const MODEL: &str = "echo-model";
/// Longer than a router waits before it tells what is new.
const TOLD: Duration = Duration::from_millis(400);
const SOON: Duration = Duration::from_secs(60);
const ALL: [usize; 3] = [0, 1, 2];
const CONFIG: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: prefix-cache-scorer
- type: session-affinity-scorer
  parameters: {strategy: session_id}
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-scorer
  - pluginRef: session-affinity-scorer
    weight: 5
  - pluginRef: max-score-picker
";

async fn served(fleet: &Fleet) -> anyhow::Result<Vec<u64>> {
    let mut all = Vec::new();
    for sim in &fleet.sims {
        all.push(sim.stat("requests").await?);
    }
    Ok(all)
}

/// Asks through a router; gives the number of the server that answered.
async fn ask(
    fleet: &Fleet,
    router: usize,
    text: &str,
    session: Option<&str>,
) -> anyhow::Result<usize> {
    let before = served(fleet).await?;
    let body = chat(MODEL, text, 2, false).to_string();
    let session = session.map(|session| ("x-session-id", session));
    Client::connect(fleet.routers[router].gateway())
        .await?
        .call_with(
            Method::POST,
            "/v1/chat/completions",
            session.as_slice(),
            body.into(),
        )
        .await?
        .ok()?;
    let after = served(fleet).await?;
    let grown: Vec<usize> = (0..after.len())
        .filter(|i| after[*i] > before[*i])
        .collect();
    ensure!(grown.len() == 1, "{before:?} {after:?}");
    Ok(grown[0])
}

async fn counter(fleet: &Fleet, router: usize, name: &str) -> anyhow::Result<f64> {
    let page = get(fleet.routers[router].admin(), "/metrics").await?.text();
    Ok(metric(&page, name, "").unwrap_or(0.0))
}

/// How many words a router told the others, and was told by them.
async fn told(fleet: &Fleet, router: usize) -> anyhow::Result<f64> {
    counter(fleet, router, "quorate_learnt_told_total").await
}

async fn heard(fleet: &Fleet, router: usize) -> anyhow::Result<f64> {
    counter(fleet, router, "quorate_learnt_heard_total").await
}

/// Waits until a router has told so much in all, and every router has heard all that the others told.
async fn all_heard(fleet: &Fleet, router: usize, so_much: f64) -> anyhow::Result<()> {
    until("all to have heard all", SOON, async || {
        let now = told(fleet, router).await?;
        ensure!(
            now >= so_much,
            "router {router} told {now} of {so_much} words"
        );
        let mut all = Vec::new();
        for router in ALL {
            all.push(told(fleet, router).await?);
        }
        for router in ALL {
            let others: f64 = ALL.iter().filter(|r| **r != router).map(|r| all[*r]).sum();
            let heard = heard(fleet, router).await?;
            ensure!(
                heard >= others,
                "router {router} heard {heard} of {others} words"
            );
        }
        anyhow::Ok(())
    })
    .await
}

fn prompt(topic: usize, question: usize) -> String {
    format!(
        "{} Question {question}.",
        format!("Topic {topic} is long. ").repeat(200)
    )
}

#[tokio::test]
async fn a_prefix_goes_where_another_router_sent_it() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 4).start().await?;
    let applied = fleet.cli_with(&[0], &["apply", "-f", "-"], CONFIG).await?;
    applied.ok()?;
    for router in ALL {
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
        .await?;
    }

    let mut homes = Vec::new();
    for topic in 0..8 {
        let router = topic % 3;
        let (first, second) = ((router + 1) % 3, (router + 2) % 3);
        tokio::time::sleep(TOLD).await;
        let before = told(&fleet, router).await?;
        // Every second one says who it is, so that its session is bound.
        let session = format!("session-{topic}");
        let session = (topic % 2 == 0).then_some(session.as_str());
        let text = prompt(topic, 1);
        let home = ask(&fleet, router, &text, session).await?;
        // Blocks of 64 tokens, of four bytes each; a session is three words.
        let news = text.len() / 256 + if session.is_some() { 3 } else { 0 };
        all_heard(&fleet, router, before + news as f64).await?;
        for (question, other) in [(2, first), (3, second)] {
            let there = ask(&fleet, other, &prompt(topic, question), None).await?;
            ensure!(
                there == home,
                "topic {topic}: {home} by {router}, {there} by {other}"
            );
            if session.is_some() {
                let text = format!("{question} has nothing in common with {topic}");
                let there = ask(&fleet, other, &text, session).await?;
                ensure!(
                    there == home,
                    "session {topic}: {home}, then {there} by {other}"
                );
            }
        }
        homes.push(home);
    }
    ensure!(
        homes.iter().any(|h| *h != homes[0]),
        "all on one: {homes:?}"
    );

    // A router that was away gets a copy.
    fleet.routers[1].stop().await?;
    fleet.routers[1].start()?;
    fleet.routers[1].ready().await?;
    until("the copy", SOON, async || {
        let told = heard(&fleet, 1).await?;
        ensure!(
            told >= (8 * prompt(0, 1).len() / 256) as f64,
            "{told} words"
        );
        anyhow::Ok(())
    })
    .await?;
    for (topic, home) in homes.iter().enumerate() {
        let there = ask(&fleet, 1, &prompt(topic, 4), None)
            .await
            .with_context(|| format!("topic {topic}"))?;
        ensure!(
            there == *home,
            "topic {topic}: {home}, then {there} by the one that was away"
        );
    }
    let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
    let useless = metric(
        &page,
        "quorate_learnt_dropped_total",
        "reason=\"block-size\"",
    );
    ensure!(
        useless.unwrap_or(0.0) == 0.0,
        "blocks of other sizes: {useless:?}"
    );
    fleet.finish().await
}
