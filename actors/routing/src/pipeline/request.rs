//! What a pick may know of a request.

use crate::plugin::producer::burst_prefix::Together;
use crate::tokens::{Origin, PromptTokens};
use http::HeaderMap;
use std::sync::LazyLock;

/// The text of a prompt in pieces, as it lies in the request's body, in order. What is hashed for prefix matching.
pub trait Prompt {
    /// Gives every item that is no text (an image as its reference or encoded data, ...) to `take`, in order.
    fn media(&self, _take: &mut dyn FnMut(&[u8])) {}

    /// Gives every piece to `take`. The pieces' borders must follow from the text alone, never from how it arrived.
    fn pieces(&self, take: &mut dyn FnMut(&[u8]));
}

impl Prompt for &[u8] {
    fn pieces(&self, take: &mut dyn FnMut(&[u8])) {
        take(self);
    }
}

impl Prompt for &str {
    fn pieces(&self, take: &mut dyn FnMut(&[u8])) {
        take(self.as_bytes());
    }
}

impl Prompt for Vec<&[u8]> {
    fn pieces(&self, take: &mut dyn FnMut(&[u8])) {
        for piece in self {
            take(piece);
        }
    }
}

/// See the module's documentation. Make one with `SchedulingRequest { .., ..Default::default() }`.
#[derive(Clone, Copy)]
pub struct SchedulingRequest<'a> {
    /// `x-request-id`.
    pub request_id: &'a str,
    /// The model that the client named.
    pub incoming_model: &'a str,
    /// The model that the endpoint is asked for, after rewriting.
    pub model: &'a str,
    /// The client's headers.
    pub headers: &'a HeaderMap,
    /// Of its objective; below 0: may be shed.
    pub priority: i32,
    /// Whose flow it belongs to.
    pub fairness_id: &'a str,
    /// Name of its objective.
    pub objective: Option<&'a str>,
    /// The prompt's text, where the API has one that is understood.
    pub prompt: Option<&'a dyn Prompt>,
    /// Length of the prompt, or of the whole body where the prompt is not known, in bytes.
    pub prompt_bytes: usize,
    /// Length of the prompt in tokens, if it was tokenized.
    pub prompt_tokens: Option<u64>,
    /// The prompt as tokens, if it was tokenized.
    pub tokens: Option<&'a PromptTokens>,
    /// Isolates caches of requests that must not share prefixes.
    pub cache_salt: Option<&'a str>,
    /// Upper bound of the answer in tokens.
    pub max_tokens: Option<u64>,
    /// The answer is to be streamed.
    pub stream: bool,
    /// Names the conversation, if the body or a header says.
    pub session: Option<&'a str>,
    /// Longest time to the first token that the client accepts, in milliseconds.
    pub slo_ttft_ms: Option<f64>,
    /// Longest time for each further token that the client accepts, in milliseconds.
    pub slo_tpot_ms: Option<f64>,
    /// `host:port` of the endpoints that may be picked; `None`: all. Only the host is compared.
    pub subset: Option<&'a [&'a str]>,
    /// What the window gave that the request came in, where there are windows.
    pub together: Option<&'a Together>,
    /// Sizes of images, sounds and videos in the prompt (any unit).
    pub multimodal: &'a [u64],
}

static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

impl Default for SchedulingRequest<'_> {
    fn default() -> Self {
        Self {
            request_id: "",
            incoming_model: "",
            model: "",
            headers: &NO_HEADERS,
            priority: 0,
            fairness_id: "",
            objective: None,
            prompt: None,
            prompt_bytes: 0,
            prompt_tokens: None,
            tokens: None,
            cache_salt: None,
            max_tokens: None,
            stream: false,
            session: None,
            slo_ttft_ms: None,
            slo_tpot_ms: None,
            subset: None,
            together: None,
            multimodal: &[],
        }
    }
}

impl<'a> SchedulingRequest<'a> {
    /// The same request with its prompt as tokens. Their number is the prompt's length, unless it is only an estimate.
    #[must_use]
    pub fn with_tokens(mut self, tokens: Option<&'a PromptTokens>) -> Self {
        self.tokens = tokens;
        if let Some(tokens) = tokens.filter(|tokens| tokens.origin != Origin::Estimate) {
            self.prompt_tokens = Some(tokens.ids.len() as u64);
        }
        self
    }
}

impl SchedulingRequest<'_> {
    /// The prompt's tokens: as counted, else a token for each four bytes.
    pub fn estimated_prompt_tokens(&self) -> u64 {
        self.prompt_tokens
            .unwrap_or(self.prompt_bytes as u64 / BYTES_PER_TOKEN as u64)
    }

    /// A header's text; `None` if it is absent or not visible ASCII.
    pub fn header(&self, name: &http::HeaderName) -> Option<&str> {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
            .filter(|value| !value.is_empty())
    }
}

/// What an estimated token is long.
pub const BYTES_PER_TOKEN: usize = 4;
