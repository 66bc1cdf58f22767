//! A drain ends when the last stream does, and not before.

use crate::support::*;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

type Tap = mpsc::Sender<std::io::Result<Bytes>>;

async fn fed() -> (Engine, mpsc::UnboundedReceiver<Tap>) {
    let (taps, tapped) = mpsc::unbounded_channel();
    let engine = Engine::start(move |_| {
        let (tap, response) = events();
        taps.send(tap).unwrap();
        async move { response }
    })
    .await;
    (engine, tapped)
}

#[tokio::test]
async fn streams_run_to_their_end_and_nothing_new_begins() {
    let (engine, mut tapped) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let addr = front.addr();
    // An idle connection, an HTTP/1.1 stream and an HTTP/2 stream.
    let mut idle = front.connect().await;
    idle.send(b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(idle.reply().await.status, 200);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    let tap = soon(tapped.recv()).await.unwrap();
    tap.send(Ok("data: 1\n\n".into())).await.unwrap();
    client.head().await;
    client.chunk().await.unwrap();
    let (mut sender, connection) = http2::handshake(
        TokioExecutor::new(),
        TokioIo::new(TcpStream::connect(addr).await.unwrap()),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("http://front/v1/chat/completions")
        .body(Full::new(Bytes::from(CHAT_STREAM)))
        .unwrap();
    let answer = tokio::spawn(sender.send_request(request));
    let tap2 = soon(tapped.recv()).await.unwrap();
    tap2.send(Ok("data: 1\n\n".into())).await.unwrap();
    let mut body = soon(answer).await.unwrap().unwrap().into_body();
    soon(body.frame()).await.unwrap().unwrap();

    let drain = front.handle.drain(Duration::from_secs(60));
    let meanwhile = async {
        assert!(idle.is_closed().await);
        eventually("the listener is closed", || {
            std::net::TcpStream::connect(addr).is_err()
        })
        .await;
        assert_eq!(front.handle.in_flight(), 2);
        for tap in [&tap, &tap2] {
            tap.send(Ok("data: 2\n\n".into())).await.unwrap();
        }
        assert_eq!(client.chunk().await.unwrap(), b"data: 2\n\n");
        assert_eq!(
            soon(body.frame())
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap(),
            "data: 2\n\n"
        );
        drop(tap);
        assert_eq!(client.chunk().await, Some(Vec::new()));
        assert!(client.is_closed().await);
        drop(tap2);
        let end = soon(body.collect()).await;
        assert!(end.is_ok_and(|rest| rest.to_bytes().is_empty()));
        drop(sender);
    };
    let (cut, ()) = tokio::join!(soon(drain), meanwhile);
    assert_eq!((cut, front.reserved()), (0, 0));
    let _ = soon(connection).await;
}

#[tokio::test]
async fn an_answer_during_the_drain_says_close() {
    let (ask, mut asked) = mpsc::unbounded_channel();
    let engine = Engine::start(move |_| {
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        ask.send(go).unwrap();
        async move {
            let _ = wait.await;
            json("{}")
        }
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT).await;
    let go = soon(asked.recv()).await.unwrap();
    let addr = front.addr();
    let meanwhile = async {
        eventually("the listener is closed", || {
            std::net::TcpStream::connect(addr).is_err()
        })
        .await;
        go.send(()).unwrap();
        let reply = client.reply().await;
        assert_eq!(
            (reply.status, reply.header("connection")),
            (200, Some("close"))
        );
        assert!(client.is_closed().await);
    };
    let (cut, ()) = tokio::join!(soon(front.handle.drain(Duration::from_secs(60))), meanwhile);
    assert_eq!(cut, 0);
}

#[tokio::test]
async fn the_deadline_cuts_what_is_left_and_says_how_much() {
    let (engine, mut tapped) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut client = front.connect().await;
        client.post(CHAT_PATH, CHAT_STREAM).await;
        let tap = soon(tapped.recv()).await.unwrap();
        tap.send(Ok("data: 1\n\n".into())).await.unwrap();
        client.head().await;
        client.chunk().await.unwrap();
        open.push((client, tap));
    }
    assert_eq!(
        soon(front.handle.drain(Duration::from_millis(100))).await,
        3
    );
    for (mut client, tap) in open {
        assert_eq!(client.chunk().await, None);
        soon(tap.closed()).await;
    }
    eventually("the places are free", || front.reserved() == 0).await;
}

#[tokio::test]
async fn dropping_the_handle_ends_everything() {
    let (engine, mut tapped) = fed().await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT_STREAM).await;
    let tap = soon(tapped.recv()).await.unwrap();
    let addr = front.addr();
    drop(front);
    assert!(client.is_closed().await);
    soon(tap.closed()).await;
    assert!(std::net::TcpStream::connect(addr).is_err());
}
