//! What a server keeps across crashes: configuration, live settings, faults, statistics.

use crate::asked::AskedLog;
use crate::config::SimConfig;
use crate::engine::latency::FixedLatency;
use crate::engine::tiers::TierCount;
use crate::fault::{FailureInjection, Faults, RequestFault};
use crate::fleet::{Fleet, OracleCounts};
use crate::kv_events::Publisher;
use crate::live::{Live, Load};
use crate::metrics::fake::FakeMetrics;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Paths counted by name before the rest goes under one name.
const MAX_UNKNOWN_PATHS: usize = 100;

/// Settings that `POST /admin/config` changes.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Random error answers.
    pub failures: FailureInjection,
    /// Fake figures on the metrics page.
    pub fake_metrics: Option<FakeMetrics>,
    /// Figures of the fixed time model, when it runs.
    pub latency: Option<FixedLatency>,
}

/// Counts since the process began.
#[derive(Debug, Default)]
pub struct Stats {
    /// Generation requests.
    pub requests: AtomicU64,
    /// Of these, streams.
    pub streams: AtomicU64,
    /// Sequences given up by their clients.
    pub aborted: AtomicU64,
    /// Answers with a status of 400 and above.
    pub errors: AtomicU64,
    /// Requests that suffered a fault.
    pub faulted: AtomicU64,
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections open now.
    pub open_connections: AtomicU64,
    /// Crashes.
    pub crashes: AtomicU64,
}

/// One server across its crashes.
pub struct Shared {
    /// The configuration.
    pub config: SimConfig,
    /// Address it listens on.
    pub addr: SocketAddr,
    /// Health lies: the engine stands still.
    pub lying: AtomicBool,
    /// Settings that change live.
    pub settings: Mutex<Settings>,
    /// Counts.
    pub stats: Stats,
    /// Woken to crash.
    pub crash: Notify,
    /// Publishes KV events.
    pub events: Option<Arc<Publisher>>,
    /// The servers of this process.
    pub fleet: Arc<Fleet>,
    /// What arrived here against the best choice.
    pub oracle: OracleCounts,
    /// The latest requests.
    pub asked: AskedLog,
    /// The incarnation that runs.
    pub live: Mutex<Option<Arc<Live>>>,
    faults: Mutex<Faults>,
    rng: Mutex<fastrand::Rng>,
    unknown: Mutex<BTreeMap<String, u64>>,
    next_id: AtomicU64,
}

impl Shared {
    /// A server that is about to start.
    pub fn new(
        config: SimConfig,
        events: Option<Arc<Publisher>>,
        fleet: Arc<Fleet>,
        addr: SocketAddr,
    ) -> Self {
        let latency = match &config.engine.latency {
            crate::engine::latency::Latency::Fixed(fixed) => Some(fixed.clone()),
            crate::engine::latency::Latency::Batched(_) => None,
        };
        Shared {
            addr,
            events,
            fleet,
            oracle: OracleCounts::default(),
            asked: AskedLog::default(),
            lying: AtomicBool::new(config.faults.lying_health),
            settings: Mutex::new(Settings {
                failures: config.failures.clone(),
                fake_metrics: config.fake_metrics.clone(),
                latency,
            }),
            stats: Stats::default(),
            crash: Notify::new(),
            live: Mutex::new(None),
            faults: Mutex::new(config.faults.clone()),
            rng: Mutex::new(fastrand::Rng::with_seed(config.seed ^ 0x6661_756c_7473)),
            unknown: Mutex::new(BTreeMap::new()),
            next_id: AtomicU64::new(0),
            config,
        }
    }

    /// The faults in force.
    pub fn faults(&self) -> Faults {
        self.faults.lock().clone()
    }

    /// Replaces the faults. One that crashes after no token at all crashes the server now.
    pub fn set_faults(&self, faults: Faults) {
        use crate::fault::{Cut, CutAction};
        let now = faults.cut
            == Some(Cut {
                after: 0,
                action: CutAction::Crash,
            });
        self.lying.store(faults.lying_health, Ordering::Relaxed);
        *self.faults.lock() = faults;
        if let Some(live) = self.live.lock().as_ref() {
            live.kick();
        }
        if now {
            self.crash.notify_one();
        }
    }

    /// Crashes the server because a request says so.
    pub fn crash_for(&self, fault: &RequestFault) {
        if fault.restart_after.is_some() {
            self.faults.lock().restart_after = fault.restart_after;
        }
        self.crash.notify_one();
    }

    /// After a crash: the fault that caused it is spent, the others stay.
    pub fn spend_crash(&self) -> Option<std::time::Duration> {
        let mut faults = self.faults.lock();
        faults.cut = faults
            .cut
            .filter(|cut| cut.action != crate::fault::CutAction::Crash);
        faults.restart_after.take()
    }

    /// Draws what the next request suffers. `override_with` are the request's own faults.
    pub fn draw_fault(&self, override_with: Option<Faults>, generation: bool) -> RequestFault {
        let fault = match override_with {
            Some(mut own) => own.draw(&mut self.rng.lock()),
            None => {
                let mut faults = self.faults.lock();
                if generation || faults.all_paths {
                    faults.draw(&mut self.rng.lock())
                } else {
                    RequestFault::default()
                }
            }
        };
        if fault != RequestFault::default() {
            self.stats.faulted.fetch_add(1, Ordering::Relaxed);
        }
        fault
    }

    /// Draws a random error answer.
    pub fn draw_failure(&self) -> Option<crate::fault::FailureType> {
        let settings = self.settings.lock();
        if settings.failures.rate == 0 {
            return None;
        }
        settings.failures.draw(&mut self.rng.lock())
    }

    /// A request id: 32 hex digits, reproducible for a seed.
    pub fn request_id(&self) -> String {
        let count = self.next_id.fetch_add(1, Ordering::Relaxed);
        let id = xxh3_128_with_seed(
            &count.to_le_bytes(),
            self.config.seed ^ u64::from(self.addr.port()),
        );
        format!("{id:032x}")
    }

    /// Counts a request to a path that does not exist.
    pub fn count_unknown(&self, path: &str) {
        let mut unknown = self.unknown.lock();
        let path: String = path.chars().take(200).collect();
        let path = if unknown.len() >= MAX_UNKNOWN_PATHS && !unknown.contains_key(&path) {
            "(other)".into()
        } else {
            path
        };
        *unknown.entry(path).or_default() += 1;
    }

    /// A look at everything that is counted.
    pub fn stats(&self) -> SimStats {
        let load = self
            .live
            .lock()
            .as_ref()
            .map(|live| live.load())
            .unwrap_or_default();
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SimStats {
            requests: get(&self.stats.requests),
            streams: get(&self.stats.streams),
            aborted: get(&self.stats.aborted),
            errors: get(&self.stats.errors),
            faulted: get(&self.stats.faulted),
            connections: get(&self.stats.connections),
            open_connections: get(&self.stats.open_connections),
            crashes: get(&self.stats.crashes),
            load,
            unknown: self.unknown.lock().clone(),
        }
    }
}

/// What `GET /sim/stats` shows.
#[derive(Clone, Debug, Default)]
pub struct SimStats {
    /// Generation requests.
    pub requests: u64,
    /// Of these, streams.
    pub streams: u64,
    /// Sequences given up by their clients.
    pub aborted: u64,
    /// Answers with a status of 400 and above.
    pub errors: u64,
    /// Requests that suffered a fault.
    pub faulted: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// Crashes.
    pub crashes: u64,
    /// What the engine is doing; zero while the server is down.
    pub load: Load,
    /// Requests to paths that do not exist, by path.
    pub unknown: BTreeMap<String, u64>,
}

impl SimStats {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "requests": self.requests,
            "streams": self.streams,
            "aborted": self.aborted,
            "errors": self.errors,
            "faulted": self.faulted,
            "connections": self.connections,
            "open_connections": self.open_connections,
            "crashes": self.crashes,
            "running": self.load.running,
            "waiting": self.load.waiting,
            "cached_blocks": self.load.cached_blocks,
            "used_blocks": self.load.used_blocks,
            "kv_usage": self.load.kv_usage,
            "preemptions": self.load.preemptions,
            "prefix_queries": self.load.prefix_queries,
            "prefix_hits": self.load.prefix_hits,
            "loaded_hits": self.load.loaded_hits,
            "tiers": self.load.tiers.iter().map(tier).collect::<Vec<_>>(),
            "prompt_tokens": self.load.prompt_tokens,
            "generation_tokens": self.load.generation_tokens,
            "unknown": self.unknown,
        })
    }
}

fn tier(count: &TierCount) -> Value {
    json!({
        "medium": format!("{:?}", count.medium).to_lowercase(),
        "blocks": count.blocks,
        "cached_blocks": count.cached,
        "stored_blocks": count.stored,
        "loaded_blocks": count.loaded,
        "load_seconds": count.load_time as f64 * 1e-9,
    })
}
