//! OpenAI's chat and text completions, with vLLM's additions.

use super::{Job, MAX_SEQUENCES, model, positive, run, tool_error, total};
use crate::http::Call;
use crate::http::body::SimBody;
use crate::http::error::ApiError;
use crate::http::input::{self, Message};
use crate::http::shapes::chat::Chat;
use crate::http::shapes::completion::{Completion, Echo};
use crate::http::shapes::logprobs::MAX_TOP;
use crate::http::shapes::{Head, StreamOptions};
use crate::live::unix_now;
use crate::text::Sampling;
use crate::tools::{ToolCallConfig, Tools};
use http::Response;
use http::header::HeaderName;
use quorate_routing::request::Api;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;

const FORCE_CACHE_THRESHOLD: HeaderName =
    HeaderName::from_static("x-cache-threshold-finish-reason");

/// The body of chat and text completions.
#[derive(Deserialize)]
struct OpenAi<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    parallel_tool_calls: Option<bool>,
    #[serde(borrow, default)]
    logprobs: Option<&'a RawValue>,
    #[serde(default)]
    top_logprobs: Option<i64>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<Options>,
    #[serde(default)]
    max_tokens: Option<i64>,
    #[serde(default)]
    max_completion_tokens: Option<i64>,
    #[serde(default)]
    min_tokens: Option<i64>,
    #[serde(default)]
    n: Option<i64>,
    #[serde(borrow, default)]
    stop: Option<&'a RawValue>,
    #[serde(default)]
    stop_token_ids: Option<Vec<u32>>,
    #[serde(default)]
    include_stop_str_in_output: Option<bool>,
    #[serde(default)]
    seed: Option<i64>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    top_p: Option<f64>,
    #[serde(borrow, default)]
    cache_salt: Option<Cow<'a, str>>,
    #[serde(default)]
    cache_hit_threshold: Option<f64>,
}

#[derive(Deserialize, Default)]
struct Options {
    #[serde(default)]
    include_usage: Option<bool>,
    #[serde(default)]
    continuous_usage_stats: Option<bool>,
}

impl OpenAi<'_> {
    fn sampling(&self, default_max: Option<u32>) -> Result<Sampling, ApiError> {
        if self.temperature.is_some_and(|t| t.is_nan() || t < 0.0) {
            return Err(ApiError::bad("`temperature` must not be negative.").param("temperature"));
        }
        if self
            .top_p
            .is_some_and(|p| p.is_nan() || p <= 0.0 || p > 1.0)
        {
            return Err(ApiError::bad("`top_p` must be above 0 and at most 1.").param("top_p"));
        }
        let max_tokens = match positive(self.max_completion_tokens, "max_completion_tokens")? {
            Some(limit) => Some(limit),
            None => positive(self.max_tokens, "max_tokens")?.or(default_max),
        };
        let min_tokens = match self.min_tokens {
            None => 0,
            Some(min) => u32::try_from(min).map_err(|_| {
                ApiError::bad("`min_tokens` must not be negative.").param("min_tokens")
            })?,
        };
        if max_tokens.is_some_and(|max| min_tokens > max) {
            return Err(
                ApiError::bad("`min_tokens` must not be above `max_tokens`.").param("min_tokens"),
            );
        }
        Ok(Sampling {
            max_tokens,
            min_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stop: input::texts(self.stop, "stop")?,
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            seed: self.seed.map(|seed| seed as u64),
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
        })
    }

    /// Tools that the answer may call.
    fn tools(&self, config: &ToolCallConfig) -> Result<Option<Tools>, ApiError> {
        let tools: Option<Value> = match self.tools {
            Some(raw) => Some(input::field(raw, "tools")?),
            None => None,
        };
        let parallel = self.parallel_tool_calls.unwrap_or(true);
        Tools::parse(tools.as_ref(), self.tool_choice.as_ref(), parallel, config)
            .map_err(tool_error)
    }

    /// A chat's alternatives to each token: `logprobs` switches them on, `top_logprobs` says how many.
    fn chat_logprobs(&self) -> Result<Option<u32>, ApiError> {
        let wanted: Option<bool> = match self.logprobs {
            Some(raw) => input::field(raw, "logprobs")?,
            None => None,
        };
        let top = alternatives(self.top_logprobs, "top_logprobs")?;
        match (wanted.unwrap_or(false), top) {
            (false, Some(1..)) => Err(ApiError::bad(
                "when using `top_logprobs`, `logprobs` must be set to true.",
            )
            .param("top_logprobs")),
            (false, _) => Ok(None),
            (true, top) => Ok(Some(top.unwrap_or(0))),
        }
    }

    /// A completion's alternatives to each token, which are its `logprobs`.
    fn completion_logprobs(&self) -> Result<Option<u32>, ApiError> {
        match self.logprobs {
            Some(raw) => alternatives(input::field(raw, "logprobs")?, "logprobs"),
            None => Ok(None),
        }
    }

    fn stream_options(&self, stream: bool) -> Result<StreamOptions, ApiError> {
        match &self.stream_options {
            None => Ok(StreamOptions::default()),
            Some(_) if !stream => Err(ApiError::bad(
                "Stream options can only be defined when `stream=True`.",
            )
            .param("stream_options")),
            Some(options) => {
                let include_usage = options.include_usage.unwrap_or(false);
                let continuous = options.continuous_usage_stats.unwrap_or(false);
                Ok(StreamOptions {
                    include_usage,
                    continuous_usage: include_usage && continuous,
                })
            }
        }
    }
}

/// A number of alternatives.
fn alternatives(asked: Option<i64>, name: &str) -> Result<Option<u32>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    match u32::try_from(asked) {
        Ok(top) if top <= MAX_TOP => Ok(Some(top)),
        Ok(top) => Err(ApiError::bad(format!(
            "Requested sample logprobs of {top}, which is greater than max allowed: {MAX_TOP}"
        ))
        .param(name)),
        Err(_) => Err(ApiError::bad(format!("`{name}` must be a positive value.")).param(name)),
    }
}

fn threshold(call: &Call, asked: Option<f64>) -> Result<Option<f64>, ApiError> {
    if call
        .headers
        .get(&FORCE_CACHE_THRESHOLD)
        .is_some_and(|value| value == "true")
    {
        // More than everything: never met.
        return Ok(Some(f64::INFINITY));
    }
    if asked.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        return Err(
            ApiError::bad("`cache_hit_threshold` must be between 0 and 1.")
                .param("cache_hit_threshold"),
        );
    }
    Ok(asked.or(call.live.config().cache_hit_threshold))
}

/// `POST /v1/chat/completions`.
pub async fn chat(call: Call) -> Result<Response<SimBody>, ApiError> {
    let body = call.body.clone();
    let mut request: OpenAi<'_> = input::parse(&body)?;
    let chat = input::chat(request.messages.take(), request.tools)?.of_model(&call, Api::Chat)?;
    let model = model(&call.live, request.model.as_deref())?;
    let n = positive(request.n, "n")?.unwrap_or(1);
    let stream = request.stream.unwrap_or(false);
    let options = request.stream_options(stream)?;
    let head = Head {
        id: format!("chatcmpl-{}", call.id),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: chat.tokens.len() as u32,
        n,
    };
    let echo = chat.echo;
    let tools = request.tools(&call.live.config().tool_calls)?;
    let logprobs = request.chat_logprobs()?;
    let job = Job {
        echo: vec![echo],
        prompts: vec![chat.tokens],
        n,
        sampling: request.sampling(None)?,
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: threshold(&call, request.cache_hit_threshold)?,
        tools,
        stream,
    };
    run(
        call,
        job,
        Box::new(Chat {
            head,
            options,
            logprobs,
            opened: false,
        }),
    )
    .await
}

/// `POST /v1/completions`.
pub async fn completions(call: Call) -> Result<Response<SimBody>, ApiError> {
    let body = call.body.clone();
    let request: OpenAi<'_> = input::parse(&body)?;
    let tokenizer = call.live.config().tokenizer.as_deref();
    let prompts = input::prompts(request.prompt, "prompt", tokenizer)?;
    let model = model(&call.live, request.model.as_deref())?;
    let n = positive(request.n, "n")?.unwrap_or(1);
    let stream = request.stream.unwrap_or(false);
    let options = request.stream_options(stream)?;
    let head = Head {
        id: format!("cmpl-{}", call.id),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: total(&prompts),
        n,
    };
    let echo = match request.echo {
        Some(true) => prompts
            .iter()
            .map(|prompt| {
                let (text, ends) = call.live.spell(prompt);
                Echo {
                    text,
                    ends,
                    pieces: tokenizer.is_some(),
                    tokens: prompt.clone(),
                }
            })
            .collect(),
        _ => Vec::new(),
    };
    let logprobs = request.completion_logprobs()?;
    let choices = prompts.len().saturating_mul(n as usize).min(MAX_SEQUENCES);
    let job = Job {
        prompts,
        echo: Vec::new(),
        n,
        // OpenAI's and vLLM's default for this API.
        sampling: request.sampling(Some(16))?,
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: threshold(&call, request.cache_hit_threshold)?,
        tools: None,
        stream,
    };
    run(
        call,
        job,
        Box::new(Completion {
            head,
            options,
            echo,
            logprobs,
            offsets: vec![0; choices],
        }),
    )
    .await
}
