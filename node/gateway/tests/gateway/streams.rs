//! Streams: each event as it comes, the client's going away, engines that break off or stall, slow readers.

use crate::support::*;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_gateway::{GatewayConfig, HumanDuration};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

type Tap = mpsc::Sender<std::io::Result<Bytes>>;

/// An engine whose streams are fed by the test, in the order of the requests.
async fn fed() -> (Engine, Arc<Mutex<VecDeque<Tap>>>) {
    let taps: Arc<Mutex<VecDeque<Tap>>> = Arc::default();
    let kept = Arc::clone(&taps);
    let engine = Engine::start(move |_| {
        let (tap, response) = events();
        kept.lock().push_back(tap);
        async move { response }
    })
    .await;
    (engine, taps)
}

async fn tap(taps: &Mutex<VecDeque<Tap>>) -> Tap {
    eventually("the request reached the engine", || !taps.lock().is_empty()).await;
    taps.lock().pop_front().unwrap()
}

fn token(text: &str) -> std::io::Result<Bytes> {
    Ok(format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n").into())
}

#[tokio::test]
async fn each_event_arrives_while_the_stream_is_open() {
    let (engine, taps) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    let tap = tap(&taps).await;
    tap.send(token("0")).await.unwrap();
    let (status, headers) = client.head().await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (200, "text/event-stream; charset=utf-8")
    );
    // Each is only sent after the one before has been seen, so none can have waited for another.
    for i in 0..50 {
        let chunk = client.chunk().await.unwrap();
        assert_eq!(
            Ok(Bytes::from(chunk)),
            token(&i.to_string()).map_err(|_| ())
        );
        assert_eq!((front.handle.in_flight(), front.reserved()), (1, 1));
        tap.send(token(&(i + 1).to_string())).await.unwrap();
    }
    client.chunk().await.unwrap();
    drop(tap);
    assert_eq!(client.chunk().await, Some(Vec::new()));
    assert_eq!(front.reserved(), 0);
    eventually("the request is counted out", || {
        front.handle.in_flight() == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_request_upstream() {
    // Before the head: the engine notices that its connection closes.
    let asked = Arc::new(Notify::new());
    let gone = Arc::new(Notify::new());
    let (ask, go) = (Arc::clone(&asked), Arc::clone(&gone));
    let engine = Engine::raw(move |mut stream| {
        let (ask, go) = (Arc::clone(&ask), Arc::clone(&go));
        async move {
            let mut buffer = vec![0; 4096];
            let _ = stream.read(&mut buffer).await;
            ask.notify_one();
            while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
            go.notify_one();
        }
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    soon(asked.notified()).await;
    assert_eq!(front.reserved(), 1);
    drop(client);
    soon(gone.notified()).await;
    eventually("the place is free", || {
        front.reserved() == 0 && front.handle.in_flight() == 0
    })
    .await;

    // In the middle of a stream.
    let (engine, taps) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    let tap = tap(&taps).await;
    tap.send(token("a")).await.unwrap();
    client.head().await;
    client.chunk().await.unwrap();
    drop(client);
    soon(tap.closed()).await;
    eventually("the place is free", || {
        front.reserved() == 0 && front.handle.in_flight() == 0
    })
    .await;
    // The endpoint is not blamed.
    assert_eq!(
        front.endpoints[0].breaker_state(quorate_routing::now_ms()),
        quorate_routing::BreakerState::Closed
    );
}

#[tokio::test]
async fn a_broken_stream_ends_with_an_error_event() {
    let (engine, taps) = fed().await;
    let front = Front::before(config(), &[&engine]);
    for (path, name) in [
        (CHAT_PATH, ""),
        ("/v1/messages", "event: error\n"),
        ("/v1/responses", "event: error\n"),
    ] {
        let mut client = front.connect().await;
        client.post(path, CHAT_STREAM).await;
        let tap = tap(&taps).await;
        tap.send(token("a")).await.unwrap();
        client.head().await;
        client.chunk().await.unwrap();
        tap.send(Err(std::io::ErrorKind::Other.into()))
            .await
            .unwrap();
        let last = String::from_utf8(client.chunk().await.unwrap()).unwrap();
        let data = last
            .strip_prefix(name)
            .unwrap()
            .strip_prefix("data: ")
            .unwrap();
        let error: serde_json::Value = serde_json::from_str(data).unwrap();
        assert!(
            error["error"]["message"]
                .as_str()
                .unwrap()
                .contains("broke off"),
            "{last}"
        );
        assert_eq!(client.chunk().await, Some(Vec::new()));
    }
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn a_stream_broken_inside_an_event_is_broken_for_the_client() {
    let (engine, taps) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM_USAGE).await;
    let tap = tap(&taps).await;
    tap.send(Ok("data: {\"choices\":[{\"del".into()))
        .await
        .unwrap();
    client.head().await;
    client.chunk().await.unwrap();
    tap.send(Err(std::io::ErrorKind::Other.into()))
        .await
        .unwrap();
    assert_eq!(client.chunk().await, None);
}

#[tokio::test]
async fn a_connection_closed_after_done_is_no_error() {
    let engine = Engine::raw(|mut stream| async move {
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        let _ = stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                  c\r\ndata: {\"a\":1\r\n3\r\n}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n",
            )
            .await;
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let reply = front.post(CHAT_PATH, CHAT_STREAM).await;
    assert_eq!(
        (reply.text().as_str(), reply.whole),
        ("data: {\"a\":1}\n\ndata: [DONE]\n\n", true)
    );
}

#[tokio::test]
async fn an_engine_that_stalls_in_the_middle_is_given_up() {
    let (engine, taps) = fed().await;
    let limits = GatewayConfig {
        stream_idle_timeout: HumanDuration::millis(200),
        ..config()
    };
    let front = Front::before(limits, &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    let tap = tap(&taps).await;
    tap.send(token("a")).await.unwrap();
    client.head().await;
    client.chunk().await.unwrap();
    let last = String::from_utf8(client.chunk().await.unwrap()).unwrap();
    assert!(last.contains("stopped in the middle"), "{last}");
    soon(tap.closed()).await;
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn a_slow_reader_holds_the_engine_back_and_is_cut_off() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let engine = Engine::raw(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            let mut buffer = vec![0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            let event = format!("1000\r\ndata: {}\n\n\r\n", "x".repeat(0x1000 - 8));
            while stream.write_all(event.as_bytes()).await.is_ok() {
                count.fetch_add(event.len(), SeqCst);
            }
        }
    })
    .await;
    let limits = GatewayConfig {
        write_timeout: HumanDuration::millis(700),
        ..config()
    };
    let front = Front::before(limits, &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    client.head().await;
    // The client reads nothing more. The engine can fill the kernel's buffers of two connections and the gateway's own.
    eventually("the client is cut off", || front.handle.connections() == 0).await;
    assert_eq!((front.reserved(), front.handle.in_flight()), (0, 0));
    let held = written.load(SeqCst);
    assert!(held < 24 << 20, "{held} bytes went into buffers");
}

#[tokio::test]
async fn many_streams_share_a_worker_without_waiting_for_each_other() {
    let (engine, taps) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut client = front.connect().await;
        client.post(CHAT_PATH, CHAT_STREAM).await;
        open.push((client, tap(&taps).await));
    }
    // The last to be opened is the first to get its token.
    for (client, tap) in open.iter_mut().rev() {
        tap.send(token("x")).await.unwrap();
        client.head().await;
        assert!(!client.chunk().await.unwrap().is_empty());
    }
    assert_eq!(front.handle.in_flight(), 100);
    for (mut client, tap) in open {
        drop(tap);
        assert_eq!(client.chunk().await, Some(Vec::new()));
    }
    assert_eq!(front.reserved(), 0);
}
