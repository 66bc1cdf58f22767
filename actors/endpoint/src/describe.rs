//! What this node knows of an endpoint, for people: the answer to "why is it not used?".

use crate::shared::{Entry, Shared};
use quorate_proto::v1::{EndpointStatus, endpoint_status::State};
use quorate_routing::{Health, NotUsed, now_ms};
use std::time::Duration;

/// Describes a declared endpoint; `None`: no endpoint of that name is declared.
pub fn describe(shared: &Shared, name: &str) -> Option<EndpointStatus> {
    let catalog = shared.catalog.load();
    if let Some(entry) = catalog.entries.get(name) {
        return Some(status(shared, entry));
    }
    let why = catalog.unplaced.get(name)?;
    Some(EndpointStatus {
        state: State::Unknown.into(),
        reasons: vec![why.clone()],
        node_id: shared.node_id(),
        ..Default::default()
    })
}

fn status(shared: &Shared, entry: &Entry) -> EndpointStatus {
    let now = now_ms();
    let endpoint = &entry.endpoint;
    let facts = entry.facts();
    let load = endpoint.load(now);
    let models = endpoint.models();
    let ids = |adapters: bool| {
        models
            .iter()
            .filter(|m| m.parent.is_some() == adapters)
            .map(|m| m.id.clone())
            .collect()
    };
    let reason = |why: NotUsed| match why {
        NotUsed::Unhealthy if !facts.last_error.is_empty() => {
            format!("unhealthy: {}", facts.last_error)
        }
        why => why.to_string(),
    };
    let state = match (endpoint.is_draining(), endpoint.health()) {
        (true, _) => State::Draining,
        (_, Health::Ready) => State::Ready,
        (_, Health::Unknown) => State::Unknown,
        (_, Health::Unhealthy) => State::Unhealthy,
    };
    EndpointStatus {
        state: state.into(),
        reasons: endpoint.reasons(now).into_iter().map(reason).collect(),
        owner_node_id: entry.owner(),
        node_id: shared.node_id(),
        local_in_flight: endpoint.local_in_flight(),
        total_in_flight: endpoint.total_in_flight(),
        running: load.and_then(|(l, _)| l.running),
        waiting: load.and_then(|(l, _)| l.waiting),
        kv_cache_usage: load.and_then(|(l, _)| l.kv_cache_usage).map(f64::from),
        load_age: load.and_then(|(_, age)| Duration::from_millis(age).try_into().ok()),
        models: ids(false),
        adapters: ids(true),
        breaker: endpoint.breaker_state(now).as_str().to_owned(),
        last_error: facts.last_error,
        engine: facts.engine.into(),
        conditions: entry.conditions(),
    }
}
