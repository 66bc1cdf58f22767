//! An endpoint's vital signs: what probes, stall rule and sleep state come to. Pure; times are milliseconds of the local clock.

use crate::endpoint::stall::{Flight, Stall};
use crate::policy::HealthPolicy;
use quorate_routing::Health;
use std::time::Duration;

/// How long an endpoint is probed fast after a breaker opened, in unhealthy intervals.
const SUSPECT_PROBES: u32 = 10;

/// How a health probe went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// 2xx; and whether the engine sleeps (it has given its memory back and serves nothing), if it says.
    Good(Option<bool>),
    /// Nobody listens at the address.
    Refused(String),
    /// Anything else: timeout, reset, another status.
    Failed(String),
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Vitals {
    policy: HealthPolicy,
    /// `None`: not known yet.
    alive: Option<bool>,
    good: u32,
    bad: u32,
    sleeping: bool,
    stall: Stall,
    suspect_until: u64,
    probe_error: String,
    /// The engine's count of tokens, and when it moved last.
    tokens: Option<f64>,
    counted_at: u64,
}

impl Vitals {
    /// Begins with what is known from before (the last owner's word), so that a new owner starts no new ramp.
    pub fn new(policy: HealthPolicy, known: Health, stalled: bool, now: u64) -> Self {
        let stall = if stalled {
            Stall::inherited(now)
        } else {
            Stall::Moving
        };
        Self {
            policy,
            alive: match known {
                Health::Ready => Some(true),
                Health::Unhealthy => Some(stalled),
                Health::Unknown => None,
            },
            good: 0,
            bad: 0,
            sleeping: false,
            stall,
            suspect_until: 0,
            probe_error: String::new(),
            tokens: None,
            counted_at: 0,
        }
    }

    /// A health probe ended. `breaker_open`: this node's breaker holds the endpoint back at present.
    pub fn probed(&mut self, probe: Probe, breaker_open: bool, now: u64) {
        match probe {
            Probe::Good(sleeping) => {
                self.sleeping = sleeping.unwrap_or(self.sleeping);
                self.bad = 0;
                self.good = self.good.saturating_add(1);
                // The first probe ever decides alone: there is nothing to recover from.
                if self.good >= self.policy.healthy_threshold || self.alive.is_none() {
                    self.alive = Some(true);
                    self.probe_error.clear();
                }
            }
            Probe::Refused(why) => {
                self.stall.process_gone();
                self.sleeping = false;
                // Requests failed and nobody listens: no second opinion is needed.
                self.failed(why, breaker_open || now < self.suspect_until);
            }
            Probe::Failed(why) => self.failed(why, false),
        }
    }

    fn failed(&mut self, why: String, certain: bool) {
        self.good = 0;
        self.bad = self.bad.saturating_add(1);
        self.probe_error = why;
        if certain || self.bad >= self.policy.unhealthy_threshold {
            self.alive = Some(false);
        }
    }

    /// Requests to it failed somewhere: probe fast for a while.
    pub fn suspect(&mut self, now: u64) {
        self.suspect_until =
            now.saturating_add(millis(self.policy.unhealthy_interval * SUSPECT_PROBES));
    }

    /// Looks at what is in flight on all nodes.
    pub fn flights(&mut self, flights: &[Flight], now: u64) {
        let timeout = millis(self.policy.stall_timeout);
        self.stall.observe(flights, self.counted_at, timeout, now);
    }

    /// The metrics page says how many tokens the engine has handled. Another number than before is progress, a smaller one
    /// too: a new process has begun.
    pub fn counted(&mut self, tokens: f64, now: u64) {
        if self
            .tokens
            .replace(tokens)
            .is_some_and(|before| before != tokens)
        {
            self.counted_at = now;
        }
    }

    /// The metrics page says whether it sleeps.
    pub fn slept(&mut self, sleeping: bool) {
        self.sleeping = sleeping;
    }

    /// Whether only a request of the owner's own can tell if tokens move again.
    pub fn wants_proof(&self) -> bool {
        self.alive == Some(true) && !self.sleeping && self.stall.wants_proof()
    }

    /// That request was answered.
    pub fn proved(&mut self) {
        self.stall.proved();
    }

    /// Whether it is stalled.
    pub fn is_stalled(&self) -> bool {
        self.stall.is_stalled()
    }

    /// The verdict.
    pub fn health(&self) -> Health {
        match self.alive {
            Some(false) => Health::Unhealthy,
            _ if self.sleeping || self.stall.is_stalled() => Health::Unhealthy,
            Some(true) => Health::Ready,
            None => Health::Unknown,
        }
    }

    /// Why it is not ready, or what the last failed probe said; empty if all is well.
    pub fn error(&self) -> String {
        if self.alive != Some(false) {
            if self.sleeping {
                return "sleeping: the engine has released its memory; wake it up to use it".into();
            }
            if self.stall.is_stalled() {
                return format!(
                    "stalled: requests are in flight and not one byte came for {:?}",
                    self.policy.stall_timeout
                );
            }
        }
        self.probe_error.clone()
    }

    /// Time until the next probe.
    pub fn next_probe(&self, now: u64) -> Duration {
        let calm = self.health() == Health::Ready && self.bad == 0 && now >= self.suspect_until;
        if calm {
            self.policy.interval
        } else {
            self.policy.unhealthy_interval
        }
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> HealthPolicy {
        HealthPolicy {
            unhealthy_threshold: 2,
            healthy_threshold: 2,
            ..HealthPolicy::from_proto(None)
        }
    }

    fn vitals(known: Health) -> Vitals {
        Vitals::new(policy(), known, false, 0)
    }

    fn failed() -> Probe {
        Probe::Failed("status 500".into())
    }

    fn refused() -> Probe {
        Probe::Refused("connection refused".into())
    }

    #[test]
    fn thresholds_count_probes_in_a_row() {
        let mut v = vitals(Health::Ready);
        v.probed(failed(), false, 1);
        assert_eq!(v.health(), Health::Ready);
        assert_eq!(v.next_probe(1), Duration::from_millis(250));
        v.probed(Probe::Good(None), false, 2);
        v.probed(failed(), false, 3);
        assert_eq!(v.health(), Health::Ready);
        v.probed(failed(), false, 4);
        assert_eq!(
            (v.health(), v.error()),
            (Health::Unhealthy, "status 500".into())
        );
        v.probed(Probe::Good(None), false, 5);
        assert_eq!(v.health(), Health::Unhealthy);
        v.probed(Probe::Good(None), false, 6);
        assert_eq!((v.health(), v.error()), (Health::Ready, String::new()));
        assert_eq!(v.next_probe(6), Duration::from_secs(2));
    }

    #[test]
    fn the_first_good_probe_makes_an_unknown_endpoint_ready() {
        let mut v = vitals(Health::Unknown);
        assert_eq!(v.next_probe(0), Duration::from_millis(250));
        v.probed(Probe::Good(None), false, 1);
        assert_eq!(v.health(), Health::Ready);
    }

    #[test]
    fn refused_with_failing_requests_is_certain() {
        let mut v = vitals(Health::Ready);
        v.probed(refused(), false, 1);
        assert_eq!(v.health(), Health::Ready);
        let mut v = vitals(Health::Ready);
        v.probed(refused(), true, 1);
        assert_eq!(v.health(), Health::Unhealthy);
        let mut v = vitals(Health::Ready);
        v.suspect(1);
        assert_eq!(v.next_probe(2), Duration::from_millis(250));
        assert_eq!(v.next_probe(2501), Duration::from_secs(2));
        v.probed(refused(), false, 2);
        assert_eq!(v.health(), Health::Unhealthy);
        // A timeout is not as certain.
        let mut v = vitals(Health::Ready);
        v.probed(failed(), true, 1);
        assert_eq!(v.health(), Health::Ready);
    }

    #[test]
    fn lying_health_does_not_end_a_stall() {
        let stuck = [Flight {
            node_id: 1,
            requests: 3,
            progress_at: 0,
        }];
        let mut v = vitals(Health::Ready);
        v.flights(&stuck, 60_000);
        assert_eq!(v.health(), Health::Unhealthy);
        assert!(v.error().starts_with("stalled"));
        v.probed(Probe::Good(None), false, 60_100);
        v.probed(Probe::Good(None), false, 60_200);
        assert!(v.is_stalled() && !v.wants_proof());
        v.flights(&[], 60_300);
        assert!(v.wants_proof());
        v.proved();
        assert_eq!(v.health(), Health::Ready);
        // The next owner goes on from the stall.
        let mut v = Vitals::new(policy(), Health::Unhealthy, true, 0);
        v.probed(Probe::Good(None), false, 1);
        assert_eq!(v.health(), Health::Unhealthy);
        assert!(v.wants_proof());
        v.probed(refused(), true, 2);
        assert!(!v.is_stalled());
        assert_eq!(v.health(), Health::Unhealthy);
    }

    #[test]
    fn tokens_that_the_engine_counts_are_progress() {
        let quiet = [Flight {
            node_id: 1,
            requests: 1,
            progress_at: 0,
        }];
        let mut v = vitals(Health::Ready);
        for (tokens, now) in [(10.0, 1_000), (11.0, 30_000), (11.0, 89_999)] {
            v.counted(tokens, now);
            v.flights(&quiet, now);
            assert_eq!(v.health(), Health::Ready, "at {now}");
        }
        v.flights(&quiet, 90_000);
        assert_eq!(v.health(), Health::Unhealthy);
        v.counted(12.0, 90_500);
        v.flights(&quiet, 90_500);
        assert_eq!(v.health(), Health::Ready);
    }

    #[test]
    fn sleeping_is_not_used_and_says_so() {
        let mut v = vitals(Health::Ready);
        v.probed(Probe::Good(Some(true)), false, 1);
        assert_eq!(v.health(), Health::Unhealthy);
        assert!(v.error().starts_with("sleeping"));
        assert_eq!(v.next_probe(1), Duration::from_millis(250));
        v.probed(Probe::Good(None), false, 2);
        assert_eq!(v.health(), Health::Unhealthy);
        v.probed(Probe::Good(Some(false)), false, 3);
        assert_eq!((v.health(), v.error()), (Health::Ready, String::new()));
    }
}
