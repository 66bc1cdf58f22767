//! How long the simulated hardware takes: a batch step model and a per-request model.

use super::Nanos;

/// Which of the two time models an engine runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Latency {
    /// One step serves the whole batch and takes longer the more work it holds.
    Batched(StepCosts),
    /// Every request has a time to first token and an inter-token latency of its own.
    Fixed(FixedLatency),
}

/// Costs of one step of a continuously batched engine. All times in nanoseconds.
///
/// `step = base + prefill_token * prefill tokens + decode_seq * decoding sequences + context_token * their context
/// tokens`, plus `prefill_step` when the step holds any prefill, plus `lora_load` for each adapter brought in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCosts {
    /// Reading the weights once.
    pub base: f64,
    /// Extra for a step that holds prefill (no captured graph, sampling of new requests).
    pub prefill_step: f64,
    /// For each prompt token computed.
    pub prefill_token: f64,
    /// For each sequence that decodes.
    pub decode_seq: f64,
    /// For each token of context that a decoding sequence reads back.
    pub context_token: f64,
}

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWork {
    /// Prompt tokens computed.
    pub prefill_tokens: u64,
    /// Sequences that decode one token.
    pub decode_seqs: u64,
    /// Their context, summed.
    pub context_tokens: u64,
}

impl StepCosts {
    /// Duration of a step.
    pub fn step(&self, work: &StepWork) -> Nanos {
        let prefill = if work.prefill_tokens > 0 {
            self.prefill_step
        } else {
            0.0
        };
        let time = self.base
            + prefill
            + self.prefill_token * work.prefill_tokens as f64
            + self.decode_seq * work.decode_seqs as f64
            + self.context_token * work.context_tokens as f64;
        time.max(0.0) as Nanos
    }
}

/// How the prefill time of [`FixedLatency`] is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LatencyCalculator {
    /// `per-token` when the time to first token is zero, else `constant`.
    #[default]
    Auto,
    /// Time to first token, whatever the prompt.
    Constant,
    /// Prefill overhead plus a time for each prompt token that is not cached.
    PerToken,
}

/// The per-request model. Times in nanoseconds; deviations are standard deviations of a normal distribution whose
/// samples stay within 70 % of the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct FixedLatency {
    /// Which prefill formula holds.
    pub calculator: LatencyCalculator,
    /// Time to first token.
    pub ttft: Nanos,
    /// Its deviation.
    pub ttft_std_dev: Nanos,
    /// Time between two tokens.
    pub itl: Nanos,
    /// Its deviation.
    pub itl_std_dev: Nanos,
    /// Constant part of a per-token prefill.
    pub prefill_overhead: Nanos,
    /// Per uncached prompt token.
    pub prefill_time_per_token: Nanos,
    /// Deviation of the computed prefill time.
    pub prefill_std_dev: Nanos,
    /// Factor on all times when `max_num_seqs` requests run; 1.0 with a single one, linear between.
    pub load_factor: f64,
}

impl Default for FixedLatency {
    fn default() -> Self {
        FixedLatency {
            calculator: LatencyCalculator::Auto,
            ttft: 0,
            ttft_std_dev: 0,
            itl: 0,
            itl_std_dev: 0,
            prefill_overhead: 0,
            prefill_time_per_token: 0,
            prefill_std_dev: 0,
            load_factor: 1.0,
        }
    }
}

impl FixedLatency {
    /// Refuses a deviation above 30 % of its mean and a load factor below 1.
    pub fn validate(&self) -> Result<(), String> {
        for (name, mean, deviation) in [
            ("time-to-first-token-std-dev", self.ttft, self.ttft_std_dev),
            ("inter-token-latency-std-dev", self.itl, self.itl_std_dev),
        ] {
            if deviation as f64 > mean as f64 * 0.3 {
                return Err(format!("{name} is more than 30 % of what it deviates from"));
            }
        }
        if !(self.load_factor.is_finite() && self.load_factor >= 1.0) {
            return Err(format!(
                "time-factor-under-load {} is less than 1.0",
                self.load_factor
            ));
        }
        Ok(())
    }

    /// Time from the start of the prefill to the first token.
    pub fn prefill(&self, uncached: u32, load: f64, rng: &mut fastrand::Rng) -> Nanos {
        let per_token = match self.calculator {
            LatencyCalculator::Auto => self.ttft == 0,
            LatencyCalculator::Constant => false,
            LatencyCalculator::PerToken => true,
        };
        let time = if per_token {
            let mean = self.prefill_overhead.saturating_add(
                self.prefill_time_per_token
                    .saturating_mul(u64::from(uncached)),
            );
            noisy(mean, self.prefill_std_dev, rng)
        } else {
            noisy(self.ttft, self.ttft_std_dev, rng)
        };
        (time as f64 * load) as Nanos
    }

    /// Time from one token to the next.
    pub fn decode(&self, load: f64, rng: &mut fastrand::Rng) -> Nanos {
        (noisy(self.itl, self.itl_std_dev, rng) as f64 * load) as Nanos
    }

    /// The factor on all times when `running` of `max` sequences run.
    pub fn load(&self, running: usize, max: usize) -> f64 {
        if max <= 1 || running <= 1 {
            return 1.0;
        }
        1.0 + (self.load_factor - 1.0) * (running - 1) as f64 / (max - 1) as f64
    }
}

fn noisy(mean: Nanos, std_dev: Nanos, rng: &mut fastrand::Rng) -> Nanos {
    if std_dev == 0 || mean == 0 {
        return mean;
    }
    let mean = mean as f64;
    let sample = mean + std_dev as f64 * standard_normal(rng);
    sample.clamp(mean * 0.3, mean * 1.7) as Nanos
}

/// One sample of the standard normal distribution (Box and Muller).
pub fn standard_normal(rng: &mut fastrand::Rng) -> f64 {
    let u = 1.0 - rng.f64();
    let v = rng.f64();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_cost_is_the_sum_of_its_parts() {
        let costs = StepCosts {
            base: 1000.0,
            prefill_step: 500.0,
            prefill_token: 10.0,
            decode_seq: 7.0,
            context_token: 0.5,
        };
        assert_eq!(costs.step(&StepWork::default()), 1000);
        let work = StepWork {
            prefill_tokens: 3,
            decode_seqs: 2,
            context_tokens: 100,
        };
        assert_eq!(costs.step(&work), 1000 + 500 + 30 + 14 + 50);
    }

    #[test]
    fn noise_stays_within_seventy_per_cent() {
        let mut rng = fastrand::Rng::with_seed(1);
        let fixed = FixedLatency {
            itl: 1000,
            itl_std_dev: 300,
            ..FixedLatency::default()
        };
        let samples: Vec<Nanos> = (0..10_000).map(|_| fixed.decode(1.0, &mut rng)).collect();
        assert!(samples.iter().all(|s| (300..=1700).contains(s)));
        let mean = samples.iter().sum::<u64>() as f64 / 10_000.0;
        assert!((mean - 1000.0).abs() < 20.0, "mean {mean}");
    }

    #[test]
    fn load_factor_is_linear_in_running_requests() {
        let fixed = FixedLatency {
            load_factor: 3.0,
            ..FixedLatency::default()
        };
        assert_eq!(fixed.load(1, 5), 1.0);
        assert_eq!(fixed.load(3, 5), 2.0);
        assert_eq!(fixed.load(5, 5), 3.0);
    }

    #[test]
    fn calculator_chooses_the_prefill_formula() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut fixed = FixedLatency {
            ttft: 50,
            prefill_overhead: 100,
            prefill_time_per_token: 2,
            ..FixedLatency::default()
        };
        assert_eq!(fixed.prefill(10, 1.0, &mut rng), 50);
        fixed.calculator = LatencyCalculator::PerToken;
        assert_eq!(fixed.prefill(10, 1.0, &mut rng), 120);
        fixed.calculator = LatencyCalculator::Auto;
        fixed.ttft = 0;
        assert_eq!(fixed.prefill(10, 2.0, &mut rng), 240);
    }
}
