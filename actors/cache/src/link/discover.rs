//! Where an engine publishes, from what it says of itself.
//!
//! vLLM from 0.31 on answers `GET /kv_event_sources` with one configuration for each data-parallel rank; SGLang's
//! `GET /server_info` has one `kv_events` object from which rank r is r ports on. Wildcard hosts mean the engine's own.

use super::address::Address;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Ranks that are believed.
const MAX_RANKS: u32 = 4096;

/// One stream of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSource {
    /// Data-parallel rank.
    pub rank: u32,
    /// Where its batches are published.
    pub events: Address,
    /// Where it answers replay requests.
    pub replay: Option<Address>,
    /// The topic it publishes with.
    pub topic: String,
    /// Tokens in a block, if it says so.
    pub block_size: Option<u32>,
}

/// The answer does not say where events are.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// It is not the JSON that it should be.
    #[error("the engine's answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// An endpoint in it cannot be used.
    #[error(transparent)]
    Address(#[from] super::AddressError),
    /// Something else in it cannot be.
    #[error("the engine's answer makes no sense: {0}")]
    Nonsense(&'static str),
}

#[derive(Deserialize)]
struct VllmConfig {
    #[serde(default)]
    enable_kv_cache_events: Option<bool>,
    #[serde(default)]
    publisher: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    replay_endpoint: Option<String>,
    #[serde(default)]
    topic: Option<String>,
}

/// Reads vLLM's `/kv_event_sources`. `host` is the engine's. Empty when it publishes none.
pub fn vllm_event_sources(body: &[u8], host: &str) -> Result<Vec<EventSource>, DiscoverError> {
    let configs: BTreeMap<String, VllmConfig> = serde_json::from_slice(body)?;
    let mut sources = Vec::new();
    for (rank, config) in configs {
        let rank = rank
            .parse()
            .ok()
            .filter(|rank| *rank < MAX_RANKS)
            .ok_or(DiscoverError::Nonsense("a rank is no small number"))?;
        let off = config.enable_kv_cache_events == Some(false)
            || config.publisher.as_deref() == Some("null");
        let (Some(endpoint), false) = (config.endpoint, off) else {
            continue;
        };
        let replay = match config.replay_endpoint.as_deref() {
            None | Some("") => None,
            Some(replay) => Some(Address::parse(replay)?.at_host(host)),
        };
        sources.push(EventSource {
            rank,
            events: Address::parse(&endpoint)?.at_host(host),
            replay,
            topic: config.topic.unwrap_or_default(),
            block_size: None,
        });
    }
    sources.sort_by_key(|source| source.rank);
    Ok(sources)
}

#[derive(Deserialize)]
struct ServerInfo {
    kv_events: Option<SglangEvents>,
}

#[derive(Deserialize)]
struct SglangEvents {
    #[serde(default)]
    publisher: Option<String>,
    endpoint_host: String,
    endpoint_port_base: u16,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    block_size: Option<u32>,
    #[serde(default)]
    dp_size: Option<u32>,
    #[serde(default)]
    replay_endpoint_port_base: Option<u16>,
}

/// Reads SGLang's `/server_info`. `host` is the engine's. Empty when it publishes none.
pub fn server_info(body: &[u8], host: &str) -> Result<Vec<EventSource>, DiscoverError> {
    let info: ServerInfo = serde_json::from_slice(body)?;
    let Some(events) = info.kv_events else {
        return Ok(Vec::new());
    };
    if events.publisher.as_deref() == Some("null") {
        return Ok(Vec::new());
    }
    let ranks = events.dp_size.unwrap_or(1).max(1);
    if ranks > MAX_RANKS {
        return Err(DiscoverError::Nonsense("too many ranks"));
    }
    let at = |port: u16, rank: u32| {
        Address::Tcp {
            host: events.endpoint_host.trim_matches(['[', ']']).to_owned(),
            port,
        }
        .at_host(host)
        .offset(rank)
        .ok_or(DiscoverError::Nonsense("a rank's port does not exist"))
    };
    (0..ranks)
        .map(|rank| {
            Ok(EventSource {
                rank,
                events: at(events.endpoint_port_base, rank)?,
                replay: events
                    .replay_endpoint_port_base
                    .map(|base| at(base, rank))
                    .transpose()?,
                topic: events.topic.clone().unwrap_or_default(),
                block_size: events.block_size,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_says_each_rank() {
        let body = br#"{"1":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://10.0.0.3:40001","replay_endpoint":null,"topic":""},
            "0":{"publisher":"zmq","endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:6557","buffer_steps":10000,"topic":"kv"}}"#;
        let sources = vllm_event_sources(body, "gpu-7").unwrap();
        assert_eq!(sources.len(), 2);
        assert_eq!(sources[0].events.to_string(), "tcp://gpu-7:5557");
        assert_eq!(
            sources[0].replay.as_ref().unwrap().to_string(),
            "tcp://gpu-7:6557"
        );
        assert_eq!((sources[1].rank, &sources[1].replay), (1, &None));
        assert!(vllm_event_sources(b"{}", "h").unwrap().is_empty());
        assert!(vllm_event_sources(br#"{"x":{"endpoint":"tcp://h:1"}}"#, "h").is_err());
        assert!(vllm_event_sources(br#"{"0":{"endpoint":"h"}}"#, "h").is_err());
    }

    #[test]
    fn sglang_counts_ports_up() {
        let body = br#"{"version":"0.5.23","kv_events":{"publisher":"zmq","endpoint_host":"*","endpoint_port_base":5557,"topic":"","block_size":64,"dp_size":2,"replay_endpoint_port_base":6557}}"#;
        let sources = server_info(body, "fd00::7").unwrap();
        assert_eq!(sources[1].events.to_string(), "tcp://[fd00::7]:5558");
        assert_eq!(
            sources[1].replay.as_ref().unwrap().to_string(),
            "tcp://[fd00::7]:6558"
        );
        assert_eq!(sources[0].block_size, Some(64));
        assert!(server_info(br#"{"version":"1"}"#, "h").unwrap().is_empty());
        assert!(
            server_info(
                br#"{"kv_events":{"endpoint_host":"h","endpoint_port_base":65535,"dp_size":2}}"#,
                "h"
            )
            .is_err()
        );
    }
}
