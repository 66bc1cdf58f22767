//! One endpoint as the hot path sees it: fixed facts, and atomics that actors and gateway write.

mod cache_use;
mod engine_facts;
mod facts;
mod rates;
mod reservation;
pub mod slot;
#[cfg(test)]
pub(crate) mod tests;

pub use cache_use::{CacheTotals, CacheUse};
pub use engine_facts::{AdapterLoad, CacheShape};
pub use facts::EndpointFacts;
pub use rates::{FarTier, PromptWork, Rate, Rates};
pub use reservation::{Failure, Reservation};

use crate::breaker::{Admission, Breaker, BreakerPolicy, BreakerState};
use crate::target::Target;
use crate::turns::Turn;
use arc_swap::ArcSwap;
use slot::Slot;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What is fixed for one incarnation of an endpoint. Anything that changes here makes a new [`Endpoint`].
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSpec {
    /// Name of the endpoint resource.
    pub name: Arc<str>,
    /// Fixed by the create of the resource; counts and reports are keyed by (name, incarnation).
    pub incarnation: u64,
    /// Name of its pool.
    pub pool: Arc<str>,
    /// Where it listens.
    pub target: Target,
    /// Speaks HTTP/2 without TLS (`kubernetes.io/h2c`).
    pub h2c: bool,
    /// Its region.
    pub region: Arc<str>,
    /// Data-parallel rank.
    pub rank: Option<u32>,
    /// Labels of the resource.
    pub labels: BTreeMap<String, String>,
    /// When the request path stops using it.
    pub breaker: BreakerPolicy,
    /// Ramp after recovery.
    pub slow_start: Duration,
    /// Requests in flight and no byte for this long: stalled.
    pub stall_timeout: Duration,
}

/// What the owner's probes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not probed yet, or the owner is gone and nobody took over so far.
    Unknown = 0,
    /// Answers.
    Ready = 1,
    /// Does not answer, answers badly, or makes no progress.
    Unhealthy = 2,
}

/// A row of the engine's `/v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedModel {
    /// Name that requests use.
    pub id: String,
    /// Base model, for a LoRA adapter.
    pub parent: Option<String>,
    /// Where the weights come from.
    pub root: Option<String>,
    /// Owner as the engine says it.
    pub owned_by: Option<String>,
    /// Unix seconds.
    pub created: i64,
    /// Longest context in tokens.
    pub max_model_len: Option<u64>,
}

/// The engine's own figures, as last read from its metrics page by the endpoint's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadFigures {
    /// Requests in the running batch.
    pub running: Option<u32>,
    /// Requests in the engine's queue.
    pub waiting: Option<u32>,
    /// Share of KV-cache blocks in use, 0 to 1.
    pub kv_cache_usage: Option<f32>,
}

/// Told at once about what the gateway finds out, so that the endpoint's actor need not poll. Must not block.
pub trait EndpointObserver: Send + Sync {
    /// The breaker opened or reopened.
    fn breaker_opened(&self, endpoint: &Endpoint, why: Failure);
    /// A trial request succeeded and the breaker closed.
    fn breaker_closed(&self, endpoint: &Endpoint);
    /// A reservation of so many prompt tokens began, or one ended (0). Called for every request, on its worker: for most of them not more
    /// than a flag may be set here, for a heavy one a lock held for a moment.
    fn in_flight_changed(&self, _began: u64) {}
    /// A turn to place a heavy request on one of the endpoints that this observer has; `None`: there is no need to wait.
    fn turn(&self) -> Option<Turn> {
        None
    }
}

/// Why an endpoint takes no (or less) traffic. Its `Display` is what `describe` shows.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotUsed {
    /// An operator or a shutdown drains it.
    #[error("draining: takes no new requests")]
    Draining,
    /// The owner's probes fail.
    #[error("unhealthy: the owner's health probes fail or it makes no progress")]
    Unhealthy,
    /// The gateway of the answering node saw failures.
    #[error("circuit breaker {}: requests from this node failed", .0.as_str())]
    Breaker(BreakerState),
    /// Never probed; used only when no ready endpoint is there.
    #[error("not probed yet: used only while no ready endpoint is there")]
    Unknown,
    /// Recovered a short time ago.
    #[error("slow start: takes {0} % of its share")]
    SlowStart(u32),
}

/// No load figure known.
const NONE: u32 = u32::MAX;

/// What every pick reads and every request writes, in one cache line of its own.
#[repr(align(64))]
struct Hot {
    health: AtomicU8,
    draining: AtomicBool,
    local_in_flight: AtomicU32,
    remote_in_flight: AtomicU32,
    running: AtomicU32,
    waiting: AtomicU32,
    /// f32 bits; `NONE`'s bit pattern is a NaN and stands for "not known".
    kv_cache_usage: AtomicU32,
    /// Requests of all nodes in flight when the engine's figures were set.
    in_flight_at_load: AtomicU32,
    local_tokens: AtomicU64,
    remote_tokens: AtomicU64,
    load_at: AtomicU64,
    /// When it became ready again; 0: no ramp under way.
    ramp_from: AtomicU64,
}

/// Everything that a pick wants to know of an endpoint's load, read once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadSnapshot {
    /// The engine's figures as last read; `None`: never read, or not among them.
    pub figures: LoadFigures,
    /// Age of the figures in milliseconds; `None`: never read.
    pub age_ms: Option<u64>,
    /// Requests of all nodes in flight now.
    pub in_flight: u32,
    /// The same when the figures were set.
    pub in_flight_at_load: u32,
    /// Prompt tokens of requests whose answer has not begun, all nodes.
    pub tokens: u64,
}

/// Shared by the gateway (reads, reserves, observes) and the endpoint's actors (write health and load).
pub struct Endpoint {
    hot: Hot,
    breaker: Breaker,
    slot: Slot,
    spec: EndpointSpec,
    observer: Option<Arc<dyn EndpointObserver>>,
    progress_at: AtomicU64,
    models: ArcSwap<Vec<ServedModel>>,
    adapters: ArcSwap<AdapterLoad>,
    cache_shape: AtomicU64,
    rates: Rates,
    cache_use: CacheUse,
    facts: OnceLock<Arc<EndpointFacts>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("name", &self.spec.name)
            .field("incarnation", &self.spec.incarnation)
            .field("target", &self.spec.target.authority)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An endpoint of which nothing is known yet.
    pub fn new(spec: EndpointSpec, observer: Option<Arc<dyn EndpointObserver>>) -> Self {
        Self {
            hot: Hot {
                health: AtomicU8::new(Health::Unknown as u8),
                draining: AtomicBool::new(false),
                local_in_flight: AtomicU32::new(0),
                remote_in_flight: AtomicU32::new(0),
                running: AtomicU32::new(NONE),
                waiting: AtomicU32::new(NONE),
                kv_cache_usage: AtomicU32::new(NONE),
                in_flight_at_load: AtomicU32::new(0),
                local_tokens: AtomicU64::new(0),
                remote_tokens: AtomicU64::new(0),
                load_at: AtomicU64::new(0),
                ramp_from: AtomicU64::new(0),
            },
            breaker: Breaker::new(spec.breaker),
            slot: Slot::claim(),
            spec,
            observer,
            progress_at: AtomicU64::new(0),
            models: ArcSwap::default(),
            adapters: ArcSwap::default(),
            cache_shape: AtomicU64::new(0),
            rates: Rates::default(),
            cache_use: CacheUse::default(),
            facts: OnceLock::new(),
        }
    }

    /// Its fixed facts.
    pub fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    /// Its fixed facts as records keep them.
    pub fn facts(&self) -> &Arc<EndpointFacts> {
        self.facts.get_or_init(|| Arc::new((&self.spec).into()))
    }

    /// Its resource name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its place in tables that are kept by endpoint; another one for each incarnation.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    // === written by the endpoint's actors ===

    /// What the owner's probes say. Ready after unhealthy starts the ramp and lets the breaker try at once.
    pub fn set_health(&self, health: Health, now: u64) {
        let before = self.hot.health.swap(health as u8, Relaxed);
        if health == Health::Ready {
            if before == Health::Unhealthy as u8 {
                self.hot.ramp_from.store(now, Relaxed);
            }
            self.breaker.probe_succeeded(now);
        }
    }

    /// Stops or resumes new requests.
    pub fn set_draining(&self, draining: bool) {
        self.hot.draining.store(draining, Relaxed);
    }

    /// New figures from the engine, read at `now`.
    pub fn set_load(&self, load: LoadFigures, now: u64) {
        self.hot
            .running
            .store(load.running.unwrap_or(NONE), Relaxed);
        self.hot
            .waiting
            .store(load.waiting.unwrap_or(NONE), Relaxed);
        let usage = load.kv_cache_usage.filter(|u| u.is_finite());
        self.hot
            .kv_cache_usage
            .store(usage.map_or(NONE, f32::to_bits), Relaxed);
        // The same reading told again says nothing about what is in flight now.
        if self.hot.load_at.swap(now, Relaxed) != now {
            self.hot
                .in_flight_at_load
                .store(self.total_in_flight(), Relaxed);
        }
    }

    /// LoRA adapters that are loaded or waited for, as the engine says.
    pub fn set_adapter_load(&self, adapters: AdapterLoad) {
        if **self.adapters.load() != adapters {
            self.adapters.store(Arc::new(adapters));
        }
    }

    /// Size of the engine's KV cache.
    pub fn set_cache_shape(&self, shape: CacheShape) {
        self.cache_shape.store(shape.pack(), Relaxed);
    }

    /// Requests that the other nodes of the region have in flight here, summed.
    pub fn set_remote_in_flight(&self, requests: u32) {
        self.hot.remote_in_flight.store(requests, Relaxed);
    }

    /// Prompt tokens that the other nodes of the region have sent here and not seen answered, summed.
    pub fn set_remote_tokens(&self, tokens: u64) -> u64 {
        self.hot.remote_tokens.swap(tokens, Relaxed)
    }

    /// What it serves. An empty list means "not known".
    pub fn set_models(&self, models: Vec<ServedModel>) {
        self.models.store(Arc::new(models));
    }

    // === read by everybody ===

    /// What the owner's probes said last.
    pub fn health(&self) -> Health {
        match self.hot.health.load(Relaxed) {
            1 => Health::Ready,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// Takes no new requests.
    pub fn is_draining(&self) -> bool {
        self.hot.draining.load(Relaxed)
    }

    /// State of this node's breaker.
    pub fn breaker_state(&self, now: u64) -> BreakerState {
        self.breaker.state(now)
    }

    /// Requests of this node in flight.
    pub fn local_in_flight(&self) -> u32 {
        self.hot.local_in_flight.load(Relaxed)
    }

    /// Requests of all nodes of the region in flight.
    pub fn total_in_flight(&self) -> u32 {
        self.local_in_flight()
            .saturating_add(self.hot.remote_in_flight.load(Relaxed))
    }

    /// Prompt tokens of this node's requests whose answer has not begun.
    pub fn local_tokens(&self) -> u64 {
        self.hot.local_tokens.load(Relaxed)
    }

    /// Prompt tokens of all nodes' requests whose answer has not begun.
    pub fn total_tokens(&self) -> u64 {
        self.local_tokens()
            .saturating_add(self.hot.remote_tokens.load(Relaxed))
    }

    /// LoRA adapters that are loaded or waited for, as last read.
    pub fn adapter_load(&self) -> arc_swap::Guard<Arc<AdapterLoad>> {
        self.adapters.load()
    }

    /// Size of its KV cache, if the engine says.
    pub fn cache_shape(&self) -> Option<CacheShape> {
        CacheShape::unpack(self.cache_shape.load(Relaxed))
    }

    /// All of its load at once, for a pick.
    pub fn load_snapshot(&self, now: u64) -> LoadSnapshot {
        let (figures, age_ms) = match self.load(now) {
            Some((figures, age)) => (figures, Some(age)),
            None => (LoadFigures::default(), None),
        };
        LoadSnapshot {
            figures,
            age_ms,
            in_flight: self.total_in_flight(),
            in_flight_at_load: self.hot.in_flight_at_load.load(Relaxed),
            tokens: self.total_tokens(),
        }
    }

    /// The engine's own figures and their age in milliseconds; `None` if never read.
    pub fn load(&self, now: u64) -> Option<(LoadFigures, u64)> {
        let at = self.hot.load_at.load(Relaxed);
        let known = |v: &AtomicU32| Some(v.load(Relaxed)).filter(|v| *v != NONE);
        (at != 0).then(|| {
            let figures = LoadFigures {
                running: known(&self.hot.running),
                waiting: known(&self.hot.waiting),
                kv_cache_usage: known(&self.hot.kv_cache_usage).map(f32::from_bits),
            };
            (figures, now.saturating_sub(at))
        })
    }

    /// What it serves; empty: not known.
    pub fn models(&self) -> Arc<Vec<ServedModel>> {
        self.models.load_full()
    }

    /// Last time a byte of a response came from it (ms, [`crate::now_ms`]); 0: never.
    pub fn progress_at(&self) -> u64 {
        self.progress_at.load(Relaxed)
    }

    /// Everything that keeps it from taking its full share, for people. Empty: nothing does.
    pub fn reasons(&self, now: u64) -> Vec<NotUsed> {
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push(NotUsed::Draining);
        }
        match self.health() {
            Health::Unhealthy => reasons.push(NotUsed::Unhealthy),
            Health::Unknown => reasons.push(NotUsed::Unknown),
            Health::Ready => {}
        }
        match self.breaker.state(now) {
            BreakerState::Closed => {}
            state => reasons.push(NotUsed::Breaker(state)),
        }
        let share = self.share_percent(now);
        if share < 100 {
            reasons.push(NotUsed::SlowStart(share));
        }
        reasons
    }

    /// Preference class for a pick at `now`: 0 ready, 1 unknown; `None` if it must not be used.
    pub fn tier(&self, now: u64) -> Option<u8> {
        if self.is_draining() || self.breaker.state(now) == BreakerState::Open {
            return None;
        }
        match self.health() {
            Health::Ready => Some(0),
            Health::Unknown => Some(1),
            Health::Unhealthy => None,
        }
    }

    /// How busy it is, for comparing endpoints: what is reserved here at once, corrected upwards by what the engine itself
    /// reported no longer than `fresh_ms` ago (it also serves others), with its queue counted twice, and scaled by the
    /// slow-start share. A reading is carried on by what has begun and ended since: taken as it is, it would keep all routers away
    /// from an endpoint that has been idle since, until the next reading turns them all round. Stale figures count for nothing:
    /// unknown is not full.
    pub fn busyness(&self, now: u64, fresh_ms: u64) -> u64 {
        let reserved = u64::from(self.total_in_flight());
        let reported = match self.load(now) {
            Some((load, age)) if age <= fresh_ms => {
                let then = u64::from(self.hot.in_flight_at_load.load(Relaxed));
                let carry_on = |figure: u64| (figure + reserved).saturating_sub(then);
                let waiting = u64::from(load.waiting.unwrap_or(0));
                let running = u64::from(load.running.unwrap_or(0));
                let queue = if waiting > 0 { carry_on(waiting) } else { 0 };
                reserved.max(carry_on(running + waiting)) + queue
            }
            _ => reserved,
        };
        // One more, so that an idle endpoint in its ramp is still behind an idle one that is not.
        (reported + 1) * 100 / u64::from(self.share_percent(now).max(1))
    }

    /// 100, or less within the ramp after recovery: from 10 to 100 over the slow-start time.
    pub fn share_percent(&self, now: u64) -> u32 {
        let from = self.hot.ramp_from.load(Relaxed);
        let ramp = u64::try_from(self.spec.slow_start.as_millis()).unwrap_or(u64::MAX);
        if from == 0 || ramp == 0 {
            return 100;
        }
        let passed = now.saturating_sub(from);
        if passed >= ramp {
            return 100;
        }
        10 + u32::try_from(passed.saturating_mul(90) / ramp).unwrap_or(90)
    }

    // === used by the gateway ===

    /// Counts one request in, unless the breaker refuses it (half-open with a trial under way, or opened meanwhile).
    pub fn reserve(self: &Arc<Self>, now: u64) -> Option<Reservation> {
        self.reserve_with(now, 0)
    }

    /// The same for a request of which `tokens` prompt tokens are still to be computed: they count until the answer begins.
    pub fn reserve_with(self: &Arc<Self>, now: u64, tokens: u64) -> Option<Reservation> {
        let trial = match self.breaker.admit(now) {
            Admission::Normal => false,
            Admission::Trial => true,
            Admission::Refused => return None,
        };
        if self.hot.local_in_flight.fetch_add(1, Relaxed) == 0 {
            // An idle engine made no progress because nobody asked it to: the stall clock starts now.
            self.progress_at.store(now, Relaxed);
        }
        self.hot.local_tokens.fetch_add(tokens, Relaxed);
        self.tell_in_flight(tokens);
        Some(Reservation::new(self, trial, tokens))
    }
}
