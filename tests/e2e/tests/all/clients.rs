//! Clients that read slowly, leave early, or send slowly.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use quorate_tests::http::{Client, chat, get, metric, post};
use quorate_tests::{Fleet, until};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(60);

async fn running(fleet: &Fleet) -> anyhow::Result<u64> {
    let mut sum = 0;
    for sim in &fleet.sims {
        sum += sim.stat("running").await? + sim.stat("waiting").await?;
    }
    Ok(sum)
}

async fn until_running(fleet: &Fleet, wanted: u64) -> anyhow::Result<()> {
    until(
        &format!("{wanted} requests on the engines"),
        SOON,
        async || {
            let running = running(fleet).await?;
            ensure!(running == wanted, "{running}");
            anyhow::Ok(())
        },
    )
    .await
}

/// A client that goes away ends its request on the engine within a second, streaming or not.
#[tokio::test]
async fn a_client_that_leaves_frees_the_engine() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 2)
        .sim_args(&["--itl", "20ms", "--mode", "random"])
        .start()
        .await?;
    let gateway = fleet.routers[0].gateway();
    for stream in [true, false] {
        let body = chat("echo-model", "go on for long", 2000, stream);
        let mut clients = Vec::new();
        let mut unanswered = Vec::new();
        for _ in 0..8 {
            let mut client = Client::connect(gateway).await?;
            if stream {
                let mut events = client.stream("/v1/chat/completions", &body).await?;
                events.next().await?.context("an empty stream")?;
                clients.push((client, events));
            } else {
                let body = body.clone();
                unanswered.push(tokio::spawn(async move {
                    let body = Bytes::from(body.to_string());
                    client
                        .call(Method::POST, "/v1/chat/completions", body)
                        .await
                }));
            }
        }
        until_running(&fleet, 8).await?;
        let left = Instant::now();
        drop(clients);
        for request in &unanswered {
            request.abort();
        }
        until_running(&fleet, 0).await?;
        let took = left.elapsed();
        println!(
            "clients left ({}): the engines noticed after {} ms",
            if stream { "streams" } else { "waiting" },
            took.as_millis()
        );
        ensure!(
            took < Duration::from_secs(1),
            "the engines went on for {took:?}"
        );
    }
    let mut aborted = 0;
    for sim in &fleet.sims {
        aborted += sim.stat("aborted").await?;
    }
    ensure!(aborted == 16, "{aborted} requests were aborted, not 16");
    fleet.finish().await
}

/// Clients that ask for much and read nothing: held back to the engine, not in the router's memory, and cut off in the end.
#[tokio::test]
async fn clients_that_do_not_read_cost_no_memory() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(1, 1)
        .sim_args(&["--mode", "random", "--max-model-len", "200000"])
        .gateway("write_timeout = \"4s\"")
        .start()
        .await?;
    let gateway = fleet.routers[0].gateway();
    post(
        gateway,
        "/v1/chat/completions",
        &chat("echo-model", "warm up", 4, false),
    )
    .await?
    .ok()?;
    let before = fleet.routers[0].process()?.memory()?;
    // About 20 MB each, if anybody read it.
    let body = chat("echo-model", "much", 100_000, true).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut clients = Vec::new();
    for _ in 0..24 {
        let mut socket = TcpStream::connect(gateway).await?;
        socket.write_all(request.as_bytes()).await?;
        // The answer has begun: from here on nothing is read.
        let mut first = [0; 64];
        socket.read_exact(&mut first).await?;
        ensure!(
            first.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&first)
        );
        clients.push(socket);
    }
    let mut most = 0;
    until("the clients to be cut off", SOON, async || {
        most = most.max(fleet.routers[0].process()?.memory()?);
        let running = running(&fleet).await?;
        ensure!(running == 0, "{running} streams run");
        anyhow::Ok(())
    })
    .await?;
    let grown = most.saturating_sub(before) >> 20;
    println!("24 clients that do not read: {grown} MiB more memory at most");
    ensure!(grown < 64, "the router's memory grew by {grown} MiB");
    // Others were never in the way.
    post(
        gateway,
        "/v1/chat/completions",
        &chat("echo-model", "next", 4, false),
    )
    .await?
    .ok()?;
    drop(clients);
    fleet.finish().await
}

/// Slow reading alone is no reason to be cut off.
#[tokio::test]
async fn a_slow_reader_gets_all_of_its_stream() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 1)
        .gateway("write_timeout = \"2s\"")
        .start()
        .await?;
    let text = "slowly but surely ".repeat(400);
    let mut client = Client::connect(fleet.routers[0].gateway()).await?;
    let mut events = client
        .stream(
            "/v1/chat/completions",
            &chat("echo-model", &text, 5000, true),
        )
        .await?;
    let (mut got, mut done, mut count) = (String::new(), false, 0);
    while let Some(data) = events.next().await? {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        got.push_str(&quorate_tests::http::delta(&data)?);
        count += 1;
        if count % 200 == 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    ensure!(
        done && got.trim() == text.trim(),
        "{} of {} bytes, done {done}",
        got.len(),
        text.len()
    );
    fleet.finish().await
}

/// A request that trickles in is given up, without a worker or an engine waiting for it.
#[tokio::test]
async fn a_request_that_trickles_in_is_given_up() -> anyhow::Result<()> {
    let fleet = Fleet::of(1, 1)
        .gateway("header_timeout = \"1s\"\nbody_timeout = \"1s\"\nbody_min_rate = 1000000")
        .start()
        .await?;
    let gateway = fleet.routers[0].gateway();
    let before = fleet.sims[0].stat("requests").await?;
    for beginning in [
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"mod",
    ] {
        let mut socket = TcpStream::connect(gateway).await?;
        socket.write_all(beginning.as_bytes()).await?;
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(15), socket.read_to_end(&mut answer))
            .await
            .context("the connection stays open")??;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
    post(
        gateway,
        "/v1/chat/completions",
        &chat("echo-model", "quick", 4, false),
    )
    .await?
    .ok()?;
    ensure!(
        fleet.sims[0].stat("requests").await? == before + 1,
        "an engine got half a request"
    );
    let page = get(fleet.routers[0].admin(), "/metrics")
        .await?
        .ok()?
        .text();
    let requests = metric(&page, "llm_d_epp_request_total", "echo-model");
    ensure!(
        requests == Some(1.0),
        "llm_d_epp_request_total is {requests:?}"
    );
    fleet.finish().await
}
