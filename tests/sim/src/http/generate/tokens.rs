//! The engines' own generate APIs: vLLM's with tokens, SGLang's with texts or tokens.

use super::{Job, model, positive, run, total};
use crate::http::Call;
use crate::http::body::SimBody;
use crate::http::error::ApiError;
use crate::http::input;
use crate::http::shapes::Head;
use crate::http::shapes::tokens::{Sglang, TokenGenerate};
use crate::live::unix_now;
use crate::text::Sampling;
use http::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

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
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(request.cache_salt.as_deref()),
        cache_hit_threshold: None,
        tools: None,
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
    let prompts = input::prompts(raw, name, call.live.config().tokenizer.as_deref())?;
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
        model: model.name.clone(),
        lora: model.lora(),
        root: model.root(request.extra_key.as_deref()),
        cache_hit_threshold: None,
        tools: None,
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
