//! What a record gives a replay to work on: endpoints, columns, headers.

use crate::breaker::BreakerPolicy;
use crate::config::EndpointPickerConfig;
use crate::config::registry::Produces;
use crate::endpoint::{Endpoint, EndpointSpec, FarTier, Health, LoadFigures};
use crate::explain::{RequestFacts, is_kept};
use crate::pipeline::{
    Attributes, Candidate, Column, ColumnId, DataProducer, Decision, Named, Pipeline, ProducerInput,
};
use crate::target::Target;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Headers that plugins read unless they are told another.
const DEFAULT_HEADERS: &[(&str, &str)] = &[
    ("session-id-producer", "x-session-id"),
    ("session-affinity-filter", "x-session-token"),
    ("session-affinity-scorer", "x-session-token"),
    ("header-profile-handler", "epp-profile"),
    ("header-based-testing-filter", "test-epp-endpoint-selection"),
];

/// The candidates as they were, and the time at which their figures are as old as they were.
pub(super) fn endpoints(then: &Decision) -> (Vec<Arc<Endpoint>>, u64) {
    let ages = then.candidates.iter().filter_map(|c| c.age_ms);
    let now = 1_000_000 + u64::from(ages.max().unwrap_or(0));
    let made = then.candidates.iter().map(|c| endpoint(c, now)).collect();
    (made, now)
}

fn endpoint(candidate: &Candidate, now: u64) -> Arc<Endpoint> {
    let facts = &candidate.facts;
    let endpoint = Endpoint::new(
        EndpointSpec {
            name: (&*candidate.endpoint).into(),
            incarnation: 1,
            pool: "".into(),
            // Of a record that somebody wrote: it only has to be some address.
            target: Target::parse(&facts.url)
                .unwrap_or_else(|_| Target::new(false, "unknown.invalid", 80)),
            h2c: false,
            region: facts.region.as_str().into(),
            rank: facts.rank,
            labels: facts.labels.clone(),
            breaker: BreakerPolicy::default(),
            slow_start: Duration::ZERO,
            stall_timeout: Duration::from_secs(60),
        },
        None,
    );
    endpoint.set_health(Health::Ready, now);
    if let Some(age) = candidate.age_ms {
        endpoint.set_remote_in_flight(candidate.read.in_flight);
        let figures = LoadFigures {
            running: candidate.read.running,
            waiting: candidate.read.waiting,
            kv_cache_usage: candidate.read.kv_usage,
        };
        endpoint.set_load(figures, now.saturating_sub(u64::from(age)));
    }
    endpoint.set_remote_in_flight(candidate.in_flight);
    endpoint.set_remote_tokens(candidate.tokens);
    if let Some(adapters) = &candidate.adapters {
        endpoint.set_adapter_load((**adapters).clone());
    }
    if let Some(shape) = candidate.cache {
        endpoint.set_cache_shape(shape);
    }
    if let Some(rate) = candidate.prefill_rate {
        endpoint.rates().prefill().set(rate);
    }
    for tier in FarTier::ALL {
        if let Some(rate) = candidate.load_rates.get(tier.name()) {
            endpoint.rates().tier(tier).set(*rate);
        }
    }
    Arc::new(endpoint)
}

/// Producers of what can be worked out from the record stay; the others' columns come from the record.
pub(super) fn producers(
    compiled: &Pipeline,
    then: &Decision,
    lacks: &mut Vec<String>,
) -> Vec<Named<dyn DataProducer>> {
    let mut recorded = Recorded::default();
    let mut live = Vec::new();
    for filled in &compiled.filled {
        if matches!(filled.what, Produces::Session | Produces::Uncached) {
            live.push(&filled.producer);
            continue;
        }
        let of_kind = || {
            then.produced
                .iter()
                .filter(|p| holds(&p.column, filled.what))
        };
        let same_name = of_kind().find(|p| *p.producer == *filled.producer);
        match same_name.or_else(|| of_kind().next()) {
            Some(produced) => recorded.columns.push((filled.id, produced.column.clone())),
            None => lacks.push(format!(
                "{} (`{}` would fill it in, and nothing did then)",
                says(filled.what),
                filled.producer
            )),
        }
    }
    let recorded: Arc<dyn DataProducer> = Arc::new(recorded);
    let mut producers = vec![Named::new("recorded", recorded)];
    for producer in &compiled.producers {
        if live.contains(&&producer.name) {
            producers.push(super::same(producer));
        }
    }
    producers
}

fn holds(column: &Column, what: Produces) -> bool {
    match column {
        Column::Prefix { .. } => what == Produces::Prefix,
        Column::Placement { .. } => what == Produces::Placement,
        Column::Prediction { .. } => what == Produces::Prediction,
        Column::Multimodal { .. } => what == Produces::Multimodal,
        Column::Uncached { .. } => what == Produces::Uncached,
    }
}

fn says(what: Produces) -> &'static str {
    match what {
        Produces::Prefix => "how much of the prompt each endpoint had cached",
        Produces::Placement => "where the requests of a burst were to go",
        Produces::Prediction => "which latency was expected of each endpoint",
        Produces::Multimodal => "which multimodal items each endpoint had encoded",
        Produces::Uncached => "how many tokens each endpoint would have had to compute",
        Produces::Session => "the session",
    }
}

/// Fills columns as they were.
#[derive(Default)]
struct Recorded {
    columns: Vec<(ColumnId, Column)>,
}

impl DataProducer for Recorded {
    fn produce(&self, _: &ProducerInput<'_>, attributes: &mut Attributes) {
        for (id, column) in &self.columns {
            match column {
                Column::Prefix {
                    block_tokens,
                    total_blocks,
                    matched,
                    worth,
                    tiers,
                } => {
                    if let Some(prefix) = attributes.prefix_mut(*id) {
                        prefix.block_tokens = *block_tokens;
                        prefix.total_blocks = *total_blocks;
                        for (row, blocks) in matched.iter().enumerate() {
                            prefix.set(row, *blocks);
                        }
                        if !tiers.is_empty() {
                            prefix.with_tiers();
                        }
                        let tiers = tiers.iter().zip(worth).zip(matched).enumerate();
                        for (row, ((tiers, worth), blocks)) in tiers {
                            prefix.set_tiers(row, *blocks, *worth as f32, *tiers);
                        }
                    }
                }
                Column::Placement {
                    block_tokens,
                    total_blocks,
                    matched,
                } => {
                    if let Some(prefix) = attributes.prefix_mut(*id) {
                        prefix.block_tokens = *block_tokens;
                        prefix.total_blocks = *total_blocks;
                        for (row, blocks) in matched.iter().enumerate() {
                            prefix.set(row, *blocks);
                        }
                    }
                }
                Column::Prediction { expected } => {
                    for (row, prediction) in expected.iter().enumerate() {
                        if let Some(prediction) = prediction {
                            attributes.set_prediction(*id, row, *prediction);
                        }
                    }
                }
                Column::Multimodal { shares: numbers } | Column::Uncached { tokens: numbers } => {
                    for (row, number) in numbers.iter().enumerate() {
                        attributes.set_number(*id, row, *number);
                    }
                }
            }
        }
    }
}

/// Headers that a configuration's plugins read, with who reads them.
pub(super) fn headers_read(config: &EndpointPickerConfig) -> Vec<(&str, String)> {
    fn named<'a>(plugin: &'a str, value: &Value, into: &mut Vec<(&'a str, String)>) {
        match value {
            Value::Object(object) => {
                for (key, value) in object {
                    match (key.as_str(), value) {
                        ("headerName" | "header", Value::String(name)) => {
                            into.push((plugin, name.to_ascii_lowercase()));
                        }
                        ("cookieName", Value::String(name)) if !name.is_empty() => {
                            into.push((plugin, "cookie".into()));
                        }
                        _ => named(plugin, value, into),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| named(plugin, item, into)),
            _ => {}
        }
    }
    let mut headers = Vec::new();
    for plugin in &config.plugins {
        let before = headers.len();
        if let Some(parameters) = &plugin.parameters {
            named(&plugin.name, parameters, &mut headers);
        }
        if headers.len() == before {
            let default = DEFAULT_HEADERS
                .iter()
                .find(|(kind, _)| *kind == plugin.kind);
            headers.extend(default.map(|(_, name)| (plugin.name.as_str(), (*name).to_owned())));
        }
    }
    headers
}

/// Headers that the configuration reads and the record has not kept.
pub(super) fn missing_headers(config: &EndpointPickerConfig, facts: &RequestFacts) -> Vec<String> {
    headers_read(config)
        .into_iter()
        .filter(|(_, header)| !is_kept(header) || facts.headers_left_out.contains(header))
        .map(|(plugin, header)| format!("the header `{header}`, which `{plugin}` reads"))
        .collect()
}
