//! What routers and the dispatcher of a pool tell each other. Plain values; the load exchange carries them.

use crate::flow::queue::Held;
use crate::flow::saturation::Load;
use std::sync::Arc;

/// From a router to the dispatcher. Messages of one session arrive in order; each tells what changed since the one before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Chosen anew whenever either side may have missed something.
    pub session: u64,
    /// First message of the session: what the router said before is void, and all that waits is in it.
    pub first: bool,
    /// The last grant of this session that the router has acted upon.
    pub acked: u64,
    /// Requests and tokens in flight through the router.
    pub in_flight: Load,
    /// What may at most be in flight there without another grant.
    pub held: Load,
    /// Requests that began to wait.
    pub waiting: Vec<Waiting>,
    /// Requests that no longer wait, other than by a grant.
    pub gone: Vec<u64>,
    /// Weighted tokens that fairness ids got.
    pub served: Vec<(Arc<str>, f64)>,
    /// Running requests that may be revoked, by priority.
    pub revocable: Vec<(i32, u64)>,
    /// Requests that were told to give way and have not ended yet.
    pub revoking: u64,
}

/// A request that waits on a router.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// Names it on that router.
    pub id: u64,
    /// Its band.
    pub priority: i32,
    /// Its fairness id.
    pub flow: Arc<str>,
    /// How long it has waited, in microseconds.
    pub age: u64,
    /// Time to its deadline in microseconds (negative: passed).
    pub deadline_in: Option<i64>,
    /// Time until its first token is due.
    pub first_token_in: Option<i64>,
    /// Size of its body.
    pub bytes: u64,
    /// Its tokens.
    pub tokens: u64,
}

/// From the dispatcher to a router.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// The router's session that it belongs to; of another session it means nothing.
    pub session: u64,
    /// Counts up within the session.
    pub seq: u64,
    /// Requests that may go, in this order.
    pub dispatch: Vec<u64>,
    /// What may be in flight without asking; `None`: each free place is given out.
    pub standing: Option<Load>,
    /// What the other routers may have in flight.
    pub elsewhere: Load,
    /// What waits on the other routers, by band.
    pub queued_elsewhere: Vec<(i32, Held)>,
    /// Something may have been missed: begin a new session.
    pub renew: bool,
    /// Running requests that have to give way to others of the pool.
    pub revoke: Vec<Revoke>,
}

/// An order to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoke {
    /// So many requests, the lowest priority and the newest first.
    pub requests: u64,
    /// Only of priorities below this.
    pub below: i32,
}

/// Either of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// To the dispatcher.
    Demand(Demand),
    /// To a router.
    Grant(Grant),
}
