//! Where KV events are, as the engines say it; TensorRT-LLM's events themselves; and steering them.

use super::body::SimBody;
use super::error::ApiError;
use super::{Call, input, ok_json};
use crate::kv_events::{EventFaults, EventFormat, Publisher};
use http::Response;
use quorate_cache::link::Address;
use serde_json::{Map, Value, json};

fn publisher(call: &Call) -> Result<&Publisher, ApiError> {
    call.live
        .shared
        .events
        .as_deref()
        .ok_or_else(|| ApiError::bad("this server publishes no KV events (--kv-events-config)"))
}

/// vLLM's `GET /kv_event_sources`.
pub fn sources(call: &Call) -> Response<SimBody> {
    let Ok(publisher) = publisher(call) else {
        return ok_json(&json!({}));
    };
    if publisher.format().is_sglang() || publisher.format() == EventFormat::Trtllm {
        return ok_json(&json!({}));
    }
    let (events, replay) = publisher.addresses();
    let config = json!({
        "enable_kv_cache_events": true,
        "publisher": "zmq",
        "endpoint": events.to_string(),
        "replay_endpoint": replay.map(|replay| replay.to_string()),
        "buffer_steps": publisher.buffer_steps(),
        "hwm": 100_000,
        "max_queue_size": 100_000,
        "topic": publisher.topic(),
    });
    let mut sources = Map::new();
    sources.insert(call.live.config().rank.to_string(), config);
    ok_json(&Value::Object(sources))
}

/// The `kv_events` of SGLang's `/server_info`.
pub fn server_info(call: &Call) -> Option<Value> {
    let publisher = publisher(call).ok().filter(|p| p.format().is_sglang())?;
    let (events, replay) = publisher.addresses();
    let Address::Tcp { host, port } = events else {
        return None;
    };
    let mut info = json!({
        "publisher": "zmq",
        "endpoint_host": host,
        "endpoint_port_base": port,
        "topic": publisher.topic(),
        "block_size": call.live.config().engine.block_size,
        "dp_size": 1,
    });
    if let Some(Address::Tcp { port, .. }) = replay {
        info["replay_endpoint_port_base"] = json!(port);
    }
    Some(info)
}

/// TensorRT-LLM's `POST /kv_cache_events`.
pub fn poll(call: &Call) -> Result<Response<SimBody>, ApiError> {
    Ok(ok_json(&publisher(call)?.poll()))
}

/// `GET /sim/kv-events`: addresses, numbers, faults.
pub fn show(call: &Call) -> Result<Response<SimBody>, ApiError> {
    Ok(ok_json(&publisher(call)?.to_json()))
}

/// `POST /sim/kv-events`: `{"faults": {...}}` replaces the faults, `{"reset-sequence": true}` starts the numbers anew.
pub fn set(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let publisher = publisher(call)?;
    let body: Map<String, Value> = input::parse(&call.body)?;
    let (mut faults, mut reset) = (None, false);
    for (key, value) in &body {
        match (key.as_str(), value) {
            ("faults", value) => {
                faults = Some(EventFaults::from_json(value).map_err(ApiError::bad)?);
            }
            ("reset-sequence", Value::Bool(on)) => reset = *on,
            _ => {
                let wrong = "there is nothing to set but `faults` and `reset-sequence`, a boolean";
                return Err(ApiError::bad(wrong).param(key));
            }
        }
    }
    if let Some(faults) = faults {
        publisher.set_faults(faults);
    }
    if reset {
        publisher.reset_sequence();
    }
    Ok(ok_json(&publisher.to_json()))
}
