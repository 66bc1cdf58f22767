//! One client connection, HTTP/1.1 or HTTP/2, driven without a task of its own where the protocol allows it.

use super::{
    body::Pieces,
    failure::{Class, Failure, chain},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
};
use tokio::net::{TcpSocket, TcpStream};

/// Bytes that a slow reader lets wait in its own buffers (receive buffer of the kernel, read buffer of hyper).
const SLOW_READER_BUFFER: u32 = 8 * 1024;

/// How to connect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dial {
    pub(crate) http2: bool,
    /// Small buffers, so that a reader that does not read is felt at the other end.
    pub(crate) slow: bool,
}

/// An open connection.
pub(crate) enum Link {
    Http1(Http1),
    Http2(http2::SendRequest<Pieces>),
}

type Http1Driver = Pin<Box<http1::Connection<TokioIo<TcpStream>, Pieces>>>;

/// An HTTP/1.1 connection. Whoever waits on it also moves its bytes: no task, no wake-up between tasks, and a client that does
/// not read leaves the bytes in the socket.
pub(crate) struct Http1 {
    send: http1::SendRequest<Pieces>,
    driver: Option<Http1Driver>,
}

/// Connects to the first of the addresses that answers.
pub(crate) async fn connect(addresses: &[SocketAddr], dial: Dial) -> Result<Link, Failure> {
    let fail = |e: &dyn std::error::Error| Failure::new(Class::Connect, chain(e));
    let mut last = Failure::new(Class::Connect, "no address");
    for address in addresses {
        let stream = match open(*address, dial).await {
            Ok(stream) => TokioIo::new(stream),
            Err(e) => {
                last = Failure::new(Class::Connect, format!("{address}: {e}"));
                continue;
            }
        };
        if dial.http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            if !dial.slow {
                // One window's worth of tokens is never what limits a stream.
                builder
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(16 << 20);
            }
            let (send, driver) = builder.handshake(stream).await.map_err(|e| fail(&e))?;
            // Ends with the connection; what went wrong is seen by the requests on it.
            tokio::spawn(driver);
            return Ok(Link::Http2(send));
        }
        let mut builder = http1::Builder::new();
        if dial.slow {
            builder.max_buf_size(SLOW_READER_BUFFER as usize);
        }
        let (send, driver) = builder.handshake(stream).await.map_err(|e| fail(&e))?;
        return Ok(Link::Http1(Http1 {
            send,
            driver: Some(Box::pin(driver)),
        }));
    }
    Err(last)
}

async fn open(address: SocketAddr, dial: Dial) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if dial.slow {
        socket.set_recv_buffer_size(SLOW_READER_BUFFER)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Link {
    /// Waits until a request can be sent; false if the connection is closed.
    pub(crate) async fn ready(&mut self) -> bool {
        match self {
            Link::Http1(Http1 { send, driver }) => {
                drive(driver, send.ready()).await.is_ok() && driver.is_some()
            }
            Link::Http2(send) => send.ready().await.is_ok(),
        }
    }

    /// Sends a request and waits for the answer's head.
    pub(crate) async fn send(
        &mut self,
        request: Request<Pieces>,
    ) -> Result<Response<Incoming>, Failure> {
        let result = match self {
            Link::Http1(Http1 { send, driver }) => {
                let answer = send.send_request(request);
                drive(driver, answer).await
            }
            Link::Http2(send) => send.send_request(request).await,
        };
        result.map_err(|e| Failure::before_head(&e))
    }

    /// The next bytes of the answer's body; `None` at its end.
    pub(crate) async fn next_data(
        &mut self,
        body: &mut Incoming,
    ) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match self {
                Link::Http1(Http1 { driver, .. }) => drive(driver, body.frame()).await,
                Link::Http2(_) => body.frame().await,
            };
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(Failure::in_body(&e)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Runs `future` and the connection that it waits for.
async fn drive<F: Future>(driver: &mut Option<Http1Driver>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // The connection first: it notices a close, writes what was queued and reads what has come. Then the future, which may
        // in turn let the connection go on (a body is read only when somebody waits for it).
        for _ in 0..2 {
            if let Some(connection) = driver
                && connection.as_mut().poll(cx).is_ready()
            {
                // Its error, if any, has gone to the request or the body.
                *driver = None;
            }
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
        }
        Poll::Pending
    })
    .await
}
