//! Circuit breaker of one endpoint, fed by the request path and made of atomics only.
//!
//! ```text
//! closed --n failures in a row--> open --time passes--> half-open (one trial request at a time)
//!   ^                              ^                        |            |
//!   |                              '---- trial fails -------'            |
//!   '---------------------------------- trial succeeds ------------------'
//! ```
//! Each reopening doubles the time spent open, up to a maximum; a success resets it. A good health probe from the
//! endpoint's owner ([`Breaker::probe_succeeded`]) ends the waiting at once, so that a restarted engine is used again
//! without sitting out the rest of its time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// When the breaker opens and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it; at least 1.
    pub consecutive_failures: u32,
    /// First time spent open.
    pub open: Duration,
    /// Longest time spent open.
    pub max_open: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 3,
            open: Duration::from_millis(500),
            max_open: Duration::from_secs(10),
        }
    }
}

/// What the breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// One trial request at a time.
    HalfOpen,
}

impl BreakerState {
    /// The name shown to operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Whether a request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The breaker is closed.
    Normal,
    /// Half-open: this request decides.
    Trial,
    /// Open, or another trial is under way.
    Refused,
}

/// See the module's documentation. Times are [`crate::now_ms`] values.
#[derive(Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    failures: AtomicU32,
    /// 0: closed. Else the time from which one trial is let through.
    retry_at: AtomicU64,
    /// How often it opened since the last success.
    reopened: AtomicU32,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            failures: AtomicU32::new(0),
            retry_at: AtomicU64::new(0),
            reopened: AtomicU32::new(0),
        }
    }

    /// What it lets through at `now`.
    pub fn state(&self, now: u64) -> BreakerState {
        match self.retry_at.load(Relaxed) {
            0 => BreakerState::Closed,
            at if now >= at => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }

    /// Asks to send one request. In half-open only one caller wins, with [`Admission::Trial`], until its result is known
    /// or until the present open time has passed once more (the trial may never report back).
    pub fn admit(&self, now: u64) -> Admission {
        let at = self.retry_at.load(Relaxed);
        if at == 0 {
            return Admission::Normal;
        }
        let next = now + self.open_ms(self.reopened.load(Relaxed));
        if now >= at
            && self
                .retry_at
                .compare_exchange(at, next, Relaxed, Relaxed)
                .is_ok()
        {
            Admission::Trial
        } else {
            Admission::Refused
        }
    }

    /// A request went well. True if this closed the breaker.
    pub fn succeeded(&self) -> bool {
        // The common case writes nothing, so that the cache line stays shared between cores.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if self.retry_at.load(Relaxed) == 0 {
            return false;
        }
        self.reopened.store(0, Relaxed);
        self.retry_at.swap(0, Relaxed) != 0
    }

    /// A request failed. True if this opened (or reopened) the breaker. Failures of requests that were sent before it opened
    /// change nothing: only a trial's failure prolongs the wait.
    pub fn failed(&self, now: u64, trial: bool) -> bool {
        if self.retry_at.load(Relaxed) != 0 && !trial {
            return false;
        }
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        if !trial && failures < self.policy.consecutive_failures.max(1) {
            return false;
        }
        let reopened = self.reopened.fetch_add(1, Relaxed);
        self.retry_at.store(now + self.open_ms(reopened), Relaxed);
        true
    }

    /// The owner's probe found the endpoint well: let a trial through at once.
    pub fn probe_succeeded(&self, now: u64) {
        self.reopened.store(0, Relaxed);
        let at = self.retry_at.load(Relaxed);
        if at > now {
            // A concurrent close (0) must win over this.
            let _ = self.retry_at.compare_exchange(at, now, Relaxed, Relaxed);
        }
    }

    fn open_ms(&self, reopened: u32) -> u64 {
        let open = u64::try_from(self.policy.open.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let max = u64::try_from(self.policy.max_open.as_millis())
            .unwrap_or(u64::MAX)
            .max(open);
        open.saturating_mul(1 << reopened.min(20)).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(BreakerPolicy {
            consecutive_failures: 3,
            open: Duration::from_millis(100),
            max_open: Duration::from_millis(400),
        })
    }

    fn open(b: &Breaker, now: u64) {
        assert!(!b.failed(now, false));
        assert!(!b.failed(now, false));
        assert!(b.failed(now, false));
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let b = breaker();
        b.failed(1, false);
        b.failed(1, false);
        b.succeeded();
        b.failed(1, false);
        b.failed(1, false);
        assert_eq!(b.state(1), BreakerState::Closed);
        assert!(b.failed(1, false));
        assert_eq!(b.state(2), BreakerState::Open);
        assert_eq!(b.admit(2), Admission::Refused);
    }

    #[test]
    fn one_trial_at_a_time_and_success_closes() {
        let b = breaker();
        open(&b, 1000);
        assert_eq!(b.state(1100), BreakerState::HalfOpen);
        assert_eq!(b.admit(1100), Admission::Trial);
        assert_eq!(b.admit(1100), Admission::Refused);
        assert!(b.succeeded());
        assert_eq!(b.admit(1100), Admission::Normal);
        assert!(!b.succeeded());
    }

    #[test]
    fn waits_double_up_to_the_maximum_and_reset() {
        let b = breaker();
        open(&b, 1000);
        let mut now = 1000;
        for wait in [100, 200, 400, 400] {
            assert_eq!(b.admit(now + wait - 1), Admission::Refused);
            now += wait;
            assert_eq!(b.admit(now), Admission::Trial);
            assert!(b.failed(now, true));
        }
        now += 400;
        assert_eq!(b.admit(now), Admission::Trial);
        b.succeeded();
        open(&b, now);
        assert_eq!(b.admit(now + 100), Admission::Trial);
    }

    #[test]
    fn late_failures_do_not_prolong_the_wait() {
        let b = breaker();
        open(&b, 1000);
        for _ in 0..50 {
            assert!(!b.failed(1090, false));
        }
        assert_eq!(b.admit(1100), Admission::Trial);
    }

    #[test]
    fn a_lost_trial_is_replaced_and_a_good_probe_ends_the_wait() {
        let b = breaker();
        open(&b, 1000);
        assert_eq!(b.admit(1100), Admission::Trial);
        assert_eq!(b.admit(1299), Admission::Refused);
        assert_eq!(b.admit(1300), Admission::Trial);
        b.probe_succeeded(1301);
        assert_eq!(b.admit(1301), Admission::Trial);
    }
}
