//! The whole plane: started once for each node, stopped with it.

use crate::catalog::Declared;
use crate::directory::{self, Steering};
use crate::discovery::Declare;
use crate::events::PlaneEvent;
use crate::exchange::outbox::Outbox;
use crate::exchange::server::LoadService;
use crate::exchange::table::{Origin, Table};
use crate::exchange::{Peer, Timing, actor as exchange};
use crate::flows::{self, Flows};
use crate::learnt::{self, Lessons};
use crate::ownership::LiveNodes;
use crate::scheduling::Policies;
use crate::shared::{Catalog, Shared};
use crate::signals::Signals;
use crate::supervise::{Children, Supervisor, Wanted};
use crate::task::Task;
use crate::turns::{self, Post};
use crate::{describe, gauges};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quorate_proto::peer::v1::load_exchange_server::LoadExchangeServer;
use quorate_proto::v1::{EndpointStatus, PoolStatus};
use quorate_routing::SharedView;
use quorate_routing::config::Registry;
use quorate_routing::turns::Turns;
use ractor::{Actor, ActorCell};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Events kept for a slow listener.
const EVENTS: usize = 256;
/// Longest message of the load exchange, in bytes.
pub const MESSAGE_LIMIT: usize = 16 << 20;

/// Tells from a call's extensions whether its caller may speak for the node with this id; else what to answer.
pub type CheckCaller =
    Arc<dyn Fn(u64, &tonic::Extensions) -> Result<(), tonic::Status> + Send + Sync>;

/// What a plane needs to know.
pub struct PlaneOptions {
    /// This node.
    pub node_id: u64,
    /// Identity of its data directory.
    pub instance: String,
    /// Its cluster; peers of another one are refused.
    pub cluster_id: String,
    /// Its region.
    pub region: Arc<str>,
    /// Whether a call on the peer listener may speak for a node.
    pub check_caller: CheckCaller,
    /// The declared pools and endpoints, from the replicated state.
    pub declared: watch::Receiver<Declared>,
    /// All other known nodes, alive or not, of all regions.
    pub peers: watch::Receiver<Vec<Peer>>,
    /// Where the routing view is published.
    pub view: SharedView,
    /// Takes what discovery proposes.
    pub declare: Arc<dyn Declare>,
    /// TLS towards https engines; without it they cannot be probed.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Paces of the load exchange.
    pub timing: Timing,
    /// What scheduling configs may name beside the plugins of routing itself.
    pub registry: Registry,
}

/// The plane could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the endpoint plane does not start: {0}")]
pub struct StartError(String);

/// Starts planes.
pub struct EndpointPlane;

impl EndpointPlane {
    /// Starts the actors of a node. Needs a tokio runtime.
    ///
    /// # Errors
    /// The root supervisor does not start.
    pub async fn start(options: PlaneOptions) -> Result<PlaneHandle, StartError> {
        let origin = Origin {
            node_id: options.node_id,
            start_id: fastrand::u64(1..),
            instance: options.instance,
            region: options.region,
        };
        let live: LiveNodes = [(origin.node_id, Arc::clone(&origin.region))]
            .into_iter()
            .collect();
        let post = Arc::new(Post::default());
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let turns = Turns::new(
            origin.node_id,
            since_epoch.map_or(0, |since| since.as_millis() as u64),
            Arc::<Post>::clone(&post),
        );
        let policies = Policies::of_cluster(&options.cluster_id, options.registry);
        let shared = Arc::new(Shared {
            origin,
            cluster_id: options.cluster_id,
            check_caller: options.check_caller,
            timing: options.timing,
            tls: options.tls,
            view: options.view,
            catalog: ArcSwap::from_pointee(Catalog::default()),
            policies: Mutex::new(policies),
            table: Mutex::new(Table::default()),
            outbox: Mutex::new(Outbox::default()),
            outbox_version: watch::channel(0).0,
            heavy_version: watch::channel(0).0,
            signals: Arc::new(Signals::new(turns)),
            live: watch::channel(Arc::new(live)).0,
            rebuild: Notify::new(),
            flows: Arc::new(Flows::default()),
            post,
            lessons: Lessons::default(),
            events: broadcast::channel(EVENTS).0,
            peers: options.peers.clone(),
            stop: CancellationToken::new(),
        });
        let steering = Arc::new(Steering::default());
        let children: Children = [
            ("pools", steering.pools.supervisor("pool")),
            ("discovery", steering.discovery.supervisor("discovery")),
            (
                "exchange",
                exchange::spec(Arc::clone(&shared), options.peers),
            ),
            (
                "directory",
                directory::spec(
                    Arc::clone(&shared),
                    steering,
                    options.declared,
                    options.declare,
                ),
            ),
        ]
        .into_iter()
        .map(|(name, spec)| (Arc::from(name), spec))
        .collect();
        let wanted = Arc::new(Wanted::default());
        wanted.set(children);
        let (root, ended) = Supervisor::spawn(None, Supervisor::new("plane", wanted), ())
            .await
            .map_err(|e| StartError(e.to_string()))?;
        let watched = Arc::clone(&shared);
        let failure = Task::spawn(async move {
            let stopped = watched.stop.clone();
            wait(ended).await;
            if !stopped.is_cancelled() {
                tracing::error!("the endpoint actors gave up");
                watched.tell(PlaneEvent::Failed);
            }
        });
        Ok(PlaneHandle {
            root: root.get_cell(),
            _gauges: Task::spawn(gauges::run(Arc::clone(&shared))),
            _flows: Task::spawn(flows::run(Arc::clone(&shared))),
            _turns: Task::spawn(turns::run(Arc::clone(&shared))),
            _copies: Task::spawn(learnt::copy_for_newcomers(Arc::clone(&shared))),
            _failure: failure,
            shared,
        })
    }
}

async fn wait(ended: JoinHandle<()>) {
    // An aborted or panicked supervisor has ended as well.
    let _ = ended.await;
}

/// A running plane. Dropping it stops everything, as a crash would.
pub struct PlaneHandle {
    shared: Arc<Shared>,
    root: ActorCell,
    _gauges: Task,
    _flows: Task,
    _turns: Task,
    _copies: Task,
    _failure: Task,
}

impl PlaneHandle {
    /// What this node knows of an endpoint; `None`: it is not declared.
    pub fn describe(&self, name: &str) -> Option<EndpointStatus> {
        describe::describe(&self.shared, name)
    }

    /// Says what is wrong with an endpoint in the eyes of another part of this node, each with a name; the other nodes hear of it if this one
    /// owns the endpoint. What is not declared is passed over.
    pub fn set_conditions(&self, name: &str, conditions: Vec<String>) {
        if let Some(entry) = self.shared.catalog.load().entries.get(name) {
            entry.set_conditions(conditions);
        }
    }

    /// What this node schedules a pool by; `None`: it is not declared.
    pub fn describe_pool(&self, name: &str) -> Option<PoolStatus> {
        let mut status = self.shared.policies.lock().status(name)?;
        status.node_id = self.shared.node_id();
        Some(status)
    }

    /// The service that peers report to, for the node-to-node server.
    pub fn load_service(&self) -> LoadExchangeServer<LoadService> {
        LoadExchangeServer::new(self.load_receiver()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// The same without its server, for a listener that opened before the plane was there. Let that take messages of up to
    /// [`MESSAGE_LIMIT`] bytes.
    pub fn load_receiver(&self) -> LoadService {
        LoadService::new(Arc::clone(&self.shared))
    }

    /// The nodes that this node believes alive, itself included.
    pub fn live_nodes(&self) -> watch::Receiver<Arc<LiveNodes>> {
        self.shared.live.subscribe()
    }

    /// Returns once this node hears all nodes of its region that it knows of. Before that it takes for its own what others own.
    pub async fn met(&self) {
        let (mut live, mut peers) = (self.live_nodes(), self.shared.peers.clone());
        loop {
            let all = {
                let (live, peers) = (live.borrow_and_update(), peers.borrow_and_update());
                let mut near = peers
                    .iter()
                    .filter(|peer| peer.region == self.shared.origin.region);
                near.all(|peer| live.iter().any(|(id, _)| id == peer.node_id))
            };
            if all {
                return;
            }
            // An error means that the node ends.
            let changed = tokio::select! {
                changed = live.changed() => changed,
                changed = peers.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Events from now on.
    pub fn events(&self) -> broadcast::Receiver<PlaneEvent> {
        self.shared.events.subscribe()
    }

    /// Stops the actors and ends all streams, so that peers take the endpoints over at once.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.root.stop(None);
        // An error means that it has ended before.
        let _ = self.root.wait(None).await;
    }
}

impl Drop for PlaneHandle {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.root.kill();
    }
}
