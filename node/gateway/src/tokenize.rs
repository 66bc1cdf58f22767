//! The prompt as tokens, made before the pick where the request's pool wants that: once, for all attempts.

use crate::worker::GatewayShared;
use bytes::Bytes;
use quorate_routing::tokens::{PromptTokens, TokenRequest};
use quorate_routing::{Class, Endpoint, RequestInfo};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// Tokens to come; `None`: there are none, and the request goes on without them.
pub(crate) type Tokenizing = Pin<Box<dyn Future<Output = Option<Box<PromptTokens>>> + Send>>;

/// Begins to make a request's tokens; `None`: its pool has no use for them. `body` is what goes to the engine.
pub(crate) fn tokenize(
    shared: &GatewayShared,
    class: &Class,
    info: &RequestInfo<'static>,
    body: &Bytes,
) -> Option<Tokenizing> {
    let source = Arc::clone(class.pool.policy.tokens.as_ref()?);
    let route = shared.view().load().route_of(class, info).ok()?;
    let model = class.target.as_deref().unwrap_or(&info.model);
    let lora = adapter(&route.endpoints, model);
    let (info, body) = (info.clone(), body.clone());
    Some(Box::pin(async move {
        let request = TokenRequest {
            info: &info,
            body: &body,
            lora: lora.as_deref(),
        };
        let tokens = source.tokens(request, &route.endpoints).await;
        tokens.map(Box::new)
    }))
}

/// The model's name, if the endpoints say that it is an adapter of another model.
fn adapter(endpoints: &[Arc<Endpoint>], model: &str) -> Option<String> {
    let served = endpoints.first()?.models();
    let found = served.iter().find(|served| served.id == model)?;
    found.parent.is_some().then(|| model.to_owned())
}
