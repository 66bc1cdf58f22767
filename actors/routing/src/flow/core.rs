//! What the queue's lock guards: the queue, its timers, and the decision who goes next.

use crate::config::{BandConfig, FlowControlConfig, OrderingPolicy, UsageLimitPolicy};
use crate::flow::ceiling::{self, Rank};
use crate::flow::lifetime::Lifetimes;
use crate::flow::meter::{LabelId, Meter};
use crate::flow::order::{self, Times};
use crate::flow::outcome::Outcome;
use crate::flow::permit::Waiter;
use crate::flow::places::Places;
use crate::flow::queue::{Item, Queue};
use crate::flow::saturation::{Budget, EndpointLoad, Load};
use crate::flow::share::member::Member;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bands made for priorities that the configuration does not list; more share band 0.
const MOST_EXTRA_BANDS: usize = 64;
/// Such a band is removed when nothing has waited in it for this long (µs).
const BAND_IDLE: u64 = 600_000_000;

/// A queued request.
pub(super) struct Queued {
    pub waiter: Arc<Waiter>,
    pub id: u64,
    pub tokens: u64,
    pub times: Times,
    /// The client's own deadline.
    pub client: Option<u64>,
    /// The same, for policies that order by it.
    pub shown: Option<u64>,
    /// When its time is over as things are; its key in the timers.
    pub expires: Option<u64>,
    /// Should not have been queued: waits for the dispatcher's word only.
    pub shed: bool,
    pub labels: LabelId,
}

/// See the module's documentation.
pub(super) struct Core {
    pub config: FlowControlConfig,
    pub queue: Queue<Queued>,
    pub places: Places,
    pub timers: BTreeSet<(u64, u64)>,
    pub lifetimes: Lifetimes,
    pub endpoints: Vec<EndpointLoad>,
    pub budget: Budget,
    /// When the pool became (not) empty.
    pub switched: u64,
    pub arrivals: u64,
    /// Decisions made for a band between its two ceilings.
    pub cycles: BTreeMap<i32, u64>,
    /// When the extra bands were last used.
    pub extra_bands: BTreeMap<i32, u64>,
    pub meter: Meter,
    pub closed: bool,
    /// The part in a pool that several routers share; `None`: this router is alone.
    pub member: Option<Member>,
    pub published: u64,
    pub swept: u64,
}

/// The configured bands and band 0.
pub(super) fn bands(config: &FlowControlConfig) -> Vec<BandConfig> {
    let mut bands = config.bands.clone();
    if !bands.iter().any(|b| b.priority == 0) {
        bands.push(template(config, 0));
    }
    bands
}

/// A band for a priority that is not listed.
pub(super) fn template(config: &FlowControlConfig, priority: i32) -> BandConfig {
    let template = match priority {
        ..0 => &config.default_negative_band,
        0.. => &config.default_band,
    };
    BandConfig {
        priority,
        ..template.clone()
    }
}

/// The place of a band among those of a queue.
pub(super) fn rank<T>(queue: &Queue<T>, index: usize) -> Rank {
    let priority = |i: usize| queue.bands().get(i).map_or(0, |b| b.priority());
    let bands = queue.bands().len();
    Rank {
        index,
        bands,
        priority: priority(index),
        highest: priority(0),
        lowest: priority(bands.saturating_sub(1)),
    }
}

/// Whether a band may dispatch; counts the decision if it is one of the soft ceiling's.
pub(super) fn is_open(
    policy: &UsageLimitPolicy,
    rank: Rank,
    saturation: f64,
    cycles: &mut BTreeMap<i32, u64>,
) -> bool {
    if saturation < ceiling::steady(policy, rank) {
        return true;
    }
    let cycle = cycles.entry(rank.priority).or_default();
    *cycle += 1;
    ceiling::is_open(policy, rank, saturation, *cycle)
}

impl Core {
    pub fn new(pool: Arc<str>, config: FlowControlConfig, now: u64) -> Self {
        Self {
            queue: Queue::new(&bands(&config)),
            places: Places::default(),
            timers: BTreeSet::new(),
            lifetimes: Lifetimes::new(&config),
            endpoints: Vec::new(),
            budget: Budget::default(),
            switched: now,
            arrivals: 0,
            cycles: BTreeMap::new(),
            extra_bands: BTreeMap::new(),
            meter: Meter::new(pool),
            closed: false,
            member: None,
            published: 0,
            swept: now,
            config,
        }
    }

    pub fn pool_empty(&self) -> bool {
        self.budget.endpoints == 0
    }

    /// The band of a priority, made if it has to be; true if the bands changed.
    pub fn band(&mut self, priority: i32, now: u64) -> (usize, bool) {
        if let Some(used) = self.extra_bands.get_mut(&priority) {
            *used = now;
        }
        if let Some(index) = self.queue.band(priority) {
            return (index, false);
        }
        if self.extra_bands.len() >= MOST_EXTRA_BANDS {
            return (self.queue.band(0).unwrap_or(0), false);
        }
        self.extra_bands.insert(priority, now);
        (self.queue.add_band(template(&self.config, priority)), true)
    }

    /// Removes extra bands that nobody uses; true if the bands changed.
    pub fn prune_bands(&mut self, now: u64) -> bool {
        let idle: Vec<i32> = self
            .extra_bands
            .iter()
            .filter(|(_, used)| now.saturating_sub(**used) >= BAND_IDLE)
            .map(|(priority, _)| *priority)
            .collect();
        if idle.is_empty() {
            return false;
        }
        let changed = self.queue.prune_bands(|p| !idle.contains(&p));
        let queue = &self.queue;
        self.extra_bands
            .retain(|priority, _| queue.band(*priority).is_some());
        changed
    }

    /// The load at which a band is shut in every case, and below which it is always open.
    pub fn steady_limit(&self, index: usize) -> Load {
        let ceiling = ceiling::steady(&self.config.usage_limit, rank(&self.queue, index));
        self.budget.limit(ceiling)
    }

    /// Whether a band may dispatch with this load in the whole pool.
    pub fn is_open(&mut self, index: usize, load: Load) -> bool {
        let saturation = self.budget.saturation(load);
        let rank = rank(&self.queue, index);
        is_open(&self.config.usage_limit, rank, saturation, &mut self.cycles)
    }

    /// Queues a request that has its id.
    pub fn push(&mut self, index: usize, flow: &str, item: Item<Queued>) {
        let policy = self
            .queue
            .bands()
            .get(index)
            .map_or(OrderingPolicy::Fcfs, |b| b.config().ordering);
        self.arrivals += 1;
        let order = order::key(policy, item.value.times, self.arrivals);
        let (id, expires) = (item.value.id, item.value.expires);
        if let Some(ticket) = self.queue.push(index, flow, order, item) {
            self.places.set(id, ticket);
            self.timers.extend(expires.map(|at| (at, id)));
        }
    }

    /// Takes the next request of a band out of the queue.
    pub fn pop(&mut self, index: usize, now: u64) -> Option<(Arc<str>, Item<Queued>)> {
        let (ticket, item) = self.queue.pop(index, now)?;
        self.forget(&item);
        Some((ticket.flow, item))
    }

    /// Takes a request out of the queue wherever it waits.
    pub fn remove(&mut self, id: u64) -> Option<(Arc<str>, i32, Item<Queued>)> {
        let ticket = self.places.get(id)?.clone();
        let item = self.queue.remove(&ticket)?;
        self.forget(&item);
        Some((ticket.flow, ticket.priority, item))
    }

    fn forget(&mut self, item: &Item<Queued>) {
        let queued = &item.value;
        self.places.release(queued.id);
        if let Some(at) = queued.expires {
            self.timers.remove(&(at, queued.id));
        }
    }

    /// The outcome of a request whose time is over.
    pub fn expiry(&self, queued: &Queued) -> Outcome {
        match (self.pool_empty(), queued.shed) {
            (true, _) => Outcome::EvictedNoEndpoints,
            (false, true) => Outcome::RejectedCapacity,
            (false, false) => Outcome::EvictedTtl,
        }
    }

    /// Takes all requests out, in order of arrival, with band and flow. They keep their ids.
    pub fn drain(&mut self) -> Vec<(i32, Arc<str>, Item<Queued>)> {
        let mut all = Vec::new();
        while let Some(index) = self.queue.first_band() {
            let Some((ticket, item)) = self.queue.pop(index, 0) else {
                break;
            };
            all.push((ticket.priority, ticket.flow, item));
        }
        self.timers.clear();
        all.sort_by_key(|(_, _, item)| (item.arrived, item.value.id));
        all
    }

    /// Computes when a request's time is over as things are now.
    pub fn expires(&self, arrived: u64, client: Option<u64>) -> Option<u64> {
        self.lifetimes
            .expires(arrived, client, self.pool_empty(), self.switched)
    }

    /// Queues drained requests again, under the rules of now.
    pub fn refill(&mut self, all: Vec<(i32, Arc<str>, Item<Queued>)>, now: u64) {
        for (priority, flow, mut item) in all {
            let (index, _) = self.band(priority, now);
            let queued = &mut item.value;
            queued.times.deadline = self.lifetimes.deadline(queued.times.arrived, queued.shown);
            queued.expires = self.expires(queued.times.arrived, queued.client);
            self.push(index, &flow, item);
        }
    }
}
