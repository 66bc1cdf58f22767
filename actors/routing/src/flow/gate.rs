//! The fast path: whether a request may go at once, decided with a few atomics.

use crate::flow::saturation::Load;
use metrics::Counter;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Set while every free place is given out by the pool's dispatcher.
const METERED: u64 = 1 << 63;
const QUEUED_ONE: u64 = 1 << 32;
const QUEUED_MASK: u64 = (1 << 31) - 1;
const IN_FLIGHT_MASK: u64 = (1 << 32) - 1;

/// What is in flight and queued on this router. One word, so that nobody overtakes the queue between two looks.
#[derive(Debug, Default)]
pub struct Ledger {
    word: AtomicU64,
    tokens: AtomicU64,
}

/// A look at the ledger's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look(u64);

impl Look {
    /// Requests in flight.
    pub fn in_flight(self) -> u64 {
        self.0 & IN_FLIGHT_MASK
    }

    /// Requests queued.
    pub fn queued(self) -> u64 {
        (self.0 / QUEUED_ONE) & QUEUED_MASK
    }

    /// The dispatcher gives out each place.
    pub fn metered(self) -> bool {
        self.0 & METERED != 0
    }
}

impl Ledger {
    /// The word now.
    pub fn look(&self) -> Look {
        Look(self.word.load(SeqCst))
    }

    /// What is in flight.
    pub fn load(&self) -> Load {
        Load {
            requests: self.look().in_flight(),
            tokens: self.tokens.load(SeqCst),
        }
    }

    /// Counts a request in if nothing is queued, places are not metered and the limit is not reached.
    pub fn enter(&self, limit: Load, tokens: Option<u64>) -> bool {
        if let Some(tokens) = tokens {
            let below = |held: u64| (held < limit.tokens).then(|| held.saturating_add(tokens));
            if self.tokens.fetch_update(SeqCst, SeqCst, below).is_err() {
                return false;
            }
        }
        let free = |word: u64| (word < QUEUED_ONE && word < limit.requests).then(|| word + 1);
        let entered = self.word.fetch_update(SeqCst, SeqCst, free).is_ok();
        if !entered && let Some(tokens) = tokens {
            self.tokens.fetch_sub(tokens, SeqCst);
        }
        entered
    }

    /// Counts a request from the queue in; the caller holds the queue's lock and has looked at the limits.
    pub fn dispatch(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, SeqCst);
        self.word.fetch_add(1, SeqCst);
    }

    /// Counts a request out.
    pub fn leave(&self) -> Look {
        Look(self.word.fetch_sub(1, SeqCst))
    }

    /// Counts tokens out.
    pub fn leave_tokens(&self, tokens: u64) {
        self.tokens.fetch_sub(tokens, SeqCst);
    }

    /// A request was queued.
    pub fn queue(&self) {
        self.word.fetch_add(QUEUED_ONE, SeqCst);
    }

    /// A request left the queue.
    pub fn unqueue(&self) {
        self.word.fetch_sub(QUEUED_ONE, SeqCst);
    }

    /// Shuts or opens the fast path; what is in flight from then on.
    pub fn meter(&self, metered: bool) {
        if metered {
            self.word.fetch_or(METERED, SeqCst);
        } else {
            self.word.fetch_and(!METERED, SeqCst);
        }
    }
}

/// A band as the fast path sees it.
pub struct Gate {
    /// Its priority.
    pub priority: i32,
    /// What may be in flight on this router for it to go at once.
    pub limit: Load,
    /// Counts requests that went.
    pub dispatched: Counter,
}

/// All bands, highest priority first, and what a permit has to carry.
#[derive(Default)]
pub struct Gates {
    /// The bands.
    pub bands: Vec<Gate>,
    /// Tokens are limited.
    pub counts_tokens: bool,
    /// Requests of negative priority may be revoked.
    pub evicts: bool,
    /// A fairness policy looks at attained service.
    pub tracks_service: bool,
}

impl Gates {
    /// The band of a priority.
    pub fn find(&self, priority: i32) -> Option<&Gate> {
        let index = self
            .bands
            .binary_search_by(|b| priority.cmp(&b.priority))
            .ok()?;
        self.bands.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(requests: u64, tokens: u64) -> Load {
        Load { requests, tokens }
    }

    #[test]
    fn nobody_enters_past_a_limit_a_queue_or_a_meter() {
        let ledger = Ledger::default();
        assert!(ledger.enter(limit(2, 0), None));
        assert!(ledger.enter(limit(2, 10), Some(15)));
        assert!(!ledger.enter(limit(2, 99), Some(1)));
        assert!(!ledger.enter(limit(9, 15), Some(1)));
        assert_eq!(ledger.load(), limit(2, 15));
        ledger.queue();
        assert!(!ledger.enter(limit(9, 99), None));
        assert_eq!((ledger.look().queued(), ledger.look().in_flight()), (1, 2));
        ledger.unqueue();
        ledger.meter(true);
        assert!(ledger.look().metered() && !ledger.enter(limit(9, 99), None));
        ledger.meter(false);
        ledger.leave_tokens(15);
        assert_eq!(ledger.leave().in_flight(), 2);
        assert!(ledger.enter(Load::UNLIMITED, None));
        assert_eq!(ledger.load(), limit(2, 0));
    }
}
