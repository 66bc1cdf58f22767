//! A request on its way through the stages, from the parse on.

use crate::change::Changes;
use crate::client::Client;
use crate::observe::Observation;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, request};
use quorate_routing::flow::Permit;
use quorate_routing::plugin::producer::burst_prefix::Together;
use quorate_routing::tokens::PromptTokens;
use quorate_routing::{Caller, Class, RequestInfo};
use std::sync::Arc;
use std::time::Instant;

/// A request whose body is there and has been parsed.
pub(crate) struct Parsed {
    /// Head as the client sent it, with request id and trace context added.
    pub parts: request::Parts,
    /// The whole body.
    pub body: Bytes,
    /// What routing needs to know of it.
    pub info: RequestInfo<'static>,
    /// Where it came from.
    pub client: Arc<Client>,
    /// Who sent it; a stage that knows better may change this.
    pub caller: Caller,
    /// When it came.
    pub started: Instant,
}

/// A request of which it is known where it belongs. Stages between the classification and the forward may change any of it.
pub(crate) struct Call {
    /// Head as the client sent it, with request id and trace context added.
    pub parts: request::Parts,
    /// The whole body as it goes to the endpoint.
    pub body: Bytes,
    /// What routing needs to know of it.
    pub info: RequestInfo<'static>,
    /// Pool, priority, flow and the model to ask for.
    pub class: Class,
    /// Its place in the pool's flow control, held until its answer has ended.
    pub permit: Option<Permit>,
    /// Where it should go together with others that came at the same time.
    pub together: Option<Together>,
    /// Its prompt as tokens, where its pool has a use for them.
    pub tokens: Option<Box<PromptTokens>>,
    /// The body as the present endpoint gets it, where that is another one: with hints for its engine.
    pub hinted: Option<Bytes>,
    /// Set on what goes to the endpoint, in place of those of the same name: the scheduler's decision.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// Set on the answer.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// What is changed in the answer.
    pub changes: Changes,
    /// Where it came from.
    pub client: Arc<Client>,
    /// When the whole request must be over.
    pub total_at: Option<Instant>,
    /// What is measured of it.
    pub observation: Observation,
}
