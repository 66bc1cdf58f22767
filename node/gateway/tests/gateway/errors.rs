//! Bad input and missing endpoints: a clear error in the client's own protocol, and nothing else.

use crate::support::*;
use proptest::prelude::*;
use quorate_routing::{Health, PoolSpec, RoutingView};
use std::sync::Arc;
use tokio::io::AsyncReadExt;

async fn front() -> (Engine, Front) {
    let engine = Engine::start(|_| async { json("{}") }).await;
    let front = Front::before(config(), &[&engine]);
    (engine, front)
}

#[tokio::test]
async fn bad_requests_get_an_error_object_and_reach_no_engine() {
    let (engine, front) = front().await;
    for (body, status, param, code) in [
        ("{", 400, None, None),
        ("[1]", 400, None, None),
        ("", 400, None, None),
        (r#"{"messages":[]}"#, 400, Some("model"), None),
        (r#"{"model":7}"#, 400, None, None),
        (r#"{"model":"m","stream":"yes"}"#, 400, None, None),
        (
            r#"{"model":"unheard-of"}"#,
            404,
            Some("model"),
            Some("model_not_found"),
        ),
    ] {
        let reply = front.post(CHAT_PATH, body).await;
        assert_eq!(reply.status, status, "{body}");
        let error = &reply.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str()),
            (param, code),
            "{body}"
        );
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    let anthropic = front
        .post("/v1/messages", r#"{"model":"unheard-of"}"#)
        .await
        .json();
    assert_eq!(
        (&anthropic["type"], &anthropic["error"]["type"]),
        (&"error".into(), &"not_found_error".into())
    );
    let reply = front.get(CHAT_PATH).await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert_eq!(engine.requests(), 0);
    assert_eq!((front.reserved(), front.handle.in_flight()), (0, 0));
}

#[tokio::test]
async fn an_engines_own_errors_pass_with_their_headers() {
    let engine = Engine::start(|_| async {
        let mut response = answer(
            429,
            "application/json",
            r#"{"error":{"message":"slow down"}}"#,
        );
        response
            .headers_mut()
            .insert("retry-after", "7".parse().unwrap());
        response
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let reply = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (429, Some("7"))
    );
    assert_eq!(reply.json()["error"]["message"], "slow down");
}

#[tokio::test]
async fn without_a_usable_endpoint_the_client_is_told_to_come_back() {
    let (engine, front) = front().await;
    front.endpoints[0].set_health(Health::Unhealthy, 1);
    let reply = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (503, Some("1"))
    );
    assert_eq!(
        reply.header("x-llm-d-request-dropped-reason"),
        Some("rejected-no-endpoints")
    );
    assert_eq!(reply.json()["error"]["code"], "no_endpoints");
    front.endpoints[0].set_health(Health::Ready, 1);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
    // An empty pool, and no pool at all.
    let pool = PoolSpec {
        name: "p".into(),
        models: vec!["m".into()],
        ..PoolSpec::default()
    };
    for view in [
        RoutingView::build([(pool, Vec::new())]),
        RoutingView::default(),
    ] {
        front.view.store(Arc::new(view));
        for reply in [
            front.post(CHAT_PATH, CHAT).await,
            front.get("/engine/path").await,
        ] {
            assert_eq!(reply.status, 503);
            assert_eq!(
                reply.header("x-llm-d-request-dropped-reason"),
                Some("rejected-no-endpoints")
            );
        }
    }
    assert_eq!(engine.requests(), 1);
}

#[tokio::test]
async fn a_changed_view_counts_from_the_next_request_on() {
    let (old, front) = front().await;
    let new = Engine::start(|_| async { json("{}") }).await;
    let mut client = front.connect().await;
    client.post(CHAT_PATH, CHAT).await;
    assert_eq!(client.reply().await.status, 200);
    let pool = PoolSpec {
        name: "p".into(),
        ..PoolSpec::default()
    };
    let endpoints = vec![endpoint("e1", &format!("http://{}", new.addr), false)];
    front
        .view
        .store(Arc::new(RoutingView::build([(pool, endpoints)])));
    client.post(CHAT_PATH, CHAT).await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!((old.requests(), new.requests()), (1, 1));
}

#[tokio::test]
async fn malformed_http_is_a_400_and_a_closed_connection() {
    let (engine, front) = front().await;
    for bytes in [
        &b"NOT HTTP AT ALL\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nhost: h\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ] {
        let mut client = front.connect().await;
        client.send(bytes).await;
        let (status, _) = client.head().await;
        assert_eq!(status, 400, "{:?}", String::from_utf8_lossy(bytes));
        assert!(client.is_closed().await);
    }
    // A chunk size that is no number breaks the body off.
    let mut client = front.connect().await;
    client
        .send(
            b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        )
        .await;
    assert_eq!(client.reply().await.status, 400);
    assert_eq!(engine.requests(), 0);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
    assert_eq!((front.reserved(), front.handle.in_flight()), (0, 0));
}

/// Whatever a client sends, the worker lives on and serves the next one.
#[test]
fn no_bytes_from_a_client_stop_a_worker() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (engine, front) = runtime.block_on(front());
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        prop::sample::select(vec![
            b"POST /v1/chat/completions HTTP/1.1\r\n".to_vec(),
            b"GET /v1/models/%zz HTTP/1.1\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n".to_vec(),
            b"host: h\r\n".to_vec(),
            b"connection: close, x\r\n".to_vec(),
            b"traceparent: 00-\r\n".to_vec(),
            b"x-request-id: \xff\r\n".to_vec(),
            b"x-forwarded-for: \x80\r\n".to_vec(),
            b"content-length: 9\r\n".to_vec(),
            b"transfer-encoding: chunked\r\n".to_vec(),
            b"\r\n".to_vec(),
            b"{\"model\":\"m\"}".to_vec(),
            b"5\r\nhello\r\n0\r\n\r\n".to_vec(),
            vec![0; 9],
        ]),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    runner
        .run(&prop::collection::vec(piece, 0..6), |pieces| {
            runtime.block_on(async {
                let mut client = front.connect().await;
                client.send(&pieces.concat()).await;
                tokio::io::AsyncWriteExt::shutdown(&mut client.stream)
                    .await
                    .unwrap();
                let mut answer = Vec::new();
                let _ = soon(client.stream.read_to_end(&mut answer)).await;
            });
            Ok(())
        })
        .unwrap();
    runtime.block_on(async {
        assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
        eventually("nothing is left over", || {
            front.handle.in_flight() == 0 && front.reserved() == 0
        })
        .await;
    });
    drop(engine);
}
