//! What the actors, the exchange and the hot path's observer share: the catalog of endpoints and what is known of them.

use crate::catalog::ProbeSpec;
use crate::endpoint::actor::Msg;
use crate::endpoint::stall::Flight;
use crate::engine::models;
use crate::events::PlaneEvent;
use crate::exchange::outbox::Outbox;
use crate::exchange::table::{Changes, Origin, Table};
use crate::exchange::{Key, Peer, Report, Timing};
use crate::flows::Flows;
use crate::learnt::Lessons;
use crate::mailbox::Mailbox;
use crate::ownership::LiveNodes;
use crate::plane::CheckCaller;
use crate::scheduling::Policies;
use crate::signals::Signals;
use crate::turns::Post;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use quorate_proto::v1::Engine;
use quorate_routing::turns::HEAVY_TOKENS;
use quorate_routing::{Endpoint, SharedView, now_ms};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// An endpoint with what is known of it besides the hot path's atomics.
pub struct Entry {
    /// Name and incarnation.
    pub key: Key,
    /// What the hot path sees.
    pub endpoint: Arc<Endpoint>,
    /// How it is looked after.
    pub probe: ProbeSpec,
    /// Another one for every new entry.
    pub version: u64,
    owner: AtomicU64,
    /// Door of its actor if this node owns it.
    pub door: ArcSwapOption<Mailbox<Msg>>,
    /// A suspicion is in the mailbox already.
    pub suspected: AtomicBool,
    facts: Mutex<Facts>,
    /// What others of this node found wrong.
    conditions: Mutex<Vec<String>>,
}

/// What only people and the next owner ask for.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Why it is not ready, or the last trouble.
    pub last_error: String,
    /// What is wrong and keeps nobody from using it.
    pub conditions: Vec<String>,
    /// The engine as recognised.
    pub engine: Engine,
    /// It made no progress.
    pub stalled: bool,
}

impl Entry {
    /// An entry without an owner.
    pub fn new(
        key: Key,
        endpoint: Arc<Endpoint>,
        probe: ProbeSpec,
        version: u64,
        facts: Facts,
    ) -> Self {
        Self {
            key,
            endpoint,
            probe,
            version,
            owner: AtomicU64::new(0),
            door: ArcSwapOption::empty(),
            suspected: AtomicBool::new(false),
            facts: Mutex::new(facts),
            conditions: Mutex::default(),
        }
    }

    /// The node that probes it; 0: nobody yet.
    pub fn owner(&self) -> u64 {
        self.owner.load(Relaxed)
    }

    /// Says who owns it and returns who did.
    pub fn set_owner(&self, node_id: u64) -> u64 {
        self.owner.swap(node_id, Relaxed)
    }

    /// A copy of the facts.
    pub fn facts(&self) -> Facts {
        self.facts.lock().clone()
    }

    /// Replaces the facts.
    pub fn set_facts(&self, facts: Facts) {
        *self.facts.lock() = facts;
    }

    /// Replaces what others of this node found wrong.
    pub fn set_conditions(&self, conditions: Vec<String>) {
        *self.conditions.lock() = conditions;
    }

    /// What is wrong: as others of this node found it, else as its owner reported it.
    pub fn conditions(&self) -> Vec<String> {
        let here = self.conditions.lock().clone();
        if here.is_empty() {
            return self.facts.lock().conditions.clone();
        }
        here
    }

    /// Asks its actor, if it runs here, to probe at once. At most one such message is under way.
    pub fn suspect(&self) {
        if let Some(door) = &*self.door.load()
            && !self.suspected.swap(true, SeqCst)
        {
            door.send(Msg::Suspect);
        }
    }
}

/// All endpoints as of the last rebuild.
#[derive(Default)]
pub struct Catalog {
    /// By name.
    pub entries: HashMap<Arc<str>, Arc<Entry>>,
    /// Declared but not usable, with the reason.
    pub unplaced: BTreeMap<String, String>,
    /// Former versions of endpoints of the same incarnation on which requests of this node are still in flight.
    pub retired: HashMap<Key, Vec<Arc<Endpoint>>>,
}

impl Catalog {
    /// The entry of exactly this incarnation.
    pub fn entry(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.entries.get(&key.name).filter(|e| e.key == *key)
    }

    /// Requests of this node in flight on former versions of the endpoint.
    pub fn retired_in_flight(&self, key: &Key) -> u32 {
        self.retired
            .get(key)
            .into_iter()
            .flatten()
            .fold(0, |sum, e| sum.saturating_add(e.local_in_flight()))
    }
}

/// See the module's documentation.
pub struct Shared {
    /// Who this node is.
    pub origin: Origin,
    /// The cluster it belongs to; streams of another one are refused.
    pub cluster_id: String,
    /// Whether a call may speak for a node.
    pub check_caller: CheckCaller,
    /// Paces of the exchange.
    pub timing: Timing,
    /// TLS towards https engines.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Where the routing view goes.
    pub view: SharedView,
    /// The endpoints.
    pub catalog: ArcSwap<Catalog>,
    /// How the pools schedule.
    pub policies: Mutex<Policies>,
    /// What peers said.
    pub table: Mutex<Table>,
    /// What peers shall hear.
    pub outbox: Mutex<Outbox>,
    /// The outbox's version.
    pub outbox_version: watch::Sender<u64>,
    /// Version of the outbox with the last heavy request in it.
    pub heavy_version: watch::Sender<u64>,
    /// From the hot path.
    pub signals: Arc<Signals>,
    /// The nodes alive.
    pub live: watch::Sender<Arc<LiveNodes>>,
    /// Served models changed or a retired endpoint is idle: the directory should look.
    pub rebuild: Notify,
    /// Flow control of the pools, between the nodes.
    pub flows: Arc<Flows>,
    /// What the routers of the region say to each other of turns.
    pub post: Arc<Post>,
    /// What the routers of the region learn from their picks.
    pub lessons: Lessons,
    /// For the node.
    pub events: broadcast::Sender<PlaneEvent>,
    /// Nodes of the cluster, alive or not.
    pub peers: watch::Receiver<Vec<Peer>>,
    /// Ends everything that is not an actor.
    pub stop: CancellationToken,
}

impl Shared {
    /// This node's id.
    pub fn node_id(&self) -> u64 {
        self.origin.node_id
    }

    /// Tells the node; nobody listening is no error.
    pub fn tell(&self, event: PlaneEvent) {
        let _ = self.events.send(event);
    }

    /// Brings what changed in the table to where it is used.
    pub fn apply(&self, changes: Changes) {
        let catalog = self.catalog.load();
        for key in &changes.counts {
            self.refresh_remote(&catalog, key);
        }
        for entry in changes.reports.iter().filter_map(|key| catalog.entry(key)) {
            self.take_report(entry);
        }
        for entry in changes.suspects.iter().filter_map(|key| catalog.entry(key)) {
            entry.suspect();
        }
        if changes.nodes {
            self.refresh_live();
        }
        if let Some((had, has)) = changes.used_twice {
            tracing::error!(
                node_id = had.node_id, instances = ?[&had.instance, &has.instance],
                "node id used twice: two live processes say that they are this node"
            );
            self.tell(PlaneEvent::NodeIdUsedTwice {
                node_id: had.node_id,
                instances: [had.instance, has.instance],
            });
        }
    }

    /// Requests of others, and of this node on former versions of the same incarnation.
    pub fn refresh_remote(&self, catalog: &Catalog, key: &Key) {
        if let Some(entry) = catalog.entry(key) {
            let retired = catalog.retired_in_flight(key);
            let (others, tokens) = {
                let table = self.table.lock();
                (table.total(key), table.tokens(key))
            };
            entry
                .endpoint
                .set_remote_in_flight(others.saturating_add(retired));
            let before = entry.endpoint.set_remote_tokens(tokens);
            if tokens >= before.saturating_add(HEAVY_TOKENS) {
                self.signals.turns.heavy_heard(now_ms());
            }
        }
    }

    fn refresh_live(&self) {
        let mut live = self.table.lock().live();
        live.insert(self.node_id(), Arc::clone(&self.origin.region));
        let near = live
            .iter()
            .filter(|(_, region)| **region == self.origin.region);
        let routers = near.map(|(id, _)| id).collect();
        self.signals.turns.set_routers(routers, now_ms());
        self.live.send_if_modified(|current| {
            let changed = **current != live;
            if changed {
                *current = Arc::new(live);
            }
            changed
        });
    }

    /// Takes over what the owner reported, unless this node is the owner itself.
    pub fn take_report(&self, entry: &Entry) {
        let owner = entry.owner();
        if owner == self.node_id() {
            return;
        }
        let Some(report) = self.table.lock().report(&entry.key, owner) else {
            return;
        };
        self.publish(entry, &report);
    }

    /// Writes a report into the hot path's atomics and the facts.
    pub fn publish(&self, entry: &Entry, report: &Report) {
        let now = now_ms();
        let endpoint = &entry.endpoint;
        if report.read_at > 0 {
            endpoint.set_load(report.load, report.read_at);
            endpoint.set_adapter_load(report.adapters.clone());
        }
        if let Some(shape) = report.cache {
            endpoint.set_cache_shape(shape);
        }
        if !report.models.is_empty() && !models::same(&endpoint.models(), &report.models) {
            endpoint.set_models(report.models.clone());
            self.rebuild.notify_one();
        }
        // Setting it again would end the breaker's wait, and an owner that knows nothing yet takes nothing back.
        if endpoint.health() != report.health && report.health != quorate_routing::Health::Unknown {
            endpoint.set_health(report.health, now);
        }
        self.flows.endpoints_changed();
        entry.set_facts(Facts {
            last_error: report.last_error.clone(),
            conditions: report.conditions.clone(),
            engine: report.engine,
            stalled: report.stalled,
        });
    }

    /// An owned endpoint's news: publishes them here and to the peers.
    pub fn report(&self, entry: &Entry, mut report: Report) {
        // A last message of an actor that is being stopped must not speak against the new owner.
        if entry.owner() != self.node_id() {
            return;
        }
        report.conditions = entry.conditions.lock().clone();
        self.publish(entry, &report);
        let mut outbox = self.outbox.lock();
        if outbox.report(&entry.key, report) {
            self.outbox_version.send_replace(outbox.version());
        }
    }

    /// All requests in flight on an endpoint by node.
    pub fn flights(&self, entry: &Entry) -> Vec<Flight> {
        let mut flights: Vec<Flight> = self.table.lock().flights(&entry.key).collect();
        let requests = entry.endpoint.local_in_flight();
        if requests > 0 {
            flights.push(Flight {
                node_id: self.node_id(),
                requests,
                progress_at: entry.endpoint.progress_at(),
            });
        }
        flights
    }

    /// Brings this node's own counts and suspicions into the outbox.
    pub fn scan(&self) {
        let (suspects, heavy) = self.signals.take();
        let catalog = self.catalog.load();
        let mut outbox = self.outbox.lock();
        let before = outbox.version();
        for entry in catalog.entries.values() {
            let e = &entry.endpoint;
            let requests = e
                .local_in_flight()
                .saturating_add(catalog.retired_in_flight(&entry.key));
            let stall = u64::try_from(e.spec().stall_timeout.as_millis()).unwrap_or(u64::MAX);
            outbox.count(&entry.key, requests, e.progress_at(), stall / 4);
            outbox.tokens(&entry.key, e.local_tokens());
        }
        for key in &suspects {
            outbox.suspect(key);
        }
        let after = outbox.version();
        drop(outbox);
        if before != after {
            self.outbox_version.send_replace(after);
            if heavy {
                self.heavy_version.send_replace(after);
            }
        }
        for entry in suspects.iter().filter_map(|key| catalog.entry(key)) {
            entry.suspect();
        }
        for key in catalog.retired.keys() {
            self.refresh_remote(&catalog, key);
            if catalog.retired_in_flight(key) == 0 {
                self.rebuild.notify_one();
            }
        }
    }
}
