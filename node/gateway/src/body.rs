//! Bodies of answers. An engine's answer passes frame by frame as it comes; on the way it is looked into, changed where it must be,
//! measured and watched for stalls, and its reservation is held until its end.
//!
//! When an engine breaks off in the middle, the client must not take the half answer for a whole one. A stream of events that
//! stands between two events gets a last event with an error, which OpenAI's and Anthropic's clients raise, and ends without
//! `[DONE]`. Everything else is broken off: the chunked body ends without its last chunk (HTTP/1.1), the stream is reset
//! (HTTP/2).

mod ending;

pub(crate) use ending::{fail, grpc_failed, is_unavailable, served};

use crate::call::Call;
use crate::change::Changer;
use crate::client::{Client, InFlight};
use crate::deadline::{Deadline, after};
use crate::error::error_event;
use crate::inspect::Inspect;
use crate::observe::{End, Observation};
use crate::upstream::Source;
use crate::watched::Watched;
use crate::worker::Core;
use bytes::{Bytes, BytesMut};
use ending::Broken;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode, response};
use http_body::{Body, Frame, SizeHint};
use quorate_routing::flow::Permit;
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

/// An engine's answer.
pub(crate) struct UpstreamBody {
    source: Source,
    first: Option<Frame<Bytes>>,
    /// To be handed on next, as it is.
    ready: Option<Frame<Bytes>>,
    /// Changes the answer; `None`: it passes as it came.
    changer: Option<Box<Changer>>,
    /// The engine's gRPC status is an error.
    grpc_failed: bool,
    /// Nothing more comes from the engine.
    over: bool,
    /// The answer must be broken off, once what came of it has been written.
    break_off: bool,
    reservation: Option<Reservation>,
    permit: Option<Permit>,
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
    /// The body that follows `head`, whose length may change with it.
    pub fn new(
        core: &Core,
        call: Call,
        head: &mut response::Parts,
        source: Source,
        first: Option<Frame<Bytes>>,
        deadline: Deadline,
        reservation: Reservation,
    ) -> Self {
        let mut observation = call.observation;
        let api = call.info.api;
        let inspect = Inspect::of(api, &head.headers);
        let events = matches!(inspect, Inspect::Events(_));
        if events || matches!(inspect, Inspect::Grpc(_)) && call.info.stream {
            observation.set_streaming();
        }
        let changer = if events || matches!(inspect, Inspect::Json(..)) {
            Changer::new(&call.changes, events)
        } else {
            None
        };
        let now = Instant::now();
        let mut this = Self {
            source,
            first,
            ready: None,
            changer,
            grpc_failed: grpc_failed(&head.headers),
            over: false,
            break_off: false,
            reservation: Some(reservation),
            permit: call.permit,
            observation: Some(observation),
            inspect,
            api,
            status: head.status,
            known_length: head.headers.contains_key(CONTENT_LENGTH),
            deadline,
            idle: core.config.stream_idle_timeout.0,
            total_at: call.total_at,
            last: now,
            progress_at: now,
        };
        if this.changer.is_some() {
            this.change_length(head);
        }
        // An answer without a body is over already, and nobody will poll it.
        if this.first.is_none() && this.ready.is_none() && this.source.body().is_end_stream() {
            this.complete();
        }
        this
    }

    /// The length of a changed answer is known only if all of it is there; else it goes out in chunks.
    fn change_length(&mut self, head: &mut response::Parts) {
        let whole = self.source.body().is_end_stream();
        if let Some(data) = self
            .first
            .take_if(|first| whole && first.is_data())
            .and_then(|first| first.into_data().ok())
        {
            let changed = self.pass(data, true);
            if self.known_length {
                head.headers
                    .insert(CONTENT_LENGTH, HeaderValue::from(changed.len()));
            }
            self.ready = Some(Frame::data(changed));
        } else if self.first.is_some() || !whole {
            self.known_length = false;
            head.headers.remove(CONTENT_LENGTH);
        }
    }

    /// Looks at the next piece and changes it; `last`: nothing follows.
    fn pass(&mut self, data: Bytes, last: bool) -> Bytes {
        let usage = self.saw(&data);
        let Some(changer) = &mut self.changer else {
            self.processed();
            return data;
        };
        let changed = changer.push(data, usage);
        let rest = match last {
            true => changer.finish(),
            false => Bytes::new(),
        };
        self.processed();
        if rest.is_empty() {
            return changed;
        }
        let mut all = BytesMut::from(changed);
        all.extend_from_slice(&rest);
        all.freeze()
    }

    /// A piece that came at [`Self::last`] has been looked into.
    fn processed(&mut self) {
        if let Some(observation) = &mut self.observation {
            observation.processed(self.last.elapsed());
        }
    }

    pub fn is_over(&self) -> bool {
        self.over && !self.break_off
    }

    pub fn size_hint(&self) -> SizeHint {
        if !self.known_length {
            return SizeHint::default();
        }
        let held = self
            .ready
            .as_ref()
            .or(self.first.as_ref())
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
        if let Some(permit) = &self.permit
            && permit.poll_revoked(cx).is_ready()
        {
            return self.broken(cx, Broken::Revoked);
        }
        if let Some(frame) = self.ready.take() {
            if self.source.body().is_end_stream() {
                self.complete();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        loop {
            let polled = match self.first.take() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => self.source.poll_frame(cx),
            };
            let frame = match polled {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(None) => {
                    self.complete();
                    let rest = self.changer.as_mut().map(|changer| changer.finish());
                    let rest = rest.filter(|rest| !rest.is_empty());
                    return Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "answer broke off");
                    return self.broken(cx, Broken::Engine(Failure::Reset));
                }
                Poll::Pending => return self.check_time(cx),
            };
            // Whoever writes a body of known length does not ask for more after the last byte.
            let last = self.source.body().is_end_stream();
            let frame = match frame.into_data() {
                Ok(data) => {
                    let data = self.pass(data, last);
                    if last {
                        self.complete();
                    }
                    if data.is_empty() && self.changer.is_some() {
                        if last {
                            return Poll::Ready(None);
                        }
                        continue;
                    }
                    Frame::data(data)
                }
                Err(frame) => {
                    self.trailers(&frame);
                    let rest = self.changer.as_mut().map(|changer| changer.finish());
                    if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
                        self.ready = Some(frame);
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                    if last {
                        self.complete();
                    }
                    frame
                }
            };
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn trailers(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.grpc_failed |= grpc_failed(trailers);
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
        self.broken(
            cx,
            if at == idle_at {
                Broken::Engine(Failure::IdleTimeout)
            } else {
                Broken::OutOfTime
            },
        )
    }

    /// Body bytes have come; true if a chunk with usage may have ended in them.
    fn saw(&mut self, data: &Bytes) -> bool {
        let now = Instant::now();
        self.last = now;
        let seen = self.inspect.feed(data);
        if let Some(observation) = &mut self.observation {
            observation.body(now, data.len(), seen.tokens);
        }
        // The first look at the clock for progress is due with the first piece.
        if now >= self.progress_at
            && let Some(permit) = &mut self.permit
        {
            permit.first_token();
        }
        if now >= self.progress_at
            && let Some(reservation) = &self.reservation
        {
            self.progress_at = now + PROGRESS_EVERY;
            reservation.progress(now_ms());
        }
        seen.usage
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
        let usage = self.inspect.usage();
        let failed = self.inspect.has_failed() || self.grpc_failed;
        let permit = self.permit.take();
        if let Some(mut observation) = self.observation.take() {
            if let Some(usage) = usage {
                observation.usage(usage);
                served(permit, usage);
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
        why: Broken,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.over = true;
        let scanner = match &self.inspect {
            Inspect::Events(scanner) if !self.known_length => Some(scanner),
            _ => None,
        };
        // Some engines close the connection right after the last event.
        let had_ended = scanner.is_some_and(|s| s.has_ended() && s.between_events());
        // With unfinished events held back, the client always stands between two.
        let between = self.changer.as_ref().and_then(|c| c.between_events());
        let between = between.or(scanner.map(|s| s.between_events())) == Some(true);
        let permit = self.permit.take();
        if let (Some(reservation), Broken::Engine(failure)) = (self.reservation.take(), why)
            && !had_ended
        {
            fail(&reservation, failure);
        }
        if let Some(mut observation) = self.observation.take() {
            if let Some(usage) = self.inspect.usage() {
                observation.usage(usage);
                served(permit, usage);
            }
            observation.end(match why {
                _ if had_ended => End::Complete,
                Broken::Engine(_) => End::Error("ModelServerError"),
                Broken::OutOfTime => End::Error("GatewayTimeout"),
                Broken::Revoked => End::Error("ResourceExhausted"),
            });
        }
        match scanner {
            Some(_) if had_ended => Poll::Ready(None),
            Some(_) if between => {
                let (code, message) = why.told();
                Poll::Ready(Some(Ok(Frame::data(error_event(self.api, code, message)))))
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
