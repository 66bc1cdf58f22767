//! How fast an engine computes prompts, learnt from the times to first tokens.
//!
//! A time to the first token has the prompt's computation in it and whatever the request had to wait for; the wait is what makes
//! some of them long. So it is not the mean that says how fast the engine is, but an upper quantile of tokens by time. It is followed step by
//! step (Robbins and Monro 1951, on the logarithm): each observation moves the estimate by a bounded step, up or down, so that no
//! outlier counts for more than any other observation, and a change of the engine is followed within some dozens of requests.

use super::Endpoint;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Which quantile.
const QUANTILE: f32 = 0.75;
/// Fewer tokens say more about the network than about the engine.
pub const LEAST_TOKENS: u64 = 256;
/// So many observations until the estimate is used.
const ENOUGH: u32 = 8;
/// The smallest step, so that changes are followed for ever.
const LEAST_STEP: f32 = 0.05;

/// The next estimate (the logarithm of tokens a second) after an observation, given how many there were before.
fn next(estimate: f32, seen: u32, observed: f32) -> f32 {
    if seen == 0 {
        return observed;
    }
    let step = (2.0 / (seen as f32 + 2.0)).max(LEAST_STEP);
    if observed >= estimate {
        // Not beyond what was observed.
        (estimate + step * QUANTILE).min(observed)
    } else {
        (estimate - step * (1.0 - QUANTILE)).max(observed)
    }
}

/// See the module's documentation. Written by whoever sees an answer begin; of two at the same moment one may be lost.
#[derive(Debug, Default)]
pub struct PrefillRate {
    /// The estimate's bits, then how many observations it has.
    packed: AtomicU64,
}

impl PrefillRate {
    fn load(&self) -> (f32, u32) {
        let packed = self.packed.load(Relaxed);
        (f32::from_bits((packed >> 32) as u32), packed as u32)
    }

    fn store(&self, estimate: f32, seen: u32) {
        let packed = u64::from(estimate.to_bits()) << 32 | u64::from(seen);
        self.packed.store(packed, Relaxed);
    }

    /// `tokens` of a prompt were computed, and the first token came after `ms` milliseconds. Too few tokens are not looked at.
    pub fn observe(&self, tokens: u64, ms: u64) {
        if tokens < LEAST_TOKENS {
            return;
        }
        let observed = (tokens as f32 / (ms.max(1) as f32 / 1e3)).ln();
        let (estimate, seen) = self.load();
        self.store(next(estimate, seen, observed), seen.saturating_add(1));
    }

    /// Tokens a second; `None`: not learnt yet.
    pub fn get(&self) -> Option<f64> {
        let (estimate, seen) = self.load();
        (seen >= ENOUGH).then(|| f64::from(estimate).exp())
    }

    /// As if it had been learnt: for replaying a decision.
    pub fn set(&self, tokens_per_second: f64) {
        if tokens_per_second.is_finite() && tokens_per_second > 0.0 {
            self.store(tokens_per_second.ln() as f32, ENOUGH);
        }
    }
}

impl Endpoint {
    /// How fast it was seen to compute prompts.
    pub fn prefill_rate(&self) -> &PrefillRate {
        &self.prefill_rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_said_before_enough_was_seen_and_short_prompts_say_nothing() {
        let rate = PrefillRate::default();
        for _ in 0..100 {
            rate.observe(LEAST_TOKENS - 1, 10);
        }
        assert_eq!(rate.get(), None);
        for n in 0..ENOUGH {
            assert_eq!(rate.get(), None, "{n}");
            rate.observe(1000, 100);
        }
        let got = rate.get().unwrap();
        assert!((got - 10_000.0).abs() < 1.0, "{got}");
        rate.set(500.0);
        assert!((rate.get().unwrap() - 500.0).abs() < 0.1);
    }

    #[test]
    fn waiting_in_a_queue_does_not_make_an_engine_slow() {
        let (rate, mut random) = (PrefillRate::default(), Random::new(7));
        // 8,000 tokens a second; half of the requests wait up to four times as long as they compute.
        for _ in 0..2_000 {
            let tokens = 300 + random.below(8_000) as u64;
            let compute = tokens as f64 / 8.0;
            let wait = if random.unit() < 0.5 {
                compute * 4.0 * random.unit()
            } else {
                0.0
            };
            rate.observe(tokens, (compute + wait) as u64);
        }
        let got = rate.get().unwrap();
        assert!((6_000.0..8_200.0).contains(&got), "{got}");
        // It becomes three times as fast.
        for _ in 0..200 {
            rate.observe(24_000, 1_000);
        }
        let got = rate.get().unwrap();
        assert!((22_000.0..24_100.0).contains(&got), "{got}");
    }

    proptest! {
        /// The estimate never leaves the range of what was observed, whatever comes in whatever order.
        #[test]
        fn it_stays_among_what_was_seen(seen in prop::collection::vec((256u64..1_000_000, 0u64..1_000_000), 8..200)) {
            let rate = PrefillRate::default();
            let of = |(tokens, ms): &(u64, u64)| *tokens as f64 / ((*ms).max(1) as f64 / 1e3);
            for (tokens, ms) in &seen {
                rate.observe(*tokens, *ms);
            }
            let least = seen.iter().map(of).fold(f64::INFINITY, f64::min);
            let most = seen.iter().map(of).fold(0.0, f64::max);
            let got = rate.get().unwrap();
            prop_assert!(got >= least * 0.999 && got <= most * 1.001, "{} {} {}", least, got, most);
        }

        /// A single outlier moves it by a bounded factor.
        #[test]
        fn an_outlier_is_one_observation(before in 20usize..200, ms in 0u64..10_000_000) {
            let rate = PrefillRate::default();
            (0..before).for_each(|_| rate.observe(10_000, 1_000));
            let was = rate.get().unwrap();
            rate.observe(10_000, ms);
            let ratio = rate.get().unwrap() / was;
            prop_assert!((0.9..1.1).contains(&ratio), "{}", ratio);
        }
    }
}
