//! `POST /v1/embeddings`. The engine computes the prompts as it would prefill them; nothing is decoded.

use super::body::SimBody;
use super::error::ApiError;
use super::generate::{self, Job};
use super::shapes::Head;
use super::shapes::embedding::Embeddings;
use super::{Call, input};
use crate::live::unix_now;
use crate::text::Sampling;
use http::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Longest vector that may be asked for.
const MAX_DIMENSIONS: i64 = 16_384;

pub async fn embeddings(call: Call) -> Result<Response<SimBody>, ApiError> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, default)]
        model: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        input: Option<&'a RawValue>,
        #[serde(default)]
        dimensions: Option<i64>,
        #[serde(borrow, default)]
        encoding_format: Option<Cow<'a, str>>,
    }
    let body = call.body.clone();
    let request: Body<'_> = input::parse(&body)?;
    let tokenizer = call.live.config().tokenizer.as_deref();
    let prompts = input::prompts(request.input, "input", tokenizer)?;
    let model = generate::model(&call.live, request.model.as_deref())?;
    let dimensions = match request.dimensions {
        None => call.live.config().embedding_dimensions,
        Some(n @ 1..=MAX_DIMENSIONS) => n as usize,
        Some(n) => {
            let range = format!("`dimensions` must be between 1 and {MAX_DIMENSIONS}, got {n}.");
            return Err(ApiError::bad(range).param("dimensions"));
        }
    };
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let wrong = format!("`encoding_format` must be float or base64, not {other}.");
            return Err(ApiError::bad(wrong).param("encoding_format"));
        }
    };
    let seeds = prompts
        .iter()
        .map(|prompt| {
            let bytes: Vec<u8> = prompt
                .iter()
                .flat_map(|token| token.to_le_bytes())
                .collect();
            xxh3_64_with_seed(&bytes, call.live.config().seed)
        })
        .collect();
    let head = Head {
        id: format!("embd-{}", call.id),
        model: model.name.clone(),
        created: unix_now() as u64,
        prompt_tokens: generate::total(&prompts),
        n: 1,
    };
    let job = Job {
        prompts,
        echo: Vec::new(),
        n: 1,
        sampling: Sampling {
            max_tokens: Some(1),
            ..Sampling::default()
        },
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(None),
        cache_hit_threshold: None,
        tools: None,
        stream: false,
    };
    generate::run(
        call,
        job,
        Box::new(Embeddings {
            head,
            seeds,
            dimensions,
            base64,
        }),
    )
    .await
}
