//! The command line of `quorate sim`.

use crate::config::{Dialect, LoraModule, Mode, OutputLength, SimConfig};
use crate::config_file::ConfigFile;
use crate::dataset::Dataset;
use crate::duration;
use crate::engine::latency::{Latency, LatencyCalculator};
use crate::fault::{FailureInjection, FailureType, Faults};
use crate::metrics::fake::FakeMetrics;
use crate::profile;
use crate::tls::TlsFiles;
use crate::tokenizer::model::ModelTokenizer;
use crate::tools::ToolCallConfig;
use anyhow::{Context, bail};
use http::{HeaderName, HeaderValue};
pub use kv::KvArgs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Simulate model servers: vLLM's HTTP surface over a continuous-batching time model.
#[derive(Clone, Debug, clap::Args)]
pub struct SimArgs {
    /// Comes first: it looks at what the others were given before they take it.
    #[command(flatten)]
    pub config: ConfigFile,

    /// Address of the first server; each further one takes the next port. Port 0 takes free ports.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// Servers to run.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub count: u16,

    /// Ranks of each data-parallel server, one port a rank.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub data_parallel_size: u16,

    /// Run this one rank only; --data-parallel-size is then ignored.
    #[arg(long, value_name = "RANK")]
    pub data_parallel_rank: Option<u32>,

    /// Threads; servers are dealt out to them. 0: one for each server, up to the number of cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,

    /// Model to serve, reported as the root of every name.
    #[arg(long, value_name = "NAME", default_value = "sim-model")]
    pub model: String,

    /// Names under which the model is served; the first stands in answers and metrics. [default: the model]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    pub served_model_name: Vec<String>,

    /// LoRA adapters, each NAME=PATH or {"name": ..., "path": ..., "base_model_name": ...}.
    #[arg(long, value_name = "ADAPTER", num_args = 1.., value_parser = parse_lora)]
    pub lora_modules: Vec<LoraModule>,

    /// Different adapters in one batch.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub max_loras: usize,

    /// Adapters kept in host memory. [default: max-loras]
    #[arg(long, value_name = "N")]
    pub max_cpu_loras: Option<usize>,

    /// Time to bring in an adapter that is not in host memory.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub lora_load_time: Duration,

    /// Hardware: fixed (no hardware, see --time-to-first-token), llama-8b/h100, llama-8b/a100, llama-8b/a10,
    /// qwen3-32b-tp2/h100, llama-70b-tp4/h100, llama-70b-tp8/h100, small-3b/l40s.
    #[arg(long, value_name = "PROFILE", default_value = "fixed")]
    pub model_profile: String,

    /// Real seconds per simulated second: 0.1 is ten times faster.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub time_scale: f64,

    /// Context window in tokens. [default: the profile's]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<u32>,

    /// Sequences that run at the same time. [default: the profile's]
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<usize>,

    /// Tokens that one step computes. [default: the profile's]
    #[arg(long, value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<u32>,

    /// Requests that may wait; more are refused.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub max_waiting_queue_length: usize,

    /// Status of a refused request.
    #[arg(long, value_name = "STATUS", default_value_t = 429)]
    pub queue_full_status: u16,

    /// Tokens in a KV block.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub block_size: u32,

    /// KV blocks. [default: the profile's]
    #[arg(long, visible_alias = "kv-cache-size", value_name = "N")]
    pub num_gpu_blocks: Option<u32>,

    /// Find no cached prefixes.
    #[arg(long)]
    pub no_enable_prefix_caching: bool,

    /// End a completion at once, with finish reason cache_threshold, when a smaller share of its prompt is cached. A request
    /// may set its own cache_hit_threshold.
    #[arg(long, value_name = "SHARE")]
    pub global_cache_hit_threshold: Option<f64>,

    /// Profile `fixed`: how the time to first token comes about.
    #[arg(long, value_enum, default_value_t)]
    pub latency_calculator: LatencyCalculator,

    /// Profile `fixed`: time to first token.
    #[arg(long, visible_alias = "ttft", value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub time_to_first_token: Duration,

    /// Profile `fixed`: its standard deviation, at most 30 % of it.
    #[arg(long, visible_alias = "ttft-std-dev", value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub time_to_first_token_std_dev: Duration,

    /// Profile `fixed`: time between tokens.
    #[arg(long, visible_alias = "itl", value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub inter_token_latency: Duration,

    /// Profile `fixed`: its standard deviation, at most 30 % of it.
    #[arg(long, visible_alias = "itl-std-dev", value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub inter_token_latency_std_dev: Duration,

    /// Profile `fixed`: constant part of a prefill that is computed per token.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub prefill_overhead: Duration,

    /// Profile `fixed`: prefill time for each prompt token that is not cached.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub prefill_time_per_token: Duration,

    /// Profile `fixed`: standard deviation of the computed prefill time.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub prefill_time_std_dev: Duration,

    /// Profile `fixed`: factor on all times when max-num-seqs requests run; 1 with one request, linear between.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub time_factor_under_load: f64,

    /// What the answers say.
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,

    /// Seed of texts, latency noise and failures.
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// Output length of requests without a limit: N, uniform:MIN:MAX, normal:MEAN:STDDEV, lognormal:MEDIAN:SIGMA,
    /// exponential:MEAN.
    #[arg(long, value_name = "LENGTH", default_value = "lognormal:128:0.7", value_parser = OutputLength::parse)]
    pub output_length: OutputLength,

    /// Conversations that random output takes after: a JSONL file of {"prompt": ..., "output": ..., "output_length": ...},
    /// where a line needs one of the last two. A prompt that is in the file gets its output; any other gets random text as
    /// long as the output of a random line. Limits of a request cut it. --output-length then does not count.
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,

    /// Directory with a model's tokenizer.json, tokenizer_config.json and chat template, to tokenize as that model does. Without
    /// it, the simulator has tokens of its own.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,

    /// Write such files with the simulator's words into a directory, and end.
    #[arg(long, value_name = "DIR")]
    pub write_tokenizer: Option<PathBuf>,

    /// Tool calls in chats.
    #[command(flatten)]
    pub tool_calls: ToolCallConfig,

    /// Length of an embedding when the request does not say.
    #[arg(long, value_name = "N", default_value_t = 384)]
    pub default_embedding_dimensions: usize,

    /// Whose metric names the metrics page has.
    #[arg(long, value_enum, default_value_t)]
    pub dialect: Dialect,

    /// Time after start during which health is 503 and requests are refused.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration::parse)]
    pub startup_duration: Duration,

    /// Ignore /sleep and /wake_up.
    #[arg(long)]
    pub no_enable_sleep_mode: bool,

    /// Put x-request-id on every answer.
    #[arg(long)]
    pub enable_request_id_headers: bool,

    /// Log every request and the status of its answer.
    #[arg(long)]
    pub log_http: bool,

    /// Certificate (PEM) to speak HTTPS with, its authorities after it.
    #[arg(long, value_name = "FILE", requires = "ssl_keyfile")]
    pub ssl_certfile: Option<PathBuf>,

    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub ssl_keyfile: Option<PathBuf>,

    /// Largest request body.
    #[arg(long, value_name = "MB", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub max_request_body_size_mb: u16,

    /// Value of the x-inference-pod header; x-inference-port then tells the port.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Value of the x-inference-namespace header.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub pod_namespace: Option<String>,

    /// Name of the header with the pod.
    #[arg(long, value_name = "HEADER", default_value = "x-inference-pod")]
    pub pod_header: HeaderName,

    /// Name of the header with the port.
    #[arg(long, value_name = "HEADER", default_value = "x-inference-port")]
    pub port_header: HeaderName,

    /// Name of the header with the namespace.
    #[arg(long, value_name = "HEADER", default_value = "x-inference-namespace")]
    pub namespace_header: HeaderName,

    /// Further headers on every answer, each NAME=VALUE.
    #[arg(long, value_name = "HEADER", value_parser = parse_header)]
    pub response_header: Vec<(HeaderName, HeaderValue)>,

    /// Faults from the start, such as stall-after=3,probability=0.1. Also: hang, status=503, slow-headers=TIME,
    /// slow-body=BYTES_PER_SECOND, close-after=N, reset-after=N, crash-after=N, restart-after=TIME, lying-health, unhealthy,
    /// times=N, all-paths. A request chooses its own with the header x-sim-fault; POST /sim/fault changes them.
    #[arg(long, value_name = "FAULTS", default_value = "", value_parser = Faults::parse)]
    pub fault: Faults,

    /// KV events, tiers below the GPU.
    #[command(flatten)]
    pub kv: KvArgs,

    /// Per cent of requests that get an error answer.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub failure_injection_rate: u8,

    /// Which error answers; all when left out.
    #[arg(long, value_name = "TYPE", num_args = 1.., value_delimiter = ',')]
    pub failure_types: Vec<FailureType>,

    /// Figures that replace the real ones on the metrics page, as JSON, such as
    /// {"running-requests": "oscillate:0:10:5s", "waiting-requests": 3, "kv-cache-usage": 0.4}.
    #[arg(long, value_name = "JSON", value_parser = FakeMetrics::parse)]
    pub fake_metrics: Option<FakeMetrics>,

    /// How often functions among the fake figures are computed anew.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = duration::parse)]
    pub fake_metrics_refresh_interval: Duration,
}

fn parse_lora(text: &str) -> Result<LoraModule, String> {
    if text.trim_start().starts_with('{') {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let field = |name: &str| {
            value
                .get(name)
                .and_then(serde_json::Value::as_str)
                .map(str::to_owned)
        };
        let (Some(name), Some(path)) = (field("name"), field("path")) else {
            return Err("an adapter needs a name and a path".into());
        };
        return Ok(LoraModule {
            name,
            path,
            base_model: field("base_model_name"),
        });
    }
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok(LoraModule {
            name: name.into(),
            path: path.into(),
            base_model: None,
        }),
        _ => Err("an adapter is NAME=PATH or a JSON object".into()),
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once('=').ok_or("a header is NAME=VALUE")?;
    let name = HeaderName::try_from(name.trim()).map_err(|error| error.to_string())?;
    Ok((
        name,
        HeaderValue::try_from(value).map_err(|error| error.to_string())?,
    ))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl SimArgs {
    /// One configuration for each server and rank, their ports consecutive. Reads the configuration file, if there is one.
    pub fn configs(&self) -> anyhow::Result<Vec<SimConfig>> {
        match self.config.merged()? {
            Some(merged) => merged.own_configs(),
            None => self.own_configs(),
        }
    }

    fn own_configs(&self) -> anyhow::Result<Vec<SimConfig>> {
        let base = self.base()?;
        let ranks = if self.data_parallel_rank.is_some() {
            1
        } else {
            self.data_parallel_size
        };
        let mut configs = Vec::new();
        for at in 0..u32::from(self.count) * u32::from(ranks) {
            let mut config = base.clone();
            if self.listen.port() != 0 {
                let port = u32::from(self.listen.port()) + at;
                let port = u16::try_from(port)
                    .ok()
                    .with_context(|| format!("port {port} does not exist"))?;
                config.listen.set_port(port);
            }
            config.rank = self.data_parallel_rank.unwrap_or(at % u32::from(ranks));
            self.kv.offset(&mut config, at)?;
            configs.push(config);
        }
        Ok(configs)
    }

    fn base(&self) -> anyhow::Result<SimConfig> {
        let profile = profile::find(&self.model_profile).map_err(anyhow::Error::msg)?;
        let mut config = SimConfig::with_profile(&profile);
        config.listen = self.listen;
        config.model.clone_from(&self.model);
        config
            .served_model_names
            .clone_from(&self.served_model_name);
        config.loras.clone_from(&self.lora_modules);
        config.queue_full_status = self.queue_full_status;
        config.time_scale = self.time_scale;
        config.mode = self.mode;
        config.seed = self.seed;
        config.output_length = self.output_length.clone();
        config.cache_hit_threshold = self.global_cache_hit_threshold;
        config.tool_calls = self.tool_calls.clone();
        config.dataset = match &self.dataset_path {
            Some(path) => Some(Arc::new(Dataset::load(path)?)),
            None => None,
        };
        config.tokenizer = match &self.tokenizer {
            Some(directory) => Some(Arc::new(ModelTokenizer::load(directory)?)),
            None => None,
        };
        config.tls = self
            .ssl_certfile
            .clone()
            .zip(self.ssl_keyfile.clone())
            .map(|(cert, key)| TlsFiles { cert, key });
        config.dialect = self.dialect;
        config.startup = self.startup_duration;
        config.sleep_mode = !self.no_enable_sleep_mode;
        config.request_id_headers = self.enable_request_id_headers;
        config.log_http = self.log_http;
        config.max_body = usize::from(self.max_request_body_size_mb) << 20;
        config.embedding_dimensions = self.default_embedding_dimensions;
        config.failures = FailureInjection {
            rate: self.failure_injection_rate,
            types: self.failure_types.clone(),
        };
        config.faults = self.fault.clone();
        self.kv.apply(&mut config)?;
        config.fake_metrics = self.fake_metrics.clone();
        config.fake_metrics_refresh = self.fake_metrics_refresh_interval;
        config.response_headers = self.headers()?;
        config.port_header = self.pod_name.as_ref().map(|_| self.port_header.clone());

        let engine = &mut config.engine;
        engine.block_size = self.block_size;
        engine.max_waiting = self.max_waiting_queue_length;
        engine.prefix_caching = !self.no_enable_prefix_caching;
        engine.max_loras = self.max_loras;
        engine.max_cpu_loras = self.max_cpu_loras.unwrap_or(self.max_loras);
        engine.lora_load = nanos(self.lora_load_time);
        engine.max_num_seqs = self.max_num_seqs.unwrap_or(engine.max_num_seqs);
        engine.max_num_batched_tokens = self
            .max_num_batched_tokens
            .unwrap_or(engine.max_num_batched_tokens);
        // A profile counts its blocks in 16 tokens.
        let scaled = u64::from(engine.num_blocks) * 16 / u64::from(self.block_size.max(1));
        engine.num_blocks = self
            .num_gpu_blocks
            .unwrap_or(u32::try_from(scaled).unwrap_or(u32::MAX));
        if let Latency::Fixed(fixed) = &mut engine.latency {
            fixed.calculator = self.latency_calculator;
            fixed.ttft = nanos(self.time_to_first_token);
            fixed.ttft_std_dev = nanos(self.time_to_first_token_std_dev);
            fixed.itl = nanos(self.inter_token_latency);
            fixed.itl_std_dev = nanos(self.inter_token_latency_std_dev);
            fixed.prefill_overhead = nanos(self.prefill_overhead);
            fixed.prefill_time_per_token = nanos(self.prefill_time_per_token);
            fixed.prefill_std_dev = nanos(self.prefill_time_std_dev);
            fixed.load_factor = self.time_factor_under_load;
        } else if !(self.time_to_first_token.is_zero() && self.inter_token_latency.is_zero()) {
            bail!("--time-to-first-token and --inter-token-latency need --model-profile fixed");
        }
        match self.max_model_len {
            Some(len) => config.max_model_len = len,
            // Fewer blocks shorten the window that the profile would have.
            None => {
                let held =
                    u64::from(config.engine.num_blocks) * u64::from(config.engine.block_size);
                config.max_model_len = config
                    .max_model_len
                    .min(u32::try_from(held).unwrap_or(u32::MAX));
            }
        }
        config.validate()?;
        Ok(config)
    }

    fn headers(&self) -> anyhow::Result<Vec<(HeaderName, HeaderValue)>> {
        let mut headers = self.response_header.clone();
        for (name, value) in [
            (&self.pod_header, &self.pod_name),
            (&self.namespace_header, &self.pod_namespace),
        ] {
            if let Some(value) = value {
                let value = HeaderValue::try_from(value)
                    .with_context(|| format!("`{value}` cannot stand in a header"))?;
                headers.push((name.clone(), value));
            }
        }
        Ok(headers)
    }
}

mod kv;
#[cfg(test)]
mod tests;
