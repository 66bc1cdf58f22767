//! `session-affinity-filter`: only the endpoint that the session is bound to; all if it is bound to none of them.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Filter, Row, Tools};
use crate::plugin::session::SessionAffinity;
use std::sync::Arc;

/// See the module's documentation.
#[derive(Debug)]
pub struct SessionFilter(pub Arc<SessionAffinity>);

impl Filter for SessionFilter {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        if let Some(bound) = self.0.bound(context, rows) {
            rows.retain(|row| *row == bound);
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let Some(affinity) = SessionAffinity::build(fields, build).map(Arc::new) else {
        return Built::default();
    };
    Built {
        filter: Some(Arc::new(SessionFilter(Arc::clone(&affinity)))),
        on_picked: Some(affinity.clone()),
        learner: Some(affinity),
        ..Built::default()
    }
}
