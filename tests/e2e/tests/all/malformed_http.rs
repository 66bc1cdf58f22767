//! Nonsense for the gateway, and noise on every listener: a clear error each, nothing forwarded, and the process serves on.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use quorate_tests::Fleet;
use quorate_tests::http::Client;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends bytes, closes the sending side and reads what comes back, until the server closes or nothing comes for a while.
async fn raw(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    // The server may close before it has read everything.
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn malformed_http() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(1, 1).start().await?;
    let gateway = fleet.routers[0].gateway();
    let long = "x".repeat(200_000);
    let with =
        |head: &str| format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n");
    let cases = [
        (
            "not HTTP",
            "hello, is anybody there?\r\n\r\n".to_owned(),
            "400",
        ),
        ("no version", "GET /v1/models\r\n\r\n".to_owned(), "400"),
        ("a bad header", with("no colon here"), "400"),
        ("a bad length", with("content-length: ten"), "400"),
        (
            "two lengths",
            with("content-length: 1\r\ncontent-length: 2"),
            "400",
        ),
        (
            "a bad chunk",
            format!("{}zz\r\n", with("transfer-encoding: chunked")),
            "400",
        ),
        (
            "length and chunks",
            with("content-length: 5\r\ntransfer-encoding: gzip"),
            "400",
        ),
        ("a huge header", with(&format!("x-big: {long}")), "431"),
        (
            "a huge path",
            format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
            "4",
        ),
        ("a control character", with("x-a: b\x01c"), "400"),
        (
            "a truncated body",
            format!("{}{{\"model\":", with("content-length: 100")),
            "",
        ),
    ];
    for (what, bytes, status) in cases {
        let answer = raw(gateway, bytes.as_bytes()).await?;
        // Whatever cannot be answered is closed; nothing is answered with 200 or with an endpoint's words.
        let good = answer.is_empty() && matches!(status, "" | "400")
            || answer
                .strip_prefix("HTTP/1.1 ")
                .is_some_and(|rest| rest.starts_with('4') && rest.starts_with(status))
            || answer
                .strip_prefix("HTTP/1.0 ")
                .is_some_and(|rest| rest.starts_with('4'));
        ensure!(good, "{what}: {answer:?}");
    }
    // Noise on every listener, also what looks like the beginning of HTTP/2 or TLS.
    let mut rng = fastrand::Rng::with_seed(7);
    let router = &fleet.routers[0];
    for address in [gateway, router.control(), router.peer(), router.admin()] {
        for start in [
            &b""[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            b"GET / HTTP/1.1\r\n",
        ] {
            let noise: Vec<u8> = start
                .iter()
                .copied()
                .chain(std::iter::repeat_with(|| rng.u8(..)).take(4096))
                .collect();
            raw(address, &noise).await?;
        }
    }
    ensure!(
        fleet.sims[0].stat("requests").await? == 0,
        "an engine got some of it"
    );
    fleet.still_serves().await?;
    fleet.finish().await
}

#[tokio::test]
async fn malformed_json() -> anyhow::Result<()> {
    let mut fleet = Fleet::of(1, 1)
        .gateway("max_body_bytes = 100000")
        .start()
        .await?;
    let gateway = fleet.routers[0].gateway();
    let deep = format!("{}{}", "[".repeat(40_000), "]".repeat(40_000));
    let long = format!(
        "{{\"model\":\"echo-model\",\"messages\":\"{}\"}}",
        "x".repeat(200_000)
    );
    for (body, status, said) in [
        ("", 400, ""),
        ("{", 400, ""),
        ("[]", 400, "object"),
        ("\"text\"", 400, "object"),
        ("{\"model\": \"echo-model\",}", 400, ""),
        ("{\"messages\": []}", 400, "model"),
        ("{\"model\": 7, \"messages\": []}", 400, "model"),
        ("{\"model\": \"\", \"messages\": []}", 4, "model"),
        (
            "{\"model\": \"nobody-has-it\", \"messages\": []}",
            404,
            "nobody-has-it",
        ),
        (
            "{\"model\": \"echo-model\", \"messages\": \"\u{0}\"}",
            400,
            "",
        ),
        (deep.as_str(), 400, ""),
        (long.as_str(), 413, ""),
    ] {
        let mut client = Client::connect(gateway).await?;
        let reply = client
            .call(
                Method::POST,
                "/v1/chat/completions",
                Bytes::from(body.to_owned()),
            )
            .await?;
        let start = &body[..body.len().min(60)];
        ensure!(
            reply.status.as_str().starts_with(&status.to_string()),
            "{start}: {} {}",
            reply.status,
            reply.text()
        );
        let error = &reply.json()?["error"];
        let message = error["message"]
            .as_str()
            .with_context(|| format!("{start}: no message in {}", reply.text()))?;
        ensure!(
            message.contains(said) && !message.is_empty(),
            "{start}: {message}"
        );
        ensure!(error["type"].is_string(), "{start}: {error}");
    }
    // In the client's own protocol: Anthropic's errors look different.
    let mut client = Client::connect(gateway).await?;
    let reply = client
        .call(Method::POST, "/v1/messages", Bytes::from_static(b"{"))
        .await?;
    let error = reply.json()?;
    ensure!(
        reply.status == 400 && error["type"] == "error" && error["error"]["message"].is_string(),
        "{error}"
    );
    // The wrong method, and no such path.
    for (method, path) in [
        (Method::GET, "/v1/chat/completions"),
        (Method::DELETE, "/v1/models"),
    ] {
        let reply = Client::connect(gateway)
            .await?
            .call(method, path, Bytes::new())
            .await?;
        ensure!(reply.status.is_client_error(), "{path}: {}", reply.status);
        ensure!(
            reply.json()?["error"]["message"].is_string(),
            "{path}: {}",
            reply.text()
        );
    }
    // Bytes that are no UTF-8.
    let reply = Client::connect(gateway)
        .await?
        .call(
            Method::POST,
            "/v1/chat/completions",
            Bytes::from_static(b"{\"model\": \"\xff\xfe\"}"),
        )
        .await?;
    ensure!(reply.status == 400, "{}", reply.text());
    ensure!(
        fleet.sims[0].stat("requests").await? == 0,
        "an engine got some of it"
    );
    fleet.still_serves().await?;
    fleet.finish().await
}
