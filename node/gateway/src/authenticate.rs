//! The stage that asks who a client is, before its body is read: an API key or a token in `Authorization: Bearer` or `x-api-key`.
//!
//! Who is known has its request taken out of its limits here; it counts as open until the answer has ended. The credential
//! goes no further: an engine has no use for it. What the caller may ask for is checked by [`crate::authorize`], after the
//! parse. Without an authenticator (the operator switched it off) the stage passes everything on.

use crate::body::GatewayBody;
use crate::error::Refusal;
use crate::worker::Worker;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use quorate_routing::identity::{Authenticator, Caller, Denied, Exhausted, Ongoing, Refused};
use quorate_routing::now_ms;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tower::{Layer, Service};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A caller that was let in, and its open request. Travels in the request's extensions.
#[derive(Debug)]
pub(crate) struct Session {
    /// Who it is.
    pub caller: Caller,
    /// Its place in its limits.
    pub ongoing: Ongoing,
}

/// Why a caller is turned away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Access {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

impl Access {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Denied(denied) if denied.is_known() => StatusCode::FORBIDDEN,
            Self::Denied(_) => StatusCode::UNAUTHORIZED,
            Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::Exhausted(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The `error_code` label.
    pub fn metric_code(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            _ => "RateLimited",
        }
    }

    /// OpenAI's `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied(Denied::Missing) => "missing_api_key",
            Self::Denied(denied) if denied.is_known() => "access_denied",
            Self::Denied(_) => "invalid_api_key",
            Self::Refused(Refused::Model(_)) => "model_not_allowed",
            Self::Refused(Refused::Objective(_)) => "objective_not_allowed",
            Self::Exhausted(_) => "rate_limit_exceeded",
        }
    }

    /// Value of `Retry-After` in seconds.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::Exhausted(exhausted) => {
                let after = exhausted.retry_after();
                Some(after.as_secs() + u64::from(after.subsec_nanos() > 0))
            }
            _ => None,
        }
    }
}

/// Makes [`Authenticate`].
#[derive(Clone)]
pub(crate) struct AuthenticateLayer(pub Arc<Worker>);

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;

    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate {
            worker: Arc::clone(&self.0),
            inner,
        }
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Authenticate<S> {
    worker: Arc<Worker>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Authenticate<S>
where
    S: Service<Request<B>, Response = Response<GatewayBody>, Error = Refusal>,
    S::Future: Unpin,
{
    type Response = Response<GatewayBody>;
    type Error = Refusal;
    type Future = Authenticating<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let core = &self.worker.core;
        if let Some(authenticator) = core.shared.authenticator() {
            match enter(authenticator, request.headers_mut()) {
                Ok(session) => {
                    request.extensions_mut().insert(Arc::new(session));
                }
                Err(access) => {
                    core.metrics.other().requests.increment(1);
                    core.metrics.other().error(access.metric_code());
                    return Authenticating::Refused(Some(access.into()));
                }
            }
        }
        Authenticating::Inner(self.inner.call(request))
    }
}

/// The answer to come.
pub(crate) enum Authenticating<F> {
    Refused(Option<Refusal>),
    Inner(F),
}

impl<F: Future<Output = Result<Response<GatewayBody>, Refusal>> + Unpin> Future
    for Authenticating<F>
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match &mut *self {
            // Polled again after its end, which no caller does, it answers as for nobody.
            Self::Refused(refusal) => Poll::Ready(Err(refusal
                .take()
                .unwrap_or(Refusal::Access(Denied::Missing.into())))),
            Self::Inner(inner) => Pin::new(inner).poll(cx),
        }
    }
}

/// Lets a caller in: knows it, counts its request as begun, and takes the credential away.
pub(crate) fn enter(
    authenticator: &Authenticator,
    headers: &mut HeaderMap,
) -> Result<Session, Access> {
    let caller = known(authenticator, headers)?;
    let ongoing = caller.begin(now_ms())?;
    headers.remove(AUTHORIZATION);
    headers.remove(API_KEY);
    Ok(Session { caller, ongoing })
}

/// Who sends these headers.
pub(crate) fn known(authenticator: &Authenticator, headers: &HeaderMap) -> Result<Caller, Access> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Ok(authenticator.identify(credential(headers), now)?)
}

/// `Authorization: Bearer` goes before `x-api-key`: OpenAI's clients send the one, Anthropic's the other.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, rest) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
        });
    bearer.or_else(|| headers.get(API_KEY)?.to_str().ok().map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn credentials_are_found_where_clients_put_them() {
        for (headers, expected) in [
            (vec![], None),
            (vec![("authorization", "Bearer k")], Some("k")),
            (vec![("authorization", "bearer  k ")], Some("k")),
            (vec![("x-api-key", "k")], Some("k")),
            (
                vec![("authorization", "Bearer a"), ("x-api-key", "b")],
                Some("a"),
            ),
            (
                vec![("authorization", "Basic a"), ("x-api-key", "b")],
                Some("b"),
            ),
            (vec![("authorization", "Bearer")], None),
        ] {
            let map: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    (
                        HeaderName::from_static(name),
                        HeaderValue::from_static(value),
                    )
                })
                .collect();
            assert_eq!(credential(&map), expected, "{headers:?}");
        }
    }

    #[test]
    fn each_reason_has_its_status() {
        let after = Duration::from_millis(1200);
        for (access, status, retry_after) in [
            (Access::from(Denied::Missing), 401, None),
            (Denied::Expired.into(), 401, None),
            (Denied::Disabled.into(), 403, None),
            (Refused::Model("m".into()).into(), 403, None),
            (Exhausted::Tokens(after).into(), 429, Some(2)),
            (
                Exhausted::Concurrent(Duration::from_secs(1)).into(),
                429,
                Some(1),
            ),
        ] {
            assert_eq!(access.status().as_u16(), status, "{access}");
            assert_eq!(access.retry_after(), retry_after, "{access}");
        }
    }
}
