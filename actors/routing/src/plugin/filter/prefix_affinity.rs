//! `prefix-cache-affinity-filter`: only the endpoints that have (nearly) the whole prompt cached, unless they are too busy.
//!
//! Sticky: matched / total >= threshold. None: all stay. With the exploration probability: all stay. If the best sticky endpoint's TTFT
//! is worse than the best other one's by more than the penalty, or its tokens in flight by more than the token penalty: all stay. The
//! TTFT is tokens in flight / peak prefill throughput, or predicted; a missing prediction is infinite.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Filter, Row, Tools};

/// Where the TTFT comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TtftSource {
    /// Tokens in flight through this many tokens per second.
    PrefillThroughput(f64),
    /// A prediction.
    Predictor(ColumnId),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct PrefixAffinity {
    /// Where the matches are.
    pub column: ColumnId,
    /// Cached share from which an endpoint is sticky.
    pub threshold: f64,
    /// Probability of letting all stay.
    pub exploration: f64,
    /// Milliseconds; 0: no limit.
    pub max_ttft_penalty_ms: f64,
    /// Tokens; 0: no limit.
    pub max_tokens_penalty: u64,
    /// For the first penalty.
    pub ttft: TtftSource,
}

impl PrefixAffinity {
    fn ttft_ms(&self, context: &Context<'_>, row: Row) -> f64 {
        match self.ttft {
            TtftSource::PrefillThroughput(tokens_per_second) => {
                context.loads.tokens(row) as f64 / tokens_per_second * 1000.0
            }
            TtftSource::Predictor(column) => context
                .attributes
                .prediction(column, row)
                .map_or(f64::INFINITY, |p| p.ttft_ms),
        }
    }

    /// Whether the best of the sticky is worse than the best of the others by more than `penalty`.
    fn worse(
        rows: &[Row],
        sticky: impl Fn(Row) -> bool,
        cost: impl Fn(Row) -> f64,
        penalty: f64,
    ) -> bool {
        let best = |of: bool| {
            rows.iter()
                .filter(|row| sticky(**row) == of)
                .map(|row| cost(*row))
                .fold(f64::INFINITY, f64::min)
        };
        penalty > 0.0 && best(true) - best(false) > penalty
    }
}

impl Filter for PrefixAffinity {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, tools: &mut Tools) {
        if rows.len() <= 1 {
            return;
        }
        let Some(column) = context.attributes.prefix(self.column) else {
            return;
        };
        let sticky = |row: Row| column.total_blocks > 0 && column.ratio(row) >= self.threshold;
        let count = rows.iter().filter(|row| sticky(**row)).count();
        if count == 0 || count == rows.len() {
            return;
        }
        if self.exploration > 0.0 && tools.random.unit() < self.exploration {
            return;
        }
        let ttft = |row| self.ttft_ms(context, row);
        let tokens = |row| context.loads.tokens(row) as f64;
        if Self::worse(rows, sticky, ttft, self.max_ttft_penalty_ms)
            || Self::worse(rows, sticky, tokens, self.max_tokens_penalty as f64)
        {
            return;
        }
        rows.retain(|row| sticky(*row));
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let predicted = fields.one_of(
        "ttftSource",
        &[("prefillThroughput", false), ("latencyPredictor", true)],
        false,
    );
    let throughput = fields.number("peakPrefillThroughput", 15_928.0, 1.0..=1e12);
    for key in [
        "prefillCalibrationFile",
        "prefillCalibrationFingerprint",
        "prefillCalibrationRequired",
    ] {
        if fields.raw(key).is_some() {
            fields.warn(key, "is not read: give `peakPrefillThroughput`");
        }
    }
    let ttft = if predicted {
        TtftSource::Predictor(build.column(
            fields,
            "latencyPredictionProducerName",
            Produces::Prediction,
        ))
    } else {
        fields.text("latencyPredictionProducerName");
        TtftSource::PrefillThroughput(throughput)
    };
    fields.text("inFlightLoadProducerName");
    Built::filter(PrefixAffinity {
        threshold: fields.number("affinityThreshold", 0.8, 0.0..=1.0),
        exploration: fields.number("explorationProbability", 0.0, 0.0..=1.0),
        max_ttft_penalty_ms: fields.number("maxTTFTPenaltyMs", 18_000.0, 0.0..=1e12),
        max_tokens_penalty: fields.whole("maxTokensInFlightPenalty", 0, 0..=u64::MAX),
        ttft,
        column: build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;

    fn filter() -> PrefixAffinity {
        PrefixAffinity {
            column: 0,
            threshold: 0.8,
            exploration: 0.0,
            max_ttft_penalty_ms: 18_000.0,
            max_tokens_penalty: 0,
            ttft: TtftSource::PrefillThroughput(1000.0),
        }
    }

    #[test]
    fn sticky_endpoints_alone_while_they_are_not_too_busy() {
        let mut f = Fixture::new(4).prefix(10, &[8, 7, 10, 0]);
        assert_eq!(f.filter(&filter()), [0, 2]);
        f.endpoints[2].set_remote_tokens(100_000);
        f.endpoints[0].set_remote_tokens(18_500);
        f.endpoints[1].set_remote_tokens(500);
        f.endpoints[3].set_remote_tokens(500);
        // 18.5 s against 0.5 s: not more than the penalty.
        assert_eq!(f.filter(&filter()), [0, 2]);
        f.endpoints[0].set_remote_tokens(18_501);
        assert_eq!(f.filter(&filter()), [0, 1, 2, 3]);
        let off = PrefixAffinity {
            max_ttft_penalty_ms: 0.0,
            ..filter()
        };
        assert_eq!(f.filter(&off), [0, 2]);
        let tokens = PrefixAffinity {
            max_tokens_penalty: 18_000,
            ..off
        };
        assert_eq!(f.filter(&tokens), [0, 1, 2, 3]);
        let tokens = PrefixAffinity {
            max_tokens_penalty: 18_001,
            ..tokens
        };
        assert_eq!(f.filter(&tokens), [0, 2]);
    }

    #[test]
    fn nobody_or_everybody_sticky_changes_nothing() {
        let mut f = Fixture::new(2).prefix(10, &[7, 7]);
        assert_eq!(f.filter(&filter()), [0, 1]);
        let mut f = f.prefix(10, &[9, 9]);
        assert_eq!(f.filter(&filter()), [0, 1]);
        let mut unknown = Fixture::new(2);
        let always = PrefixAffinity {
            threshold: 0.0,
            ..filter()
        };
        assert_eq!(unknown.filter(&always), [0, 1]);
    }

    #[test]
    fn exploration_lets_all_stay_now_and_then() {
        let mut f = Fixture::new(2).prefix(10, &[10, 0]);
        let explore = PrefixAffinity {
            exploration: 0.25,
            ..filter()
        };
        let all = (0..1000).filter(|_| f.filter(&explore).len() == 2).count();
        assert!((180..320).contains(&all), "{all}");
    }

    #[test]
    fn missing_predictions_are_infinite() {
        let predicted = PrefixAffinity {
            ttft: TtftSource::Predictor(0),
            ..filter()
        };
        let mut f = Fixture::new(2)
            .prefix(10, &[10, 0])
            .predict(1, 100.0, 1.0, 1.0);
        assert_eq!(
            f.filter(&predicted),
            [0, 1],
            "the sticky one is not predicted"
        );
        let mut f = Fixture::new(2)
            .prefix(10, &[10, 0])
            .predict(0, 1e9, 1.0, 1.0);
        assert_eq!(f.filter(&predicted), [0], "the other one is not predicted");
        let mut f = Fixture::new(2).prefix(10, &[10, 0]);
        assert_eq!(f.filter(&predicted), [0], "nothing is predicted");
    }
}
