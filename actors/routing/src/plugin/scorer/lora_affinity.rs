//! `lora-affinity-scorer`: the adapter runs there: 1; there is room for one more: 0.8; it waits there: 0.6; else 0.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Row, Scorer, Tools};

/// See the module's documentation. The adapter is the request's target model.
#[derive(Debug)]
pub struct LoraAffinity;

impl Scorer for LoraAffinity {
    fn score(&self, context: &Context<'_>, rows: &[Row], _: &mut Tools, scores: &mut [f64]) {
        let model = context.request.model;
        let has = |names: &[String]| names.iter().any(|name| name == model);
        for (row, score) in rows.iter().zip(scores) {
            let Some(endpoint) = context.endpoint(*row) else {
                continue;
            };
            let load = endpoint.adapter_load();
            *score = if has(&load.running) {
                1.0
            } else if load.running.len() + load.waiting.len() < load.max as usize {
                0.8
            } else if has(&load.waiting) {
                0.6
            } else {
                0.0
            };
        }
    }
}

pub(crate) fn build(_: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::scorer(LoraAffinity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::AdapterLoad;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, assert_near};

    #[test]
    fn running_then_room_then_waiting() {
        let mut f = Fixture::new(5);
        let load = |running: &[&str], waiting: &[&str], max| AdapterLoad {
            running: running.iter().map(|s| (*s).to_owned()).collect(),
            waiting: waiting.iter().map(|s| (*s).to_owned()).collect(),
            max,
        };
        f.endpoints[0].set_adapter_load(load(&["a", "b"], &[], 2));
        f.endpoints[1].set_adapter_load(load(&["b"], &[], 2));
        f.endpoints[2].set_adapter_load(load(&["b"], &["a"], 2));
        f.endpoints[3].set_adapter_load(load(&["b"], &["c"], 2));
        let request = SchedulingRequest {
            model: "a",
            ..Default::default()
        };
        assert_near(
            &f.score_for(&LoraAffinity, &request),
            &[1.0, 0.8, 0.6, 0.0, 0.0],
        );
    }
}
