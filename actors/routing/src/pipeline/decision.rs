//! The record of one decision, for people and for replaying it: what was there, who removed whom, what each scorer said, who was
//! picked. Written only when somebody asks for it.

use serde::{Deserialize, Serialize};

/// One pick.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// Which scheduler decided.
    pub scheduler: String,
    /// The endpoints that could be used and their load.
    pub candidates: Vec<Candidate>,
    /// Endpoints that could not be used (unhealthy, draining, breaker open, tried already, slow start).
    pub unusable: Vec<String>,
    /// What hard constraints removed.
    pub screened: Vec<Removal>,
    /// Each profile that ran, in order.
    pub profiles: Vec<ProfileRecord>,
    /// Why the request was turned away or nothing was picked.
    pub refused: Option<String>,
    /// The pick and its fallbacks.
    pub picked: Vec<String>,
    /// Prompt tokens that were reserved.
    pub reserved_tokens: u64,
}

/// An endpoint that could be used, with the load that the pick saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub endpoint: String,
    /// Requests in the engine's queue.
    pub queue: f64,
    /// Requests in the running batch.
    pub running: f64,
    /// Share of the KV cache in use.
    pub kv_usage: f64,
    /// Requests of all nodes in flight.
    pub in_flight: u32,
    /// Prompt tokens of requests whose answer has not begun.
    pub tokens: u64,
    /// Age of the engine's figures in milliseconds.
    pub age_ms: Option<u32>,
}

/// What one plugin removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Removal {
    /// Name of the plugin.
    pub plugin: String,
    /// Who is gone.
    pub removed: Vec<String>,
}

/// One run of a profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileRecord {
    /// Its name.
    pub profile: String,
    /// Its filters in order.
    pub filters: Vec<Removal>,
    /// The endpoints that were scored; the columns below are in this order.
    pub endpoints: Vec<String>,
    /// Its scorers.
    pub scores: Vec<ScoreColumn>,
    /// Weighted sums.
    pub totals: Vec<f64>,
    /// The picker's choice, best first.
    pub picked: Vec<String>,
}

/// What one scorer said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreColumn {
    /// Name of the plugin.
    pub plugin: String,
    /// Its weight.
    pub weight: f64,
    /// Its values, clamped to 0 to 1.
    pub values: Vec<f64>,
}
