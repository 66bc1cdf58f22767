//! The stage that always has an answer: the gateway's own paths, and errors in the client's protocol.
//!
//! Own paths: `/health` (this process serves), `/ready` (it may get traffic), `/v1/models` and `/v1/models/{id}` (the union
//! over all pools). Everything else goes inwards.

use crate::authenticate::known;
use crate::body::GatewayBody;
use crate::client::Client;
use crate::error::{Refusal, dialect};
use crate::worker::{GatewayShared, Worker};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use quorate_routing::{Api, Dialect, RoutingView, ServedModel, now_ms};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use tower::{Layer, Service};

const MODELS: &str = "/v1/models";

/// Makes [`Answers`] for one client connection.
#[derive(Clone)]
pub(crate) struct AnswerLayer {
    pub worker: Arc<Worker>,
    pub client: Arc<Client>,
}

impl<S> Layer<S> for AnswerLayer {
    type Service = Answers<S>;

    fn layer(&self, inner: S) -> Answers<S> {
        Answers {
            worker: Arc::clone(&self.worker),
            client: Arc::clone(&self.client),
            inner,
        }
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Answers<S> {
    worker: Arc<Worker>,
    client: Arc<Client>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Answers<S>
where
    S: Service<Request<B>, Response = Response<GatewayBody>, Error = Refusal>,
    S::Future: Unpin,
{
    type Response = Response<GatewayBody>;
    type Error = Infallible;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A stage that cannot take more says so with a refusal, not by holding the connection back.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let api = Api::of(path);
        if api == Api::Native
            && let Some(response) = own(&self.worker, request.method(), path, request.headers())
        {
            return Answering::Own(Some(response));
        }
        Answering::Inner {
            dialect: dialect(api, request.headers()),
            inner: self.inner.call(request),
            client: Arc::clone(&self.client),
        }
    }
}

/// The answer to come.
pub(crate) enum Answering<F> {
    Own(Option<Response<GatewayBody>>),
    Inner {
        inner: F,
        dialect: Dialect,
        client: Arc<Client>,
    },
}

impl<F: Future<Output = Result<Response<GatewayBody>, Refusal>> + Unpin> Future for Answering<F> {
    type Output = Result<Response<GatewayBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match &mut *self {
            Self::Own(response) => response
                .take()
                .unwrap_or_else(|| Refusal::NoRoute.response(Dialect::OpenAi)),
            Self::Inner {
                inner,
                dialect,
                client,
            } => ready!(Pin::new(inner).poll(cx)).unwrap_or_else(|refusal| {
                if refusal.leaves_body_unread() {
                    client.linger.store(true, Relaxed);
                }
                refusal.response(*dialect)
            }),
        }))
    }
}

/// The answer to one of the gateway's own paths; `None` if it is none of them.
fn own(
    worker: &Worker,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<Response<GatewayBody>> {
    let core = &worker.core;
    if let Some(answer) = models(&core.shared, method, path, headers) {
        return Some(answer.map(GatewayBody::full));
    }
    if !matches!(path, "/health" | "/ready") {
        return None;
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some(Refusal::MethodNotAllowed("GET, HEAD").response(Dialect::OpenAi));
    }
    let answer = match path {
        "/health" => state(core.is_draining(), "draining", "ok", &core.shared.node()),
        _ => {
            let waiting = if core.is_draining() {
                Some("draining")
            } else if !core.shared.is_ready() {
                Some("starting")
            } else if !has_ready_endpoint(&core.shared.view().load()) {
                Some("no ready endpoint")
            } else {
                None
            };
            state(
                waiting.is_some(),
                waiting.unwrap_or_default(),
                "ready",
                &core.shared.node(),
            )
        }
    };
    Some(answer.map(GatewayBody::full))
}

/// The answer to `/v1/models` and `/v1/models/{id}`: the union over all pools. `None` for any other path.
pub(crate) fn models(
    shared: &GatewayShared,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<Response<Bytes>> {
    let rest = path.strip_prefix(MODELS)?;
    let model = rest.strip_prefix('/').filter(|id| !id.is_empty());
    if !rest.is_empty() && model.is_none() {
        return None;
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Some(Refusal::MethodNotAllowed("GET, HEAD").answer(Dialect::OpenAi));
    }
    // Models are shown to those who may use them.
    let caller = match shared.authenticator().map(|door| known(door, headers)) {
        Some(Ok(caller)) => Some(caller),
        Some(Err(access)) => return Some(Refusal::Access(access).answer(Dialect::OpenAi)),
        None => None,
    };
    let shown = |id: &str| {
        caller
            .as_ref()
            .is_none_or(|caller| caller.allows(id).is_ok())
    };
    let view = shared.view().load();
    Some(match model {
        Some(id) => {
            let id = percent_decoded(id);
            match view.models().get(id.as_str()).filter(|_| shown(&id)) {
                Some(model) => json_response(StatusCode::OK, &model_json(&id, model)),
                None => Refusal::ModelNotFound(id).answer(Dialect::OpenAi),
            }
        }
        None => {
            let data: Vec<Value> = view
                .models()
                .iter()
                .filter(|(id, _)| shown(id))
                .map(|(id, model)| model_json(id, model))
                .collect();
            json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
        }
    })
}

/// Whether any request could be served. An endpoint that was not probed yet would be tried, but is no reason to send traffic here.
fn has_ready_endpoint(view: &RoutingView) -> bool {
    let now = now_ms();
    let mut endpoints = view.pools().iter().flat_map(|pool| pool.endpoints.iter());
    endpoints.any(|endpoint| endpoint.tier(now) == Some(0))
}

fn state(not: bool, bad: &str, good: &str, node: &str) -> Response<Bytes> {
    let status = if not {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    json_response(
        status,
        &json!({"status": if not { bad } else { good }, "node": node}),
    )
}

/// A row of the list, with vLLM's fields beside OpenAI's.
fn model_json(id: &str, model: &ServedModel) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by.as_deref().unwrap_or("quorate"),
        "root": model.root.as_deref().unwrap_or(id),
        "parent": model.parent,
        "max_model_len": model.max_model_len,
    })
}

fn json_response(status: StatusCode, value: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(value.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Clients escape the slash in names such as `org/model`, or do not. What is no valid escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| {
        bytes
            .get(at)
            .and_then(|b| char::from(*b).to_digit(16))
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high * 16 + low);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decodes_what_clients_escape() {
        for (text, decoded) in [
            ("org%2Fmodel", "org/model"),
            ("org/model", "org/model"),
            ("a%2", "a%2"),
            ("%zz%ff", "%zz%ff"),
        ] {
            assert_eq!(percent_decoded(text), decoded);
        }
    }

    proptest! {
        #[test]
        fn decoding_undoes_escaping(text in ".{0,20}") {
            let escaped: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(percent_decoded(&escaped), text);
        }
    }
}
