//! Routers as far as the map goes: a cluster member, its replica of the map in the `cache` group, and the feeder that follows its engines. Each
//! has a runtime of its own, whose threads bear its name.

use bytes::Bytes;
use quorate_cache::feed::actor::{
    CacheFeeder, FeederHandle, FeederOptions, Log, Proposing, Target, Targets,
};
use quorate_cache::feed::{Asking, Engines, Replicated};
use quorate_cache::index::{CacheIndex, IndexConfig, Snapshot, SnapshotLoader};
use quorate_raft::{Cluster, Frozen, Install, Options, Replica, Start, VolatileGroup};
use quorate_routing::cache::{CacheNeeds, EventsFrom};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const WAIT: Duration = Duration::from_secs(120);

pub struct Node {
    pub runtime: Runtime,
    pub cluster: Cluster,
    pub group: VolatileGroup,
    pub replica: Arc<Replicated>,
    /// Follows the engines until it is dropped.
    feeder: FeederHandle,
    pub targets: watch::Sender<Targets>,
}

impl Node {
    /// Starts a router; returns when its map is what the group has.
    pub fn start(number: usize, address: &str, dir: &Path, start: Start) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(format!("node{number}"))
            // Longer than a measurement: what threads have used is forgotten when they end.
            .thread_keep_alive(Duration::from_secs(600))
            .enable_all()
            .build()
            .expect("a runtime");
        let mut options = Options::new(format!("n{number}"), bind(address));
        options.data_dir = Some(dir.join(format!("n{number}")));
        options.start = start;
        let (told, targets) = watch::channel(Targets::default());
        let (cluster, group, replica, feeder) = runtime.block_on(async {
            let cluster = Cluster::start(options).await.expect("a member");
            cluster.ready(WAIT).await.expect("a cluster");
            let config = IndexConfig::default();
            let index = Arc::new(CacheIndex::new(config));
            let replica = Arc::new(Replicated::new(index, config));
            let group = cluster
                .volatile_group("cache", Arc::new(InGroup(Arc::clone(&replica))))
                .await
                .expect("a group");
            tokio::time::timeout(WAIT, group.warm())
                .await
                .expect("warm");
            let feeder = CacheFeeder::start(FeederOptions {
                part: number as u32,
                replica: Arc::clone(&replica),
                log: Arc::new(ThroughGroup(group.clone())),
                engines: Arc::new(NotAsked),
                targets,
            });
            let feeder = feeder.await.expect("an actor");
            (cluster, group, replica, feeder)
        });
        Self {
            runtime,
            cluster,
            group,
            replica,
            feeder,
            targets: told,
        }
    }

    pub fn index(&self) -> &Arc<CacheIndex> {
        self.replica.index()
    }

    /// Ends it without a goodbye.
    pub fn kill(self) {
        drop(self.feeder);
        self.runtime.shutdown_background();
    }

    /// Has an entry applied on all.
    pub fn propose(&self, entry: Bytes) {
        let proposing = self.group.propose(entry);
        self.runtime.block_on(proposing).expect("a leader");
    }
}

/// Follows these engines: number and port.
pub fn follow(node: &Node, engines: &[(u64, u16)], all: u64) {
    let owned = engines.iter().map(|(number, port)| Target {
        endpoint: *number,
        name: format!("e{number}").into(),
        target: quorate_routing::Target::new(false, "127.0.0.1", *port),
        model: "m".into(),
        rank: Some(0),
        needs: Arc::new(CacheNeeds {
            events: EventsFrom::Port(*port),
            algorithm: Some("sha256_cbor".into()),
            ..CacheNeeds::default()
        }),
    });
    let declared: BTreeSet<u64> = (0..all).collect();
    node.targets.send_replace(Targets {
        owned: owned.collect(),
        declared: Some(declared),
    });
}

/// An address that a killed node may still hold for a moment.
fn bind(address: &str) -> TcpListener {
    let began = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(began.elapsed() < WAIT, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
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
        Box::new(Loading(Arc::clone(&self.0), self.0.loader()))
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

struct Loading(Arc<Replicated>, SnapshotLoader);

impl Install for Loading {
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.1.push(chunk).map_err(|error| error.to_string())
    }
    fn finish(self: Box<Self>) -> Result<(), String> {
        let loaded = self.1.finish().map_err(|error| error.to_string())?;
        self.0.install(loaded);
        Ok(())
    }
}

struct ThroughGroup(VolatileGroup);

impl Log for ThroughGroup {
    fn propose(&self, entry: Bytes) -> Proposing<'_> {
        let proposing = async move { self.0.propose(entry).await };
        Box::pin(async move { proposing.await.map_err(|error| error.to_string()) })
    }
}

/// The ports are known.
struct NotAsked;

impl Engines for NotAsked {
    fn get<'a>(&'a self, _: &'a Target, path: &'a str) -> Asking<'a> {
        Box::pin(async move { Err(format!("{path}: nobody is asked")) })
    }
}
