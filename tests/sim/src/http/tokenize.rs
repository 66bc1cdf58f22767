//! Tokens without generation: tokenize, detokenize, render, count.

use super::body::SimBody;
use super::error::ApiError;
use super::generate::{self, MessagesBody};
use super::input::{self, Message};
use super::{Call, json_type, ok_json, respond};
use crate::tokenizer::{self, model::ModelTokenizer};
use http::Response;
use quorate_routing::request::Api;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::borrow::Cow;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(default)]
    return_token_strs: Option<bool>,
    #[serde(default)]
    add_special_tokens: Option<bool>,
    #[serde(default)]
    tokens: Option<Vec<u32>>,
}

/// `POST /tokenize`: a prompt, or a chat.
pub fn tokenize(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let mut request: Body<'_> = input::parse(&call.body)?;
    generate::model(&call.live, request.model.as_deref())?;
    let model = call.live.config().tokenizer.as_deref();
    let tokens = match (request.messages.take(), request.prompt) {
        (Some(messages), None) => {
            let chat = input::chat(Some(messages), request.tools)?;
            chat.of_model(call, Api::Chat)?.tokens
        }
        (None, Some(prompt)) => {
            let mut tokens = input::prompts(Some(prompt), "prompt", model)?.swap_remove(0);
            if let (Some(model), Some(false)) = (model, request.add_special_tokens) {
                let text: String = input::field(prompt, "prompt")?;
                tokens = model.encode(&text, false).map_err(input::refused)?;
            } else if request.add_special_tokens == Some(false)
                && tokens.first() == Some(&tokenizer::BOS)
            {
                tokens.remove(0);
            }
            tokens
        }
        _ => {
            return Err(
                ApiError::bad("exactly one of `prompt` and `messages` is needed").param("prompt"),
            );
        }
    };
    let strings: Option<Vec<String>> = (request.return_token_strs == Some(true)).then(|| {
        tokens
            .iter()
            .map(|token| call.live.spell(&[*token]).0)
            .collect()
    });
    Ok(ok_json(&json!({
        "count": tokens.len(),
        "max_model_len": call.live.config().max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    })))
}

/// `POST /detokenize`.
pub fn detokenize(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let request: Body<'_> = input::parse(&call.body)?;
    generate::model(&call.live, request.model.as_deref())?;
    let tokens = request
        .tokens
        .ok_or_else(|| ApiError::bad("`tokens` is missing").param("tokens"))?;
    Ok(ok_json(&json!({"prompt": call.live.spell(&tokens).0})))
}

/// `POST /v1/chat/completions/render`: the tokens of a chat.
pub fn render_chat(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let mut request: Body<'_> = input::parse(&call.body)?;
    generate::model(&call.live, request.model.as_deref())?;
    let chat = input::chat(request.messages.take(), request.tools)?.of_model(call, Api::Chat)?;
    Ok(ok_json(&json!({"token_ids": chat.tokens})))
}

/// `POST /v1/completions/render`: the tokens of each prompt.
pub fn render_completions(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let request: Body<'_> = input::parse(&call.body)?;
    generate::model(&call.live, request.model.as_deref())?;
    let tokenizer = call.live.config().tokenizer.as_deref();
    let prompts = input::prompts(request.prompt, "prompt", tokenizer)?;
    Ok(ok_json(
        &prompts
            .iter()
            .map(|tokens| json!({"token_ids": tokens}))
            .collect(),
    ))
}

/// `POST /v1/messages/count_tokens`.
pub fn count_tokens(call: &Call) -> Result<Response<SimBody>, ApiError> {
    let mut request: MessagesBody<'_> = input::parse(&call.body)?;
    let chat = request.chat()?.of_model(call, Api::Messages)?;
    Ok(ok_json(&json!({"input_tokens": chat.tokens.len()})))
}

/// `GET /tokenizer_info`: all but the vocabulary, as vLLM tells it.
pub fn info(call: &Call) -> Response<SimBody> {
    let known = call.live.config().tokenizer.as_deref();
    match known.and_then(ModelTokenizer::info) {
        Some(info) => ok_json(&info),
        None => respond(404, json_type(), br#"{"detail":"Not Found"}"#.to_vec()),
    }
}

/// `GET /sim/tokenizer/...`: a file of the model's tokenizer, as a host that serves the model's directory has it.
pub fn file(call: &Call, name: &str) -> Response<SimBody> {
    let known = call.live.config().tokenizer.as_deref();
    match known.and_then(|tokenizer| tokenizer.file(name)) {
        Some(bytes) => respond(200, json_type(), bytes),
        None => respond(404, json_type(), br#"{"detail":"Not Found"}"#.to_vec()),
    }
}
