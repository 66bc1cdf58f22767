//! A request's prompt as the token ids that an engine will see.
//!
//! [`Local`] renders the chat template and runs the model's own tokenizer here; [`Engine`] asks an engine's render or tokenize
//! endpoint; [`Estimate`] packs bytes. [`Source`] is the one of them that a pool uses, with what to fall back to. Only what
//! [`PromptTokens::exact`] says may be compared with an engine's blocks.
//!
//! A worker of the gateway is not held for long: parsing, rendering and what the segment cache knows happen where they are
//! asked for (well under a millisecond for a conversation of 32k tokens); text that has to be tokenized anew goes to a
//! blocking thread once there is more than [`INLINE_BYTES`] of it, at most one job a core at a time.

mod byte_level;
mod chat;
mod clock;
mod content;
mod engine;
mod estimate;
mod fetch;
mod files;
mod local;
mod media;
mod messages;
mod probe;
mod prompt;
mod python;
mod responses;
mod segments;
mod store;
mod template;
mod text;

pub use content::ContentFormat;
pub use engine::Engine;
pub use estimate::Estimate;
pub use fetch::FileServer;
pub use files::{ModelFiles, Models, Raw, Reading};
pub use local::{INLINE_BYTES, Local};
pub use media::{Media, Placeholders};
pub use template::{ChatTemplate, TemplateLimits};
pub use text::TextTokenizer;

pub use quorate_routing::tokens::{MediaSpan, Origin, PromptTokens, TokenRequest as Request};

use std::sync::Arc;

/// The tokens of a request that has no media.
fn made(request: &Request<'_>, ids: Vec<u32>, origin: Origin) -> PromptTokens {
    PromptTokens {
        ids: ids.into(),
        media: Vec::new(),
        lora: request.lora.map(Arc::from),
        salt: request.info.cache_salt.as_deref().map(Arc::from),
        origin,
        exact: origin != Origin::Estimate,
    }
}

/// Why a prompt was not tokenized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request has something that this source cannot do exactly; another may.
    #[error("cannot be tokenized here: {0}")]
    Unsupported(&'static str),
    /// The request is not what its API takes.
    #[error("the request is not valid: {0}")]
    Request(String),
    /// The chat template refused the conversation, or went beyond its limits.
    #[error("the chat template refused: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
    /// A file of the model cannot be read or understood.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The engine did not answer as it should.
    #[error("the engine's tokenizer: {0}")]
    Engine(String),
    /// It took too long.
    #[error("tokenizing took longer than it may")]
    Timeout,
}

/// What a pool gets its tokens from, and what it falls back to.
#[derive(Clone, Debug)]
pub enum Source {
    /// In this process.
    Local(Arc<Local>),
    /// From an engine.
    Engine(Arc<Engine>),
    /// Not at all.
    Estimate(Estimate),
    /// The first, and where it fails the second.
    Either(Arc<Source>, Arc<Source>),
}

impl Source {
    /// `self`, and where that fails `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::Either(Arc::new(self), Arc::new(other))
    }

    /// The tokens of a request.
    ///
    /// # Errors
    /// [`TokenError`] of the last source that was tried. An [`Estimate`] at the end never fails.
    pub async fn tokens(&self, request: Request<'_>) -> Result<PromptTokens, TokenError> {
        if let Some(given) = prompt::given(&request) {
            return Ok(given);
        }
        let mut source = self;
        loop {
            match source {
                Self::Either(first, second) => match Box::pin(first.tokens(request)).await {
                    Ok(tokens) => return Ok(tokens),
                    Err(error) => {
                        tracing::debug!(%error, "tokens: falling back");
                        source = second;
                    }
                },
                Self::Local(local) => return local.tokens(request).await,
                Self::Engine(engine) => return engine.tokens(request).await,
                Self::Estimate(estimate) => return Ok(estimate.tokens(&request)),
            }
        }
    }
}
