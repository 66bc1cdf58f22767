//! `kv-cache-utilization-scorer`: 1 - share of the KV cache in use. `load-aware-scorer`: 0.5 with an empty queue, else
//! 0.5 * (1 - min(queue, T) / T).

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Row, Scorer, Tools};

/// `kv-cache-utilization-scorer`. An engine that does not tell counts as empty.
#[derive(Debug)]
pub struct KvCacheUtilization;

impl Scorer for KvCacheUtilization {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        for (row, score) in rows.iter().zip(scores) {
            *score = 1.0 - context.loads.kv_usage(*row);
        }
    }
}

/// `load-aware-scorer`. Its range is 0 to 0.5, as llm-d has it.
#[derive(Debug)]
pub struct LoadAware {
    /// Queue length from which an endpoint is as bad as it gets.
    pub threshold: f64,
}

impl Scorer for LoadAware {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        for (row, score) in rows.iter().zip(scores) {
            let queue = context.loads.queue(*row).min(self.threshold);
            *score = 0.5 * (1.0 - queue / self.threshold);
        }
    }
}

pub(crate) fn build_kv(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::scorer(KvCacheUtilization)
}

pub(crate) fn build_load_aware(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::scorer(LoadAware {
        threshold: fields.whole("threshold", 128, 1..=u64::MAX) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn free_cache_is_good_and_unknown_is_free() {
        let mut f = Fixture::new(3).load(0, 1, 0, 0.25).load(1, 1, 0, 1.0);
        assert_near(&f.score(&KvCacheUtilization), &[0.75, 0.0, 1.0]);
    }

    #[test]
    fn load_aware_ends_at_its_threshold() {
        let mut f = Fixture::new(4)
            .load(0, 0, 0, 0.0)
            .load(1, 0, 32, 0.0)
            .load(2, 0, 500, 0.0);
        let scorer = LoadAware { threshold: 128.0 };
        assert_near(&f.score(&scorer), &[0.5, 0.375, 0.0, 0.5]);
    }
}
