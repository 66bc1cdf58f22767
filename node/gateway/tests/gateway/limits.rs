//! Limits in length, number and time.

use crate::support::*;
use quorate_gateway::{GatewayConfig, HumanDuration};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;

async fn quick() -> Engine {
    Engine::start(|_| async { json("{}") }).await
}

/// An engine that takes requests and never says a word.
async fn mute() -> Engine {
    Engine::raw(|mut stream| async move {
        let mut buffer = vec![0; 4096];
        while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
    })
    .await
}

#[tokio::test]
async fn long_bodies_are_refused_and_the_client_sees_why() {
    let engine = quick().await;
    let front = Front::before(
        GatewayConfig {
            max_body_bytes: 1000,
            ..config()
        },
        &[&engine],
    );
    let exact = format!(r#"{{"model":"m","p":"{}"}}"#, "x".repeat(1000 - 20));
    assert_eq!(exact.len(), 1000);
    assert_eq!(front.post(CHAT_PATH, &exact).await.status, 200);
    // Announced, and sent although it is refused.
    let big = "x".repeat(1 << 20);
    let reply = front.post(CHAT_PATH, &big).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (413, Some("request_too_large"))
    );
    // In chunks, so that it shows only on the way.
    let mut client = front.connect().await;
    client
        .send(b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for _ in 0..3 {
        client
            .send(format!("190\r\n{}\r\n", "y".repeat(0x190)).as_bytes())
            .await;
    }
    assert_eq!(client.reply().await.status, 413);
    assert_eq!(engine.requests(), 1);
}

#[tokio::test]
async fn long_heads_are_refused() {
    let engine = quick().await;
    let front = Front::before(
        GatewayConfig {
            max_header_bytes: 8192,
            max_headers: 20,
            ..config()
        },
        &[&engine],
    );
    for extra in [
        format!("x-long: {}\r\n", "a".repeat(9000)),
        (0..30).map(|i| format!("x-{i}: 1\r\n")).collect(),
    ] {
        let mut client = front.connect().await;
        client
            .send(format!("GET /health HTTP/1.1\r\nhost: h\r\n{extra}\r\n").as_bytes())
            .await;
        assert_eq!(client.head().await.0, 431);
    }
    let mut client = front.connect().await;
    let fits = format!(
        "GET /health HTTP/1.1\r\nhost: h\r\nx-long: {}\r\n\r\n",
        "a".repeat(7000)
    );
    client.send(fits.as_bytes()).await;
    assert_eq!(client.head().await.0, 200);
}

#[tokio::test]
async fn slow_heads_slow_bodies_and_idlers_are_closed() {
    let engine = quick().await;
    let limits = GatewayConfig {
        header_timeout: HumanDuration::millis(300),
        idle_timeout: HumanDuration::millis(900),
        body_timeout: HumanDuration::millis(300),
        body_min_rate: 1_000_000,
        ..config()
    };
    let front = Front::before(limits, &[&engine]);
    // A head that never ends, of either protocol or undecided.
    for begin in [
        &b"POST /v1/chat/completions HTTP/1.1\r\nhost:"[..],
        b"PRI * HT",
        b"P",
    ] {
        let mut client = front.connect().await;
        client.send(begin).await;
        assert!(client.is_closed().await);
    }
    // A body that stops.
    let mut client = front.connect().await;
    client
        .send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{")
        .await;
    assert_eq!(client.reply().await.status, 408);
    // Nothing at all, and nothing more after an answer: closed, but not before the idle timeout.
    let began = Instant::now();
    let mut silent = front.connect().await;
    let mut once = front.connect().await;
    once.post(CHAT_PATH, CHAT).await;
    assert_eq!(once.reply().await.status, 200);
    assert!(silent.is_closed().await && once.is_closed().await);
    assert!(began.elapsed() >= Duration::from_millis(850));
    eventually("all connections are counted out", || {
        front.handle.connections() == 0
    })
    .await;
}

#[tokio::test]
async fn a_long_answer_outlives_the_idle_and_header_timeouts() {
    let engine = Engine::start(|_| async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        json("{}")
    })
    .await;
    let limits = GatewayConfig {
        header_timeout: HumanDuration::millis(200),
        idle_timeout: HumanDuration::millis(200),
        ..config()
    };
    let front = Front::before(limits, &[&engine]);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
}

#[tokio::test]
async fn an_engine_that_never_answers_is_a_504_and_not_asked_again() {
    let (a, b) = (mute().await, mute().await);
    let limits = GatewayConfig {
        first_byte_timeout: HumanDuration::millis(200),
        ..config()
    };
    let front = Front::before(limits, &[&a, &b]);
    let reply = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (504, Some("upstream_timeout"))
    );
    assert_eq!(a.connections() + b.connections(), 1);
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn the_total_timeout_covers_waiting_and_streaming() {
    let engine = mute().await;
    let limits = GatewayConfig {
        total_timeout: HumanDuration::millis(300),
        ..config()
    };
    let front = Front::before(limits.clone(), &[&engine]);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 504);
    let endless = Engine::start(|_| async {
        let (sender, response) = events();
        tokio::spawn(async move {
            while sender.send(Ok("data: {}\n\n".into())).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        response
    })
    .await;
    let front = Front::before(limits, &[&endless]);
    let reply = front.post(CHAT_PATH, CHAT_STREAM).await;
    assert!(reply.text().contains("longer than the time limit"));
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn connecting_is_bounded_in_time() {
    // A listener that accepts nothing, its queue full: further handshakes get no answer.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(
        &"127.0.0.1:0"
            .parse::<std::net::SocketAddr>()
            .unwrap()
            .into(),
    )
    .unwrap();
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(
        Duration::from_millis(300),
        tokio::net::TcpStream::connect(addr),
    )
    .await
    {
        queued.push(stream);
        assert!(queued.len() < 1000);
    }
    let good = quick().await;
    let limits = GatewayConfig {
        connect_timeout: HumanDuration::millis(200),
        ..config()
    };
    let black_hole = endpoint("hole", &format!("http://{addr}"), false);
    let front = Front::of(limits.clone(), vec![Arc::clone(&black_hole)]);
    let reply = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (502, Some("upstream_connect_failed"))
    );
    let front = Front::of(
        limits,
        vec![
            black_hole,
            endpoint("good", &format!("http://{}", good.addr), false),
        ],
    );
    for _ in 0..8 {
        assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let engine = quick().await;
    let front = Front::before(
        GatewayConfig {
            max_connections: 2,
            ..config()
        },
        &[&engine],
    );
    let mut first = front.connect().await;
    let mut second = front.connect().await;
    for client in [&mut first, &mut second] {
        client.post(CHAT_PATH, CHAT).await;
        assert_eq!(client.reply().await.status, 200);
    }
    let mut third = front.connect().await;
    let reply = third.reply().await;
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (503, Some("too_many_connections"))
    );
    assert!(third.is_closed().await);
    drop(first);
    eventually("a place is free", || front.handle.connections() == 1).await;
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
}
