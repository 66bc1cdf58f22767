//! Attained service, for the fairness policy that looks at it, and the score it gives.

use crate::config::ProgramAware;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Weight of a prompt token in attained service.
const PROMPT_WEIGHT: f64 = 1.0;
/// Weight of a generated token.
const COMPLETION_WEIGHT: f64 = 2.0;

#[derive(Clone, Copy, Debug)]
struct Attained {
    tokens: f64,
    at: u64,
}

/// What each fairness id got, decaying with a half-life. Times in microseconds.
#[derive(Clone, Debug, Default)]
pub struct ServiceLedger {
    by_flow: BTreeMap<Arc<str>, Attained>,
}

impl ServiceLedger {
    /// Credits a finished request's tokens.
    pub fn add(&mut self, flow: &str, prompt: u64, completion: u64, half_life_us: u64, now: u64) {
        let tokens = PROMPT_WEIGHT * prompt as f64 + COMPLETION_WEIGHT * completion as f64;
        self.add_weighted(flow, tokens, half_life_us, now);
    }

    /// Credits service that is weighted already.
    pub fn add_weighted(&mut self, flow: &str, tokens: f64, half_life_us: u64, now: u64) {
        if !tokens.is_finite() || tokens <= 0.0 {
            return;
        }
        if let Some(attained) = self.by_flow.get_mut(flow) {
            attained.tokens = decayed(attained, half_life_us, now) + tokens;
            attained.at = now;
        } else {
            self.by_flow
                .insert(flow.into(), Attained { tokens, at: now });
        }
    }

    /// Weighted tokens as of now.
    pub fn attained(&self, flow: &str, half_life_us: u64, now: u64) -> f64 {
        self.by_flow
            .get(flow)
            .map_or(0.0, |a| decayed(a, half_life_us, now))
    }

    /// Forgets who got nothing for `ttl_us`.
    pub fn sweep(&mut self, ttl_us: u64, now: u64) {
        self.by_flow
            .retain(|_, a| now.saturating_sub(a.at) < ttl_us);
    }
}

fn decayed(attained: &Attained, half_life_us: u64, now: u64) -> f64 {
    let passed = now.saturating_sub(attained.at) as f64;
    match half_life_us {
        0 => 0.0,
        half_life => attained.tokens * (-passed / half_life as f64).exp2(),
    }
}

/// The flow with the best score: least service, with a part for how long its head has waited; on a tie the first.
/// Takes (attained service, head's waiting time) of each flow and gives an index.
pub fn least_attained(policy: &ProgramAware, flows: &[(f64, f64)]) -> Option<usize> {
    let range = |of: fn(&(f64, f64)) -> f64| {
        let all = flows.iter().map(of);
        let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        move |v: f64| {
            if high > low {
                (v - low) / (high - low)
            } else {
                0.5
            }
        }
    };
    let (service, wait) = (range(|f| f.0), range(|f| f.1));
    let mut best: Option<(usize, f64)> = None;
    for (i, flow) in flows.iter().enumerate() {
        let score = policy.weight_service * (1.0 - service(flow.0))
            + policy.weight_head_wait * wait(flow.1);
        if best.is_none_or(|(_, top)| score > top) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_halves_and_is_forgotten() {
        let mut ledger = ServiceLedger::default();
        ledger.add("a", 100, 50, 60, 0);
        assert!((ledger.attained("a", 60, 0) - 200.0).abs() < 1e-9);
        assert!((ledger.attained("a", 60, 60) - 100.0).abs() < 1e-9);
        ledger.add("a", 0, 50, 60, 60);
        assert!((ledger.attained("a", 60, 120) - 100.0).abs() < 1e-9);
        ledger.add_weighted("a", f64::NAN, 60, 120);
        assert!((ledger.attained("a", 60, 120) - 100.0).abs() < 1e-9);
        ledger.sweep(100, 150);
        assert!(ledger.attained("a", 60, 150) > 0.0);
        ledger.sweep(100, 160);
        assert_eq!(ledger.attained("a", 60, 160), 0.0);
    }

    #[test]
    fn least_service_wins_unless_a_head_waited_much_longer_at_equal_service() {
        let policy = ProgramAware::default();
        assert_eq!(least_attained(&policy, &[]), None);
        assert_eq!(
            least_attained(&policy, &[(10.0, 9.0), (0.0, 0.0)]),
            Some(1),
            "0.2 against 0.8"
        );
        assert_eq!(least_attained(&policy, &[(5.0, 1.0), (5.0, 2.0)]), Some(1));
        // 0.8 * 1 + 0.2 * 0 against 0.8 * 0.9 + 0.2 * 1.
        assert_eq!(
            least_attained(&policy, &[(0.0, 0.0), (1.0, 5.0), (10.0, 0.0)]),
            Some(1)
        );
        assert_eq!(least_attained(&policy, &[(3.0, 3.0); 4]), Some(0));
    }
}
