//! Reads the few figures that routing needs off an engine's Prometheus page. Pure and tolerant: lines of other families are
//! skipped before anything of them is parsed, and a line that makes no sense is skipped as well.
//!
//! Family names: vLLM `vllm:*`, SGLang `sglang:*`, TensorRT-LLM's server `trtllm_*`, Triton's TensorRT-LLM backend `nv_trt_llm_*`.

use quorate_proto::v1::Engine;
use quorate_routing::{AdapterLoad, CacheShape, LoadFigures};
use std::collections::BTreeMap;

/// What one page says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    /// Whose names the page uses; unspecified if it has none that are known.
    pub engine: Engine,
    /// The load; what the page does not have is `None`.
    pub load: LoadFigures,
    /// LoRA adapters that have requests running or waiting.
    pub adapters: Vec<String>,
    /// The same, told apart, and how many fit.
    pub adapter_load: AdapterLoad,
    /// Size of the KV cache, if the page says.
    pub cache: Option<CacheShape>,
    /// Whether the engine sleeps, if the page says.
    pub sleeping: Option<bool>,
    /// Tokens read and written since the engine's start, if the page counts them: a change shows that tokens move.
    pub tokens: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    Running,
    Waiting,
    KvUsage,
    LoraInfo,
    CacheInfo,
    BlockTokens,
    Blocks,
    SleepState,
    Tokens,
}

/// Families by engine. Triton's have the figure in a label instead.
const FAMILIES: &[(Engine, &str, Figure)] = &[
    (Engine::Vllm, "vllm:num_requests_running", Figure::Running),
    (Engine::Vllm, "vllm:num_requests_waiting", Figure::Waiting),
    (Engine::Vllm, "vllm:kv_cache_usage_perc", Figure::KvUsage),
    // Its name before vLLM 0.10.
    (Engine::Vllm, "vllm:gpu_cache_usage_perc", Figure::KvUsage),
    (Engine::Vllm, "vllm:lora_requests_info", Figure::LoraInfo),
    (Engine::Vllm, "vllm:cache_config_info", Figure::CacheInfo),
    (
        Engine::Sglang,
        "sglang:cache_config_info",
        Figure::CacheInfo,
    ),
    (
        Engine::Trtllm,
        "trtllm_kv_cache_tokens_per_block",
        Figure::BlockTokens,
    ),
    (Engine::Trtllm, "trtllm_kv_cache_max_blocks", Figure::Blocks),
    (Engine::Vllm, "vllm:engine_sleep_state", Figure::SleepState),
    (Engine::Vllm, "vllm:prompt_tokens_total", Figure::Tokens),
    (Engine::Vllm, "vllm:generation_tokens_total", Figure::Tokens),
    (Engine::Sglang, "sglang:prompt_tokens_total", Figure::Tokens),
    (
        Engine::Sglang,
        "sglang:generation_tokens_total",
        Figure::Tokens,
    ),
    (Engine::Sglang, "sglang:num_running_reqs", Figure::Running),
    (Engine::Sglang, "sglang:num_queue_reqs", Figure::Waiting),
    (Engine::Sglang, "sglang:token_usage", Figure::KvUsage),
    (
        Engine::Trtllm,
        "trtllm_num_requests_running",
        Figure::Running,
    ),
    (
        Engine::Trtllm,
        "trtllm_num_requests_waiting",
        Figure::Waiting,
    ),
    (
        Engine::Trtllm,
        "trtllm_kv_cache_utilization",
        Figure::KvUsage,
    ),
];
const TRITON_REQUESTS: &str = "nv_trt_llm_request_metrics";
const TRITON_BLOCKS: &str = "nv_trt_llm_kv_cache_block_metrics";

/// A series of the same figure: which rank and which model it is of. Tensor- and pipeline-parallel ranks, priorities and process
/// ids do not set series apart: they repeat the same requests.
type Series = (String, String);

#[derive(Default)]
struct Found {
    running: BTreeMap<Series, f64>,
    waiting: BTreeMap<Series, f64>,
    kv_usage: BTreeMap<Series, f64>,
    awake: BTreeMap<Series, f64>,
    tokens: Option<f64>,
    /// Value (a time stamp) and adapters of the newest series.
    adapters: Option<(f64, AdapterLoad)>,
    block_tokens: Option<u32>,
    blocks: Option<u32>,
}

/// Parses a page. With `rank`, series of other data-parallel ranks are left out if the page has the rank at all.
pub fn parse(page: &[u8], rank: Option<u32>) -> Scrape {
    let mut found = Found::default();
    let mut engine = Engine::Unspecified;
    let mut rest = page;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(end);
        rest = tail.get(1..).unwrap_or_default();
        // Every family of interest begins with one of these.
        if !matches!(line.first(), Some(b'v' | b's' | b't' | b'n')) {
            continue;
        }
        let Some(sample) = std::str::from_utf8(line).ok().and_then(Sample::parse) else {
            continue;
        };
        if let Some(of) = found.take(&sample)
            && engine == Engine::Unspecified
        {
            engine = of;
        }
    }
    let adapter_load = found
        .adapters
        .take()
        .map(|(_, load)| load)
        .unwrap_or_default();
    let rank = rank.map(|r| r.to_string());
    let rank = rank.as_deref();
    Scrape {
        engine,
        load: LoadFigures {
            running: sum(&found.running, rank),
            waiting: sum(&found.waiting, rank),
            kv_cache_usage: mean(&found.kv_usage, rank),
        },
        adapters: all_names(&adapter_load),
        cache: found
            .block_tokens
            .filter(|tokens| *tokens > 0)
            .map(|block_tokens| CacheShape {
                block_tokens,
                blocks: found.blocks.unwrap_or(0),
            }),
        adapter_load,
        tokens: found.tokens,
        sleeping: mean(&found.awake, rank).map(|awake| awake == 0.0),
    }
}

impl Found {
    fn take(&mut self, sample: &Sample<'_>) -> Option<Engine> {
        if let Some((engine, _, figure)) = FAMILIES.iter().find(|(_, name, _)| *name == sample.name)
        {
            match figure {
                Figure::Running => keep(&mut self.running, sample),
                Figure::Waiting => keep(&mut self.waiting, sample),
                Figure::KvUsage => keep(&mut self.kv_usage, sample),
                Figure::LoraInfo => self.adapters(sample),
                Figure::CacheInfo => {
                    let number = |names: [&str; 2]| {
                        let value = names.iter().find_map(|name| sample.label(name));
                        value.and_then(|value| value.parse().ok())
                    };
                    let tokens = number(["block_size", "page_size"]);
                    let blocks = number(["num_gpu_blocks", "num_pages"]);
                    self.block_tokens = self.block_tokens.or(tokens);
                    self.blocks = self.blocks.or(blocks);
                }
                // Float casts saturate.
                Figure::BlockTokens => self.block_tokens = Some(sample.value as u32),
                Figure::Blocks => self.blocks = Some(sample.value as u32),
                Figure::Tokens if sample.value.is_finite() => {
                    *self.tokens.get_or_insert(0.0) += sample.value;
                }
                Figure::Tokens => {}
                Figure::SleepState => {
                    if sample.label("sleep_state") == Some("awake") {
                        keep(&mut self.awake, sample);
                    }
                }
            }
            return Some(*engine);
        }
        match (
            sample.name,
            sample.label("request_type"),
            sample.label("kv_cache_block_type"),
        ) {
            (TRITON_REQUESTS, Some("scheduled"), _) => keep(&mut self.running, sample),
            (TRITON_REQUESTS, Some("waiting"), _) => keep(&mut self.waiting, sample),
            (TRITON_BLOCKS, _, Some("fraction")) => keep(&mut self.kv_usage, sample),
            (TRITON_BLOCKS, _, Some("tokens_per")) => self.block_tokens = Some(sample.value as u32),
            (TRITON_BLOCKS, _, Some("max")) => self.blocks = Some(sample.value as u32),
            (TRITON_REQUESTS | TRITON_BLOCKS, _, _) => {}
            _ => return None,
        }
        Some(Engine::Triton)
    }

    /// Series of earlier label sets stay on the page; the newest one is the present.
    fn adapters(&mut self, sample: &Sample<'_>) {
        if !sample.value.is_finite()
            || self
                .adapters
                .as_ref()
                .is_some_and(|(at, _)| *at > sample.value)
        {
            return;
        }
        let names = |label: &str| {
            let mut names: Vec<String> = sample
                .label(label)
                .into_iter()
                .flat_map(|list| list.split(','))
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
            names.sort();
            names.dedup();
            names
        };
        let running = names("running_lora_adapters");
        let mut waiting = names("waiting_lora_adapters");
        waiting.retain(|name| !running.contains(name));
        let max = sample.label("max_lora").and_then(|max| max.parse().ok());
        let load = AdapterLoad {
            running,
            waiting,
            max: max.unwrap_or(0),
        };
        self.adapters = Some((sample.value, load));
    }
}

/// Running and waiting ones in one sorted list.
fn all_names(load: &AdapterLoad) -> Vec<String> {
    let mut names: Vec<String> = load.running.iter().chain(&load.waiting).cloned().collect();
    names.sort();
    names
}

/// Series that differ in other labels only repeat each other: the largest value is the whole.
fn keep(figure: &mut BTreeMap<Series, f64>, sample: &Sample<'_>) {
    if !sample.value.is_finite() {
        return;
    }
    let rank = sample.label("engine").or_else(|| sample.label("dp_rank"));
    let model = sample.label("model_name").or_else(|| sample.label("model"));
    let series = (
        rank.unwrap_or_default().to_owned(),
        model.unwrap_or_default().to_owned(),
    );
    let value = figure.entry(series).or_insert(f64::MIN);
    *value = value.max(sample.value);
}

fn of_rank<'a>(
    figure: &'a BTreeMap<Series, f64>,
    rank: Option<&'a str>,
) -> impl Iterator<Item = f64> + 'a {
    let rank = rank.filter(|rank| figure.keys().any(|(of, _)| of == rank));
    figure
        .iter()
        .filter(move |((of, _), _)| rank.is_none_or(|rank| rank == of))
        .map(|(_, value)| *value)
}

fn sum(figure: &BTreeMap<Series, f64>, rank: Option<&str>) -> Option<u32> {
    // Float casts saturate: a negative or absurd value cannot wrap around.
    (!figure.is_empty()).then(|| of_rank(figure, rank).sum::<f64>().round() as u32)
}

fn mean(figure: &BTreeMap<Series, f64>, rank: Option<&str>) -> Option<f32> {
    let count = of_rank(figure, rank).count();
    (count > 0).then(|| (of_rank(figure, rank).sum::<f64>() / count as f64) as f32)
}

/// One line of the page: `name{label="value",...} value [timestamp]`.
struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
        let (name, rest) = line.split_at(end);
        let known = name == TRITON_REQUESTS
            || name == TRITON_BLOCKS
            || FAMILIES.iter().any(|(_, family, _)| *family == name);
        if !known {
            return None;
        }
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(inside) => {
                let close = end_of_labels(inside)?;
                (inside.get(..close)?, inside.get(close + 1..)?)
            }
            None => ("", rest),
        };
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self {
            name,
            labels,
            value,
        })
    }

    /// The raw value of a label, escapes as they stand.
    fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, after) = rest.split_once("=\"")?;
            let end = end_of_value(after)?;
            if key.trim_matches([',', ' ']) == name {
                return after.get(..end);
            }
            rest = after.get(end + 1..)?;
        }
    }
}

/// Where the closing brace of a label set is; braces may stand within values.
fn end_of_labels(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let rest = text.get(from..)?;
        let next = rest.find(['}', '"'])?;
        if rest.as_bytes().get(next) == Some(&b'}') {
            return Some(from + next);
        }
        let value = rest.get(next + 1..)?;
        from += next + 1 + end_of_value(value)? + 1;
    }
}

/// Where the closing quote of a label value is.
fn end_of_value(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    })
}

#[cfg(test)]
mod tests;
