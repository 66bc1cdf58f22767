//! `session-affinity-scorer`: 1 for the endpoint that the session is bound to, 0 for the others.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Row, Scorer, Tools};
use crate::plugin::session::SessionAffinity;
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug)]
pub struct SessionScorer(pub Arc<SessionAffinity>);

impl Scorer for SessionScorer {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let Some(bound) = self.0.bound(context, rows) else {
            return;
        };
        for (row, score) in rows.iter().zip(scores) {
            if *row == bound {
                *score = 1.0;
            }
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let Some(affinity) = SessionAffinity::build(fields, build).map(Arc::new) else {
        return Built::default();
    };
    Built {
        scorer: Some(Arc::new(SessionScorer(Arc::clone(&affinity)))),
        on_picked: Some(affinity.clone()),
        learner: Some(affinity),
        ..Built::default()
    }
}
