//! One exchange with an endpoint, and the body of its answer.

use super::pool::Entry;
use bytes::Bytes;
use http::{Request, Version, response};
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::transport::Transport;

/// The body of a request to an endpoint.
pub(super) type RequestBody = Full<Bytes>;

/// An HTTP/1.1 connection and the means to send on it. It only moves while somebody polls it.
pub(crate) struct Link {
    sender: http1::SendRequest<RequestBody>,
    /// `None` once it has ended: what still waits for it then learns so.
    connection: Option<http1::Connection<TokioIo<Transport>, RequestBody>>,
    /// When it was last given back to the pool.
    pub idle_since: Instant,
}

impl Link {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// What hyper says; the handshake does no I/O.
    pub async fn new(transport: Transport) -> Result<Box<Self>, hyper::Error> {
        // No `max_headers`: hyper keeps its default of 100 on the stack and clears a heap block for any other.
        let (sender, connection) = http1::handshake(TokioIo::new(transport)).await?;
        Ok(Box::new(Self {
            sender,
            connection: Some(connection),
            idle_since: Instant::now(),
        }))
    }

    /// Moves bytes.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.connection, cx);
    }

    /// Whether another request can be sent, after a look at whether the endpoint has closed it. Nobody is woken for what happens
    /// on an idle connection.
    pub fn is_reusable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.is_ready()
    }

    /// The same without a look at the socket.
    fn is_ready(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }
}

fn drive<C: Future + Unpin>(connection: &mut Option<C>, cx: &mut Context<'_>) {
    if let Some(open) = connection
        && Pin::new(open).poll(cx).is_ready()
    {
        *connection = None;
    }
}

/// A connection that a request can be sent on.
pub(super) enum Channel {
    Http1(Box<Link>),
    /// Shared with other requests.
    Http2(http2::SendRequest<RequestBody>),
}

impl Channel {
    /// What a request on it must say.
    pub fn version(&self) -> Version {
        match self {
            Self::Http1(_) => Version::HTTP_11,
            Self::Http2(_) => Version::HTTP_2,
        }
    }
}

/// Sends a request and waits for the head of the answer, driving the connection if nobody else does.
pub(super) async fn send(
    channel: Channel,
    request: Request<RequestBody>,
    entry: &Arc<Entry>,
) -> Result<(response::Parts, Source), hyper::Error> {
    let (answer, link) = match channel {
        Channel::Http1(mut link) => {
            let mut answer = pin!(link.sender.send_request(request));
            let head = poll_fn(|cx| {
                drive(&mut link.connection, cx);
                // Only the line above can bring the answer. A waker here would wake this task out of its own poll.
                answer
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
            });
            (head.await?, Some(link))
        }
        Channel::Http2(mut sender) => {
            sender.ready().await?;
            (sender.send_request(request).await?, None)
        }
    };
    let (head, body) = answer.into_parts();
    let entry = Arc::clone(entry);
    Ok((head, Source { link, body, entry }))
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
    /// For its size and whether it is over.
    pub fn body(&self) -> &Incoming {
        &self.body
    }

    /// The next piece. `None` at the end.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(link) = &mut self.link else {
            return Pin::new(&mut self.body).poll_frame(cx);
        };
        // Only driving the connection brings more: see `send`.
        let mut nobody = Context::from_waker(Waker::noop());
        let polled = Pin::new(&mut self.body).poll_frame(&mut nobody);
        if polled.is_ready() {
            return polled;
        }
        link.drive(cx);
        Pin::new(&mut self.body).poll_frame(&mut nobody)
    }

    /// After the end: gives the connection back to the pool if it can be used again.
    pub fn release(&mut self) {
        if let Some(mut link) = self.link.take()
            && (link.is_ready() || link.is_reusable())
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
