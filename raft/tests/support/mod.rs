//! Nodes in this process, each with a runtime of its own, so that one can be killed without warning.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use quorate_proto::{
    store::v1::{Command, PutResource, command::Op},
    v1::{Kind, Metadata, Resource, SettingSpec, resource::Spec},
};
use quorate_raft::{Applied, Cluster, Error, Options, PeerTls, ProposeError, Start};
use tokio::runtime::Runtime;

pub const WAIT: Duration = Duration::from_secs(30);

/// A node, its runtime and where it lives.
pub struct Node {
    runtime: Option<Runtime>,
    pub cluster: Cluster,
    pub dir: PathBuf,
    pub address: String,
    pub name: String,
}

/// What a test changes about a node's options.
pub type Tweak = Arc<dyn Fn(&mut Options) + Send + Sync>;

pub fn runtime() -> Runtime {
    // Quiet unless RUST_LOG asks.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .try_init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

pub fn free_listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Binds an address that a killed node may still hold for a moment.
pub fn bind(address: &str) -> TcpListener {
    until("the address is free", || TcpListener::bind(address).ok())
}

pub fn options(name: &str, dir: &Path, listener: TcpListener, start: Start) -> Options {
    let mut options = Options::new(name, listener);
    options.data_dir = Some(dir.to_owned());
    options.start = start;
    options
}

impl Node {
    pub fn try_start(options: Options) -> Result<Self, Error> {
        let runtime = runtime();
        let dir = options.data_dir.clone().unwrap_or_default();
        let name = options.node_name.clone();
        match runtime.block_on(Cluster::start(options)) {
            Ok(cluster) => {
                let address = cluster.peer_address().to_owned();
                Ok(Self {
                    runtime: Some(runtime),
                    cluster,
                    dir,
                    address,
                    name,
                })
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Runs a future on the node's runtime.
    pub fn block_on<F: std::future::Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    pub fn handle(&self) -> tokio::runtime::Handle {
        self.runtime.as_ref().unwrap().handle().clone()
    }

    pub fn id(&self) -> u64 {
        self.cluster.node_id()
    }

    pub fn ready(&self) {
        self.block_on(self.cluster.ready(WAIT)).unwrap();
    }

    /// Drops the runtime with everything that runs on it: no goodbye, sockets just close.
    pub fn kill(mut self) -> (PathBuf, String, String) {
        self.runtime.take().unwrap().shutdown_background();
        (self.dir.clone(), self.address.clone(), self.name.clone())
    }

    pub fn stop(mut self) -> (PathBuf, String, String) {
        let runtime = self.runtime.take().unwrap();
        runtime.block_on(self.cluster.shutdown());
        runtime.shutdown_background();
        (self.dir.clone(), self.address.clone(), self.name.clone())
    }

    pub fn put(&self, name: &str, json: &str) -> Result<Applied, ProposeError> {
        self.block_on(self.cluster.propose_within(put(name, json), WAIT))
    }

    pub fn setting(&self, name: &str) -> Option<String> {
        setting(&self.cluster, name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts again what was killed or stopped. The old process may take a moment to let go of the directory.
pub fn restart(
    dir: &Path,
    address: &str,
    name: &str,
    tweak: Option<&Tweak>,
) -> Result<Node, Error> {
    let started = Instant::now();
    loop {
        let mut options = options(name, dir, bind(address), Start::Resume);
        if let Some(tweak) = tweak {
            tweak(&mut options);
        }
        match Node::try_start(options) {
            Err(Error::Locked(_)) if started.elapsed() < WAIT => {
                std::thread::sleep(Duration::from_millis(10))
            }
            other => return other,
        }
    }
}

/// A cluster in temporary directories.
pub struct Fleet {
    pub nodes: Vec<Node>,
    pub root: tempfile::TempDir,
    pub tweak: Tweak,
}

impl Fleet {
    pub fn new(size: usize) -> Self {
        Self::with(size, Arc::new(|_| {}))
    }

    pub fn with(size: usize, tweak: Tweak) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut fleet = Self {
            nodes: Vec::new(),
            root,
            tweak,
        };
        for _ in 0..size {
            fleet.add();
        }
        fleet
    }

    /// Adds a node: the first founds the cluster, the others join it.
    pub fn add(&mut self) -> &Node {
        let name = format!("node-{}", self.nodes.len() + 1);
        let start = match self.nodes.first() {
            None => Start::Bootstrap,
            Some(_) => Start::Join(self.nodes.iter().map(|node| node.address.clone()).collect()),
        };
        self.add_as(&name, start)
    }

    pub fn add_as(&mut self, name: &str, start: Start) -> &Node {
        let mut options = options(name, &self.root.path().join(name), free_listener(), start);
        (self.tweak)(&mut options);
        let node = Node::try_start(options).unwrap();
        node.ready();
        self.nodes.push(node);
        self.nodes.last().unwrap()
    }

    /// Index of the node that leads, as the node itself sees it.
    pub fn leader(&self) -> usize {
        until("a leader", || {
            self.nodes.iter().position(|node| node.cluster.is_leader())
        })
    }

    pub fn follower(&self) -> usize {
        let leader = self.leader();
        (0..self.nodes.len())
            .find(|index| *index != leader)
            .unwrap()
    }

    pub fn restart(&mut self, (dir, address, name): (PathBuf, String, String)) -> &Node {
        let node = restart(&dir, &address, &name, Some(&self.tweak)).unwrap();
        self.nodes.push(node);
        self.nodes.last().unwrap()
    }

    /// Waits until all nodes have applied what the leader has, and compares their states.
    pub fn check_equal(&self) {
        let leader = &self.nodes[self.leader()];
        let want = leader.cluster.view();
        for node in &self.nodes {
            until("the node has caught up", || {
                (node.cluster.view().applied_index() >= want.applied_index()).then_some(())
            });
            let have = node.cluster.view();
            if have.applied_index() == want.applied_index() {
                for kind in [Kind::Setting, Kind::Node, Kind::Region] {
                    let (a, b): (Vec<_>, Vec<_>) =
                        (have.list(kind).collect(), want.list(kind).collect());
                    assert_eq!(a, b, "{} differs", node.name);
                }
            }
        }
    }
}

pub fn put(name: &str, json: &str) -> Command {
    put_if(name, json, None)
}

pub fn put_if(name: &str, json: &str, expected_version: Option<u64>) -> Command {
    let resource = Resource {
        metadata: Some(Metadata {
            name: name.to_owned(),
            ..Metadata::default()
        }),
        spec: Some(Spec::Setting(SettingSpec {
            json: json.to_owned(),
        })),
    };
    Command {
        op: Some(Op::Put(PutResource {
            resource: Some(resource),
            expected_version,
        })),
        ..Command::default()
    }
}

pub fn setting(cluster: &Cluster, name: &str) -> Option<String> {
    let view = cluster.view();
    view.get(Kind::Setting, name)
        .and_then(|resource| match &resource.spec {
            Some(Spec::Setting(setting)) => Some(setting.json.clone()),
            _ => None,
        })
}

/// Polls until there is an answer.
pub fn until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(started.elapsed() < WAIT, "timed out waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A certificate authority and node certificates, written as PEM files.
pub struct Authority {
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
    dir: PathBuf,
}

impl Authority {
    pub fn new(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(dir.join("ca.pem"), cert.pem()).unwrap();
        Self {
            key,
            params,
            dir: dir.to_owned(),
        }
    }

    /// Files for a node whose certificate names `name`.
    pub fn issue(&self, name: &str) -> PeerTls {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let uri = format!("{}{name}", quorate_raft::NODE_URI_PREFIX);
        params
            .subject_alt_names
            .push(rcgen::SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let cert = params.signed_by(&key, &issuer).unwrap();
        let files = PeerTls {
            ca: self.dir.join("ca.pem"),
            cert: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}
