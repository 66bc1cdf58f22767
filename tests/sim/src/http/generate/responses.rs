//! OpenAI's responses.

use super::{Job, model, positive, run};
use crate::http::Call;
use crate::http::body::SimBody;
use crate::http::error::ApiError;
use crate::http::input::{self, ChatBuilder};
use crate::http::shapes::Head;
use crate::http::shapes::responses::Responses;
use crate::live::unix_now;
use crate::text::Sampling;
use http::Response;
use quorate_routing::request::Api;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// `POST /v1/responses`.
pub async fn responses(call: Call) -> Result<Response<SimBody>, ApiError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, default)]
        model: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        input: Option<&'a RawValue>,
        #[serde(borrow, default)]
        tools: Option<&'a RawValue>,
        #[serde(default)]
        instructions: Option<String>,
        #[serde(default)]
        max_output_tokens: Option<i64>,
        #[serde(default)]
        stream: Option<bool>,
        #[serde(borrow, default)]
        cache_salt: Option<Cow<'a, str>>,
    }
    let body = call.body.clone();
    let request: Body<'_> = input::parse(&body)?;
    let raw = request
        .input
        .ok_or_else(|| ApiError::bad("`input` is missing").param("input"))?;
    let mut builder = ChatBuilder::new(request.tools);
    if let Some(instructions) = &request.instructions {
        builder.text("system", instructions);
    }
    if raw.get().trim_start().starts_with('"') {
        builder.message("user", Some(raw), None)?;
    } else {
        #[derive(Deserialize)]
        struct Item<'a> {
            #[serde(borrow, default)]
            role: Option<Cow<'a, str>>,
            #[serde(borrow, default)]
            content: Option<&'a RawValue>,
            #[serde(borrow, default)]
            output: Option<&'a RawValue>,
            #[serde(borrow, default)]
            arguments: Option<&'a RawValue>,
        }
        let items: Vec<Item<'_>> = serde_json::from_str(raw.get()).map_err(|error| {
            ApiError::bad(format!("`input` is not valid: {error}")).param("input")
        })?;
        for item in &items {
            let other = if item.output.is_some() {
                "tool"
            } else {
                "assistant"
            };
            let content = item.content.or(item.output).or(item.arguments);
            builder.message(item.role.as_deref().unwrap_or(other), content, None)?;
        }
        if items.is_empty() {
            return Err(ApiError::bad("`input` is empty").param("input"));
        }
    }
    let chat = builder.build().of_model(&call, Api::Responses)?;
    let model = model(&call.live, request.model.as_deref())?;
    let head = Head {
        id: format!("resp_{}", call.id),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: chat.tokens.len() as u32,
        n: 1,
    };
    let max_tokens = positive(request.max_output_tokens, "max_output_tokens")?;
    let job = Job {
        echo: vec![chat.echo],
        prompts: vec![chat.tokens],
        n: 1,
        sampling: Sampling {
            max_tokens,
            ..Sampling::default()
        },
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: None,
        tools: None,
        stream: request.stream.unwrap_or(false),
    };
    run(
        call,
        job,
        Box::new(Responses {
            head,
            instructions: request.instructions,
            sequence: 0,
        }),
    )
    .await
}
