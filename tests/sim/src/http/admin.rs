//! Steering a running simulator: `/admin/config`, `/sim/fault`, `/sim/stats`, `/sim/oracle`, `/sim/requests`.

use super::body::SimBody;
use super::error::ApiError;
use super::{Call, input, ok_json};
use crate::duration;
use crate::engine::Nanos;
use crate::engine::latency::{FixedLatency, LatencyCalculator};
use crate::fault::{FailureType, Faults};
use crate::metrics::fake::FakeMetrics;
use crate::shared::Settings;
use clap::ValueEnum;
use http::Response;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// `GET /admin/config`: what the server runs with.
pub fn config(call: &Call) -> Response<SimBody> {
    ok_json(&show(call))
}

fn show(call: &Call) -> Value {
    let config = call.live.config();
    let engine = &config.engine;
    let settings = call.live.shared.settings.lock();
    let mut out = json!({
        "listen": call.live.shared.addr.to_string(),
        "model": config.model,
        "served-model-name": config.served_model_names,
        "model-profile": config.profile,
        "max-model-len": config.max_model_len,
        "max-num-seqs": engine.max_num_seqs,
        "max-num-batched-tokens": engine.max_num_batched_tokens,
        "max-waiting-queue-length": engine.max_waiting,
        "max-loras": engine.max_loras,
        "max-cpu-loras": engine.max_cpu_loras,
        "block-size": engine.block_size,
        "num-gpu-blocks": engine.num_blocks,
        "enable-prefix-caching": engine.prefix_caching,
        "tiers": engine.tiers.iter().map(|tier| json!({
            "medium": format!("{:?}", tier.medium).to_lowercase(), "blocks": tier.blocks,
            "block-load-time": duration::format(Duration::from_nanos(tier.load_block)),
        })).collect::<Vec<_>>(),
        "time-scale": config.time_scale,
        "seed": config.seed,
        "mode": config.mode.to_possible_value().map(|value| value.get_name().to_owned()),
        "dialect": config.dialect.as_str(),
        "data-parallel-rank": config.rank,
        "startup-duration": duration::format(config.startup),
        "failure-injection-rate": settings.failures.rate,
        "failure-types": settings.failures.types.iter().map(|kind| kind.as_str()).collect::<Vec<_>>(),
        "fake-metrics": settings.fake_metrics.as_ref().map(FakeMetrics::to_json),
        "lora-modules": call.live.adapters.lock().list().iter().map(|adapter| json!({
            "name": adapter.module.name, "path": adapter.module.path, "base_model_name": adapter.module.base_model,
        })).collect::<Vec<_>>(),
    });
    if let Some(fixed) = &settings.latency {
        let time = |nanos: Nanos| json!(duration::format(Duration::from_nanos(nanos)));
        out["latency-calculator"] = json!(
            fixed
                .calculator
                .to_possible_value()
                .map(|value| value.get_name().to_owned())
        );
        out["time-to-first-token"] = time(fixed.ttft);
        out["time-to-first-token-std-dev"] = time(fixed.ttft_std_dev);
        out["inter-token-latency"] = time(fixed.itl);
        out["inter-token-latency-std-dev"] = time(fixed.itl_std_dev);
        out["prefill-overhead"] = time(fixed.prefill_overhead);
        out["prefill-time-per-token"] = time(fixed.prefill_time_per_token);
        out["prefill-time-std-dev"] = time(fixed.prefill_std_dev);
        out["time-factor-under-load"] = json!(fixed.load_factor);
    }
    out
}

/// `POST /admin/config`: changes some settings, all of the given ones or none.
pub fn set_config(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let body: Map<String, Value> = input::parse(&call.body)?;
    {
        let mut settings = call.live.shared.settings.lock();
        let mut changed = settings.clone();
        for (key, value) in &body {
            change(&mut changed, key, value).map_err(|error| ApiError::bad(error).param(key))?;
        }
        if let Some(latency) = &changed.latency {
            latency.validate().map_err(ApiError::bad)?;
            call.live.set_fixed_latency(latency.clone());
        }
        *settings = changed;
    }
    Ok(ok_json(&show(call)))
}

fn change(settings: &mut Settings, key: &str, value: &Value) -> Result<(), String> {
    match key {
        "failure-injection-rate" => {
            let rate = value.as_u64().filter(|rate| *rate <= 100);
            settings.failures.rate =
                rate.ok_or("`failure-injection-rate` must be a whole number from 0 to 100")? as u8;
        }
        "failure-types" => {
            let names = value
                .as_array()
                .ok_or("`failure-types` must be an array of names")?;
            settings.failures.types = names
                .iter()
                .map(|name| {
                    FailureType::parse(
                        name.as_str()
                            .ok_or("`failure-types` must be an array of names")?,
                    )
                })
                .collect::<Result<_, String>>()?;
        }
        "fake-metrics" => {
            let current = settings.fake_metrics.clone().unwrap_or_default();
            settings.fake_metrics = if value.is_null() {
                None
            } else {
                Some(current.updated(value)?)
            };
        }
        _ => {
            let fixed = settings
                .latency
                .as_mut()
                .ok_or_else(|| format!("`{key}` cannot be changed: latencies are fixed figures only with `--model-profile fixed`"));
            change_latency(fixed?, key, value)?;
        }
    }
    Ok(())
}

fn change_latency(fixed: &mut FixedLatency, key: &str, value: &Value) -> Result<(), String> {
    let time = || -> Result<Nanos, String> {
        let text = value
            .as_str()
            .map(str::to_owned)
            .or_else(|| value.as_number().map(ToString::to_string));
        let text = text.ok_or_else(|| format!("`{key}` must be a duration such as \"250ms\""))?;
        Ok(duration::parse(&text)?.as_nanos() as Nanos)
    };
    match key {
        "time-to-first-token" => fixed.ttft = time()?,
        "time-to-first-token-std-dev" => fixed.ttft_std_dev = time()?,
        "inter-token-latency" => fixed.itl = time()?,
        "inter-token-latency-std-dev" => fixed.itl_std_dev = time()?,
        "prefill-overhead" => fixed.prefill_overhead = time()?,
        "prefill-time-per-token" => fixed.prefill_time_per_token = time()?,
        "prefill-time-std-dev" => fixed.prefill_std_dev = time()?,
        "time-factor-under-load" => {
            fixed.load_factor = value
                .as_f64()
                .ok_or("`time-factor-under-load` must be a number")?;
        }
        "latency-calculator" => {
            let name = value
                .as_str()
                .ok_or("`latency-calculator` must be a name")?;
            fixed.calculator = match name {
                "" => LatencyCalculator::Auto,
                name => LatencyCalculator::from_str(name, false)
                    .map_err(|_| format!("there is no latency calculator `{name}`; there are auto, constant, per-token"))?,
            };
        }
        _ => return Err(format!("there is no setting `{key}` that could be changed")),
    }
    Ok(())
}

/// `GET /sim/fault`: the faults in force.
pub fn fault(call: &Call) -> Response<SimBody> {
    ok_json(&call.live.shared.faults().to_json())
}

/// `POST /sim/fault`: replaces the faults in force; `{}` clears them.
pub fn set_fault(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let value: Value = input::parse(&call.body)?;
    let faults = Faults::from_json(&value).map_err(ApiError::bad)?;
    let shown = faults.to_json();
    call.live.shared.set_faults(faults);
    Ok(ok_json(&shown))
}

/// `GET /sim/stats`.
pub fn stats(call: &Call) -> Response<SimBody> {
    ok_json(&call.live.shared.stats().to_json())
}

/// `GET /sim/oracle`: what the servers of this process had cached of the prompts that arrived, and what the best of them had.
pub fn oracle(call: &Call) -> Response<SimBody> {
    ok_json(&call.live.shared.fleet.oracle())
}

/// `POST /sim/oracle`: the sums start anew.
pub fn reset_oracle(call: &Call) -> Response<SimBody> {
    call.live.shared.fleet.reset_oracle();
    oracle(call)
}

/// `GET /sim/requests`: the latest requests, what they asked of the cache and what they got, the latest first.
pub fn requests(call: &Call) -> Response<SimBody> {
    ok_json(&call.live.shared.asked.to_json())
}
