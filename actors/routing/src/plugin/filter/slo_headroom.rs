//! `slo-headroom-tier-filter`: the endpoints that are predicted to keep both SLOs; with a small probability the others. An endpoint
//! without a prediction is one of the others; without any prediction all stay.

use super::keep;
use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Filter, Row, Tools};

/// See the module's documentation.
#[derive(Debug)]
pub struct SloHeadroom {
    /// Where the predictions are.
    pub predictions: ColumnId,
    /// Probability of taking the others.
    pub explore_negative: f64,
}

impl Filter for SloHeadroom {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, tools: &mut Tools) {
        let keeps = |row: Row| {
            context
                .attributes
                .prediction(self.predictions, row)
                .is_some_and(|p| p.keeps_slo())
        };
        let others = self.explore_negative > 0.0 && tools.random.unit() < self.explore_negative;
        keep(rows, true, |row| keeps(row) != others);
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    Built::filter(SloHeadroom {
        explore_negative: fields.number("epsilonExploreNeg", 0.01, 0.0..=1.0),
        predictions: build.column(
            fields,
            "latencyPredictionProducerName",
            Produces::Prediction,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn tiers() {
        let mut f = Fixture::new(4)
            .predict(0, 1.0, 5.0, 0.0)
            .predict(1, 1.0, -5.0, 5.0)
            .predict(2, 1.0, 5.0, 5.0);
        let strict = SloHeadroom {
            predictions: 0,
            explore_negative: 0.0,
        };
        let other = SloHeadroom {
            predictions: 0,
            explore_negative: 1.0,
        };
        assert_eq!(f.filter(&strict), [0, 2]);
        assert_eq!(f.filter(&other), [1, 3]);
        let mut none = Fixture::new(2);
        assert_eq!(none.filter(&strict), [0, 1]);
        let mut bad = Fixture::new(2).predict(0, 1.0, -1.0, 1.0);
        assert_eq!(bad.filter(&strict), [0, 1]);
    }
}
