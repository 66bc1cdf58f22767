//! Who gets the next request: the request and endpoint model, and the pick.
//!
//! Everything here is plain code without I/O. The gateway parses a request ([`request`]), asks the current
//! [`RoutingView`] which endpoints may take it and a [`Scheduler`] which one does; the answer is a [`Reservation`] that
//! counts against the endpoint for exactly as long as it lives. The endpoint actors write what they learn (health, load, models)
//! into the atomics of the shared [`Endpoint`]; the gateway writes what it sees (failures, progress) into the same
//! place, so the hot path never asks an actor and never takes a lock.
//!
//! * reads: the published [`RoutingView`], the atomics of its endpoints
//! * writes: reservations and observations on endpoints
//! * takes no messages
pub mod breaker;
pub mod cache;
pub mod classify;
pub mod config;
pub mod endpoint;
pub mod explain;
pub mod expression;
pub mod flow;
pub mod identity;
pub mod learnt;
pub mod objective;
pub mod pick;
pub mod pipeline;
pub mod plugin;
pub mod random;
pub mod request;
pub mod rewrite;
pub mod target;
pub mod tokens;
pub mod turns;
pub mod view;

pub use breaker::{Breaker, BreakerPolicy, BreakerState};
pub use classify::{Caller, Class, ClassHeaders, Unroutable, classify};
pub use endpoint::{
    AdapterLoad, CacheShape, Endpoint, EndpointFacts, EndpointObserver, EndpointSpec, Failure,
    FarTier, Health, LoadFigures, LoadSnapshot, NotUsed, Reservation, ServedModel,
};
pub use objective::{AgentIdentity, DEFAULT_FLOW, Objectives};
pub use pick::{Denied, NotPicked, Picked, PowerOfTwo, Scheduler, Tried, Unavailable};
pub use pipeline::{Decision, Pipeline, Prompt, SchedulingRequest};
pub use request::{Api, Dialect, ParseError, RequestInfo};
pub use rewrite::{ModelRewrite, ModelRewrites, RewriteError, RewriteRule, RewriteTarget};
pub use target::{Target, TargetError};
pub use view::{Pool, PoolPolicy, PoolSpec, Route, RoutingView, SharedView};

use std::sync::OnceLock;
use std::time::Instant;

/// Milliseconds of the monotonic clock since the process first asked. Never 0, so that 0 can mean "never".
pub fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
}
