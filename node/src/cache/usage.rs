//! How much of each pool's prompts was cached lately: totals that grow, compared with what they were some minutes ago.

use quorate_routing::RoutingView;
use quorate_routing::endpoint::CacheTotals;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often totals are noted, and how many times are remembered.
const EVERY: Duration = Duration::from_secs(60);
const TIMES: usize = 10;

/// Totals by pool.
pub type ByPool = BTreeMap<Arc<str>, CacheTotals>;

/// The totals of all pools on this node.
pub fn totals(view: &RoutingView) -> ByPool {
    let of = |pool: &Arc<quorate_routing::view::Pool>| {
        let mut sum = CacheTotals::default();
        for endpoint in &pool.endpoints {
            sum += endpoint.cache_use().totals();
        }
        (Arc::clone(&pool.spec.name), sum)
    };
    view.pools().iter().map(of).collect()
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Usage {
    noted: VecDeque<(Instant, ByPool)>,
}

impl Usage {
    /// Nothing was counted before `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            noted: VecDeque::from([(now, ByPool::new())]),
        }
    }

    /// Remembers the totals, if it is time to.
    pub fn note(&mut self, now: Instant, totals: impl FnOnce() -> ByPool) {
        let last = self.noted.back().map(|(at, _)| *at);
        if last.is_some_and(|at| now.duration_since(at) < EVERY) {
            return;
        }
        self.noted.push_back((now, totals()));
        if self.noted.len() > TIMES {
            self.noted.pop_front();
        }
    }

    /// What a pool's totals have grown by, and for how long that was counted.
    pub fn lately(
        &self,
        pool: &str,
        totals: &CacheTotals,
        now: Instant,
    ) -> (CacheTotals, Duration) {
        let Some((since, then)) = self.noted.front() else {
            return (*totals, Duration::ZERO);
        };
        let before = then.get(pool).copied().unwrap_or_default();
        (totals.since(&before), now.duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_minutes_count() {
        let begun = Instant::now();
        let at = |minutes: u64| begun + Duration::from_secs(60 * minutes);
        let of = |picks: u64| CacheTotals {
            picks,
            ..CacheTotals::default()
        };
        let mut usage = Usage::new(begun);
        let lately = |usage: &Usage, picks, minutes| {
            let (grown, window) = usage.lately("chat", &of(picks), at(minutes));
            (grown.picks, window.as_secs() / 60)
        };
        assert_eq!(lately(&usage, 5, 0), (5, 0));
        for minute in 1..=30 {
            // Ten picks a minute, looked at twice.
            let totals = || ByPool::from([("chat".into(), of(minute * 10))]);
            usage.note(at(minute), totals);
            usage.note(at(minute) + Duration::from_secs(1), || unreachable!());
        }
        assert_eq!(lately(&usage, 305, 30), (305 - 210, 9));
        let (other, _) = usage.lately("new", &of(3), at(30));
        assert_eq!(other.picks, 3);
    }
}
