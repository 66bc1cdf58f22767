//! What the engine's metrics page counts, and one snapshot of it. The pages themselves are in the dialects' files.

pub mod fake;
mod offload;
mod page;
mod sglang;
mod trtllm;
mod vllm;

use crate::config::Dialect;
use crate::engine::tiers::TierCount;
use crate::engine::{Counters, Event, FinishReason};
use crate::fleet::Oracle;

/// A histogram with fixed upper bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// Observations per bucket, the last one above every bound.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Histogram {
            bounds: bounds.to_vec(),
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    /// Adds one observation.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
    }

    /// Replaces the contents by so many observations per bucket, each at the bucket's upper bound.
    fn fill(&mut self, counts: &[u64]) {
        self.counts.fill(0);
        self.sum = 0.0;
        let above = self.bounds.last().map_or(1.0, |bound| bound + 1.0);
        for (at, (slot, count)) in self.counts.iter_mut().zip(counts).enumerate() {
            *slot = *count;
            self.sum += *count as f64 * self.bounds.get(at).copied().unwrap_or(above);
        }
    }

    #[cfg(test)]
    fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counters and histograms of one engine.
#[derive(Clone, Debug)]
pub struct Metrics {
    ttft: Histogram,
    itl: Histogram,
    request_tpot: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt: Histogram,
    generation: Histogram,
    max_tokens: Histogram,
    n: Histogram,
    prompt_total: u64,
    cached_total: u64,
    generation_total: u64,
    success: Vec<(String, u64)>,
    /// Start of the server, seconds since 1970.
    created: f64,
}

impl Metrics {
    /// Empty metrics with the bucket bounds of the dialect.
    pub fn new(dialect: Dialect, max_model_len: u32, created: f64) -> Self {
        let bounds = match dialect {
            Dialect::Sglang => sglang::bounds(),
            _ => vllm::bounds(),
        };
        let tokens = Histogram::new(&vllm::one_two_five(max_model_len));
        let latency = Histogram::new(bounds.latency);
        Metrics {
            ttft: Histogram::new(bounds.ttft),
            itl: Histogram::new(bounds.itl),
            request_tpot: Histogram::new(bounds.itl),
            e2e: latency.clone(),
            queue: latency.clone(),
            prefill: latency.clone(),
            decode: latency.clone(),
            inference: latency,
            prompt: tokens.clone(),
            generation: tokens.clone(),
            max_tokens: tokens,
            n: Histogram::new(&[1.0, 2.0, 5.0, 10.0, 20.0]),
            prompt_total: 0,
            cached_total: 0,
            generation_total: 0,
            success: ["stop", "length", "abort"]
                .map(|reason| (reason.to_owned(), 0))
                .into(),
            created,
        }
    }

    /// Records the parameters of an accepted request.
    pub fn accept(&mut self, max_tokens: Option<u32>, n: u32) {
        if let Some(max_tokens) = max_tokens {
            self.max_tokens.observe(f64::from(max_tokens));
        }
        self.n.observe(f64::from(n));
    }

    /// Records an event of the engine; `scale` is real seconds per virtual second.
    pub fn record(&mut self, event: &Event, scale: f64) {
        let secs = |nanos: u64| nanos as f64 * 1e-9 * scale;
        match *event {
            Event::Token {
                gap,
                cached,
                prompt_tokens,
                times,
                at,
                ..
            } => {
                self.generation_total += 1;
                match gap {
                    Some(gap) => self.itl.observe(secs(gap)),
                    None => {
                        self.prompt_total += u64::from(prompt_tokens);
                        self.cached_total += u64::from(cached);
                        self.ttft.observe(secs(at.saturating_sub(times.arrival)));
                    }
                }
            }
            Event::Finished {
                reason,
                prompt_tokens,
                generated,
                times,
            } => {
                self.succeed(reason, 1);
                self.prompt.observe(f64::from(prompt_tokens));
                self.generation.observe(f64::from(generated));
                let last = times
                    .last_token
                    .or(times.scheduled)
                    .unwrap_or(times.arrival);
                let scheduled = times.scheduled.unwrap_or(last);
                let first = times.first_token.unwrap_or(last);
                let span = |from: u64, to: u64| secs(to.saturating_sub(from));
                self.e2e.observe(span(times.arrival, last));
                self.queue.observe(span(times.arrival, scheduled));
                self.prefill.observe(span(scheduled, first));
                self.decode.observe(span(first, last));
                self.inference.observe(span(scheduled, last));
                if generated > 1 {
                    self.request_tpot
                        .observe(span(first, last) / f64::from(generated - 1));
                }
            }
        }
    }

    /// Records sequences that a client gave up.
    pub fn abort(&mut self) {
        self.succeed(FinishReason::Abort, 1);
    }

    fn succeed(&mut self, reason: FinishReason, by: u64) {
        match self
            .success
            .iter_mut()
            .find(|(name, _)| name == reason.as_str())
        {
            Some((_, count)) => *count += by,
            None => self.success.push((reason.as_str().to_owned(), by)),
        }
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> u64 {
        self.generation_total
    }

    /// Prompt tokens of all sequences that got a first token.
    pub fn prompted(&self) -> u64 {
        self.prompt_total
    }
}

/// Everything that a page shows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Labels.
    pub model: String,
    /// Data-parallel rank.
    pub rank: u32,
    /// Sequences in the batch.
    pub running: f64,
    /// Sequences that wait.
    pub waiting: f64,
    /// Share of KV blocks in use.
    pub kv_usage: f64,
    /// Totals of the engine.
    pub counters: Counters,
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Tokens in a block.
    pub block_size: u32,
    /// KV blocks.
    pub num_blocks: u32,
    /// Of these, in use or cached.
    pub cached_blocks: usize,
    /// Whether finished prefixes are found again.
    pub prefix_caching: bool,
    /// Limit of the batch.
    pub max_num_seqs: usize,
    /// Adapters in use: running, waiting, and since when (seconds since 1970). Empty without LoRA.
    pub loras: Vec<(String, String, f64)>,
    /// Adapters that one batch may hold.
    pub max_loras: usize,
    /// Tiers below the GPU.
    pub tiers: Vec<TierCount>,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// What arrived against the best choice.
    pub oracle: Oracle,
}

impl Snapshot {
    /// The metrics page in a dialect.
    pub fn render(&self, dialect: Dialect) -> String {
        let own = match dialect {
            Dialect::Vllm => vllm::render(self) + &offload::vllm(self),
            Dialect::Sglang => sglang::render(self) + &offload::sglang(self),
            Dialect::Trtllm => trtllm::render(self),
            Dialect::Triton => trtllm::render_triton(self),
        };
        own + &offload::oracle(self)
    }
}

/// Bucket bounds of the time histograms, in seconds.
struct Bounds {
    ttft: &'static [f64],
    itl: &'static [f64],
    latency: &'static [f64],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sequence::Times;
    use crate::engine::tiers::Medium;

    pub(super) fn snapshot(dialect: Dialect) -> Snapshot {
        let mut metrics = Metrics::new(dialect, 4096, 1_700_000_000.0);
        metrics.accept(Some(64), 1);
        let times = Times {
            arrival: 0,
            scheduled: Some(1_000_000),
            first_token: Some(50_000_000),
            last_token: Some(90_000_000),
        };
        let token = |gap, at| Event::Token {
            index: 0,
            at,
            gap,
            cached: 16,
            loaded: 0,
            prompt_tokens: 40,
            times,
        };
        metrics.record(&token(None, 50_000_000), 1.0);
        metrics.record(&token(Some(40_000_000), 90_000_000), 1.0);
        let reason = FinishReason::Length;
        metrics.record(
            &Event::Finished {
                reason,
                prompt_tokens: 40,
                generated: 2,
                times,
            },
            1.0,
        );
        Snapshot {
            model: "m\"x".into(),
            rank: 0,
            running: 3.0,
            waiting: 2.0,
            kv_usage: 0.25,
            counters: Counters {
                preemptions: 1,
                prefix_queries: 40,
                prefix_hits: 16,
                loaded_hits: 8,
                steps: 2,
            },
            metrics,
            block_size: 16,
            num_blocks: 400,
            cached_blocks: 9,
            prefix_caching: true,
            max_num_seqs: 256,
            loras: vec![("a,b".into(), String::new(), 1_700_000_001.0)],
            max_loras: 4,
            tiers: vec![TierCount {
                medium: Medium::Cpu,
                blocks: 100,
                cached: 25,
                stored: 30,
                loaded: 2,
                load_time: 500_000_000,
            }],
            block_bytes: 1000,
            oracle: Oracle::default(),
        }
    }

    /// Every line of every page is a comment or `name{labels} value`, every name is announced, histograms add up.
    #[test]
    fn pages_are_well_formed() {
        for dialect in [
            Dialect::Vllm,
            Dialect::Sglang,
            Dialect::Trtllm,
            Dialect::Triton,
        ] {
            let page = snapshot(dialect).render(dialect);
            let mut families = std::collections::HashMap::new();
            let mut buckets = std::collections::HashMap::<String, f64>::new();
            for line in page.lines() {
                if let Some(rest) = line.strip_prefix("# TYPE ") {
                    let (name, kind) = rest.split_once(' ').unwrap();
                    assert!(
                        families.insert(name.to_owned(), kind.to_owned()).is_none(),
                        "{name} twice"
                    );
                    continue;
                }
                if line.starts_with("# HELP ") {
                    continue;
                }
                let (series, value) = line.rsplit_once(' ').unwrap();
                let value: f64 = value
                    .parse()
                    .unwrap_or_else(|_| panic!("{dialect:?}: {line}"));
                let name = series.split('{').next().unwrap();
                assert!(series.ends_with('}'), "{line}");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|suffix| name.strip_suffix(suffix))
                    .find(|base| families.get(*base).is_some_and(|kind| kind == "histogram"))
                    .unwrap_or(name);
                assert!(families.contains_key(family), "{line} has no TYPE");
                if name.ends_with("_bucket") {
                    let last = buckets.entry(name.to_owned()).or_default();
                    assert!(value >= *last, "{line} falls");
                    *last = value;
                }
                if let Some(last) = name
                    .strip_suffix("_count")
                    .and_then(|base| buckets.get(&format!("{base}_bucket")))
                {
                    assert_eq!(*last, value, "{line}");
                }
            }
        }
    }

    #[test]
    fn observation_on_a_bound_falls_into_its_bucket() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.counts, [2, 1, 1]);
        assert_eq!((histogram.sum, histogram.count()), (12.0, 4));
    }
}
