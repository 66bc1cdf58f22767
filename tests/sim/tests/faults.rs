//! Each failure on demand, as a client sees it.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::{Faults, FixedLatency, Latency};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use support::{End, call, chunks, eventually, get, post, read_until, send, start};
use tokio::net::TcpStream;

const SILENCE: Duration = Duration::from_millis(400);

fn request(stream: bool) -> String {
    json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "stream": stream})
        .to_string()
}

/// Sends a request with a fault of its own and reads what comes.
async fn struck(fault: &str, stream: bool) -> (Vec<u8>, End) {
    let sim = start(|_| {}).await;
    let mut connection = send(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[("x-sim-fault", fault)],
        &request(stream),
    )
    .await;
    let silent = fault.starts_with("stall") || fault == "hang";
    let patience = if silent {
        SILENCE
    } else {
        Duration::from_secs(20)
    };
    let seen = read_until(&mut connection, patience).await;
    assert_eq!(sim.stats().faulted, 1);
    let healthy = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[],
        &request(stream),
    )
    .await;
    assert_eq!(healthy.status, 200, "only the one request suffers");
    eventually("no block is held", || sim.stats().load.used_blocks == 0).await;
    seen
}

/// Number of events of a stream that was cut off, and whether its body ended.
fn events(raw: &[u8]) -> (usize, bool) {
    let head = raw
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("headers");
    let (chunks, ended) = chunks(&raw[head + 4..]);
    (chunks.len(), ended)
}

#[tokio::test]
async fn hang_before_headers() {
    assert_eq!(struck("hang", true).await, (Vec::new(), End::Silent));
    assert_eq!(struck("stall", false).await, (Vec::new(), End::Silent));
}

#[tokio::test]
async fn reset_and_close_before_headers() {
    assert_eq!(struck("reset", true).await, (Vec::new(), End::Reset));
    assert_eq!(struck("close", false).await, (Vec::new(), End::Closed));
}

#[tokio::test]
async fn streams_break_off_after_their_tokens() {
    let (raw, end) = struck("stall-after=3", true).await;
    assert_eq!(
        (events(&raw), end),
        ((4, false), End::Silent),
        "the role and three tokens"
    );
    let (raw, end) = struck("close-after=3", true).await;
    assert_eq!((events(&raw), end), ((4, false), End::Closed));
    let (raw, end) = struck("reset-after=3", true).await;
    assert_eq!(end, End::Reset);
    // A reset may overtake what was sent before it.
    assert!(raw.is_empty() || !events(&raw).1);
}

#[tokio::test]
async fn whole_answers_break_off_in_their_middle() {
    for (fault, end) in [
        ("stall-after=1", End::Silent),
        ("close-after=1", End::Closed),
    ] {
        let (raw, seen) = struck(fault, false).await;
        assert_eq!(seen, end);
        assert!(String::from_utf8_lossy(&raw).contains("content-length"));
        assert!(
            support::answer(&raw).is_err(),
            "the body is shorter than its length"
        );
    }
}

#[tokio::test]
async fn status_with_probability_and_limit() {
    let sim = start(|_| {}).await;
    sim.set_fault(Faults::parse("status=503,times=2").unwrap());
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(
            call(
                sim.addr(),
                "POST",
                "/v1/chat/completions",
                &[],
                &request(false),
            )
            .await
            .status,
        );
    }
    assert_eq!(seen, [503, 503, 200, 200]);
    sim.set_fault(Faults::parse("status=500,probability=0.5").unwrap());
    let mut failed = 0;
    for _ in 0..60 {
        let status = call(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[],
            &request(false),
        )
        .await
        .status;
        failed += u32::from(status == 500);
    }
    assert!((10..50).contains(&failed), "{failed} of 60");
    assert_eq!(
        get(sim.addr(), "/health").await.status,
        200,
        "health does not suffer"
    );
    sim.set_fault(Faults::parse("status=500,all-paths").unwrap());
    assert_eq!(get(sim.addr(), "/health").await.status, 500);
    assert_eq!(get(sim.addr(), "/metrics").await.status, 500);
    assert_eq!(
        get(sim.addr(), "/sim/stats").await.status,
        200,
        "steering never suffers"
    );
}

#[tokio::test]
async fn slow_headers_and_slow_body() {
    let sim = start(|_| {}).await;
    let begin = Instant::now();
    let slow = [("x-sim-fault", "slow-headers=300ms")];
    let answer = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &slow,
        &request(false),
    )
    .await;
    assert_eq!(answer.status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let plain = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[],
        &request(false),
    )
    .await;
    let rate = plain.body.len() * 2;
    for stream in [false, true] {
        let begin = Instant::now();
        let slow = format!("slow-body={rate}");
        let answer = call(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[("x-sim-fault", &slow)],
            &request(stream),
        )
        .await;
        let least = answer.body.len() as f64 / rate as f64 * 0.7;
        assert!(
            begin.elapsed().as_secs_f64() > least,
            "{} bytes in {:?}",
            answer.body.len(),
            begin.elapsed()
        );
    }
}

#[tokio::test]
async fn lying_health_holds_tokens_back() {
    let sim = start(|_| {}).await;
    let shown = post(sim.addr(), "/sim/fault", &json!({"lying-health": true}))
        .await
        .json();
    assert_eq!(shown, json!({"lying-health": true}));
    assert_eq!(get(sim.addr(), "/sim/fault").await.json(), shown);
    let mut stream = send(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[],
        &request(true),
    )
    .await;
    let (raw, end) = read_until(&mut stream, SILENCE).await;
    assert_eq!(
        (events(&raw), end),
        ((0, false), End::Silent),
        "headers and nothing more"
    );
    assert_eq!(get(sim.addr(), "/health").await.status, 200);
    assert_eq!(post(sim.addr(), "/sim/fault", &json!({})).await.status, 200);
    let (rest, end) = read_until(&mut stream, Duration::from_secs(10)).await;
    assert_eq!(end, End::Closed);
    assert!(
        rest.windows(6).any(|w| w == b"[DONE]"),
        "it goes on where it stood"
    );
}

#[tokio::test]
async fn unhealthy_and_starting() {
    let sim = start(|_| {}).await;
    sim.set_fault(Faults::parse("unhealthy").unwrap());
    assert_eq!(get(sim.addr(), "/health").await.status, 503);
    assert_eq!(
        call(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[],
            &request(false)
        )
        .await
        .status,
        200
    );

    let sim = start(|c| c.startup = Duration::from_secs(3600)).await;
    assert_eq!(get(sim.addr(), "/health").await.status, 503);
    assert_eq!(
        call(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[],
            &request(false)
        )
        .await
        .status,
        503
    );
}

#[tokio::test]
async fn crash_resets_everything_and_comes_back_cold() {
    let sim = start(|c| {
        c.engine.latency = Latency::Fixed(FixedLatency {
            itl: 20_000_000,
            ..FixedLatency::default()
        });
    })
    .await;
    let long =
        json!({"prompt": "word ".repeat(200), "max_tokens": 1000, "stream": true}).to_string();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(send(sim.addr(), "POST", "/v1/completions", &[], &long).await);
    }
    let idle = TcpStream::connect(sim.addr()).await.unwrap();
    open.push(idle);
    eventually("they run", || {
        sim.stats().load.running == 3 && sim.stats().open_connections == 4
    })
    .await;
    sim.set_fault(Faults::parse("crash,restart-after=2s").unwrap());
    for stream in &mut open {
        assert_eq!(
            read_until(stream, Duration::from_secs(10)).await.1,
            End::Reset
        );
    }
    assert!(
        TcpStream::connect(sim.addr()).await.is_err(),
        "nobody listens"
    );
    eventually("it listens again", || {
        std::net::TcpStream::connect(sim.addr()).is_ok()
    })
    .await;
    let stats = sim.stats();
    assert_eq!(
        (stats.crashes, stats.load.running, stats.load.cached_blocks),
        (1, 0, 0)
    );
    assert_eq!(
        call(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[],
            &request(false)
        )
        .await
        .status,
        200
    );
    let page: String = get(sim.addr(), "/metrics").await.text();
    assert!(
        page.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"sim-model\"} 20.0"),
        "counters restart"
    );
}

#[tokio::test]
async fn a_request_can_crash_the_server_mid_stream() {
    let sim = start(|_| {}).await;
    let fault = [("x-sim-fault", "crash-after=2")];
    let mut stream = send(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &fault,
        &request(true),
    )
    .await;
    assert_eq!(
        read_until(&mut stream, Duration::from_secs(10)).await.1,
        End::Reset
    );
    sim.crashed().await;
    assert!(TcpStream::connect(sim.addr()).await.is_err());
}

#[tokio::test]
async fn a_bad_fault_header_is_an_error() {
    let sim = start(|_| {}).await;
    let answer = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[("x-sim-fault", "explode")],
        &request(false),
    )
    .await;
    assert_eq!(answer.status, 400);
    let error: Value = answer.json();
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("explode")
    );
}
