//! How the server behaves over time: aborts, queues, prefix hits, latencies, live settings, connections.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::{FixedLatency, Latency};
use serde_json::{Value, json};
use std::time::Duration;
use support::{call, eventually, get, post, send, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn hi(stream: bool) -> Value {
    json!({"model": "sim-model", "messages": [{"role": "user", "content": "Say the word."}], "max_tokens": 4, "stream": stream})
}

#[tokio::test]
async fn lengths_are_drawn_without_a_limit_and_filled_with_one() {
    let sim = start(|c| c.output_length = quorate_sim::OutputLength::Fixed(30)).await;
    let ask =
        |body: Value| async move { post(sim.addr(), "/v1/chat/completions", &body).await.json() };
    let mut request = hi(false);
    request["max_tokens"] = Value::Null;
    let body = ask(request.clone()).await;
    assert_eq!(
        body["usage"]["completion_tokens"], 31,
        "30 and the end of sequence"
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    request["max_completion_tokens"] = json!(50);
    request["ignore_eos"] = json!(true);
    let sim = start(|_| {}).await;
    let body = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .json();
    assert_eq!(body["usage"]["completion_tokens"], 50);
    request["max_completion_tokens"] = json!(100_000);
    request["n"] = json!(100);
    let greedy = post(sim.addr(), "/v1/chat/completions", &request).await;
    assert_eq!(greedy.status, 400, "no single request may take all memory");
}

fn slow(c: &mut quorate_sim::SimConfig) {
    c.engine.latency = Latency::Fixed(FixedLatency {
        itl: 50_000_000,
        ..FixedLatency::default()
    });
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks() {
    let sim = start(slow).await;
    for stream in [true, false] {
        let mut request = hi(stream);
        request["max_tokens"] = json!(10_000);
        let connection = send(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[],
            &request.to_string(),
        )
        .await;
        eventually("it runs", || sim.stats().load.running == 1).await;
        assert!(sim.stats().load.used_blocks > 600);
        drop(connection);
        eventually("it is aborted", || sim.stats().load.used_blocks == 0).await;
    }
    assert_eq!(sim.stats().aborted, 2);
    let page = get(sim.addr(), "/metrics").await.text();
    assert!(page.contains("finished_reason=\"abort\",model_name=\"sim-model\"} 2.0"));
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let sim = start(|c| {
        slow(c);
        c.engine.max_num_seqs = 1;
        c.engine.max_waiting = 1;
        c.queue_full_status = 503;
    })
    .await;
    let mut request = hi(true);
    request["max_tokens"] = json!(1000);
    let mut open = Vec::new();
    for waiting in 0..2 {
        open.push(
            send(
                sim.addr(),
                "POST",
                "/v1/chat/completions",
                &[],
                &request.to_string(),
            )
            .await,
        );
        eventually("it is in", || {
            sim.stats().load.running == 1 && sim.stats().load.waiting == waiting
        })
        .await;
    }
    let answer = post(sim.addr(), "/v1/chat/completions", &request).await;
    assert_eq!(answer.status, 503);
    drop(open);
    eventually("all are gone", || {
        sim.stats().load.running + sim.stats().load.waiting == 0
    })
    .await;
}

#[tokio::test]
async fn prefix_hits_show_in_usage() {
    let sim = start(|_| {}).await;
    let text = "the quick fox ".repeat(100);
    let request = json!({"prompt": text, "max_tokens": 2});
    let cold = post(sim.addr(), "/v1/completions", &request).await.json();
    let warm = post(sim.addr(), "/v1/completions", &request).await.json();
    assert_eq!(cold["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let prompt = warm["usage"]["prompt_tokens"].as_u64().unwrap();
    let cached = warm["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(
        cached > prompt - 17 && cached % 16 == 0,
        "{cached} of {prompt}"
    );
    assert_eq!(cold["choices"][0]["text"], warm["choices"][0]["text"]);
    let mut salted = request.clone();
    salted["cache_salt"] = json!("tenant");
    let other = post(sim.addr(), "/v1/completions", &salted).await.json();
    assert_eq!(other["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let mut strict = request.clone();
    strict["cache_hit_threshold"] = json!(1.0);
    let refused = post(sim.addr(), "/v1/completions", &strict).await.json();
    assert_eq!(refused["choices"][0]["finish_reason"], "cache_threshold");
    assert_eq!(refused["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn timing_follows_the_model_and_its_scale() {
    let sim = start(|c| {
        c.engine.latency = Latency::Fixed(FixedLatency {
            ttft: 2_000_000_000,
            itl: 1_000_000_000,
            ..FixedLatency::default()
        });
        c.time_scale = 0.1;
    })
    .await;
    let begin = std::time::Instant::now();
    let answer = post(sim.addr(), "/v1/chat/completions", &hi(true)).await;
    let took = begin.elapsed();
    assert_eq!(answer.status, 200);
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let page = get(sim.addr(), "/metrics").await.text();
    let sum = page
        .lines()
        .find(|l| l.starts_with("vllm:inter_token_latency_seconds_sum"))
        .unwrap();
    let sum: f64 = sum.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((sum - 0.3).abs() < 1e-6, "real seconds on the page: {sum}");
}

#[tokio::test]
async fn batched_profile_serves_over_the_wire() {
    let profile = quorate_sim::find_profile("llama-8b/h100").unwrap();
    let mut config = quorate_sim::SimConfig::with_profile(&profile);
    config.time_scale = 0.01;
    let sim = quorate_sim::Sim::start(config).await.unwrap();
    let request = json!({"prompt": "the word ".repeat(500), "max_tokens": 20});
    let answers = futures_util::future::join_all(
        (0..20).map(|_| post(sim.addr(), "/v1/completions", &request)),
    )
    .await;
    for answer in answers {
        assert_eq!(answer.json()["usage"]["completion_tokens"], 20);
    }
    let load = sim.stats().load;
    assert_eq!((load.running, load.waiting, load.used_blocks), (0, 0, 0));
    assert_eq!(load.generation_tokens, 400);
}

#[tokio::test]
async fn live_settings_change_latency_failures_and_fakes() {
    let sim = start(|_| {}).await;
    let change = json!({"inter-token-latency": "100ms", "failure-injection-rate": 0});
    let shown = post(sim.addr(), "/admin/config", &change).await.json();
    assert_eq!(shown["inter-token-latency"], "100ms");
    let begin = std::time::Instant::now();
    post(sim.addr(), "/v1/chat/completions", &hi(false)).await;
    assert!(begin.elapsed() >= Duration::from_millis(300));

    let change = json!({"failure-injection-rate": 100, "failure-types": ["rate_limit"]});
    post(sim.addr(), "/admin/config", &change).await;
    assert_eq!(
        post(sim.addr(), "/v1/chat/completions", &hi(false))
            .await
            .status,
        429
    );
    post(
        sim.addr(),
        "/admin/config",
        &json!({"failure-injection-rate": 0}),
    )
    .await;
    let forced = [("x-return-error", "418")];
    let forced = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &forced,
        &hi(false).to_string(),
    )
    .await;
    assert_eq!(forced.status, 418);

    post(
        sim.addr(),
        "/admin/config",
        &json!({"fake-metrics": {"waiting-requests": 7, "kv-cache-usage": 0.5}}),
    )
    .await;
    let page = get(sim.addr(), "/metrics").await.text();
    assert!(page.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"sim-model\"} 7.0"));
    assert!(page.contains("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim-model\"} 0.5"));
    post(sim.addr(), "/admin/config", &json!({"fake-metrics": null})).await;
    let page = get(sim.addr(), "/metrics").await.text();
    assert!(page.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"sim-model\"} 0.0"));
}

#[tokio::test]
async fn connections_are_kept_and_http2_is_understood() {
    let sim = start(|_| {}).await;
    let mut stream = TcpStream::connect(sim.addr()).await.unwrap();
    for _ in 0..3 {
        let body = hi(false).to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        while support::answer(&raw).is_err() {
            let mut buffer = [0u8; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the connection was closed");
            raw.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(support::answer(&raw).unwrap().status, 200);
    }
    assert_eq!(sim.stats().connections, 1);

    use http_body_util::{BodyExt, Full};
    let stream = TcpStream::connect(sim.addr()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://sim/v1/chat/completions")
        .body(Full::new(bytes::Bytes::from(hi(true).to_string())))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
}
