//! `queue-scorer` and `running-requests-size-scorer`: (max - n) / (max - min) over the candidates; all equal: 1.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Loads, Row, Scorer, Tools};

/// Fewer is better, relative to the other candidates.
#[derive(Debug)]
pub struct Fewest {
    figure: fn(&Loads, Row) -> f64,
}

impl Fewest {
    /// By the engines' queues.
    pub fn queued() -> Self {
        Self {
            figure: Loads::queue,
        }
    }

    /// By the running batches.
    pub fn running() -> Self {
        Self {
            figure: Loads::running,
        }
    }
}

impl Scorer for Fewest {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for (row, score) in rows.iter().zip(scores.iter_mut()) {
            let value = (self.figure)(context.loads, *row);
            *score = value;
            min = min.min(value);
            max = max.max(value);
        }
        let range = max - min;
        for score in scores {
            *score = if range > 0.0 {
                (max - *score) / range
            } else {
                1.0
            };
        }
    }
}

pub(crate) fn build_queue(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::scorer(Fewest::queued())
}

pub(crate) fn build_running(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::scorer(Fewest::running())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn relative_to_the_candidates() {
        let mut f = Fixture::new(3)
            .load(0, 3, 0, 0.0)
            .load(1, 7, 5, 0.0)
            .load(2, 5, 10, 0.0);
        assert_near(&f.score(&Fewest::queued()), &[1.0, 0.5, 0.0]);
        assert_near(&f.score(&Fewest::running()), &[1.0, 0.0, 0.5]);
    }

    #[test]
    fn equal_candidates_are_all_best_known_or_not() {
        let mut f = Fixture::new(2);
        assert_near(&f.score(&Fewest::queued()), &[1.0, 1.0]);
        let mut f = f.load(0, 4, 4, 0.1).load(1, 4, 4, 0.9);
        assert_near(&f.score(&Fewest::queued()), &[1.0, 1.0]);
        assert_near(&f.score(&Fewest::running()), &[1.0, 1.0]);
    }
}
