//! A request's place on an endpoint, and what is reported of the request through it.

use super::Endpoint;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// How a request to an endpoint failed, as far as it says something about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: refused, unreachable, TLS failed, or the connect timeout passed.
    Connect,
    /// The connection broke before or within the response.
    Reset,
    /// 502, 503 or 504.
    Status(u16),
    /// No response head within the first-byte timeout.
    FirstByteTimeout,
    /// No byte of the body within the idle timeout.
    IdleTimeout,
}

/// One request's place on an endpoint: counted from the pick until this is dropped. The gateway tells it how the request goes.
#[derive(Debug)]
pub struct Reservation {
    endpoint: Arc<Endpoint>,
    trial: bool,
}

impl Reservation {
    /// The place that [`Endpoint::reserve`] has counted in.
    pub(super) fn new(endpoint: &Arc<Endpoint>, trial: bool) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            trial,
        }
    }

    /// The endpoint that was picked.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// A byte of the response came.
    pub fn progress(&self, now: u64) {
        self.endpoint.progress_at.store(now, Relaxed);
    }

    /// The endpoint answered as a working engine does (any status but 502, 503 and 504).
    pub fn succeeded(&self) {
        if self.endpoint.breaker.succeeded()
            && let Some(observer) = &self.endpoint.observer
        {
            observer.breaker_closed(&self.endpoint);
        }
    }

    /// The endpoint failed this request.
    pub fn failed(&self, why: Failure, now: u64) {
        if self.endpoint.breaker.failed(now, self.trial)
            && let Some(observer) = &self.endpoint.observer
        {
            observer.breaker_opened(&self.endpoint, why);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.endpoint.local_in_flight.fetch_sub(1, Relaxed);
        self.endpoint.tell_in_flight();
    }
}
