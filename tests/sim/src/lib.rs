//! A simulated model server, good enough to judge routers with.
//!
//! It speaks vLLM's HTTP surface (and SGLang's and TensorRT-LLM's metrics), takes as long as a continuously batched engine
//! would, and fails on demand. `engine/` is the pure time model: scheduler, KV blocks, prefix cache, preemption. `live`
//! drives it in real time behind one lock. `http/` reads requests and writes answers, `metrics/` the metrics page, `fault`
//! says what goes wrong, `tools/` draws tool calls from their schemas. [`Sim`] is one server inside this process; [`run`] is
//! the command `quorate sim`, whose options may stand in a YAML file (`config_file`).
//!
//! What comes out is planned before the engine starts (`text`), from the server's seed, the prompt and the request's seed:
//! every simulator with the same seed gives the same answer to the same request. `kv_events` tells
//! of the KV blocks that come and go, on the GPU and the tiers below it, in the wire format of any engine version. `fleet` knows
//! what each server of the process has cached: the oracle. Prefill/decode hand-over is not simulated.

mod args;
mod asked;
mod config;
mod config_file;
mod dataset;
mod duration;
mod engine;
mod fault;
mod fleet;
mod hash;
mod http;
mod instance;
mod kv_events;
mod live;
mod lora;
mod metrics;
mod profile;
mod run;
mod shared;
mod text;
mod tls;
mod tokenizer;
mod tools;

pub use args::SimArgs;
pub use config::{ConfigError, Dialect, LoraModule, Mode, OutputLength, SimConfig};
pub use config_file::ConfigFile;
pub use dataset::{Dataset, DatasetError};
pub use engine::EngineConfig;
pub use engine::latency::{FixedLatency, Latency, LatencyCalculator, StepCosts};
pub use engine::tiers::{Medium, TierConfig};
pub use fault::{Cut, CutAction, FailureInjection, FailureType, Faults};
pub use fleet::{Fleet, Oracle};
pub use instance::{Sim, SimError};
pub use kv_events::{EventFaults, EventFormat, KvEventsConfig, SecondGroup};
pub use live::Load;
pub use metrics::fake::FakeMetrics;
pub use profile::{Profile, all as profiles, find as find_profile};
pub use run::run;
pub use shared::SimStats;
pub use tls::{TlsError, TlsFiles};
pub use tokenizer::export::write as write_tokenizer;
pub use tokenizer::model::ModelTokenizer;
pub use tools::ToolCallConfig;
