//! `context-length-aware`: prefers (and, if told to, only keeps) endpoints whose label `llm-d.ai/context-length-range: min-max` holds the
//! prompt's length.
//!
//! In range: 0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (max - length) / width); width 0: 1. Out of range, by the distance:
//! 0.3 / (1 + distance / 1000). No label: 0.5. A label that is no range: 0.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::endpoint::Endpoint;
use crate::pipeline::{Context, Filter, Row, Scorer, Tools};
use crate::plugin::labels::Remembered;
use std::sync::Arc;

const LABEL: &str = "llm-d.ai/context-length-range";
/// Lengths are kept in 31 bits each; nobody has longer contexts.
const MAX: u64 = (1 << 31) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    NoLabel,
    Bad,
    Known(u64, u64),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct ContextLength {
    /// The label.
    pub label: String,
    ranges: Remembered,
}

impl ContextLength {
    /// With llm-d's label.
    pub fn new(label: String) -> Self {
        Self {
            label,
            ranges: Remembered::default(),
        }
    }

    fn range(&self, endpoint: &Endpoint) -> Range {
        let packed = self.ranges.get(endpoint, |endpoint| {
            let Some(label) = endpoint.spec().labels.get(&self.label) else {
                return 0;
            };
            let bounds = label.split_once('-').and_then(|(min, max)| {
                let min: u64 = min.trim().parse().ok()?;
                let max: u64 = max.trim().parse().ok()?;
                (min <= max).then_some((min.min(MAX), max.min(MAX)))
            });
            match bounds {
                None => 1,
                Some((min, max)) => 2 + (min << 31 | max),
            }
        });
        match packed {
            0 => Range::NoLabel,
            1 => Range::Bad,
            packed => Range::Known((packed - 2) >> 31, (packed - 2) & MAX),
        }
    }
}

fn score(range: Range, length: u64) -> f64 {
    match range {
        Range::NoLabel => 0.5,
        Range::Bad => 0.0,
        Range::Known(min, max) if (min..=max).contains(&length) => {
            if min == max {
                return 1.0;
            }
            let width = (max - min) as f64;
            let room = (max - length) as f64 / width;
            0.3 + 0.7 * (0.7 / (1.0 + width / 10_000.0) + 0.3 * room)
        }
        Range::Known(min, max) => {
            let distance = if length < min {
                min - length
            } else {
                length - max
            };
            0.3 / (1.0 + distance as f64 / 1_000.0)
        }
    }
}

impl Scorer for ContextLength {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let length = context.request.estimated_prompt_tokens();
        for (row, value) in rows.iter().zip(scores) {
            if let Some(endpoint) = context.endpoint(*row) {
                *value = score(self.range(endpoint), length);
            }
        }
    }
}

impl Filter for ContextLength {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        let length = context.request.estimated_prompt_tokens();
        rows.retain(|row| {
            context
                .endpoint(*row)
                .is_some_and(|endpoint| match self.range(endpoint) {
                    Range::NoLabel => true,
                    Range::Bad => false,
                    Range::Known(min, max) => (min..=max).contains(&length),
                })
        });
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let label = fields.text("label").unwrap_or_else(|| LABEL.to_owned());
    let plugin = Arc::new(ContextLength::new(label));
    Built {
        filter: fields
            .flag("enableFiltering", false)
            .then(|| plugin.clone() as Arc<dyn Filter>),
        scorer: Some(plugin),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn in_range_near_it_and_without_a_label() {
        let mut f = Fixture::labelled(&[
            &[(LABEL, "0-2000")],
            &[(LABEL, "1000-1000")],
            &[(LABEL, "2000-8000")],
            &[(LABEL, "nonsense")],
            &[],
        ]);
        let plugin = ContextLength::new(LABEL.into());
        let request = SchedulingRequest {
            prompt_bytes: 4000,
            ..Default::default()
        };
        let expected = [0.3 + 0.7 * (0.7 / 1.2 + 0.3 * 0.5), 1.0, 0.15, 0.0, 0.5];
        assert_near(&f.score_for(&plugin, &request), &expected);
        assert_near(&f.score_for(&plugin, &request), &expected);
        assert_eq!(f.filter_for(&plugin, &request), [0, 1, 4]);
        let long = SchedulingRequest {
            prompt_tokens: Some(10_000),
            ..request
        };
        assert_eq!(f.filter_for(&plugin, &long), [4]);
        assert_near(&f.score_for(&plugin, &long)[2..3], &[0.1]);
    }
}
