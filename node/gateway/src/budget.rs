//! The retry budget: a token bucket of atomics that keeps retries to a share of the requests, so that retries cannot turn a
//! struggling pool into a dead one.

use crate::config::RetryConfig;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// One retry, in the bucket's unit.
const RETRY: i64 = 1000;

/// Filled by requests and by time, emptied by retries. Times are milliseconds of any monotonic clock.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// Thousandths of a retry.
    balance: AtomicI64,
    cap: i64,
    per_request: i64,
    /// Retries per second, which is thousandths per millisecond.
    per_second: u64,
    refilled_at: AtomicU64,
}

impl RetryBudget {
    /// A budget that starts with ten seconds' worth of the guaranteed rate.
    pub fn new(config: &RetryConfig, now: u64) -> Self {
        let cap = i64::from(config.budget_burst) * RETRY;
        let start = i64::from(config.budget_min_per_second) * 10 * RETRY;
        Self {
            balance: AtomicI64::new(start.min(cap)),
            cap,
            per_request: i64::from(config.budget_percent) * RETRY / 100,
            per_second: u64::from(config.budget_min_per_second),
            refilled_at: AtomicU64::new(now),
        }
    }

    /// A request came. With a full bucket, the normal state, nothing is written.
    pub fn deposit(&self) {
        self.add(self.per_request);
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&self, now: u64) -> bool {
        let before = self.refilled_at.load(Relaxed);
        let earned = now.saturating_sub(before).saturating_mul(self.per_second);
        // Whoever moves the mark adds what was earned since; a loser of the race finds it added.
        if earned > 0
            && self
                .refilled_at
                .compare_exchange(before, now, Relaxed, Relaxed)
                .is_ok()
        {
            self.add(i64::try_from(earned).unwrap_or(self.cap));
        }
        self.balance
            .fetch_update(Relaxed, Relaxed, |b| (b >= RETRY).then_some(b - RETRY))
            .is_ok()
    }

    /// Puts a retry back that was not used.
    pub fn refund(&self) {
        self.add(RETRY);
    }

    fn add(&self, amount: i64) {
        if self.balance.load(Relaxed) < self.cap && amount > 0 {
            let add = |b: i64| Some(b.saturating_add(amount).min(self.cap));
            let _ = self.balance.fetch_update(Relaxed, Relaxed, add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn budget(percent: u32, min: u32, burst: u32) -> RetryBudget {
        let config = RetryConfig {
            max_attempts: 3,
            budget_percent: percent,
            budget_min_per_second: min,
            budget_burst: burst,
        };
        RetryBudget::new(&config, 0)
    }

    fn drain(budget: &RetryBudget, now: u64) -> usize {
        std::iter::from_fn(|| budget.withdraw(now).then_some(())).count()
    }

    #[test]
    fn a_share_of_the_requests_plus_a_minimum_by_time() {
        let b = budget(20, 10, 1000);
        assert_eq!(drain(&b, 0), 100);
        (0..50).for_each(|_| b.deposit());
        assert_eq!(drain(&b, 0), 10);
        assert_eq!(drain(&b, 99), 0);
        assert_eq!(drain(&b, 1099), 10);
        assert!(!b.withdraw(1099));
        b.refund();
        assert!(b.withdraw(1099));
    }

    #[test]
    fn zero_means_none_and_the_burst_is_a_ceiling() {
        assert_eq!(drain(&budget(0, 0, 1000), 1_000_000), 0);
        let b = budget(100, 1000, 5);
        (0..100).for_each(|_| b.deposit());
        assert_eq!(drain(&b, 10_000), 5);
    }

    proptest! {
        /// Never more retries than start + share of requests + guaranteed rate, whatever the order of events.
        #[test]
        fn never_exceeds_what_was_earned(
            percent in 0u32..200, min in 0u32..50, steps in prop::collection::vec((0u64..500, any::<bool>()), 0..300),
        ) {
            let b = budget(percent, min, 1000);
            let (mut now, mut requests, mut retries) = (0u64, 0u64, 0u64);
            for (wait, request) in steps {
                now += wait;
                if request {
                    b.deposit();
                    requests += 1;
                } else if b.withdraw(now) {
                    retries += 1;
                }
            }
            let earned = u64::from(min) * 10_000 + requests * u64::from(percent) * 10 + now * u64::from(min);
            prop_assert!(retries * 1000 <= earned);
        }
    }
}
