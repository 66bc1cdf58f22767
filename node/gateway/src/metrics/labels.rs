//! Metric handles by the labels that clients choose: model, model asked for, fairness id, and priority.
//!
//! Model names share one limit of [`MAX_VALUES`] values and fairness ids have another; what comes later counts as `other`. Names that
//! rewrite rules have are given by the operator and do not count against the limit. The number of combinations is limited as well.

use super::{
    CACHED_TOKENS, DURATION, ERRORS, INPUT_TOKENS, ITL, NTPOT, OUTPUT_TOKENS, QUEUE_WAIT,
    REQUEST_SIZE, REQUESTS, RESPONSE_SIZE, RUNNING, TPOT, TTFT,
};
use arc_swap::ArcSwap;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::Mutex;
use quorate_routing::flow::Outcome;
use quorate_routing::{Class, DEFAULT_FLOW};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

/// Label value for everything that has no value of its own.
pub(crate) const OTHER: &str = "other";
/// Most model names, and most fairness ids, that get series of their own.
const MAX_VALUES: usize = 1000;
/// Most combinations of labels beside one plain one for each model.
const MAX_SETS: usize = 10_000;

/// The labels that every `llm_d_epp_request_*` series has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Labels {
    /// What the client asked for.
    pub model: Arc<str>,
    /// What the engine is asked for.
    pub target: Arc<str>,
    pub fairness: Arc<str>,
    pub priority: i32,
}

/// Handles for one combination of labels.
pub(crate) struct RequestMetrics {
    pub labels: Labels,
    pub requests: Counter,
    pub running: Gauge,
    pub duration: Histogram,
    pub request_size: Histogram,
    pub response_size: Histogram,
    pub input_tokens: Histogram,
    pub output_tokens: Histogram,
    pub cached_tokens: Histogram,
    pub ttft: Histogram,
    pub ttft_streaming: Histogram,
    pub itl: Histogram,
    pub tpot: Histogram,
    pub ntpot: Histogram,
    /// Of the pool that these requests go to: one of them, if there are several.
    unqueued: OnceLock<(Arc<str>, Histogram)>,
}

/// `labelled!(kind, name, labels, more labels)`
macro_rules! labelled {
    ($kind:ident, $name:expr, $labels:expr $(, $key:literal => $value:expr)*) => {
        $kind!($name, "model_name" => $labels.model.to_string(), "target_model_name" => $labels.target.to_string(),
            "fairness_id" => $labels.fairness.to_string(), "priority" => $labels.priority.to_string() $(, $key => $value)*)
    };
}

impl RequestMetrics {
    /// A request that did not wait in the queue of its pool.
    pub fn not_queued(&self, pool: &Arc<str>) {
        let (of, waited) = self
            .unqueued
            .get_or_init(|| (Arc::clone(pool), self.queue_wait(pool)));
        match of == pool {
            true => waited.record(0.0),
            false => self.queue_wait(pool).record(0.0),
        }
    }

    fn queue_wait(&self, pool: &str) -> Histogram {
        let outcome = Outcome::Dispatched.as_str();
        labelled!(histogram, QUEUE_WAIT, self.labels, "outcome" => outcome, "inference_pool" => pool.to_owned())
    }

    fn new(labels: Labels) -> Self {
        let l = &labels;
        Self {
            requests: labelled!(counter, REQUESTS, l),
            running: labelled!(gauge, RUNNING, l),
            duration: labelled!(histogram, DURATION, l),
            request_size: labelled!(histogram, REQUEST_SIZE, l),
            response_size: labelled!(histogram, RESPONSE_SIZE, l),
            input_tokens: labelled!(histogram, INPUT_TOKENS, l),
            output_tokens: labelled!(histogram, OUTPUT_TOKENS, l),
            cached_tokens: labelled!(histogram, CACHED_TOKENS, l),
            ttft: labelled!(histogram, TTFT, l, "streaming" => "false"),
            ttft_streaming: labelled!(histogram, TTFT, l, "streaming" => "true"),
            itl: labelled!(histogram, ITL, l),
            tpot: labelled!(histogram, TPOT, l),
            ntpot: labelled!(histogram, NTPOT, l),
            unqueued: OnceLock::new(),
            labels,
        }
    }

    /// A request with these labels ended in an error.
    pub fn error(&self, code: &'static str) {
        labelled!(counter, ERRORS, self.labels, "error_code" => code).increment(1);
    }
}

/// One model's handles.
struct Model {
    /// Asked for under its own name, no fairness id, priority 0: nearly every request.
    plain: Arc<RequestMetrics>,
    others: ArcSwap<HashMap<Labels, Arc<RequestMetrics>>>,
}

impl Model {
    fn new(name: &Arc<str>, flow: &Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            plain: Arc::new(RequestMetrics::new(Labels {
                model: Arc::clone(name),
                target: Arc::clone(name),
                fairness: Arc::clone(flow),
                priority: 0,
            })),
            others: ArcSwap::default(),
        })
    }
}

/// The handles of all combinations seen.
pub(super) struct Requests {
    models: ArcSwap<HashMap<Arc<str>, Arc<Model>>>,
    other: Arc<Model>,
    flow: Arc<str>,
    /// Held while something is added.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    models: HashSet<Arc<str>>,
    flows: HashSet<Arc<str>>,
    sets: usize,
}

impl Requests {
    pub fn new() -> Self {
        let flow = Arc::from(DEFAULT_FLOW);
        Self {
            models: ArcSwap::default(),
            other: Model::new(&OTHER.into(), &flow),
            flow,
            known: Mutex::default(),
        }
    }

    pub fn other(&self) -> &Arc<RequestMetrics> {
        &self.other.plain
    }

    /// See [`super::Metrics::request`].
    pub fn of(&self, model: Option<&str>, class: &Class) -> Arc<RequestMetrics> {
        let models = self.models.load();
        let added;
        let entry = match model {
            None => &self.other,
            Some(name) => match models.get(name) {
                Some(entry) => entry,
                None => {
                    added = self.model(name, class.rewrite.is_some());
                    &added
                }
            },
        };
        if class.target.is_none() && class.fairness_id.is_none() && class.priority == 0 {
            return Arc::clone(&entry.plain);
        }
        let plain = &entry.plain.labels;
        let labels = Labels {
            model: Arc::clone(&plain.model),
            target: Arc::clone(class.target.as_ref().unwrap_or(&plain.target)),
            fairness: Arc::clone(class.fairness_id.as_ref().unwrap_or(&self.flow)),
            priority: class.priority,
        };
        if let Some(found) = entry.others.load().get(&labels) {
            return Arc::clone(found);
        }
        self.combination(entry, labels, class.rewrite.is_some())
    }

    /// Adds a model; `declared` if an operator named it.
    fn model(&self, name: &str, declared: bool) -> Arc<Model> {
        let mut known = self.known.lock();
        let models = self.models.load_full();
        if let Some(entry) = models.get(name) {
            return Arc::clone(entry);
        }
        let name: Arc<str> = name.into();
        if !admit(&mut known.models, &name, declared) {
            return Arc::clone(&self.other);
        }
        let entry = Model::new(&name, &self.flow);
        let mut more = HashMap::clone(&models);
        more.insert(name, Arc::clone(&entry));
        self.models.store(Arc::new(more));
        entry
    }

    fn combination(&self, entry: &Model, asked: Labels, declared: bool) -> Arc<RequestMetrics> {
        let mut known = self.known.lock();
        let mut labels = asked;
        let other = || Arc::from(OTHER);
        if labels.target != labels.model && !admit(&mut known.models, &labels.target, declared) {
            labels.target = other();
        }
        if labels.fairness != self.flow && !admit(&mut known.flows, &labels.fairness, false) {
            labels.fairness = other();
        }
        if known.sets >= MAX_SETS {
            labels.fairness = other();
        }
        let others = entry.others.load_full();
        if let Some(found) = others.get(&labels) {
            return Arc::clone(found);
        }
        // Few sets are left that could still be new: models and priorities are the operator's.
        known.sets += 1;
        let added = Arc::new(RequestMetrics::new(labels.clone()));
        let mut more = HashMap::clone(&others);
        more.insert(labels, Arc::clone(&added));
        entry.others.store(Arc::new(more));
        added
    }
}

/// Whether `value` may be a label: known, declared, or there is room.
fn admit(known: &mut HashSet<Arc<str>>, value: &Arc<str>, declared: bool) -> bool {
    if known.contains(value) || declared {
        return true;
    }
    let room = known.len() < MAX_VALUES;
    if room {
        known.insert(Arc::clone(value));
    }
    room
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_routing::{PoolSpec, RoutingView};

    fn class() -> Class {
        let view = RoutingView::build([(PoolSpec::default(), Vec::new())]);
        Class {
            pool: Arc::clone(&view.pools()[0]),
            target: None,
            rewrite: None,
            objective: None,
            priority: 0,
            fairness_id: None,
            slo_ttft_ms: None,
            slo_tpot_ms: None,
            timeout: None,
            timeout_of_stranger: false,
            session: None,
            subset: None,
        }
    }

    #[test]
    fn model_names_are_limited_but_not_the_operators() {
        let requests = Requests::new();
        for i in 0..MAX_VALUES {
            let name = format!("m{i}");
            assert_eq!(*requests.of(Some(&name), &class()).labels.model, name);
        }
        assert_eq!(
            &*requests.of(Some("one more"), &class()).labels.model,
            OTHER
        );
        let again = || requests.of(Some("m7"), &class());
        assert!(Arc::ptr_eq(&again(), &again()));
        let rewritten = Class {
            target: Some("declared".into()),
            rewrite: Some("r".into()),
            ..class()
        };
        let labels = &requests.of(Some("alias"), &rewritten).labels;
        assert_eq!((&*labels.model, &*labels.target), ("alias", "declared"));
        let by_header = Class {
            target: Some("by header".into()),
            ..class()
        };
        assert_eq!(&*requests.of(Some("m7"), &by_header).labels.target, OTHER);
    }

    #[test]
    fn fairness_ids_are_limited_and_priorities_are_labels() {
        let requests = Requests::new();
        let of = |id: &str, priority| {
            let class = Class {
                fairness_id: Some(id.into()),
                priority,
                ..class()
            };
            requests.of(Some("m"), &class)
        };
        for i in 0..MAX_VALUES {
            let id = format!("tenant-{i}");
            assert_eq!(*of(&id, 0).labels.fairness, id);
        }
        let late = of("late", -3);
        assert_eq!((&*late.labels.fairness, late.labels.priority), (OTHER, -3));
        assert!(Arc::ptr_eq(&late, &of("later", -3)));
        assert!(Arc::ptr_eq(&of("tenant-1", 0), &of("tenant-1", 0)));
    }
}
