//! What this crate brings to scheduling configurations: tokens of prompts, made before the pick, and what of a prompt each endpoint has
//! cached, found within the pick.
//!
//! [`CachePlugins`] registers `token-producer` (and its former name `tokenizer`), `precise-prefix-cache-producer` and the plugin that was
//! producer and scorer in one, `precise-prefix-cache-scorer`.

mod expected;
mod heat;
mod keys;
mod local;
mod looked;
mod naming;
mod parameters;
mod precise;
mod rows;
mod sketch;
mod tokens;

pub use heat::{HotPool, HotPrefix};
pub use sketch::Counted;
pub use tokens::PoolTokens;

use crate::index::{CacheIndex, IndexConfig};
use crate::tokens::{Models, TemplateLimits};
use heat::Heat;
use metrics::{Unit, describe_counter, describe_histogram};
use quorate_routing::config::registry::Build;
use quorate_routing::config::{Fields, Registry};
use quorate_routing::now_ms;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a tokenizer may remember of texts that it has seen.
const TOKENIZER_CACHE: usize = 64 << 20;

/// Milliseconds of a generation of what is expected.
const GENERATION_MS: u64 = 250;

/// Gives the metrics of these plugins their help texts. Call once, after the recorder is installed.
pub fn describe_metrics() {
    describe_counter!(
        "quorate_tokens_total",
        "Prompts to be tokenized before the pick, by what came of it."
    );
    describe_counter!(
        "quorate_tokenizer_files_total",
        "Times that a model's files were read or fetched, by what came of it."
    );
    describe_histogram!(
        "quorate_tokens_seconds",
        Unit::Seconds,
        "How long requests waited for the tokens of their prompts."
    );
    describe_counter!(
        "quorate_precise_prefix_total",
        "Prompts that were looked for in the map of cached blocks, by what came of it."
    );
    describe_counter!(
        "quorate_precise_prefix_unknown_tier_total",
        "Blocks found on a cache tier whose name is not known: they count as not cached."
    );
}

/// What configurations may name, for whoever only wants to know whether one is right.
#[must_use]
pub fn registry_to_check_with() -> Registry {
    let smallest = IndexConfig { max_bytes: 1 << 20 };
    let index = Arc::new(CacheIndex::new(smallest));
    CachePlugins::new(index).register(Registry::default())
}

/// The plugins of a node, with what they share.
#[derive(Clone)]
pub struct CachePlugins {
    index: Arc<CacheIndex>,
    models: Arc<Models>,
    heat: Arc<Heat>,
}

impl CachePlugins {
    /// Plugins that ask `index`.
    #[must_use]
    pub fn new(index: Arc<CacheIndex>) -> Self {
        Self {
            index,
            models: Arc::new(Models::new(TOKENIZER_CACHE, TemplateLimits::default())),
            heat: Arc::default(),
        }
    }

    /// Files of tokenizers that are fetched are kept in this folder.
    pub fn keep_tokenizers_in(&self, directory: PathBuf) {
        self.models.keep_in(directory);
    }

    /// Adds them to what configurations may name.
    #[must_use]
    pub fn register(&self, registry: Registry) -> Registry {
        let precise = |scores: bool| {
            let (index, heat) = (Arc::clone(&self.index), Arc::clone(&self.heat));
            move |fields: &mut Fields<'_>, build: &mut Build<'_>| {
                parameters::build(fields, build, (&index, &heat), scores)
            }
        };
        let tokens = || {
            let models = Arc::clone(&self.models);
            move |fields: &mut Fields<'_>, build: &mut Build<'_>| {
                tokens::build(fields, build, &models)
            }
        };
        registry
            .with("token-producer", tokens())
            .with("tokenizer", tokens())
            .with("precise-prefix-cache-producer", precise(false))
            .with("precise-prefix-cache-scorer", precise(true))
    }

    /// Returns once the tokenizers whose files are on this machine can be used, or cannot be: a node that says it is ready tokenizes.
    pub async fn tokenizers_read(&self) {
        self.models.read().await;
    }

    /// A pool's `most` hottest prefixes on this node; `None`: none of its picks knew what is cached.
    #[must_use]
    pub fn hot(&self, pool: &str, most: usize) -> Option<HotPool> {
        self.heat.hot(pool, most, now_ms())
    }

    /// Lets go of what was expected and has not come, and counts what was picked. Runs until it is dropped.
    pub async fn expire(&self) {
        let mut tick = tokio::time::interval(Duration::from_millis(GENERATION_MS));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = now_ms();
            self.index.expire(generation(now));
            self.heat.drain(now);
        }
    }
}

/// The generation that ends at a moment. What is expected carries the one in which it ends.
const fn generation(now: u64) -> u64 {
    now / GENERATION_MS
}
