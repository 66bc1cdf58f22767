//! The stall rule: an engine that takes requests and moves no token is not healthy, whatever its `/health` says.
//!
//! ```text
//!          requests in flight on some node, on every such node no byte for stall_timeout,
//!          and the engine's own count of tokens has not moved for that long either
//! moving ---------------------------------------------------------------------------> stalled
//!    ^                                                                                   |
//!    |  a byte came from a request that was in flight, or the engine's count moved, or   |
//!    |  nothing is in flight any more and a request of the owner's own (one token)       |
//!    |  was answered, or                                                                 |
//!    '- the engine refused a connection: the process that stalled is gone ---------------'
//! ```
//! The engine's count (where its metrics page has one) speaks for requests that are not streamed: not a byte of them comes
//! before they are done, however well they go.
//!
//! A good health probe alone never ends a stall. A byte on any node clears all: one node without progress is that node's
//! trouble (its requests wait in the queue, its path is broken), an engine stalls for everybody.

use std::collections::BTreeMap;

/// Requests of one node in flight on the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// The node.
    pub node_id: u64,
    /// How many; never 0.
    pub requests: u32,
    /// When the node last saw a byte of a response, or began its first request (ms of the local monotonic clock).
    pub progress_at: u64,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stall {
    /// As far as anybody can tell, tokens move.
    #[default]
    Moving,
    /// No progress.
    Stalled {
        /// When it was found.
        since: u64,
        /// For each node with requests in flight, its progress when it was first seen within this stall. A request that
        /// begins meanwhile counts as progress only when a byte of it comes.
        seen: BTreeMap<u64, u64>,
        /// Something is in flight still.
        in_flight: bool,
    },
}

impl Stall {
    /// A stall that the endpoint's previous owner found: only progress or proof ends it.
    pub fn inherited(now: u64) -> Self {
        Self::Stalled {
            since: now,
            seen: BTreeMap::new(),
            in_flight: false,
        }
    }

    /// Looks at all that is in flight at `now`; the engine's count of tokens moved last at `counted_at` (0: never seen to).
    /// True if the verdict changed.
    pub fn observe(
        &mut self,
        flights: &[Flight],
        counted_at: u64,
        timeout_ms: u64,
        now: u64,
    ) -> bool {
        match self {
            Self::Moving => {
                let newest = flights.iter().map(|f| f.progress_at.max(counted_at)).max();
                if newest.is_none_or(|at| at.saturating_add(timeout_ms) > now) {
                    return false;
                }
                *self = Self::Stalled {
                    since: now,
                    seen: flights.iter().map(|f| (f.node_id, f.progress_at)).collect(),
                    in_flight: true,
                };
                true
            }
            Self::Stalled {
                since,
                seen,
                in_flight,
            } => {
                let moved = counted_at > *since
                    || flights
                        .iter()
                        .any(|f| seen.get(&f.node_id).is_some_and(|at| f.progress_at > *at));
                if moved {
                    *self = Self::Moving;
                    return true;
                }
                // A node whose requests ended starts over with its next one.
                seen.retain(|node, _| flights.iter().any(|f| f.node_id == *node));
                for f in flights {
                    seen.entry(f.node_id).or_insert(f.progress_at);
                }
                *in_flight = !flights.is_empty();
                false
            }
        }
    }

    /// Whether it is stalled.
    pub fn is_stalled(&self) -> bool {
        matches!(self, Self::Stalled { .. })
    }

    /// Whether a request of the owner's own may decide: stalled, and nothing in flight.
    pub fn wants_proof(&self) -> bool {
        matches!(self, Self::Stalled { in_flight, .. } if !in_flight)
    }

    /// The owner's own request was answered. True if the verdict changed.
    pub fn proved(&mut self) -> bool {
        let ends = self.wants_proof();
        if ends {
            *self = Self::Moving;
        }
        ends
    }

    /// The engine refused a connection. True if the verdict changed.
    pub fn process_gone(&mut self) -> bool {
        let ends = self.is_stalled();
        *self = Self::Moving;
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flight(node_id: u64, progress_at: u64) -> Flight {
        Flight {
            node_id,
            requests: 1,
            progress_at,
        }
    }

    #[test]
    fn idle_is_not_stalled_and_one_moving_node_clears_all() {
        let mut s = Stall::default();
        assert!(!s.observe(&[], 0, 100, 1_000_000));
        assert!(!s.observe(&[flight(1, 10), flight(2, 950)], 0, 100, 1_000));
        assert!(s.observe(&[flight(1, 10), flight(2, 950)], 0, 100, 1_050));
        assert!(s.is_stalled() && !s.wants_proof());
        assert!(!s.proved(), "requests in flight: no proof is wanted");
        assert!(s.observe(&[flight(1, 10), flight(2, 1_060)], 0, 100, 1_070));
        assert_eq!(s, Stall::Moving);
    }

    #[test]
    fn a_request_that_begins_is_no_progress() {
        let mut s = Stall::default();
        s.observe(&[flight(1, 0)], 0, 100, 100);
        assert!(!s.observe(&[flight(1, 0), flight(2, 105)], 0, 100, 106));
        // Node 1's requests end, then it begins another one: a new baseline.
        assert!(!s.observe(&[flight(2, 105)], 0, 100, 110));
        assert!(!s.observe(&[flight(1, 120), flight(2, 105)], 0, 100, 121));
        assert!(s.observe(&[flight(1, 130), flight(2, 105)], 0, 100, 131));
    }

    #[test]
    fn proof_counts_only_when_nothing_is_in_flight() {
        let mut s = Stall::default();
        s.observe(&[flight(1, 0)], 0, 100, 100);
        assert!(!s.observe(&[], 0, 100, 101));
        assert!(s.wants_proof());
        assert!(s.proved() && !s.proved());
        assert!(Stall::inherited(5).wants_proof());
        assert!(Stall::inherited(5).process_gone());
        assert!(!Stall::Moving.process_gone());
    }

    #[test]
    fn the_engines_own_count_is_progress() {
        let mut s = Stall::default();
        assert!(!s.observe(&[flight(1, 0)], 50, 100, 149));
        assert!(s.observe(&[flight(1, 0)], 50, 100, 150));
        assert!(!s.observe(&[flight(1, 0)], 150, 100, 160));
        assert!(s.observe(&[flight(1, 0)], 161, 100, 162));
        assert!(!s.is_stalled());
    }

    proptest! {
        /// It stalls exactly when something is in flight and nothing in flight has moved within the timeout.
        #[test]
        fn stalls_when_all_are_quiet(progress in prop::collection::vec(0u64..1000, 0..6), counted in 0u64..1000, now in 0u64..1500) {
            let flights: Vec<Flight> =
                progress.iter().zip(1..).map(|(at, node)| flight(node, *at)).collect();
            let mut s = Stall::default();
            let stalled = s.observe(&flights, counted, 200, now);
            prop_assert_eq!(stalled, !progress.is_empty() && progress.iter().chain([&counted]).all(|at| at + 200 <= now));
            prop_assert_eq!(stalled, s.is_stalled());
        }
    }
}
