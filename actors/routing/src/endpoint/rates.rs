//! How fast an engine makes prompts ready, learnt from the times to first tokens: how fast it computes them, and how fast it loads what is
//! cached of them from each farther tier.
//!
//! A time to the first token has the prompt's computation in it and whatever the request had to wait for; the wait is what makes
//! some of them long. So it is not the mean that says how fast the engine is, but an upper quantile of tokens by time. It is followed step by
//! step (Robbins and Monro 1951, on the logarithm): each observation moves the estimate by a bounded step, up or down, so that no
//! outlier counts for more than any other observation, and a change of the engine is followed within some dozens of requests.
//!
//! Of a prompt that is loaded in part, the time that computing the rest should have taken is taken off; where that would be more than half, the time
//! says too little of the tier.

use super::Endpoint;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Which quantile.
const QUANTILE: f32 = 0.75;
/// Fewer computed tokens say more about the network than about the engine.
pub const LEAST_TOKENS: u64 = 256;
/// The same of tokens that are loaded, which takes a tenth of the time.
pub const LEAST_LOADED: u64 = 2_048;
/// While nobody knows how fast the endpoint computes, at most one token in so many may be computed beside those that are loaded.
const NEARLY_ALL: u64 = 64;
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

/// Tokens a second. Written by whoever sees an answer begin; of two at the same moment one may be lost.
#[derive(Debug, Default)]
pub struct Rate {
    /// The estimate's bits, then how many observations it has.
    packed: AtomicU64,
}

impl Rate {
    fn load(&self) -> (f32, u32) {
        let packed = self.packed.load(Relaxed);
        (f32::from_bits((packed >> 32) as u32), packed as u32)
    }

    fn store(&self, estimate: f32, seen: u32) {
        let packed = u64::from(estimate.to_bits()) << 32 | u64::from(seen);
        self.packed.store(packed, Relaxed);
    }

    fn observe(&self, tokens: u64, ms: f64) {
        let observed = (tokens as f64 / (ms.max(1.0) / 1e3)).ln() as f32;
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

/// Where cached blocks lie that must be loaded before they can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarTier {
    /// The host's memory.
    Cpu,
    /// The host's disk.
    Disk,
    /// Storage that hosts share.
    Storage,
}

impl FarTier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Disk, Self::Storage];

    /// As metrics and records name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Disk => "disk",
            Self::Storage => "storage",
        }
    }
}

/// What an engine has to do before it can answer, in tokens of the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptWork {
    /// Computed.
    pub computed: u64,
    /// Loaded from a tier.
    pub loaded: Option<(FarTier, u64)>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Rates {
    prefill: Rate,
    tiers: [Rate; 3],
}

impl Rates {
    /// Prompt tokens computed in a second.
    pub fn prefill(&self) -> &Rate {
        &self.prefill
    }

    /// Prompt tokens loaded from a tier in a second.
    pub fn tier(&self, tier: FarTier) -> &Rate {
        let [cpu, disk, storage] = &self.tiers;
        match tier {
            FarTier::Cpu => cpu,
            FarTier::Disk => disk,
            FarTier::Storage => storage,
        }
    }

    /// The first token came `ms` milliseconds after the work could begin. Too little work is not looked at.
    pub fn observe(&self, work: PromptWork, ms: u64) {
        let ms = ms as f64;
        match work.loaded {
            None if work.computed >= LEAST_TOKENS => self.prefill.observe(work.computed, ms),
            Some((tier, loaded)) if loaded >= LEAST_LOADED => {
                let computing = match self.prefill.get() {
                    Some(rate) => work.computed as f64 / rate * 1e3,
                    None if work.computed <= loaded / NEARLY_ALL => 0.0,
                    None => return,
                };
                if computing <= ms / 2.0 {
                    self.tier(tier).observe(loaded, ms - computing);
                }
            }
            _ => {}
        }
    }
}

impl Endpoint {
    /// How fast it was seen to make prompts ready.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use proptest::prelude::*;

    fn computed(computed: u64) -> PromptWork {
        PromptWork {
            computed,
            loaded: None,
        }
    }

    fn loaded(tier: FarTier, loaded: u64, computed: u64) -> PromptWork {
        PromptWork {
            computed,
            loaded: Some((tier, loaded)),
        }
    }

    #[test]
    fn nothing_is_said_before_enough_was_seen_and_short_prompts_say_nothing() {
        let rate = Rates::default();
        for _ in 0..100 {
            rate.observe(computed(LEAST_TOKENS - 1), 10);
        }
        assert_eq!(rate.prefill().get(), None);
        for n in 0..ENOUGH {
            assert_eq!(rate.prefill().get(), None, "{n}");
            rate.observe(computed(1000), 100);
        }
        let got = rate.prefill().get().unwrap();
        assert!((got - 10_000.0).abs() < 1.0, "{got}");
        rate.prefill().set(500.0);
        assert!((rate.prefill().get().unwrap() - 500.0).abs() < 0.1);
    }

    #[test]
    fn waiting_in_a_queue_does_not_make_an_engine_slow() {
        let (rate, mut random) = (Rates::default(), Random::new(7));
        // 8,000 tokens a second; half of the requests wait up to four times as long as they compute.
        for _ in 0..2_000 {
            let tokens = 300 + random.below(8_000) as u64;
            let compute = tokens as f64 / 8.0;
            let wait = if random.unit() < 0.5 {
                compute * 4.0 * random.unit()
            } else {
                0.0
            };
            rate.observe(computed(tokens), (compute + wait) as u64);
        }
        let got = rate.prefill().get().unwrap();
        assert!((6_000.0..8_200.0).contains(&got), "{got}");
        // It becomes three times as fast.
        for _ in 0..200 {
            rate.observe(computed(24_000), 1_000);
        }
        let got = rate.prefill().get().unwrap();
        assert!((22_000.0..24_100.0).contains(&got), "{got}");
    }

    #[test]
    fn tiers_are_learnt_each_by_itself_and_what_is_computed_meanwhile_is_taken_off() {
        let (rates, mut random) = (Rates::default(), Random::new(9));
        // Computes 8 tokens a millisecond, loads 100 from memory and 20 from disk. Nothing is known yet of the time for the rest.
        let seen = || rates.tier(FarTier::Cpu).load().1;
        rates.observe(loaded(FarTier::Cpu, 8_000, 400), 130);
        assert_eq!(seen(), 0);
        rates.observe(loaded(FarTier::Cpu, 8_000, 16), 80);
        assert_eq!(seen(), 1);
        for _ in 0..400 {
            let tokens = 3_000 + random.below(8_000) as u64;
            let rest = random.below(200) as u64;
            let wait = random.below(4) as u64 / 3 * 50;
            let ms = |per_ms: u64| (tokens / per_ms).max(1) + rest / 8 + wait;
            rates.observe(computed(tokens), ms(8));
            rates.observe(loaded(FarTier::Cpu, tokens, rest), ms(100));
            rates.observe(loaded(FarTier::Disk, tokens, rest), ms(20));
            // Neither too little of it, nor what is mostly computing.
            rates.observe(loaded(FarTier::Storage, LEAST_LOADED - 1, 0), 1);
            rates.observe(loaded(FarTier::Storage, LEAST_LOADED, 80_000), 10_500);
        }
        let near = |rate: &Rate, expected: f64| {
            let got = rate.get().unwrap();
            assert!((got / expected - 1.0).abs() < 0.2, "{got} for {expected}");
        };
        near(rates.prefill(), 8_000.0);
        near(rates.tier(FarTier::Cpu), 100_000.0);
        near(rates.tier(FarTier::Disk), 20_000.0);
        assert_eq!(rates.tier(FarTier::Storage).get(), None);
    }

    proptest! {
        /// The estimate never leaves the range of what was observed, whatever comes in whatever order.
        #[test]
        fn it_stays_among_what_was_seen(seen in prop::collection::vec((256u64..1_000_000, 0u64..1_000_000), 8..200)) {
            let rate = Rates::default();
            let of = |(tokens, ms): &(u64, u64)| *tokens as f64 / ((*ms).max(1) as f64 / 1e3);
            for (tokens, ms) in &seen {
                rate.observe(computed(*tokens), *ms);
            }
            let least = seen.iter().map(of).fold(f64::INFINITY, f64::min);
            let most = seen.iter().map(of).fold(0.0, f64::max);
            let got = rate.prefill().get().unwrap();
            prop_assert!(got >= least * 0.999 && got <= most * 1.001, "{} {} {}", least, got, most);
        }

        /// A single outlier moves it by a bounded factor.
        #[test]
        fn an_outlier_is_one_observation(before in 20usize..200, ms in 0u64..10_000_000) {
            let rate = Rates::default();
            (0..before).for_each(|_| rate.observe(computed(10_000), 1_000));
            let was = rate.prefill().get().unwrap();
            rate.observe(computed(10_000), ms);
            let ratio = rate.prefill().get().unwrap() / was;
            prop_assert!((0.9..1.1).contains(&ratio), "{}", ratio);
        }
    }
}
