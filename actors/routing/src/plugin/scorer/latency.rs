//! `latency-scorer`: by predicted latency against the request's SLOs.
//!
//! Headroom is SLO - prediction. Endpoints that keep both SLOs are scored alone if there are any. Else the idle ones, if any; else the
//! first non-empty group of: only TPOT broken, only TTFT broken, both broken. In a group each dimension's |headroom| is normalised to
//! the group's range (no range: 0.5, and the dimension's weight does not count), combined by weight to c, and scored
//! (int((1 - c) * 100) + 1) / 100 for `least` (pack tightly) or c for `most`; broken groups always by `least`. Without any prediction:
//! the mean of free KV cache, relative queue and prefix share, rounded to hundredths.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Prediction, Row, Scorer, Tools};

/// See the module's documentation.
#[derive(Debug)]
pub struct Latency {
    /// Where the predictions are.
    pub predictions: ColumnId,
    /// Where the prefix matches are, for the composite.
    pub prefix: Option<ColumnId>,
    /// Weight of the first token's latency.
    pub ttft_weight: f64,
    /// Weight of the further tokens' latency.
    pub tpot_weight: f64,
    /// `most` headroom is best; else `least`.
    pub most: bool,
    /// Weights of the composite: KV cache, queue, prefix.
    pub composite: [f64; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Kept,
    Idle,
    OnlyTpotBroken,
    OnlyTtftBroken,
    BothBroken,
}

impl Group {
    fn has(self, prediction: &Prediction, in_flight: u32) -> bool {
        let ttft = prediction.ttft_headroom_ms >= 0.0;
        let tpot = prediction.tpot_headroom_ms >= 0.0;
        match self {
            Self::Kept => ttft && tpot,
            Self::Idle => in_flight == 0,
            Self::OnlyTpotBroken => ttft && !tpot,
            Self::OnlyTtftBroken => !ttft && tpot,
            Self::BothBroken => !ttft && !tpot,
        }
    }
}

const ORDER: [Group; 5] = [
    Group::Kept,
    Group::Idle,
    Group::OnlyTpotBroken,
    Group::OnlyTtftBroken,
    Group::BothBroken,
];

#[derive(Clone, Copy)]
struct Span {
    min: f64,
    max: f64,
}

impl Span {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        values.fold(
            Self {
                min: f64::INFINITY,
                max: f64::NEG_INFINITY,
            },
            |span, value| Self {
                min: span.min.min(value),
                max: span.max.max(value),
            },
        )
    }

    fn is_wide(self) -> bool {
        self.max > self.min && (self.max - self.min).is_finite()
    }

    fn place(self, value: f64) -> f64 {
        if self.is_wide() {
            (value - self.min) / (self.max - self.min)
        } else {
            0.5
        }
    }
}

impl Latency {
    fn predicted<'a>(
        &'a self,
        context: &'a Context<'_>,
        rows: &'a [Row],
        group: Group,
    ) -> impl Iterator<Item = (usize, Prediction)> + 'a {
        rows.iter().enumerate().filter_map(move |(at, row)| {
            let prediction = context.attributes.prediction(self.predictions, *row)?;
            group
                .has(&prediction, context.loads.in_flight(*row))
                .then_some((at, prediction))
        })
    }

    fn composite(&self, context: &Context<'_>, rows: &[Row], scores: &mut [f64]) {
        let queues = Span::over(rows.iter().map(|row| context.loads.queue(*row)));
        let prefix = self.prefix.and_then(|id| context.attributes.prefix(id));
        let [kv_weight, queue_weight, prefix_weight] = self.composite;
        let sum = kv_weight + queue_weight + prefix_weight;
        for (row, score) in rows.iter().zip(scores) {
            let queue = if queues.is_wide() {
                1.0 - queues.place(context.loads.queue(*row))
            } else {
                1.0
            };
            let mean = (kv_weight * (1.0 - context.loads.kv_usage(*row))
                + queue_weight * queue
                + prefix_weight * prefix.map_or(0.0, |column| column.ratio(*row)))
                / sum;
            *score = (mean * 100.0).round() / 100.0;
        }
    }
}

impl Scorer for Latency {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let group = ORDER
            .into_iter()
            .find(|group| self.predicted(context, rows, *group).next().is_some());
        let Some(group) = group else {
            self.composite(context, rows, scores);
            return;
        };
        let members = || self.predicted(context, rows, group);
        let ttft = Span::over(members().map(|(_, p)| p.ttft_headroom_ms.abs()));
        let tpot = Span::over(members().map(|(_, p)| p.tpot_headroom_ms.abs()));
        let weight = |span: Span, weight: f64| if span.is_wide() { weight } else { 0.0 };
        let ttft_weight = weight(ttft, self.ttft_weight);
        let tpot_weight = weight(tpot, self.tpot_weight);
        let sum = ttft_weight + tpot_weight;
        for (at, prediction) in members() {
            let c = if sum > 0.0 {
                (ttft_weight * ttft.place(prediction.ttft_headroom_ms.abs())
                    + tpot_weight * tpot.place(prediction.tpot_headroom_ms.abs()))
                    / sum
            } else {
                0.5
            };
            if let Some(score) = scores.get_mut(at) {
                *score = if self.most && group == Group::Kept {
                    c
                } else {
                    (((1.0 - c) * 100.0).floor() + 1.0) / 100.0
                };
            }
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let weights = 0.0..=1e6;
    let ttft_weight = fields.number("ttftWeight", 0.8, weights.clone());
    let tpot_weight = fields.number("tpotWeight", 0.2, weights.clone());
    if ttft_weight + tpot_weight <= 0.0 {
        fields.error("ttftWeight", "must not be 0 together with `tpotWeight`");
    }
    let most = fields.one_of(
        "headroomSelectionStrategy",
        &[("least", false), ("most", true)],
        false,
    );
    let composite = [
        "compositeKVWeight",
        "compositeQueueWeight",
        "compositePrefixWeight",
    ]
    .map(|key| fields.number(key, 1.0, weights.clone()));
    if composite.iter().sum::<f64>() <= 0.0 {
        fields.error("compositeKVWeight", "all weights of the composite are 0");
    }
    let predictions = build.column(fields, "producerName", Produces::Prediction);
    Built::scorer(Latency {
        predictions,
        prefix: build.existing(Produces::Prefix),
        ttft_weight,
        tpot_weight,
        most,
        composite,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    fn scorer(most: bool) -> Latency {
        Latency {
            predictions: 0,
            prefix: Some(0),
            ttft_weight: 0.8,
            tpot_weight: 0.2,
            most,
            composite: [1.0; 3],
        }
    }

    #[test]
    fn those_that_keep_both_slos_are_scored_alone() {
        let f = Fixture::new(4)
            .predict(0, 100.0, 0.0, 10.0)
            .predict(1, 100.0, 100.0, 0.0)
            .predict(2, 100.0, 50.0, 5.0);
        let mut f = f.predict(3, 900.0, -1.0, 9.0);
        // c: 0.8 * ttft + 0.2 * tpot = 0.2, 0.8, 0.5.
        assert_near(&f.score(&scorer(true)), &[0.2, 0.8, 0.5, 0.0]);
        assert_near(&f.score(&scorer(false)), &[0.81, 0.2, 0.51, 0.0]);
    }

    #[test]
    fn a_dimension_without_range_does_not_count() {
        let mut f = Fixture::new(2)
            .predict(0, 1.0, 10.0, 5.0)
            .predict(1, 1.0, 20.0, 5.0);
        assert_near(&f.score(&scorer(true)), &[0.0, 1.0]);
        let mut same = Fixture::new(2)
            .predict(0, 1.0, 5.0, 5.0)
            .predict(1, 1.0, 5.0, 5.0);
        assert_near(&same.score(&scorer(false)), &[0.51, 0.51]);
    }

    #[test]
    fn broken_slos_idle_first_then_the_lesser_evil() {
        let mut f = Fixture::new(4)
            .predict(0, 1.0, -50.0, -5.0)
            .predict(1, 1.0, -10.0, 5.0)
            .predict(2, 1.0, 10.0, -5.0)
            .predict(3, 1.0, 30.0, -5.0);
        let held: Vec<_> = (0..4).map(|i| f.endpoints[i].reserve(1).unwrap()).collect();
        // Only TPOT broken: 2 and 3; always tight packing.
        assert_near(&f.score(&scorer(true)), &[0.0, 0.0, 1.01, 0.01]);
        drop(held.into_iter().next());
        let mut f = f;
        let scores = f.score(&scorer(true));
        assert!(scores[0] > 0.0, "idle ones alone: {scores:?}");
    }

    #[test]
    fn without_predictions_the_composite() {
        let mut f = Fixture::new(2)
            .load(0, 0, 10, 0.5)
            .load(1, 0, 0, 0.1)
            .prefix(4, &[4, 0]);
        // (0.5 + 0 + 1) / 3 and (0.9 + 1 + 0) / 3.
        assert_near(&f.score(&scorer(false)), &[0.5, 0.63]);
    }
}
