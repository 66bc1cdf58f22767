//! The gateway's metrics: names, help texts, buckets, and handles that are looked up once for each model.
//!
//! `llm_d_epp_*` names and labels mean what llm-d's endpoint picker means by them; `quorate_gateway_*` is ours. The number of
//! model names is limited, because clients choose them: the 1001st and later count as `other`.

use arc_swap::ArcSwap;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Label value for model names beyond [`MAX_MODELS`] and for models that nobody serves.
pub(crate) const OTHER: &str = "other";
/// Most model names that get series of their own.
const MAX_MODELS: usize = 1000;

const REQUESTS: &str = "llm_d_epp_request_total";
const ERRORS: &str = "llm_d_epp_request_error_total";
const DURATION: &str = "llm_d_epp_request_duration_seconds";
const REQUEST_SIZE: &str = "llm_d_epp_request_size_bytes";
const RESPONSE_SIZE: &str = "llm_d_epp_response_size_bytes";
const INPUT_TOKENS: &str = "llm_d_epp_request_input_tokens";
const OUTPUT_TOKENS: &str = "llm_d_epp_request_output_tokens";
const CACHED_TOKENS: &str = "llm_d_epp_request_cached_tokens";
const RUNNING: &str = "llm_d_epp_request_running";
const TTFT: &str = "llm_d_epp_request_ttft_seconds";
const ITL: &str = "llm_d_epp_request_streaming_itl_seconds";
const TPOT: &str = "llm_d_epp_request_streaming_tpot_seconds";
const CONNECTIONS: &str = "quorate_gateway_connections";
const ACCEPTED: &str = "quorate_gateway_connections_accepted_total";
const REJECTED: &str = "quorate_gateway_connections_rejected_total";
const RETRIES: &str = "quorate_gateway_retries_total";
const RETRIES_DENIED: &str = "quorate_gateway_retries_denied_total";
const CONNECTS: &str = "quorate_gateway_upstream_connects_total";
const REUSES: &str = "quorate_gateway_upstream_reuses_total";
const FAILURES: &str = "quorate_gateway_endpoint_failures_total";
const ABORTS: &str = "quorate_gateway_client_aborts_total";
const DROPPED: &str = "quorate_gateway_dropped_total";

const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0,
    1200.0, 1800.0, 2700.0, 3600.0,
];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0,
];
const PER_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
];
const REQUEST_BYTES: &[f64] = &[
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];
const RESPONSE_BYTES: &[f64] = &[
    1.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16_384.0,
    32_768.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
];
const TOKENS: &[f64] = &[
    1.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16_384.0,
    32_768.0,
    65_536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
];

/// Bucket bounds of every histogram of the gateway, for the exporter.
pub const BUCKETS: &[(&str, &[f64])] = &[
    (DURATION, SECONDS),
    (TTFT, FIRST_TOKEN),
    (ITL, PER_TOKEN),
    (TPOT, PER_TOKEN),
    (REQUEST_SIZE, REQUEST_BYTES),
    (RESPONSE_SIZE, RESPONSE_BYTES),
    (INPUT_TOKENS, TOKENS),
    (OUTPUT_TOKENS, TOKENS),
    (CACHED_TOKENS, TOKENS),
];

/// Gives the recorder units and help texts. Call once, after the recorder is installed and before the gateway starts.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests by model.");
    describe_counter!(ERRORS, "Requests that ended in an error, by its code.");
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From the request's arrival to the last byte of the answer."
    );
    describe_histogram!(REQUEST_SIZE, Unit::Bytes, "Length of request bodies.");
    describe_histogram!(RESPONSE_SIZE, Unit::Bytes, "Length of response bodies.");
    describe_histogram!(INPUT_TOKENS, "Prompt tokens, as the engine reports them.");
    describe_histogram!(
        OUTPUT_TOKENS,
        "Generated tokens: from usage, else token events of the stream."
    );
    describe_histogram!(
        CACHED_TOKENS,
        "Prompt tokens that the engine found in its cache."
    );
    describe_gauge!(RUNNING, "Requests being handled.");
    describe_histogram!(
        TTFT,
        Unit::Seconds,
        "From the request's arrival to the first token (streaming) or body byte."
    );
    describe_histogram!(ITL, Unit::Seconds, "Time between token events of a stream.");
    describe_histogram!(
        TPOT,
        Unit::Seconds,
        "Time per output token after the first, one value per stream."
    );
    describe_gauge!(CONNECTIONS, "Open client connections.");
    describe_counter!(ACCEPTED, "Client connections accepted.");
    describe_counter!(
        REJECTED,
        "Client connections turned away because of max_connections."
    );
    describe_counter!(
        RETRIES,
        "Requests sent to another endpoint, by what happened at the one before."
    );
    describe_counter!(RETRIES_DENIED, "Retries that the budget did not allow.");
    describe_counter!(CONNECTS, "Connections opened to endpoints, by result.");
    describe_counter!(
        REUSES,
        "Requests that found an open connection to their endpoint."
    );
    describe_counter!(
        FAILURES,
        "Failures of endpoints as the gateway saw them, by kind."
    );
    describe_counter!(ABORTS, "Requests whose client went away before the end.");
    describe_counter!(
        DROPPED,
        "Requests turned away before they reached an endpoint, by reason."
    );
}

/// Handles for one (requested model, model sent to the engine).
pub(crate) struct ModelMetrics {
    pub model: Arc<str>,
    pub target: Arc<str>,
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
}

/// `metric!(name, model, target, more labels)` with the labels that every `llm_d_epp_request_*` series has.
macro_rules! with_model {
    ($kind:ident, $name:expr, $model:expr, $target:expr $(, $key:literal => $value:expr)*) => {
        $kind!($name, "model_name" => $model.to_string(), "target_model_name" => $target.to_string(),
            "fairness_id" => "default-flow", "priority" => "0" $(, $key => $value)*)
    };
}

impl ModelMetrics {
    fn new(model: &str, target: &str) -> Self {
        Self {
            model: model.into(),
            target: target.into(),
            requests: with_model!(counter, REQUESTS, model, target),
            running: with_model!(gauge, RUNNING, model, target),
            duration: with_model!(histogram, DURATION, model, target),
            request_size: with_model!(histogram, REQUEST_SIZE, model, target),
            response_size: with_model!(histogram, RESPONSE_SIZE, model, target),
            input_tokens: with_model!(histogram, INPUT_TOKENS, model, target),
            output_tokens: with_model!(histogram, OUTPUT_TOKENS, model, target),
            cached_tokens: with_model!(histogram, CACHED_TOKENS, model, target),
            ttft: with_model!(histogram, TTFT, model, target, "streaming" => "false"),
            ttft_streaming: with_model!(histogram, TTFT, model, target, "streaming" => "true"),
            itl: with_model!(histogram, ITL, model, target),
            tpot: with_model!(histogram, TPOT, model, target),
        }
    }

    /// A request of this model ended in an error.
    pub fn error(&self, code: &'static str) {
        with_model!(counter, ERRORS, self.model, self.target, "error_code" => code).increment(1);
    }
}

/// All handles of a gateway.
pub(crate) struct Metrics {
    pub connections: Gauge,
    pub accepted: Counter,
    pub rejected: Counter,
    pub retries_denied: Counter,
    pub connects: Counter,
    pub connects_failed: Counter,
    pub reuses: Counter,
    pub aborts: Counter,
    models: ArcSwap<HashMap<Box<str>, Arc<ModelMetrics>>>,
    /// Held while a model is added.
    adding: Mutex<()>,
    other: Arc<ModelMetrics>,
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            connections: gauge!(CONNECTIONS),
            accepted: counter!(ACCEPTED),
            rejected: counter!(REJECTED),
            retries_denied: counter!(RETRIES_DENIED),
            connects: counter!(CONNECTS, "result" => "ok"),
            connects_failed: counter!(CONNECTS, "result" => "failed"),
            reuses: counter!(REUSES),
            aborts: counter!(ABORTS),
            models: ArcSwap::default(),
            adding: Mutex::new(()),
            other: Arc::new(ModelMetrics::new(OTHER, OTHER)),
        }
    }

    /// The handles of a model that is served, made at first use.
    pub fn model(&self, model: &str) -> Arc<ModelMetrics> {
        if let Some(found) = self.models.load().get(model) {
            return Arc::clone(found);
        }
        let _adding = self.adding.lock();
        let known = self.models.load_full();
        if let Some(found) = known.get(model) {
            return Arc::clone(found);
        }
        if known.len() >= MAX_MODELS {
            return Arc::clone(&self.other);
        }
        let added = Arc::new(ModelMetrics::new(model, model));
        let mut more = HashMap::clone(&known);
        more.insert(model.into(), Arc::clone(&added));
        self.models.store(Arc::new(more));
        added
    }

    /// The handles for everything that has no name of its own.
    pub fn other(&self) -> &Arc<ModelMetrics> {
        &self.other
    }
}

/// A request moved on because of `reason`.
pub(crate) fn retried(reason: &'static str) {
    counter!(RETRIES, "reason" => reason).increment(1);
}

/// A request was turned away without having been sent anywhere.
pub(crate) fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

/// An endpoint failed a request.
pub(crate) fn endpoint_failed(pool: &str, endpoint: &str, kind: &'static str) {
    counter!(FAILURES, "pool" => pool.to_owned(), "endpoint" => endpoint.to_owned(), "kind" => kind).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_limited() {
        let metrics = Metrics::new();
        for i in 0..MAX_MODELS {
            assert_eq!(&*metrics.model(&format!("m{i}")).model, format!("m{i}"));
        }
        assert_eq!(&*metrics.model("one more").model, OTHER);
        assert!(Arc::ptr_eq(&metrics.model("m7"), &metrics.model("m7")));
    }

    #[test]
    fn every_bucket_table_rises() {
        for (name, bounds) in BUCKETS {
            assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{name}");
        }
    }
}
