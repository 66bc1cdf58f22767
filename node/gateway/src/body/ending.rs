//! How an answer ends before its end, and who is told.

use crate::metrics::endpoint_failed;
use crate::usage::Usage;
use http::{HeaderMap, StatusCode};
use quorate_routing::flow::Permit;
use quorate_routing::{Failure, Reservation, now_ms};

/// Why an answer will never be whole.
#[derive(Clone, Copy)]
pub(super) enum Broken {
    /// The engine failed.
    Engine(Failure),
    /// The whole request took too long.
    OutOfTime,
    /// Flow control took its place for a request of a higher band.
    Revoked,
}

impl Broken {
    /// Code and message for the client.
    pub fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Engine(Failure::IdleTimeout) => (
                "upstream_failed",
                "the model server stopped in the middle of the answer",
            ),
            Self::Engine(_) => ("upstream_failed", "the model server broke off the answer"),
            Self::OutOfTime => (
                "upstream_failed",
                "the request took longer than the time limit",
            ),
            Self::Revoked => (
                "evicted",
                "the request was revoked in favour of one of higher priority",
            ),
        }
    }
}

/// Tells flow control what the request got, and gives its place back.
pub(crate) fn served(permit: Option<Permit>, usage: Usage) {
    if let Some(permit) = permit {
        permit.served(usage.input.unwrap_or(0), usage.output.unwrap_or(0));
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

/// Whether headers or trailers have a gRPC status other than OK.
pub(crate) fn grpc_failed(headers: &HeaderMap) -> bool {
    headers
        .get("grpc-status")
        .is_some_and(|status| status != "0")
}
