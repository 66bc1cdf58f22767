//! `no-hit-lru-scorer`: spreads requests that nobody has cached. Any candidate with a prefix hit: all 0.5. Else the endpoints that
//! never got such a request come first, then those whose last one is longest ago: the i-th of N gets 1 - i / (N - 1).
//!
//! Only requests without a hit change the order, and of those the endpoint that decodes and the one that computes the prompt. What was
//! used is kept by endpoint incarnation; `lruSize` therefore limits nothing any more and is only checked.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::endpoint::Endpoint;
use crate::endpoint::slot::SlotTable;
use crate::learnt::{Learner, Learnt, NotLearnt};
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
    /// When it was last used: milliseconds and below them a count, so that all differ; 0: never.
    used: SlotTable,
    /// The same for the use by this router alone, and of that what others have been told.
    own: SlotTable,
    told: SlotTable,
    last: AtomicU64,
}

/// Bits of a stamp below the milliseconds.
const COUNT_BITS: u32 = 16;

impl NoHitLru {
    /// Nothing used yet.
    pub fn new(column: ColumnId, prefill: Option<usize>) -> Self {
        Self {
            column,
            prefill,
            used: SlotTable::default(),
            own: SlotTable::default(),
            told: SlotTable::default(),
            last: AtomicU64::new(0),
        }
    }

    fn is_cold(&self, context: &Context<'_>, rows: &[Row]) -> bool {
        context
            .attributes
            .prefix(self.column)
            .is_none_or(|column| !column.any_hit() || rows.iter().all(|r| column.matched(*r) == 0))
    }

    /// A larger one than ever before.
    fn stamp(&self, now: u64) -> u64 {
        let time = now << COUNT_BITS;
        let next = |last: u64| Some(time.max(last.saturating_add(1)));
        let before = self.last.fetch_update(Relaxed, Relaxed, next);
        before.map_or(time, |last| time.max(last.saturating_add(1)))
    }

    fn bump(&self, context: &Context<'_>, row: Row) {
        if let Some(endpoint) = context.endpoint(row) {
            let stamp = self.stamp(context.now);
            self.used.set(endpoint.slot(), stamp);
            self.own.set(endpoint.slot(), stamp);
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

impl Learner for NoHitLru {
    fn take(
        &self,
        endpoints: &[Arc<Endpoint>],
        budget: &mut usize,
        now: u64,
    ) -> Vec<(Arc<Endpoint>, Learnt)> {
        let mut all = Vec::new();
        for endpoint in endpoints {
            let own = self.own.get(endpoint.slot());
            if *budget == 0 || own == self.told.get(endpoint.slot()) {
                continue;
            }
            *budget -= 1;
            self.told.set(endpoint.slot(), own);
            let ago_ms = now.saturating_sub(own >> COUNT_BITS);
            all.push((Arc::clone(endpoint), Learnt::Cold { ago_ms }));
        }
        all
    }

    fn lost(&self) -> u64 {
        // Only the last use counts, and that waits in its place.
        0
    }

    fn copy(&self, endpoint: &Arc<Endpoint>, words: usize, now: u64) -> Option<Learnt> {
        let used = self.used.get(endpoint.slot());
        let ago_ms = now.saturating_sub(used >> COUNT_BITS);
        (used > 0 && words > 0).then_some(Learnt::Cold { ago_ms })
    }

    fn learn(&self, endpoint: &Arc<Endpoint>, learnt: &Learnt, now: u64) -> Result<(), NotLearnt> {
        let Learnt::Cold { ago_ms } = learnt else {
            return Err(NotLearnt::Kind);
        };
        // A use at the very beginning of this process's clock or before it is older than any of its own, but not none.
        let stamp = (now.saturating_sub(*ago_ms) << COUNT_BITS).max(1);
        if stamp > self.used.get(endpoint.slot()) {
            self.used.set(endpoint.slot(), stamp);
        }
        Ok(())
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    fields.whole("lruSize", 1024, 1..=1 << 24);
    let column = build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix);
    let plugin = Arc::new(NoHitLru::new(column, build.profile("prefill")));
    Built {
        scorer: Some(plugin.clone()),
        on_picked: Some(plugin.clone()),
        learner: Some(plugin),
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
