//! The stage that asks whether a caller may have what it asks for: the model that it names, and the objective.
//!
//! What it may say of itself is settled here as well: priority and flow of a request are its tenant's, unless the tenant is trusted to say
//! otherwise. Requests without a session (nobody is asked who he is) pass as they came.

use crate::authenticate::{Access, Session};
use crate::call::Parsed;
use crate::error::Refusal;
use crate::worker::Worker;
use http::HeaderMap;
use quorate_routing::identity::Caller;
use quorate_routing::{ClassHeaders, classify};
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// Makes [`Authorize`].
#[derive(Clone)]
pub(crate) struct AuthorizeLayer(pub Arc<Worker>);

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize {
            worker: Arc::clone(&self.0),
            inner,
        }
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Authorize<S> {
    worker: Arc<Worker>,
    inner: S,
}

impl<S: Service<Parsed, Error = Refusal>> Service<Parsed> for Authorize<S>
where
    S::Future: Unpin,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Authorizing<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut parsed: Parsed) -> Self::Future {
        if let Some(session) = parsed.parts.extensions.get::<Arc<Session>>() {
            match settle(&session.caller, &parsed.info.model, &parsed.parts.headers) {
                Ok(caller) => parsed.caller = caller,
                Err(access) => {
                    let other = self.worker.core.metrics.other();
                    other.requests.increment(1);
                    other.error(access.metric_code());
                    return Authorizing::Refused(ready(Err(access.into())));
                }
            }
        }
        Authorizing::Inner(self.inner.call(parsed))
    }
}

/// The answer to come.
pub(crate) enum Authorizing<S: Service<Parsed>> {
    Refused(Ready<Result<S::Response, Refusal>>),
    Inner(S::Future),
}

impl<S: Service<Parsed, Error = Refusal>> Future for Authorizing<S>
where
    S::Future: Unpin,
{
    type Output = Result<S::Response, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Refused(refused) => Pin::new(refused).poll(cx),
            Self::Inner(inner) => Pin::new(inner).poll(cx),
        }
    }
}

/// Checks the model and the objective, and says who the caller is to routing.
pub(crate) fn settle(
    caller: &Caller,
    model: &str,
    headers: &HeaderMap,
) -> Result<classify::Caller, Access> {
    caller.allows(model)?;
    let named = ClassHeaders::read(headers).objective;
    Ok(classify::Caller {
        trusted: caller.grant().trusted,
        objective: caller.objective(named)?.map(Arc::from),
        fairness_id: Some(Arc::clone(caller.fairness_id())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use quorate_routing::identity::{Authenticator, IdentityTable, KeyRule, TenantRule, digest_of};

    fn caller(trusted: bool) -> Caller {
        let tenant = TenantRule {
            name: "t".into(),
            models: vec!["m*".into()],
            objectives: vec!["fast".into(), "slow".into()],
            default_objective: "slow".into(),
            trusted,
            ..TenantRule::default()
        };
        let key = KeyRule {
            name: "k".into(),
            tenant: "t".into(),
            sha256: digest_of("k"),
            ..KeyRule::default()
        };
        let door = Authenticator::default();
        let table = IdentityTable::build(&[tenant], &[key], &IdentityTable::default(), 1);
        door.set_table(Arc::new(table));
        door.identify(Some("k"), 1).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn a_tenant_classifies_its_requests() {
        let said = headers(&[
            ("x-gateway-inference-fairness-id", "somebody-else"),
            ("x-gateway-inference-objective", "fast"),
        ]);
        for trusted in [false, true] {
            let settled = settle(&caller(trusted), "model", &said).unwrap();
            let expected = classify::Caller {
                trusted,
                objective: Some("fast".into()),
                fairness_id: Some("t".into()),
            };
            assert_eq!(settled, expected);
        }
        let silent = settle(&caller(false), "m", &HeaderMap::new()).unwrap();
        assert_eq!(silent.objective.as_deref(), Some("slow"));
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let said = headers(&[("x-llm-d-inference-objective", "best")]);
        for (model, code) in [
            ("other", "model_not_allowed"),
            ("m", "objective_not_allowed"),
        ] {
            let refused = settle(&caller(true), model, &said).unwrap_err();
            assert_eq!((refused.code(), refused.status().as_u16()), (code, 403));
        }
    }
}
