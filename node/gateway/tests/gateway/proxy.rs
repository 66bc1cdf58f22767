//! Requests and answers pass as they came; the gateway's own paths; connections are used again.

use crate::support::*;
use http::Response;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An engine that keeps what it saw and answers with a fixed body.
async fn recorder(body: &'static str) -> (Engine, Arc<Mutex<Vec<Seen>>>) {
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let kept = Arc::clone(&seen);
    let engine = Engine::start(move |request| {
        kept.lock().push(request);
        async move { json(body) }
    })
    .await;
    (engine, seen)
}

#[tokio::test]
async fn every_model_api_is_forwarded_byte_for_byte() {
    let (engine, seen) = recorder(r#"{"ok": true}"#).await;
    let front = Front::before(config(), &[&engine]);
    // Spacing, key order, escapes and number formats that a re-serialised body would lose.
    let body = "{ \"z\" : 1.0,\t\"model\":\"m\" , \"messages\":[ {\"content\":\"\\u00e9 \u{1F600}\"} ],\"a\":1e2 }\n";
    for path in [
        "/v1/chat/completions",
        "/v1/completions?x=1",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
    ] {
        let reply = front.post(path, body).await;
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (200, r#"{"ok": true}"#),
            "{path}"
        );
        let request = seen.lock().pop().unwrap();
        assert_eq!(request.body, body.as_bytes(), "{path}");
        assert_eq!(request.uri.to_string(), path);
        assert_eq!(request.headers["host"], engine.addr.to_string());
        assert_eq!(request.headers["content-length"], body.len().to_string());
        assert_eq!(request.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(request.headers["x-forwarded-proto"], "http");
        assert_eq!(request.version, http::Version::HTTP_11);
    }
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn large_chunked_and_announced_bodies_arrive_whole() {
    let (engine, seen) = recorder("{}").await;
    let front = Front::before(config(), &[&engine]);
    let body = format!(r#"{{"model":"m","prompt":"{}"}}"#, "x".repeat(3 << 20));
    assert_eq!(front.post("/v1/completions", &body).await.status, 200);
    assert_eq!(seen.lock().pop().unwrap().body.len(), body.len());

    let mut client = front.connect().await;
    client
        .send(b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for part in [r#"{"mod"#, r#"el":"m""#, "}"] {
        client
            .send(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes())
            .await;
    }
    client.send(b"0\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 200);
    let request = seen.lock().pop().unwrap();
    assert_eq!(request.body, r#"{"model":"m"}"#);
    assert!(!request.headers.contains_key("transfer-encoding"));

    client
        .send(b"POST /v1/completions HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 13\r\n\r\n")
        .await;
    assert_eq!(client.head().await.0, 100);
    client.send(br#"{"model":"m"}"#).await;
    assert_eq!(client.reply().await.status, 200);
    assert!(!seen.lock().pop().unwrap().headers.contains_key("expect"));
}

#[tokio::test]
async fn native_paths_and_methods_pass() {
    let (engine, seen) = recorder("{}").await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    for (method, path) in [
        ("GET", "/metrics?x=%20y"),
        ("DELETE", "/v1/files/a"),
        ("OPTIONS", "/x"),
        ("POST", "/sleep?level=1"),
    ] {
        client
            .send(format!("{method} {path} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes())
            .await;
        assert_eq!(client.reply().await.status, 200);
        let request = seen.lock().pop().unwrap();
        assert_eq!(
            (request.method.as_str(), request.uri.to_string().as_str()),
            (method, path)
        );
        assert!(request.body.is_empty());
    }
    // The absolute form names the front, not the engine.
    client
        .send(b"GET http://front.example/ping HTTP/1.1\r\nhost: front.example\r\n\r\n")
        .await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(seen.lock().pop().unwrap().uri.to_string(), "/ping");
    // HEAD has the headers of the answer and no body: the next answer follows at once.
    client.send(b"HEAD /ping HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(client.head().await.0, 200);
    client.send(b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "{}");
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn passthrough_can_be_switched_off() {
    let (engine, _) = recorder("{}").await;
    let front = Front::before(
        quorate_gateway::GatewayConfig {
            passthrough: false,
            ..config()
        },
        &[&engine],
    );
    assert_eq!(front.get("/metrics").await.status, 404);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 200);
    assert_eq!(engine.requests(), 1);
}

#[tokio::test]
async fn models_health_and_ready_are_answered_here() {
    let (engine, _) = recorder("{}").await;
    let front = Front::before(config(), &[&engine]);
    let list = front.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "m");
    assert_eq!(list["data"][0]["max_model_len"], 4096);
    assert_eq!(list["data"][0]["root"], "m");
    assert_eq!(front.get("/v1/models/m").await.json()["id"], "m");
    let missing = front.get("/v1/models/org%2Fnone").await;
    assert_eq!(
        (missing.status, missing.json()["error"]["code"].as_str()),
        (404, Some("model_not_found"))
    );
    let health = front.get("/health").await;
    assert_eq!(
        (health.status, health.json()["node"].as_str()),
        (200, Some("node-1"))
    );
    assert_eq!(front.get("/ready").await.status, 200);
    front.shared.set_ready(false);
    assert_eq!(front.get("/ready").await.status, 503);
    assert_eq!(front.get("/health").await.status, 200);
    assert_eq!(front.post("/health", "").await.status, 405);
    assert_eq!(engine.requests(), 0);
}

#[tokio::test]
async fn ids_and_trace_context_are_kept_or_made() {
    let (engine, seen) = recorder("{}").await;
    let front = Front::before(config(), &[&engine]);
    let reply = front.post(CHAT_PATH, CHAT).await;
    let request = seen.lock().pop().unwrap();
    assert_eq!(
        reply.header("x-request-id"),
        request.headers["x-request-id"].to_str().ok()
    );
    assert_eq!(reply.header("x-request-id").unwrap().len(), 32);
    assert!(
        request.headers["traceparent"]
            .to_str()
            .unwrap()
            .starts_with("00-")
    );
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut client = front.connect().await;
    client
        .send(
            format!(
                "POST {CHAT_PATH} HTTP/1.1\r\nhost: h\r\nx-request-id: mine\r\ntraceparent: {parent}\r\n\
                 tracestate: a=b\r\ncontent-length: {}\r\n\r\n{CHAT}",
                CHAT.len()
            )
            .as_bytes(),
        )
        .await;
    assert_eq!(client.reply().await.header("x-request-id"), Some("mine"));
    let request = seen.lock().pop().unwrap();
    assert_eq!(
        (
            &request.headers["traceparent"],
            &request.headers["tracestate"]
        ),
        (&parent.parse().unwrap(), &"a=b".parse().unwrap())
    );
    assert_eq!(
        front
            .post(CHAT_PATH, "{")
            .await
            .header("x-request-id")
            .unwrap()
            .len(),
        32
    );
}

#[tokio::test]
async fn one_upstream_connection_serves_many_requests() {
    let (engine, _) = recorder("{}").await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    for _ in 0..50 {
        client.post(CHAT_PATH, CHAT).await;
        assert_eq!(client.reply().await.status, 200);
    }
    assert_eq!((engine.requests(), engine.connections()), (50, 1));
    // Streams give their connection back too.
    let streaming = Engine::start(|_| async {
        let (sender, response) = events();
        for i in 0..10 {
            sender
                .send(Ok(format!("data: {{\"n\":{i}}}\n\n").into()))
                .await
                .unwrap();
        }
        response
    })
    .await;
    let front = Front::before(config(), &[&streaming]);
    let mut client = front.connect().await;
    for _ in 0..20 {
        client.post(CHAT_PATH, CHAT_STREAM).await;
        assert!(client.reply().await.whole);
    }
    assert_eq!((streaming.requests(), streaming.connections()), (20, 1));
}

#[tokio::test]
async fn answers_without_a_body_give_their_connection_back() {
    let engine = Engine::start(|_| async { answer(204, "text/plain", "") }).await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    for _ in 0..5 {
        client.send(b"GET /load HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(client.head().await.0, 204);
        client.send(b"HEAD /load HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert_eq!(client.head().await.0, 204);
    }
    assert_eq!((engine.requests(), engine.connections()), (10, 1));
    assert_eq!(front.reserved(), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let engine =
        Engine::start(|request| async move { answer(200, "text/plain", request.body) }).await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    let mut all = String::new();
    for i in 0..20 {
        let body = format!(r#"{{"model":"m","n":{i}}}"#);
        all += &format!(
            "POST {CHAT_PATH} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    client.send(all.as_bytes()).await;
    for i in 0..20 {
        assert_eq!(client.reply().await.json()["n"], i);
    }
}

#[tokio::test]
async fn a_connection_that_the_engine_closed_is_not_the_clients_problem() {
    // Answers once on each connection, promises keep-alive, and closes all the same: sometimes seen before the next
    // request, sometimes in a race with it.
    let engine = Engine::raw(|mut stream| async move {
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        // Wait for the next request on a connection in use, so that it is lost for certain.
        let _ = stream.read(&mut buffer).await;
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let mut client = front.connect().await;
    for _ in 0..20 {
        client.post(CHAT_PATH, CHAT).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.body.as_slice()), (200, &b"ok"[..]));
    }
    assert_eq!(engine.connections(), 20);
}

#[tokio::test]
async fn connection_headers_of_either_side_do_not_pass() {
    let engine = Engine::start(|_| async {
        Response::builder()
            .header("keep-alive", "timeout=5")
            .header("x-engine", "1")
            .body(
                http_body_util::Full::new("x".into())
                    .map_err(|e| match e {})
                    .boxed(),
            )
            .unwrap()
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let reply = front.post(CHAT_PATH, CHAT).await;
    assert_eq!(reply.header("x-engine"), Some("1"));
    assert_eq!(reply.header("keep-alive"), None);
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_passes() {
    let engine = Engine::raw(|mut stream| async move {
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it")
            .await;
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    for _ in 0..3 {
        let reply = front.post(CHAT_PATH, CHAT).await;
        assert_eq!((reply.text().as_str(), reply.whole), ("all of it", true));
    }
}
