//! `active-request-scorer` and `token-load-scorer`: by what the routers themselves have in flight.
//!
//! Active requests c: c <= idle: 1; else (max - c) / max * maxBusyScore. Tokens: 1 - min(load, T) / T with load = tokens in flight +
//! the request's tokens that the endpoint would have to compute.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{ColumnId, Context, Row, Scorer, Tools};

/// `active-request-scorer`.
#[derive(Debug)]
pub struct ActiveRequests {
    /// Up to this many requests an endpoint counts as idle.
    pub idle_threshold: u32,
    /// The best score of an endpoint that is not idle.
    pub max_busy_score: f64,
}

impl Scorer for ActiveRequests {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let counts = rows.iter().map(|row| context.loads.in_flight(*row));
        let max = f64::from(counts.max().unwrap_or(0));
        for (row, score) in rows.iter().zip(scores) {
            let count = context.loads.in_flight(*row);
            *score = if count <= self.idle_threshold {
                1.0
            } else {
                (max - f64::from(count)) / max * self.max_busy_score
            };
        }
    }
}

/// `token-load-scorer`.
#[derive(Debug)]
pub struct TokenLoad {
    /// Tokens from which an endpoint is as bad as it gets.
    pub threshold: f64,
    /// The request's uncached tokens by endpoint.
    pub uncached: ColumnId,
}

impl Scorer for TokenLoad {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        for (row, score) in rows.iter().zip(scores) {
            let load =
                context.loads.tokens(*row) as f64 + context.attributes.number(self.uncached, *row);
            *score = 1.0 - load.clamp(0.0, self.threshold) / self.threshold;
        }
    }
}

pub(crate) fn build_active(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    // Counts are kept for every endpoint anyway; the name needs no plugin.
    fields.text("inFlightLoadProducerName");
    let idle = fields.whole("idleThreshold", 0, 0..=u64::from(u32::MAX));
    Built::scorer(ActiveRequests {
        idle_threshold: u32::try_from(idle).unwrap_or(u32::MAX),
        max_busy_score: fields.number("maxBusyScore", 1.0, 0.0..=1.0),
    })
}

pub(crate) fn build_tokens(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let threshold = fields.whole("queueThresholdTokens", 4_194_304, 1..=u64::MAX) as f64;
    let uncached = build.column(fields, "inFlightLoadProducerName", Produces::Uncached);
    Built::scorer(TokenLoad {
        threshold,
        uncached,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn idle_endpoints_are_best_and_busy_ones_relative_to_the_busiest() {
        let mut f = Fixture::new(3);
        for (row, remote) in [(1, 2), (2, 8)] {
            f.endpoints[row].set_remote_in_flight(remote);
        }
        let _here = f.endpoints[1].reserve(1).unwrap();
        let _there = f.endpoints[1].reserve(1).unwrap();
        let scorer = ActiveRequests {
            idle_threshold: 0,
            max_busy_score: 1.0,
        };
        assert_near(&f.score(&scorer), &[1.0, 0.5, 0.0]);
        let scorer = ActiveRequests {
            idle_threshold: 4,
            max_busy_score: 0.5,
        };
        assert_near(&f.score(&scorer), &[1.0, 1.0, 0.0]);
        let scorer = ActiveRequests {
            idle_threshold: 1,
            max_busy_score: 0.5,
        };
        assert_near(&f.score(&scorer), &[1.0, 0.25, 0.0]);
    }

    #[test]
    fn tokens_in_flight_and_the_requests_own_both_count() {
        let mut f = Fixture::new(3);
        let _held = f.endpoints[1].reserve_with(1, 300).unwrap();
        f.endpoints[1].set_remote_tokens(200);
        f.attributes.set_number(0, 0, 250.0);
        f.attributes.set_number(0, 2, 5000.0);
        let scorer = TokenLoad {
            threshold: 1000.0,
            uncached: 0,
        };
        assert_near(&f.score(&scorer), &[0.75, 0.5, 0.0]);
    }
}
