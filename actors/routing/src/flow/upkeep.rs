//! What happens to the engine from outside of the request path: endpoints seen anew, time passing, another configuration, the end.

use crate::config::{
    ConcurrencyMode, FairnessPolicy, FlowControlConfig, ProgramAware, SaturationDetector,
};
use crate::endpoint::Endpoint;
use crate::flow::control::{FlowControl, FlowStatus};
use crate::flow::core::{Core, bands};
use crate::flow::gate::{Gate, Gates};
use crate::flow::lifetime::Lifetimes;
use crate::flow::meter;
use crate::flow::outcome::Outcome;
use crate::flow::queue::{Queue, micros};
use crate::flow::saturation::{self, EndpointLoad, Load};
use std::sync::Arc;

/// Gauges are published this often (µs).
const PUBLISH: u64 = 250_000;

impl FlowControl {
    /// Looks at the pool's endpoints. To be called when they change, and after their figures have: whoever may go then goes at once.
    pub fn observe(self: &Arc<Self>, endpoints: &[Arc<Endpoint>]) {
        self.observe_parts(endpoints, &[]);
    }

    /// The same where only a part (0 to 1) of each endpoint's capacity is this pool's to use; those without a part are used whole.
    pub fn observe_parts(self: &Arc<Self>, endpoints: &[Arc<Endpoint>], parts: &[f64]) {
        let now = crate::now_ms();
        let detector = self.lock().config.saturation;
        let parts = parts.iter().copied().chain(std::iter::repeat(1.0));
        let loads = endpoints
            .iter()
            .zip(parts)
            .filter_map(|(e, part)| {
                let load = EndpointLoad::read(e, &detector, now)?;
                Some(EndpointLoad { part, ..load })
            })
            .collect();
        self.set_endpoints(loads);
    }

    /// The same for endpoints that somebody else has looked at.
    pub fn set_endpoints(self: &Arc<Self>, endpoints: Vec<EndpointLoad>) {
        let mut wakers = Vec::new();
        let mut core = self.lock();
        let was_empty = core.pool_empty();
        let load = self.pool_load(&core);
        core.budget = saturation::budget(&core.config.saturation, &endpoints, load);
        core.endpoints = endpoints;
        if core.pool_empty() != was_empty {
            core.switched = self.now();
            let (all, now) = (core.drain(), core.switched);
            core.refill(all, now);
        }
        self.publish_gates(&mut core);
        self.pump(&mut core, &mut wakers);
        drop(core);
        self.wake(wakers);
    }

    /// The endpoints as last seen.
    pub fn endpoints(&self) -> Vec<EndpointLoad> {
        self.lock().endpoints.clone()
    }

    /// To be called every 50 ms or so: ends what waited too long, and publishes gauges.
    pub fn tick(self: &Arc<Self>) {
        let now = self.now();
        let mut wakers = Vec::new();
        let mut core = self.lock();
        while let Some((at, id)) = core.timers.first().copied() {
            if at > now {
                break;
            }
            core.timers.pop_first();
            let Some((_, priority, item)) = core.remove(id) else {
                continue;
            };
            if let Some(member) = &mut core.member {
                member.left(id);
                self.mark_dirty();
            }
            let outcome = core.expiry(&item.value);
            wakers.extend(self.settle(&mut core, priority, item, Err(outcome), now));
        }
        self.time_out_orphan(&mut core, now);
        self.pump(&mut core, &mut wakers);
        if now.saturating_sub(core.published) >= PUBLISH {
            core.published = now;
            self.publish_metrics(&mut core, now);
        }
        let timed_out = self.victims.lock().time_out(now);
        if timed_out > 0 {
            meter::revocations(self.pool(), "timed_out", timed_out, None);
        }
        drop(core);
        self.wake(wakers);
    }

    /// Changes the rules. Nobody loses a place; who waits is put in order anew.
    pub fn reconfigure(self: &Arc<Self>, config: FlowControlConfig) {
        let mut wakers = Vec::new();
        let mut core = self.lock();
        if core.config == config {
            return;
        }
        let all = core.drain();
        core.lifetimes = Lifetimes::new(&config);
        let service = std::mem::take(&mut core.queue.service);
        core.queue = Queue::new(&bands(&config));
        core.queue.service = service;
        core.extra_bands.clear();
        core.cycles.clear();
        core.config = config;
        let load = self.pool_load(&core);
        core.budget = saturation::budget(&core.config.saturation, &core.endpoints, load);
        core.refill(all, self.now());
        self.publish_gates(&mut core);
        self.pump(&mut core, &mut wakers);
        drop(core);
        self.wake(wakers);
    }

    /// The router shuts down: nothing is queued any more, and what waits is told so. Permits stay valid.
    pub fn close(self: &Arc<Self>) {
        let now = self.now();
        let mut wakers = Vec::new();
        let mut core = self.lock();
        core.closed = true;
        for (priority, _, item) in core.drain() {
            core.places.release(item.value.id);
            if let Some(member) = &mut core.member {
                member.left(item.value.id);
            }
            let outcome = Err(Outcome::EvictedShuttingDown);
            wakers.extend(self.settle(&mut core, priority, item, outcome, now));
        }
        self.publish_gates(&mut core);
        drop(core);
        self.mark_dirty();
        self.wake(wakers);
    }

    /// How things stand.
    pub fn status(&self) -> FlowStatus {
        let core = self.lock();
        let load = self.pool_load(&core);
        FlowStatus {
            in_flight: self.ledger.load(),
            elsewhere: core
                .member
                .as_ref()
                .map_or(Load::default(), |m| m.elsewhere),
            queued: core
                .queue
                .bands()
                .iter()
                .map(|b| (b.priority(), b.held().requests, b.held().bytes))
                .collect(),
            saturation: core.budget.saturation(load),
            endpoints: core.budget.endpoints,
            shared: core.member.is_some(),
        }
    }

    /// Brings the fast path in line with what the lock guards.
    pub(super) fn publish_gates(&self, core: &mut Core) {
        let (standing, elsewhere, metered) = match &core.member {
            None => (Load::UNLIMITED, Load::default(), false),
            Some(m) => (
                m.standing.unwrap_or_default(),
                m.elsewhere,
                m.standing.is_none(),
            ),
        };
        let mut list = Vec::with_capacity(core.queue.bands().len());
        for index in 0..core.queue.bands().len() {
            let limit = match core.closed {
                true => Load::default(),
                false => core.steady_limit(index).left_after(elsewhere).min(standing),
            };
            let priority = core.queue.bands().get(index).map_or(0, |b| b.priority());
            list.push(Gate {
                priority,
                limit,
                dispatched: core.meter.outcome(priority, Outcome::Dispatched),
            });
        }
        let config = &core.config;
        let gates = Gates {
            bands: list,
            counts_tokens: matches!(
                config.saturation,
                SaturationDetector::Concurrency {
                    mode: ConcurrencyMode::Tokens | ConcurrencyMode::Hybrid,
                    ..
                }
            ),
            evicts: config.eviction,
            tracks_service: tracks_service(config),
        };
        if metered {
            self.ledger.meter(true);
        }
        self.gates.store(Arc::new(gates));
        if !metered {
            self.ledger.meter(false);
        }
    }

    fn publish_metrics(&self, core: &mut Core, now: u64) {
        core.meter.publish();
        let load = self.pool_load(core);
        let (prefill, decode) = core.budget.by_stage(load);
        let detector = match core.config.saturation {
            SaturationDetector::Utilization { .. } => "utilization-detector",
            SaturationDetector::Concurrency { .. } => "concurrency-detector",
        };
        let effective = core.budget.saturation(load);
        let stale = core.budget.stale;
        core.meter
            .saturation(prefill, decode, effective, stale, detector);
        for band in core.queue.bands() {
            let (held, config) = (band.held(), band.config());
            core.meter.capacity(
                band.priority(),
                share(held.requests, config.max_requests),
                share(held.bytes, config.max_bytes),
            );
        }
        let held = core.queue.held();
        core.meter.global_capacity(
            core.config
                .max_requests
                .map(|max| share(held.requests, max)),
            core.config.max_bytes.map(|max| share(held.bytes, max)),
        );
        if core.prune_bands(now) {
            self.publish_gates(core);
        }
        if let Some((ttl, sweep)) = program_times(&core.config)
            && now.saturating_sub(core.swept) >= sweep
        {
            core.swept = now;
            core.queue.service.sweep(ttl, now);
        }
    }
}

fn share(held: u64, limit: u64) -> f64 {
    match limit {
        0 => f64::from(u8::from(held > 0)),
        limit => held as f64 / limit as f64,
    }
}

fn programs(config: &FlowControlConfig) -> Option<&ProgramAware> {
    let defaults = [&config.default_band, &config.default_negative_band];
    let mut all = config.bands.iter().chain(defaults);
    all.find_map(|band| match &band.fairness {
        FairnessPolicy::ProgramAware(policy) => Some(policy),
        _ => None,
    })
}

fn tracks_service(config: &FlowControlConfig) -> bool {
    programs(config).is_some()
}

/// Half-life of attained service in microseconds.
pub(super) fn half_life(config: &FlowControlConfig) -> u64 {
    programs(config).map_or(0, |p| micros(p.half_life))
}

fn program_times(config: &FlowControlConfig) -> Option<(u64, u64)> {
    programs(config).map(|p| (micros(p.eviction_ttl), micros(p.eviction_sweep)))
}
