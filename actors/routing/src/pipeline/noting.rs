//! Writing a decision down. Nothing here runs for a request that is not recorded.

use super::decision::{Candidate, Column, Decision, Produced, Reading, Removal};
use super::name::Name;
use super::{Attributes, Context, Filled, Loads, Prediction, PrefixColumn, Row};
use crate::config::registry::Produces;
use crate::endpoint::{Endpoint, FarTier, LoadSnapshot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names of rows.
pub(super) fn names(endpoints: &[Arc<Endpoint>], rows: &[Row]) -> Vec<Name> {
    rows.iter()
        .filter_map(|row| endpoints.get(*row))
        .map(|e| Name::from(&e.spec().name))
        .collect()
}

/// Endpoints that are none of `rows`, which is sorted.
pub(crate) fn others(endpoints: &[Arc<Endpoint>], rows: &[Row]) -> Vec<Name> {
    endpoints
        .iter()
        .enumerate()
        .filter(|(row, _)| rows.binary_search(row).is_err())
        .map(|(_, e)| Name::from(&e.spec().name))
        .collect()
}

/// What a step removed from `before`. Steps keep the order of what they leave.
pub(super) fn removal(
    context: &Context<'_>,
    plugin: &Arc<str>,
    before: &[Row],
    after: &[Row],
) -> Removal {
    let mut left = after.iter().peekable();
    let removed = before
        .iter()
        .filter(|row| left.next_if_eq(row).is_none())
        .filter_map(|row| context.endpoint(*row))
        .map(|e| Name::from(&e.spec().name))
        .collect();
    Removal {
        plugin: plugin.into(),
        removed,
    }
}

/// What was learnt of the farther tiers of an endpoint.
fn load_rates(endpoint: &Endpoint) -> BTreeMap<String, f64> {
    let rate = |tier: FarTier| {
        let rate = endpoint.rates().tier(tier).get()?;
        Some((tier.name().to_string(), rate))
    };
    FarTier::ALL.into_iter().filter_map(rate).collect()
}

/// The candidates and what the pick sees of them. `snapshots` are what `loads` was made of, by place in `rows`.
pub(crate) fn candidates(
    endpoints: &[Arc<Endpoint>],
    rows: &[Row],
    loads: &Loads,
    snapshots: &[LoadSnapshot],
) -> Vec<Candidate> {
    let candidate = |(row, snapshot): (&Row, &LoadSnapshot)| {
        let endpoint = endpoints.get(*row)?;
        let adapters = endpoint.adapter_load();
        let has_adapters =
            adapters.max > 0 || !adapters.running.is_empty() || !adapters.waiting.is_empty();
        Some(Candidate {
            endpoint: Name::from(&endpoint.spec().name),
            queue: loads.queue(*row),
            running: loads.running(*row),
            kv_usage: loads.kv_usage(*row),
            in_flight: loads.in_flight(*row),
            tokens: loads.tokens(*row),
            age_ms: loads.age_ms(*row),
            read: Reading {
                running: snapshot.figures.running,
                waiting: snapshot.figures.waiting,
                kv_usage: snapshot.figures.kv_cache_usage,
                in_flight: snapshot.in_flight_at_load,
            },
            facts: Arc::clone(endpoint.facts()),
            adapters: has_adapters.then(|| Arc::clone(&adapters)),
            cache: endpoint.cache_shape(),
            prefill_rate: endpoint.rates().prefill().get(),
            load_rates: load_rates(endpoint),
        })
    };
    rows.iter().zip(snapshots).filter_map(candidate).collect()
}

/// What the producers wrote, by candidate.
pub(super) fn produced(
    filled: &[Filled],
    attributes: &Attributes,
    candidates: &[Row],
) -> Vec<Produced> {
    let numbers = |id| {
        let number = |row: &Row| attributes.number(id, *row);
        candidates.iter().map(number).collect()
    };
    let column = |filled: &Filled| {
        let id = filled.id;
        let column = match filled.what {
            Produces::Prefix => {
                let prefix = attributes.prefix(id)?;
                Column::Prefix {
                    block_tokens: prefix.block_tokens,
                    total_blocks: prefix.total_blocks,
                    matched: candidates.iter().map(|row| prefix.matched(*row)).collect(),
                    worth: tiered(prefix, candidates, |row| prefix.worth(row)),
                    tiers: tiered(prefix, candidates, |row| {
                        prefix.tiers(row).unwrap_or_default()
                    }),
                }
            }
            Produces::Placement => {
                let prefix = attributes.prefix(id)?;
                Column::Placement {
                    block_tokens: prefix.block_tokens,
                    total_blocks: prefix.total_blocks,
                    matched: candidates.iter().map(|row| prefix.matched(*row)).collect(),
                }
            }
            Produces::Prediction => Column::Prediction {
                expected: candidates
                    .iter()
                    .map(|row| attributes.prediction(id, *row).map(Prediction::bounded))
                    .collect(),
            },
            Produces::Multimodal => Column::Multimodal {
                shares: numbers(id),
            },
            Produces::Uncached => Column::Uncached {
                tokens: numbers(id),
            },
            Produces::Session => return None,
        };
        Some(Produced {
            producer: Name::from(&filled.producer),
            column,
        })
    };
    filled.iter().filter_map(column).collect()
}

/// A list by candidate, of a column that knows tiers.
fn tiered<T>(column: &PrefixColumn, candidates: &[Row], of: impl Fn(Row) -> T) -> Vec<T> {
    let knows = |row: &&Row| column.tiers(**row).is_some();
    candidates
        .iter()
        .filter(knows)
        .map(|row| of(*row))
        .collect()
}

/// What came of it.
pub(crate) fn result(
    record: &mut Decision,
    result: &Result<crate::pick::Picked, crate::pick::NotPicked>,
) {
    match result {
        Ok(picked) => {
            record.picked = std::iter::once(picked.reservation.endpoint())
                .chain(&picked.fallbacks)
                .map(|e| Name::from(&e.spec().name))
                .collect();
            record.reserved_tokens = picked.reservation.tokens();
        }
        Err(refused) => record.refused = Some(refused.to_string()),
    }
}
