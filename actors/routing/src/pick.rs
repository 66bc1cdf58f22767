//! The pick: which endpoint takes a request, and the reservation that goes with it in the same step.

mod power_of_two;

pub use power_of_two::PowerOfTwo;

use crate::endpoint::{Endpoint, Reservation};
use crate::pipeline::{Decision, SchedulingRequest};
use crate::view::Route;
use http::{HeaderName, HeaderValue, StatusCode};
use std::borrow::Cow;
use std::sync::Arc;

/// Picks an endpoint and reserves a place on it.
pub trait Scheduler: Send + Sync {
    /// Picks among the route's endpoints without those already `tried`. `now` is [`crate::now_ms`]; `random` is a fresh random
    /// number from the caller's generator, so that a test can pin every decision. With a `record`, every step is written
    /// into it; without one nothing is spent on that.
    ///
    /// # Errors
    /// [`NotPicked`] if no endpoint may be used or the request is turned away.
    fn schedule(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        tried: &Tried,
        now: u64,
        random: u64,
        record: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked>;
}

/// What a pick gives: the place on the endpoint, where to go if that fails, and what to tell others.
#[derive(Debug)]
pub struct Picked {
    /// The place on the picked endpoint.
    pub reservation: Reservation,
    /// Where the request is sent, if not to the picked endpoint itself but to another one that passes it on there.
    pub via: Option<Arc<Endpoint>>,
    /// Next best endpoints, best first; nothing is reserved on them. Empty unless the picker was told to give more than one.
    pub fallbacks: Vec<Arc<Endpoint>>,
    /// Headers for the request to the endpoint; they replace those of the same name.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers for the answer to the client.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// For the body of the request to the endpoint, where that is a JSON object: the members of `kv_transfer_params`.
    pub kv_hints: Option<String>,
    /// Prompt tokens that the endpoint is believed to have cached; `None`: nothing is known of the prompt.
    pub cached_tokens: Option<u64>,
}

impl Picked {
    /// A place and nothing else.
    pub fn new(reservation: Reservation) -> Self {
        Self {
            reservation,
            via: None,
            fallbacks: Vec::new(),
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            kv_hints: None,
            cached_tokens: None,
        }
    }

    /// Where the request is sent.
    pub fn destination(&self) -> &Arc<Endpoint> {
        self.via.as_ref().unwrap_or(self.reservation.endpoint())
    }
}

/// Endpoints that a request has been sent to already. Holds the few that a retry budget allows without allocating more.
#[derive(Debug, Default)]
pub struct Tried(Vec<Arc<Endpoint>>);

impl Tried {
    /// Excludes an endpoint from the next pick.
    pub fn add(&mut self, endpoint: Arc<Endpoint>) {
        self.0.push(endpoint);
    }

    /// Whether it has been tried.
    pub fn contains(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.0.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    /// How many have been tried.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing has been tried.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// No endpoint may take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The pool has no endpoint at all.
    #[error("the pool has no endpoints")]
    Empty,
    /// There are endpoints, and each is unhealthy, draining or held back by its breaker.
    #[error("no endpoint of the pool is available")]
    NoneAvailable,
    /// Every endpoint that could be used has been tried.
    #[error("every available endpoint of the pool failed")]
    AllTried,
    /// Hard constraints of the request (a subset hint) exclude every endpoint.
    #[error("no available endpoint of the pool meets the request's constraints")]
    Screened,
    /// The filters of the scheduling profile left none.
    #[error("the scheduling profile's filters left no endpoint")]
    Filtered,
}

impl Unavailable {
    /// What to say when no usable endpoint is left.
    pub(crate) fn none_left(tried: &Tried) -> Self {
        if tried.is_empty() {
            Self::NoneAvailable
        } else {
            Self::AllTried
        }
    }
}

/// The request itself is turned away, whatever endpoints there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    /// The status that the plugin gave.
    pub status: StatusCode,
    /// Value of `x-llm-d-request-dropped-reason`, if it has one.
    pub reason: Option<&'static str>,
    /// For the client.
    pub message: Cow<'static, str>,
}

/// A pick that gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPicked {
    /// For want of an endpoint.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// By decision.
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl NotPicked {
    /// The status for the client.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unavailable(Unavailable::Filtered) => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied(denied) => denied.status,
        }
    }

    /// Value of `x-llm-d-request-dropped-reason`, if it has one.
    pub fn dropped_reason(&self) -> Option<&'static str> {
        match self {
            Self::Unavailable(Unavailable::Filtered) => Some("rejected-saturated"),
            Self::Unavailable(_) => Some("rejected-no-endpoints"),
            Self::Denied(denied) => denied.reason,
        }
    }
}
