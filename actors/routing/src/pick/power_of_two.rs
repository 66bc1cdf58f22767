//! The default pick: of two random usable endpoints the less busy one.

use super::{NotPicked, Picked, Scheduler, Tried, Unavailable};
use crate::endpoint::Endpoint;
use crate::pipeline::{Decision, Loads, SchedulingRequest, noting};
use crate::random::Random;
use crate::view::Route;
use std::sync::Arc;

/// Power of two choices: of two random usable endpoints the less busy one. Ready endpoints go before those nobody has probed.
#[derive(Clone, Copy, Debug)]
pub struct PowerOfTwo {
    /// Engine figures older than this (ms) count for nothing.
    pub fresh_ms: u64,
}

impl Default for PowerOfTwo {
    fn default() -> Self {
        Self { fresh_ms: 5_000 }
    }
}

impl Scheduler for PowerOfTwo {
    fn schedule(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        tried: &Tried,
        now: u64,
        random: u64,
        record: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked> {
        let Some(record) = record else {
            return self.pick(request, route, tried, now, random);
        };
        record.scheduler = "power-of-two".into();
        record.random = random;
        note(&route.endpoints, tried, now, record);
        let result = self.pick(request, route, tried, now, random);
        noting::result(record, &result);
        result
    }
}

/// Notes the endpoints of the best tier and their load.
fn note(all: &[Arc<Endpoint>], tried: &Tried, now: u64, record: &mut Decision) {
    let tier = |e: &Arc<Endpoint>| e.tier(now).filter(|_| !tried.contains(e));
    let best = all.iter().filter_map(tier).min();
    let rows: Vec<usize> = all
        .iter()
        .enumerate()
        .filter(|(_, e)| best.is_some() && tier(e) == best)
        .map(|(row, _)| row)
        .collect();
    let (mut loads, mut snapshots) = (Loads::default(), Vec::with_capacity(rows.len()));
    loads.read_with(all, &rows, now, |seen| snapshots.push(*seen));
    record.unusable = noting::others(all, &rows);
    record.candidates = noting::candidates(all, &rows, &loads, &snapshots);
}

impl PowerOfTwo {
    fn pick(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        tried: &Tried,
        now: u64,
        random: u64,
    ) -> Result<Picked, NotPicked> {
        let all = &route.endpoints;
        if all.is_empty() {
            return Err(Unavailable::Empty.into());
        }
        let tokens = request.estimated_prompt_tokens();
        // A breaker can refuse between the look and the reservation; then look again.
        for round in 0..4u64 {
            let mut random = Random::new(random.wrapping_add(round));
            let Some(picked) = self.look(all, tried, now, &mut random) else {
                break;
            };
            if let Some(reservation) = picked.reserve_with(now, tokens) {
                return Ok(Picked::new(reservation));
            }
        }
        Err(Unavailable::none_left(tried).into())
    }

    /// Draws two distinct usable endpoints of the best tier uniformly in one pass and returns the less busy one.
    fn look<'a>(
        &self,
        all: &'a [Arc<Endpoint>],
        tried: &Tried,
        now: u64,
        random: &mut Random,
    ) -> Option<&'a Arc<Endpoint>> {
        let usable = |i: usize| {
            all.get(i)
                .filter(|e| !tried.contains(e))
                .and_then(|e| Some((e.tier(now)?, e)))
        };
        // Nearly always both draws are ready endpoints: no pass over the pool is needed then.
        if all.len() > 2 {
            let first = random.below(all.len());
            let second = (first + 1 + random.below(all.len() - 1)) % all.len();
            if let (Some((0, a)), Some((0, b))) = (usable(first), usable(second)) {
                return Some(self.less_busy(a, b, now));
            }
        }
        let mut best_tier = u8::MAX;
        let mut seen = 0;
        let mut pair: [Option<&Arc<Endpoint>>; 2] = [None, None];
        for i in 0..all.len() {
            let Some((tier, endpoint)) = usable(i) else {
                continue;
            };
            if tier > best_tier {
                continue;
            }
            if tier < best_tier {
                best_tier = tier;
                seen = 0;
                pair = [None, None];
            }
            seen += 1;
            // Reservoir of two: the n-th replaces one of them with probability 2/n.
            match seen {
                1 => pair[0] = Some(endpoint),
                2 => pair[1] = Some(endpoint),
                n => {
                    if let Some(slot) = pair.get_mut(random.below(n)) {
                        *slot = Some(endpoint);
                    }
                }
            }
        }
        match pair {
            // In a pool of two the order must not decide ties.
            [Some(a), Some(b)] if random.below(2) == 0 => Some(self.less_busy(b, a, now)),
            [Some(a), Some(b)] => Some(self.less_busy(a, b, now)),
            [one, _] => one,
        }
    }

    fn less_busy<'a>(
        &self,
        a: &'a Arc<Endpoint>,
        b: &'a Arc<Endpoint>,
        now: u64,
    ) -> &'a Arc<Endpoint> {
        if b.busyness(now, self.fresh_ms) < a.busyness(now, self.fresh_ms) {
            b
        } else {
            a
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Reservation;
    use crate::endpoint::tests::endpoint;
    use crate::endpoint::{Failure, Health};
    use crate::view::{PoolSpec, RoutingView};
    use proptest::prelude::*;

    fn route(endpoints: &[Arc<Endpoint>]) -> Route {
        let pool = PoolSpec {
            name: "p".into(),
            fallback: true,
            ..Default::default()
        };
        RoutingView::build([(pool, endpoints.to_vec())])
            .route("m")
            .unwrap()
            .clone()
    }

    fn ready(n: usize) -> Vec<Arc<Endpoint>> {
        (0..n)
            .map(|i| {
                let e = endpoint(&format!("e{i:03}"));
                e.set_health(Health::Ready, 1);
                e
            })
            .collect()
    }

    fn pick(route: &Route, tried: &Tried, now: u64, random: u64) -> Result<Reservation, NotPicked> {
        PowerOfTwo::default()
            .schedule(
                &SchedulingRequest::default(),
                route,
                tried,
                now,
                random,
                None,
            )
            .map(|picked| picked.reservation)
    }

    #[test]
    fn a_burst_spreads_because_each_pick_reserves() {
        let endpoints = ready(4);
        let route = route(&endpoints);
        let held: Vec<_> = (0..400)
            .map(|i| pick(&route, &Tried::default(), 1, i).unwrap())
            .collect();
        for e in &endpoints {
            assert!(
                (95..=105).contains(&e.local_in_flight()),
                "{} has {}",
                e.name(),
                e.local_in_flight()
            );
        }
        drop(held);
        assert!(endpoints.iter().all(|e| e.local_in_flight() == 0));
    }

    #[test]
    fn idle_endpoints_share_evenly_whatever_their_place() {
        for n in [2, 3, 5] {
            let endpoints = ready(n);
            let route = route(&endpoints);
            let mut counts = vec![0; n];
            for i in 0..6000 {
                let r = pick(&route, &Tried::default(), 1, i * 7919).unwrap();
                counts[endpoints
                    .iter()
                    .position(|e| Arc::ptr_eq(e, r.endpoint()))
                    .unwrap()] += 1;
            }
            for c in &counts {
                assert!((*c as i64 - 6000 / n as i64).abs() < 300, "{counts:?}");
            }
        }
    }

    #[test]
    fn ready_goes_before_unknown_and_unusable_is_never_picked() {
        let endpoints = ready(4);
        endpoints[0].set_draining(true);
        endpoints[1].set_health(Health::Unhealthy, 1);
        endpoints[2].set_health(Health::Unknown, 1);
        let route = route(&endpoints);
        for i in 0..100 {
            assert_eq!(
                pick(&route, &Tried::default(), 1, i)
                    .unwrap()
                    .endpoint()
                    .name(),
                "e003"
            );
        }
        let mut tried = Tried::default();
        tried.add(Arc::clone(&endpoints[3]));
        assert_eq!(
            pick(&route, &tried, 1, 1).unwrap().endpoint().name(),
            "e002"
        );
        tried.add(Arc::clone(&endpoints[2]));
        assert_eq!(
            pick(&route, &tried, 1, 1).unwrap_err(),
            Unavailable::AllTried.into()
        );
    }

    #[test]
    fn half_open_takes_one_trial_and_the_rest_go_elsewhere() {
        let endpoints = ready(2);
        for _ in 0..3 {
            endpoints[0].reserve(1).unwrap().failed(Failure::Reset, 1);
        }
        let route = route(&endpoints);
        let held: Vec<_> = (0..50)
            .map(|i| pick(&route, &Tried::default(), 501, i).unwrap())
            .collect();
        assert_eq!(endpoints[0].local_in_flight(), 1);
        assert_eq!(held.len(), 50);
    }

    #[test]
    fn says_why_nothing_could_be_picked() {
        assert_eq!(
            pick(&route(&[]), &Tried::default(), 1, 1).unwrap_err(),
            Unavailable::Empty.into()
        );
        let endpoints = ready(1);
        endpoints[0].set_draining(true);
        let none = pick(&route(&endpoints), &Tried::default(), 1, 1).unwrap_err();
        assert_eq!(none, Unavailable::NoneAvailable.into());
    }

    proptest! {
        /// Whatever the states, a pick is of the best tier there is, was not tried, and is reserved exactly once.
        #[test]
        fn picks_are_legal(
            states in prop::collection::vec((0u8..3, any::<bool>(), any::<bool>(), 0u32..20), 1..12),
            random in any::<u64>(),
        ) {
            let endpoints = ready(states.len());
            let mut tried = Tried::default();
            for (e, (health, draining, was_tried, remote)) in endpoints.iter().zip(&states) {
                e.set_health([Health::Unknown, Health::Ready, Health::Unhealthy][*health as usize], 1);
                e.set_draining(*draining);
                e.set_remote_in_flight(*remote);
                if *was_tried {
                    tried.add(Arc::clone(e));
                }
            }
            let best = endpoints.iter().filter(|e| !tried.contains(e)).filter_map(|e| e.tier(9)).min();
            match pick(&route(&endpoints), &tried, 9, random) {
                Ok(r) => {
                    prop_assert_eq!(r.endpoint().tier(9), best);
                    prop_assert!(!tried.contains(r.endpoint()));
                    prop_assert_eq!(endpoints.iter().map(|e| e.local_in_flight()).sum::<u32>(), 1);
                }
                Err(_) => prop_assert_eq!(best, None),
            }
        }
    }
}
