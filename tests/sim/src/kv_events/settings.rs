//! What is published, in which format, where.

use crate::engine::naming::Scheme;
use crate::engine::tiers::Medium;
use quorate_cache::hash::{Algorithm, ExtraForm, Hasher, VLLM_SEED};
use quorate_cache::link::Address;
use serde::Deserialize;
use std::sync::Arc;

/// The wire format of one range of engine versions, named after its first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum EventFormat {
    /// Arrays up to the LoRA id.
    #[value(name = "vllm-0.9")]
    Vllm09,
    /// With the medium.
    #[value(name = "vllm-0.10")]
    Vllm010,
    /// With the LoRA name.
    #[value(name = "vllm-0.15")]
    Vllm015,
    /// With extra keys.
    #[value(name = "vllm-0.17")]
    Vllm017,
    /// With the cache group.
    #[value(name = "vllm-0.20")]
    Vllm020,
    /// With the kind of the group.
    #[value(name = "vllm-0.22")]
    Vllm022,
    /// The same as maps.
    #[value(name = "vllm-0.25")]
    Vllm025,
    /// With the topic in replay replies.
    #[value(name = "vllm-0.27")]
    Vllm027,
    /// The newest.
    #[value(name = "vllm-0.33")]
    Vllm033,
    /// SGLang's arrays; hashes of pages without what is before them.
    #[value(name = "sglang-0.5.5")]
    Sglang055,
    /// SGLang's arrays with a map in the place of the adapter's name.
    #[value(name = "sglang-0.5.18")]
    Sglang0518,
    /// SGLang's maps.
    #[value(name = "sglang-0.5.23")]
    Sglang0523,
    /// A JSON list that `POST /kv_cache_events` answers.
    #[value(name = "trtllm")]
    Trtllm,
}

impl EventFormat {
    /// Whether it is one of SGLang's.
    pub fn is_sglang(self) -> bool {
        (EventFormat::Sglang055..=EventFormat::Sglang0523).contains(&self)
    }

    /// Whether replies to a replay carry the topic.
    pub fn topic_in_replay(self) -> bool {
        matches!(
            self,
            EventFormat::Vllm027 | EventFormat::Vllm033 | EventFormat::Sglang0523
        )
    }

    /// Whether events say where a block lies. Without it, there are none of other places than the GPU.
    pub fn has_medium(self) -> bool {
        !matches!(self, EventFormat::Vllm09 | EventFormat::Sglang055)
    }

    /// Whether events say which cache group a block belongs to.
    pub fn has_groups(self) -> bool {
        (EventFormat::Vllm020..=EventFormat::Vllm033).contains(&self)
    }

    /// What a place is called.
    pub fn medium(self, medium: Medium) -> &'static str {
        match (medium, self.is_sglang()) {
            (Medium::Gpu, _) => "GPU",
            (Medium::Cpu | Medium::Peer, false) => "CPU",
            (Medium::Cpu | Medium::Peer, true) => "CPU_PINNED",
            (Medium::Disk, false) => "STORAGE",
            (Medium::Disk, true) => "DISK",
        }
    }

    /// As on the command line.
    pub fn name(self) -> String {
        use clap::ValueEnum;
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// A second cache group beside full attention, as hybrid models have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecondGroup {
    /// vLLM's kind: `sliding_window`, `mamba` and so on.
    pub kind: String,
    /// Tokens that it looks back.
    pub window: u32,
}

impl SecondGroup {
    /// Parses `sliding_window:1024`.
    pub fn parse(text: &str) -> Result<SecondGroup, String> {
        const KINDS: [&str; 5] = [
            "sliding_window",
            "sliding_window_mla",
            "chunked_local_attention",
            "mamba",
            "sink_full_attention",
        ];
        let wrong = || {
            let kinds = KINDS.join(", ");
            format!("`{text}` is not KIND:TOKENS with a kind of {kinds} and at least one token")
        };
        let (kind, window) = text.split_once(':').ok_or_else(wrong)?;
        let window = window.parse().ok().filter(|window| *window > 0);
        if !KINDS.contains(&kind) {
            return Err(wrong());
        }
        Ok(SecondGroup {
            kind: kind.to_owned(),
            window: window.ok_or_else(wrong)?,
        })
    }
}

/// What is published and where: vLLM's `--kv-events-config`, and what stands beside it.
#[derive(Clone, Debug)]
pub struct KvEventsConfig {
    /// Wire format.
    pub format: EventFormat,
    /// Where batches go.
    pub endpoint: Address,
    /// Whether the endpoint is bound rather than dialled.
    pub bind: bool,
    /// Where replays are answered. Always bound.
    pub replay_endpoint: Option<Address>,
    /// Batches kept for replays.
    pub buffer_steps: usize,
    /// First frame of each message.
    pub topic: String,
    /// vLLM's `--prefix-caching-hash-algo`.
    pub algorithm: Algorithm,
    /// `PYTHONHASHSEED`.
    pub hash_seed: Option<String>,
    /// Whether vLLM's formats tell tokens of blocks below the GPU too, rather than hashes alone.
    pub self_describing: bool,
    /// A second cache group, in formats that have groups.
    pub second_group: Option<SecondGroup>,
    /// Faults from the start.
    pub faults: super::EventFaults,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    #[serde(default = "yes")]
    enable_kv_cache_events: bool,
    #[serde(default)]
    publisher: Option<String>,
    #[serde(default = "default_endpoint")]
    endpoint: String,
    #[serde(default)]
    bind: Option<bool>,
    #[serde(default)]
    replay_endpoint: Option<String>,
    #[serde(default = "default_steps")]
    buffer_steps: usize,
    /// Taken and without effect: the simulator's queues are bounded by `buffer_steps`.
    #[serde(default, rename = "hwm")]
    _hwm: Option<u64>,
    #[serde(default, rename = "max_queue_size")]
    _max_queue_size: Option<u64>,
    #[serde(default)]
    topic: String,
}

fn yes() -> bool {
    true
}

fn default_endpoint() -> String {
    "tcp://*:5557".into()
}

fn default_steps() -> usize {
    10_000
}

impl KvEventsConfig {
    /// Parses vLLM's JSON. `None` when it switches events off.
    pub fn parse(text: &str) -> Result<Option<KvEventsConfig>, String> {
        let json: Json = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match json.publisher.as_deref() {
            None | Some("zmq") => {}
            Some("null") => return Ok(None),
            Some(other) => {
                return Err(format!(
                    "there is no publisher `{other}`; there are zmq, null"
                ));
            }
        }
        if !json.enable_kv_cache_events {
            return Ok(None);
        }
        if json.buffer_steps == 0 {
            return Err("buffer_steps must be at least 1".into());
        }
        let address = |text: &str| Address::parse(text).map_err(|error| error.to_string());
        // vLLM's rule.
        let binds = json.endpoint.contains('*')
            || json.endpoint.contains("::")
            || json.endpoint.starts_with("ipc://");
        Ok(Some(KvEventsConfig {
            format: EventFormat::Vllm033,
            endpoint: address(&json.endpoint)?,
            bind: json.bind.unwrap_or(binds),
            replay_endpoint: json.replay_endpoint.as_deref().map(address).transpose()?,
            buffer_steps: json.buffer_steps,
            topic: json.topic,
            algorithm: Algorithm::Sha256Cbor,
            hash_seed: None,
            self_describing: false,
            second_group: None,
            faults: super::EventFaults::default(),
        }))
    }

    /// The same for the server that is `by` places on: ports count up.
    pub fn offset(mut self, by: u32) -> Result<KvEventsConfig, String> {
        let move_on = |address: Address| match &address {
            Address::Tcp { port: 0, .. } => Ok(address),
            Address::Tcp { port, .. } if self.bind => {
                let port = *port;
                address
                    .offset(by)
                    .ok_or_else(|| format!("port {port} + {by} does not exist"))
            }
            Address::Tcp { .. } => Ok(address),
            Address::Ipc(path) if by > 0 => {
                let mut name = path.clone().into_os_string();
                name.push(format!("_dp{by}"));
                Ok(Address::Ipc(name.into()))
            }
            Address::Ipc(_) => Ok(address),
        };
        let endpoint = move_on(self.endpoint.clone())?;
        self.replay_endpoint = match self.replay_endpoint.take() {
            None => None,
            Some(Address::Tcp { host, port }) if port != 0 => Some(
                Address::Tcp { host, port }
                    .offset(by)
                    .ok_or_else(|| format!("port {port} + {by} does not exist"))?,
            ),
            Some(other) => Some(move_on(other)?),
        };
        self.endpoint = endpoint;
        Ok(self)
    }

    /// How blocks are named.
    pub fn scheme(&self) -> Result<Scheme, String> {
        let form = if self.format >= EventFormat::Vllm033 {
            ExtraForm::Tagged
        } else {
            ExtraForm::Untagged
        };
        match self.format {
            EventFormat::Sglang055 => Ok(Scheme::PageOnly),
            EventFormat::Sglang0518 | EventFormat::Sglang0523 => {
                Ok(Scheme::Chained(Arc::new(Hasher::Sglang)))
            }
            EventFormat::Trtllm => Ok(Scheme::Opaque),
            _ => {
                let seed = self.hash_seed.as_deref().unwrap_or(VLLM_SEED);
                Hasher::vllm(self.algorithm, form, Some(seed))
                    .map(|hasher| Scheme::Chained(Arc::new(hasher)))
                    .map_err(|error| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_groups() {
        let group = SecondGroup::parse("sliding_window:1024").unwrap();
        assert_eq!(
            (group.kind.as_str(), group.window),
            ("sliding_window", 1024)
        );
        for wrong in ["", "mamba", "mamba:0", "mamba:x", "full_attention:4"] {
            assert!(SecondGroup::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn vllm_s_json_and_its_rule_of_who_binds() {
        let parse = |text: &str| KvEventsConfig::parse(text).unwrap().unwrap();
        assert!(parse("{}").bind);
        assert!(!parse(r#"{"endpoint":"tcp://10.0.0.1:5557"}"#).bind);
        assert!(parse(r#"{"endpoint":"tcp://10.0.0.1:5557","bind":true}"#).bind);
        let two = parse(r#"{"replay_endpoint":"tcp://*:6000"}"#)
            .offset(2)
            .unwrap();
        assert_eq!(two.endpoint.to_string(), "tcp://*:5559");
        assert_eq!(two.replay_endpoint.unwrap().to_string(), "tcp://*:6002");
        assert!(
            KvEventsConfig::parse(r#"{"publisher":"null"}"#)
                .unwrap()
                .is_none()
        );
        for wrong in [
            r#"{"endpoint":"5557"}"#,
            r#"{"buffer_steps":0}"#,
            r#"{"endpont":"x"}"#,
            r#"{"publisher":"kafka"}"#,
        ] {
            assert!(KvEventsConfig::parse(wrong).is_err(), "{wrong}");
        }
    }
}
