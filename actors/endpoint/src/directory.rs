//! The endpoint directory: from what is declared and who is alive to the catalog, the routing view and the children that run here.

use crate::catalog::{Declared, Placed, Placement, place};
use crate::discovery::{self, Declare};
use crate::endpoint;
use crate::exchange::Key;
use crate::mailbox::{Letter, Mailbox};
use crate::shared::{Catalog, Entry, Facts, Shared};
use crate::supervise::{ChildSpec, Children, Wanted};
use crate::task::Task;
use metrics::counter;
use quorate_routing::{AdapterLoad, Endpoint, EndpointObserver, Health, RoutingView, now_ms};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::watch;

/// Rebuilds asked for within this time become one.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// What the directory steers, kept outside of the actor so that a restarted one finds it.
pub struct Steering {
    /// Pool supervisors.
    pub pools: Arc<Wanted>,
    /// Discovery actors.
    pub discovery: Arc<Wanted>,
    /// The wanted endpoints of each pool's supervisor.
    pub by_pool: parking_lot::Mutex<BTreeMap<Arc<str>, Arc<Wanted>>>,
    versions: AtomicU64,
}

impl Default for Steering {
    fn default() -> Self {
        Self {
            pools: Arc::default(),
            discovery: Arc::default(),
            by_pool: parking_lot::Mutex::default(),
            versions: AtomicU64::new(1),
        }
    }
}

/// Something changed: look at everything.
pub struct Rebuild;

/// See the module's documentation.
pub struct Directory {
    shared: Arc<Shared>,
    steering: Arc<Steering>,
    declared: watch::Receiver<Declared>,
    declare: Arc<dyn Declare>,
}

/// The placement of what was declared last.
pub struct State {
    declared: watch::Receiver<Declared>,
    placement: Placement,
    pending: Arc<AtomicBool>,
    _watcher: Task,
}

/// Child spec of the directory.
pub fn spec(
    shared: Arc<Shared>,
    steering: Arc<Steering>,
    declared: watch::Receiver<Declared>,
    declare: Arc<dyn Declare>,
) -> ChildSpec {
    ChildSpec {
        version: 0,
        start: Arc::new(move |parent| {
            let directory = Directory {
                shared: Arc::clone(&shared),
                steering: Arc::clone(&steering),
                declared: declared.clone(),
                declare: Arc::clone(&declare),
            };
            Box::pin(async move {
                let (child, _) = Directory::spawn_linked(None, directory, (), parent).await?;
                Ok(child.get_cell())
            })
        }),
    }
}

impl Actor for Directory {
    type Msg = Letter<Rebuild>;
    type State = State;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (): (),
    ) -> Result<State, ActorProcessingErr> {
        let door = Mailbox::new(myself, "directory");
        let pending = Arc::new(AtomicBool::new(true));
        door.send(Rebuild);
        let mut declared = self.declared.clone();
        let mut live = self.shared.live.subscribe();
        let shared = Arc::clone(&self.shared);
        let waiting = Arc::clone(&pending);
        let watcher = Task::spawn(async move {
            loop {
                tokio::select! {
                    // When the node stops declaring, the last state stands; peers and models still change.
                    Ok(()) = declared.changed() => {}
                    Ok(()) = live.changed() => {}
                    () = shared.rebuild.notified() => {}
                }
                tokio::time::sleep(DEBOUNCE).await;
                if !waiting.swap(true, SeqCst) && !door.send(Rebuild) {
                    return;
                }
            }
        });
        let mut declared = self.declared.clone();
        declared.mark_changed();
        Ok(State {
            declared,
            placement: Placement::default(),
            pending,
            _watcher: watcher,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        _: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.pending.store(false, SeqCst);
        if state.declared.has_changed().unwrap_or(true) {
            let declared = state.declared.borrow_and_update();
            state.placement = place(&declared);
            self.shared.policies.lock().update(&declared);
        }
        self.rebuild(state);
        Ok(())
    }
}

impl Directory {
    fn rebuild(&self, state: &State) {
        let shared = &self.shared;
        let before = shared.catalog.load_full();
        let catalog = Arc::new(self.catalog(&before, &state.placement));
        let owners_moved = self.assign(&catalog);
        shared.catalog.store(Arc::clone(&catalog));
        for entry in before.entries.values() {
            let kept = catalog
                .entries
                .get(&entry.key.name)
                .is_some_and(|e| Arc::ptr_eq(e, entry));
            if !kept {
                entry.set_owner(0);
            }
        }
        self.publish_view(&catalog, &state.placement);
        self.tell_peers(&catalog);
        for entry in catalog.entries.values() {
            let known = before
                .entries
                .get(&entry.key.name)
                .is_some_and(|e| Arc::ptr_eq(e, entry));
            if !known || owners_moved {
                shared.refresh_remote(&catalog, &entry.key);
                shared.take_report(entry);
            }
        }
        self.steer(&catalog, state);
    }

    /// The new catalog, with everything of the old one that did not change.
    fn catalog(&self, before: &Catalog, placement: &Placement) -> Catalog {
        let mut catalog = Catalog {
            unplaced: placement.unplaced.clone(),
            ..Catalog::default()
        };
        for (key, former) in &before.retired {
            let busy: Vec<_> = former
                .iter()
                .filter(|e| e.local_in_flight() > 0)
                .cloned()
                .collect();
            if !busy.is_empty() {
                catalog.retired.insert(key.clone(), busy);
            }
        }
        for (name, placed) in &placement.endpoints {
            let old = before.entries.get(name);
            let entry = match old {
                Some(old)
                    if *old.endpoint.spec() == placed.endpoint && old.probe == placed.probe =>
                {
                    Arc::clone(old)
                }
                _ => self.new_entry(placed, old.map(Arc::as_ref)),
            };
            entry.endpoint.set_draining(placed.draining);
            if let Some(old) = old
                && old.key == entry.key
                && !Arc::ptr_eq(&old.endpoint, &entry.endpoint)
                && old.endpoint.local_in_flight() > 0
            {
                catalog
                    .retired
                    .entry(old.key.clone())
                    .or_default()
                    .push(Arc::clone(&old.endpoint));
            }
            catalog.entries.insert(Arc::clone(name), entry);
        }
        catalog
    }

    /// An endpoint that is new or changed. What is known of the same server stays known.
    fn new_entry(&self, placed: &Placed, old: Option<&Entry>) -> Arc<Entry> {
        let spec = &placed.endpoint;
        let same_server = old.filter(|old| {
            old.key.incarnation == spec.incarnation && old.endpoint.spec().target == spec.target
        });
        let endpoint = match same_server {
            Some(old) if *old.endpoint.spec() == *spec => Arc::clone(&old.endpoint),
            _ => {
                let observer: Arc<dyn EndpointObserver> = Arc::clone(&self.shared.signals) as _;
                let new = Endpoint::new(spec.clone(), Some(observer));
                if let Some(old) = same_server {
                    carry_over(&old.endpoint, &new);
                }
                Arc::new(new)
            }
        };
        let facts = same_server.map_or_else(Facts::default, Entry::facts);
        let key = Key {
            name: Arc::clone(&spec.name),
            incarnation: spec.incarnation,
        };
        let version = self.steering.versions.fetch_add(1, Relaxed);
        Arc::new(Entry::new(
            key,
            endpoint,
            placed.probe.clone(),
            version,
            facts,
        ))
    }

    /// Says who owns what. True if an owner changed.
    fn assign(&self, catalog: &Catalog) -> bool {
        let live = self.shared.live.borrow().clone();
        let mut any = false;
        for entry in catalog.entries.values() {
            let region = &entry.endpoint.spec().region;
            let owner = live.endpoint_owner(&entry.key.name, region).unwrap_or(0);
            let before = entry.set_owner(owner);
            if before != owner {
                any = true;
                if before != 0 {
                    counter!("quorate_endpoint_owner_moves_total").increment(1);
                    tracing::debug!(endpoint = %entry.key.name, from = before, to = owner, "owner moved");
                }
            }
        }
        any
    }

    fn publish_view(&self, catalog: &Catalog, placement: &Placement) {
        let mut by_pool: HashMap<&str, Vec<Arc<Endpoint>>> = HashMap::new();
        for entry in catalog.entries.values() {
            let of_pool = by_pool.entry(&entry.endpoint.spec().pool).or_default();
            of_pool.push(Arc::clone(&entry.endpoint));
        }
        let policies = self.shared.policies.lock();
        let pools = placement.pools.values().map(|pool| {
            let endpoints = by_pool.remove(pool.name.as_ref()).unwrap_or_default();
            (pool.clone(), policies.of(&pool.name), endpoints)
        });
        let view = RoutingView::with_policies(pools);
        // A queue that has not seen its endpoints takes the pool for empty.
        for pool in view.pools() {
            if let Some(flow) = &pool.policy.flow {
                flow.observe(&pool.endpoints);
            }
        }
        self.shared.view.store(Arc::new(view));
        self.shared.flows.view_changed();
    }

    /// What is no longer owned or declared is withdrawn.
    fn tell_peers(&self, catalog: &Catalog) {
        let owned = |e: &&Arc<Entry>| e.owner() == self.shared.node_id();
        let retired = catalog.retired.keys().cloned();
        let declared: HashSet<Key> = catalog
            .entries
            .values()
            .map(|e| e.key.clone())
            .chain(retired)
            .collect();
        let owned = catalog
            .entries
            .values()
            .filter(owned)
            .map(|e| e.key.clone())
            .collect();
        let mut outbox = self.shared.outbox.lock();
        outbox.retain(&declared, &owned, now_ms());
        self.shared.outbox_version.send_replace(outbox.version());
    }

    /// Which children run on this node.
    fn steer(&self, catalog: &Catalog, state: &State) {
        let node = self.shared.node_id();
        let mut endpoints: HashMap<&str, Children> = HashMap::new();
        for entry in catalog.entries.values().filter(|e| e.owner() == node) {
            endpoints
                .entry(&entry.endpoint.spec().pool)
                .or_default()
                .insert(
                    Arc::clone(&entry.key.name),
                    endpoint::actor::spec(Arc::clone(&self.shared), Arc::clone(entry)),
                );
        }
        let mut by_pool = self.steering.by_pool.lock();
        by_pool.retain(|pool, _| state.placement.pools.contains_key(pool));
        let mut supervisors = Children::new();
        for pool in state.placement.pools.keys() {
            let wanted = by_pool.entry(Arc::clone(pool)).or_default();
            wanted.set(endpoints.remove(pool.as_ref()).unwrap_or_default());
            supervisors.insert(Arc::clone(pool), wanted.supervisor("endpoint"));
        }
        drop(by_pool);
        self.steering.pools.set(supervisors);
        let live = self.shared.live.borrow().clone();
        let discovery = discovery::children(&self.shared, &self.declared, &self.declare, |pool| {
            live.owner(pool) == Some(node)
        });
        self.steering.discovery.set(discovery);
    }
}

fn carry_over(old: &Endpoint, new: &Endpoint) {
    let now = now_ms();
    if old.health() != Health::Unknown {
        new.set_health(old.health(), now);
    }
    if let Some((load, age)) = old.load(now) {
        new.set_load(load, now.saturating_sub(age));
    }
    new.set_models(old.models().to_vec());
    new.set_adapter_load(AdapterLoad::clone(&old.adapter_load()));
    if let Some(shape) = old.cache_shape() {
        new.set_cache_shape(shape);
    }
}
