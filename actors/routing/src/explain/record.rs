//! What is kept of one request. Never its prompt, its answer, or a credential.

use crate::pipeline::{Decision, Name, SchedulingRequest};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Header values longer than this many bytes are left out.
const MAX_VALUE: usize = 256;
/// Headers kept of a request at most.
const MAX_HEADERS: usize = 32;

/// One request from its classification to its end. Written as JSON on the wire and on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestRecord {
    /// `x-request-id`.
    pub request_id: String,
    /// The router that handled it.
    pub node: String,
    /// When it came, in milliseconds since 1970.
    pub time_ms: u64,
    /// By which door: `gateway` or `ext-proc`.
    pub door: Name,
    /// Its pool.
    pub pool: Name,
    /// The model that the client named.
    pub model: String,
    /// The model that the endpoint was asked for.
    pub target_model: String,
    /// The rewrite object that decided on the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Name>,
    /// Who sent it, where clients are asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Whose flow it belongs to.
    pub fairness_id: String,
    /// Name of its objective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Name>,
    /// Its priority.
    pub priority: i32,
    /// What became of it in flow control, where the pool has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowRecord>,
    /// The request as the scheduler saw it; absent: it never came so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestFacts>,
    /// Where it was sent, in order.
    pub attempts: Vec<Attempt>,
    /// How it ended.
    pub ending: Ending,
}

/// A request in flow control.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowRecord {
    /// It had to wait.
    pub queued: bool,
    /// How long, in milliseconds.
    pub queue_ms: f64,
    /// As in the metrics' `outcome` label.
    pub outcome: Name,
}

/// A request as a scheduler sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestFacts {
    /// Length of the prompt, or of the body where the prompt is not known, in bytes.
    pub prompt_bytes: usize,
    /// Its tokens, if they were counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Upper bound of the answer in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// A stream was asked for.
    pub stream: bool,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Wanted time to the first token, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slo_ttft_ms: Option<f64>,
    /// Wanted time for each further token, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slo_tpot_ms: Option<f64>,
    /// Sizes of what is no text in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub multimodal: Vec<u64>,
    /// The headers that a plugin may read, without credentials (see [`is_kept`]).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Vec<String>>,
    /// Headers of that kind that were too long, too many or no text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers_left_out: Vec<String>,
}

/// One endpoint that a request was sent to, or a pick that found none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    /// When, in milliseconds after the request came.
    pub at_ms: f64,
    /// How it was chosen; absent: it was a fallback of the decision before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The endpoint that was picked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Name>,
    /// The endpoint that passes the request on to the picked one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Name>,
    /// What came of it: `answered`, `status 503`, `connect`, `reset`, `first-byte-timeout`, `not picked`, ...
    pub outcome: Name,
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ending {
    /// The client's status; 0: it went away before there was one.
    pub status: u16,
    /// `complete`, `client-gone` or the `error_code` label.
    pub end: Name,
    /// Value of `x-llm-d-request-dropped-reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_reason: Option<Name>,
    /// The endpoint that served it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Name>,
    /// From its arrival to its last byte.
    pub duration_ms: f64,
    /// From its arrival to the first token, or body byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Prompt tokens, as the engine said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Generated tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Prompt tokens that the engine found in its cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
}

/// Whether records keep a header: not one that carries a credential, and not one that every client sends and no plugin reads.
pub fn is_kept(name: &str) -> bool {
    const LEFT_OUT: &[&str] = &[
        // Credentials.
        "authorization",
        "proxy-authorization",
        "cookie",
        "api-key",
        "x-api-key",
        "x-auth-token",
        "x-goog-api-key",
        "x-forwarded-client-cert",
        // Of the connection and the format.
        "accept",
        "accept-encoding",
        "accept-language",
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "user-agent",
        "x-request-id",
    ];
    const LEFT_OUT_PREFIXES: &[&str] = &[":", "x-stainless-", "x-envoy-", "x-forwarded-"];
    !LEFT_OUT.contains(&name) && !LEFT_OUT_PREFIXES.iter().any(|p| name.starts_with(p))
}

impl RequestFacts {
    /// What a request is to the scheduler, without its prompt.
    pub fn of(request: &SchedulingRequest<'_>) -> Self {
        let mut facts = Self {
            prompt_bytes: request.prompt_bytes,
            prompt_tokens: request.prompt_tokens,
            max_tokens: request.max_tokens,
            stream: request.stream,
            session: request.session.map(str::to_owned),
            slo_ttft_ms: request.slo_ttft_ms.filter(|ms| ms.is_finite()),
            slo_tpot_ms: request.slo_tpot_ms.filter(|ms| ms.is_finite()),
            multimodal: request.multimodal.to_vec(),
            ..Self::default()
        };
        for name in request.headers.keys().filter(|name| is_kept(name.as_str())) {
            let values: Option<Vec<String>> = request
                .headers
                .get_all(name)
                .iter()
                .map(|value| Some(value.to_str().ok()?.to_owned()).filter(|v| v.len() <= MAX_VALUE))
                .collect();
            match values.filter(|_| facts.headers.len() < MAX_HEADERS) {
                Some(values) => {
                    facts.headers.insert(name.as_str().to_owned(), values);
                }
                None => facts.headers_left_out.push(name.as_str().to_owned()),
            }
        }
        facts.headers_left_out.truncate(MAX_HEADERS);
        facts
    }

    /// The headers that were kept.
    pub fn header_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, values) in &self.headers {
            let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
                continue;
            };
            for value in values {
                if let Ok(value) = HeaderValue::from_str(value) {
                    map.append(name.clone(), value);
                }
            }
        }
        map
    }
}

impl RequestRecord {
    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let attempt =
            |a: &Attempt| size_of::<Attempt>() + a.decision.as_ref().map_or(0, Decision::bytes);
        let facts = self.request.as_ref().map_or(0, |facts| {
            facts
                .headers
                .values()
                .flatten()
                .map(String::len)
                .sum::<usize>()
                + 64 * facts.headers.len()
                + 8 * facts.multimodal.len()
        });
        size_of::<Self>() + facts + self.attempts.iter().map(attempt).sum::<usize>()
    }

    /// The endpoint that served it or that it was sent to last.
    pub fn endpoint(&self) -> Option<&Name> {
        let last = || self.attempts.iter().rev().find_map(|a| a.endpoint.as_ref());
        self.ending.endpoint.as_ref().or_else(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_what_no_plugin_reads_are_left_out() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "sid=secret"),
            ("x-api-key", "secret"),
            ("user-agent", "curl"),
            ("x-session-id", "s-1"),
            ("prefer", "if-available"),
        ] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        headers.insert(
            "x-long",
            HeaderValue::from_str(&"x".repeat(MAX_VALUE + 1)).unwrap(),
        );
        let prompt = "a secret prompt";
        let request = SchedulingRequest {
            headers: &headers,
            prompt: Some(&prompt),
            prompt_bytes: 40,
            cache_salt: Some("secret salt"),
            slo_ttft_ms: Some(f64::INFINITY),
            ..Default::default()
        };
        let facts = RequestFacts::of(&request);
        let json = serde_json::to_string(&facts).unwrap();
        assert!(!json.contains("secret"), "{json}");
        let kept: Vec<&str> = facts.headers.keys().map(String::as_str).collect();
        assert_eq!(kept, ["prefer", "x-session-id"]);
        assert_eq!(facts.headers_left_out, ["x-long"]);
        assert_eq!(facts.header_map()["x-session-id"], "s-1");
        assert_eq!(serde_json::from_str::<RequestFacts>(&json).unwrap(), facts);
    }
}
