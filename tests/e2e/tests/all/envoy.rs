//! A real Envoy that asks a router for each request's endpoint.

use anyhow::{Context, ensure};
use http::Method;
use quorate_tests::http::{Client, chat, delta, get, metric, post};
use quorate_tests::{Envoy, Fleet, FleetBuilder, Load, LoadSpec, ModelServers, until};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const CHAT: &str = "/v1/chat/completions";

fn fleet(routers: usize, sims: usize, lines: &str) -> FleetBuilder {
    Fleet::of(routers, sims).config(&format!("[ext_proc]\nlisten = \"{{host}}:9002\"\n{lines}"))
}

/// Waits until a router counts no request and no stream any more.
async fn idle(fleet: &Fleet, router: usize) -> anyhow::Result<String> {
    let admin = fleet.routers[router].admin();
    until("nothing to be in flight", SOON, async || {
        let page = get(admin, "/metrics").await?.ok()?.text();
        for name in [
            "llm_d_epp_extproc_streams_inflight",
            "llm_d_epp_request_running",
        ] {
            let value = metric(&page, name, "").unwrap_or(0.0);
            ensure!(value == 0.0, "{name} is {value}");
        }
        anyhow::Ok(page)
    })
    .await
}

#[tokio::test]
async fn answers_streams_and_refusals() -> anyhow::Result<()> {
    let fleet = fleet(1, 2, "max_body_bytes = 2000000").start().await?;
    let envoy = Envoy::start(&fleet, &[0], ModelServers::ByHeader).await?;
    let front = envoy.front();
    let mut client = Client::connect(front).await?;

    // One connection, many requests: both servers get their share.
    for i in 0..20 {
        let text = format!("question {i}");
        let body = chat("echo-model", &text, 64, false).to_string().into();
        let reply = client.call(Method::POST, CHAT, body).await?.ok()?;
        let said = &reply.json()?["choices"][0]["message"]["content"];
        ensure!(said == text.as_str(), "{said}");
        let id = reply.headers.get("x-request-id").context("no request id")?;
        ensure!(!id.is_empty(), "an empty request id");
    }
    for sim in &fleet.sims {
        ensure!(sim.stat("requests").await? >= 3, "{} is left out", sim.name);
    }

    // Streamed, and read as it comes.
    let mut events = client
        .stream(CHAT, &chat("echo-model", "to be streamed", 64, true))
        .await?;
    let (text, done) = events.rest().await?;
    ensure!(text == "to be streamed" && done, "{text:?} {done}");

    // A body that goes over in many pieces and comes back in others.
    let long = "word ".repeat(100_000);
    let reply = client
        .call(
            Method::POST,
            CHAT,
            chat("echo-model", &long, 8, false).to_string().into(),
        )
        .await?
        .ok()?;
    ensure!(
        reply.json()?["usage"]["prompt_tokens"].as_u64() > Some(1000),
        "{}",
        reply.text()
    );

    // Refusals are the picker's own, in the client's protocol.
    for (body, status, code) in [
        (
            json!({"model": "nobody", "messages": []}).to_string(),
            404,
            json!("model_not_found"),
        ),
        ("{".to_owned(), 400, json!(null)),
        (
            chat("echo-model", &"x".repeat(2_100_000), 1, false).to_string(),
            413,
            json!("request_too_large"),
        ),
    ] {
        let mut client = Client::connect(front).await?;
        let reply = client.call(Method::POST, CHAT, body.into()).await?;
        ensure!(
            reply.status == status,
            "{} instead of {status}: {}",
            reply.status,
            reply.text()
        );
        ensure!(reply.json()?["error"]["code"] == code, "{}", reply.text());
        ensure!(reply.headers["content-type"] == "application/json");
    }
    let models = get(front, "/v1/models").await?.ok()?.json()?;
    ensure!(models["data"][0]["id"] == "echo-model", "{models}");
    // A path that only the engine knows, without a body.
    let version = get(front, "/health").await?;
    ensure!(version.status == 200, "{}", version.text());

    let page = idle(&fleet, 0).await?;
    let ended = metric(&page, "llm_d_epp_extproc_streams_total", "code=\"OK\"").unwrap_or(0.0);
    ensure!(ended >= 25.0, "{ended} streams ended well");
    let output = metric(
        &page,
        "llm_d_epp_request_output_tokens_sum",
        "model_name=\"echo-model\"",
    );
    ensure!(output > Some(20.0), "tokens are not counted: {output:?}");
    let streamed = metric(
        &page,
        "llm_d_epp_request_ttft_seconds_count",
        "streaming=\"true\"",
    );
    ensure!(streamed == Some(1.0), "{streamed:?} streams");
    fleet.finish().await
}

/// The endpoint's place is free as soon as the client is gone.
#[tokio::test]
async fn clients_that_go_away() -> anyhow::Result<()> {
    let fleet = fleet(1, 1, "").sim_args(&["--itl", "50ms"]).start().await?;
    let envoy = Envoy::start(&fleet, &[0], ModelServers::ByHeader).await?;
    let mut streams = Vec::new();
    for _ in 0..30 {
        let mut client = Client::connect(envoy.front()).await?;
        let mut events = client
            .stream(
                CHAT,
                &chat("echo-model", &"and so on ".repeat(100), 1000, true),
            )
            .await?;
        delta(&events.next().await?.context("no event")?)?;
        streams.push((client, events));
    }
    let page = get(fleet.routers[0].admin(), "/metrics").await?.text();
    let open = metric(&page, "llm_d_epp_extproc_streams_inflight", "");
    ensure!(open == Some(30.0), "{open:?}");
    drop(streams);
    let page = idle(&fleet, 0).await?;
    let ended = metric(
        &page,
        "llm_d_epp_extproc_streams_total",
        "code=\"Canceled\"",
    );
    ensure!(ended == Some(30.0), "{ended:?}");
    until("the engine to be idle", SOON, async || {
        let running = fleet.sims[0].stat("running").await?;
        ensure!(running == 0, "{running}");
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}

/// A dead endpoint costs no request when Envoy knows where else to go, and the next server's place is the one that counts.
#[tokio::test]
async fn a_dead_endpoint_with_fallbacks() -> anyhow::Result<()> {
    let mut fleet = fleet(1, 3, "fallbacks = 2").start().await?;
    let envoy = Envoy::start(&fleet, &[0], ModelServers::Listed).await?;
    let ask = async |i: usize| {
        post(
            envoy.front(),
            CHAT,
            &chat("echo-model", &format!("{i}"), 8, false),
        )
        .await?
        .ok()
    };
    for i in 0..12 {
        ask(i).await?;
    }
    let mut others = 0;
    for sim in &fleet.sims[1..] {
        others += sim.stat("requests").await?;
    }
    fleet.sims[0].kill().await?;
    for i in 0..40 {
        ask(i)
            .await
            .with_context(|| format!("request {i} after the death"))?;
    }
    let mut now = 0;
    for sim in &fleet.sims[1..] {
        now += sim.stat("requests").await?;
    }
    ensure!(now - others >= 40, "{others}, then {now}");
    let page = idle(&fleet, 0).await?;
    let failures = metric(
        &page,
        "quorate_gateway_endpoint_failures_total",
        "kind=\"connect\"",
    );
    ensure!(
        failures >= Some(1.0),
        "the death was not noticed: {failures:?}"
    );
    fleet.finish().await
}

/// Without fallbacks the client sees an error at most until the router has noticed.
#[tokio::test]
async fn a_dead_endpoint_without_fallbacks() -> anyhow::Result<()> {
    let mut fleet = fleet(1, 2, "").start().await?;
    let envoy = Envoy::start(&fleet, &[0], ModelServers::ByHeader).await?;
    fleet.sims[0].kill().await?;
    let mut in_a_row = 0;
    let mut errors = 0;
    for i in 0..200 {
        let reply = post(
            envoy.front(),
            CHAT,
            &chat("echo-model", &format!("{i}"), 8, false),
        )
        .await?;
        if reply.status == 200 {
            in_a_row += 1;
        } else {
            ensure!(reply.status == 503, "{}: {}", reply.status, reply.text());
            errors += 1;
            in_a_row = 0;
        }
        if in_a_row == 30 {
            break;
        }
    }
    ensure!(in_a_row == 30, "still errors");
    ensure!(errors <= 5, "{errors} errors until the breaker opened");
    fleet.sims[1].kill().await?;
    until("nobody to be left", SOON, async || {
        let reply = post(envoy.front(), CHAT, &chat("echo-model", "x", 8, false)).await?;
        ensure!(reply.status == 503, "{}", reply.status);
        let reason = reply.headers.get("x-llm-d-request-dropped-reason");
        ensure!(
            reason.is_some_and(|r| r == "rejected-no-endpoints"),
            "{reason:?} {}",
            reply.text()
        );
        ensure!(
            reply.json()?["error"]["code"] == "no_endpoints",
            "{}",
            reply.text()
        );
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}

/// Routers stop in order under load, one after the other, and no client sees it; a killed one is gone within a moment.
#[tokio::test]
async fn routers_come_and_go() -> anyhow::Result<()> {
    let mut fleet = fleet(3, 2, "").sim_args(&["--itl", "5ms"]).start().await?;
    let envoy = Envoy::start(&fleet, &[0, 1, 2], ModelServers::ByHeader).await?;
    let front = envoy.front();
    let load = Load::start(&LoadSpec {
        targets: vec![front],
        connections: 8,
        streams: true,
        model: "echo-model".into(),
        max_tokens: 64,
    });
    load.progress(&[front], 30, SOON).await?;
    for router in [2, 1] {
        fleet.routers[router].stop().await?;
        load.progress(&[front], 30, SOON).await?;
    }
    for router in [1, 2] {
        fleet.routers[router].start()?;
        fleet.routers[router].ready().await?;
    }
    load.progress(&[front], 30, SOON).await?;
    load.stop().await?.all_good(&[front])?;

    fleet.routers[0].kill().await?;
    until("the others to take over", SOON, async || {
        for _ in 0..20 {
            post(front, CHAT, &chat("echo-model", "x", 8, false))
                .await?
                .ok()?;
        }
        anyhow::Ok(())
    })
    .await?;
    fleet.finish().await
}

#[tokio::test]
async fn the_openai_client_through_envoy() -> anyhow::Result<()> {
    let python = std::env::var_os("QUORATE_PYTHON")
        .map(PathBuf::from)
        .context("QUORATE_PYTHON is not set (tests/run makes one in .venv)")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/openai_client.py");
    let fleet = fleet(1, 2, "").start().await?;
    let envoy = Envoy::start(&fleet, &[0], ModelServers::ByHeader).await?;
    let run = tokio::process::Command::new(&python)
        .arg(&script)
        .arg(format!("http://{}/v1", envoy.front()))
        .arg("echo-model")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(120), run)
        .await
        .context("the client hangs")??;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    idle(&fleet, 0).await?;
    fleet.finish().await
}
