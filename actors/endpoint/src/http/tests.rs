//! The probe client against small servers on real sockets.

use super::*;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Response, server};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(20),
    body: 1000,
};

fn client(at: SocketAddr) -> Client {
    Client::new(
        Target::new(false, &at.ip().to_string(), at.port()),
        false,
        None,
    )
}

/// Says what was asked: version, method, path, host, body.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let host = head
        .headers
        .get(HOST)
        .map(|h| h.to_str().unwrap().to_owned());
    let authority = head.uri.authority().map(ToString::to_string);
    let body = body.collect().await.unwrap().to_bytes();
    let text = format!(
        "{:?} {} {} {} {}",
        head.version,
        head.method,
        head.uri.path(),
        host.or(authority).unwrap_or_default(),
        String::from_utf8_lossy(&body)
    );
    Ok(Response::new(Full::new(Bytes::from(text))))
}

async fn serve_echo(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, h2: bool) {
    let io = TokioIo::new(io);
    // Ends when the client goes away.
    let _ = if h2 {
        server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service_fn(echo))
            .await
    } else {
        server::conn::http1::Builder::new()
            .serve_connection(io, service_fn(echo))
            .await
    };
}

/// An echo server; returns its address and the number of connections that it took.
async fn echo_server(bind: &str, h2: bool) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind(bind).await.unwrap();
    let at = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            tokio::spawn(serve_echo(stream, h2));
        }
    });
    (at, taken)
}

/// Answers each connection with raw bytes after reading a request's first part, then closes it if told so.
async fn raw_server(answer: &'static [u8], close: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer).await;
            if !close {
                open.push(stream);
            }
        }
    });
    at
}

fn text(page: &Page) -> &str {
    std::str::from_utf8(&page.body).unwrap()
}

#[tokio::test]
async fn connections_are_kept_and_hosts_are_named() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let (at, taken) = echo_server(bind, false).await;
        let client = client(at);
        for _ in 0..3 {
            let page = client.get("/metrics", LIMITS).await.unwrap();
            assert_eq!(text(&page), format!("HTTP/1.1 GET /metrics {at} "));
        }
        let page = client
            .post("/v1/completions", Bytes::from("{}"), LIMITS)
            .await
            .unwrap();
        assert!(text(&page).ends_with("{}"));
        assert_eq!(taken.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn http2_without_tls() {
    let (at, taken) = echo_server("127.0.0.1:0", true).await;
    let client = Client::new(Target::new(false, "localhost", at.port()), true, None);
    for _ in 0..2 {
        let page = client.get("/health", LIMITS).await.unwrap();
        assert_eq!(
            text(&page),
            format!("HTTP/2.0 GET /health localhost:{} ", at.port())
        );
    }
    assert_eq!(taken.load(SeqCst), 1);
}

#[tokio::test]
async fn tls_is_verified() {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key =
        rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve_echo(stream, false));
            }
        }
    });
    let trusting = |roots: rustls::RootCertStore| {
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Client::new(
            Target::new(true, "localhost", port),
            false,
            Some(Arc::new(config)),
        )
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(signed.cert.der().clone()).unwrap();
    let page = trusting(roots).get("/health", LIMITS).await.unwrap();
    assert_eq!(page.status, 200);
    let refused = trusting(rustls::RootCertStore::empty())
        .get("/health", LIMITS)
        .await;
    assert!(
        matches!(refused, Err(FetchError::Connect { .. })),
        "{refused:?}"
    );
    let unconfigured = Client::new(Target::new(true, "localhost", port), false, None);
    let error = unconfigured
        .get("/health", LIMITS)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no certificate authorities"), "{error}");
}

#[tokio::test]
async fn what_can_go_wrong_is_told_apart() {
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert!(matches!(
        client(free).get("/", LIMITS).await,
        Err(FetchError::Refused(_))
    ));

    let short = Limits {
        timeout: Duration::from_millis(50),
        ..LIMITS
    };
    let hangs = raw_server(b"", false).await;
    assert!(matches!(
        client(hangs).get("/", short).await,
        Err(FetchError::Timeout(_))
    ));
    let half = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", false).await;
    assert!(matches!(
        client(half).get("/", short).await,
        Err(FetchError::Timeout(_))
    ));
    let broken = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", true).await;
    assert!(matches!(
        client(broken).get("/", LIMITS).await,
        Err(FetchError::Broken(_))
    ));
    let other = raw_server(b"SSH-2.0-OpenSSH\r\n", true).await;
    assert!(matches!(
        client(other).get("/", LIMITS).await,
        Err(FetchError::Broken(_))
    ));
    let small = Limits { body: 2, ..LIMITS };
    let long = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", true).await;
    assert!(matches!(
        client(long).get("/", small).await,
        Err(FetchError::TooLong(2))
    ));
    let name = Client::new(
        Target::new(false, "does-not-exist.invalid", 80),
        false,
        None,
    );
    assert!(matches!(
        name.get("/", LIMITS).await,
        Err(FetchError::Connect { .. })
    ));
    assert!(
        client(free)
            .get("no slash and spaces", LIMITS)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    // Closes after each answer without saying so in the headers.
    let at = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true).await;
    let client = client(at);
    for _ in 0..5 {
        assert_eq!(text(&client.get("/", LIMITS).await.unwrap()), "ok");
    }
}
