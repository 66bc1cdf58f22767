//! The request as routing sees it, and the one parse of its body.
//!
//! The body is read once with borrowed fields: what routing needs is picked out or its place is noted, the rest is checked to be
//! JSON and skipped. The bytes themselves go to the engine as they came, but for what [`edit`] changes.
mod api;
pub mod edit;
mod grpc;
mod json;
mod prompt;
pub mod protobuf;

pub use api::{Api, Dialect};
pub use prompt::{BYTES_PER_TOKEN, Media, MediaKind, Prompt, PromptIn, PromptKind, Span};

use std::borrow::Cow;

/// What routing knows of a request. Borrows from the body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInfo<'a> {
    /// The API it speaks.
    pub api: Api,
    /// The model it names; empty if it names none.
    pub model: Cow<'a, str>,
    /// The client asked for an answer in pieces.
    pub stream: bool,
    /// The client asked for usage in the stream.
    pub include_usage: bool,
    /// Upper bound of the answer's length in tokens, if the client set one.
    pub max_tokens: Option<u64>,
    /// What the client says belongs together (`prompt_cache_key`).
    pub session: Option<Cow<'a, str>>,
    /// Keeps cached blocks of different tenants apart (vLLM `cache_salt`, SGLang `extra_key`).
    pub cache_salt: Option<Cow<'a, str>>,
    /// Where the prompt lies in the body.
    pub prompt: Prompt,
    /// Length of the body in bytes.
    pub body_bytes: usize,
    /// Where a rewrite changes the body.
    pub(crate) places: edit::Places,
}

/// Why a body cannot be routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, or not the JSON the API has; the text says where.
    #[error("the request body is not valid: {0}")]
    Json(String),
    /// Not the gRPC message that the method takes.
    #[error("{0}")]
    Grpc(#[from] protobuf::WireError),
}

impl<'a> RequestInfo<'a> {
    /// Parses the body of a request. A missing model is no error here: a rewrite rule may name one
    /// ([`Api::needs_model`] says whether somebody must).
    ///
    /// # Errors
    /// [`ParseError`]: not a JSON object, a field of the wrong type, or a malformed gRPC message. Never for [`Api::Native`].
    pub fn parse(api: Api, body: &'a [u8]) -> Result<Self, ParseError> {
        match api {
            Api::Native => Ok(Self::native(body)),
            Api::VllmGrpcGenerate => Ok(grpc::generate(body)?),
            Api::VllmGrpcEmbed => Ok(grpc::embed(body)?),
            _ => json::parse(api, body),
        }
    }

    /// A request to a path that routing does not know: it is routed by the `model` in its body if there is one.
    pub fn native(body: &'a [u8]) -> Self {
        Self {
            model: json::model(body),
            body_bytes: body.len(),
            ..Self::default()
        }
    }

    /// The same without the borrowed body, for passing on together with it.
    pub fn into_owned(self) -> RequestInfo<'static> {
        let owned = |text: Cow<'a, str>| Cow::Owned(text.into_owned());
        RequestInfo {
            api: self.api,
            model: Cow::Owned(self.model.into_owned()),
            stream: self.stream,
            include_usage: self.include_usage,
            max_tokens: self.max_tokens,
            session: self.session.map(owned),
            cache_salt: self.cache_salt.map(owned),
            prompt: self.prompt,
            body_bytes: self.body_bytes,
            places: self.places,
        }
    }
}
