//! A request's prompt as token ids: what a pick may know of it, and who makes it.
//!
//! Picks never wait, so that tokens are made before: the door that a request comes through asks its pool's [`TokenSource`], if the
//! pool has one, once for all attempts.

use crate::endpoint::Endpoint;
use crate::request::{MediaKind, RequestInfo};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Where tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The request had token ids in it.
    Given,
    /// Tokenized here.
    Local,
    /// Tokenized by an engine.
    Engine,
    /// Packed bytes: good for comparing requests with each other, never equal to an engine's tokens.
    Estimate,
}

/// Where an item that is no text lies among the tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaSpan {
    /// What it is.
    pub kind: MediaKind,
    /// The first of its tokens.
    pub start: usize,
    /// How many tokens it takes.
    pub len: usize,
    /// What it is known by: the name that the client gave it (`uuid`), the engine's own hash where an engine tokenized, else
    /// the SHA-256 of its reference or data in hexadecimal digits. The last is not what an engine puts into its block hashes.
    pub identifier: String,
}

/// A prompt as tokens, with all that its blocks are known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// The token ids, placeholders expanded.
    pub ids: Arc<[u32]>,
    /// Items that are no text, in order of `start`.
    pub media: Vec<MediaSpan>,
    /// The LoRA adapter: blocks of different adapters are different.
    pub lora: Option<Arc<str>>,
    /// The salt that keeps tenants apart: part of the first block.
    pub salt: Option<Arc<str>>,
    /// Who made them.
    pub origin: Origin,
    /// An engine will see these very ids and items. `false` for an estimate, and where an item's number of tokens had to be guessed or
    /// its identifier is not the engine's: then what lies before the first item is still right.
    pub exact: bool,
}

/// A request to be tokenized.
#[derive(Clone, Copy, Debug)]
pub struct TokenRequest<'a> {
    /// What routing knows of it.
    pub info: &'a RequestInfo<'a>,
    /// Its body as it goes to the engine, from which `info` was parsed.
    pub body: &'a [u8],
    /// The LoRA adapter that its model is, if it is one.
    pub lora: Option<&'a str>,
}

/// The tokens of one request, when they are there; `None`: it could not be tokenized, or not in time.
pub type Tokenizing<'a> = Pin<Box<dyn Future<Output = Option<PromptTokens>> + Send + 'a>>;

/// The tokens of one request, or why there are none.
pub type TokenizingOrWhy<'a> =
    Pin<Box<dyn Future<Output = Result<PromptTokens, String>> + Send + 'a>>;

/// Makes the tokens of a pool's requests.
pub trait TokenSource: Send + Sync {
    /// Begins to read what it needs, so that the first request finds it there. Called within a Tokio runtime when a pool begins to use it.
    fn prepare(&self) {}

    /// The tokens of a request that may go to any of `endpoints`. It keeps to its own time limit, and counts its failures: whoever
    /// asks goes on without tokens.
    fn tokens<'a>(
        &'a self,
        request: TokenRequest<'a>,
        endpoints: &'a [Arc<Endpoint>],
    ) -> Tokenizing<'a>;

    /// The same for somebody who wants to know why there are none, and can wait longer than a request.
    fn tokens_or_why<'a>(
        &'a self,
        request: TokenRequest<'a>,
        endpoints: &'a [Arc<Endpoint>],
    ) -> TokenizingOrWhy<'a> {
        Box::pin(async move {
            let tokens = self.tokens(request, endpoints).await;
            tokens.ok_or_else(|| "there were none in time".to_owned())
        })
    }
}
