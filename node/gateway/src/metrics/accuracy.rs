//! How right the pick was about what an endpoint has cached: what was predicted of the picked endpoint against what its engine
//! reports in the answer's usage.

use super::{CACHE_ERROR, CACHE_FOUND, CACHE_PREDICTED, CACHE_PREDICTIONS};
use arc_swap::ArcSwap;
use metrics::{Counter, counter};
use parking_lot::Mutex;
use quorate_routing::Endpoint;
use std::collections::HashMap;
use std::sync::Arc;

/// Endpoints come and go; so many names are remembered at a time.
const MOST: usize = 4096;

/// One endpoint's counters.
pub(crate) struct Accuracy {
    requests: Counter,
    predicted: Counter,
    found: Counter,
    error: Counter,
}

/// What was predicted for a request, kept until its engine has spoken.
pub(crate) struct Predicted {
    accuracy: Arc<Accuracy>,
    endpoint: Arc<Endpoint>,
    tokens: u64,
}

impl Predicted {
    /// The engine found so many tokens of the prompt in its cache; `prompt`: of how many, if it said so.
    pub fn compare(&self, found: u64, prompt: Option<u64>) {
        if let Some(prompt) = prompt {
            self.endpoint.cache_use().answered(prompt, found);
        }
        let of = &self.accuracy;
        of.requests.increment(1);
        of.predicted.increment(self.tokens);
        of.found.increment(found);
        of.error.increment(self.tokens.abs_diff(found));
    }
}

/// By the endpoint's name.
#[derive(Default)]
pub(crate) struct Accuracies {
    known: ArcSwap<HashMap<Arc<str>, Arc<Accuracy>>>,
    /// Held while one is added.
    adding: Mutex<()>,
}

impl Accuracies {
    /// `tokens` were predicted to be cached at the endpoint.
    pub fn predicted(&self, endpoint: &Arc<Endpoint>, tokens: u64) -> Predicted {
        let known = self.known.load().get(endpoint.name()).map(Arc::clone);
        Predicted {
            accuracy: known.unwrap_or_else(|| self.add(endpoint)),
            endpoint: Arc::clone(endpoint),
            tokens,
        }
    }

    fn add(&self, endpoint: &Endpoint) -> Arc<Accuracy> {
        let _adding = self.adding.lock();
        let spec = endpoint.spec();
        let known = self.known.load_full();
        if let Some(there) = known.get(&spec.name) {
            return Arc::clone(there);
        }
        let of = |name: &'static str| {
            let (pool, endpoint) = (spec.pool.to_string(), spec.name.to_string());
            counter!(name, "pool" => pool, "endpoint" => endpoint)
        };
        let added = Arc::new(Accuracy {
            requests: of(CACHE_PREDICTIONS),
            predicted: of(CACHE_PREDICTED),
            found: of(CACHE_FOUND),
            error: of(CACHE_ERROR),
        });
        let mut more = match known.len() < MOST {
            true => HashMap::clone(&known),
            // The counters themselves stay: they are only looked up again.
            false => HashMap::new(),
        };
        more.insert(Arc::clone(&spec.name), Arc::clone(&added));
        self.known.store(Arc::new(more));
        added
    }
}
