//! Anthropic's messages.

use super::{Job, model, positive, run};
use crate::http::Call;
use crate::http::body::SimBody;
use crate::http::error::ApiError;
use crate::http::input::{self, ChatBuilder, Message};
use crate::http::shapes::Head;
use crate::http::shapes::messages::Messages;
use crate::live::unix_now;
use crate::text::Sampling;
use http::Response;
use quorate_routing::request::Api;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The body of Anthropic's messages.
#[derive(Deserialize)]
pub struct MessagesBody<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow, default)]
    system: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(default)]
    max_tokens: Option<i64>,
    #[serde(default)]
    stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    stream: Option<bool>,
}

impl MessagesBody<'_> {
    /// The chat that it describes.
    pub fn chat(&mut self) -> Result<input::Chat, ApiError> {
        let messages = self.messages.take().unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::bad("`messages` is missing or empty").param("messages"));
        }
        let mut builder = ChatBuilder::new(self.tools);
        if let Some(system) = self.system {
            builder.message("system", Some(system), None)?;
        }
        for message in &messages {
            if !matches!(&*message.role, "user" | "assistant") {
                return Err(
                    ApiError::bad("the role of a message must be user or assistant")
                        .param("messages"),
                );
            }
            builder.message(&message.role, message.content, None)?;
        }
        Ok(builder.build())
    }
}

/// `POST /v1/messages`.
pub async fn messages(call: Call) -> Result<Response<SimBody>, ApiError> {
    let body = call.body.clone();
    let mut request: MessagesBody<'_> = input::parse(&body)?;
    let chat = request.chat()?.of_model(&call, Api::Messages)?;
    let max_tokens = positive(request.max_tokens, "max_tokens")?;
    if max_tokens.is_none() {
        return Err(ApiError::bad("`max_tokens` is missing").param("max_tokens"));
    }
    let model = model(&call.live, request.model.as_deref())?;
    let head = Head {
        id: format!("msg_{}", call.id),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: chat.tokens.len() as u32,
        n: 1,
    };
    let job = Job {
        echo: vec![chat.echo],
        prompts: vec![chat.tokens],
        n: 1,
        sampling: Sampling {
            max_tokens,
            stop: request.stop_sequences.unwrap_or_default(),
            ..Sampling::default()
        },
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(None),
        cache_hit_threshold: None,
        tools: None,
        stream: request.stream.unwrap_or(false),
    };
    run(
        call,
        job,
        Box::new(Messages {
            head,
            opened: false,
        }),
    )
    .await
}
