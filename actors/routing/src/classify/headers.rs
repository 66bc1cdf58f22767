//! What headers say about a request, and which of them steer the fleet.

use crate::objective::usable;
use http::HeaderMap;

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
    fn what_strangers_may_not_say_is_known() {
        let mut said = headers(&[
            ("x-prefiller-host-port", "10.0.0.1:1"),
            ("x-gateway-destination-endpoint-served", "10.0.0.1:1"),
            ("x-llm-d-inference-objective", "best"),
            ("x-slo-ttft-ms", "1"),
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
