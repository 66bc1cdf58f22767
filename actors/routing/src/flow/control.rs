//! The engine: admits, queues, wakes. One for each pool, for as long as the pool is there; a new configuration changes it in place.

use crate::config::FlowControlConfig;
use crate::flow::capacity;
use crate::flow::core::{Core, Queued};
use crate::flow::eviction::{VictimKey, Victims};
use crate::flow::gate::{Gates, Ledger};
use crate::flow::order::Times;
use crate::flow::outcome::Outcome;
use crate::flow::permit::{Admission, Permit, State, Waiter};
use crate::flow::queue::{Item, micros};
use crate::flow::saturation::Load;
use crate::flow::upkeep::half_life;
use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Waker;
use std::time::{Duration, Instant};

/// A request of a band that sheds waits this long (µs) for the dispatcher's word.
const SHED_WAIT: u64 = 50_000;

/// Microseconds of a monotonic clock.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Microseconds since the process first asked.
pub fn system_clock() -> Clock {
    static START: OnceLock<Instant> = OnceLock::new();
    Arc::new(|| micros(START.get_or_init(Instant::now).elapsed()))
}

/// What flow control knows of a request.
#[derive(Clone, Copy, Debug)]
pub struct FlowRequest<'a> {
    /// Whose it is: one flow in its band.
    pub fairness_id: &'a str,
    /// Its band.
    pub priority: i32,
    /// Size of its body.
    pub bytes: u64,
    /// Estimate of its prompt's tokens.
    pub tokens: u64,
    /// How long the client waits at most.
    pub deadline: Option<Duration>,
    /// Policies that order by deadline shall not know it.
    pub deadline_hidden: bool,
    /// When its first token is due by its SLO, from now.
    pub slo_ttft: Option<Duration>,
    /// The model that the client named, for the metrics.
    pub model: &'a str,
    /// The model that is asked of the engine, for the metrics.
    pub target_model: &'a str,
}

impl Default for FlowRequest<'_> {
    fn default() -> Self {
        Self {
            fairness_id: "default-flow",
            priority: 0,
            bytes: 0,
            tokens: 0,
            deadline: None,
            deadline_hidden: false,
            slo_ttft: None,
            model: "",
            target_model: "",
        }
    }
}

/// How a pool's flow control stands, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowStatus {
    /// In flight through this router.
    pub in_flight: Load,
    /// What the other routers may have in flight.
    pub elsewhere: Load,
    /// Queued on this router: priority, requests, bytes.
    pub queued: Vec<(i32, u64, u64)>,
    /// How full the pool is.
    pub saturation: f64,
    /// Usable endpoints.
    pub endpoints: usize,
    /// Several routers share the pool's limit.
    pub shared: bool,
}

/// Flow control of a pool. See the module's documentation.
pub struct FlowControl {
    pool: Arc<str>,
    clock: Clock,
    pub(super) ledger: Ledger,
    pub(super) gates: ArcSwap<Gates>,
    core: Mutex<Core>,
    pub(super) victims: Mutex<Victims>,
    notify: OnceLock<Box<dyn Fn() + Send + Sync>>,
    dirty: AtomicBool,
}

impl FlowControl {
    /// Flow control for a pool. Until [`Self::observe`] has seen endpoints the pool counts as empty.
    pub fn new(pool: &str, config: FlowControlConfig) -> Arc<Self> {
        Self::with_clock(pool, config, system_clock())
    }

    /// The same with a clock of one's own.
    pub fn with_clock(pool: &str, config: FlowControlConfig, clock: Clock) -> Arc<Self> {
        let pool: Arc<str> = pool.into();
        let core = Core::new(Arc::clone(&pool), config, clock());
        let flow = Self {
            pool,
            clock,
            ledger: Ledger::default(),
            gates: ArcSwap::default(),
            core: Mutex::new(core),
            victims: Mutex::default(),
            notify: OnceLock::new(),
            dirty: AtomicBool::new(false),
        };
        flow.publish_gates(&mut flow.core.lock());
        Arc::new(flow)
    }

    /// Name of the pool.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// The configuration in force.
    pub fn config(&self) -> FlowControlConfig {
        self.core.lock().config.clone()
    }

    /// Microseconds of this engine's clock.
    pub fn now(&self) -> u64 {
        (self.clock)()
    }

    /// A permit, if the request may go at once and nobody waits. Takes no lock.
    pub fn try_admit(self: &Arc<Self>, request: &FlowRequest<'_>) -> Option<Permit> {
        let gates = self.gates.load();
        let gate = gates.find(request.priority)?;
        let tokens = gates.counts_tokens.then_some(request.tokens);
        if !self.ledger.enter(gate.limit, tokens) {
            return None;
        }
        gate.dispatched.increment(1);
        Some(Permit {
            flow: Arc::clone(self),
            tokens: tokens.unwrap_or(0),
            fairness_id: gates.tracks_service.then(|| request.fairness_id.into()),
            victim: match gates.evicts && request.priority < 0 {
                true => self.victims.lock().running(request.priority),
                false => None,
            },
        })
    }

    /// Admits a request: at once, or when its turn comes, or not at all.
    pub fn admit(self: &Arc<Self>, request: FlowRequest<'_>) -> Admission {
        if let Some(permit) = self.try_admit(&request) {
            return self.ready(Ok(permit));
        }
        let begun = self.now();
        let mut core = self.core.lock();
        let now = self.now();
        let (index, new_band) = core.band(request.priority, now);
        if new_band {
            self.publish_gates(&mut core);
        }
        if let Err(outcome) = self.check(&mut core, index, &request) {
            self.count(&mut core, index, outcome);
            return self.ready(Err(outcome));
        }
        let Some(id) = core.places.reserve() else {
            self.count(&mut core, index, Outcome::RejectedCapacity);
            return self.ready(Err(Outcome::RejectedCapacity));
        };
        let waiter = self.enqueue(&mut core, index, &request, id, now, begun);
        let mut wakers = Vec::new();
        self.pump(&mut core, &mut wakers);
        drop(core);
        self.wake(wakers);
        match waiter.take() {
            Some(result) => self.ready(result),
            None => Admission {
                flow: Arc::clone(self),
                state: State::Queued { waiter, id },
            },
        }
    }

    fn ready(self: &Arc<Self>, result: Result<Permit, Outcome>) -> Admission {
        Admission {
            flow: Arc::clone(self),
            state: State::Ready(result),
        }
    }

    /// Counts an outcome of a band's request.
    fn count(&self, core: &mut Core, index: usize, outcome: Outcome) {
        let priority = core.queue.bands().get(index).map_or(0, |b| b.priority());
        core.meter.outcome(priority, outcome).increment(1);
    }

    /// Whether a request may be queued.
    fn check(
        &self,
        core: &mut Core,
        index: usize,
        request: &FlowRequest<'_>,
    ) -> Result<(), Outcome> {
        if core.closed {
            return Err(Outcome::RejectedShuttingDown);
        }
        let refused = match core.pool_empty() {
            true => Outcome::RejectedNoEndpoints,
            false => Outcome::RejectedCapacity,
        };
        let Some(band) = core.queue.bands().get(index) else {
            return Err(refused);
        };
        let (mut all, mut held) = (core.queue.held(), band.held());
        if let Some(member) = &core.member {
            let (others, in_band) = member.queued(band.priority());
            all.requests = all.requests.saturating_add(others.requests);
            all.bytes = all.bytes.saturating_add(others.bytes);
            held.requests = held.requests.saturating_add(in_band.requests);
            held.bytes = held.bytes.saturating_add(in_band.bytes);
        }
        capacity::check(&core.config, band.config(), all, held, request.bytes)
            .map_err(|_| refused)?;
        let sheds = band.config().shed;
        let first = core.queue.first_band().is_none_or(|first| first > index);
        if sheds && !self.ledger.look().metered() {
            let load = self.pool_load(core);
            if !(first && core.is_open(index, load)) {
                return Err(refused);
            }
        }
        Ok(())
    }

    fn enqueue(
        &self,
        core: &mut Core,
        index: usize,
        request: &FlowRequest<'_>,
        id: u64,
        now: u64,
        begun: u64,
    ) -> Arc<Waiter> {
        let (priority, sheds) = core
            .queue
            .bands()
            .get(index)
            .map_or((0, false), |b| (b.priority(), b.config().shed));
        let after = |d: Duration| now.saturating_add(micros(d));
        let mut client = request.deadline.map(after);
        let shown = client.filter(|_| !request.deadline_hidden);
        if sheds {
            let soon = now.saturating_add(SHED_WAIT);
            client = Some(client.map_or(soon, |c| c.min(soon)));
        }
        let labels = core.meter.labels(
            request.fairness_id,
            priority,
            request.model,
            request.target_model,
        );
        let waiter = Waiter::new();
        let queued = Queued {
            waiter: Arc::clone(&waiter),
            id,
            tokens: match self.gates.load().counts_tokens {
                true => request.tokens,
                false => 0,
            },
            times: Times {
                arrived: now,
                deadline: core.lifetimes.deadline(now, shown),
                first_token_due: request.slo_ttft.map(after),
            },
            client,
            shown,
            expires: core.expires(now, client),
            shed: sheds,
            labels,
        };
        self.ledger.queue();
        core.push(
            index,
            request.fairness_id,
            Item {
                arrived: now,
                bytes: request.bytes,
                value: queued,
            },
        );
        if let Some(member) = &mut core.member {
            member.waits(id);
            self.mark_dirty();
        }
        let took = self.now().saturating_sub(begun);
        core.meter.queued(labels, request.bytes, took);
        waiter
    }

    /// In flight in the whole pool, as far as this router knows.
    pub(super) fn pool_load(&self, core: &Core) -> Load {
        let elsewhere = core
            .member
            .as_ref()
            .map_or(Load::default(), |m| m.elsewhere);
        self.ledger.load() + elsewhere
    }

    /// Lets go who may go, best first, until nobody may. The wakers are for after the lock.
    pub(super) fn pump(self: &Arc<Self>, core: &mut Core, wakers: &mut Vec<Waker>) {
        if core.queue.held().requests == 0 {
            return;
        }
        let begun = self.now();
        while let Some(index) = core.queue.first_band() {
            match core.member.as_ref().map(|m| m.standing) {
                // The dispatcher says who goes, and who has to make room.
                Some(None) => break,
                Some(Some(standing)) if !self.ledger.load().below(standing) => break,
                _ => {}
            }
            let load = self.pool_load(core);
            if !core.is_open(index, load) {
                if core.member.as_ref().is_none_or(|m| m.orphan) {
                    self.reclaim(core, index, load);
                }
                break;
            }
            let Some((flow, item)) = core.pop(index, begun) else {
                break;
            };
            if let Some(member) = &mut core.member {
                member.left(item.value.id);
                self.mark_dirty();
            }
            let priority = core.queue.bands().get(index).map_or(0, |b| b.priority());
            wakers.extend(self.release_queued(core, &flow, priority, item, begun));
        }
        core.meter.cycle(self.now().saturating_sub(begun));
    }

    /// Settles a request that has its turn: it goes, unless its time is over.
    pub(super) fn release_queued(
        self: &Arc<Self>,
        core: &mut Core,
        flow: &Arc<str>,
        priority: i32,
        item: Item<Queued>,
        now: u64,
    ) -> Option<Waker> {
        if item.value.expires.is_some_and(|at| at <= now) {
            let outcome = core.expiry(&item.value);
            return self.settle(core, priority, item, Err(outcome), now);
        }
        self.ledger.dispatch(item.value.tokens);
        let gates = self.gates.load();
        let permit = Permit {
            flow: Arc::clone(self),
            tokens: item.value.tokens,
            fairness_id: gates.tracks_service.then(|| Arc::clone(flow)),
            victim: match gates.evicts && priority < 0 {
                true => self.victims.lock().running(priority),
                false => None,
            },
        };
        self.settle(core, priority, item, Ok(permit), now)
    }

    /// Tells a request that left the queue what became of it.
    pub(super) fn settle(
        &self,
        core: &mut Core,
        priority: i32,
        item: Item<Queued>,
        result: Result<Permit, Outcome>,
        now: u64,
    ) -> Option<Waker> {
        let outcome = result
            .as_ref()
            .err()
            .copied()
            .unwrap_or(Outcome::Dispatched);
        let waited = now.saturating_sub(item.arrived);
        self.ledger.unqueue();
        core.meter
            .left(item.value.labels, item.bytes, outcome, waited);
        core.meter.outcome(priority, outcome).increment(1);
        item.value.waiter.settle(result)
    }

    /// A permit is dropped.
    pub(super) fn release(self: &Arc<Self>, victim: Option<VictimKey>) {
        if let Some(key) = victim {
            self.victim_ended(key);
        }
        let before = self.ledger.leave();
        if before.metered() {
            self.mark_dirty();
        } else if before.queued() > 0 {
            self.pump_now();
        }
    }

    pub(super) fn release_tokens(self: &Arc<Self>, tokens: u64) {
        if tokens == 0 {
            return;
        }
        self.ledger.leave_tokens(tokens);
        let look = self.ledger.look();
        if look.metered() {
            self.mark_dirty();
        } else if look.queued() > 0 {
            self.pump_now();
        }
    }

    fn pump_now(self: &Arc<Self>) {
        let mut wakers = Vec::new();
        self.pump(&mut self.core.lock(), &mut wakers);
        self.wake(wakers);
    }

    pub(super) fn wake(&self, wakers: Vec<Waker>) {
        for waker in wakers {
            waker.wake();
        }
    }

    /// The caller of a queued request went away.
    pub(super) fn cancel(self: &Arc<Self>, id: u64) {
        let mut core = self.core.lock();
        let Some((_, priority, item)) = core.remove(id) else {
            return;
        };
        if let Some(member) = &mut core.member {
            member.left(id);
            self.mark_dirty();
        }
        let now = self.now();
        self.settle(
            &mut core,
            priority,
            item,
            Err(Outcome::EvictedContextCancelled),
            now,
        );
    }

    /// Credits a fairness id with what it got.
    pub(super) fn serve(&self, fairness_id: &str, prompt: u64, completion: u64) {
        let now = self.now();
        let mut core = self.core.lock();
        let half_life = half_life(&core.config);
        core.queue
            .service
            .add(fairness_id, prompt, completion, half_life, now);
        if let Some(member) = &mut core.member {
            let tokens = prompt as f64 + 2.0 * completion as f64;
            *member.served.entry(fairness_id.into()).or_default() += tokens;
            self.mark_dirty();
        }
    }

    /// Calls this whenever there is something to tell the pool's dispatcher. Only the first call counts.
    pub fn on_change(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.notify.set(Box::new(notify));
    }

    pub(super) fn mark_dirty(&self) {
        if !self.dirty.swap(true, SeqCst)
            && let Some(notify) = self.notify.get()
        {
            notify();
        }
    }

    pub(super) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, SeqCst)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }
}
