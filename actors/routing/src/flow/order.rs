//! Ordering policies: which of a flow's requests is next.

use crate::config::OrderingPolicy;

/// Place in a flow, smallest first: the policy's key, then arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey {
    /// What the policy orders by: a point in time in microseconds; `u64::MAX`: last.
    pub at: u64,
    /// Order of arrival.
    pub seq: u64,
}

/// What the policies look at: points in time in microseconds of one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// When the request came.
    pub arrived: u64,
    /// When its time in the queue is over; `None`: never.
    pub deadline: Option<u64>,
    /// When its first token is due by its SLO.
    pub first_token_due: Option<u64>,
}

/// The key under a policy. Requests without what a policy orders by go last, in order of arrival.
pub fn key(policy: OrderingPolicy, times: Times, seq: u64) -> OrderKey {
    let at = match policy {
        OrderingPolicy::Fcfs => times.arrived,
        OrderingPolicy::Edf => times.deadline.unwrap_or(u64::MAX),
        OrderingPolicy::SloDeadline => times.first_token_due.unwrap_or(u64::MAX),
    };
    OrderKey { at, seq }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_orders_by_its_time_and_the_others_go_last() {
        let soon = Times {
            arrived: 20,
            deadline: Some(50),
            first_token_due: None,
        };
        let late = Times {
            arrived: 10,
            deadline: None,
            first_token_due: Some(90),
        };
        let before = |policy| key(policy, soon, 2) < key(policy, late, 1);
        assert!(!before(OrderingPolicy::Fcfs));
        assert!(before(OrderingPolicy::Edf));
        assert!(!before(OrderingPolicy::SloDeadline));
        let none = Times::default();
        assert!(key(OrderingPolicy::Edf, none, 1) < key(OrderingPolicy::Edf, none, 2));
    }
}
