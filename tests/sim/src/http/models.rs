//! The model list, and loading and unloading of LoRA adapters.

use super::body::SimBody;
use super::error::ApiError;
use super::{Call, input, ok_json, respond};
use crate::config::LoraModule;
use crate::live::unix_now;
use http::Response;
use http::header::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};

/// `GET /v1/models`: the base model under each of its names, then the adapters, as vLLM lists them.
pub fn list(call: &Call) -> Response<SimBody> {
    let config = call.live.config();
    let created = unix_now() as u64;
    let permission = json!([]);
    let base = |id: &str| {
        json!({
            "id": id, "object": "model", "created": created, "owned_by": "vllm", "root": config.model, "parent": null,
            "max_model_len": config.max_model_len, "permission": permission,
        })
    };
    let mut data: Vec<Value> = match config.served_model_names.as_slice() {
        [] => vec![base(&config.model)],
        names => names.iter().map(|name| base(name)).collect(),
    };
    for adapter in call.live.adapters.lock().list() {
        let parent = adapter
            .module
            .base_model
            .as_deref()
            .unwrap_or(config.display_name());
        data.push(json!({
            "id": adapter.module.name, "object": "model", "created": created, "owned_by": "vllm",
            "root": adapter.module.path, "parent": parent, "max_model_len": null, "permission": permission,
        }));
    }
    ok_json(&json!({"object": "list", "data": data}))
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    lora_name: Option<String>,
    #[serde(default)]
    lora_path: Option<String>,
    #[serde(default)]
    base_model_name: Option<String>,
    #[serde(default)]
    load_inplace: Option<bool>,
}

fn said(text: String) -> Response<SimBody> {
    respond(
        200,
        HeaderValue::from_static("text/plain; charset=utf-8"),
        text.into_bytes(),
    )
}

/// `POST /v1/load_lora_adapter`.
pub fn load_lora(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let body: Body = input::parse(&call.body)?;
    let (Some(name), Some(path)) = (filled(body.lora_name), filled(body.lora_path)) else {
        return Err(ApiError::bad(
            "Both 'lora_name' and 'lora_path' must be provided.",
        ));
    };
    if call.live.config().serves(&name) {
        return Err(ApiError::bad(format!(
            "The name '{name}' is the name of a base model."
        )));
    }
    let mut adapters = call.live.adapters.lock();
    if body.load_inplace == Some(true) {
        adapters.unload(&name);
    }
    if !adapters.load(LoraModule {
        name: name.clone(),
        path,
        base_model: body.base_model_name,
    }) {
        return Err(ApiError::bad(format!(
            "The lora adapter '{name}' has already been loaded."
        )));
    }
    Ok(said(format!(
        "Success: LoRA adapter '{name}' added successfully."
    )))
}

/// `POST /v1/unload_lora_adapter`.
pub fn unload_lora(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let body: Body = input::parse(&call.body)?;
    let name =
        filled(body.lora_name).ok_or_else(|| ApiError::bad("'lora_name' must be provided."))?;
    if !call.live.adapters.lock().unload(&name) {
        return Err(ApiError::new(
            404,
            format!("The lora adapter '{name}' cannot be found."),
        ));
    }
    Ok(said(format!(
        "Success: LoRA adapter '{name}' removed successfully."
    )))
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}
