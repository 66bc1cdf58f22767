//! A request on its way through the stages, from the parse on.

use crate::client::Client;
use crate::observe::Observation;
use bytes::Bytes;
use http::request;
use quorate_routing::RequestInfo;
use std::sync::Arc;
use std::time::Instant;

/// See the module's documentation. Stages between the parse and the forward may change any of it.
pub(crate) struct Call {
    /// Head as the client sent it, with request id and trace context added.
    pub parts: request::Parts,
    /// The whole body; goes to the endpoint as it is.
    pub body: Bytes,
    /// What routing needs to know of it.
    pub info: RequestInfo<'static>,
    /// Where it came from.
    pub client: Arc<Client>,
    /// When the whole request must be over.
    pub total_at: Option<Instant>,
    /// What is measured of it.
    pub observation: Observation,
}
