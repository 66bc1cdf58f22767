//! HTTP/2 and TLS on both sides, host names, certificates that change.

use crate::support::*;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use quorate_gateway::{GatewayConfig, HumanDuration, TlsConfig, UpstreamConfig};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

async fn http2_on<S>(stream: S) -> http2::SendRequest<Full<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn chat(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://front/v1/chat/completions")
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test]
async fn http2_without_tls_by_prior_knowledge() {
    let engine = Engine::start(|seen| async move {
        assert_eq!(seen.uri.to_string(), "/v1/chat/completions");
        assert_eq!(seen.headers.get_all("host").iter().count(), 1);
        answer(200, "application/json", seen.body)
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let sender = http2_on(TcpStream::connect(front.addr()).await.unwrap()).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut sender = sender.clone();
        requests.spawn(async move {
            let response = sender.send_request(chat(CHAT)).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(
                response.into_body().collect().await.unwrap().to_bytes(),
                CHAT
            );
        });
    }
    while let Some(done) = soon(requests.join_next()).await {
        done.unwrap();
    }
    assert_eq!((engine.requests(), front.handle.connections()), (50, 1));
    eventually("all are counted out", || {
        front.handle.in_flight() == 0 && front.reserved() == 0
    })
    .await;
}

#[tokio::test]
async fn a_reset_http2_stream_ends_its_request_and_no_other() {
    let (taps, mut tapped) = tokio::sync::mpsc::unbounded_channel();
    let engine = Engine::start(move |_| {
        let (tap, response) = events();
        taps.send(tap).unwrap();
        async move { response }
    })
    .await;
    let front = Front::before(config(), &[&engine]);
    let mut sender = http2_on(TcpStream::connect(front.addr()).await.unwrap()).await;
    let mut bodies = Vec::new();
    let mut open = Vec::new();
    for _ in 0..2 {
        let answer = tokio::spawn(sender.send_request(chat(CHAT_STREAM_USAGE)));
        let tap = soon(tapped.recv()).await.unwrap();
        tap.send(Ok("data: 1\n\n".into())).await.unwrap();
        let mut body = soon(answer).await.unwrap().unwrap().into_body();
        assert_eq!(
            soon(body.frame())
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap(),
            "data: 1\n\n"
        );
        bodies.push(body);
        open.push(tap);
    }
    drop(bodies.remove(0));
    soon(open[0].closed()).await;
    open[1].send(Ok("data: 2\n\n".into())).await.unwrap();
    assert_eq!(
        soon(bodies[0].frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap(),
        "data: 2\n\n"
    );
    assert_eq!((front.handle.in_flight(), front.reserved()), (1, 1));
    // Broken off inside an event: the stream is reset, which the client sees as an error.
    open[1].send(Ok("data: half".into())).await.unwrap();
    soon(bodies[0].frame()).await.unwrap().unwrap();
    open[1]
        .send(Err(std::io::ErrorKind::Other.into()))
        .await
        .unwrap();
    assert!(soon(bodies[0].frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_leaves_an_http2_stream_unread_frees_the_engine_and_keeps_its_others() {
    let engine = Engine::start(|seen| async move {
        if seen.body == CHAT {
            return answer(200, "application/json", seen.body);
        }
        let (sender, response) = events();
        tokio::spawn(async move {
            let event = Bytes::from(format!("data: {}\n\n", "x".repeat(8000)));
            while sender.send(Ok(event.clone())).await.is_ok() {}
        });
        response
    })
    .await;
    let limits = GatewayConfig {
        write_timeout: HumanDuration::millis(500),
        idle_timeout: HumanDuration::secs(60),
        ..config()
    };
    let front = Front::before(limits, &[&engine]);
    let mut sender = http2_on(TcpStream::connect(front.addr()).await.unwrap()).await;
    let mut unread = sender
        .send_request(chat(CHAT_STREAM))
        .await
        .unwrap()
        .into_body();
    assert_eq!((front.reserved(), front.handle.in_flight()), (1, 1));
    eventually("the engine is free", || {
        front.reserved() == 0 && front.handle.in_flight() == 0
    })
    .await;
    let response = sender.send_request(chat(CHAT)).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        CHAT
    );
    // Reading on, the client learns that the stream was broken off.
    let end = async {
        while let Some(frame) = unread.frame().await {
            if frame.is_err() {
                return true;
            }
        }
        false
    };
    assert!(soon(end).await);
}

#[tokio::test]
async fn an_idle_http2_connection_outlives_the_header_timeout_and_ends_in_order() {
    let engine =
        Engine::start(|seen| async move { answer(200, "application/json", seen.body) }).await;
    let limits = GatewayConfig {
        header_timeout: HumanDuration::millis(100),
        idle_timeout: HumanDuration::millis(800),
        ..config()
    };
    let front = Front::before(limits, &[&engine]);
    let stream = TcpStream::connect(front.addr()).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let began = std::time::Instant::now();
    for _ in 0..2 {
        let response = sender.send_request(chat(CHAT)).await.unwrap();
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            CHAT
        );
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    soon(connection).await.unwrap().unwrap();
    assert!(began.elapsed() >= std::time::Duration::from_millis(1050));
}

#[tokio::test]
async fn http2_endpoints_share_one_connection() {
    let engine = Engine::start(|seen| async move {
        assert_eq!(seen.version, http::Version::HTTP_2);
        answer(200, "application/json", seen.body)
    })
    .await;
    // By name: `localhost` is looked up.
    let url = format!("http://localhost:{}", engine.addr.port());
    let front = Front::of(config(), vec![endpoint("e0", &url, true)]);
    for _ in 0..10 {
        assert_eq!(front.post(CHAT_PATH, CHAT).await.text(), CHAT);
    }
    assert_eq!((engine.requests(), engine.connections()), (10, 1));
    assert_eq!(front.reserved(), 0);
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    /// Writes a certificate for `name` and its key.
    fn write(&self, dir: &Path, name: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let (cert_path, key_path) = (dir.join("tls.crt"), dir.join("tls.key"));
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        std::fs::write(&cert_path, cert.pem()).unwrap();
        (cert_path, key_path)
    }

    fn client(&self, alpn: &[&[u8]]) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

async fn connect_tls(
    connector: &TlsConnector,
    addr: std::net::SocketAddr,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    soon(connector.connect(ServerName::try_from(name).unwrap(), stream)).await
}

#[tokio::test]
async fn tls_with_either_protocol_and_a_new_certificate_without_a_restart() {
    let engine = Engine::start(|seen| async move {
        assert_eq!(seen.headers["x-forwarded-proto"], "https");
        answer(200, "application/json", seen.body)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (cert, key) = authority.write(dir.path(), "old.test");
    let tls = TlsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        cert: cert.clone(),
        key,
    };
    let front = Front::before(
        GatewayConfig {
            tls: Some(tls),
            ..config()
        },
        &[&engine],
    );
    let addr = front.handle.tls_addrs()[0];

    let http1 = authority.client(&[b"http/1.1"]);
    let mut client = Client::new(connect_tls(&http1, addr, "old.test").await.unwrap());
    client.post(CHAT_PATH, CHAT).await;
    assert_eq!(client.reply().await.text(), CHAT);

    let http2 = authority.client(&[b"h2", b"http/1.1"]);
    let stream = connect_tls(&http2, addr, "old.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = http2_on(stream).await;
    let response = sender.send_request(chat(CHAT)).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        CHAT
    );

    // Half a change is not taken; the old certificate stays. The whole one is found without being told.
    std::fs::write(&cert, "not a certificate").unwrap();
    assert!(front.handle.reload_certificate().is_err());
    assert!(connect_tls(&http1, addr, "old.test").await.is_ok());
    authority.write(dir.path(), "new.test");
    let end = std::time::Instant::now() + SOON;
    while connect_tls(&http1, addr, "new.test").await.is_err() {
        assert!(
            std::time::Instant::now() < end,
            "the new certificate was not taken"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // Connections from before go on.
    client.post(CHAT_PATH, CHAT).await;
    assert_eq!(client.reply().await.status, 200);
    // A connection is closed with a TLS alert: without, the client could not tell the end from a cut.
    client
        .send(b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(client.reply().await.status, 200);
    let mut rest = Vec::new();
    soon(client.stream.read_to_end(&mut rest)).await.unwrap();
    // Cleartext to the TLS port, and a handshake that never comes, harm nobody.
    let mut plain = Client::new(TcpStream::connect(addr).await.unwrap());
    plain.send(b"GET / HTTP/1.1\r\n\r\n").await;
    while plain.fill().await {}
}

#[tokio::test]
async fn https_endpoints_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (cert, key) = authority.write(dir.path(), "localhost");
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, authority.issuer.pem()).unwrap();
    let config_of = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        CertificateDer::pem_file_iter(cert)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap(),
        PrivateKeyDer::from_pem_file(key).unwrap(),
    )
    .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config_of));
    let engine = Engine::raw(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let mut client = Client::new(stream);
                while client.until(CHAT.as_bytes()).await.is_some() {
                    client
                        .send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            }
        }
    })
    .await;
    let url = format!("https://localhost:{}", engine.addr.port());
    for (ca, insecure, status) in [
        (Some(ca.clone()), false, 200),
        (None, true, 200),
        (None, false, 502),
    ] {
        let upstream = UpstreamConfig {
            ca,
            insecure,
            ..UpstreamConfig::default()
        };
        let front = Front::of(
            GatewayConfig {
                upstream,
                ..config()
            },
            vec![endpoint("e0", &url, false)],
        );
        for _ in 0..3 {
            assert_eq!(front.post(CHAT_PATH, CHAT).await.status, status);
        }
    }
    // The name must be the certificate's.
    let by_address = format!("https://{}", engine.addr);
    let upstream = UpstreamConfig {
        ca: Some(ca),
        ..UpstreamConfig::default()
    };
    let front = Front::of(
        GatewayConfig {
            upstream,
            ..config()
        },
        vec![endpoint("e0", &by_address, false)],
    );
    assert_eq!(front.post(CHAT_PATH, CHAT).await.status, 502);
}

#[tokio::test]
async fn unusable_certificates_and_addresses_stop_the_start() {
    let engine = Engine::start(|_| async { json("{}") }).await;
    let front = Front::before(config(), &[&engine]);
    let start = |config: GatewayConfig| {
        quorate_gateway::Gateway::start(config, Arc::clone(&front.shared))
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let tls = TlsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        cert: "/none.crt".into(),
        key: "/none.key".into(),
    };
    assert!(
        start(GatewayConfig {
            tls: Some(tls),
            ..config()
        })
        .contains("/none.crt")
    );
    let taken = GatewayConfig {
        listen: vec![front.addr()],
        ..config()
    };
    assert!(start(taken).contains("cannot listen on"));
    assert!(
        start(GatewayConfig {
            listen: Vec::new(),
            ..config()
        })
        .contains("gateway.listen")
    );
}
