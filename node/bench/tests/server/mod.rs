//! Servers to be loaded: a hyper one that behaves, and a raw one that writes what it is told to.
#![allow(dead_code, reason = "each test program uses its own part")]

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use quorate_bench::{HttpArgs, HttpReport, Report, run_http};
use std::{
    convert::Infallible,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: HttpArgs,
}

/// Runs the load with these command-line arguments.
pub fn bench(args: &[&str]) -> anyhow::Result<HttpReport> {
    let cli = Cli::try_parse_from(["bench"].iter().chain(args))?;
    match run_http(cli.args)? {
        Report::Http(report) => Ok(*report),
        Report::Control(_) => anyhow::bail!("not an HTTP report"),
    }
}

pub type Body = BoxBody<Bytes, Infallible>;

pub fn full(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(text.into()).boxed())
}

/// One request as the server saw it, and its number from 0 on.
pub struct Seen {
    pub number: u64,
    pub head: http::request::Parts,
    pub body: Bytes,
}

/// Starts a hyper server that speaks HTTP/1.1 and HTTP/2; it lives as long as the test program.
pub fn serve<F, Fut>(handler: F) -> (SocketAddr, Arc<AtomicU64>)
where
    F: Fn(Seen) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let (handler, counter) = (Arc::new(handler), count.clone());
    let main = async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (handler, counter) = (handler.clone(), counter.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (handler, counter) = (handler.clone(), counter.clone());
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let number = counter.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, hyper::Error>(handler(Seen { number, head, body }).await)
                }
            });
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    };
    thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(main)
    });
    (address, count)
}

/// An event stream whose pieces come after these pauses.
pub fn stream(pieces: Vec<(Duration, String)>) -> Response<Body> {
    let frames = async_pieces(pieces);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(
        "content-type",
        "text/event-stream; charset=utf-8".parse().unwrap(),
    );
    response
}

fn async_pieces(
    pieces: Vec<(Duration, String)>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    futures_util::stream::unfold(pieces.into_iter(), |mut pieces| async move {
        let (pause, text) = pieces.next()?;
        tokio::time::sleep(pause).await;
        Some((Ok(Frame::data(Bytes::from(text))), pieces))
    })
}

pub fn token(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

pub const DONE: &str = "data: [DONE]\n\n";

/// Starts a server that hands each connection to `handler` on a thread of its own.
pub fn raw<F: Fn(TcpStream) + Send + Sync + 'static>(handler: F) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handler) = (stream.unwrap(), handler.clone());
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || handler(stream));
        }
    });
    address
}

/// Reads one request with a `content-length`; false at the end of the connection.
pub fn read_request(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    let mut piece = [0u8; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&piece[..n]),
            _ => return false,
        }
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(end) = text.find("\r\n\r\n") {
            let length = text
                .split("content-length: ")
                .nth(1)
                .and_then(|t| t.split("\r\n").next());
            let length: usize = length.map_or(0, |t| t.trim().parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return true;
            }
        }
    }
}

/// A raw server that answers each request with these bytes and then, if told so, closes.
pub fn answer(bytes: &'static [u8], close: bool) -> SocketAddr {
    raw(move |mut stream| {
        while read_request(&mut stream) {
            if stream.write_all(bytes).is_err() || close {
                return;
            }
        }
    })
}
