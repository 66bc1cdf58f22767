//! `quorate serve`: one router, nothing configured, nothing kept.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use quorate_tests::http::{Client, chat, get, metric, post};
use quorate_tests::{Fleet, Process, Start, cli, until};
use rustix::process::Signal;
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn in_front_of_running_engines() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(0, 2).start().await?;
    let host = fleet.subnet().host(1);
    let (gateway, control, admin): (SocketAddr, SocketAddr, SocketAddr) = (
        (host, 8080).into(),
        (host, 7070).into(),
        (host, 7072).into(),
    );
    let engines: Vec<String> = fleet
        .sims
        .iter()
        .map(|sim| format!("http://{}", sim.address))
        .collect();
    let args = [
        "serve",
        "--listen",
        &gateway.to_string(),
        "--control",
        &control.to_string(),
        "--admin",
        &admin.to_string(),
        "--endpoints",
        &engines.join(","),
    ];
    let mut serve = Process::start(&Start {
        name: "serve".into(),
        wrapper: Vec::new(),
        args: args.iter().map(Into::into).collect(),
        env: Vec::new(),
        log: fleet.dir().join("serve.log"),
    })?;
    until("serve to be ready", SOON, async || {
        get(gateway, "/ready").await?.ok()
    })
    .await
    .with_context(|| serve.output())?;

    until("the models to be known", SOON, async || {
        let models = get(gateway, "/v1/models").await?.ok()?.json()?;
        let known = models["data"].as_array().is_some_and(|m| m.len() == 1);
        ensure!(known && models["data"][0]["id"] == "echo-model", "{models}");
        anyhow::Ok(())
    })
    .await?;
    let answer = post(
        gateway,
        "/v1/chat/completions",
        &chat("echo-model", "hello", 8, false),
    )
    .await?
    .ok()?
    .json()?;
    ensure!(
        answer["choices"][0]["message"]["content"] == "hello",
        "{answer}"
    );
    let message = json!({"model": "echo-model", "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]});
    let answer = post(gateway, "/v1/messages", &message)
        .await?
        .ok()?
        .json()?;
    ensure!(
        answer["content"][0]["text"] == "hello" && answer["type"] == "message",
        "{answer}"
    );
    let mut client = Client::connect(gateway).await?;
    let mut events = client
        .stream(
            "/v1/chat/completions",
            &chat("echo-model", "one after the other", 16, true),
        )
        .await?;
    let (text, done) = events.rest().await?;
    ensure!(text == "one after the other" && done, "{text}");
    // An engine's own path.
    let tokens = post(
        gateway,
        "/tokenize",
        &json!({"model": "echo-model", "prompt": "some words"}),
    )
    .await?
    .ok()?
    .json()?;
    ensure!(
        tokens["count"].as_u64().is_some_and(|count| count > 0),
        "{tokens}"
    );

    // The command line works with it as with a cluster.
    let server = control.to_string();
    let endpoints = cli::run(&["get", "endpoints", "-o", "json", "--server", &server])
        .await?
        .ok()?;
    ensure!(
        engines
            .iter()
            .all(|engine| endpoints.contains(engine.as_str())),
        "{endpoints}"
    );

    // One engine dies: nobody notices.
    fleet.sims[0].kill().await?;
    for _ in 0..30 {
        post(
            gateway,
            "/v1/chat/completions",
            &chat("echo-model", "hello", 8, false),
        )
        .await?
        .ok()?;
    }
    let page = get(admin, "/metrics").await?.ok()?.text();
    let requests = metric(&page, "llm_d_epp_request_total", "echo-model").unwrap_or_default();
    ensure!(requests >= 33.0, "llm_d_epp_request_total is {requests}");

    // Ctrl-C lets an open stream run to its end and takes nothing new.
    let mut client = Client::connect(gateway).await?;
    fleet.sims[1].fault(&json!({"slow-body": 2000})).await?;
    let text = "to the end ".repeat(30);
    let mut events = client
        .stream(
            "/v1/chat/completions",
            &chat("echo-model", &text, 500, true),
        )
        .await?;
    events.next().await?.context("an empty stream")?;
    serve.signal(Signal::INT)?;
    until(
        "new connections to be refused",
        SOON,
        async || match Client::connect(gateway).await {
            Err(_) => Ok(()),
            Ok(mut client) => match client.call(Method::GET, "/ready", Bytes::new()).await {
                Ok(reply) if reply.status == 200 => Err("still ready"),
                _ => Ok(()),
            },
        },
    )
    .await?;
    let (got, done) = events
        .rest()
        .await
        .context("a stream across the end of the router")?;
    ensure!(done && text.starts_with(got.trim()), "{got}");
    let status = serve.wait(SOON).await?;
    ensure!(status.success(), "{status}: {}", serve.output());
    fleet.finish().await
}

#[tokio::test]
async fn bad_flags_are_refused() -> anyhow::Result<()> {
    let fleet = Fleet::of(0, 0).start().await?;
    let host = fleet.subnet().host(1);
    let taken = std::net::TcpListener::bind((host, 8080))?;
    let address = taken.local_addr()?.to_string();
    let free = format!("{host}:0");
    let rest = ["--control", free.as_str(), "--admin", free.as_str()];
    let run = async |words: &[&str]| cli::run(&[&["serve"], words, &rest].concat()).await;
    run(&["--listen", &address, "--endpoints", "http://127.0.0.1:1"])
        .await?
        .fails(1, &[&address])?;
    run(&["--listen", &free, "--endpoints", "not a url"])
        .await?
        .fails(1, &["not a url"])?;
    run(&["--listen", &free, "--endpoints", "http://127.0.0.1:99999"])
        .await?
        .fails(1, &["99999"])?;
    run(&["--listen", "nowhere", "--endpoints", "http://127.0.0.1:1"])
        .await?
        .fails(2, &["nowhere"])?;
    run(&["--listen", &free])
        .await?
        .fails(2, &["--endpoints"])?;
    fleet.finish().await
}
