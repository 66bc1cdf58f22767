//! Connections to endpoints: one pool for each worker, so that a request never leaves the thread of its client connection.
//!
//! An HTTP/1.1 connection is not a task of its own: whoever holds it drives it ([`exchange::Link`]). While a request uses it, that is the
//! client connection's task, so that a byte from the engine goes to the client within one poll and without a wake-up between
//! tasks. HTTP/2 connections carry many requests and are tasks of their own.

mod connect;
mod exchange;
mod pool;

pub(crate) use exchange::Source;
pub(crate) use pool::{Entry, Upstreams};

use crate::call::Call;
use crate::deadline::{Deadline, after, until};
use crate::headers;
use crate::worker::Core;
use bytes::Bytes;
use http::{Method, Request, Response, Uri, Version, request, response};
use http_body::{Body as _, Frame};
use http_body_util::Full;
use hyper::body::Incoming;
use quorate_routing::{Api, Endpoint, Failure};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request that finds its reused connection dead within this time raced with the engine closing it: it is sent once more on a
/// fresh connection and the endpoint is not blamed. Later than this the engine took the request and died.
const STALE_REUSE: Duration = Duration::from_secs(1);

/// The beginning of an endpoint's answer.
pub(crate) struct Answer {
    pub head: response::Parts,
    pub source: Source,
    /// The first piece of the body. For the model APIs an answer only counts as begun with it, so that an engine that dies
    /// between head and first token can still be replaced by another.
    pub first: Option<Frame<Bytes>>,
    /// The request's timer, handed on to the body.
    pub deadline: Deadline,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Refused, unreachable, TLS failed, or the connect timeout passed.
    Connect,
    /// The connection broke, or what came was not HTTP.
    Reset,
    /// Nothing came within the first-byte timeout.
    FirstByte,
    /// The whole request's time is up; says nothing about the endpoint.
    Total,
}

impl Failed {
    /// What it says about the endpoint.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Connect => Some(Failure::Connect),
            Self::Reset => Some(Failure::Reset),
            Self::FirstByte => Some(Failure::FirstByteTimeout),
            Self::Total => None,
        }
    }
}

/// Sends `call` to `endpoint` and waits until its answer has begun.
///
/// # Errors
/// [`Failed`]; nothing of an answer has been seen then.
pub(crate) async fn send(
    core: &Core,
    upstreams: &Upstreams,
    endpoint: &Arc<Endpoint>,
    call: &Call,
) -> Result<Answer, Failed> {
    let entry = upstreams.entry(endpoint);
    let begun = Instant::now();
    let mut deadline = Deadline::default();
    if endpoint.spec().h2c {
        if let Some(mut sender) = entry.http2() {
            core.metrics.reuses.increment(1);
            let sent = exchange::send_http2(&mut sender, request(&entry, call, Version::HTTP_2));
            match answer_in_time(core, call, begun, &mut deadline, &entry, sent).await {
                Err(Failed::Reset) if begun.elapsed() < STALE_REUSE => entry.forget_http2(),
                other => return other.map(|a| a.with(deadline)),
            }
        }
        let mut sender = connected(core, call, connect::http2(core, endpoint)).await?;
        entry.keep_http2(&sender);
        let sent = exchange::send_http2(&mut sender, request(&entry, call, Version::HTTP_2));
        return answer_in_time(core, call, begun, &mut deadline, &entry, sent)
            .await
            .map(|a| a.with(deadline));
    }
    if let Some(link) = poll_fn(|cx| entry.take_idle(cx)).await {
        core.metrics.reuses.increment(1);
        let sent = exchange::send(link, request(&entry, call, Version::HTTP_11));
        match answer_in_time(core, call, begun, &mut deadline, &entry, sent).await {
            Err(Failed::Reset) if begun.elapsed() < STALE_REUSE => {}
            other => return other.map(|a| a.with(deadline)),
        }
    }
    let link = connected(core, call, connect::http1(core, endpoint)).await?;
    let sent = exchange::send(link, request(&entry, call, Version::HTTP_11));
    answer_in_time(core, call, begun, &mut deadline, &entry, sent)
        .await
        .map(|a| a.with(deadline))
}

/// An answer without its timer.
struct Begun(response::Parts, Source, Option<Frame<Bytes>>);

impl Begun {
    fn with(self, deadline: Deadline) -> Answer {
        Answer {
            head: self.0,
            source: self.1,
            first: self.2,
            deadline,
        }
    }
}

/// Connects within the connect timeout and the request's total time.
async fn connected<T>(
    core: &Core,
    call: &Call,
    connecting: impl Future<Output = Result<T, connect::ConnectError>>,
) -> Result<T, Failed> {
    let limit = after(Instant::now(), core.config.connect_timeout.0);
    let at = call.total_at.map_or(limit, |total| total.min(limit));
    let result = match until(at, connecting).await {
        Some(Ok(connected)) => {
            core.metrics.connects.increment(1);
            return Ok(connected);
        }
        Some(Err(e)) => e,
        None if call.total_at.is_some_and(|total| total <= at) => return Err(Failed::Total),
        None => connect::ConnectError::Timeout,
    };
    core.metrics.connects_failed.increment(1);
    tracing::debug!(error = %result, "connect failed");
    Err(Failed::Connect)
}

/// Waits for the head, and for the model APIs for the first piece of the body, within the first-byte timeout.
async fn answer_in_time(
    core: &Core,
    call: &Call,
    begun: Instant,
    deadline: &mut Deadline,
    entry: &Arc<Entry>,
    exchange: impl Future<
        Output = Result<(Response<Incoming>, Option<Box<exchange::Link>>), hyper::Error>,
    >,
) -> Result<Begun, Failed> {
    let limit = after(begun, core.config.first_byte_timeout.0);
    let at = call.total_at.map_or(limit, |total| total.min(limit));
    let mut waiting = std::pin::pin!(async {
        let (response, link) = exchange.await.map_err(reset)?;
        let (head, body) = response.into_parts();
        let mut source = Source::new(link, body, Arc::clone(entry));
        let first = if call.info.api == Api::Native || source.body().is_end_stream() {
            None
        } else {
            poll_fn(|cx| source.poll_frame(cx))
                .await
                .transpose()
                .map_err(reset)?
        };
        Ok(Begun(head, source, first))
    });
    poll_fn(|cx| {
        if let std::task::Poll::Ready(done) = waiting.as_mut().poll(cx) {
            return std::task::Poll::Ready(done);
        }
        if deadline.has_passed(cx, at) {
            let total = call.total_at.is_some_and(|total| total <= at);
            return std::task::Poll::Ready(Err(if total {
                Failed::Total
            } else {
                Failed::FirstByte
            }));
        }
        std::task::Poll::Pending
    })
    .await
}

fn reset(error: hyper::Error) -> Failed {
    tracing::debug!(%error, "no answer");
    Failed::Reset
}

/// The request as it goes to the endpoint.
fn request(entry: &Entry, call: &Call, version: Version) -> Request<Full<Bytes>> {
    let request::Parts {
        method,
        uri,
        headers,
        ..
    } = &call.parts;
    let has_body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    let mut headers = headers::to_endpoint(
        headers,
        call.body.len(),
        has_body,
        entry.host(),
        &call.client,
    );
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.uri_mut() = if version == Version::HTTP_2 {
        headers.remove(http::header::HOST);
        entry.absolute(uri)
    } else {
        origin_form(uri)
    };
    *request.headers_mut() = headers;
    *request.method_mut() = method.clone();
    *request.version_mut() = version;
    request
}

/// Path and query alone: a client may have sent the absolute form, and HTTP/2 always has scheme and authority.
fn origin_form(uri: &Uri) -> Uri {
    if uri.scheme().is_none() && uri.authority().is_none() {
        return uri.clone();
    }
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = uri.path_and_query().cloned();
    Uri::from_parts(parts).unwrap_or_default()
}
