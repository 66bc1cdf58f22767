//! Health, version, metrics, sleep, and the facts that engines tell of themselves.

use super::body::SimBody;
use super::{Call, json_type, ok_json, respond};
use http::Response;
use http::header::HeaderValue;
use serde_json::json;
use std::sync::atomic::Ordering;

/// `GET /health` and its like: an empty 200, or 503.
pub fn health(call: &Call) -> Response<SimBody> {
    let ill = call.live.shared.faults().unhealthy || call.live.starting();
    respond(if ill { 503 } else { 200 }, json_type(), Vec::new())
}

/// `GET /version`. Where events of a vLLM release are published, it is that release.
pub fn version(call: &Call) -> Response<SimBody> {
    let events = call.live.shared.events.as_deref();
    let name = events.map(|events| events.format().name());
    let release = name.as_deref().and_then(|name| name.strip_prefix("vllm-"));
    let version = match release {
        Some(release) => format!("{release}.0"),
        None => concat!("sim-", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    ok_json(&json!({ "version": version }))
}

/// `GET /metrics`.
pub fn metrics(call: &Call) -> Response<SimBody> {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    respond(200, kind, call.live.metrics_page().into_bytes())
}

/// `POST /sleep`: refuses requests and forgets the prefix cache until woken up.
pub fn sleep(call: &Call) -> Response<SimBody> {
    if call.live.config().sleep_mode {
        call.live.asleep.store(true, Ordering::Relaxed);
        call.live.reset_prefix_cache(false);
    }
    respond(200, json_type(), Vec::new())
}

/// `POST /reset_prefix_cache`: forgets every cached prefix that is not in use; with `reset_external=true` also below the GPU.
pub fn reset_prefix_cache(call: &Call) -> Response<SimBody> {
    let below = |pair: &str| pair.eq_ignore_ascii_case("reset_external=true");
    let below = call.query.split('&').any(below);
    call.live.reset_prefix_cache(below);
    respond(200, json_type(), Vec::new())
}

/// `POST /wake_up`. With tags, only `kv_cache`, the last of the two steps, makes it serve again.
pub fn wake_up(call: &Call) -> Response<SimBody> {
    let mut tags = call
        .query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("tags="))
        .peekable();
    if tags.peek().is_none() || tags.any(|tag| tag == "kv_cache") {
        call.live.asleep.store(false, Ordering::Relaxed);
    }
    respond(200, json_type(), Vec::new())
}

/// `GET /is_sleeping`.
pub fn is_sleeping(call: &Call) -> Response<SimBody> {
    ok_json(&json!({"is_sleeping": call.live.asleep.load(Ordering::Relaxed)}))
}

/// SGLang's `GET /server_info`.
pub fn server_info(call: &Call) -> Response<SimBody> {
    let config = call.live.config();
    let engine = &config.engine;
    let load = call.live.load();
    let mut info = json!({
        "model_path": config.model,
        "served_model_name": config.display_name(),
        "host": call.live.shared.addr.ip(),
        "port": call.live.shared.addr.port(),
        "random_seed": config.seed,
        "page_size": engine.block_size,
        "max_running_requests": engine.max_num_seqs,
        "max_total_num_tokens": u64::from(engine.num_blocks) * u64::from(engine.block_size),
        "chunked_prefill_size": engine.max_num_batched_tokens,
        "context_length": config.max_model_len,
        "dp_size": 1,
        "tp_size": 1,
        "disaggregation_mode": "null",
        "enable_metrics": true,
        "internal_states": [{"num_running_reqs": load.running, "num_waiting_reqs": load.waiting}],
        "version": concat!("sim-", env!("CARGO_PKG_VERSION")),
    });
    if let Some(events) = super::kv_events::server_info(call) {
        info["kv_events"] = events;
    }
    ok_json(&info)
}

/// SGLang's `GET /get_model_info`.
pub fn model_info(call: &Call) -> Response<SimBody> {
    let config = call.live.config();
    ok_json(&json!({
        "model_path": config.model, "tokenizer_path": config.model, "is_generation": true, "weight_version": "default",
    }))
}
