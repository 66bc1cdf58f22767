//! Everything that describes one simulated server.

use crate::dataset::Dataset;
use crate::engine::EngineConfig;
use crate::fault::{FailureInjection, Faults};
use crate::kv_events::KvEventsConfig;
use crate::metrics::fake::FakeMetrics;
use crate::profile::{self, Profile};
use crate::tls::TlsFiles;
use crate::tokenizer::model::ModelTokenizer;
use crate::tools::ToolCallConfig;
use http::{HeaderName, HeaderValue};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the output text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Sentences of random words.
    #[default]
    Random,
    /// The last user message, or the prompt.
    Echo,
}

/// Whose metric names the metrics page has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// vLLM.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's own server.
    Trtllm,
    /// Triton with the TensorRT-LLM backend.
    Triton,
}

impl Dialect {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::Vllm => "vllm",
            Dialect::Sglang => "sglang",
            Dialect::Trtllm => "trtllm",
            Dialect::Triton => "triton",
        }
    }
}

/// Distribution of the output length of requests without a limit. Tokens, end of sequence not counted.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputLength {
    /// Always the same.
    Fixed(u32),
    /// Anything between the two, both included.
    Uniform(u32, u32),
    /// Mean and standard deviation.
    Normal(f64, f64),
    /// Median and sigma of the logarithm.
    LogNormal(f64, f64),
    /// Mean.
    Exponential(f64),
}

impl OutputLength {
    /// Parses `128`, `fixed:128`, `uniform:16:256`, `normal:128:40`, `lognormal:200:0.8` or `exponential:128`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is none of N, fixed:N, uniform:MIN:MAX, normal:MEAN:STDDEV, lognormal:MEDIAN:SIGMA, exponential:MEAN"
            )
        };
        let number = |text: &str| -> Result<f64, String> {
            let value: f64 = text.parse().map_err(|_| wrong())?;
            if value.is_finite() && value >= 0.0 {
                Ok(value)
            } else {
                Err(wrong())
            }
        };
        let whole = |text: &str| text.parse::<u32>().map_err(|_| wrong());
        let parts: Vec<&str> = text.split(':').collect();
        match parts[..] {
            [n] | ["fixed", n] => Ok(OutputLength::Fixed(whole(n)?)),
            ["uniform", min, max] => {
                let (min, max) = (whole(min)?, whole(max)?);
                if min <= max {
                    Ok(OutputLength::Uniform(min, max))
                } else {
                    Err(wrong())
                }
            }
            ["normal", mean, deviation] => {
                Ok(OutputLength::Normal(number(mean)?, number(deviation)?))
            }
            ["lognormal", median, sigma] => {
                Ok(OutputLength::LogNormal(number(median)?, number(sigma)?))
            }
            ["exponential", mean] => Ok(OutputLength::Exponential(number(mean)?)),
            _ => Err(wrong()),
        }
    }

    /// One length, at least one token.
    pub fn sample(&self, rng: &mut fastrand::Rng) -> u32 {
        use crate::engine::latency::standard_normal;
        let length = match *self {
            OutputLength::Fixed(n) => f64::from(n),
            OutputLength::Uniform(min, max) => f64::from(rng.u32(min..=max)),
            OutputLength::Normal(mean, deviation) => mean + deviation * standard_normal(rng),
            OutputLength::LogNormal(median, sigma) => median * (sigma * standard_normal(rng)).exp(),
            OutputLength::Exponential(mean) => -mean * (1.0 - rng.f64()).ln(),
        };
        length.round().clamp(1.0, f64::from(u32::MAX)) as u32
    }
}

/// A LoRA adapter that is loaded from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraModule {
    /// Name that requests use as the model.
    pub name: String,
    /// Where it is said to lie.
    pub path: String,
    /// Model that it adapts.
    pub base_model: Option<String>,
}

/// One simulated server. [`SimConfig::default`] is a vLLM server with the `fixed` profile, no latency, a free port.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The model, reported as `root`.
    pub model: String,
    /// Names under which it is served; the first one is the name in answers and metrics. Empty: the model's own name.
    pub served_model_names: Vec<String>,
    /// Adapters loaded from the start.
    pub loras: Vec<LoraModule>,
    /// Context window in tokens.
    pub max_model_len: u32,
    /// Name of the hardware profile, for show.
    pub profile: String,
    /// Sizes, rules and time model of the engine.
    pub engine: EngineConfig,
    /// Status of a request that finds the waiting queue full.
    pub queue_full_status: u16,
    /// Real seconds per simulated second.
    pub time_scale: f64,
    /// What the output text is.
    pub mode: Mode,
    /// Seed of text, latency noise and failures.
    pub seed: u64,
    /// Output length of requests without a limit.
    pub output_length: OutputLength,
    /// Conversations that random output takes after, rather than after `output_length`.
    pub dataset: Option<Arc<Dataset>>,
    /// Least cached share of the prompt of requests that do not say; others end at once with `cache_threshold`.
    pub cache_hit_threshold: Option<f64>,
    /// How tool calls are drawn.
    pub tool_calls: ToolCallConfig,
    /// A model's tokenizer and chat template in place of the simulator's own.
    pub tokenizer: Option<Arc<ModelTokenizer>>,
    /// Names on the metrics page.
    pub dialect: Dialect,
    /// Data-parallel rank, the `engine` label.
    pub rank: u32,
    /// Bytes of the KV cache of one token, for the metrics of offloading.
    pub kv_bytes_per_token: u64,
    /// Port under which other servers of the process may fetch prefixes.
    pub p2p_port: Option<u16>,
    /// KV events, if any are published.
    pub kv_events: Option<KvEventsConfig>,
    /// Time after start during which health is 503 and requests are refused.
    pub startup: Duration,
    /// Whether `/sleep` and `/wake_up` do anything.
    pub sleep_mode: bool,
    /// Whether answers carry `x-request-id`.
    pub request_id_headers: bool,
    /// Whether every request and answer is logged.
    pub log_http: bool,
    /// Speak HTTPS.
    pub tls: Option<TlsFiles>,
    /// Largest request body in bytes.
    pub max_body: usize,
    /// Headers on every answer.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Also the port, under this name.
    pub port_header: Option<HeaderName>,
    /// Length of an embedding when the request does not say.
    pub embedding_dimensions: usize,
    /// Random error answers.
    pub failures: FailureInjection,
    /// Faults from the start.
    pub faults: Faults,
    /// Figures on the metrics page that replace the real ones.
    pub fake_metrics: Option<FakeMetrics>,
    /// How often functions in them are computed anew.
    pub fake_metrics_refresh: Duration,
}

impl Default for SimConfig {
    fn default() -> Self {
        let fixed = profile::all().swap_remove(0);
        SimConfig::with_profile(&fixed)
    }
}

/// A configuration that cannot work.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl SimConfig {
    /// A server with the sizes and times of a profile, everything else at its default.
    pub fn with_profile(profile: &Profile) -> Self {
        SimConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            model: "sim-model".into(),
            served_model_names: Vec::new(),
            loras: Vec::new(),
            max_model_len: profile.max_model_len,
            profile: profile.name.into(),
            engine: EngineConfig {
                max_num_seqs: profile.max_num_seqs,
                max_num_batched_tokens: profile.max_num_batched_tokens,
                block_size: 16,
                num_blocks: profile.num_blocks,
                max_waiting: 1000,
                prefix_caching: true,
                tiers: Vec::new(),
                offload_generated: false,
                peer_load_block: 0,
                record_changes: false,
                max_loras: 1,
                max_cpu_loras: 1,
                lora_load: 0,
                latency: profile.latency.clone(),
                seed: 0,
                max_catch_up: 0,
            },
            queue_full_status: 429,
            time_scale: 1.0,
            mode: Mode::Random,
            seed: 0,
            output_length: OutputLength::LogNormal(128.0, 0.7),
            dataset: None,
            cache_hit_threshold: None,
            tool_calls: ToolCallConfig::default(),
            tokenizer: None,
            dialect: Dialect::Vllm,
            rank: 0,
            kv_bytes_per_token: 128 << 10,
            p2p_port: None,
            kv_events: None,
            startup: Duration::ZERO,
            sleep_mode: true,
            request_id_headers: false,
            log_http: false,
            tls: None,
            max_body: 4 << 20,
            response_headers: Vec::new(),
            port_header: None,
            embedding_dimensions: 384,
            failures: FailureInjection::default(),
            faults: Faults::default(),
            fake_metrics: None,
            fake_metrics_refresh: Duration::from_millis(100),
        }
    }

    /// The name in answers and metrics.
    pub fn display_name(&self) -> &str {
        self.served_model_names.first().unwrap_or(&self.model)
    }

    /// Whether a request may ask for this model, adapters aside.
    pub fn serves(&self, model: &str) -> bool {
        if self.served_model_names.is_empty() {
            self.model == model
        } else {
            self.served_model_names.iter().any(|name| name == model)
        }
    }

    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        use crate::engine::latency::Latency;
        let engine = &self.engine;
        let fail = |text: String| Err(ConfigError(text));
        if self.model.is_empty() || self.served_model_names.iter().any(String::is_empty) {
            return fail("a model name must not be empty".into());
        }
        if engine.max_num_seqs == 0 || engine.max_num_batched_tokens == 0 || engine.max_loras == 0 {
            return fail(
                "max-num-seqs, max-num-batched-tokens and max-loras must be at least 1".into(),
            );
        }
        if engine.max_cpu_loras < engine.max_loras {
            return fail(format!(
                "max-cpu-loras {} is less than max-loras {}",
                engine.max_cpu_loras, engine.max_loras
            ));
        }
        if engine.block_size == 0 || engine.block_size > crate::engine::sequence::MAX_BLOCK_SIZE {
            return fail(format!(
                "block-size {} is not between 1 and 256",
                engine.block_size
            ));
        }
        if self.max_model_len < 2 {
            return fail("max-model-len must be at least 2".into());
        }
        let capacity = u64::from(engine.num_blocks) * u64::from(engine.block_size);
        if capacity < u64::from(self.max_model_len) {
            return fail(format!(
                "{} KV blocks of {} tokens hold {capacity} tokens, fewer than max-model-len {}",
                engine.num_blocks, engine.block_size, self.max_model_len
            ));
        }
        if self
            .cache_hit_threshold
            .is_some_and(|share| !(0.0..=1.0).contains(&share))
        {
            return fail("global-cache-hit-threshold must be between 0 and 1".into());
        }
        if !(self.time_scale.is_finite() && self.time_scale > 0.0) {
            return fail(format!(
                "time-scale {} is not a positive number",
                self.time_scale
            ));
        }
        if !(400..=599).contains(&self.queue_full_status) {
            return fail(format!(
                "queue-full-status {} is not between 400 and 599",
                self.queue_full_status
            ));
        }
        self.tool_calls.validate().map_err(ConfigError)?;
        if let Latency::Fixed(fixed) = &engine.latency {
            fixed.validate().map_err(ConfigError)?;
        }
        let mut names: Vec<&str> = self.loras.iter().map(|lora| lora.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair.first() == pair.last())
            || names.iter().any(|name| self.serves(name))
        {
            return fail("two models or adapters have the same name".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_parse_and_stay_in_range() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (text, low, high) in [
            ("20", 20, 20),
            ("fixed:7", 7, 7),
            ("uniform:3:9", 3, 9),
            ("normal:100:10", 40, 160),
            ("lognormal:100:0.1", 50, 200),
            ("exponential:50", 1, 2000),
        ] {
            let length = OutputLength::parse(text).unwrap();
            let samples: Vec<u32> = (0..1000).map(|_| length.sample(&mut rng)).collect();
            assert!(samples.iter().all(|s| (low..=high).contains(s)), "{text}");
        }
        for text in [
            "",
            "x",
            "uniform:9:3",
            "normal:1",
            "normal:nan:1",
            "fixed:-1",
        ] {
            assert!(OutputLength::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn default_is_valid_and_nonsense_is_not() {
        SimConfig::default().validate().unwrap();
        type Break = fn(&mut SimConfig);
        let breaks: &[Break] = &[
            |c| c.engine.max_num_seqs = 0,
            |c| c.engine.block_size = 0,
            |c| c.engine.num_blocks = 1,
            |c| c.time_scale = f64::NAN,
            |c| c.time_scale = 0.0,
            |c| c.engine.max_loras = 9,
            |c| c.queue_full_status = 200,
            |c| c.model.clear(),
            |c| c.tool_calls.min_integer = 101,
            |c| c.tool_calls.max_number = f64::NAN,
            |c| c.tool_calls.max_array = 0,
            |c| {
                c.loras = vec![LoraModule {
                    name: c.model.clone(),
                    path: "p".into(),
                    base_model: None,
                }];
            },
        ];
        for (at, broken) in breaks.iter().enumerate() {
            let mut config = SimConfig::default();
            broken(&mut config);
            assert!(config.validate().is_err(), "case {at}");
        }
    }
}
