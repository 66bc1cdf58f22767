//! Post-dispatch eviction: which running requests give way to a higher band, and how many at a time.

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

/// Revocations of one decision.
const MOST_AT_ONCE: u64 = 2;
/// A revocation whose stream has not ended by then (µs) no longer holds others back.
const CONFIRMATION_TIMEOUT: u64 = 10_000_000;

/// Tells a running request that its place is wanted.
#[derive(Debug, Default)]
pub struct Revocation {
    revoked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Revocation {
    fn revoke(&self) {
        self.revoked.store(true, SeqCst);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
    }

    /// Ready once it is revoked.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.revoked.load(SeqCst) {
            return Poll::Ready(());
        }
        *self.waker.lock() = Some(cx.waker().clone());
        // Revoked between the first look and the waker's place in there.
        match self.revoked.load(SeqCst) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Whether it is revoked.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(SeqCst)
    }
}

/// A running request that may be revoked: lowest priority first, then the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VictimKey {
    priority: i32,
    dispatched: Reverse<u64>,
}

/// A revocation that is not confirmed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    since: u64,
    timed_out: bool,
}

/// What a confirmation of a revocation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// Time since the revocation, in microseconds.
    pub after: u64,
    /// It came in time.
    pub in_time: bool,
}

/// The running requests of negative priority, and the revocations under way.
#[derive(Debug, Default)]
pub struct Victims {
    running: BTreeMap<VictimKey, Arc<Revocation>>,
    /// The same by priority, to be told to others.
    counts: BTreeMap<i32, u64>,
    pending: BTreeMap<VictimKey, Pending>,
    dispatched: u64,
}

/// How many to revoke so that a band with this ceiling may dispatch: each is worth its share of the saturation.
pub fn needed(saturation: f64, ceiling: f64, in_flight: u64, pending: u64) -> u64 {
    if in_flight == 0 || saturation < ceiling || !saturation.is_finite() {
        return 0;
    }
    let credit = saturation / in_flight as f64;
    if credit <= 0.0 {
        return 0;
    }
    // A pool at exactly its ceiling needs one place too.
    let wanted = ((saturation - ceiling) / credit - 1e-9).ceil().max(1.0);
    let net = (wanted - pending as f64).max(0.0);
    (net as u64).min(MOST_AT_ONCE)
}

impl Victims {
    /// A sheddable request runs from now on; `None` for a priority that is never revoked.
    pub fn running(&mut self, priority: i32) -> Option<(VictimKey, Arc<Revocation>)> {
        if priority >= 0 {
            return None;
        }
        self.dispatched += 1;
        let key = VictimKey {
            priority,
            dispatched: Reverse(self.dispatched),
        };
        let revocation = Arc::new(Revocation::default());
        self.running.insert(key, Arc::clone(&revocation));
        *self.counts.entry(priority).or_default() += 1;
        Some((key, revocation))
    }

    /// A sheddable request ended. If it had been revoked, this confirms it.
    pub fn ended(&mut self, key: VictimKey, now: u64) -> Option<Confirmed> {
        if self.running.remove(&key).is_some() {
            uncount(&mut self.counts, key.priority);
        }
        let pending = self.pending.remove(&key)?;
        Some(Confirmed {
            after: now.saturating_sub(pending.since),
            in_time: !pending.timed_out,
        })
    }

    /// Revocations that still hold others back.
    pub fn pending(&self) -> u64 {
        self.pending.values().filter(|p| !p.timed_out).count() as u64
    }

    /// Running requests that are not revoked yet, by priority.
    pub fn available(&self) -> Vec<(i32, u64)> {
        self.counts.iter().map(|(p, n)| (*p, *n)).collect()
    }

    /// Revokes up to `count` requests of a priority below `below`; gives their priorities.
    pub fn revoke(&mut self, below: i32, count: u64, now: u64) -> Vec<i32> {
        let mut revoked = Vec::new();
        while (revoked.len() as u64) < count {
            let Some(first) = self.running.first_entry() else {
                break;
            };
            if first.key().priority >= below {
                break;
            }
            let (key, revocation) = first.remove_entry();
            uncount(&mut self.counts, key.priority);
            let pending = Pending {
                since: now,
                timed_out: false,
            };
            self.pending.insert(key, pending);
            revocation.revoke();
            revoked.push(key.priority);
        }
        revoked
    }

    /// Gives up on revocations whose streams do not end; how many.
    pub fn time_out(&mut self, now: u64) -> u64 {
        let mut count = 0;
        for pending in self.pending.values_mut() {
            if !pending.timed_out && now.saturating_sub(pending.since) >= CONFIRMATION_TIMEOUT {
                pending.timed_out = true;
                count += 1;
            }
        }
        count
    }
}

fn uncount(counts: &mut BTreeMap<i32, u64>, priority: i32) {
    if let Some(count) = counts.get_mut(&priority) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&priority);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn need_is_what_is_over_the_ceiling_in_shares_of_a_request() {
        assert_eq!(needed(1.0, 1.0, 10, 0), 1);
        assert_eq!(needed(1.05, 1.0, 21, 0), 1);
        assert_eq!(needed(2.0, 1.0, 20, 0), 2, "two at once at most");
        assert_eq!(needed(1.0, 1.0, 10, 1), 0, "one is on its way");
        assert_eq!(needed(0.9, 1.0, 9, 0), 0);
        assert_eq!(needed(1.0, 1.0, 0, 0), 0, "nothing runs");
    }

    #[test]
    fn the_lowest_and_newest_go_first_and_the_gate_waits_for_them() {
        let mut victims = Victims::default();
        assert!(victims.running(0).is_none());
        let (old, old_told) = victims.running(-2).unwrap();
        let (high, high_told) = victims.running(-1).unwrap();
        let (new, new_told) = victims.running(-2).unwrap();
        assert_eq!(victims.available(), [(-2, 2), (-1, 1)]);
        assert_eq!(victims.revoke(-1, 1, 100), [-2]);
        assert_eq!(victims.available(), [(-2, 1), (-1, 1)]);
        assert!(new_told.is_revoked() && !old_told.is_revoked());
        assert_eq!(victims.pending(), 1);
        let confirmed = Confirmed {
            after: 50,
            in_time: true,
        };
        assert_eq!(victims.ended(new, 150), Some(confirmed));
        assert_eq!(victims.revoke(-1, 9, 200), [-2]);
        assert!(!high_told.is_revoked());
        assert_eq!(victims.time_out(200 + CONFIRMATION_TIMEOUT), 1);
        assert_eq!(victims.pending(), 0);
        assert!(!victims.ended(old, 11_000_000).unwrap().in_time);
        assert_eq!(victims.ended(high, 1), None);
        assert!(victims.available().is_empty());
    }
}
