//! A router node: brings its parts up in order, watches over them, and takes them down in reverse.
//!
//! ```text
//! cluster (consensus, view) -> endpoint plane (actors, routing view) -> gateway -> control API -> ready
//! ```

mod declare;
mod jwks;
mod late;
mod tenancy;
mod usage;
mod wiring;

use crate::cache::CacheParts;
use crate::cache::exchange::CacheReceiver;
use crate::config::{Config, Timing, TlsFiles, advertised};
use crate::explain::{DecisionReceiver, Desk, FileOptions};
use crate::{admin, control, grpc, prometheus};
use anyhow::Context;
use arc_swap::ArcSwap;
use quorate_cache::index::{CacheIndex, IndexConfig};
use quorate_cache::route::CachePlugins;
use quorate_endpoint::{EndpointPlane, Peer, PlaneEvent, PlaneHandle, PlaneOptions};
use quorate_extproc::{ExtProc, ExtProcHandle};
use quorate_gateway::{Gateway, GatewayHandle, GatewayShared, upstream_client_config};
use quorate_proto::v1;
use quorate_raft::{Advertise, Cluster, Options, PeerTls, StopReason};
use quorate_routing::RoutingView;
use quorate_routing::config::Registry;
use quorate_routing::explain::Recorder;
use quorate_routing::identity::Authenticator;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// What a node does when its data directory is empty.
pub enum Start {
    /// Found a cluster.
    Bootstrap,
    /// Join through these nodes.
    Join(Vec<String>),
    /// Refuse to start.
    Resume,
    /// Be a cluster of one without a data directory, holding these resources.
    InMemory(Vec<v1::Resource>),
}

/// Time for a join or a resume until the node is up to date.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Runs a node until `stop` ends or it cannot go on.
///
/// # Errors
/// A part did not start, or the node had to stop by itself.
pub async fn run(config: Config, start: Start, stop: crate::router::Stop) -> anyhow::Result<()> {
    let started = Instant::now();
    let metrics = prometheus::install()?;
    let state = watch::Sender::new(Some("starting".to_owned()));
    // Listening first: an address in use is told before anything is joined or written.
    let control_listener = listen(config.control.listen, "control.listen").await?;
    let admin_listener = listen(config.admin.listen, "admin.listen").await?;
    let readiness = state.subscribe();
    tokio::spawn(prometheus::upkeep(metrics.clone()));
    tokio::spawn(admin::serve(
        admin_listener,
        metrics,
        Arc::new(move || readiness.borrow().clone()),
    ));

    let doors = PeerDoors::default();
    let keeps_files = !matches!(start, Start::InMemory(_));
    let (options, resources) =
        raft_options(&config, start, &doors, control_listener.local_addr()?)?;
    state.send_replace(Some("joining the cluster".into()));
    let mut stop = stop;
    let cluster = tokio::select! {
        cluster = Cluster::start(options) => cluster?,
        () = &mut stop => return Ok(()),
    };
    info!(
        node = cluster.node_name(),
        node_id = cluster.node_id(),
        cluster = cluster.cluster_id(),
        "taking part in the cluster"
    );
    let setting = Setting {
        config: &config,
        doors: &doors,
        keeps_files,
    };
    let node = match Node::assemble(setting, &cluster, resources, control_listener).await {
        Ok(node) => node,
        Err(error) => {
            cluster.shutdown().await;
            return Err(error);
        }
    };
    let result = node.serve(&state, started, stop).await;
    state.send_replace(Some("stopping".into()));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    node.stop(&config).await;
    result
}

/// What is served to other nodes besides consensus, on a listener that opens before it is there.
#[derive(Default)]
struct PeerDoors {
    exchange: late::LateExchange,
    usage: usage::UsageReceiver,
    decisions: DecisionReceiver,
    cache: CacheReceiver,
}

/// What a node is made from.
struct Setting<'a> {
    config: &'a Config,
    doors: &'a PeerDoors,
    /// It has a data directory.
    keeps_files: bool,
}

/// The running parts.
struct Node {
    cluster: Cluster,
    plane: Arc<PlaneHandle>,
    gateway: GatewayHandle,
    ext_proc: Option<ExtProcHandle>,
    shared: Arc<GatewayShared>,
    cache: CacheParts,
    decisions: Arc<Desk>,
    control_stop: CancellationToken,
    control: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Node {
    async fn assemble(
        setting: Setting<'_>,
        cluster: &Cluster,
        resources: Vec<v1::Resource>,
        control_listener: TcpListener,
    ) -> anyhow::Result<Self> {
        let Setting {
            config,
            doors,
            keeps_files,
        } = setting;
        let control_stop = CancellationToken::new();
        let view = Arc::new(ArcSwap::from_pointee(RoutingView::default()));
        let tls = upstream_client_config(&config.gateway.upstream)
            .inspect_err(|error| warn!(%error, "https endpoints cannot be used"))
            .ok();
        let peers = wiring::peers(cluster);
        let index_config = IndexConfig {
            max_bytes: config.cache.max_mib.saturating_mul(1 << 20),
        };
        let index = Arc::new(CacheIndex::new(index_config));
        let plugins = CachePlugins::new(Arc::clone(&index));
        if keeps_files {
            plugins.keep_tokenizers_in(config.node.data_dir.join("tokenizers"));
        }
        let cache_view = Arc::clone(&view);
        let (expiring, seen) = (plugins.clone(), plugins.clone());
        let until = control_stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(expiring.expire()).await });
        let plane = EndpointPlane::start(PlaneOptions {
            node_id: cluster.node_id(),
            instance: cluster.instance().to_owned(),
            cluster_id: cluster.cluster_id().to_owned(),
            region: config.node.region.as_str().into(),
            check_caller: wiring::check_caller(cluster),
            declared: wiring::declared(cluster),
            peers: peers.clone(),
            view: Arc::clone(&view),
            declare: Arc::new(declare::ThroughCluster::new(cluster.clone())),
            tls: tls.clone(),
            timing: quorate_endpoint::Timing::default(),
            registry: plugins.register(Registry::default()),
        })
        .await?;
        let plane = Arc::new(plane);
        let map = (index, index_config);
        let cache = CacheParts::start(cluster, &plane, cache_view, map, seen, tls)
            .await
            .context("cannot follow the engines' KV caches")?;
        doors.exchange.set(plane.load_receiver());
        for resource in resources {
            declare::put(cluster, resource)
                .await
                .context("cannot declare the endpoints")?;
        }
        let shared = GatewayShared::new(view, cluster.node_name());
        if let Some(authenticator) = authenticator(config, cluster, doors, peers, &control_stop)? {
            shared.set_authenticator(authenticator);
        }
        let desk = decisions(config, cluster, &shared, keeps_files);
        doors
            .decisions
            .open(cluster, wiring::check_caller(cluster), Arc::clone(&desk));
        let (check_caller, seen) = (wiring::check_caller(cluster), Arc::clone(cache.desk()));
        doors.cache.open(check_caller, seen);
        let gateway = Gateway::start(config.gateway.clone(), Arc::clone(&shared))?;
        let ext_proc = match config.ext_proc.listen {
            Some(_) => Some(ExtProc::start(
                config.ext_proc.clone(),
                Arc::clone(&shared),
            )?),
            None => None,
        };
        let routes = control::routes(control::ControlContext {
            cluster: cluster.clone(),
            plane: Arc::clone(&plane),
            decisions: Arc::clone(&desk),
            cache: Arc::clone(cache.desk()),
            stop: control_stop.clone(),
        });
        let control = tokio::spawn({
            let (tls, stopped) = (config.control.tls.clone(), control_stop.clone());
            async move {
                grpc::serve(
                    control_listener,
                    tls.as_ref(),
                    routes,
                    stopped.cancelled_owned(),
                )
                .await
            }
        });
        Ok(Self {
            cluster: cluster.clone(),
            plane,
            gateway,
            ext_proc,
            shared,
            cache,
            decisions: desk,
            control_stop,
            control,
        })
    }

    /// Says ready once the view is up to date, then waits for a reason to end.
    async fn serve(
        &self,
        state: &watch::Sender<Option<String>>,
        started: Instant,
        mut stop: crate::router::Stop,
    ) -> anyhow::Result<()> {
        let mut reload = signal(SignalKind::hangup())?;
        let mut problem = self.cluster.problem();
        let mut events = self.plane.events();
        let up_to_date = async {
            let ready = self.cluster.ready(READY_WITHIN).await;
            self.cache.warm().await;
            ready
        };
        tokio::pin!(up_to_date);
        let mut ready = false;
        state.send_replace(Some("catching up with the cluster".into()));
        loop {
            tokio::select! {
                result = &mut up_to_date, if !ready => {
                    if let Err(error) = result {
                        // A cut-off node serves from its last view and says so; it does not give up.
                        warn!(%error, "no leader yet: serving from the last view");
                    }
                    ready = true;
                    self.shared.set_ready(true);
                    state.send_replace(problem.borrow_and_update().clone());
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                    info!(
                        gateway = ?self.gateway.local_addrs(),
                        ext_proc = self.ext_proc.as_ref().map(|server| tracing::field::display(server.local_addr())),
                        seconds = started.elapsed().as_secs_f64(),
                        "ready"
                    );
                }
                () = &mut stop => {
                    info!("stopping: open streams run to their end");
                    return Ok(());
                }
                reason = self.cluster.stopped() => match reason {
                    StopReason::Shutdown => return Ok(()),
                    reason => anyhow::bail!("{reason}"),
                },
                _ = reload.recv() => match self.gateway.reload_certificate() {
                    Ok(()) => info!("certificates are loaded again"),
                    Err(error) => warn!(%error, "the old certificate stays in use"),
                },
                Ok(()) = problem.changed() => {
                    let now = problem.borrow_and_update().clone();
                    if let Some(problem) = &now {
                        warn!(%problem, "this node has a problem");
                    }
                    if ready {
                        state.send_replace(now);
                    }
                }
                event = events.recv() => match event {
                    // Its actor has logged it.
                    Ok(PlaneEvent::Health { .. }) => {}
                    Ok(PlaneEvent::Discovery { pool, why }) => warn!(%pool, why, "discovery"),
                    Ok(PlaneEvent::NodeIdUsedTwice { node_id, .. }) => {
                        error!(node_id, "two live processes say that they are this node: was a data directory copied?");
                    }
                    Ok(PlaneEvent::Failed) => anyhow::bail!("the endpoint actors gave up"),
                    // Some were lost in a burst; the next one comes.
                    Err(_) => {}
                },
            }
        }
    }

    async fn stop(self, config: &Config) {
        self.shared.set_ready(false);
        let within = config.node.drain_timeout.0;
        let picking = async {
            match &self.ext_proc {
                Some(server) => server.drain(within).await,
                None => 0,
            }
        };
        let (cut, picker_cut) = tokio::join!(self.gateway.drain(within), picking);
        if cut > 0 {
            warn!(requests = cut, "cut at the end of the drain");
        }
        if picker_cut > 0 {
            warn!(
                connections = picker_cut,
                "external processing: cut at the end of the drain"
            );
        }
        let decisions = self.decisions;
        if tokio::task::spawn_blocking(move || decisions.stop())
            .await
            .is_err()
        {
            warn!("the file of decisions may lack its end");
        }
        self.control_stop.cancel();
        // Watches never end by themselves.
        if tokio::time::timeout(Duration::from_secs(1), self.control)
            .await
            .is_err()
        {
            info!("open control calls are cut");
        }
        self.cache.stop().await;
        self.plane.shutdown().await;
        self.cluster.shutdown().await;
    }
}

/// Records of requests, kept where the request path finds them.
fn decisions(
    config: &Config,
    cluster: &Cluster,
    shared: &GatewayShared,
    keeps_files: bool,
) -> Arc<Desk> {
    let recorder = Arc::new(Recorder::new(config.explain.recorder()));
    shared.set_recorder(Arc::clone(&recorder));
    let files = FileOptions {
        data_dir: keeps_files.then(|| config.node.data_dir.clone()),
        max_bytes: config.explain.max_file_mib << 20,
    };
    Arc::new(Desk::new(cluster.node_name(), recorder, files))
}

/// Who the clients are and what they may use: kept up to date from the control state and the other nodes. `None`: nobody is asked.
fn authenticator(
    config: &Config,
    cluster: &Cluster,
    doors: &PeerDoors,
    peers: watch::Receiver<Vec<Peer>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Arc<Authenticator>>> {
    if !config.auth.is_required(&config.gateway) {
        info!("clients are not asked who they are: anybody who can connect may use every model");
        return Ok(None);
    }
    let authenticator = Arc::new(Authenticator::default());
    tenancy::follow(cluster, Arc::clone(&authenticator));
    let me = usage::Me {
        cluster_id: cluster.cluster_id().to_owned(),
        node_id: cluster.node_id(),
        start_id: fastrand::u64(1..),
    };
    doors.usage.open(
        me.clone(),
        wiring::check_caller(cluster),
        Arc::clone(&authenticator),
        stop.clone(),
    );
    usage::tell(me, Arc::clone(&authenticator), peers, stop.clone());
    if let Some(jwt) = &config.auth.jwt {
        jwks::follow(jwt, Arc::clone(&authenticator), stop.clone())?;
    }
    let (keys, tenants) = authenticator.table().counts();
    info!(
        keys,
        tenants,
        tokens = config.auth.jwt.is_some(),
        "clients must show an API key or a token"
    );
    Ok(Some(authenticator))
}

async fn listen(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} ({key})"))
}

fn raft_options(
    config: &Config,
    start: Start,
    doors: &PeerDoors,
    control: SocketAddr,
) -> anyhow::Result<(Options, Vec<v1::Resource>)> {
    let mut options = Options::new(config.node_name(), config.peer.listen);
    let mut resources = Vec::new();
    let mut data_dir: Option<PathBuf> = Some(config.node.data_dir.clone());
    options.start = match start {
        Start::Bootstrap => quorate_raft::Start::Bootstrap,
        Start::Join(peers) => quorate_raft::Start::Join(peers),
        Start::Resume => quorate_raft::Start::Resume,
        Start::InMemory(declared) => {
            resources = declared;
            data_dir = None;
            quorate_raft::Start::Bootstrap
        }
    };
    options.data_dir = data_dir;
    options.region.clone_from(&config.node.region);
    options.version = env!("CARGO_PKG_VERSION").to_owned();
    options.auto_voters = config.cluster.auto_voters;
    options.snapshot_every = config.cluster.snapshot_every;
    options.keep_logs = config.cluster.keep_logs;
    options.timing = match config.cluster.timing {
        Timing::Lan => quorate_raft::Timing::Lan,
        Timing::Wan => quorate_raft::Timing::Wan,
    };
    options.tls = config
        .peer
        .tls
        .as_ref()
        .map(|TlsFiles { ca, cert, key }| PeerTls {
            ca: ca.clone(),
            cert: cert.clone(),
            key: key.clone(),
        });
    let control = advertised(control, &config.control.advertise);
    options.advertise = Advertise {
        peer: Some(config.peer.advertise.clone()).filter(|a| !a.is_empty()),
        gateway: config
            .gateway
            .listen
            .first()
            .map(|listen| reachable(*listen, &control))
            .unwrap_or_default(),
        admin: reachable(config.admin.listen, &control),
        control,
    };
    let services = doors.exchange.routes();
    options.extra_services = Some(
        services
            .add_service(doors.usage.server())
            .add_service(doors.decisions.server())
            .add_service(doors.cache.server()),
    );
    Ok((options, resources))
}

/// What others are told of a listener that has no `advertise` key of its own: the control API's host where it listens on every
/// address; nothing where the system chose the port.
fn reachable(listen: SocketAddr, control: &str) -> String {
    match control.rsplit_once(':') {
        _ if listen.port() == 0 => String::new(),
        Some((host, _)) if listen.ip().is_unspecified() => format!("{host}:{}", listen.port()),
        _ => listen.to_string(),
    }
}
