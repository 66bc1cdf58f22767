//! The record of one decision, for people and for replaying it: what was there, who removed whom, what each scorer said, who was
//! picked. Written only when somebody asks for it.
//!
//! Everything that a pick reads of an endpoint or of the request's surroundings is in it, so that the same decision can be made again
//! later, under this configuration or another one. Names and labels are shared with the endpoints, so that a record of many
//! endpoints costs a few lists and not a copy of each name.

use super::name::Name;
use super::{Prediction, TierBlocks};
use crate::endpoint::{AdapterLoad, CacheShape, EndpointFacts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One pick.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// Which scheduler decided.
    pub scheduler: Name,
    /// From where the pick's random numbers went on; 16 hexadecimal digits when written.
    #[serde(with = "hex")]
    pub random: u64,
    /// The endpoints that could be used and their load.
    pub candidates: Vec<Candidate>,
    /// Endpoints that could not be used (unhealthy, draining, breaker open, tried already, slow start).
    pub unusable: Vec<Name>,
    /// What hard constraints removed.
    pub screened: Vec<Removal>,
    /// What the data producers found out.
    pub produced: Vec<Produced>,
    /// Each profile that ran, in order.
    pub profiles: Vec<ProfileRecord>,
    /// Picked, and refused by their breakers before the place was reserved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breaker_refused: Vec<Name>,
    /// The admitter that turned the request away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<Name>,
    /// Why the request was turned away or nothing was picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The pick and its fallbacks.
    pub picked: Vec<Name>,
    /// Prompt tokens that were reserved.
    pub reserved_tokens: u64,
}

/// An endpoint that could be used, with all that the pick could see of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Candidate {
    /// Its name.
    pub endpoint: Name,
    /// Requests in the engine's queue, carried on from the last reading.
    pub queue: f64,
    /// Requests in the running batch, carried on.
    pub running: f64,
    /// Share of the KV cache in use, carried on.
    pub kv_usage: f64,
    /// Requests of all nodes in flight.
    pub in_flight: u32,
    /// Prompt tokens of requests whose answer has not begun.
    pub tokens: u64,
    /// Age of the engine's figures in milliseconds.
    pub age_ms: Option<u32>,
    /// The engine's figures as they were read.
    pub read: Reading,
    /// Its fixed facts.
    #[serde(with = "shared")]
    pub facts: Arc<EndpointFacts>,
    /// LoRA adapters, where the engine has any.
    #[serde(with = "maybe_shared", skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Arc<AdapterLoad>>,
    /// Size of the KV cache, where the engine says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheShape>,
    /// Prompt tokens that it was seen to compute in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_rate: Option<f64>,
    /// Prompt tokens that it was seen to load in a second, by tier.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub load_rates: BTreeMap<String, f64>,
}

/// An engine's figures at their last reading; absent: never read, or not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// Requests in the running batch.
    pub running: Option<u32>,
    /// Requests in the queue.
    pub waiting: Option<u32>,
    /// Share of KV-cache blocks in use.
    pub kv_usage: Option<f32>,
    /// Requests of all nodes in flight at that time.
    pub in_flight: u32,
}

/// What one plugin removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Removal {
    /// Name of the plugin.
    pub plugin: Name,
    /// Who is gone.
    pub removed: Vec<Name>,
}

/// What one producer wrote into one of its columns, in the order of the candidates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Produced {
    /// Name of the plugin.
    pub producer: Name,
    /// What it found.
    #[serde(flatten)]
    pub column: Column,
}

/// A column by what it holds. Names of sessions are not kept: they may be credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "holds", rename_all = "kebab-case")]
pub enum Column {
    /// Cached blocks of the prompt.
    Prefix {
        /// Tokens of a block.
        block_tokens: u32,
        /// Blocks of the prompt.
        total_blocks: u32,
        /// Of these, how many each endpoint has.
        matched: Vec<u32>,
        /// What they are worth, where tiers are known.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        worth: Vec<f64>,
        /// Where they lie, where that is known.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tiers: Vec<TierBlocks>,
    },
    /// Blocks of the prompt where a burst of requests is to go.
    Placement {
        /// Tokens of a block.
        block_tokens: u32,
        /// Blocks of the prompt.
        total_blocks: u32,
        /// Of these, how many count for each endpoint.
        matched: Vec<u32>,
    },
    /// Expected latencies.
    Prediction {
        /// By endpoint.
        expected: Vec<Option<Prediction>>,
    },
    /// Share of the multimodal items that an endpoint has encoded.
    Multimodal {
        /// By endpoint.
        shares: Vec<f64>,
    },
    /// Prompt tokens that an endpoint would have to compute.
    Uncached {
        /// By endpoint.
        tokens: Vec<f64>,
    },
}

/// One run of a profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileRecord {
    /// Its name.
    pub profile: Name,
    /// Its filters in order.
    pub filters: Vec<Removal>,
    /// The endpoints that were scored; the columns below are in this order.
    pub endpoints: Vec<Name>,
    /// Its scorers.
    pub scores: Vec<ScoreColumn>,
    /// Weighted sums.
    pub totals: Vec<f64>,
    /// Name of its picker.
    pub picker: Name,
    /// Whose turn it was among equals, where the picker takes turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn: Option<usize>,
    /// The picker's choice, best first.
    pub picked: Vec<Name>,
}

/// What one scorer said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScoreColumn {
    /// Name of the plugin.
    pub plugin: Name,
    /// Its weight.
    pub weight: f64,
    /// Its values, clamped to 0 to 1.
    pub values: Vec<f64>,
}

impl Decision {
    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let scored: usize = self
            .profiles
            .iter()
            .map(|p| p.endpoints.len() * (16 + 8 + 8 * p.scores.len()))
            .sum();
        let produced = self.produced.len() * self.candidates.len() * 8;
        size_of::<Self>() + self.candidates.len() * size_of::<Candidate>() + scored + produced
    }
}

/// Numbers that must survive tools that know only floating point.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{value:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

/// What is shared in memory and written out in full.
mod shared {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub fn serialize<T: Serialize, S: Serializer>(of: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        (**of).serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// The same where there may be nothing.
mod maybe_shared {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub fn serialize<T: Serialize, S: Serializer>(
        of: &Option<Arc<T>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        of.as_deref().serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Ok(Option::deserialize(from)?.map(Arc::new))
    }
}
