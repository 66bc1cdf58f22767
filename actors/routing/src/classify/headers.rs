//! What headers say about a request, and which of them steer the fleet.

use crate::objective::usable;
use http::HeaderMap;
use std::time::Duration;

/// What headers say about a request. llm-d's names have two prefixes; `x-llm-d-` goes before `x-gateway-` and before none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassHeaders<'a> {
    /// Name of an objective.
    pub objective: Option<&'a str>,
    /// The flow it belongs to.
    pub fairness_id: Option<&'a str>,
    /// The model to ask for, unless a rewrite rule says otherwise.
    pub model_rewrite: Option<&'a str>,
    /// Wanted time to the first token, in milliseconds.
    pub slo_ttft_ms: Option<f64>,
    /// Wanted time per output token, in milliseconds.
    pub slo_tpot_ms: Option<f64>,
    /// How long it may take in all, in milliseconds from its arrival.
    pub timeout_ms: Option<f64>,
    /// The session it belongs to.
    pub session: Option<&'a str>,
    /// The only endpoints that may be used: `ip:port`, comma-separated.
    pub subset: Option<&'a str>,
}

impl<'a> ClassHeaders<'a> {
    /// Reads them in one pass. Values that cannot be used count as absent.
    pub fn read(headers: &'a HeaderMap) -> Self {
        let mut read = Self::default();
        for (name, value) in headers {
            let Some(name) = name.as_str().strip_prefix("x-") else {
                continue;
            };
            let (llm_d, rest) = match (name.strip_prefix("llm-d-"), name.strip_prefix("gateway-")) {
                (Some(rest), _) => (true, rest),
                (_, Some(rest)) => (false, rest),
                _ => (false, name),
            };
            let slot = match rest {
                "inference-objective" => &mut read.objective,
                "inference-fairness-id" => &mut read.fairness_id,
                "model-name-rewrite" => &mut read.model_rewrite,
                "session-id" => &mut read.session,
                // Longer than an id may be, and an empty list means no endpoint at all.
                "destination-endpoint-subset" if !llm_d => {
                    read.subset = value.to_str().ok();
                    continue;
                }
                "slo-ttft-ms" => {
                    set(&mut read.slo_ttft_ms, milliseconds(value), llm_d);
                    continue;
                }
                "request-timeout-ms" => {
                    set(&mut read.timeout_ms, milliseconds(value), llm_d);
                    continue;
                }
                "slo-tpot-ms" => {
                    set(&mut read.slo_tpot_ms, milliseconds(value), llm_d);
                    continue;
                }
                _ => continue,
            };
            set(slot, usable(value), llm_d);
        }
        read
    }
}

fn set<T>(slot: &mut Option<T>, value: Option<T>, wins: bool) {
    if value.is_some() && (wins || slot.is_none()) {
        *slot = value;
    }
}

fn milliseconds(value: &http::HeaderValue) -> Option<f64> {
    let ms: f64 = value.to_str().ok()?.trim().parse().ok()?;
    (ms.is_finite() && ms >= 0.0).then_some(ms)
}

/// The `grpc-timeout` of a call: up to eight digits and a unit. `None`: there is none, or it is none.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let whole = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| whole)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Whether a header says what a request is (objective, flow, model rewrite, SLO, endpoints), or tells a part of the fleet where to send
/// or fetch something. From a caller that is not trusted none of these may count or reach an endpoint: a sidecar there would
/// connect wherever they say.
pub fn is_classifying(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("x-") else {
        return false;
    };
    match rest.as_bytes().first() {
        Some(b'l') => rest.starts_with("llm-d-"),
        Some(b'g') => rest.starts_with("gateway-"),
        Some(b's') => rest.starts_with("slo-"),
        Some(b'p') => rest == "prefiller-host-port",
        Some(b'r') => rest == "request-timeout-ms",
        Some(b'e') => rest == "encoder-hosts-ports",
        Some(b'd') => rest == "data-parallel-host-port",
        Some(b'k') => rest == "kv-cache-source-host-port",
        _ => false,
    }
}

/// Removes what [`is_classifying`].
pub fn strip_classifying(headers: &mut HeaderMap) {
    // Nearly always there is none.
    while let Some(name) = headers.keys().find(|name| is_classifying(name.as_str())) {
        let name = name.clone();
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(said: &[(&'static str, &'static str)]) -> HeaderMap {
        said.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn both_prefixes_count_and_the_newer_wins() {
        let map = headers(&[
            ("x-gateway-inference-objective", "old"),
            ("x-llm-d-inference-objective", "new"),
            ("x-gateway-inference-fairness-id", "tenant"),
            ("x-gateway-model-name-rewrite", "m2"),
            ("x-slo-ttft-ms", "250"),
            ("x-llm-d-slo-tpot-ms", "20.5"),
            ("x-session-id", "s"),
            ("x-gateway-request-timeout-ms", "1500"),
            (
                "x-gateway-destination-endpoint-subset",
                "10.0.0.1:80, 10.0.0.2:80",
            ),
            ("x-other", "y"),
        ]);
        let expected = ClassHeaders {
            objective: Some("new"),
            fairness_id: Some("tenant"),
            model_rewrite: Some("m2"),
            slo_ttft_ms: Some(250.0),
            slo_tpot_ms: Some(20.5),
            timeout_ms: Some(1500.0),
            session: Some("s"),
            subset: Some("10.0.0.1:80, 10.0.0.2:80"),
        };
        assert_eq!(ClassHeaders::read(&map), expected);
        let bad = headers(&[
            ("x-llm-d-slo-ttft-ms", "soon"),
            ("x-slo-ttft-ms", "9"),
            ("x-slo-tpot-ms", "-1"),
            ("x-llm-d-inference-objective", ""),
        ]);
        let read = ClassHeaders::read(&bad);
        assert_eq!(read.slo_ttft_ms, Some(9.0));
        assert_eq!((read.slo_tpot_ms, read.objective), (None, None));
    }

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_has_them() {
        let of = |text: &'static str| grpc_timeout(&headers(&[("grpc-timeout", text)]));
        assert_eq!(of("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(of("3M"), Some(Duration::from_secs(180)));
        assert_eq!(of("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        assert_eq!(of("0n"), Some(Duration::ZERO));
        for bad in ["", "S", "5", "5x", "-5S", "+5S", "100000000S", "5 S"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn what_strangers_may_not_say_is_known() {
        let mut said = headers(&[
            ("x-prefiller-host-port", "10.0.0.1:1"),
            ("x-gateway-destination-endpoint-served", "10.0.0.1:1"),
            ("x-llm-d-inference-objective", "best"),
            ("x-slo-ttft-ms", "1"),
            ("x-request-timeout-ms", "1"),
            ("x-request-id", "1"),
            ("x-session-id", "s"),
            ("accept", "a"),
            ("x-llm", "x"),
        ]);
        strip_classifying(&mut said);
        let mut left: Vec<_> = said.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-llm", "x-request-id", "x-session-id"]);
    }
}
