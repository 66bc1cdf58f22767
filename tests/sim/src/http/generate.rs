//! From a request of any generation API to sequences in the engine, and back to its answer.

use super::body::{Cutter, EventStream, SimBody};
use super::error::ApiError;
use super::input::{self, ChatBuilder, Message};
use super::shapes::chat::Chat;
use super::shapes::completion::Completion;
use super::shapes::messages::Messages;
use super::shapes::responses::Responses;
use super::shapes::tokens::{Sglang, TokenGenerate};
use super::shapes::{Head, Shape, StreamOptions};
use super::{Call, json_type, respond};
use crate::config::Mode;
use crate::engine::AddError;
use crate::engine::sequence::{NewSequence, Prompt, root_hash};
use crate::live::{self, Live, unix_now};
use crate::text::{self, Plan, Sampling, Source};
use crate::tokenizer;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::xxh3_64;

const FORCE_CACHE_THRESHOLD: HeaderName =
    HeaderName::from_static("x-cache-threshold-finish-reason");

/// Completions of one request at most: choices times prompts.
const MAX_SEQUENCES: usize = 1024;

/// Tokens that one request may have planned at most, so that no single request takes all memory.
const MAX_PLANNED_TOKENS: usize = 1 << 22;

/// What generation needs to know, whatever the API.
pub struct Job {
    /// Prompts as tokens.
    pub prompts: Vec<Vec<u32>>,
    /// What echo mode repeats, for each prompt; missing ones repeat the prompt.
    pub echo: Vec<Vec<u32>>,
    /// Choices per prompt.
    pub n: u32,
    /// What the client wants of the output.
    pub sampling: Sampling,
    /// Index of the LoRA adapter.
    pub lora: Option<u32>,
    /// Salt of the block hashes.
    pub root: u64,
    /// Least cached share of the prompt.
    pub cache_hit_threshold: Option<f64>,
    /// Whether the answer is a stream.
    pub stream: bool,
}

/// The model that a request names.
pub struct Model {
    /// Name in the answer.
    pub name: String,
    lora: Option<u32>,
    lora_name: Option<String>,
}

/// Finds the model of a request, base model or adapter. A request may leave it out.
pub fn model(live: &Live, name: Option<&str>) -> Result<Model, ApiError> {
    let config = live.config();
    let name = match name {
        None | Some("") => config.display_name(),
        Some(name) => name,
    };
    if config.serves(name) {
        return Ok(Model {
            name: name.to_owned(),
            lora: None,
            lora_name: None,
        });
    }
    match live.adapters.lock().find(name) {
        Some(adapter) => Ok(Model {
            name: name.to_owned(),
            lora: Some(adapter.index),
            lora_name: Some(name.to_owned()),
        }),
        None => Err(ApiError::model_not_found(name)),
    }
}

impl Model {
    /// Start of the block hash chain.
    pub fn root(&self, cache_salt: Option<&str>) -> u64 {
        root_hash(
            self.lora_name.as_deref(),
            cache_salt.filter(|salt| !salt.is_empty()),
        )
    }

    /// Number of the adapter in the engine.
    pub fn lora(&self) -> Option<u32> {
        self.lora
    }
}

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

/// A positive number of tokens or choices.
fn positive(value: Option<i64>, name: &str) -> Result<Option<u32>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(value) if value > 0 => Ok(Some(value)),
        _ => Err(ApiError::bad(format!("`{name}` must be at least 1, got {value}.")).param(name)),
    }
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
    let chat = input::chat(request.messages.take(), request.tools)?;
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
    let echo = chat
        .tokens
        .get(chat.echo)
        .map(<[u32]>::to_vec)
        .unwrap_or_default();
    let job = Job {
        echo: vec![echo],
        prompts: vec![chat.tokens],
        n,
        sampling: request.sampling(None)?,
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: threshold(&call, request.cache_hit_threshold)?,
        stream,
    };
    run(
        call,
        job,
        Box::new(Chat {
            head,
            options,
            opened: false,
        }),
    )
    .await
}

/// `POST /v1/completions`.
pub async fn completions(call: Call) -> Result<Response<SimBody>, ApiError> {
    let body = call.body.clone();
    let request: OpenAi<'_> = input::parse(&body)?;
    let prompts = input::prompts(request.prompt, "prompt")?;
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
            .map(|prompt| tokenizer::detokenize(prompt))
            .collect(),
        _ => Vec::new(),
    };
    let job = Job {
        prompts,
        echo: Vec::new(),
        n,
        // OpenAI's and vLLM's default for this API.
        sampling: request.sampling(Some(16))?,
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: threshold(&call, request.cache_hit_threshold)?,
        stream,
    };
    run(
        call,
        job,
        Box::new(Completion {
            head,
            options,
            echo,
        }),
    )
    .await
}

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
    let chat = builder.build();
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
        echo: vec![
            chat.tokens
                .get(chat.echo)
                .map(<[u32]>::to_vec)
                .unwrap_or_default(),
        ],
        prompts: vec![chat.tokens],
        n: 1,
        sampling: Sampling {
            max_tokens,
            ..Sampling::default()
        },
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: None,
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
    let chat = request.chat()?;
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
        echo: vec![
            chat.tokens
                .get(chat.echo)
                .map(<[u32]>::to_vec)
                .unwrap_or_default(),
        ],
        prompts: vec![chat.tokens],
        n: 1,
        sampling: Sampling {
            max_tokens,
            stop: request.stop_sequences.unwrap_or_default(),
            ..Sampling::default()
        },
        lora: model.lora(),
        root: model.root(None),
        cache_hit_threshold: None,
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

/// Sampling parameters of the engines' own APIs.
#[derive(Deserialize, Default)]
struct EngineSampling<'a> {
    #[serde(default, alias = "max_new_tokens")]
    max_tokens: Option<i64>,
    #[serde(default, alias = "min_new_tokens")]
    min_tokens: Option<u32>,
    #[serde(default)]
    n: Option<i64>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    #[serde(borrow, default)]
    stop: Option<&'a RawValue>,
    #[serde(default)]
    stop_token_ids: Option<Vec<u32>>,
    #[serde(default)]
    seed: Option<i64>,
}

impl EngineSampling<'_> {
    fn sampling(&self, default_max: u32) -> Result<Sampling, ApiError> {
        Ok(Sampling {
            max_tokens: Some(positive(self.max_tokens, "max_tokens")?.unwrap_or(default_max)),
            min_tokens: self.min_tokens.unwrap_or(0),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stop: input::texts(self.stop, "stop")?,
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            seed: self.seed.map(|seed| seed as u64),
            include_stop: false,
        })
    }
}

/// `POST /inference/v1/generate`.
pub async fn tokens(call: Call) -> Result<Response<SimBody>, ApiError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, default)]
        model: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        request_id: Option<Cow<'a, str>>,
        #[serde(default)]
        token_ids: Option<Vec<u32>>,
        #[serde(borrow, default)]
        sampling_params: Option<EngineSampling<'a>>,
        #[serde(default)]
        stream: Option<bool>,
        #[serde(borrow, default)]
        cache_salt: Option<Cow<'a, str>>,
    }
    let body = call.body.clone();
    let request: Body<'_> = input::parse(&body)?;
    let prompt = request.token_ids.filter(|ids| !ids.is_empty());
    let prompt = prompt
        .ok_or_else(|| ApiError::bad("`token_ids` is missing or empty").param("token_ids"))?;
    let model = model(&call.live, request.model.as_deref())?;
    let sampling = request.sampling_params.unwrap_or_default();
    let n = positive(sampling.n, "n")?.unwrap_or(1);
    let head = Head {
        id: request
            .request_id
            .map_or_else(|| call.id.clone(), Cow::into_owned),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: prompt.len() as u32,
        n,
    };
    let job = Job {
        prompts: vec![prompt],
        echo: Vec::new(),
        n,
        sampling: sampling.sampling(16)?,
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: None,
        stream: request.stream.unwrap_or(false),
    };
    run(call, job, Box::new(TokenGenerate { head })).await
}

/// SGLang's `POST /generate`.
pub async fn sglang(call: Call) -> Result<Response<SimBody>, ApiError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, default)]
        text: Option<&'a RawValue>,
        #[serde(borrow, default)]
        input_ids: Option<&'a RawValue>,
        #[serde(borrow, default)]
        sampling_params: Option<EngineSampling<'a>>,
        #[serde(borrow, default)]
        rid: Option<Cow<'a, str>>,
        #[serde(default)]
        stream: Option<bool>,
        #[serde(borrow, default)]
        lora_path: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        extra_key: Option<Cow<'a, str>>,
    }
    let arrived = tokio::time::Instant::now();
    let body = call.body.clone();
    let request: Body<'_> = input::parse(&body)?;
    let (raw, name) = match request.input_ids {
        Some(ids) => (Some(ids), "input_ids"),
        None => (request.text, "text"),
    };
    let prompts = input::prompts(raw, name)?;
    let model = model(&call.live, request.lora_path.as_deref())?;
    let batch = prompts.len() > 1;
    let head = Head {
        id: request.rid.map_or_else(|| call.id.clone(), Cow::into_owned),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: total(&prompts),
        n: 1,
    };
    let job = Job {
        prompts,
        echo: Vec::new(),
        n: 1,
        sampling: request.sampling_params.unwrap_or_default().sampling(128)?,
        lora: model.lora(),
        root: model.root(request.extra_key.as_deref()),
        cache_hit_threshold: None,
        stream: request.stream.unwrap_or(false),
    };
    run(
        call,
        job,
        Box::new(Sglang {
            head,
            arrived,
            batch,
        }),
    )
    .await
}

/// Tokens of all prompts.
pub fn total(prompts: &[Vec<u32>]) -> u32 {
    prompts.iter().map(|prompt| prompt.len() as u32).sum()
}

/// Refuses a prompt, or a prompt and output, that the context window cannot hold. Returns the room for output.
fn room(prompt: usize, sampling: &Sampling, max_model_len: u32) -> Result<u32, ApiError> {
    let room = (max_model_len as usize).saturating_sub(prompt);
    if room == 0 {
        return Err(ApiError::bad(format!(
            "This model's maximum context length is {max_model_len} tokens. However, your request has {prompt} input tokens. \
             Please reduce the length of the input messages."
        ))
        .param("input_tokens"));
    }
    match sampling.max_tokens {
        Some(max) if max as usize > room => Err(ApiError::bad(format!(
            "'max_tokens' or 'max_completion_tokens' is too large: {max}. This model's maximum context length is \
             {max_model_len} tokens and your request has {prompt} input tokens ({max} > {max_model_len} - {prompt})."
        ))
        .param("max_tokens")),
        _ => Ok(room as u32),
    }
}

/// Runs a job and answers it.
pub async fn run(
    call: Call,
    job: Job,
    mut shape: Box<dyn Shape>,
) -> Result<Response<SimBody>, ApiError> {
    let config = call.live.config();
    if job.prompts.len().saturating_mul(job.n as usize) > MAX_SEQUENCES {
        return Err(ApiError::bad(format!(
            "a request may ask for {MAX_SEQUENCES} completions at most"
        ))
        .param("n"));
    }
    let mut planned = 0;
    let mut new = Vec::with_capacity(job.prompts.len() * job.n as usize);
    for (at, tokens) in job.prompts.iter().enumerate() {
        let room = room(tokens.len(), &job.sampling, config.max_model_len)?;
        let prompt = Prompt::new(tokens, config.engine.block_size, job.root);
        let tail = xxh3_64(
            &prompt
                .tail
                .iter()
                .flat_map(|token| token.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
        let prompt_hash = prompt
            .hashes
            .last()
            .copied()
            .unwrap_or(prompt.root)
            .rotate_left(1)
            ^ tail;
        for choice in 0..job.n {
            let echo = match config.mode {
                Mode::Echo => job.echo.get(at).unwrap_or(tokens).as_slice(),
                Mode::Random => &[],
            };
            let source = Source {
                mode: config.mode,
                seed: config.seed,
                prompt_hash,
                choice,
                echo,
                length: &config.output_length,
                room,
            };
            let plan: Arc<Plan> = Arc::new(text::plan(&job.sampling, &source));
            planned += plan.tokens.len();
            if planned > MAX_PLANNED_TOKENS {
                let wrong = format!("a request may ask for {MAX_PLANNED_TOKENS} tokens at most");
                return Err(ApiError::bad(wrong).param("max_tokens"));
            }
            let sequence = NewSequence {
                prompt: prompt.clone(),
                output: plan.tokens.clone(),
                finish: plan.finish,
                lora: job.lora,
                cache_hit_threshold: job.cache_hit_threshold,
            };
            new.push((sequence, plan));
        }
    }
    let submitted = call
        .live
        .submit(new, job.stream, job.sampling.max_tokens, job.n);
    let handles = submitted.map_err(|error| match error {
        AddError::QueueFull => ApiError::new(
            config.queue_full_status,
            "The waiting queue is full. Please retry later.",
        ),
        AddError::TooLong { .. } | AddError::NoOutput => ApiError::bad(error.to_string()),
    })?;

    let cutter = call.fault.cut.map(|cut| {
        (
            cut.after,
            Cutter::new(cut, call.fault, call.conn.clone(), call.live.clone()),
        )
    });
    if job.stream {
        call.live
            .shared
            .stats
            .streams
            .fetch_add(1, Ordering::Relaxed);
        let mut response = Response::new(SimBody::events(EventStream::new(handles, shape, cutter)));
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        return Ok(response);
    }
    live::finished(&handles).await;
    let whole = shape.whole(&handles);
    Ok(match cutter {
        Some((_, cutter)) => {
            let mut response = Response::new(SimBody::half(whole, cutter));
            response.headers_mut().insert(CONTENT_TYPE, json_type());
            response
        }
        None => respond(200, json_type(), whole),
    })
}
