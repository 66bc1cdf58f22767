//! The load exchange: what every node has in flight on every endpoint, and what owners know of their engines.
//!
//! Each node opens one stream to each peer ([`client`]) and takes one from each ([`server`]). What came in is in the
//! [`table::Table`], what goes out in the [`outbox::Outbox`]; both are pure. A node is alive as long as its stream here is.

pub mod actor;
pub mod client;
pub mod outbox;
pub mod server;
pub mod table;

use quorate_proto::{peer::v1 as wire, v1};
use quorate_routing::{AdapterLoad, CacheShape, Health, LoadFigures, ServedModel};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// A known node other than this one.
#[derive(Clone)]
pub struct Peer {
    /// Its id.
    pub node_id: u64,
    /// Its region.
    pub region: Arc<str>,
    /// Its `host:port`; a peer with another address gets a new stream.
    pub address: Arc<str>,
    /// Gives a channel to it. Called for every attempt to open a stream; a channel that connects by itself may be handed
    /// out again and again.
    pub connect: Arc<dyn Fn() -> Channel + Send + Sync>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("node_id", &self.node_id)
            .field("region", &self.region)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// How often a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Least time between two messages while something changes.
    pub gap: Duration,
    /// The same while heavy requests are placed. As long as the gap: no hurry.
    pub hurry: Duration,
    /// Longest time without a message.
    pub keep_alive: Duration,
    /// A stream without a message for this long is dead.
    pub silence: Duration,
}

/// Paces within the region and to other regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Peers of the same region.
    pub near: Pace,
    /// Peers of other regions.
    pub far: Pace,
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            near: Pace {
                gap: ms(25),
                hurry: ms(1),
                keep_alive: ms(250),
                silence: ms(1_000),
            },
            far: Pace {
                gap: ms(250),
                hurry: ms(250),
                keep_alive: ms(1_000),
                silence: ms(5_000),
            },
        }
    }
}

/// One incarnation of an endpoint: what counts and reports are about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Name of the endpoint.
    pub name: Arc<str>,
    /// Its incarnation.
    pub incarnation: u64,
}

impl Key {
    /// A key from its parts.
    pub fn new(name: &str, incarnation: u64) -> Self {
        Self {
            name: name.into(),
            incarnation,
        }
    }
}

/// What the owner of an endpoint knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The verdict.
    pub health: Health,
    /// The engine's figures.
    pub load: LoadFigures,
    /// LoRA adapters at work.
    pub adapters: AdapterLoad,
    /// Size of the KV cache.
    pub cache: Option<CacheShape>,
    /// When they were read (ms of this process's clock); 0: never.
    pub read_at: u64,
    /// What it serves.
    pub models: Vec<ServedModel>,
    /// Why it is not ready, or the last trouble.
    pub last_error: String,
    /// What is wrong and keeps nobody from using it, each with a name.
    pub conditions: Vec<String>,
    /// The engine if known.
    pub engine: v1::Engine,
    /// Held back because it made no progress.
    pub stalled: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            health: Health::Unknown,
            load: LoadFigures::default(),
            adapters: AdapterLoad::default(),
            cache: None,
            read_at: 0,
            models: Vec::new(),
            last_error: String::new(),
            conditions: Vec::new(),
            engine: v1::Engine::Unspecified,
            stalled: false,
        }
    }
}

/// Age that says "never read".
const NEVER: u32 = u32::MAX;

impl Report {
    /// Reads a message that came at `now`; `None` if the sender withdraws its report.
    pub fn from_proto(report: &wire::LoadReport, now: u64) -> Option<Self> {
        let text = |t: &String| Some(t.clone()).filter(|t| !t.is_empty());
        Some(Self {
            health: match report.state {
                0 => return None,
                1 => Health::Ready,
                3 => Health::Unhealthy,
                _ => Health::Unknown,
            },
            load: LoadFigures {
                running: report.running,
                waiting: report.waiting,
                kv_cache_usage: report.kv_cache_usage.map(|u| u as f32),
            },
            adapters: AdapterLoad {
                running: report.running_adapters.clone(),
                waiting: report.waiting_adapters.clone(),
                max: report.max_adapters,
            },
            cache: (report.cache_block_tokens > 0).then_some(CacheShape {
                block_tokens: report.cache_block_tokens,
                blocks: report.cache_blocks,
            }),
            read_at: match report.age_ms {
                NEVER => 0,
                age => now.saturating_sub(u64::from(age)).max(1),
            },
            models: report
                .models
                .iter()
                .map(|m| ServedModel {
                    id: m.id.clone(),
                    parent: text(&m.parent),
                    root: text(&m.root),
                    owned_by: text(&m.owned_by),
                    created: m.created,
                    max_model_len: Some(m.max_model_len).filter(|len| *len > 0),
                })
                .collect(),
            last_error: report.last_error.clone(),
            conditions: report.conditions.clone(),
            engine: i32::try_from(report.engine)
                .ok()
                .and_then(|e| v1::Engine::try_from(e).ok())
                .unwrap_or_default(),
            stalled: report.stalled,
        })
    }

    /// The message for a report, or for its withdrawal.
    pub fn to_proto(report: Option<&Self>, key: &Key, now: u64) -> wire::LoadReport {
        let mut message = wire::LoadReport {
            endpoint: key.name.to_string(),
            incarnation: key.incarnation,
            age_ms: NEVER,
            ..Default::default()
        };
        let Some(r) = report else { return message };
        message.state = match r.health {
            Health::Ready => 1,
            Health::Unknown => 2,
            Health::Unhealthy => 3,
        };
        message.running = r.load.running;
        message.waiting = r.load.waiting;
        message.kv_cache_usage = r.load.kv_cache_usage.map(f64::from);
        message.running_adapters.clone_from(&r.adapters.running);
        message.waiting_adapters.clone_from(&r.adapters.waiting);
        message.max_adapters = r.adapters.max;
        if let Some(cache) = r.cache {
            message.cache_block_tokens = cache.block_tokens;
            message.cache_blocks = cache.blocks;
        }
        if r.read_at > 0 {
            message.age_ms = u32::try_from(now.saturating_sub(r.read_at)).unwrap_or(NEVER - 1);
        }
        message.models = r
            .models
            .iter()
            .map(|m| wire::ServedModel {
                id: m.id.clone(),
                parent: m.parent.clone().unwrap_or_default(),
                root: m.root.clone().unwrap_or_default(),
                owned_by: m.owned_by.clone().unwrap_or_default(),
                created: m.created,
                max_model_len: m.max_model_len.unwrap_or(0),
            })
            .collect();
        message.last_error = r.last_error.clone();
        message.conditions.clone_from(&r.conditions);
        message.engine = u32::try_from(r.engine as i32).unwrap_or(0);
        message.stalled = r.stalled;
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_wire() {
        let key = Key::new("e", 7);
        let report = Report {
            health: Health::Unhealthy,
            load: LoadFigures {
                running: Some(3),
                waiting: None,
                kv_cache_usage: Some(0.5),
            },
            adapters: AdapterLoad {
                running: vec!["a".into()],
                waiting: vec!["b".into()],
                max: 4,
            },
            cache: Some(CacheShape {
                block_tokens: 16,
                blocks: 0,
            }),
            read_at: 900,
            models: vec![ServedModel {
                id: "lora".into(),
                parent: Some("base".into()),
                created: 5,
                max_model_len: Some(4096),
                ..Default::default()
            }],
            last_error: "stalled".into(),
            conditions: vec!["KvEventsSilent: nothing".into()],
            engine: v1::Engine::Sglang,
            stalled: true,
        };
        let message = Report::to_proto(Some(&report), &key, 1000);
        assert_eq!((message.age_ms, message.incarnation), (100, 7));
        // The receiver's clock is another one.
        let expected = Report {
            read_at: 5_400,
            ..report
        };
        assert_eq!(Report::from_proto(&message, 5_500), Some(expected));
        let never = Report::to_proto(Some(&Report::default()), &key, 1000);
        assert_eq!(Report::from_proto(&never, 9), Some(Report::default()));
        assert_eq!(
            Report::from_proto(&Report::to_proto(None, &key, 1000), 9),
            None
        );
    }
}
