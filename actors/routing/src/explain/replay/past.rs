//! Plugins that remember earlier requests: what they must have known is read back from what they said.

use super::inputs::headers_read;
use crate::config::{EndpointPickerConfig, PluginSpec};
use crate::endpoint::Endpoint;
use crate::explain::RequestFacts;
use crate::pipeline::{
    Attributes, Context, Decision, Extras, Loads, Pipeline, ProducerInput, ProfileRecord, Row,
    SchedulingRequest, ScoreColumn, Stages,
};
use serde_json::Value;
use std::sync::Arc;

pub(super) struct Past<'a> {
    pub config: &'a EndpointPickerConfig,
    pub pipeline: &'a Pipeline,
    pub request: &'a SchedulingRequest<'a>,
    pub endpoints: &'a [Arc<Endpoint>],
    pub then: &'a Decision,
    pub now: u64,
}

/// What a plugin remembers.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    /// When it last sent something where (`no-hit-lru-scorer`).
    Order,
    /// Which endpoint a session went to.
    Binding,
}

fn memory(plugin: &PluginSpec) -> Option<Memory> {
    let strategy = plugin.parameters.as_ref().and_then(|p| p.get("strategy"));
    match plugin.kind.as_str() {
        "no-hit-lru-scorer" => Some(Memory::Order),
        "session-affinity-filter" | "session-affinity-scorer" => strategy
            .and_then(Value::as_str)
            .filter(|strategy| *strategy == "session_id")
            .map(|_| Memory::Binding),
        _ => None,
    }
}

/// A scorer's column in a decision, with the endpoints that it is of.
fn scored<'d>(
    decision: &'d Decision,
    plugin: &str,
) -> impl Iterator<Item = (&'d ProfileRecord, &'d ScoreColumn)> {
    let plugin = plugin.to_owned();
    decision
        .profiles
        .iter()
        .flat_map(|profile| profile.scores.iter().map(move |column| (profile, column)))
        .filter(move |(_, column)| *column.plugin == *plugin)
}

/// A score of all candidates says nothing of the order where one of them had a hit.
fn is_hot(column: &ScoreColumn) -> bool {
    column.values.len() > 1 && column.values.iter().all(|value| *value == 0.5)
}

impl Past<'_> {
    /// Gives the plugins their memory.
    pub fn restore(&self) {
        for plugin in &self.config.plugins {
            match memory(plugin) {
                Some(Memory::Order) => self.restore_order(&plugin.name),
                Some(Memory::Binding) => {
                    if let Some(bound) = self.bound(&plugin.name) {
                        self.tell(&plugin.name, &[bound], true);
                    }
                }
                None => {}
            }
        }
    }

    fn row(&self, name: &str) -> Option<Row> {
        self.endpoints.iter().position(|e| e.name() == name)
    }

    fn restore_order(&self, plugin: &str) {
        let Some((profile, column)) = scored(self.then, plugin).find(|(_, c)| !is_hot(c)) else {
            return;
        };
        // The best one was used longest ago.
        let mut order: Vec<(f64, Row)> = profile
            .endpoints
            .iter()
            .zip(&column.values)
            .filter_map(|(name, value)| Some((*value, self.row(name)?)))
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let order: Vec<Row> = order.into_iter().map(|(_, row)| row).collect();
        self.tell(plugin, &order, false);
    }

    /// The endpoint that a session was bound to, as far as the record shows.
    fn bound(&self, plugin: &str) -> Option<Row> {
        if let Some((profile, column)) = scored(self.then, plugin).next() {
            let best = column.values.iter().position(|value| *value == 1.0)?;
            return self.row(profile.endpoints.get(best)?);
        }
        let screened = || self.then.screened.iter().flat_map(|r| &r.removed);
        for profile in &self.then.profiles {
            let at = profile.filters.iter().position(|f| *f.plugin == *plugin);
            let Some(until) = at.and_then(|at| profile.filters.get(..=at)) else {
                continue;
            };
            let gone = |name: &str| {
                let removed = until.iter().flat_map(|f| &f.removed);
                removed.chain(screened()).any(|r| **r == *name)
            };
            let mut left = self.endpoints.iter().filter(|e| !gone(e.name()));
            let removed = until.last().is_some_and(|f| !f.removed.is_empty());
            if let (true, Some(only), None) = (removed, left.next(), left.next()) {
                return self.row(only.name());
            }
        }
        None
    }

    /// Tells a plugin that these were picked, one after the other; `produced`: with what the producers find of the request.
    fn tell(&self, plugin: &str, rows: &[Row], produced: bool) {
        let loads = Loads::default();
        let mut attributes = Attributes::default();
        attributes.reset(self.pipeline.shape, self.endpoints.len());
        if produced {
            let all: Vec<Row> = (0..self.endpoints.len()).collect();
            let input = ProducerInput {
                request: self.request,
                endpoints: self.endpoints,
                rows: &all,
                loads: &loads,
                now: self.now,
            };
            for producer in &self.pipeline.producers {
                producer.plugin.produce(&input, &mut attributes);
            }
        }
        let context = Context {
            request: self.request,
            endpoints: self.endpoints,
            loads: &loads,
            attributes: &attributes,
            now: self.now,
            peer: None,
        };
        let hooks = || {
            self.pipeline
                .on_picked
                .iter()
                .filter(|h| *h.name == *plugin)
        };
        for row in rows {
            let mut stages = Stages::default();
            for profile in 0..self.pipeline.profiles.len() {
                stages.run(profile, |picked| picked.push(*row));
            }
            for hook in hooks() {
                hook.plugin
                    .on_picked(&context, &stages, *row, &mut Extras::default());
            }
        }
    }

    /// What of the past the new decision rests on and the record does not show.
    pub fn lacks(&self, decision: &Decision, facts: &RequestFacts) -> Vec<String> {
        let mut lacks = Vec::new();
        for plugin in &self.config.plugins {
            let name = plugin.name.as_str();
            let guessed = match memory(plugin) {
                Some(Memory::Order) => self.rests_on_unknown_order(decision, name),
                Some(Memory::Binding) => self.may_have_session(facts) && self.asks(decision, name),
                None => false,
            };
            if guessed {
                lacks.push(format!("what `{name}` remembered of earlier requests"));
            }
        }
        lacks
    }

    fn rests_on_unknown_order(&self, decision: &Decision, plugin: &str) -> bool {
        let known = scored(self.then, plugin).find(|(_, c)| !is_hot(c));
        scored(decision, plugin).any(|(profile, column)| {
            let is_known = |name: &&crate::pipeline::Name| {
                known.is_some_and(|(known, _)| known.endpoints.contains(name))
            };
            column.values.len() > 1
                && !is_hot(column)
                && !profile.endpoints.iter().all(|n| is_known(&n))
        })
    }

    fn may_have_session(&self, facts: &RequestFacts) -> bool {
        let read = headers_read(self.config);
        facts.session.is_some()
            || facts.headers.keys().any(|kept| {
                kept.contains("session") || read.iter().any(|(_, header)| header == kept)
            })
    }

    /// The plugin had a say now and none then.
    fn asks(&self, decision: &Decision, plugin: &str) -> bool {
        let took_part = |decision: &Decision| {
            let filters = || decision.profiles.iter().flat_map(|p| &p.filters);
            scored(decision, plugin).next().is_some() || filters().any(|f| *f.plugin == *plugin)
        };
        took_part(decision) && !took_part(self.then)
    }
}
