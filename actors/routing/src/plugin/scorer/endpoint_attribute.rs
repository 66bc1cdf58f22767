//! `endpoint-attribute-scorer`: linear on any number of an endpoint, over a fixed range or that of the candidates.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Row, Scorer, Tools};
use crate::plugin::scalar::Scalar;

/// See the module's documentation. An endpoint without the number gets 0 and does not take part in the range.
#[derive(Debug)]
pub struct EndpointAttribute {
    /// The number.
    pub scalar: Scalar,
    /// Else lower is better.
    pub higher_is_better: bool,
    /// `None`: the candidates' range.
    pub range: Option<(f64, f64)>,
}

impl Scorer for EndpointAttribute {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let (min, max) = self.range.unwrap_or_else(|| {
            rows.iter()
                .filter_map(|row| self.scalar.of(context, *row))
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| {
                    (min.min(value), max.max(value))
                })
        });
        for (row, score) in rows.iter().zip(scores) {
            let Some(value) = self.scalar.of(context, *row) else {
                continue;
            };
            *score = if max > min {
                let share = ((value - min) / (max - min)).clamp(0.0, 1.0);
                if self.higher_is_better {
                    share
                } else {
                    1.0 - share
                }
            } else {
                1.0
            };
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let key = fields.required_text("attributeKey");
    fields.text("producer");
    let scalar = Scalar::named(&key);
    let (higher_is_better, range) = fields.object("algorithm", |algorithm| {
        if !algorithm.has("type") {
            algorithm.error("type", "is required");
        }
        let higher = algorithm.one_of(
            "type",
            &[
                ("linear_lower_is_better", false),
                ("linear_higher_is_better", true),
            ],
            false,
        );
        let range = algorithm.object("normalization", |normalization| {
            normalization.object_if("adaptiveRange", |_| ());
            if normalization.has("adaptiveRange") && normalization.has("fixedRange") {
                normalization.error("fixedRange", "excludes `adaptiveRange`");
            }
            normalization.object_if("fixedRange", |range| {
                let any = f64::NEG_INFINITY..=f64::INFINITY;
                let min = range.number("min", 0.0, any.clone());
                let max = range.number("max", 1.0, any);
                if min >= max {
                    range.error("min", "must be less than `max`");
                }
                (min, max)
            })
        });
        (higher, range)
    });
    Built::scorer(EndpointAttribute {
        scalar,
        higher_is_better,
        range,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn adaptive_and_fixed_ranges() {
        let mut f = Fixture::labelled(&[&[("gpus", "2")], &[("gpus", "8")], &[("gpus", "x")], &[]]);
        let mut plugin = EndpointAttribute {
            scalar: Scalar::named("gpus"),
            higher_is_better: true,
            range: None,
        };
        assert_near(&f.score(&plugin), &[0.0, 1.0, 0.0, 0.0]);
        plugin.higher_is_better = false;
        assert_near(&f.score(&plugin), &[1.0, 0.0, 0.0, 0.0]);
        plugin.range = Some((0.0, 4.0));
        assert_near(&f.score(&plugin), &[0.5, 0.0, 0.0, 0.0]);
        let mut same = Fixture::labelled(&[&[("gpus", "2")], &[("gpus", "2")]]);
        plugin.range = None;
        assert_near(&same.score(&plugin), &[1.0, 1.0]);
    }

    #[test]
    fn engine_figures_by_their_metric_names() {
        let mut f = Fixture::new(3).load(0, 4, 1, 0.5).load(1, 0, 3, 0.0);
        let plugin = |name: &str| EndpointAttribute {
            scalar: Scalar::named(name),
            higher_is_better: false,
            range: Some((0.0, 4.0)),
        };
        assert_near(&f.score(&plugin("num_requests_running")), &[0.0, 1.0, 0.0]);
        assert_near(
            &f.score(&plugin("num_requests_waiting")),
            &[0.75, 0.25, 0.0],
        );
        assert_near(&f.score(&plugin("active-requests")), &[1.0, 1.0, 1.0]);
    }
}
