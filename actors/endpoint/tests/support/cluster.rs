//! Router nodes, each with a runtime of its own, so that dropping one closes its sockets as a crash does; and the replicated
//! state that they would share.

use arc_swap::ArcSwap;
use quorate_endpoint::{
    CheckCaller, Declare, DeclareError, Declared, DiscoveryOp, EndpointPlane, Peer, PlaneHandle,
    PlaneOptions, Timing,
};
use quorate_proto::v1::{self, resource::Spec};
use quorate_routing::{Endpoint, RoutingView, SharedView};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

/// The replicated state: one watch for everybody, and the write path of discovery.
#[derive(Clone)]
pub struct State {
    pub declared: Arc<watch::Sender<Declared>>,
    version: Arc<Mutex<u64>>,
    /// Discovery's proposals so far.
    pub proposed: Arc<Mutex<Vec<DiscoveryOp>>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            declared: Arc::new(watch::channel(Declared::default()).0),
            version: Arc::new(Mutex::new(100)),
            proposed: Arc::default(),
        }
    }
}

impl State {
    fn next(&self) -> u64 {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        *version
    }

    pub fn pool(&self, name: &str, spec: v1::PoolSpec) {
        self.put(name, Spec::Pool(spec), &[]);
    }

    pub fn endpoint(&self, name: &str, pool: &str, url: &str) {
        let spec = v1::EndpointSpec {
            pool: pool.into(),
            url: url.into(),
            region: "r".into(),
            ..Default::default()
        };
        self.put(name, Spec::Endpoint(spec), &[]);
    }

    pub fn put(&self, name: &str, spec: Spec, labels: &[(&str, &str)]) {
        let version = self.next();
        self.declared.send_modify(|declared| {
            let list = match spec {
                Spec::Pool(_) => &mut declared.pools,
                _ => &mut declared.endpoints,
            };
            let old = list
                .iter()
                .position(|r| r.metadata.as_ref().unwrap().name == name);
            let incarnation = old.map_or(version, |i| list.remove(i).metadata.unwrap().incarnation);
            list.push(v1::Resource {
                metadata: Some(v1::Metadata {
                    name: name.into(),
                    resource_version: version,
                    incarnation,
                    labels: labels
                        .iter()
                        .map(|(k, v)| ((*k).into(), (*v).into()))
                        .collect(),
                    ..Default::default()
                }),
                spec: Some(spec),
            });
        });
    }

    pub fn delete_endpoint(&self, name: &str) {
        self.declared.send_modify(|d| {
            d.endpoints
                .retain(|r| r.metadata.as_ref().unwrap().name != name)
        });
    }

    pub fn endpoint_names(&self) -> Vec<String> {
        let declared = self.declared.borrow();
        let mut names: Vec<String> = declared
            .endpoints
            .iter()
            .map(|r| r.metadata.as_ref().unwrap().name.clone())
            .collect();
        names.sort();
        names
    }
}

#[tonic::async_trait]
impl Declare for State {
    async fn apply(&self, ops: Vec<DiscoveryOp>) -> Result<(), DeclareError> {
        for op in ops {
            self.proposed.lock().unwrap().push(op.clone());
            match op {
                DiscoveryOp::Put { resource, .. } => {
                    let meta = resource.metadata.unwrap();
                    let labels: Vec<(&str, &str)> = meta
                        .labels
                        .iter()
                        .map(|(k, v)| (k.as_str(), v.as_str()))
                        .collect();
                    self.put(&meta.name, resource.spec.unwrap(), &labels);
                }
                DiscoveryOp::Delete { name, .. } => self.delete_endpoint(&name),
            }
        }
        Ok(())
    }
}

pub struct Node {
    pub id: u64,
    pub address: SocketAddr,
    pub plane: PlaneHandle,
    pub view: SharedView,
    runtime: Option<Runtime>,
}

/// The peers that every node knows.
#[derive(Clone)]
pub struct Peers(Arc<watch::Sender<Vec<Peer>>>);

impl Default for Peers {
    fn default() -> Self {
        Self(Arc::new(watch::channel(Vec::new()).0))
    }
}

impl Peers {
    pub fn add(&self, node_id: u64, region: &str, address: SocketAddr) {
        let uri = format!("http://{address}");
        let peer = Peer {
            node_id,
            region: region.into(),
            address: address.to_string().into(),
            connect: Arc::new(move || Channel::from_shared(uri.clone()).unwrap().connect_lazy()),
        };
        self.0.send_modify(|peers| {
            peers.retain(|p| p.node_id != node_id);
            peers.push(peer);
        });
    }
}

pub struct Config<'a> {
    pub id: u64,
    pub region: &'a str,
    pub cluster: &'a str,
    pub instance: &'a str,
    pub timing: Timing,
    pub check_caller: CheckCaller,
}

pub fn config(id: u64) -> Config<'static> {
    Config {
        id,
        region: "r",
        cluster: "c",
        instance: "i",
        timing: Timing::default(),
        check_caller: Arc::new(|_, _| Ok(())),
    }
}

impl Node {
    /// Starts a node and makes it known to all others.
    pub async fn start(id: u64, state: &State, peers: &Peers) -> Self {
        let node = Self::start_with(config(id), state, peers).await;
        peers.add(id, "r", node.address);
        node
    }

    /// Starts a node that nobody knows yet.
    pub async fn start_with(config: Config<'_>, state: &State, peers: &Peers) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let view: SharedView = Arc::new(ArcSwap::from_pointee(RoutingView::default()));
        let options = PlaneOptions {
            node_id: config.id,
            instance: config.instance.into(),
            cluster_id: config.cluster.into(),
            region: config.region.into(),
            check_caller: config.check_caller,
            declared: state.declared.subscribe(),
            peers: peers.0.subscribe(),
            view: Arc::clone(&view),
            declare: Arc::new(state.clone()),
            tls: None,
            timing: config.timing,
            registry: quorate_routing::config::Registry::default(),
        };
        let (plane, address) = runtime
            .spawn(async move {
                let plane = EndpointPlane::start(options).await.unwrap();
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let server = Server::builder().add_service(plane.load_service());
                tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
                (plane, address)
            })
            .await
            .unwrap();
        Self {
            id: config.id,
            address,
            plane,
            view,
            runtime: Some(runtime),
        }
    }

    /// The endpoint as this node's gateway sees it.
    pub fn endpoint(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.view.load().endpoint(name).cloned()
    }

    pub fn describe(&self, name: &str) -> v1::EndpointStatus {
        self.plane.describe(name).unwrap_or_default()
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.describe(name).state() == v1::endpoint_status::State::Ready
    }

    pub fn is_unhealthy(&self, name: &str) -> bool {
        self.describe(name).state() == v1::endpoint_status::State::Unhealthy
    }

    pub fn live(&self) -> Vec<u64> {
        self.plane
            .live_nodes()
            .borrow()
            .iter()
            .map(|(id, _)| id)
            .collect()
    }
}

impl Drop for Node {
    /// Every task ends where it stands and every socket closes.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
