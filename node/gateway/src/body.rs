//! Bodies of answers. An engine's answer passes frame by frame as it comes; on the way it is looked into, measured and watched for
//! stalls, and its reservation is held until its end.
//!
//! When an engine breaks off in the middle, the client must not take the half answer for a whole one. A stream of events that
//! stands between two events gets a last event with an error, which OpenAI's and Anthropic's clients raise, and ends without
//! `[DONE]`. Everything else is broken off: the chunked body ends without its last chunk (HTTP/1.1), the stream is reset
//! (HTTP/2).

use crate::call::Call;
use crate::client::{Client, InFlight};
use crate::deadline::{Deadline, after};
use crate::error::error_event;
use crate::metrics::endpoint_failed;
use crate::observe::{End, Observation};
use crate::sse::SseScanner;
use crate::upstream::Source;
use crate::usage::{Tail, Usage};
use crate::watched::Watched;
use crate::worker::Core;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use quorate_routing::{Api, Failure, Reservation, now_ms};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How often progress is noted on the endpoint at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Body of any answer of the gateway.
pub struct GatewayBody {
    kind: Kind,
    /// Dropped when the answer is written.
    #[expect(dead_code, reason = "held for its drop")]
    in_flight: Option<InFlight>,
}

enum Kind {
    Full(Option<Bytes>),
    Upstream(Box<UpstreamBody>),
    /// On an HTTP/2 stream; counts its request itself.
    Watched(Arc<Watched>),
}

/// An answer was broken off; the connection to the client is closed or the stream reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer was broken off")]
pub struct BrokenOff;

impl GatewayBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Full(Some(bytes.into()).filter(|b| !b.is_empty())),
            in_flight: None,
        }
    }

    pub(crate) fn upstream(body: UpstreamBody) -> Self {
        Self {
            kind: Kind::Upstream(Box::new(body)),
            in_flight: None,
        }
    }

    /// Counts the request of this answer as in flight until the answer is written, or given up because the client does not
    /// read it.
    pub(crate) fn counted(self, client: &Client, in_flight: InFlight) -> Self {
        match self.kind {
            Kind::Upstream(body) if client.is_http2() => {
                let watched = Arc::new(Watched::new(body, in_flight));
                client.watch(&watched);
                Self {
                    kind: Kind::Watched(watched),
                    in_flight: None,
                }
            }
            // Nothing waits for the client to read this; its connection may count as idle.
            kind @ Kind::Full(_) if client.is_http2() => Self {
                kind,
                in_flight: None,
            },
            kind => Self {
                kind,
                in_flight: Some(in_flight),
            },
        }
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut self.kind {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Kind::Upstream(body) => body.poll_next(cx),
            Kind::Watched(watched) => watched.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Upstream(body) => body.is_over(),
            Kind::Watched(watched) => watched.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Upstream(body) => body.size_hint(),
            Kind::Watched(watched) => watched.size_hint(),
        }
    }
}

/// What is read out of an answer as it passes.
enum Inspect {
    /// Server-sent events.
    Events(Box<SseScanner>),
    /// One JSON object.
    Json(JsonUsage),
    /// Nothing: another type, or compressed.
    Nothing,
}

enum JsonUsage {
    /// Nothing has come.
    Empty,
    /// The first piece had no usage in it; more may come.
    Pieces(Tail),
    /// The first piece had it.
    Found(Usage),
}

/// An engine's answer.
pub(crate) struct UpstreamBody {
    source: Source,
    first: Option<Frame<Bytes>>,
    /// Nothing more comes from the engine.
    over: bool,
    /// The answer must be broken off, once what came of it has been written.
    break_off: bool,
    reservation: Option<Reservation>,
    observation: Option<Observation>,
    inspect: Inspect,
    api: Api,
    status: StatusCode,
    known_length: bool,
    deadline: Deadline,
    idle: Duration,
    total_at: Option<Instant>,
    last: Instant,
    progress_at: Instant,
}

impl UpstreamBody {
    /// The body that follows `head`.
    pub fn new(
        core: &Core,
        call: Call,
        head: &response::Parts,
        source: Source,
        first: Option<Frame<Bytes>>,
        deadline: Deadline,
        reservation: Reservation,
    ) -> Self {
        let mut observation = call.observation;
        let inspect = inspect(&head.headers);
        if matches!(inspect, Inspect::Events(_)) {
            observation.set_streaming();
        }
        let now = Instant::now();
        let mut this = Self {
            source,
            first,
            over: false,
            break_off: false,
            reservation: Some(reservation),
            observation: Some(observation),
            inspect,
            api: call.info.api,
            status: head.status,
            known_length: head.headers.contains_key(CONTENT_LENGTH),
            deadline,
            idle: core.config.stream_idle_timeout.0,
            total_at: call.total_at,
            last: now,
            progress_at: now,
        };
        // An answer without a body is over already, and nobody will poll it.
        if this.first.is_none() && this.source.body().is_end_stream() {
            this.complete();
        }
        this
    }

    pub fn is_over(&self) -> bool {
        self.over && !self.break_off
    }

    pub fn size_hint(&self) -> SizeHint {
        if !self.known_length {
            return SizeHint::default();
        }
        let held = self
            .first
            .as_ref()
            .and_then(Frame::data_ref)
            .map_or(0, Bytes::len) as u64;
        match self.source.body().size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + held),
            None => SizeHint::default(),
        }
    }

    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.break_off {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        if self.over {
            return Poll::Ready(None);
        }
        let polled = match self.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => self.source.poll_frame(cx),
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.saw(data);
                }
                // Whoever writes a body of known length does not ask for more after the last byte.
                if self.source.body().is_end_stream() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "answer broke off");
                self.broken(
                    cx,
                    Some(Failure::Reset),
                    "the model server broke off the answer",
                )
            }
            Poll::Pending => self.check_time(cx),
        }
    }

    fn check_time(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let idle_at = after(self.last, self.idle);
        let at = self.total_at.map_or(idle_at, |total| total.min(idle_at));
        if !self.deadline.has_passed(cx, at) {
            return Poll::Pending;
        }
        if at == idle_at {
            let message = "the model server stopped in the middle of the answer";
            self.broken(cx, Some(Failure::IdleTimeout), message)
        } else {
            self.broken(cx, None, "the request took longer than the time limit")
        }
    }

    /// Body bytes have come.
    fn saw(&mut self, data: &Bytes) {
        let now = Instant::now();
        self.last = now;
        let tokens = match &mut self.inspect {
            Inspect::Events(scanner) => scanner.feed(data).tokens,
            Inspect::Json(json) => {
                json.push(data);
                0
            }
            Inspect::Nothing => 0,
        };
        if let Some(observation) = &mut self.observation {
            observation.body(now, data.len(), tokens);
        }
        if now >= self.progress_at
            && let Some(reservation) = &self.reservation
        {
            self.progress_at = now + PROGRESS_EVERY;
            reservation.progress(now_ms());
        }
    }

    /// The answer is whole.
    fn complete(&mut self) {
        self.over = true;
        self.source.release();
        if let Some(reservation) = self.reservation.take()
            && !is_unavailable(self.status)
        {
            reservation.succeeded();
        }
        let (usage, failed) = match &self.inspect {
            Inspect::Events(scanner) => (Some(scanner.usage()), scanner.has_failed()),
            Inspect::Json(json) => (json.usage(), false),
            Inspect::Nothing => (None, false),
        };
        if let Some(mut observation) = self.observation.take() {
            if let Some(usage) = usage {
                observation.usage(usage);
            }
            observation.end(if failed || self.status.as_u16() >= 400 {
                End::Error("ModelServerError")
            } else {
                End::Complete
            });
        }
    }

    /// The answer will never be whole.
    fn broken(
        &mut self,
        cx: &mut Context<'_>,
        failure: Option<Failure>,
        message: &str,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.over = true;
        let scanner = match &self.inspect {
            Inspect::Events(scanner) if !self.known_length => Some(scanner),
            _ => None,
        };
        // Some engines close the connection right after the last event.
        let had_ended = scanner.is_some_and(|s| s.has_ended() && s.between_events());
        if let (Some(reservation), Some(failure)) = (self.reservation.take(), failure)
            && !had_ended
        {
            fail(&reservation, failure);
        }
        if let Some(mut observation) = self.observation.take() {
            if let Some(scanner) = scanner {
                observation.usage(scanner.usage());
            }
            observation.end(match failure {
                _ if had_ended => End::Complete,
                Some(_) => End::Error("ModelServerError"),
                None => End::Error("GatewayTimeout"),
            });
        }
        match scanner {
            Some(_) if had_ended => Poll::Ready(None),
            Some(scanner) if scanner.between_events() => {
                Poll::Ready(Some(Ok(Frame::data(error_event(self.api, message)))))
            }
            _ => {
                // An error now would throw away what is in hyper's buffer: let that be written first.
                self.break_off = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// Tells the endpoint's breaker and the metrics about a failure.
pub(crate) fn fail(reservation: &Reservation, failure: Failure) {
    let spec = reservation.endpoint().spec();
    let kind = match failure {
        Failure::Connect => "connect",
        Failure::Reset => "reset",
        Failure::Status(_) => "status",
        Failure::FirstByteTimeout => "first_byte_timeout",
        Failure::IdleTimeout => "idle_timeout",
    };
    tracing::debug!(
        endpoint = &*spec.name,
        pool = &*spec.pool,
        ?failure,
        "endpoint failed a request"
    );
    endpoint_failed(&spec.pool, &spec.name, kind);
    reservation.failed(failure, now_ms());
}

/// 502, 503 and 504: the endpoint could not serve the request, and another one may.
pub(crate) fn is_unavailable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

fn inspect(headers: &HeaderMap) -> Inspect {
    if headers.contains_key(CONTENT_ENCODING) {
        return Inspect::Nothing;
    }
    match headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes) {
        Some(kind) if kind.starts_with(b"text/event-stream") => Inspect::Events(Box::default()),
        Some(kind) if kind.starts_with(b"application/json") => Inspect::Json(JsonUsage::Empty),
        _ => Inspect::Nothing,
    }
}

impl JsonUsage {
    fn push(&mut self, data: &Bytes) {
        *self = match std::mem::replace(self, Self::Empty) {
            // Nearly always the answer is one piece: look at its end without a copy.
            Self::Empty => match Usage::find_last(
                data.get(data.len().saturating_sub(crate::usage::TAIL)..)
                    .unwrap_or(data),
            ) {
                Some(usage) => Self::Found(usage),
                None => {
                    let mut tail = Tail::default();
                    tail.push(data);
                    Self::Pieces(tail)
                }
            },
            Self::Pieces(mut tail) => {
                tail.push(data);
                Self::Pieces(tail)
            }
            found @ Self::Found(_) => found,
        };
    }

    fn usage(&self) -> Option<Usage> {
        match self {
            Self::Empty => None,
            Self::Pieces(tail) => tail.usage(),
            Self::Found(usage) => Some(*usage),
        }
    }
}
