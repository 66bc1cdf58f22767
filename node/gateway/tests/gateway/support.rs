//! What the tests share: engines that behave as told, a gateway in front of them, and a client that sees every byte.

pub use crate::ready::*;
pub use crate::requests::*;
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use quorate_gateway::{Gateway, GatewayConfig, GatewayHandle, GatewayShared, HumanDuration};
use quorate_routing::{Endpoint, PoolPolicy, PoolSpec, RoutingView, SharedView};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest wait for anything that must happen.
pub const SOON: Duration = Duration::from_secs(20);

pub type EngineBody = BoxBody<Bytes, std::io::Error>;

/// What an engine saw of a request.
#[derive(Debug)]
pub struct Seen {
    pub method: http::Method,
    pub uri: http::Uri,
    pub version: http::Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A model server in this process. It stops when it is dropped.
pub struct Engine {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Engine {
    /// Answers each request with what `answer` makes of it; HTTP/1.1 or HTTP/2 as the client begins.
    pub async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(Seen) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<EngineBody>> + Send + 'static,
    {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let engine = Self::raw(move |stream| {
            let (answer, counted) = (answer.clone(), Arc::clone(&counted));
            async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    counted.fetch_add(1, SeqCst);
                    let answer = answer.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body
                            .collect()
                            .await
                            .map(|b| b.to_bytes())
                            .unwrap_or_default();
                        let http::request::Parts {
                            method,
                            uri,
                            version,
                            headers,
                            ..
                        } = parts;
                        Ok::<_, Infallible>(
                            answer(Seen {
                                method,
                                uri,
                                version,
                                headers,
                                body,
                            })
                            .await,
                        )
                    }
                });
                let mut builder =
                    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http1().pipeline_flush(false);
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        })
        .await;
        engine.counting(requests)
    }

    /// Hands each connection to `serve`.
    pub async fn raw<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                counted.fetch_add(1, SeqCst);
                open.spawn(serve(stream));
            }
        });
        Self {
            addr,
            connections,
            requests: Arc::default(),
            task,
        }
    }

    fn counting(mut self, requests: Arc<AtomicUsize>) -> Self {
        self.requests = requests;
        self
    }

    /// This engine under an address that is not its own.
    pub fn elsewhere(mut self, addr: SocketAddr) -> Self {
        self.addr = addr;
        self
    }

    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// A plain answer.
pub fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<EngineBody> {
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(Full::new(body.into()).map_err(|e| match e {}).boxed())
        .unwrap()
}

pub fn json(body: &'static str) -> Response<EngineBody> {
    answer(200, "application/json", body)
}

/// An answer of server-sent events that come when the test sends them. Dropping the sender ends it; an error breaks it off.
pub fn events() -> (mpsc::Sender<std::io::Result<Bytes>>, Response<EngineBody>) {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(1024);
    let frames = Frames(receiver);
    let response = Response::builder()
        .header("content-type", "text/event-stream; charset=utf-8")
        .body(frames.boxed())
        .unwrap();
    (sender, response)
}

/// A channel as a body.
pub struct Frames(mpsc::Receiver<std::io::Result<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|item| item.map(|data| data.map(Frame::data)))
    }
}

/// A gateway and the endpoints it routes to.
pub struct Front {
    pub handle: GatewayHandle,
    pub shared: Arc<GatewayShared>,
    pub view: SharedView,
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Limits short enough for tests that need none of them, and one worker, so that connections are shared.
pub fn config() -> GatewayConfig {
    GatewayConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        workers: 1,
        connect_timeout: HumanDuration::secs(5),
        seed: Some(7),
        ..GatewayConfig::default()
    }
}

impl Front {
    /// A gateway with the given limits in front of one pool of these endpoints, all of which serve the model `m`.
    pub fn of(config: GatewayConfig, endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self::with(config, PoolPolicy::default(), endpoints)
    }

    /// The same with a policy for the pool.
    pub fn with(config: GatewayConfig, policy: PoolPolicy, endpoints: Vec<Arc<Endpoint>>) -> Self {
        crate::metrics::recorder();
        let pool = PoolSpec {
            name: "p".into(),
            ..PoolSpec::default()
        };
        let view: SharedView = Arc::new(ArcSwap::from_pointee(RoutingView::with_policies([(
            pool,
            Arc::new(policy),
            endpoints.clone(),
        )])));
        let shared = GatewayShared::new(Arc::clone(&view), "node-1");
        shared.set_ready(true);
        let handle = Gateway::start(config, Arc::clone(&shared)).unwrap();
        Self {
            handle,
            shared,
            view,
            endpoints,
        }
    }

    /// In front of these engines, over HTTP/1.1.
    pub fn before(config: GatewayConfig, engines: &[&Engine]) -> Self {
        Self::of(config, endpoints(engines))
    }

    pub fn addr(&self) -> SocketAddr {
        self.handle.local_addrs()[0]
    }

    pub async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.addr()).await.unwrap())
    }

    /// One POST on a connection of its own.
    pub async fn post(&self, path: &str, body: &str) -> Reply {
        let mut client = self.connect().await;
        client.post(path, body).await;
        client.reply().await
    }

    /// The same with more headers, each line ended by CR LF.
    pub async fn post_with(&self, path: &str, headers: &str, body: &str) -> Reply {
        let mut client = self.connect().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: front\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        client.send(format!("{head}{body}").as_bytes()).await;
        client.reply().await
    }

    pub async fn get(&self, path: &str) -> Reply {
        let mut client = self.connect().await;
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: front\r\n\r\n").as_bytes())
            .await;
        client.reply().await
    }

    /// Requests reserved on all endpoints.
    pub fn reserved(&self) -> u32 {
        self.endpoints.iter().map(|e| e.local_in_flight()).sum()
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The body ended as its framing says.
    pub whole: bool,
}

impl Reply {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// An HTTP/1.1 client made of a socket and a buffer.
pub struct Client<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        soon(self.stream.write_all(bytes)).await.unwrap();
        soon(self.stream.flush()).await.unwrap();
    }

    pub async fn post(&mut self, path: &str, body: &str) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: front\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.send(format!("{head}{body}").as_bytes()).await;
    }

    /// Reads more; false at the end or if the connection was reset.
    pub async fn fill(&mut self) -> bool {
        let mut piece = vec![0; 64 << 10];
        match soon(self.stream.read(&mut piece)).await {
            Ok(n) if n > 0 => {
                self.buffer.extend_from_slice(&piece[..n]);
                true
            }
            _ => false,
        }
    }

    /// Everything up to and including `end`.
    pub async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Status and headers.
    pub async fn head(&mut self) -> (u16, HeaderMap) {
        let head = self.until(b"\r\n\r\n").await.expect("an answer");
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse().unwrap()))
            .collect();
        (status, headers)
    }

    /// The next chunk's data: empty at the end of the body, `None` if the connection ended before.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.until(b"\r\n").await?;
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        while self.buffer.len() < size + 2 {
            if !self.fill().await {
                return None;
            }
        }
        let data = self.buffer.drain(..size).collect();
        self.buffer.drain(..2);
        Some(data)
    }

    /// A whole answer to a request other than HEAD.
    pub async fn reply(&mut self) -> Reply {
        let (mut status, mut headers) = self.head().await;
        while status == 100 {
            (status, headers) = self.head().await;
        }
        let mut body = Vec::new();
        let whole;
        if let Some(length) = headers.get("content-length") {
            let length: usize = length.to_str().unwrap().parse().unwrap();
            while self.buffer.len() < length && self.fill().await {}
            whole = self.buffer.len() >= length;
            body.extend(self.buffer.drain(..length.min(self.buffer.len())));
        } else if headers
            .get("transfer-encoding")
            .is_some_and(|v| v == "chunked")
        {
            whole = loop {
                match self.chunk().await {
                    Some(data) if data.is_empty() => break true,
                    Some(data) => body.extend(data),
                    None => break false,
                }
            };
        } else {
            while self.fill().await {}
            body.append(&mut self.buffer);
            whole = true;
        }
        Reply {
            status,
            headers,
            body,
            whole,
        }
    }

    /// The server has closed the connection.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill().await
    }
}

/// Fails the test instead of hanging it.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + SOON;
    while !condition() {
        assert!(std::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
