//! How a server is reached and what it is started with: HTTPS, a dataset.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::{Dataset, Sim, SimConfig, SimError, TlsFiles};
use serde_json::json;
use std::sync::Arc;
use support::{answer, post, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

#[tokio::test]
async fn https() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        cert: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let sim = start(|c| c.tls = Some(files.clone())).await;

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(sim.addr()).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, tcp).await.unwrap();
    let body = json!({"prompt": "the word", "stream": true, "max_tokens": 3}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.unwrap();
    let whole = answer(&raw).unwrap();
    assert_eq!((whole.status, whole.events().len()), (200, 4));

    let mut plain = TcpStream::connect(sim.addr()).await.unwrap();
    plain
        .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut raw = Vec::new();
    // The handshake fails: an alert and the end, or a reset.
    let _ = plain.read_to_end(&mut raw).await;
    assert!(!raw.starts_with(b"HTTP"), "no plain HTTP on this port");

    std::fs::write(&files.key, "nonsense").unwrap();
    let config = SimConfig {
        tls: Some(files),
        ..SimConfig::default()
    };
    let refused = Sim::start(config).await.err().unwrap();
    assert!(matches!(&refused, SimError::Tls(_)), "{refused}");
    assert!(refused.to_string().contains("key.pem"), "{refused}");
}

#[tokio::test]
async fn dataset_answers_known_prompts_and_lends_its_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.jsonl");
    let lines = [
        json!({"prompt": "What is it?", "output": "It is a naïve word."}),
        json!({"prompt": "How long?", "output_length": 33}),
    ];
    std::fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
    let dataset = Arc::new(Dataset::load(&path).unwrap());
    let sim = start(|c| c.dataset = Some(dataset)).await;
    let chat = |text: &str| json!({"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": text}]});
    let addr = sim.addr();
    let ask = |path: &'static str, request| async move { post(addr, path, &request).await.json() };

    let body = ask("/v1/chat/completions", chat("What is it?")).await;
    assert_eq!(
        body["choices"][0]["message"]["content"],
        "It is a naïve word."
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let own = body["usage"]["completion_tokens"].as_u64().unwrap();
    let body = ask("/v1/completions", json!({"prompt": "What is it?"})).await;
    assert_eq!(body["choices"][0]["text"], "It is a naïve word.");
    let cut = json!({"prompt": "What is it?", "max_tokens": 2});
    let body = ask("/v1/completions", cut).await;
    assert_eq!(body["choices"][0]["text"], "It is");
    assert_eq!(body["choices"][0]["finish_reason"], "length");

    let mut seen = [0; 2];
    for seed in 0..24 {
        let mut request = chat("Something else");
        request["seed"] = json!(seed);
        request["max_tokens"] = json!(1000);
        let body = ask("/v1/chat/completions", request).await;
        let tokens = body["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(tokens == own || tokens == 34, "{tokens}, the end included");
        seen[usize::from(tokens == 34)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    let body = ask("/v1/chat/completions", chat("How long?")).await;
    assert_eq!(body["usage"]["completion_tokens"], 34);
}
