//! `no-hit-lru-scorer`: spreads requests that nobody has cached. Any candidate with a prefix hit: all 0.5. Else the endpoints that
//! never got such a request come first, then those whose last one is longest ago: the i-th of N gets 1 - i / (N - 1).
//!
//! Only requests without a hit change the order, and of those the endpoint that decodes and the one that computes the prompt. What was
//! used is kept by endpoint incarnation; `lruSize` therefore limits nothing any more and is only checked.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::endpoint::slot::SlotTable;
use crate::pipeline::{ColumnId, Context, Extras, OnPicked, Row, Scorer, Stages, Tools};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// See the module's documentation.
#[derive(Debug)]
pub struct NoHitLru {
    /// Where the matches are.
    column: ColumnId,
    /// The profile whose pick counts besides the primary one.
    prefill: Option<usize>,
    /// A larger number was used later; 0: never.
    used: SlotTable,
    next: AtomicU64,
}

impl NoHitLru {
    /// Nothing used yet.
    pub fn new(column: ColumnId, prefill: Option<usize>) -> Self {
        Self {
            column,
            prefill,
            used: SlotTable::default(),
            next: AtomicU64::new(1),
        }
    }

    fn is_cold(&self, context: &Context<'_>, rows: &[Row]) -> bool {
        context
            .attributes
            .prefix(self.column)
            .is_none_or(|column| !column.any_hit() || rows.iter().all(|r| column.matched(*r) == 0))
    }

    fn bump(&self, context: &Context<'_>, row: Row) {
        if let Some(endpoint) = context.endpoint(row) {
            let stamp = self.next.fetch_add(1, Relaxed);
            self.used.set(endpoint.slot(), stamp);
        }
    }
}

impl Scorer for NoHitLru {
    fn score(&self, context: &Context<'_>, rows: &[Row], tools: &mut Tools, scores: &mut [f64]) {
        if !self.is_cold(context, rows) {
            scores.fill(0.5);
            return;
        }
        if rows.len() <= 1 {
            scores.fill(1.0);
            return;
        }
        let stamps = &mut tools.stamps;
        stamps.clear();
        stamps.extend(rows.iter().enumerate().map(|(at, row)| {
            let stamp = context
                .endpoint(*row)
                .map_or(0, |e| self.used.get(e.slot()));
            (stamp, at)
        }));
        // Those never used keep their order among each other: their stamps are equal and their places are not.
        stamps.sort_unstable();
        let last = (rows.len() - 1) as f64;
        for (i, (_, at)) in stamps.iter().enumerate() {
            if let Some(score) = scores.get_mut(*at) {
                *score = 1.0 - i as f64 / last;
            }
        }
    }
}

impl OnPicked for NoHitLru {
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, _: &mut Extras) {
        let cold = context
            .attributes
            .prefix(self.column)
            .is_none_or(|column| !column.any_hit());
        if !cold {
            return;
        }
        self.bump(context, primary);
        let prefill = self.prefill.and_then(|profile| stages.best_of(profile));
        if let Some(row) = prefill.filter(|row| *row != primary) {
            self.bump(context, row);
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    fields.whole("lruSize", 1024, 1..=1 << 24);
    let column = build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix);
    let plugin = Arc::new(NoHitLru::new(column, build.profile("prefill")));
    Built {
        scorer: Some(plugin.clone()),
        on_picked: Some(plugin),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, assert_near};

    fn use_of(f: &mut Fixture, plugin: &NoHitLru, row: Row) {
        f.with(&SchedulingRequest::default(), |context, _| {
            plugin.on_picked(context, &Stages::default(), row, &mut Extras::default());
        });
    }

    #[test]
    fn never_used_first_then_least_recently_used() {
        let mut f = Fixture::new(5).prefix(4, &[0; 5]);
        let plugin = NoHitLru::new(0, None);
        assert_near(&f.score(&plugin), &[1.0, 0.75, 0.5, 0.25, 0.0]);
        for row in [1, 3, 1] {
            use_of(&mut f, &plugin, row);
        }
        assert_near(&f.score(&plugin), &[1.0, 0.0, 0.75, 0.25, 0.5]);
    }

    #[test]
    fn a_hit_makes_all_equal_and_is_not_counted() {
        let mut f = Fixture::new(3).prefix(4, &[0, 2, 0]);
        let plugin = NoHitLru::new(0, None);
        assert_near(&f.score(&plugin), &[0.5; 3]);
        use_of(&mut f, &plugin, 0);
        let mut f = f.prefix(4, &[0, 0, 0]);
        f.attributes.reset(crate::pipeline::testing::SHAPE, 3);
        assert_near(&f.score(&plugin), &[1.0, 0.5, 0.0]);
        let mut one = Fixture::new(1);
        assert_near(&one.score(&plugin), &[1.0]);
    }
}
