//! The metrics of flow control. Handles are kept, so that a queued request costs one look-up and a dispatched one none.

use crate::flow::outcome::Outcome;
use crate::flow::queue::Held;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Values of a label that comes from clients; more become [`OTHER`].
const MOST_VALUES: usize = 1_000;
/// Combinations of labels of one pool that have handles; more share one.
const MOST_SETS: usize = 4_000;
/// Stands for all values beyond [`MOST_VALUES`].
const OTHER: &str = "other";

/// Texts for the metrics page.
pub fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_histogram!(
        "llm_d_epp_flow_control_request_queue_duration_seconds",
        Unit::Seconds,
        "Time in the queue by how it ended; of requests that did not wait, zero."
    );
    describe_histogram!(
        "llm_d_epp_flow_control_request_enqueue_duration_seconds",
        Unit::Seconds,
        "Time to queue a request."
    );
    describe_histogram!(
        "llm_d_epp_flow_control_dispatch_cycle_duration_seconds",
        Unit::Seconds,
        "Time of one look at the queue's heads."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_queue_size",
        "Requests queued on this node."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_queue_bytes",
        Unit::Bytes,
        "Bytes of the bodies of requests queued on this node."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_pool_saturation",
        "How full the pool is by stage; 1 is full."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_stale_endpoints",
        "Usable endpoints whose figures are too old to count."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_capacity_utilization_requests",
        "Queued requests of a band over its limit."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_capacity_utilization_bytes",
        "Queued bytes of a band over its limit."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_global_capacity_utilization_requests",
        "Queued requests over the limit for all bands."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_global_capacity_utilization_bytes",
        "Queued bytes over the limit for all bands."
    );
    describe_counter!(
        "llm_d_epp_flow_control_requests_total",
        "Requests that left flow control by outcome."
    );
    describe_counter!(
        "llm_d_epp_flow_control_revocations_issued_total",
        "Running requests told to give way, by their priority."
    );
    describe_counter!(
        "llm_d_epp_flow_control_revocations_total",
        "Revocations by outcome."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_reclaim_target",
        "Places wanted back by the last decision to revoke."
    );
    describe_gauge!(
        "llm_d_epp_flow_control_pending_reclaim",
        "Revoked requests whose streams have not ended yet."
    );
    describe_histogram!(
        "llm_d_epp_flow_control_revocation_confirmation_seconds",
        Unit::Seconds,
        "Time from a revocation to the end of its stream."
    );
}

/// A combination of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelId(u32);

#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Labels {
    fairness_id: Arc<str>,
    priority: i32,
    model: Arc<str>,
    target: Arc<str>,
}

struct Set {
    labels: Labels,
    held: Held,
    changed: bool,
    size: Gauge,
    bytes: Gauge,
    waited: [Option<Histogram>; Outcome::ALL.len()],
    enqueued: Option<Histogram>,
}

/// Distinct values up to the bound.
#[derive(Default)]
struct Capped(HashSet<Arc<str>>);

impl Capped {
    fn value(&mut self, value: &str) -> Arc<str> {
        if let Some(known) = self.0.get(value) {
            return Arc::clone(known);
        }
        let value: Arc<str> = match self.0.len() < MOST_VALUES {
            true => value.into(),
            false => OTHER.into(),
        };
        self.0.insert(Arc::clone(&value));
        value
    }
}

/// See the module's documentation.
pub struct Meter {
    pool: Arc<str>,
    /// By the hash of the values as they came.
    ids: HashMap<u64, Vec<LabelId>>,
    /// By the values as they are shown.
    by_labels: HashMap<Labels, LabelId>,
    sets: Vec<Set>,
    fairness_ids: Capped,
    models: Capped,
    outcomes: HashMap<(i32, Outcome), Counter>,
    cycle: Histogram,
    hasher: std::hash::RandomState,
}

impl Meter {
    /// For one pool.
    pub fn new(pool: Arc<str>) -> Self {
        Self {
            pool,
            ids: HashMap::new(),
            by_labels: HashMap::new(),
            sets: Vec::new(),
            fairness_ids: Capped::default(),
            models: Capped::default(),
            outcomes: HashMap::new(),
            cycle: histogram!("llm_d_epp_flow_control_dispatch_cycle_duration_seconds"),
            hasher: std::hash::RandomState::new(),
        }
    }

    /// The handles for a request's labels.
    pub fn labels(
        &mut self,
        fairness_id: &str,
        priority: i32,
        model: &str,
        target: &str,
    ) -> LabelId {
        use std::hash::BuildHasher;
        let hash = self.hasher.hash_one((fairness_id, priority, model, target));
        let same = |set: &Set| {
            let l = &set.labels;
            (&*l.fairness_id, l.priority, &*l.model, &*l.target)
                == (fairness_id, priority, model, target)
        };
        let known = self.ids.get(&hash).into_iter().flatten().find(|id| {
            let set = self.sets.get(id.0 as usize);
            set.is_some_and(same)
        });
        if let Some(id) = known {
            return *id;
        }
        let full = self.sets.len() >= MOST_SETS;
        let capped = Labels {
            fairness_id: match full {
                true => OTHER.into(),
                false => self.fairness_ids.value(fairness_id),
            },
            priority,
            model: match full {
                true => OTHER.into(),
                false => self.models.value(model),
            },
            target: match full {
                true => OTHER.into(),
                false => self.models.value(target),
            },
        };
        if let Some(id) = self.by_labels.get(&capped) {
            return *id;
        }
        let id = LabelId(self.sets.len() as u32);
        self.by_labels.insert(capped.clone(), id);
        let labels = self.with_pool(&capped);
        self.sets.push(Set {
            held: Held::default(),
            changed: false,
            size: gauge!("llm_d_epp_flow_control_queue_size", labels.clone()),
            bytes: gauge!("llm_d_epp_flow_control_queue_bytes", labels),
            waited: Default::default(),
            enqueued: None,
            labels: capped,
        });
        self.ids.entry(hash).or_default().push(id);
        id
    }

    fn with_pool(&self, l: &Labels) -> Vec<metrics::Label> {
        [
            ("fairness_id", l.fairness_id.to_string()),
            ("priority", l.priority.to_string()),
            ("inference_pool", self.pool.to_string()),
            ("model_name", l.model.to_string()),
            ("target_model_name", l.target.to_string()),
        ]
        .into_iter()
        .map(|(k, v)| metrics::Label::new(k, v))
        .collect()
    }

    /// A request was queued, which took `micros`.
    pub fn queued(&mut self, id: LabelId, bytes: u64, micros: u64) {
        let Some(set) = self.sets.get_mut(id.0 as usize) else {
            return;
        };
        set.held.requests += 1;
        set.held.bytes = set.held.bytes.saturating_add(bytes);
        set.changed = true;
        let l = &set.labels;
        set.enqueued
            .get_or_insert_with(|| {
                histogram!("llm_d_epp_flow_control_request_enqueue_duration_seconds",
                    "fairness_id" => l.fairness_id.to_string(), "priority" => l.priority.to_string(),
                    "outcome" => "NotYetFinalized")
            })
            .record(micros as f64 / 1e6);
    }

    /// A queued request left the queue after `micros`.
    pub fn left(&mut self, id: LabelId, bytes: u64, outcome: Outcome, micros: u64) {
        let pool = &self.pool;
        let Some(set) = self.sets.get_mut(id.0 as usize) else {
            return;
        };
        set.held.requests = set.held.requests.saturating_sub(1);
        set.held.bytes = set.held.bytes.saturating_sub(bytes);
        set.changed = true;
        let l = &set.labels;
        if let Some(handle) = set.waited.get_mut(outcome as usize) {
            handle
                .get_or_insert_with(|| {
                    histogram!("llm_d_epp_flow_control_request_queue_duration_seconds",
                        "fairness_id" => l.fairness_id.to_string(), "priority" => l.priority.to_string(),
                        "outcome" => outcome.as_str(), "inference_pool" => pool.to_string(),
                        "model_name" => l.model.to_string(), "target_model_name" => l.target.to_string())
                })
                .record(micros as f64 / 1e6);
        }
    }

    /// The counter of an outcome in a band.
    pub fn outcome(&mut self, priority: i32, outcome: Outcome) -> Counter {
        let pool = &self.pool;
        self.outcomes
            .entry((priority, outcome))
            .or_insert_with(|| {
                counter!("llm_d_epp_flow_control_requests_total", "outcome" => outcome.as_str(),
                    "priority" => priority.to_string(), "inference_pool" => pool.to_string())
            })
            .clone()
    }

    /// One look at the heads took this long.
    pub fn cycle(&self, micros: u64) {
        self.cycle.record(micros as f64 / 1e6);
    }

    /// Brings the queue gauges up to date.
    pub fn publish(&mut self) {
        for set in self.sets.iter_mut().filter(|s| s.changed) {
            set.changed = false;
            set.size.set(set.held.requests as f64);
            set.bytes.set(set.held.bytes as f64);
        }
    }

    /// How full a band's queue is.
    pub fn capacity(&self, priority: i32, requests: f64, bytes: f64) {
        let (priority, pool) = (priority.to_string(), self.pool.to_string());
        gauge!("llm_d_epp_flow_control_capacity_utilization_requests",
            "priority" => priority.clone(), "inference_pool" => pool.clone())
        .set(requests);
        gauge!("llm_d_epp_flow_control_capacity_utilization_bytes",
            "priority" => priority, "inference_pool" => pool)
        .set(bytes);
    }

    /// How full the whole queue is, where it has limits.
    pub fn global_capacity(&self, requests: Option<f64>, bytes: Option<f64>) {
        let pool = || self.pool.to_string();
        if let Some(requests) = requests {
            gauge!("llm_d_epp_flow_control_global_capacity_utilization_requests", "inference_pool" => pool())
                .set(requests);
        }
        if let Some(bytes) = bytes {
            gauge!("llm_d_epp_flow_control_global_capacity_utilization_bytes", "inference_pool" => pool())
                .set(bytes);
        }
    }

    /// How full the pool is.
    pub fn saturation(
        &self,
        prefill: Option<f64>,
        decode: Option<f64>,
        effective: f64,
        stale: usize,
        detector: &'static str,
    ) {
        let stages = [
            ("prefill", prefill),
            ("decode", decode),
            ("effective", Some(effective)),
        ];
        for (stage, value) in stages {
            if let Some(value) = value {
                gauge!("llm_d_epp_flow_control_pool_saturation",
                    "inference_pool" => self.pool.to_string(), "stage" => stage)
                .set(value);
            }
        }
        gauge!("llm_d_epp_flow_control_stale_endpoints", "detector" => detector).set(stale as f64);
    }

    /// Running requests were told to give way.
    pub fn revoked(&self, priorities: &[i32], wanted: u64) {
        for priority in priorities {
            counter!("llm_d_epp_flow_control_revocations_issued_total",
                "priority" => priority.to_string(), "inference_pool" => self.pool.to_string())
            .increment(1);
        }
        gauge!("llm_d_epp_flow_control_reclaim_target", "inference_pool" => self.pool.to_string())
            .set(wanted as f64);
    }
}

/// Revocations that are under way.
pub fn pending_reclaim(pool: &str, pending: u64) {
    gauge!("llm_d_epp_flow_control_pending_reclaim", "inference_pool" => pool.to_owned())
        .set(pending as f64);
}

/// Revocations that ended in some way; `after` is the time to a confirmation in microseconds.
pub fn revocations(pool: &str, outcome: &'static str, count: u64, after: Option<u64>) {
    let pool = || pool.to_owned();
    counter!("llm_d_epp_flow_control_revocations_total", "outcome" => outcome, "inference_pool" => pool())
        .increment(count);
    if let Some(after) = after {
        histogram!("llm_d_epp_flow_control_revocation_confirmation_seconds", "inference_pool" => pool())
            .record(after as f64 / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_shared() {
        let mut meter = Meter::new("p".into());
        let first = meter.labels("tenant", 0, "m", "t");
        assert_eq!(meter.labels("tenant", 0, "m", "t"), first);
        assert_ne!(meter.labels("tenant", 1, "m", "t"), first);
        for i in 0..3 * MOST_VALUES {
            meter.labels(&format!("rotating-{i}"), 0, "m", "t");
        }
        assert!(meter.sets.len() <= MOST_VALUES + 3);
        let known = meter.ids.len();
        let other = meter.labels("yet-another", 0, "m", "t");
        assert_eq!(
            (meter.labels("more", 0, "m", "t"), meter.ids.len()),
            (other, known)
        );
        meter.queued(first, 10, 1);
        meter.left(first, 10, Outcome::Dispatched, 5);
        assert_eq!(meter.sets[first.0 as usize].held, Held::default());
    }
}
