//! Connections to endpoints: one pool for each worker, so that a request never leaves the thread of its client connection.
//!
//! An HTTP/1.1 connection is not a task of its own: whoever holds it drives it ([`exchange::Link`]). While a request uses it, that is the
//! client connection's task, so that a byte from the engine goes to the client within one poll and without a wake-up between
//! tasks. HTTP/2 connections carry many requests and are tasks of their own.

mod connect;
mod exchange;
mod pool;

pub(crate) use exchange::Source;
pub(crate) use pool::Upstreams;

use crate::call::Call;
use crate::deadline::{Deadline, after, until};
use crate::headers;
use crate::worker::Core;
use bytes::Bytes;
use exchange::Channel;
use http::{HeaderValue, Method, Request, Uri, Version, request, response};
use http_body::{Body as _, Frame};
use http_body_util::Full;
use pool::Entry;
use quorate_routing::{Api, Endpoint, Failure};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
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
    /// Flow control wants its place for a request of a higher band.
    Revoked,
}

impl Failed {
    /// For records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::FirstByte => "first-byte-timeout",
            Self::Total => "total-timeout",
            Self::Revoked => "revoked",
        }
    }

    /// What it says about the endpoint.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Connect => Some(Failure::Connect),
            Self::Reset => Some(Failure::Reset),
            Self::FirstByte => Some(Failure::FirstByteTimeout),
            Self::Total | Self::Revoked => None,
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
    entry.count_pick(&call.observation.labels().target);
    let begun = Instant::now();
    let mut deadline = Deadline::default();
    let mut open = entry.take();
    loop {
        let reused = open.is_some();
        let channel = match open.take() {
            Some(channel) => {
                core.metrics.reuses.increment(1);
                channel
            }
            // Boxed: rare, and large beside the rest of a request's state.
            None => Box::pin(connect(core, call, &entry)).await?,
        };
        match answer(core, call, begun, &mut deadline, &entry, channel).await {
            Err(Failed::Reset) if reused && begun.elapsed() < STALE_REUSE => entry.forget_http2(),
            Err(failed) => return Err(failed),
            Ok((head, source, first)) => {
                return Ok(Answer {
                    head,
                    source,
                    first,
                    deadline,
                });
            }
        }
    }
}

/// Opens a connection within the connect timeout and the request's total time.
async fn connect(core: &Core, call: &Call, entry: &Entry) -> Result<Channel, Failed> {
    let limit = after(Instant::now(), core.config.connect_timeout.0);
    let at = call.total_at.map_or(limit, |total| total.min(limit));
    let error = match until(at, connect::open(core, entry.endpoint())).await {
        Some(Ok(channel)) => {
            core.metrics.connects.increment(1);
            entry.share(&channel);
            return Ok(channel);
        }
        Some(Err(error)) => error,
        None if call.total_at.is_some_and(|total| total <= at) => return Err(Failed::Total),
        None => connect::ConnectError::Timeout,
    };
    core.metrics.connects_failed.increment(1);
    tracing::debug!(endpoint = entry.endpoint().name(), %error, "connect failed");
    Err(Failed::Connect)
}

/// Sends the request and waits for the head, and for the model APIs for the first piece of the body, within the first-byte timeout.
async fn answer(
    core: &Core,
    call: &Call,
    begun: Instant,
    deadline: &mut Deadline,
    entry: &Arc<Entry>,
    channel: Channel,
) -> Result<(response::Parts, Source, Option<Frame<Bytes>>), Failed> {
    let limit = after(begun, core.config.first_byte_timeout.0);
    let at = call.total_at.map_or(limit, |total| total.min(limit));
    let mut waiting = pin!(async {
        let request = request(entry, call, channel.version());
        let (head, mut source) = exchange::send(channel, request, entry).await?;
        let first = if call.info.api == Api::Native || source.body().is_end_stream() {
            None
        } else {
            poll_fn(|cx| source.poll_frame(cx)).await.transpose()?
        };
        Ok((head, source, first))
    });
    poll_fn(|cx| {
        if let Poll::Ready(done) = waiting.as_mut().poll(cx) {
            return Poll::Ready(done.map_err(|error: hyper::Error| {
                tracing::debug!(endpoint = entry.endpoint().name(), %error, "no answer");
                Failed::Reset
            }));
        }
        if let Some(permit) = &call.permit
            && permit.poll_revoked(cx).is_ready()
        {
            return Poll::Ready(Err(Failed::Revoked));
        }
        if deadline.has_passed(cx, at) {
            let total = call.total_at.is_some_and(|total| total <= at);
            return Poll::Ready(Err(if total {
                Failed::Total
            } else {
                Failed::FirstByte
            }));
        }
        Poll::Pending
    })
    .await
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
    let body = call.hinted.as_ref().unwrap_or(&call.body);
    let mut headers =
        headers::to_endpoint(headers, body.len(), has_body, entry.host(), &call.client);
    for (name, value) in &call.request_headers {
        headers.insert(name.clone(), value.clone());
    }
    if call.info.api.is_grpc() {
        // gRPC servers take it as the sign that the answer's trailers will be read.
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    let mut request = Request::new(Full::new(body.clone()));
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
