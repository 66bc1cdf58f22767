//! How long a request may wait.

use crate::config::FlowControlConfig;
use crate::flow::queue::micros;

/// Added to the longest TTL for the bound that holds whatever the pool does in between, in microseconds.
const BACKSTOP_GRACE: u64 = 2_000_000;

/// The TTLs in microseconds, for the pool with endpoints and without any. A change between the two starts the other budget anew,
/// but not beyond the backstop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    serving: Option<u64>,
    empty: Option<u64>,
}

impl Lifetimes {
    /// As configured.
    pub fn new(config: &FlowControlConfig) -> Self {
        Self {
            serving: config.default_request_ttl.map(micros),
            empty: config.no_endpoint_request_ttl.map(micros),
        }
    }

    /// When a request's time is over while the pool stays as it is. `switched`: when the pool became (not) empty; `client`: the
    /// client's own deadline. `None`: never.
    pub fn expires(
        &self,
        arrived: u64,
        client: Option<u64>,
        pool_empty: bool,
        switched: u64,
    ) -> Option<u64> {
        let ttl = if pool_empty { self.empty } else { self.serving };
        let regime = ttl.map(|ttl| arrived.max(switched).saturating_add(ttl));
        let backstop = self.serving.zip(self.empty).map(|(a, b)| {
            arrived
                .saturating_add(a.max(b))
                .saturating_add(BACKSTOP_GRACE)
        });
        [regime, backstop, client].into_iter().flatten().min()
    }

    /// The deadline that the EDF policy orders by.
    pub fn deadline(&self, arrived: u64, client: Option<u64>) -> Option<u64> {
        let ttl = self.serving.map(|ttl| arrived.saturating_add(ttl));
        [ttl, client].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn the_pools_state_chooses_the_budget_and_the_backstop_bounds_it() {
        let both = Lifetimes {
            serving: Some(60 * S),
            empty: Some(10 * S),
        };
        assert_eq!(both.expires(5 * S, None, false, 0), Some(65 * S));
        assert_eq!(both.expires(5 * S, None, true, 0), Some(15 * S));
        assert_eq!(both.expires(5 * S, None, true, 20 * S), Some(30 * S));
        assert_eq!(both.expires(5 * S, None, false, 30 * S), Some(67 * S));
        assert_eq!(both.expires(5 * S, Some(6 * S), false, 0), Some(6 * S));
        let open = Lifetimes {
            serving: None,
            empty: Some(10 * S),
        };
        assert_eq!(open.expires(0, None, false, 0), None);
        assert_eq!(open.expires(0, None, true, 90 * S), Some(100 * S));
        assert_eq!(open.deadline(0, Some(3)), Some(3));
        assert_eq!(both.deadline(S, None), Some(61 * S));
    }
}
