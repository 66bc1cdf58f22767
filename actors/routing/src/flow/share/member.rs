//! A router's part in a pool that several routers share: what it may do without asking, and what it has to tell.

use crate::flow::queue::Held;
use crate::flow::saturation::Load;
use crate::flow::share::message::Grant;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Without a word from the dispatcher for this long (µs), a router goes on with its even share of the limit.
pub const ORPHAN_AFTER: u64 = 1_000_000;

/// See the module's documentation.
#[derive(Debug)]
pub struct Member {
    /// Names this router's conversation with the dispatcher.
    pub session: u64,
    /// The next message is the session's first.
    pub first: bool,
    /// The last grant that was acted upon.
    pub acked: u64,
    /// What may be in flight without asking; `None`: nothing may go without a grant.
    pub standing: Option<Load>,
    /// What the other routers may have in flight.
    pub elsewhere: Load,
    /// What waits on the other routers, by band.
    pub queued_elsewhere: BTreeMap<i32, Held>,
    /// Waiting requests that the dispatcher does not know yet, in order.
    pub unsaid: BTreeSet<u64>,
    /// Requests that it knows and that no longer wait.
    pub gone: Vec<u64>,
    /// Service that it does not know.
    pub served: BTreeMap<Arc<str>, f64>,
    /// Routers that share the pool.
    pub routers: u64,
    /// When the dispatcher last spoke.
    pub heard: u64,
    /// When this router last spoke.
    pub told: u64,
    /// On its own, as the dispatcher is silent.
    pub orphan: bool,
}

impl Member {
    /// A new conversation. What may be in flight without asking stays as it is: the first message says it.
    pub fn new(session: u64, routers: u64, before: Option<Self>, now: u64) -> Self {
        let (standing, elsewhere, queued_elsewhere, served, orphan, heard) = match before {
            Some(b) => (
                b.standing,
                b.elsewhere,
                b.queued_elsewhere,
                b.served,
                b.orphan,
                b.heard,
            ),
            None => (
                None,
                Load::default(),
                BTreeMap::new(),
                BTreeMap::new(),
                false,
                now,
            ),
        };
        Self {
            session,
            first: true,
            acked: 0,
            standing,
            elsewhere,
            queued_elsewhere,
            unsaid: BTreeSet::new(),
            gone: Vec::new(),
            served,
            routers,
            heard,
            told: 0,
            orphan,
        }
    }

    /// A request began to wait.
    pub fn waits(&mut self, id: u64) {
        // The first message takes all that wait from the queue itself.
        if !self.first {
            self.unsaid.insert(id);
        }
    }

    /// A request no longer waits, other than by a grant.
    pub fn left(&mut self, id: u64) {
        if !self.first && !self.unsaid.remove(&id) {
            self.gone.push(id);
        }
    }

    /// Takes a grant's terms; its dispatches are the caller's. False: it is not of this session or came before.
    pub fn take(&mut self, grant: &Grant, now: u64) -> bool {
        if grant.session != self.session || grant.seq <= self.acked || self.first {
            return false;
        }
        self.acked = grant.seq;
        self.heard = now;
        self.orphan = false;
        self.standing = grant.standing;
        self.elsewhere = grant.elsewhere;
        self.queued_elsewhere = grant.queued_elsewhere.iter().copied().collect();
        true
    }

    /// What waits on the other routers: in all bands, and in one.
    pub fn queued(&self, priority: i32) -> (Held, Held) {
        let all = self
            .queued_elsewhere
            .values()
            .fold(Held::default(), |sum, h| Held {
                requests: sum.requests.saturating_add(h.requests),
                bytes: sum.bytes.saturating_add(h.bytes),
            });
        let band = self.queued_elsewhere.get(&priority).copied();
        (all, band.unwrap_or_default())
    }
}
