//! Why a request gets no answer from an engine, and how that is said in the client's own protocol.

use crate::authenticate::Access;
use crate::body::GatewayBody;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use quorate_routing::flow::Outcome;
use quorate_routing::{Api, Dialect, NotPicked, Unroutable};
use serde_json::json;
use std::fmt::Write;

/// Response header that says why a request was turned away, with llm-d's values.
pub(crate) const DROPPED_REASON: HeaderName =
    HeaderName::from_static("x-llm-d-request-dropped-reason");

/// The gateway's own answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    BadBody(String),
    #[error("you must provide a model parameter")]
    NoModel,
    #[error("the model `{0}` does not exist or is not served here")]
    ModelNotFound(String),
    #[error("nothing is served at this path")]
    NoRoute,
    #[error("this path takes {0} requests only")]
    MethodNotAllowed(&'static str),
    #[error("the request body is longer than the limit of {0} bytes")]
    BodyTooLarge(usize),
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    #[error("the request body could not be read: {0}")]
    BodyBroken(String),
    #[error("{0}")]
    NotPicked(#[from] NotPicked),
    #[error("{}", .0.refusal().map_or("the request was refused", |refusal| refusal.message))]
    Flow(Outcome),
    #[error("no pool is configured yet")]
    NoPools,
    #[error("no connection to a model server could be made")]
    Connect,
    #[error("the model server closed the connection before it answered")]
    Reset,
    #[error("the model server did not begin to answer in time")]
    FirstByteTimeout,
    #[error("the request took longer than the time limit")]
    TotalTimeout,
    #[error(transparent)]
    Access(#[from] Access),
}

impl Refusal {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadBody(_) | Self::NoModel | Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::ModelNotFound(_) | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::NotPicked(refused) => refused.status(),
            Self::Flow(outcome) => outcome
                .refusal()
                .and_then(|refusal| StatusCode::from_u16(refusal.status).ok())
                .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            Self::NoPools => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect | Self::Reset => StatusCode::BAD_GATEWAY,
            Self::FirstByteTimeout | Self::TotalTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Access(access) => access.status(),
        }
    }

    /// The `error_code` label, with llm-d's names where it has one.
    pub fn metric_code(&self) -> &'static str {
        match self {
            Self::BadBody(_) | Self::NoModel | Self::BodyBroken(_) => "BadRequest",
            Self::ModelNotFound(_) | Self::NoRoute => "NotFound",
            Self::MethodNotAllowed(_) => "MethodNotAllowed",
            Self::BodyTooLarge(_) => "BodyTooLarge",
            Self::BodyTimeout => "BodyTimeout",
            Self::NotPicked(refused) => match refused.status() {
                StatusCode::TOO_MANY_REQUESTS => "ResourceExhausted",
                StatusCode::PRECONDITION_FAILED => "PreconditionFailed",
                StatusCode::FORBIDDEN => "Forbidden",
                status if status.is_client_error() => "BadRequest",
                _ => "ServiceUnavailable",
            },
            Self::Flow(_) if self.status() == StatusCode::TOO_MANY_REQUESTS => "ResourceExhausted",
            Self::Flow(_) | Self::NoPools => "ServiceUnavailable",
            Self::Connect | Self::Reset => "BadGateway",
            Self::FirstByteTimeout | Self::TotalTimeout => "GatewayTimeout",
            Self::Access(access) => access.metric_code(),
        }
    }

    /// The dropped reason for a request that never reached an endpoint for want of one.
    pub fn dropped_reason(&self) -> Option<&'static str> {
        match self {
            Self::NotPicked(refused) => refused.dropped_reason(),
            Self::Flow(outcome) => outcome.refusal().map(|refusal| refusal.reason),
            Self::NoPools => Some("rejected-no-endpoints"),
            _ => None,
        }
    }

    /// What followed the head may still be on its way: the connection is read to its end before it is closed.
    pub fn leaves_body_unread(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge(_) | Self::BodyTimeout | Self::Access(_)
        )
    }

    fn param(&self) -> Option<&'static str> {
        matches!(self, Self::NoModel | Self::ModelNotFound(_)).then_some("model")
    }

    fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::ModelNotFound(_) => "model_not_found",
            Self::NoRoute => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            Self::BodyTooLarge(_) => "request_too_large",
            Self::BodyTimeout => "request_timeout",
            Self::NotPicked(refused) => match refused.status() {
                StatusCode::SERVICE_UNAVAILABLE => "no_endpoints",
                _ => "request_rejected",
            },
            Self::Flow(Outcome::Revoked) => "evicted",
            Self::Flow(_) => "request_rejected",
            Self::NoPools => "no_endpoints",
            Self::Connect => "upstream_connect_failed",
            Self::Reset => "upstream_reset",
            Self::FirstByteTimeout | Self::TotalTimeout => "upstream_timeout",
            Self::Access(access) => access.code(),
            Self::BadBody(_) | Self::NoModel | Self::BodyBroken(_) => return None,
        })
    }

    /// The whole answer in the client's dialect.
    pub fn response(&self, dialect: Dialect) -> Response<GatewayBody> {
        self.answer(dialect).map(GatewayBody::full)
    }

    /// The same with its body as bytes.
    pub fn answer(&self, dialect: Dialect) -> Response<Bytes> {
        let status = self.status();
        let mut response = if dialect == Dialect::Grpc {
            grpc_error(status, &self.to_string())
        } else {
            let body = error_json(
                dialect,
                status,
                &self.to_string(),
                self.param(),
                self.code(),
            );
            let mut response = Response::new(body);
            *response.status_mut() = status;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        };
        let headers = response.headers_mut();
        if status == StatusCode::SERVICE_UNAVAILABLE || matches!(self, Self::Flow(_)) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::Access(access) = self {
            if let Some(seconds) = access.retry_after() {
                headers.insert(RETRY_AFTER, seconds.into());
            }
            if status == StatusCode::UNAUTHORIZED {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
        }
        if let Some(reason) = self.dropped_reason() {
            headers.insert(DROPPED_REASON, HeaderValue::from_static(reason));
        }
        if let Self::MethodNotAllowed(allow) = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl Refusal {
    /// Why `model` goes nowhere.
    pub fn unroutable(why: Unroutable, model: &str) -> Self {
        match why {
            Unroutable::NoPools => Self::NoPools,
            Unroutable::ModelNotFound => Self::ModelNotFound(model.to_owned()),
            Unroutable::NoModel => Self::NoModel,
            Unroutable::NoRoute => Self::NoRoute,
        }
    }
}

/// How the client of a request understands errors: by its API, or because it speaks gRPC to a method that is passed through.
pub(crate) fn dialect(api: Api, headers: &http::HeaderMap) -> Dialect {
    let grpc = || {
        let kind = headers.get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    };
    match api.dialect() {
        Dialect::OpenAi if api == Api::Native && grpc() => Dialect::Grpc,
        dialect => dialect,
    }
}

/// A gRPC answer of nothing but a status ("Trailers-Only").
fn grpc_error(status: StatusCode, message: &str) -> Response<Bytes> {
    // https://grpc.io/docs/guides/status-codes/
    let code = match status.as_u16() {
        401 => 16,
        403 => 7,
        404 => 5,
        405 => 12,
        408 | 504 => 4,
        412 => 9,
        413 | 429 => 8,
        400..=499 => 3,
        502 | 503 => 14,
        _ => 13,
    };
    // The message is percent-encoded: printable ASCII but for the percent sign stands for itself.
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(&encoded) {
        headers.insert("grpc-message", message);
    }
    response
}

/// An error object: OpenAI's `{"error": {message, type, param, code}}`, or Anthropic's `{"type": "error", "error": {type,
/// message}}`.
pub(crate) fn error_json(
    dialect: Dialect,
    status: StatusCode,
    message: &str,
    param: Option<&str>,
    code: Option<&str>,
) -> Bytes {
    let value = if dialect == Dialect::Anthropic {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            408 | 504 => "timeout_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": message}})
    } else {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    };
    value.to_string().into()
}

/// The event that ends a stream that broke after it began. OpenAI's and Anthropic's clients raise it as an API error; the
/// stream then ends without `[DONE]`.
pub(crate) fn error_event(api: Api, code: &str, message: &str) -> Bytes {
    let json = error_json(
        api.dialect(),
        StatusCode::BAD_GATEWAY,
        message,
        None,
        Some(code),
    );
    let name: &[u8] = match api {
        Api::Messages | Api::Responses => b"event: error\n",
        _ => b"",
    };
    let mut event = Vec::with_capacity(name.len() + json.len() + 8);
    event.extend_from_slice(name);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(&json);
    event.extend_from_slice(b"\n\n");
    event.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_shape() {
        let openai = error_json(
            Dialect::OpenAi,
            StatusCode::NOT_FOUND,
            "a \"b\"",
            Some("model"),
            Some("model_not_found"),
        );
        let value: serde_json::Value = serde_json::from_slice(&openai).unwrap();
        assert_eq!(value["error"]["message"], "a \"b\"");
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["param"], "model");
        let anthropic = error_json(
            Dialect::Anthropic,
            StatusCode::SERVICE_UNAVAILABLE,
            "x",
            None,
            None,
        );
        let value: serde_json::Value = serde_json::from_slice(&anthropic).unwrap();
        assert_eq!(
            (&value["type"], &value["error"]["type"]),
            (&"error".into(), &"overloaded_error".into())
        );
    }

    #[test]
    fn an_unavailable_pool_says_so_in_the_headers() {
        let response = Refusal::NotPicked(quorate_routing::Unavailable::NoneAvailable.into())
            .response(Dialect::OpenAi);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[DROPPED_REASON], "rejected-no-endpoints");
    }

    #[test]
    fn grpc_clients_get_a_status() {
        let refusal = Refusal::ModelNotFound("100 %\u{e9}".into());
        let response = refusal.response(Dialect::Grpc);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "5");
        assert_eq!(
            response.headers()["grpc-message"],
            "the model `100 %25%C3%A9` does not exist or is not served here"
        );
        let native = dialect(Api::Native, response.headers());
        assert_eq!(native, Dialect::Grpc);
        assert_eq!(dialect(Api::Chat, response.headers()), Dialect::OpenAi);
        let none = Refusal::NoPools.response(Dialect::Grpc);
        assert_eq!(none.headers()["grpc-status"], "14");
        assert_eq!(none.headers()[DROPPED_REASON], "rejected-no-endpoints");
    }

    #[test]
    fn error_events_are_whole_events() {
        for api in [Api::Chat, Api::Messages, Api::Responses] {
            let event = error_event(api, "upstream_failed", "gone\nnow");
            let text = std::str::from_utf8(&event).unwrap();
            assert!(
                text.ends_with("\n\n") && text.trim_end().lines().count() <= 2,
                "{text}"
            );
        }
    }
}
