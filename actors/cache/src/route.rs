//! What this crate brings to scheduling configurations: tokens of prompts, made before the pick.
//!
//! [`CachePlugins`] registers `token-producer` and its former name `tokenizer`.

mod tokens;

pub use tokens::PoolTokens;

use crate::tokens::{Models, TemplateLimits};
use quorate_routing::config::registry::Build;
use quorate_routing::config::{Fields, Registry};
use std::sync::Arc;

/// What a tokenizer may remember of texts that it has seen.
const TOKENIZER_CACHE: usize = 64 << 20;

/// What configurations may name, for whoever only wants to know whether one is right.
#[must_use]
pub fn registry_to_check_with() -> Registry {
    CachePlugins::default().register(Registry::default())
}

/// The plugins of a node, with what they share.
#[derive(Clone)]
pub struct CachePlugins {
    models: Arc<Models>,
}

impl Default for CachePlugins {
    fn default() -> Self {
        Self {
            models: Arc::new(Models::new(TOKENIZER_CACHE, TemplateLimits::default())),
        }
    }
}

impl CachePlugins {
    /// Adds them to what configurations may name.
    #[must_use]
    pub fn register(&self, registry: Registry) -> Registry {
        let tokens = || {
            let models = Arc::clone(&self.models);
            move |fields: &mut Fields<'_>, build: &mut Build<'_>| {
                tokens::build(fields, build, &models)
            }
        };
        registry
            .with("token-producer", tokens())
            .with("tokenizer", tokens())
    }
}
