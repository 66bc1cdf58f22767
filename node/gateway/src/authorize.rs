//! The stage that asks whether a caller may have what it asks for: the model that it names, and the objective.
//!
//! What it may say of itself is settled here as well: the headers that classify a request are those of its tenant from here
//! on. Requests without a session (nobody is asked who he is) pass as they came.

use crate::authenticate::{Access, Session};
use crate::call::Call;
use crate::error::Refusal;
use crate::observe::End;
use http::{HeaderMap, HeaderName, HeaderValue};
use quorate_routing::identity::Caller;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};

const OBJECTIVE: HeaderName = HeaderName::from_static("x-llm-d-inference-objective");
const OBJECTIVE_ALIAS: HeaderName = HeaderName::from_static("x-gateway-inference-objective");
const FAIRNESS_ID: HeaderName = HeaderName::from_static("x-llm-d-inference-fairness-id");
const FAIRNESS_ID_ALIAS: HeaderName = HeaderName::from_static("x-gateway-inference-fairness-id");
/// Every header that classifies a request begins with one of these.
const CLASSIFYING: [&str; 3] = ["x-llm-d-", "x-gateway-", "x-slo-"];

/// Makes [`Authorize`].
#[derive(Clone, Copy)]
pub(crate) struct AuthorizeLayer;

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;

    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize(inner)
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Authorize<S>(S);

impl<S: Service<Call, Error = Refusal>> Service<Call> for Authorize<S>
where
    S::Future: Unpin,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Authorizing<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        if let Some(session) = call.parts.extensions.remove::<Arc<Session>>() {
            if let Err(access) = settle(&session.caller, &call.info.model, &mut call.parts.headers)
            {
                call.observation.end(End::Error(access.metric_code()));
                return Authorizing::Refused(ready(Err(access.into())));
            }
            call.observation.session = Some(session);
        }
        Authorizing::Inner(self.0.call(call))
    }
}

/// The answer to come.
pub(crate) enum Authorizing<S: Service<Call>> {
    Refused(Ready<Result<S::Response, Refusal>>),
    Inner(S::Future),
}

impl<S: Service<Call, Error = Refusal>> Future for Authorizing<S>
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

/// Checks the model and the objective and makes the headers say who the caller is.
fn settle(caller: &Caller, model: &str, headers: &mut HeaderMap) -> Result<(), Access> {
    caller.allows(model)?;
    let named = headers
        .get(OBJECTIVE)
        .or_else(|| headers.get(OBJECTIVE_ALIAS))
        .and_then(|value| value.to_str().ok());
    let objective = caller
        .objective(named)?
        .and_then(|name| HeaderValue::from_str(name).ok());
    let trusted = caller.grant().trusted;
    if !trusted {
        let classifying: Vec<HeaderName> = headers
            .keys()
            .filter(|name| {
                CLASSIFYING
                    .iter()
                    .any(|start| name.as_str().starts_with(start))
            })
            .cloned()
            .collect();
        for name in classifying {
            headers.remove(name);
        }
    }
    headers.remove(OBJECTIVE_ALIAS);
    match objective {
        Some(objective) => headers.insert(OBJECTIVE, objective),
        None => headers.remove(OBJECTIVE),
    };
    // Who speaks for others says for whom.
    let says = headers.contains_key(FAIRNESS_ID) || headers.contains_key(FAIRNESS_ID_ALIAS);
    if !(trusted && says)
        && let Ok(flow) = HeaderValue::from_str(caller.fairness_id())
    {
        headers.remove(FAIRNESS_ID_ALIAS);
        headers.insert(FAIRNESS_ID, flow);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let mut said = headers(&[
            ("x-gateway-inference-fairness-id", "somebody-else"),
            ("x-gateway-inference-objective", "fast"),
            ("x-gateway-destination-endpoint-subset", "10.0.0.1:1"),
            ("x-llm-d-model-name-rewrite", "other"),
            ("x-slo-ttft-ms", "1"),
            ("x-session-id", "s"),
        ]);
        settle(&caller(false), "model", &mut said).unwrap();
        let expected = headers(&[
            ("x-session-id", "s"),
            ("x-llm-d-inference-objective", "fast"),
            ("x-llm-d-inference-fairness-id", "t"),
        ]);
        assert_eq!(said, expected);
        let mut silent = HeaderMap::new();
        settle(&caller(false), "m", &mut silent).unwrap();
        assert_eq!(silent[OBJECTIVE], "slow");
    }

    #[test]
    fn who_is_trusted_speaks_for_others() {
        let mut said = headers(&[
            ("x-gateway-inference-fairness-id", "somebody-else"),
            ("x-slo-ttft-ms", "1"),
        ]);
        settle(&caller(true), "m", &mut said).unwrap();
        assert_eq!(said[FAIRNESS_ID_ALIAS], "somebody-else");
        assert_eq!(said["x-slo-ttft-ms"], "1");
        assert!(!said.contains_key(FAIRNESS_ID));
        assert_eq!(said[OBJECTIVE], "slow");
    }

    #[test]
    fn what_is_not_allowed_is_refused_and_changes_nothing() {
        let mut said = headers(&[("x-llm-d-inference-objective", "best")]);
        let before = said.clone();
        for (model, code) in [
            ("other", "model_not_allowed"),
            ("m", "objective_not_allowed"),
        ] {
            let refused = settle(&caller(true), model, &mut said).unwrap_err();
            assert_eq!((refused.code(), refused.status().as_u16()), (code, 403));
            assert_eq!(said, before);
        }
    }
}
