// long: one scenario for each behaviour of a client and of a server, all on the same small server.
//! The HTTP load generator against real sockets: what it counts is what happened.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod server;

use http::Response;
use server::{DONE, answer, bench, full, raw, read_request, serve, stream, token};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_closed_loop_sends_exactly_what_it_is_asked_to() {
    let bodies = Arc::new(Mutex::new(BTreeSet::new()));
    let all = bodies.clone();
    let (a, seen_a) = serve(move |seen| {
        let v: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        all.lock()
            .unwrap()
            .insert(v["messages"][0]["content"].as_str().unwrap().to_owned());
        assert_eq!(seen.head.uri.path(), "/v1/chat/completions");
        assert_eq!(
            seen.head.headers["content-length"].to_str().unwrap(),
            seen.body.len().to_string()
        );
        assert_eq!(seen.head.headers["x-test"], "yes");
        assert_eq!(v["model"], "m");
        async { full("{\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":3}}") }
    });
    let (b, seen_b) = serve(|_| async { full("{}") });
    let (ua, ub) = (format!("http://{a}"), format!("http://{b}/"));
    let args = [
        "--url",
        &ua,
        "--url",
        &ub,
        "-n",
        "200",
        "-c",
        "6",
        "--threads",
        "2",
        "--model",
        "m",
        "-H",
        "x-test: yes",
    ];
    let r = bench(&args).unwrap();
    let (a, b) = (seen_a.load(Ordering::SeqCst), seen_b.load(Ordering::SeqCst));
    assert_eq!((r.requests, r.errors, a + b), (200, 0, 200));
    assert_eq!((r.urls[0].requests, r.urls[1].requests), (a, b));
    assert!(a > 0 && b > 0);
    assert_eq!(
        bodies.lock().unwrap().len() as u64,
        a,
        "every prompt is another one"
    );
    assert_eq!(r.statuses, BTreeMap::from([(200, 200)]));
    assert_eq!(
        (r.latency_us.count, r.service_us.count, r.connections_opened),
        (200, 200, 6)
    );
    assert!(r.max_in_flight <= 6 && !r.open_loop);
    let usage = r.usage.clone().unwrap();
    assert_eq!(
        (usage.answers, usage.prompt_tokens, usage.completion_tokens),
        (a, 10 * a, 3 * a)
    );
    assert_eq!(r.tokens, 3 * a);
    let report = quorate_bench::Report::Http(Box::new(r));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&json["bench"], &json["statuses"]["200"]),
        (&"http".into(), &200.into())
    );
    assert!(report.to_string().contains("200 ok, 0 failed"), "{report}");
}

#[test]
fn quantiles_are_those_of_the_answers() {
    let (address, _) = serve(|seen| async move {
        if matches!(seen.number % 50, 10 | 20 | 30) {
            tokio::time::sleep(300 * MS).await;
        }
        full("{}")
    });
    let r = bench(&[
        "--url",
        &format!("http://{address}"),
        "-n",
        "100",
        "-c",
        "1",
    ])
    .unwrap();
    let q = r.latency_us;
    assert_eq!(q.count, 100);
    assert!(q.p50 < 300e3 && q.p90 < 300e3, "{q:?}");
    assert!(q.p95 >= 299e3 && q.p99 >= 299e3 && q.max >= q.p99, "{q:?}");
    assert!(r.seconds >= 1.8, "six answers of 300 ms: {}", r.seconds);
}

#[test]
fn a_window_is_as_long_as_asked_and_warm_up_does_not_count() {
    let (address, seen) = serve(|_| async { full("{}") });
    let url = format!("http://{address}");
    let r = bench(&[
        "--url",
        &url,
        "-c",
        "2",
        "--warmup",
        "300ms",
        "--duration",
        "700ms",
    ])
    .unwrap();
    assert!((r.seconds - 0.7).abs() < 0.01, "{}", r.seconds);
    assert!(r.requests > 0 && r.requests < seen.load(Ordering::SeqCst));
    let rate = r.requests as f64 / r.seconds;
    assert!(
        (r.requests_per_s / rate - 1.0).abs() < 0.2,
        "{} {rate}",
        r.requests_per_s
    );
}

/// Three requests to a server that answers with these bytes: all fail in this class.
fn fails(bytes: &'static [u8], close: bool, stream: bool, class: &str) {
    let url = format!("http://{}", answer(bytes, close));
    let mut args = vec!["--url", &url, "-n", "3", "-c", "1", "--timeout", "5s"];
    if stream {
        args.push("--stream");
    }
    let r = bench(&args).unwrap();
    assert_eq!((r.requests, r.errors), (0, 3), "{class}: {r:?}");
    assert_eq!(
        r.error_classes,
        BTreeMap::from([(class.to_owned(), 3)]),
        "{:?}",
        r.first_error
    );
    assert!(
        r.first_error.as_ref().unwrap().starts_with(class),
        "{:?}",
        r.first_error
    );
    assert_eq!(r.urls[0].error_classes, r.error_classes);
    assert_eq!(r.latency_us.count, 0, "failures are no latencies");
}

#[test]
fn failures_are_told_apart() {
    fails(b"", true, false, "reset");
    fails(b"HTTP/1.1 200 OK\r\ncontent-le", true, false, "reset");
    fails(
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        true,
        false,
        "truncated",
    );
    fails(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        true,
        false,
        "truncated",
    );
    fails(b"SSH-2.0-OpenSSH_9.9\r\n\r\n", true, false, "protocol");
    fails(
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy",
        false,
        false,
        "status_503",
    );
    fails(
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        true,
        true,
        "status_404",
    );
}

#[test]
fn failures_of_streams_are_told_apart() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let whole = |body: &str| -> &'static [u8] {
        format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len())
            .leak()
            .as_bytes()
    };
    fails(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        false,
        true,
        "bad_sse",
    );
    fails(whole("<html>no stream</html>\n"), false, true, "bad_sse");
    fails(whole(&token("a")), false, true, "unfinished_stream");
    // An event whose empty line never comes was not delivered.
    fails(whole("data: [DONE]\n"), false, true, "unfinished_stream");
    fails(
        whole(&format!(
            "{}data: {{\"error\":{{\"code\":500}}}}\n\n{DONE}",
            token("a")
        )),
        false,
        true,
        "stream_error",
    );
    let cut = format!(
        "{HEAD}transfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n",
        token("a").len(),
        token("a")
    );
    fails(cut.leak().as_bytes(), true, true, "truncated");
}

#[test]
fn refused_and_silent_servers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let r = bench(&["--url", &url, "-n", "3", "-c", "1"]).unwrap();
    assert_eq!(r.error_classes, BTreeMap::from([("connect".to_owned(), 3)]));

    let silent = raw(|mut stream| {
        read_request(&mut stream);
        // Until the client has gone.
        read_request(&mut stream);
    });
    let r = bench(&[
        "--url",
        &format!("http://{silent}"),
        "-n",
        "2",
        "-c",
        "1",
        "--timeout",
        "100ms",
    ])
    .unwrap();
    assert_eq!(r.error_classes, BTreeMap::from([("timeout".to_owned(), 2)]));
    assert!(r.seconds >= 0.2);
}

#[test]
fn a_server_that_closes_is_connected_to_again() {
    let bytes = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    let r = bench(&[
        "--url",
        &format!("http://{}", answer(bytes, true)),
        "-n",
        "20",
        "-c",
        "2",
    ])
    .unwrap();
    assert_eq!((r.requests, r.errors), (20, 0), "{:?}", r.first_error);
    assert!(r.connections_opened >= 20, "{}", r.connections_opened);
}

#[test]
fn streams_are_read_whatever_the_cuts() {
    let mut body = String::new();
    for part in [
        ": ping\r\n\r\n",
        &token(""),
        &token("caf\u{e9}"),
        &token("b"),
        DONE,
    ] {
        body += &format!("{:x}\r\n{part}\r\n", part.len());
    }
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n"
    );
    let cuts = answer.len();
    let address = raw(move |mut stream| {
        for cut in 0..cuts {
            if !read_request(&mut stream) {
                return;
            }
            let (a, b) = answer.as_bytes().split_at(cut);
            stream.write_all(a).unwrap();
            // So that the parts usually come in different reads; nothing depends on it.
            thread::sleep(MS);
            stream.write_all(b).unwrap();
        }
    });
    let n = cuts.to_string();
    let r = bench(&[
        "--url",
        &format!("http://{address}"),
        "-n",
        &n,
        "-c",
        "1",
        "--stream",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors),
        (cuts as u64, 0),
        "{:?}",
        r.first_error
    );
    assert_eq!(
        (r.tokens, r.ttft_us.count, r.itl_us.count),
        (2 * cuts as u64, cuts as u64, cuts as u64)
    );
    assert_eq!(r.connections_opened, 1);
}

#[test]
fn tokens_are_timed_when_they_come() {
    let (address, _) = serve(|_| async {
        let mut pieces = vec![(Duration::ZERO, token("")), (150 * MS, token("a"))];
        pieces.extend((0..4).map(|_| (30 * MS, token("b"))));
        pieces.push((Duration::ZERO, token("c") + &token("d") + DONE));
        stream(pieces)
    });
    let r = bench(&[
        "--url",
        &format!("http://{address}"),
        "-n",
        "4",
        "-c",
        "2",
        "--stream",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors, r.tokens),
        (4, 0, 28),
        "{:?}",
        r.first_error
    );
    assert_eq!((r.ttft_us.count, r.itl_us.count), (4, 24));
    // The role chunk carries no token: the first one comes after the pause.
    assert!(r.ttft_us.p50 >= 149e3, "{:?}", r.ttft_us);
    assert!(r.latency_us.p50 >= 269e3, "{:?}", r.latency_us);
    // Gaps add up to the time from the first to the last token: 120 ms for each stream, less
    // what a busy machine delays the first of them.
    assert!(r.itl_us.mean * 24.0 >= 4.0 * 60e3, "{:?}", r.itl_us);
    assert!(r.itl_us.p50 < r.ttft_us.p50);
}

/// A server that answers at once, but holds every answer for `stall` from its 20th request on.
fn stalling(stall: Duration) -> String {
    let until = Arc::new(Mutex::new(None::<Instant>));
    let (address, _) = serve(move |seen| {
        let until = until.clone();
        async move {
            if seen.number == 20 {
                *until.lock().unwrap() = Some(Instant::now() + stall);
            }
            let left = until
                .lock()
                .unwrap()
                .map(|t| t.saturating_duration_since(Instant::now()));
            tokio::time::sleep(left.unwrap_or_default()).await;
            full("{}")
        }
    });
    format!("http://{address}")
}

#[test]
fn an_open_loop_sees_a_stall_in_every_request_that_it_delayed() {
    let url = stalling(600 * MS);
    let args = [
        "--url",
        &url,
        "--rate",
        "100",
        "--warmup",
        "0",
        "--duration",
        "2s",
        "--max-in-flight",
        "1",
    ];
    let r = bench(&args).unwrap();
    assert_eq!(
        (r.requests, r.errors, r.open_loop),
        (200, 0, true),
        "{:?}",
        r.first_error
    );
    // One request was slow; sixty should have started meanwhile and waited 300 ms on average.
    assert!(r.delayed >= 50, "{}", r.delayed);
    assert!(r.latency_us.p90 >= 250e3, "{:?}", r.latency_us);
    assert!(r.service_us.p90 < 200e3, "{:?}", r.service_us);
    assert!(r.latency_us.mean > r.service_us.mean + 50e3);
    assert_eq!(r.max_in_flight, 1);

    // The closed loop misses it: one slow request among many.
    let r = bench(&["--url", &stalling(600 * MS), "-n", "200", "-c", "1"]).unwrap();
    assert!(
        r.latency_us.p90 < 200e3 && r.latency_us.max >= 599e3,
        "{:?}",
        r.latency_us
    );
}

#[test]
fn an_open_loop_keeps_its_rate_while_the_server_stalls() {
    let url = stalling(500 * MS);
    let r = bench(&[
        "--url",
        &url,
        "--rate",
        "100",
        "--warmup",
        "0",
        "--duration",
        "1500ms",
        "-c",
        "2",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors, r.delayed),
        (150, 0, 0),
        "{:?}",
        r.first_error
    );
    assert!(r.max_in_flight >= 30, "{}", r.max_in_flight);
    assert!(
        r.service_us.p90 >= 200e3,
        "now the waiting is the server's: {:?}",
        r.service_us
    );
    assert_eq!(r.generator_lag_us.unwrap().count, 150);
    assert_eq!(r.seconds, 1.5);
}

#[test]
fn poisson_starts_and_several_threads() {
    let (address, seen) = serve(|_| async { full("{}") });
    let url = format!("http://{address}");
    let args = [
        "--url",
        &url,
        "--rate",
        "400",
        "--arrival",
        "poisson",
        "-n",
        "300",
        "--threads",
        "2",
        "-c",
        "2",
    ];
    let r = bench(&args).unwrap();
    assert_eq!(
        (r.requests, r.errors, seen.load(Ordering::SeqCst)),
        (300, 0, 300)
    );
    assert!(r.seconds > 0.4, "{}", r.seconds);
}

#[test]
fn a_trace_is_replayed_at_its_own_times() {
    let mut trace = tempfile::NamedTempFile::new().unwrap();
    for i in 0..10u64 {
        let (at, out) = (1000 + 100 * i, 20 + i);
        writeln!(trace, "{{\"timestamp\":{at},\"input_length\":600,\"output_length\":{out},\"hash_ids\":[0,{i}]}}").unwrap();
    }
    let asked = Arc::new(Mutex::new(BTreeMap::new()));
    let all = asked.clone();
    let (address, _) = serve(move |seen| {
        let v: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let prompt = v["messages"][0]["content"].as_str().unwrap().to_owned();
        all.lock()
            .unwrap()
            .insert(v["max_tokens"].as_u64().unwrap(), prompt);
        async { full("{}") }
    });
    let path = trace.path().to_str().unwrap();
    let r = bench(&[
        "--url",
        &format!("http://{address}"),
        "--trace",
        path,
        "--trace-speed",
        "2",
    ])
    .unwrap();
    assert_eq!((r.requests, r.errors), (10, 0));
    assert!(
        r.seconds >= 0.45,
        "900 ms at twice the speed: {}",
        r.seconds
    );
    let asked = asked.lock().unwrap();
    assert_eq!(
        asked.keys().copied().collect::<Vec<_>>(),
        (20..30).collect::<Vec<_>>()
    );
    let prompts: Vec<_> = asked.values().collect();
    assert!(
        prompts
            .iter()
            .all(|p| p.len() == 2400 && p[..2048] == prompts[0][..2048])
    );
    assert_eq!(prompts.iter().collect::<BTreeSet<_>>().len(), 10);
}

#[test]
fn hanging_up_after_some_tokens() {
    let aborted = Arc::new(AtomicU64::new(0));
    let count = aborted.clone();
    let address = raw(move |mut stream| {
        read_request(&mut stream);
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let chunk = format!("{:x}\r\n{}\r\n", token("a").len(), token("a"));
        // An endless stream: only the client can end it.
        while stream.write_all(chunk.as_bytes()).is_ok() {
            thread::sleep(MS);
        }
        count.fetch_add(1, Ordering::SeqCst);
    });
    let url = format!("http://{address}");
    let r = bench(&[
        "--url",
        &url,
        "-n",
        "5",
        "-c",
        "1",
        "--stream",
        "--disconnect-after",
        "3",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors, r.disconnected),
        (0, 0, 5),
        "{:?}",
        r.first_error
    );
    assert!(r.tokens >= 15 && r.connections_opened == 5, "{r:?}");
    let patience = Instant::now() + Duration::from_secs(20);
    while aborted.load(Ordering::SeqCst) < 5 {
        assert!(Instant::now() < patience, "the server never noticed");
        thread::sleep(MS);
    }
}

#[test]
fn a_slow_reader_reads_slowly() {
    let (address, _) = serve(|_| async { full(vec![b'x'; 64 * 1024]) });
    let url = format!("http://{address}");
    let r = bench(&[
        "--url",
        &url,
        "-n",
        "2",
        "-c",
        "2",
        "--slow-reader",
        "131072",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors, r.bytes_in),
        (2, 0, 2 * 64 * 1024),
        "{:?}",
        r.first_error
    );
    assert!(r.service_us.p50 >= 499e3, "{:?}", r.service_us);
}

#[test]
fn a_slow_reader_is_felt_by_the_server() {
    const WHOLE: usize = 64 << 20;
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let address = raw(move |mut stream| {
        read_request(&mut stream);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {WHOLE}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let piece = vec![b'x'; 64 * 1024];
        while stream.write_all(&piece).is_ok() {
            count.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
    });
    let url = format!("http://{address}");
    let r = bench(&[
        "--url",
        &url,
        "-n",
        "1",
        "-c",
        "1",
        "--slow-reader",
        "1000",
        "--timeout",
        "700ms",
    ])
    .unwrap();
    assert_eq!(r.error_classes, BTreeMap::from([("timeout".to_owned(), 1)]));
    // What fits into the kernel's buffers (4 MiB at most by default) and no more.
    let written = written.load(Ordering::SeqCst);
    assert!(written < 16 << 20, "{written}");
}

#[test]
fn http2_shares_connections() {
    let (address, _) = serve(|seen| async move {
        let mut response = full("{}");
        if seen.head.version != http::Version::HTTP_2 || seen.head.uri.authority().is_none() {
            *response.status_mut() = http::StatusCode::BAD_REQUEST;
        }
        response
    });
    let url = format!("http://{address}");
    let r = bench(&[
        "--url",
        &url,
        "-n",
        "100",
        "-c",
        "2",
        "--http2",
        "--streams",
        "4",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors, r.connections_opened),
        (100, 0, 2),
        "{:?}",
        r.first_error
    );

    let (address, _) = serve(|_| async {
        stream(vec![
            (Duration::ZERO, token("a")),
            (5 * MS, token("b") + DONE),
        ])
    });
    let url = format!("http://{address}");
    let r = bench(&[
        "--url",
        &url,
        "-n",
        "10",
        "-c",
        "1",
        "--http2",
        "--streams",
        "3",
        "--stream",
    ])
    .unwrap();
    assert_eq!(
        (r.requests, r.errors, r.tokens),
        (10, 0, 20),
        "{:?}",
        r.first_error
    );
}

#[test]
fn other_apis_and_paths() {
    let (address, _) = serve(|seen| async move {
        let line = format!("{} {}", seen.head.method, seen.head.uri.path());
        let ok = line == "GET /base/v1/models" || line == "POST /base/other";
        let mut response: Response<server::Body> = full("{}");
        *response.status_mut() = if ok {
            http::StatusCode::OK
        } else {
            http::StatusCode::NOT_FOUND
        };
        response
    });
    let url = format!("http://{address}/base");
    let r = bench(&["--url", &url, "-n", "3", "--api", "models"]).unwrap();
    assert_eq!((r.requests, r.errors), (3, 0), "{:?}", r.first_error);
    let r = bench(&[
        "--url",
        &url,
        "-n",
        "3",
        "--api",
        "embeddings",
        "--path",
        "/other",
    ])
    .unwrap();
    assert_eq!((r.requests, r.errors), (3, 0), "{:?}", r.first_error);
}

#[test]
fn processes_are_watched() {
    let (address, seen) = serve(|_| async { full("{}") });
    let (url, own) = (format!("http://{address}"), std::process::id().to_string());
    let r = bench(&["--url", &url, "-n", "50", "--cpu-pid", &own]).unwrap();
    let cpu = r.cpu.unwrap();
    assert_eq!(cpu.processes.len(), 1);
    assert!(cpu.processes[0].rss_after > 0 && !cpu.processes[0].gone);
    assert_eq!(cpu.us_per_request, Some(cpu.total_s * 1e6 / 50.0));
    assert_eq!(cpu.us_per_token, None);
    let before = seen.load(Ordering::SeqCst);
    assert!(bench(&["--url", &url, "-n", "5", "--cpu-pid", "4194305"]).is_err());
    assert_eq!(
        seen.load(Ordering::SeqCst),
        before,
        "a wrong argument sends nothing"
    );
}

#[test]
fn wrong_arguments_are_errors() {
    let url = ["--url", "http://127.0.0.1:1"];
    for wrong in [
        &["--rate", "0"][..],
        &["--rate", "nan"],
        &["--arrival", "poisson"],
        &["--duration", "0"],
        &["--timeout", "0"],
        &["-c", "0"],
        &["--rate", "5", "-c", "10", "--max-in-flight", "5"],
        &["--api", "embeddings", "--stream"],
        &["--disconnect-after", "3"],
        &["--streams", "3"],
        &["--path", "no-slash"],
        &["--path", "/with space"],
        &["--trace", "/no/such/file"],
        &["--trace-speed", "2"],
        &["-H", "nocolon"],
        &["--shared-prefix", "1:2"],
        &["--url", "https://a"],
        &["--url", "http://no-such-host.invalid"],
    ] {
        let args = [&url, wrong].concat();
        assert!(bench(&args).is_err(), "{wrong:?}");
    }
}

#[test]
fn engines_say_what_they_had_cached() {
    let asked = Arc::new(AtomicU64::new(0));
    let pages = asked.clone();
    let (a, _) = serve(move |seen| {
        let page = if seen.head.uri.path() == "/metrics" {
            let n = pages.fetch_add(1, Ordering::SeqCst);
            format!(
                "vllm:prefix_cache_queries_total{{e=\"0\"}} {}\nvllm:prefix_cache_hits_total{{e=\"0\"}} {}\n",
                100 + 60 * n,
                40 + 15 * n
            )
        } else {
            "{}".to_owned()
        };
        async move { full(page) }
    });
    let url = format!("http://{a}");
    let r = bench(&["--url", &url, "-n", "5", "--engine", &url]).unwrap();
    let engines = r.engines.unwrap();
    assert_eq!((r.requests, asked.load(Ordering::SeqCst)), (5, 2));
    assert_eq!(
        (engines.engines, engines.prefix_queries, engines.hit_ratio),
        (1, 60.0, Some(0.25))
    );
    // One that says nothing of it is told before the first request.
    let (b, seen) = serve(|_| async { full("up 1\n") });
    let wrong = bench(&["--url", &url, "-n", "5", "--engine", &format!("http://{b}")]);
    assert!(format!("{:#}", wrong.unwrap_err()).contains("prefix cache"));
    assert_eq!(
        (seen.load(Ordering::SeqCst), asked.load(Ordering::SeqCst)),
        (1, 2)
    );
}
