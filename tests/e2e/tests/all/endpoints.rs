//! Model servers that come, go, fail and hang under load.

use anyhow::{Context, ensure};
use quorate_proto::v1::{HealthPolicy, PoolSpec, endpoint_status::State};
use quorate_tests::http::{Client, chat, post};
use quorate_tests::{Fleet, Load, until};
use serde_json::json;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// About 120 tokens when echoed.
fn long_text() -> String {
    "and so on ".repeat(40)
}

#[tokio::test]
async fn added_and_drained_under_load() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 2).sim_args(&["--itl", "10ms"]).start().await?;
    let gateways = fleet.gateways(&[0, 1, 2]);
    let load = Load::start(&fleet.load(&[0, 1, 2], 4));
    load.progress(&gateways, 10, SOON).await?;

    let added = fleet.add_sim().await?;
    fleet.declare(added).await?;
    fleet.used(added).await?;
    until("the new server to get requests", SOON, async || {
        let requests = fleet.sims[added].stat("requests").await?;
        ensure!(requests >= 10, "{requests}");
        anyhow::Ok(())
    })
    .await?;

    // Long streams, some of them on the server that is drained now.
    let mut streams = Vec::new();
    for gateway in gateways.iter().cycle().take(12) {
        let mut client = Client::connect(*gateway).await?;
        let mut events = client
            .stream(
                "/v1/chat/completions",
                &chat("echo-model", &long_text(), 200, true),
            )
            .await?;
        events.next().await?.context("an empty stream")?;
        streams.push((client, events));
    }
    let mut running = Vec::new();
    for sim in &fleet.sims {
        running.push(sim.stat("running").await?);
    }
    ensure!(
        running[0] > 0,
        "nothing on the server to drain: {running:?}"
    );
    let drained = fleet
        .cli(&[0, 1, 2], &["endpoint", "drain", "sim-1", "--wait"])
        .await?;
    ensure!(drained.code == 0, "{drained:?}");
    until("the drained server to be empty", SOON, async || {
        let running = fleet.sims[0].stat("running").await?;
        ensure!(running == 0, "{running} running");
        anyhow::Ok(())
    })
    .await?;
    fleet.endpoint_is(0, State::Draining, SOON).await?;
    let before = fleet.sims[0].stat("requests").await?;
    load.progress(&gateways, 30, SOON).await?;
    ensure!(
        fleet.sims[0].stat("requests").await? == before,
        "a drained server got requests"
    );
    for (_client, mut events) in streams {
        let (text, done) = events.rest().await.context("a stream across a drain")?;
        ensure!(done && long_text().starts_with(text.trim()), "{text:?}");
    }

    fleet
        .cli(&[1], &["endpoint", "drain", "sim-1", "--undo"])
        .await?
        .ok()?;
    fleet.used(0).await?;
    until("the server to get requests again", SOON, async || {
        let requests = fleet.sims[0].stat("requests").await?;
        ensure!(requests > before + 5, "{requests}");
        anyhow::Ok(())
    })
    .await?;

    // Deleted while in use: its requests end well too.
    fleet
        .cli(&[2], &["delete", "endpoint", "sim-2"])
        .await?
        .ok()?;
    until("the deleted server to be empty", SOON, async || {
        let running = fleet.sims[1].stat("running").await?;
        ensure!(running == 0, "{running} running");
        anyhow::Ok(())
    })
    .await?;
    load.progress(&gateways, 10, SOON).await?;
    load.stop().await?.all_good(&gateways)?;
    fleet.finish().await
}

/// Killed and back several times: used again soon, and no client sees any of it.
#[tokio::test]
async fn a_restarted_engine_is_used_again_at_once() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(1, 2).start().await?;
    let gateways = fleet.gateways(&[0]);
    let mut spec = fleet.load(&[0], 8);
    spec.streams = false;
    let load = Load::start(&spec);
    load.progress(&gateways, 50, SOON).await?;
    let mut times = Vec::new();
    for _ in 0..3 {
        fleet.sims[0].kill().await?;
        load.progress(&gateways, 200, SOON).await?;
        fleet.endpoint_is(0, State::Unhealthy, SOON).await?;
        fleet.sims[0].start().await?;
        let healthy = Instant::now();
        until("the engine to get requests", SOON, async || {
            let requests = fleet.sims[0].stat("requests").await?;
            ensure!(requests > 0, "none");
            anyhow::Ok(())
        })
        .await?;
        times.push(healthy.elapsed().as_millis());
        load.progress(&gateways, 100, SOON).await?;
    }
    load.stop().await?.all_good(&gateways)?;
    println!("a restarted engine is used again after {times:?} ms");
    ensure!(times.iter().all(|t| *t < 3000), "too late: {times:?} ms");
    fleet.finish().await
}

/// /health says 200, but no token moves.
#[tokio::test]
async fn a_stalled_engine_is_taken_out() -> anyhow::Result<()> {
    let health = HealthPolicy {
        stall_timeout: Some(prost_duration(Duration::from_secs(1))),
        ..Default::default()
    };
    let pool = PoolSpec {
        health: Some(health),
        ..Default::default()
    };
    let mut fleet = Fleet::of(2, 2)
        .pool(pool)
        .gateway("first_byte_timeout = \"8s\"")
        .start()
        .await?;
    fleet.sims[0].fault(&json!({"lying-health": true})).await?;
    // Enough requests that some wait on the stalled server.
    let mut waiting = Vec::new();
    for gateway in fleet.gateways(&[0, 1]).into_iter().cycle().take(8) {
        waiting.push(tokio::spawn(async move {
            post(
                gateway,
                "/v1/chat/completions",
                &chat("echo-model", "x", 4, false),
            )
            .await
        }));
    }
    fleet.endpoint_is(0, State::Unhealthy, SOON).await?;
    let status = fleet.control(0)?.describe("sim-1").await?;
    ensure!(!status.reasons.is_empty(), "no reason is given: {status:?}");
    let described = fleet
        .cli(&[0], &["describe", "endpoint", "sim-1"])
        .await?
        .ok()?;
    ensure!(
        status
            .reasons
            .iter()
            .any(|reason| described.contains(reason.as_str())),
        "{described}"
    );

    let before = fleet.sims[0].stat("requests").await?;
    for gateway in fleet.gateways(&[0, 1]) {
        for _ in 0..20 {
            let started = Instant::now();
            post(
                gateway,
                "/v1/chat/completions",
                &chat("echo-model", "quick", 4, false),
            )
            .await?
            .ok()?;
            ensure!(
                started.elapsed() < Duration::from_secs(2),
                "a request met the stalled engine"
            );
        }
    }
    ensure!(
        fleet.sims[0].stat("requests").await? == before,
        "a stalled engine got requests"
    );

    fleet.sims[0].fault(&json!({})).await?;
    fleet.used(0).await?;
    for request in waiting {
        // Answered late, or told so: never left alone.
        let reply = request.await??;
        ensure!(
            reply.status.is_success() || reply.json()?["error"]["message"].is_string(),
            "{}: {}",
            reply.status,
            reply.text()
        );
    }
    fleet.finish().await
}

/// Engines that refuse, reset or close before the first byte cost no client an error.
#[tokio::test]
async fn failing_engines_are_worked_around() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(2, 3).start().await?;
    let gateways = fleet.gateways(&[0, 1]);
    let mut spec = fleet.load(&[0, 1], 4);
    spec.streams = false;
    for fault in [
        json!({"status": 503}),
        json!({"reset": true}),
        json!({"close": true}),
        json!({"unhealthy": true}),
    ] {
        let load = Load::start(&spec);
        load.progress(&gateways, 20, SOON).await?;
        fleet.sims[0].fault(&fault).await?;
        load.progress(&gateways, 200, SOON).await?;
        fleet.sims[0].fault(&json!({})).await?;
        fleet.used(0).await?;
        let before = fleet.sims[0].stat("requests").await?;
        until("the engine to be used again", SOON, async || {
            let requests = fleet.sims[0].stat("requests").await?;
            ensure!(
                requests > before + 5,
                "{requests} requests, {before} before"
            );
            anyhow::Ok(())
        })
        .await?;
        load.stop()
            .await?
            .all_good(&gateways)
            .with_context(|| format!("with {fault}"))?;
    }
    fleet.finish().await
}

/// Once a byte went to the client there is no retry: a cut stream is seen as cut, never as complete.
#[tokio::test]
async fn a_stream_that_breaks_is_seen_to_break() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 2).start().await?;
    let gateway = fleet.routers[0].gateway();
    for fault in [json!({"reset-after": 5}), json!({"close-after": 5})] {
        for sim in &fleet.sims {
            sim.fault(&fault).await?;
        }
        let mut client = Client::connect(gateway).await?;
        let mut events = client
            .stream(
                "/v1/chat/completions",
                &chat("echo-model", &long_text(), 200, true),
            )
            .await?;
        let rest = events.rest().await;
        ensure!(
            !matches!(rest, Ok((_, true))),
            "with {fault} the stream looks complete"
        );
    }
    for sim in &fleet.sims {
        sim.fault(&json!({})).await?;
    }
    post(
        gateway,
        "/v1/chat/completions",
        &chat("echo-model", "well again", 8, false),
    )
    .await?
    .ok()?;
    fleet.finish().await
}

/// No endpoint at all: a clear refusal in the client's own protocol, and service as soon as there is one.
#[tokio::test]
async fn all_engines_are_gone() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(2, 1).start().await?;
    fleet.sims[0].kill().await?;
    fleet.endpoint_is(0, State::Unhealthy, SOON).await?;
    for gateway in fleet.gateways(&[0, 1]) {
        let reply = post(
            gateway,
            "/v1/chat/completions",
            &chat("echo-model", "anybody?", 4, false),
        )
        .await?;
        ensure!(
            reply.status.as_u16() == 503,
            "{}: {}",
            reply.status,
            reply.text()
        );
        ensure!(
            reply.json()?["error"]["message"].is_string(),
            "{}",
            reply.text()
        );
        ensure!(
            reply.headers.contains_key("retry-after"),
            "no Retry-After: {:?}",
            reply.headers
        );
        let ready = quorate_tests::http::get(gateway, "/ready").await?;
        ensure!(ready.status.as_u16() == 503, "{}", ready.status);
    }
    fleet.sims[0].start().await?;
    fleet.used(0).await?;
    for gateway in fleet.gateways(&[0, 1]) {
        post(
            gateway,
            "/v1/chat/completions",
            &chat("echo-model", "there", 4, false),
        )
        .await?
        .ok()?;
    }
    fleet.finish().await
}

/// Every router knows what the others have in flight; the counts of a dead one vanish, and its endpoints get another owner.
#[tokio::test]
async fn load_and_ownership_are_shared() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(3, 3)
        .sim_args(&["--itl", "20ms", "--mode", "random"])
        .start()
        .await?;
    let names: Vec<String> = fleet.sims.iter().map(|sim| sim.name.clone()).collect();
    let total = async |fleet: &Fleet, router: usize| {
        let mut sum = 0;
        for name in &names {
            sum += fleet.control(router)?.describe(name).await?.total_in_flight;
        }
        anyhow::Ok(sum)
    };
    let mut streams = Vec::new();
    for router in [0, 0, 0, 1, 1, 2] {
        let mut client = Client::connect(fleet.routers[router].gateway()).await?;
        let mut events = client
            .stream(
                "/v1/chat/completions",
                &chat("echo-model", "long", 3000, true),
            )
            .await?;
        events.next().await?.context("an empty stream")?;
        streams.push((client, events));
    }
    for router in 0..3 {
        until("six requests to be known everywhere", SOON, async || {
            let sum = total(&fleet, router).await?;
            ensure!(sum == 6, "router {router} says {sum}");
            anyhow::Ok(())
        })
        .await?;
    }
    // A client leaves, then a router dies.
    streams.pop();
    let died = fleet.control(1)?.node_id("router-1").await?;
    fleet.routers[0].kill().await?;
    for router in [1, 2] {
        until("two requests to be left", SOON, async || {
            let sum = total(&fleet, router).await?;
            ensure!(sum == 2, "router {router} says {sum}");
            anyhow::Ok(())
        })
        .await?;
        until("every endpoint to have a living owner", SOON, async || {
            for name in &names {
                let status = fleet.control(router)?.describe(name).await?;
                let owner = status.owner_node_id;
                ensure!(
                    owner != 0 && owner != died && status.state() == State::Ready,
                    "{name}: {status:?}"
                );
            }
            anyhow::Ok(())
        })
        .await?;
    }
    drop(streams);
    for router in [1, 2] {
        until("nothing to be left", SOON, async || {
            let sum = total(&fleet, router).await?;
            ensure!(sum == 0, "router {router} says {sum}");
            anyhow::Ok(())
        })
        .await?;
    }
    fleet.finish().await
}

fn prost_duration(d: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: d.as_secs() as i64,
        nanos: d.subsec_nanos() as i32,
    }
}
