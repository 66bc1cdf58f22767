//! The metrics page as a scraper reads it, in each dialect, and the command's many servers.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use clap::Parser;
use quorate_sim::{Dialect, FixedLatency, Latency, LoraModule, SimArgs};
use serde_json::json;
use std::collections::HashMap;
use std::net::SocketAddr;
use support::{eventually, get, post, send, start};

/// Every series with its value.
fn parse(page: &str) -> HashMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn vllm_page_counts_what_happened() {
    let sim = start(|c| c.rank = 2).await;
    let text = "the word ".repeat(40);
    for _ in 0..2 {
        post(
            sim.addr(),
            "/v1/completions",
            &json!({"prompt": text, "max_tokens": 8}),
        )
        .await;
    }
    let answer = get(sim.addr(), "/metrics").await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let page = parse(&answer.text());
    let labels = "engine=\"2\",model_name=\"sim-model\"";
    let at = |name: &str| {
        page.get(&format!("vllm:{name}{{{labels}}}"))
            .copied()
            .unwrap_or_else(|| panic!("{name}"))
    };
    let prompt = 82.0;
    assert_eq!(at("prompt_tokens_total"), 2.0 * prompt);
    assert_eq!(at("generation_tokens_total"), 16.0);
    assert_eq!(at("prefix_cache_queries_total"), 2.0 * prompt);
    assert_eq!(at("prefix_cache_hits_total"), 80.0);
    assert_eq!(at("num_requests_running"), 0.0);
    assert_eq!(at("kv_cache_usage_perc"), 0.0);
    assert_eq!(at("time_to_first_token_seconds_count"), 2.0);
    assert_eq!(at("inter_token_latency_seconds_count"), 14.0);
    assert_eq!(at("e2e_request_latency_seconds_count"), 2.0);
    assert_eq!(at("request_prompt_tokens_sum"), 2.0 * prompt);
    let done = "vllm:request_success_total{engine=\"2\",finished_reason=\"length\",model_name=\"sim-model\"}";
    assert_eq!(page[done], 2.0);
    assert!(
        page.keys()
            .any(|k| k.starts_with("vllm:cache_config_info{block_size=\"16\""))
    );
}

#[tokio::test]
async fn gauges_move_in_every_dialect() {
    for (dialect, path, running, waiting) in [
        (
            Dialect::Vllm,
            "/metrics",
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
        ),
        (
            Dialect::Sglang,
            "/metrics",
            "sglang:num_running_reqs",
            "sglang:num_queue_reqs",
        ),
        (
            Dialect::Trtllm,
            "/prometheus/metrics",
            "trtllm_num_requests_running",
            "trtllm_num_requests_waiting",
        ),
        (
            Dialect::Triton,
            "/metrics",
            "request_type=\"scheduled\"",
            "request_type=\"waiting\"",
        ),
    ] {
        let sim = start(|c| {
            c.dialect = dialect;
            c.engine.max_num_seqs = 2;
            c.engine.latency = Latency::Fixed(FixedLatency {
                ttft: 3_600_000_000_000,
                ..FixedLatency::default()
            });
        })
        .await;
        let body = json!({"prompt": "hello", "max_tokens": 8}).to_string();
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(send(sim.addr(), "POST", "/v1/completions", &[], &body).await);
        }
        eventually("two run, one waits", || {
            sim.stats().load.running == 2 && sim.stats().load.waiting == 1
        })
        .await;
        let page = parse(&get(sim.addr(), path).await.text());
        let at = |name: &str| {
            *page
                .iter()
                .find(|(series, _)| series.contains(name))
                .unwrap_or_else(|| panic!("{name}"))
                .1
        };
        assert_eq!((at(running), at(waiting)), (2.0, 1.0), "{dialect:?}");
    }
}

#[tokio::test]
async fn adapters_in_use_are_listed() {
    let sim = start(|c| {
        c.loras = ["x", "y"]
            .map(|n| LoraModule {
                name: n.into(),
                path: "/p".into(),
                base_model: None,
            })
            .into();
        c.engine.latency = Latency::Fixed(FixedLatency {
            ttft: 3_600_000_000_000,
            ..FixedLatency::default()
        });
    })
    .await;
    let mut open = Vec::new();
    for model in ["x", "y"] {
        let body = json!({"model": model, "prompt": "hello"}).to_string();
        open.push(send(sim.addr(), "POST", "/v1/completions", &[], &body).await);
        eventually("it is in", || {
            sim.stats().load.running + sim.stats().load.waiting == open.len()
        })
        .await;
    }
    let page = get(sim.addr(), "/metrics").await.text();
    let line = "vllm:lora_requests_info{max_lora=\"1\",running_lora_adapters=\"x\",waiting_lora_adapters=\"y\"}";
    assert!(page.contains(line), "one adapter fits a batch");
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    sim: SimArgs,
}

/// A port that was free a moment ago, with free ones after it.
fn free_ports(count: u16) -> u16 {
    (20_000..30_000)
        .step_by(7)
        .find(|port| {
            (*port..port + count).all(|p| std::net::TcpListener::bind(("127.0.0.1", p)).is_ok())
        })
        .unwrap()
}

#[tokio::test]
async fn the_command_runs_several_servers_and_stops_them() {
    let port = free_ports(3);
    let listen = format!("127.0.0.1:{port}");
    let cli = Cli::parse_from(["sim", "--listen", &listen, "--count", "3", "--threads", "2"]);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(quorate_sim::run(cli.sim, async {
        let _ = stopped.await;
    }));
    let addrs: Vec<SocketAddr> = (port..port + 3)
        .map(|p| ([127, 0, 0, 1], p).into())
        .collect();
    eventually("all listen", || {
        addrs
            .iter()
            .all(|addr| std::net::TcpStream::connect(addr).is_ok())
    })
    .await;
    for addr in &addrs {
        assert_eq!(
            post(*addr, "/v1/completions", &json!({"prompt": "hello"}))
                .await
                .status,
            200
        );
    }
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert!(std::net::TcpStream::connect(addrs[0]).is_err());
}

#[tokio::test]
async fn the_command_fails_when_a_server_crashes_or_cannot_start() {
    let port = free_ports(1);
    let listen = format!("127.0.0.1:{port}");
    let cli = Cli::parse_from(["sim", "--listen", &listen]);
    let running = tokio::spawn(quorate_sim::run(cli.sim, std::future::pending()));
    let addr: SocketAddr = listen.parse().unwrap();
    eventually("it listens", || std::net::TcpStream::connect(addr).is_ok()).await;
    let taken = quorate_sim::run(
        Cli::parse_from(["sim", "--listen", &listen]).sim,
        std::future::pending(),
    );
    assert!(
        taken
            .await
            .unwrap_err()
            .to_string()
            .contains("cannot listen")
    );
    let _open = send(addr, "POST", "/sim/fault", &[], r#"{"crash": true}"#).await;
    let error = running.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("crashed"), "{error}");
}
