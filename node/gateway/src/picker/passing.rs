//! An engine's answer as it passes a proxy: looked into and measured piece by piece, with the reservation held until its end.

use super::{Asked, Denied, denied};
use crate::body::{fail, grpc_failed, is_unavailable, served};
use crate::change::{Changer, Changes};
use crate::error::Refusal;
use crate::inspect::Inspect;
use crate::metrics::dropped;
use crate::observe::{End, Observation};
use crate::usage::Usage;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use quorate_routing::expression::ReportedUsage;
use quorate_routing::flow::{Outcome, Permit};
use quorate_routing::plugin::reporter::{Report, Reported};
use quorate_routing::{Api, BreakerState, Dialect, Endpoint, Failure, Reservation, now_ms};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How often progress is noted on the endpoint at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Follows one answer. Dropped before [`Passing::end`], the request counts as given up by the client, and its place on the
/// endpoint is free at once.
pub struct Passing {
    reservation: Option<Reservation>,
    observation: Option<Observation>,
    /// The endpoint that the request is sent to, if that is not the one that it counts on.
    via: Option<Arc<Endpoint>>,
    /// Endpoints that the request could have gone to.
    among: Arc<[Arc<Endpoint>]>,
    /// Of the request: its API, and whether a stream was asked for.
    api: (Api, bool),
    dialect: Dialect,
    changes: Changes,
    /// What the proxy wants to know at the end.
    reports: Arc<[Report]>,
    /// Its place in the pool's flow control.
    permit: Option<Permit>,
    changer: Option<Box<Changer>>,
    inspect: Inspect,
    grpc_failed: bool,
    status: StatusCode,
    /// No more will be seen than the head.
    head_only: bool,
    progress_at: Instant,
}

impl Passing {
    pub(super) fn new(
        asked: Asked,
        reservation: Reservation,
        via: Option<Arc<Endpoint>>,
        among: Arc<[Arc<Endpoint>]>,
    ) -> Self {
        Self {
            reservation: Some(reservation),
            observation: Some(asked.observation),
            via,
            among,
            api: (asked.info.api, asked.info.stream),
            dialect: asked.dialect,
            changes: asked.changes,
            reports: Arc::clone(&asked.class.pool.policy.reports),
            permit: asked.permit,
            changer: None,
            inspect: Inspect::Nothing,
            grpc_failed: false,
            status: StatusCode::OK,
            head_only: false,
            progress_at: Instant::now(),
        }
    }

    /// The proxy says which endpoint it really went to: `is` tells it. Another one than the pick means that the pick could not be
    /// reached; the request counts on the other from now on.
    pub fn served_by(&mut self, is: impl Fn(&Endpoint) -> bool) {
        let Some(reserved) = &self.reservation else {
            return;
        };
        if is(self.via.as_ref().unwrap_or(reserved.endpoint())) {
            return;
        }
        let Some(served) = self.among.iter().find(|e| is(e)) else {
            tracing::debug!("served by an endpoint that is not in the pool");
            return;
        };
        // The new place first, so that the request is never uncounted.
        if let Some(moved) = served.reserve_with(now_ms(), reserved.tokens()) {
            fail(reserved, Failure::Connect);
            if let Some(observation) = &mut self.observation
                && let Some(record) = &mut observation.record
            {
                record.served_by(served);
            }
            self.reservation = Some(moved);
            self.via = None;
        }
    }

    /// The head of the answer. With `head_only` the body will not be shown. Tells whether the body's length may change.
    pub fn head(&mut self, status: StatusCode, headers: &HeaderMap, head_only: bool) -> bool {
        self.status = status;
        self.head_only = head_only;
        let (api, stream) = self.api;
        self.inspect = Inspect::of(api, headers);
        self.grpc_failed = grpc_failed(headers);
        let events = matches!(self.inspect, Inspect::Events(_));
        if (events || matches!(self.inspect, Inspect::Grpc(_)) && stream)
            && let Some(observation) = &mut self.observation
        {
            observation.set_streaming();
        }
        if !head_only && (events || matches!(self.inspect, Inspect::Json(..))) {
            self.changer = Changer::new(&self.changes, events);
        }
        if let Some(observation) = &mut self.observation
            && let Some(record) = &mut observation.record
        {
            record.answered(status, true);
        }
        if let Some(reservation) = &self.reservation {
            if head_only {
                reservation.progress(now_ms());
            }
            if is_unavailable(status) {
                fail(reservation, Failure::Status(status.as_u16()));
            } else if reservation.endpoint().breaker_state(now_ms()) != BreakerState::Closed {
                // A trial has shown that the endpoint works; the end of a long stream would be late for that.
                reservation.succeeded();
            }
        }
        self.changer.is_some()
    }

    /// Ready when the request has to give way to one of higher priority: what the client gets, if it has got nothing so far.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Denied> {
        let permit = self
            .permit
            .take_if(|permit| permit.poll_revoked(cx).is_ready());
        if permit.is_none() {
            return Poll::Pending;
        }
        let refusal = Refusal::Flow(Outcome::Revoked);
        if let Some(reason) = refusal.dropped_reason() {
            dropped(reason);
        }
        self.reservation = None;
        if let Some(mut observation) = self.observation.take() {
            observation.refused(&refusal);
            observation.end(End::Error(refusal.metric_code()));
        }
        Poll::Ready(denied(&refusal, self.dialect))
    }

    /// Trailers behind the answer; gives what of the answer was held back until here.
    pub fn trailers(&mut self, trailers: &HeaderMap) -> Bytes {
        self.grpc_failed |= grpc_failed(trailers);
        self.changer
            .as_mut()
            .map(|changer| changer.finish())
            .unwrap_or_default()
    }

    /// The next piece of the answer; gives what is to be passed on in its place, which may be nothing. `last`: no piece and no
    /// trailers follow.
    pub fn data(&mut self, data: Bytes, last: bool) -> Bytes {
        let now = Instant::now();
        let seen = self.inspect.feed(&data);
        if let Some(observation) = &mut self.observation {
            observation.body(now, data.len(), seen.tokens);
        }
        if now >= self.progress_at
            && let Some(reservation) = &self.reservation
        {
            self.progress_at = now + PROGRESS_EVERY;
            reservation.progress(now_ms());
        }
        let mut rest = Bytes::new();
        let changed = match &mut self.changer {
            Some(changer) => {
                let changed = changer.push(data, seen.usage);
                if last {
                    rest = changer.finish();
                }
                changed
            }
            None => data,
        };
        if let Some(observation) = &mut self.observation {
            observation.processed(now.elapsed());
        }
        if rest.is_empty() {
            return changed;
        }
        let mut all = BytesMut::from(changed);
        all.extend_from_slice(&rest);
        all.freeze()
    }

    /// The answer is whole; gives what the pool's configuration wants told of it.
    pub fn end(&mut self) -> Vec<Reported> {
        if let Some(reservation) = self.reservation.take()
            && !is_unavailable(self.status)
        {
            reservation.succeeded();
        }
        let usage = self.inspect.usage();
        served(self.permit.take(), usage.unwrap_or_default());
        let reported = self.reported(usage.unwrap_or_default());
        let failed = self.inspect.has_failed() || self.grpc_failed;
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
        reported
    }

    fn reported(&self, usage: Usage) -> Vec<Reported> {
        if self.reports.is_empty() || usage == Usage::default() {
            return Vec::new();
        }
        let usage = ReportedUsage {
            prompt: usage.input,
            completion: usage.output,
            cached: usage.cached,
        };
        let reports = self.reports.iter();
        reports.filter_map(|report| report.of(&usage)).collect()
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if self.head_only {
            self.end();
        }
    }
}
