//! One profile: filters, weighted scorers, a picker.

use super::noting::{names, removal};
use super::plugin::{Context, Filter, Picker, Scorer, Tools};
use super::{Decision, ProfileRecord, Row, ScoreColumn};
use std::sync::Arc;

/// A plugin with the name that its configuration gave it.
pub struct Named<T: ?Sized> {
    /// For records and messages.
    pub name: Arc<str>,
    /// The plugin.
    pub plugin: Arc<T>,
}

impl<T: ?Sized> Named<T> {
    /// A plugin and its name.
    pub fn new(name: impl Into<Arc<str>>, plugin: Arc<T>) -> Self {
        Self {
            name: name.into(),
            plugin,
        }
    }
}

/// A scorer and its part in the sum.
pub struct Weighted {
    /// The scorer.
    pub scorer: Named<dyn Scorer>,
    /// What its scores are multiplied with.
    pub weight: f64,
}

/// See the module's documentation.
pub struct Profile {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Applied in order.
    pub filters: Vec<Named<dyn Filter>>,
    /// Their weighted sum decides.
    pub scorers: Vec<Weighted>,
    /// How it decides.
    pub picker: Named<dyn Picker>,
}

/// Memory of a profile's run, reused.
#[derive(Debug, Default)]
pub(super) struct Work {
    rows: Vec<Row>,
    before: Vec<Row>,
    scores: Vec<f64>,
    totals: Vec<f64>,
}

impl Profile {
    /// Appends the chosen rows to `picked`, best first; nothing if the filters left nothing.
    pub(super) fn run(
        &self,
        context: &Context<'_>,
        candidates: &[Row],
        work: &mut Work,
        tools: &mut Tools,
        picked: &mut Vec<Row>,
        record: Option<&mut Decision>,
    ) {
        let Work {
            rows,
            before,
            scores,
            totals,
        } = work;
        let mut record = record;
        if let Some(record) = &mut record {
            record.profiles.push(ProfileRecord {
                profile: (&self.name).into(),
                picker: (&self.picker.name).into(),
                ..Default::default()
            });
        }
        let mut note = record.and_then(|record| record.profiles.last_mut());

        rows.clear();
        rows.extend_from_slice(candidates);
        for filter in &self.filters {
            if note.is_some() {
                before.clear();
                before.extend_from_slice(rows);
            }
            filter.plugin.filter(context, rows, tools);
            if let Some(note) = &mut note {
                let removal = removal(context, &filter.name, before, rows);
                note.filters.push(removal);
            }
            if rows.is_empty() {
                return;
            }
        }

        totals.clear();
        totals.resize(rows.len(), 0.0);
        for Weighted { scorer, weight } in &self.scorers {
            scores.clear();
            scores.resize(rows.len(), 0.0);
            scorer.plugin.score(context, rows, tools, scores);
            for (total, score) in totals.iter_mut().zip(scores.iter_mut()) {
                *score = clamped(*score);
                *total += *score * weight;
            }
            if let Some(note) = &mut note {
                note.scores.push(ScoreColumn {
                    plugin: (&scorer.name).into(),
                    weight: *weight,
                    values: scores.clone(),
                });
            }
        }

        let from = picked.len();
        tools.turn = None;
        self.picker.plugin.pick(rows, totals, tools, picked);
        if let Some(note) = note {
            note.endpoints = names(context.endpoints, rows);
            note.totals.clone_from(totals);
            note.turn = tools.turn;
            let chosen = picked.get(from..).unwrap_or_default();
            note.picked = names(context.endpoints, chosen);
        }
    }
}

/// A score within its range; what is no number is the worst.
fn clamped(score: f64) -> f64 {
    if score.is_nan() {
        0.0
    } else {
        score.clamp(0.0, 1.0)
    }
}
