//! The map of KV-cache blocks on this node: its replica in the region's `cache` group, and what this node as an owner tells the group.

mod ask;
pub mod desk;
pub mod exchange;
pub mod figures;
pub mod merge;
pub mod regions;
mod usage;
mod wire;

use ask::OverHttp;
use bytes::Bytes;
use desk::{CacheDesk, is_followed};
use parking_lot::Mutex;
use quorate_cache::feed::Replicated;
use quorate_cache::feed::actor::{
    CacheFeeder, FeederHandle, FeederOptions, Log, Proposing, Target, Targets,
};
use quorate_cache::index::{CacheIndex, IndexConfig, Snapshot, SnapshotLoader};
use quorate_cache::route::CachePlugins;
use quorate_endpoint::PlaneHandle;
use quorate_raft::{Cluster, Frozen, Install, Replica, VolatileGroup};
use quorate_routing::cache::{CacheNeeds, EventsFrom};
use quorate_routing::{Endpoint, EndpointSpec, RoutingView, SharedView};
use regions::Regions;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use usage::Usage;

/// Longest wait for the group's contents before the node says that it is ready.
const WARM_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for the other nodes of the region before engines are followed: those that do not answer are dead.
const MEET_WITHIN: Duration = Duration::from_secs(2);
/// How often ownership and the pools' wishes are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often the map's figures are published.
const FIGURES: Duration = Duration::from_secs(1);

/// The running parts.
pub struct CacheParts {
    group: VolatileGroup,
    feeder: Arc<FeederHandle>,
    desk: Arc<CacheDesk>,
    _watching: DropGuard,
}

impl CacheParts {
    /// Takes part in the group, and follows the engines that this node owns.
    ///
    /// # Errors
    /// The group is open already, or the actor does not start.
    pub async fn start(
        cluster: &Cluster,
        plane: &Arc<PlaneHandle>,
        view: SharedView,
        (index, config): (Arc<CacheIndex>, IndexConfig),
        plugins: CachePlugins,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> anyhow::Result<Self> {
        let replica = Arc::new(Replicated::new(Arc::clone(&index), config));
        let group = cluster
            .volatile_group("cache", Arc::new(InGroup(Arc::clone(&replica))))
            .await?;
        let stop = CancellationToken::new();
        let (told, targets) = watch::channel(Targets::default());
        let engines = Arc::new(OverHttp::new(Arc::clone(&view), tls));
        let watching = watch_targets(
            cluster.node_id(),
            Arc::clone(plane),
            Arc::clone(&view),
            told,
        );
        let (until, warm, meeting) = (stop.clone(), group.clone(), Arc::clone(plane));
        tokio::spawn(async move {
            // Before that, a holder that is not there may only not have come yet.
            let all = async {
                warm.warm().await;
                // An engine that is polled by two loses what the wrong one reads.
                let _ = timeout(MEET_WITHIN, meeting.met()).await;
                watching.await;
            };
            until.run_until_cancelled(all).await;
        });
        let stop_telling = stop.clone();
        let feeder = CacheFeeder::start(FeederOptions {
            part: (cluster.node_id() as u32) << 16 | u32::from(fastrand::u16(..)),
            replica: Arc::clone(&replica),
            log: Arc::new(ThroughGroup(group.clone())),
            engines,
            targets,
        })
        .await?;
        let feeder = Arc::new(feeder);
        let desk = Arc::new(CacheDesk {
            cluster: cluster.clone(),
            view,
            regions: Regions::default(),
            group: group.clone(),
            replica,
            feeder: Arc::clone(&feeder),
            plugins,
            usage: Mutex::new(Usage::new(Instant::now())),
        });
        let (until, noting) = (stop.clone(), Arc::clone(&desk));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(FIGURES);
            while until.run_until_cancelled(ticks.tick()).await.is_some() {
                figures::publish(&index);
                noting.note();
            }
        });
        let (until, telling) = (stop.clone(), Arc::clone(&desk));
        tokio::spawn(async move { until.run_until_cancelled(regions::tell(&telling)).await });
        let conditions = tell_conditions(Arc::clone(plane), Arc::clone(&feeder));
        tokio::spawn(async move { stop_telling.run_until_cancelled(conditions).await });
        Ok(Self {
            group,
            feeder,
            desk,
            _watching: stop.drop_guard(),
        })
    }

    /// What this node answers about caches.
    pub const fn desk(&self) -> &Arc<CacheDesk> {
        &self.desk
    }

    /// Returns once this node has what the group has, and its tokenizers, or has waited long enough: a cold map costs prefills, not requests.
    pub async fn warm(&self) {
        let until = Instant::now() + WARM_WITHIN;
        if timeout_at(until, self.group.warm()).await.is_err() {
            tracing::warn!("the map of KV-cache blocks is not here yet: serving without it");
        }
        if timeout_at(until, self.desk.plugins.tokenizers_read())
            .await
            .is_err()
        {
            tracing::warn!("tokenizers are not read yet: serving without them");
        }
    }

    /// Stops following, and leaves the group.
    pub async fn stop(&self) {
        self.feeder.shutdown().await;
        self.group.shutdown().await;
    }
}

async fn watch_targets(
    node_id: u64,
    plane: Arc<PlaneHandle>,
    view: SharedView,
    told: watch::Sender<Targets>,
) {
    let live = plane.live_nodes();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let nodes = live.borrow().clone();
        let here = nodes.iter().find(|(id, _)| *id == node_id);
        let here = here.map(|(_, region)| Arc::clone(region));
        let now = targets(&view.load(), |spec, needs| match needs.events {
            // Whichever router an engine dials has its stream.
            EventsFrom::Bind(_) => here.as_ref() == Some(&spec.region),
            _ => nodes.endpoint_owner(&spec.name, &spec.region) == Some(node_id),
        });
        told.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

/// Brings what the feeder finds wrong into what this node says of the endpoints.
async fn tell_conditions(plane: Arc<PlaneHandle>, feeder: Arc<FeederHandle>) {
    let mut told: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
    let mut ticks = tokio::time::interval(FIGURES);
    loop {
        ticks.tick().await;
        let mut now: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for status in feeder.status().into_values() {
            let all = now.entry(status.endpoint).or_default();
            all.extend(status.conditions.iter().map(ToString::to_string));
            // Each rank of an engine has what is the engine's.
            all.sort();
            all.dedup();
        }
        for (endpoint, conditions) in &now {
            plane.set_conditions(endpoint, conditions.clone());
        }
        for endpoint in told.keys().filter(|name| !now.contains_key(*name)) {
            plane.set_conditions(endpoint, Vec::new());
        }
        told = now;
    }
}

/// An engine's own block size where its events do not say it.
fn with_block(needs: &Arc<CacheNeeds>, endpoint: &Endpoint) -> Arc<CacheNeeds> {
    let shape = endpoint.cache_shape().map(|shape| shape.block_tokens);
    match (&needs.events, needs.block_tokens, shape) {
        (EventsFrom::Poll, None, Some(block)) if block > 0 => Arc::new(CacheNeeds {
            block_tokens: Some(block),
            ..CacheNeeds::clone(needs)
        }),
        _ => Arc::clone(needs),
    }
}

fn targets(view: &RoutingView, is_ours: impl Fn(&EndpointSpec, &CacheNeeds) -> bool) -> Targets {
    let mut owned = Vec::new();
    let mut declared = BTreeSet::new();
    for pool in view.pools() {
        let needs = pool.policy.cache.as_ref().filter(|_| is_followed(pool));
        for endpoint in &pool.endpoints {
            let spec = endpoint.spec();
            declared.insert(spec.incarnation);
            let Some(needs) = needs.filter(|needs| is_ours(spec, needs)) else {
                continue;
            };
            let models = endpoint.models();
            let base = models.iter().find(|model| model.parent.is_none());
            let Some(model) = base.map(|m| m.id.as_str()) else {
                // Its engine has not said yet what it serves.
                continue;
            };
            owned.push(Target {
                endpoint: spec.incarnation,
                name: Arc::clone(&spec.name),
                target: spec.target.clone(),
                model: model.into(),
                rank: spec.rank,
                needs: with_block(needs, endpoint),
            });
        }
    }
    // An empty view is one that has not been read yet, more likely than one without endpoints.
    let declared = Some(declared).filter(|declared| !declared.is_empty());
    Targets { owned, declared }
}

struct InGroup(Arc<Replicated>);

impl Replica for InGroup {
    fn apply(&self, index: u64, command: &[u8]) -> Bytes {
        self.0.apply(index, command)
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Chunks(self.0.freeze()))
    }

    fn install(&self) -> Box<dyn Install> {
        Box::new(Loading {
            replica: Arc::clone(&self.0),
            loader: self.0.loader(),
        })
    }

    fn reset(&self) {
        self.0.reset();
    }
}

struct Chunks(Snapshot);

impl Frozen for Chunks {
    fn next_chunk(&mut self) -> Option<Bytes> {
        self.0.next().map(Bytes::from)
    }
}

struct Loading {
    replica: Arc<Replicated>,
    loader: SnapshotLoader,
}

impl Install for Loading {
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.loader.push(chunk).map_err(|error| error.to_string())
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        let loaded = self.loader.finish().map_err(|error| error.to_string())?;
        self.replica.install(loaded);
        Ok(())
    }
}

struct ThroughGroup(VolatileGroup);

impl Log for ThroughGroup {
    fn propose(&self, entry: Bytes) -> Proposing<'_> {
        Box::pin(async move {
            self.0
                .propose(entry)
                .await
                .map_err(|error| error.to_string())
        })
    }
}
