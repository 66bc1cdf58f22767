//! What a router may tell an engine besides the request itself: where to load a prefix from, which conversation it belongs to.

use super::error::ApiError;
use super::{Call, input};
use crate::engine::sequence::Prompt;
use crate::engine::tiers::LoadFrom;
use serde::Deserialize;
use serde_json::{Map, Value, json};

const SESSION: &str = "x-session-id";

/// Hints of one request, vLLM's in all APIs.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// From which tiers to load.
    pub load_from: LoadFrom,
    /// The conversation.
    pub session: Option<String>,
    /// Host and port of the engine to fetch the prefix from.
    source: Option<(String, u16)>,
    params: Option<Map<String, Value>>,
}

#[derive(Deserialize, Default)]
struct Fields {
    #[serde(default)]
    kv_transfer_params: Option<Value>,
    #[serde(default)]
    session_id: Option<Value>,
    #[serde(default)]
    vllm_xargs: Option<Value>,
    #[serde(default)]
    sampling_params: Option<Value>,
}

impl Hints {
    /// Reads a request's body and headers.
    pub fn read(call: &Call) -> Result<Hints, ApiError> {
        let fields: Fields = input::parse(&call.body)?;
        // The token API takes them in a place of its own, too.
        let extra = fields.sampling_params.as_ref();
        let extra = extra.and_then(|sampling| sampling.get("extra_args"));
        let inner = |name: &str| extra.and_then(|extra| extra.get(name)).cloned();
        let params = fields
            .kv_transfer_params
            .or_else(|| inner("kv_transfer_params"))
            .filter(|params| !params.is_null());
        let params = match params {
            None => None,
            Some(Value::Object(params)) => Some(params),
            Some(_) => return Err(wrong("kv_transfer_params", "must be an object")),
        };
        let xargs = fields.vllm_xargs.as_ref();
        let session = fields
            .session_id
            .as_ref()
            .and_then(Value::as_str)
            .or_else(|| call.headers.get(SESSION)?.to_str().ok())
            .or_else(|| xargs?.get("session_id")?.as_str());
        let mut hints = Hints {
            session: session.filter(|id| !id.is_empty()).map(str::to_owned),
            ..Hints::default()
        };
        if let Some(params) = &params {
            if let Some(tiers) = params.get("kv_load_tiers").filter(|tiers| !tiers.is_null()) {
                hints.load_from = load_from(tiers)?;
            }
            if let Some(source) = params.get("remote_kv_source").filter(|s| !s.is_null()) {
                hints.source = Some(remote(source)?);
            }
        }
        hints.params = params;
        Ok(hints)
    }

    /// Blocks at the start of a prompt that the engine to fetch from has.
    pub fn peer_blocks(&self, call: &Call, prompt: &Prompt) -> usize {
        match &self.source {
            Some((host, port)) => call.live.shared.fleet.offered(host, *port, prompt),
            None => 0,
        }
    }

    /// As understood.
    pub fn to_json(&self) -> Value {
        let tiers = [
            ("CPU", self.load_from.cpu),
            ("STORAGE", self.load_from.disk),
        ];
        let allowed = tiers.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
        let source = self.source.as_ref();
        let source = source.map(|(host, port)| json!({"remote_host": host, "remote_port": port}));
        json!({
            "session_id": self.session,
            "load_from": allowed.collect::<Vec<_>>(),
            "remote_kv_source": source,
            "kv_transfer_params": self.params,
        })
    }
}

fn wrong(name: &str, what: &str) -> ApiError {
    ApiError::bad(format!("`{name}` {what}.")).param(name)
}

/// vLLM's matchers: one that it does not know is passed over, and if it knows none of them, all tiers count.
fn load_from(tiers: &Value) -> Result<LoadFrom, ApiError> {
    let list = tiers
        .as_array()
        .ok_or_else(|| wrong("kv_load_tiers", "must be a list"))?;
    if list.is_empty() {
        return Ok(LoadFrom::NOWHERE);
    }
    let mut from = LoadFrom::NOWHERE;
    let mut known = false;
    for matcher in list {
        let text = |key: &str| {
            let value = matcher.get(key).and_then(Value::as_str);
            value.map(str::to_ascii_uppercase)
        };
        let (medium, locality) = (text("medium"), text("locality"));
        let (cpu, disk) = match medium.as_deref() {
            Some("CPU") => (true, false),
            Some("STORAGE") => (false, true),
            None if locality.is_some() => (true, true),
            _ => continue,
        };
        match locality.as_deref() {
            None | Some("LOCAL") => {
                from.cpu |= cpu;
                from.disk |= disk;
            }
            // Known, and nothing here is remote.
            Some("REMOTE") => {}
            Some(_) => continue,
        }
        known = true;
    }
    Ok(if known { from } else { LoadFrom::default() })
}

fn remote(source: &Value) -> Result<(String, u16), ApiError> {
    let host = source.get("remote_host").and_then(Value::as_str);
    let port = source.get("remote_port").and_then(Value::as_u64);
    let port = port.and_then(|port| u16::try_from(port).ok());
    match (host, port) {
        (Some(host), Some(port)) => Ok((host.to_owned(), port)),
        _ => Err(wrong(
            "remote_kv_source",
            "needs a `remote_host` and a `remote_port`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_of_tiers() {
        let from = |value: Value| load_from(&value).map(|from| (from.cpu, from.disk));
        let read = |value| from(value).ok();
        assert_eq!(read(json!([])), Some((false, false)));
        assert_eq!(read(json!([{"medium": "cpu"}])), Some((true, false)));
        let slow = json!([{"medium": "STORAGE", "locality": "local"}]);
        assert_eq!(read(slow), Some((false, true)));
        let remote = json!([{"medium": "STORAGE", "locality": "REMOTE"}]);
        assert_eq!(read(remote), Some((false, false)));
        assert_eq!(read(json!([{"medium": "TAPE"}])), Some((true, true)));
        let mixed = json!([{"medium": "TAPE"}, {"medium": "CPU"}]);
        assert_eq!(read(mixed), Some((true, false)));
        assert_eq!(read(json!("CPU")), None);
    }
}
