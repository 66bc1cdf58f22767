//! From a request of any generation API to sequences in the engine, and back to its answer.

mod messages;
mod openai;
mod responses;
mod tokens;

pub use messages::{MessagesBody, messages};
pub use openai::{chat, completions};
pub use responses::responses;
pub use tokens::{sglang, tokens};

use super::body::{Cutter, EventStream, SimBody};
use super::error::ApiError;
use super::hints::Hints;
use super::input;
use super::shapes::Shape;
use super::{Call, json_type, respond};
use crate::asked::Asked;
use crate::config::{LoraModule, Mode, SimConfig};
use crate::engine::AddError;
use crate::engine::naming::{Identity, Naming};
use crate::engine::sequence::{NewSequence, Prompt, root_hash};
use crate::live::{self, Live};
use crate::text::{self, Plan, Sampling, Source};
use crate::tokenizer::BOS;
use crate::tools::{self, ToolError, Tools};
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use xxhash_rust::xxh3::xxh3_64;

/// Completions of one request at most: choices times prompts.
const MAX_SEQUENCES: usize = 1024;

/// Tokens that one request may have planned at most, so that no single request takes all memory.
const MAX_PLANNED_TOKENS: usize = 1 << 22;

/// Keeps the randomness of tool calls apart from that of text.
const TOOL_STREAM: u64 = 1;

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
    /// Model or adapter that the request names.
    pub model: String,
    /// Index of the LoRA adapter.
    pub lora: Option<u32>,
    /// Where the block hashes start.
    pub root: Root,
    /// Least cached share of the prompt.
    pub cache_hit_threshold: Option<f64>,
    /// Tools that the answer may call.
    pub tools: Option<Tools>,
    /// Whether the answer is a stream.
    pub stream: bool,
}

/// Where a request's block hashes start.
pub struct Root {
    hash: u64,
    identity: Identity,
}

/// The model that a request names.
pub struct Model {
    /// Name in the answer.
    pub name: String,
    lora: Option<u32>,
    lora_module: Option<LoraModule>,
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
            lora_module: None,
        });
    }
    match live.adapters.lock().find(name) {
        Some(adapter) => Ok(Model {
            name: name.to_owned(),
            lora: Some(adapter.index),
            lora_module: Some(adapter.module.clone()),
        }),
        None => Err(ApiError::model_not_found(name)),
    }
}

impl Model {
    /// Start of the block hash chain.
    pub fn root(&self, cache_salt: Option<&str>) -> Root {
        let salt = cache_salt.filter(|salt| !salt.is_empty());
        let adapter = self.lora_module.as_ref();
        Root {
            hash: root_hash(adapter.map(|module| module.name.as_str()), salt),
            identity: Identity {
                lora: self
                    .lora
                    .zip(adapter)
                    .map(|(index, module)| (index, module.name.clone(), module.path.clone())),
                salt: salt.map(str::to_owned),
                session: None,
            },
        }
    }

    /// Number of the adapter in the engine.
    pub fn lora(&self) -> Option<u32> {
        self.lora
    }
}

/// A positive number of tokens or choices.
fn positive(value: Option<i64>, name: &str) -> Result<Option<u32>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(value) if value > 0 => Ok(Some(value)),
        _ => Err(ApiError::bad(format!("`{name}` must be at least 1, got {value}.")).param(name)),
    }
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

/// Plans one output: calls of tools where the request offers some and they are drawn, text otherwise.
fn plan(job: &Job, source: &Source<'_>, config: &SimConfig) -> Result<Plan, ApiError> {
    // What repeats the prompt calls nothing, unless it must.
    let tools = job
        .tools
        .as_ref()
        .filter(|tools| source.mode == Mode::Random || tools.demanded());
    if let Some(tools) = tools {
        let mut rng = source.rng(&job.sampling, TOOL_STREAM);
        let calls = tools
            .draw(&config.tool_calls, &mut rng)
            .map_err(tool_error)?;
        if !calls.is_empty() {
            return Ok(tools::plan(calls, source.limit(&job.sampling)));
        }
    }
    if config.tokenizer.is_some() && !job.sampling.stop_token_ids.is_empty() {
        // They are the model's: the translation looks for them.
        let sampling = Sampling {
            stop_token_ids: Vec::new(),
            ..job.sampling.clone()
        };
        return Ok(text::plan(&sampling, source));
    }
    Ok(text::plan(&job.sampling, source))
}

/// 400 for tools that cannot be used.
fn tool_error(error: ToolError) -> ApiError {
    ApiError::bad(error.to_string()).param(error.param)
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
    let hints = Hints::read(&call)?;
    let mut arrivals = Vec::with_capacity(job.prompts.len());
    let mut planned = 0;
    let mut new = Vec::with_capacity(job.prompts.len() * job.n as usize);
    for (at, tokens) in job.prompts.iter().enumerate() {
        let room = room(tokens.len(), &job.sampling, config.max_model_len)?;
        let prompt = Prompt::new(tokens, config.engine.block_size, job.root.hash);
        let peer_blocks = hints.peer_blocks(&call, &prompt);
        let naming = call.live.shared.events.as_ref().map(|events| {
            let mut identity = job.root.identity.clone();
            identity.session.clone_from(&hints.session);
            Naming::new(
                events.scheme().clone(),
                config.engine.block_size,
                identity,
                tokens,
            )
        });
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
            let asked = match (&config.tokenizer, job.echo.get(at)) {
                (_, Some(asked)) => Cow::Borrowed(asked.as_slice()),
                (Some(model), None) => Cow::Owned(model.own_tokens(tokens)),
                (None, None) => Cow::Borrowed(tokens.as_slice()),
            };
            let asked = &*asked;
            let echo = match config.mode {
                Mode::Echo => asked,
                Mode::Random => &[],
            };
            let asked = asked.strip_prefix(&[BOS]).unwrap_or(asked);
            let source = Source {
                mode: config.mode,
                seed: config.seed,
                prompt_hash,
                choice,
                echo,
                dataset: config.dataset.as_deref().map(|dataset| (dataset, asked)),
                length: &config.output_length,
                room,
            };
            let mut plan = plan(&job, &source, config)?;
            if let Some(model) = &config.tokenizer {
                // Text that is there already is said whole; random text is as long as it was planned.
                let most = match (config.mode, &config.dataset) {
                    (Mode::Random, None) => plan.tokens.len(),
                    _ => source.limit(&job.sampling) as usize,
                };
                let translated = model.translate(plan, &job.sampling, most);
                plan = translated.map_err(input::refused)?;
            }
            let plan = Arc::new(plan);
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
                naming: naming.clone(),
                cache_hit_threshold: job.cache_hit_threshold,
                load_from: hints.load_from,
                peer_blocks,
            };
            new.push((sequence, plan));
        }
        let shared = &call.live.shared;
        arrivals.push(shared.fleet.look(shared, &prompt, hints.load_from));
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

    let firsts = handles.iter().step_by(job.n.max(1) as usize);
    for ((arrival, handle), prompt) in arrivals.into_iter().zip(firsts).zip(&job.prompts) {
        let prompt_tokens = prompt.len() as u32;
        call.live.shared.oracle.add(prompt_tokens, arrival);
        call.live.shared.asked.push(Asked {
            id: call.id.clone(),
            model: job.model.clone(),
            prompt_tokens,
            arrival,
            hints: hints.to_json(),
            progress: handle.progress().clone(),
        });
    }

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
