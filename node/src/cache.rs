//! The map of KV-cache blocks on this node: its replica in the region's `cache` group, and what this node as an owner tells the group.

pub mod desk;
pub mod exchange;
pub mod figures;
pub mod merge;
pub mod regions;
mod usage;
mod wire;

use bytes::Bytes;
use desk::{CacheDesk, is_followed};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quorate_cache::feed::actor::{
    CacheFeeder, FeederHandle, FeederOptions, Log, Proposing, Target, Targets,
};
use quorate_cache::feed::{Asking, Engines, Replicated};
use quorate_cache::index::{CacheIndex, IndexConfig, Snapshot, SnapshotLoader};
use quorate_cache::route::CachePlugins;
use quorate_endpoint::PlaneHandle;
use quorate_raft::{Cluster, Frozen, Install, Replica, VolatileGroup};
use quorate_routing::{RoutingView, SharedView};
use regions::Regions;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use usage::Usage;

/// Longest wait for the group's contents before the node says that it is ready.
const WARM_WITHIN: Duration = Duration::from_secs(30);
/// How often ownership and the pools' wishes are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often the map's figures are published.
const FIGURES: Duration = Duration::from_secs(1);
/// Time and bytes of an engine's answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const MAX_ANSWER: usize = 1 << 20;

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
    ) -> anyhow::Result<Self> {
        let replica = Arc::new(Replicated::new(Arc::clone(&index), config));
        let group = cluster
            .volatile_group("cache", Arc::new(InGroup(Arc::clone(&replica))))
            .await?;
        let stop = CancellationToken::new();
        let (told, targets) = watch::channel(Targets::default());
        let watching = watch_targets(
            cluster.node_id(),
            Arc::clone(plane),
            Arc::clone(&view),
            told,
        );
        let (until, warm) = (stop.clone(), group.clone());
        tokio::spawn(async move {
            // Before that, a holder that is not there may only not have come yet.
            let all = async {
                warm.warm().await;
                watching.await;
            };
            until.run_until_cancelled(all).await;
        });
        let feeder = CacheFeeder::start(FeederOptions {
            part: (cluster.node_id() as u32) << 16 | u32::from(fastrand::u16(..)),
            replica: Arc::clone(&replica),
            log: Arc::new(ThroughGroup(group.clone())),
            engines: Arc::new(OverHttp),
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

    /// Returns once this node has what the group has, or has waited long enough: a cold map costs prefills, not requests.
    pub async fn warm(&self) {
        if tokio::time::timeout(WARM_WITHIN, self.group.warm())
            .await
            .is_err()
        {
            tracing::warn!("the map of KV-cache blocks is not here yet: serving without it");
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
        let now = targets(&view.load(), |name, region| {
            nodes.endpoint_owner(name, region) == Some(node_id)
        });
        told.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn targets(view: &RoutingView, is_ours: impl Fn(&str, &str) -> bool) -> Targets {
    let mut owned = Vec::new();
    let mut declared = BTreeSet::new();
    for pool in view.pools() {
        let needs = pool.policy.cache.as_ref().filter(|_| is_followed(pool));
        for endpoint in &pool.endpoints {
            let spec = endpoint.spec();
            declared.insert(spec.incarnation);
            let Some(needs) = needs.filter(|_| is_ours(&spec.name, &spec.region)) else {
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
                needs: Arc::clone(needs),
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

/// Engines are asked over plain HTTP; one connection a question.
struct OverHttp;

impl Engines for OverHttp {
    fn get<'a>(&'a self, endpoint: &'a Target, path: &'a str) -> Asking<'a> {
        Box::pin(async move {
            match tokio::time::timeout(ANSWER_WITHIN, get(endpoint, path)).await {
                Ok(answer) => answer.map_err(|error| format!("{path}: {error}")),
                Err(_) => Err(format!("{path}: no answer within {ANSWER_WITHIN:?}")),
            }
        })
    }
}

async fn get(endpoint: &Target, path: &str) -> anyhow::Result<Option<Bytes>> {
    let target = &endpoint.target;
    anyhow::ensure!(
        !target.tls,
        "engines behind https are not asked; name the events' port in the pool's configuration"
    );
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, &target.authority)
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await;
    let answer = match answer {
        Ok(answer) if answer.status() == http::StatusCode::OK => {
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            Ok(Some(
                body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes(),
            ))
        }
        Ok(answer) if answer.status() == http::StatusCode::NOT_FOUND => Ok(None),
        Ok(answer) => Err(anyhow::anyhow!("status {}", answer.status())),
        Err(error) => Err(error.into()),
    };
    driving.abort();
    answer
}
