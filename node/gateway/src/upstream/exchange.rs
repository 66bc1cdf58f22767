//! One exchange with an endpoint, and the body of its answer.

use super::pool::Entry;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::transport::Transport;

/// The body of a request to an endpoint.
pub(super) type RequestBody = Full<Bytes>;

/// An HTTP/1.1 connection and the means to send on it. It only moves while somebody polls it.
pub(crate) struct Link {
    sender: http1::SendRequest<RequestBody>,
    connection: http1::Connection<TokioIo<Transport>, RequestBody>,
    /// The connection has ended and must not be polled again.
    over: bool,
    /// When it was last given back to the pool.
    pub idle_since: Instant,
}

impl Link {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// What hyper says; the handshake does no I/O.
    pub async fn new(transport: Transport) -> Result<Box<Self>, hyper::Error> {
        let (sender, connection) = http1::Builder::new()
            .max_headers(256)
            .handshake(TokioIo::new(transport))
            .await?;
        Ok(Box::new(Self {
            sender,
            connection,
            over: false,
            idle_since: Instant::now(),
        }))
    }

    /// Moves bytes.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.over && Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.over = true;
        }
    }

    /// Whether another request can be sent, after a look at whether the endpoint has closed it.
    pub fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.over && self.sender.is_ready()
    }
}

/// Sends a request and drives the connection until the head of the answer is there.
pub(super) async fn send(
    mut link: Box<Link>,
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Option<Box<Link>>), hyper::Error> {
    let mut answer = pin!(link.sender.send_request(request));
    let mut driven_to_end = false;
    let response = poll_fn(|cx| {
        if !driven_to_end && Pin::new(&mut link.connection).poll(cx).is_ready() {
            driven_to_end = true;
        }
        answer.as_mut().poll(cx)
    })
    .await?;
    link.over = driven_to_end;
    Ok((response, Some(link)))
}

/// Sends a request on a shared HTTP/2 connection.
pub(super) async fn send_http2(
    sender: &mut http2::SendRequest<RequestBody>,
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Option<Box<Link>>), hyper::Error> {
    sender.ready().await?;
    Ok((sender.send_request(request).await?, None))
}

/// The body of an answer together with the connection that it comes from. Dropped early, it closes the connection (HTTP/1.1) or
/// resets the stream (HTTP/2), so that the engine stops working for nobody.
pub(crate) struct Source {
    /// `None`: HTTP/2, or already given back.
    link: Option<Box<Link>>,
    body: Incoming,
    entry: Arc<Entry>,
}

impl Source {
    /// Joins the parts of an exchange.
    pub fn new(link: Option<Box<Link>>, body: Incoming, entry: Arc<Entry>) -> Self {
        Self { link, body, entry }
    }

    /// For its size and whether it is over.
    pub fn body(&self) -> &Incoming {
        &self.body
    }

    /// The next piece. `None` at the end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &mut self.link {
            Some(link) if polled.is_pending() => {
                link.drive(cx);
                Pin::new(&mut self.body).poll_frame(cx)
            }
            _ => polled,
        }
    }

    /// After the end: gives the connection back to the pool if it can be used again.
    pub fn release(&mut self, cx: &mut Context<'_>) {
        if let Some(mut link) = self.link.take()
            && link.is_reusable(cx)
        {
            self.entry.give_back(link);
        }
    }

    /// Reads what has already come; true if that was the rest of the body.
    pub fn read_out(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => return true,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(None) => return true,
                Poll::Ready(Some(Err(_))) | Poll::Pending => return false,
            }
        }
    }
}
