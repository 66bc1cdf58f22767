//! What the profiles of one pick have given so far, and what comes out besides the endpoint.

use super::Row;
use crate::pick::NotPicked;
use http::{HeaderName, HeaderValue};

/// What a profile handler wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run the profile with this number.
    Run(usize),
    /// All have run.
    Done,
    /// The request cannot be placed.
    Fail(NotPicked),
}

/// One profile's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stage {
    profile: usize,
    from: usize,
    to: usize,
}

/// The runs in order. Keeps its memory from pick to pick.
#[derive(Debug, Default)]
pub struct Stages {
    stages: Vec<Stage>,
    rows: Vec<Row>,
}

impl Stages {
    /// Forgets all runs.
    pub(super) fn clear(&mut self) {
        self.stages.clear();
        self.rows.clear();
    }

    /// Adds a run; the picker appends to the returned list.
    pub(crate) fn run(&mut self, profile: usize, pick: impl FnOnce(&mut Vec<Row>)) {
        let from = self.rows.len();
        pick(&mut self.rows);
        let to = self.rows.len();
        self.stages.push(Stage { profile, from, to });
    }

    /// How many have run.
    pub fn len(&self) -> usize {
        self.stages.len()
    }

    /// None has run.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Number of the profile of the n-th run.
    pub fn profile(&self, stage: usize) -> Option<usize> {
        self.stages.get(stage).map(|s| s.profile)
    }

    /// The n-th run of all, if that profile has run.
    pub fn of_profile(&self, profile: usize) -> Option<usize> {
        self.stages.iter().position(|s| s.profile == profile)
    }

    /// What the n-th run picked, best first; empty: it failed.
    pub fn picked(&self, stage: usize) -> &[Row] {
        self.stages
            .get(stage)
            .and_then(|s| self.rows.get(s.from..s.to))
            .unwrap_or_default()
    }

    /// The best of a profile's run.
    pub fn best_of(&self, profile: usize) -> Option<Row> {
        self.picked(self.of_profile(profile)?).first().copied()
    }
}

/// What a pick says besides the endpoint.
#[derive(Debug, Default)]
pub struct Extras {
    /// Headers for the request to the endpoint.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers for the answer.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Endpoints that are busy with the request until its answer begins.
    pub companions: Vec<Row>,
    /// Members of the body's `kv_transfer_params`, each as JSON: what the engine is to do about its cache.
    pub kv_hints: Vec<String>,
    /// Sends the request to this endpoint, which passes it on to the picked one.
    pub via: Option<Row>,
}
