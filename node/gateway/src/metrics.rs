//! The gateway's metrics: names, help texts, buckets, and handles that are looked up once for each model.
//!
//! `llm_d_epp_*` names and labels mean what llm-d's endpoint picker means by them; `quorate_gateway_*` is ours. The number of
//! label values is limited, because clients choose them: see [`labels`].

mod accuracy;
mod labels;

pub(crate) use accuracy::Predicted;
pub(crate) use labels::{Labels, RequestMetrics};

use accuracy::Accuracies;
use labels::Requests;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use quorate_routing::{Class, Endpoint};
use std::sync::Arc;

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
const NTPOT: &str = "llm_d_epp_request_ntpot_seconds";
const PROCESSING: &str = "llm_d_epp_request_processing_duration_seconds";
const RESPONSE_PROCESSING: &str = "llm_d_epp_response_processing_duration_seconds";
const SCHEDULING: &str = "llm_d_epp_scheduler_e2e_duration_seconds";
/// Turns that heavy requests asked for, by `result` (`begun`, `late`).
pub(crate) const TURNS: &str = "quorate_turns_total";
/// How long they waited.
pub(crate) const TURN_WAIT: &str = "quorate_turn_wait_seconds";
const ATTEMPTS: &str = "llm_d_epp_scheduler_attempts_total";
/// Endpoints have no namespaces; one that came from a place that has them may carry its in a label.
const NAMESPACE: &str = "default";
pub(crate) const QUEUE_WAIT: &str = "llm_d_epp_flow_control_request_queue_duration_seconds";
const REWRITES: &str = "llm_d_epp_model_rewrite_decisions_total";
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
const CACHE_PREDICTIONS: &str = "quorate_prefix_predictions_total";
const CACHE_PREDICTED: &str = "quorate_prefix_predicted_tokens_total";
const CACHE_FOUND: &str = "quorate_prefix_found_tokens_total";
const CACHE_ERROR: &str = "quorate_prefix_error_tokens_total";

const SECONDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0,
    1200.0, 1800.0, 2700.0, 3600.0,
];
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0,
];
pub(crate) const PER_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
];
const SCHEDULING_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
];
const PROCESSING_SECONDS: &[f64] = &[
    0.000_01, 0.000_02, 0.000_05, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.5, 1.0, 5.0, 30.0, 60.0,
];
const WAIT_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 20.0, 60.0,
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
    (NTPOT, PER_TOKEN),
    (SCHEDULING, SCHEDULING_SECONDS),
    (PROCESSING, PROCESSING_SECONDS),
    (RESPONSE_PROCESSING, PROCESSING_SECONDS),
    (QUEUE_WAIT, WAIT_SECONDS),
    (REQUEST_SIZE, REQUEST_BYTES),
    (RESPONSE_SIZE, RESPONSE_BYTES),
    (INPUT_TOKENS, TOKENS),
    (OUTPUT_TOKENS, TOKENS),
    (CACHED_TOKENS, TOKENS),
];

/// Gives the recorder units and help texts. Call once, after the recorder is installed and before the gateway starts.
pub fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests by the client's model, the model asked for, fairness id and priority."
    );
    describe_counter!(ERRORS, "Requests that ended in an error, by its code.");
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From the request's arrival to the last byte of the answer."
    );
    describe_counter!(
        TURNS,
        "Heavy requests that asked for their router's turn to place them, by what came of it."
    );
    describe_histogram!(
        TURN_WAIT,
        Unit::Seconds,
        "How long heavy requests waited for their router's turn."
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
    describe_histogram!(
        ITL,
        Unit::Seconds,
        "Time between tokens of a stream; tokens of one event share the time since the one before."
    );
    describe_histogram!(
        NTPOT,
        Unit::Seconds,
        "Duration of the request divided by its output tokens."
    );
    describe_histogram!(
        SCHEDULING,
        Unit::Seconds,
        "Time of one scheduling decision, reservation included."
    );
    describe_histogram!(
        PROCESSING,
        Unit::Seconds,
        "From the request's arrival to the choice of its endpoint, its wait in the queue included."
    );
    describe_histogram!(
        RESPONSE_PROCESSING,
        Unit::Seconds,
        "Time spent on looking into one answer and changing it, over all its pieces."
    );
    describe_counter!(
        ATTEMPTS,
        "Scheduling decisions, by result and picked endpoint."
    );
    describe_counter!(REWRITES, "Requests that a model rewrite decided on.");
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
        CACHE_PREDICTIONS,
        "Requests of which it was predicted how much of the prompt is cached, and whose engine then said how much was."
    );
    describe_counter!(
        CACHE_PREDICTED,
        "Prompt tokens that were predicted to be cached, of these requests."
    );
    describe_counter!(
        CACHE_FOUND,
        "Prompt tokens that the engine found in its cache, of these requests."
    );
    describe_counter!(
        CACHE_ERROR,
        "Differences between the two, request by request, whichever was more."
    );
    describe_counter!(
        DROPPED,
        "Requests turned away before they reached an endpoint, by reason."
    );
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
    pub scheduling: Histogram,
    pub processing: Histogram,
    pub response_processing: Histogram,
    requests: Requests,
    accuracies: Accuracies,
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
            scheduling: histogram!(SCHEDULING),
            processing: histogram!(PROCESSING),
            response_processing: histogram!(RESPONSE_PROCESSING),
            requests: Requests::new(),
            accuracies: Accuracies::default(),
        }
    }

    /// The handles of a classified request, made at first use. `model` is the one the client named, if a pool serves it.
    pub fn request(&self, model: Option<&str>, class: &Class) -> Arc<RequestMetrics> {
        self.requests.of(model, class)
    }

    /// It was predicted that the endpoint has `tokens` of a prompt cached.
    pub fn predicted(&self, endpoint: &Arc<Endpoint>, tokens: u64) -> Predicted {
        self.accuracies.predicted(endpoint, tokens)
    }

    /// The handles for everything that has no name of its own.
    pub fn other(&self) -> &Arc<RequestMetrics> {
        self.requests.other()
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

/// The counter of decisions that picked `endpoint` for a request of `target`.
pub(crate) fn picked(endpoint: &Endpoint, target: &str) -> Counter {
    let spec = endpoint.spec();
    let namespace = spec.labels.get("namespace");
    let namespace = namespace.map_or(NAMESPACE, String::as_str).to_owned();
    counter!(ATTEMPTS, "status" => "success", "target_model_name" => target.to_owned(),
        "endpoint_name" => spec.name.to_string(), "namespace" => namespace, "port" => spec.target.port.to_string())
}

/// A decision found no endpoint.
pub(crate) fn not_picked(target: &str) {
    counter!(ATTEMPTS, "status" => "failure", "target_model_name" => target.to_owned(),
        "endpoint_name" => "", "namespace" => NAMESPACE, "port" => "")
    .increment(1);
}

/// A rewrite object decided on the model of a request with these labels.
pub(crate) fn rewritten(rewrite: &str, labels: &Labels) {
    counter!(REWRITES, "model_rewrite_name" => rewrite.to_owned(), "model_name" => labels.model.to_string(),
        "target_model" => labels.target.to_string())
    .increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_table_rises() {
        for (name, bounds) in BUCKETS {
            assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{name}");
        }
    }
}
