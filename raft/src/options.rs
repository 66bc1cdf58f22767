//! What a node is started with.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use tonic::service::Routes;

/// Everything that [`Cluster::start`](crate::Cluster::start) needs to know.
pub struct Options {
    /// Where identity, log and snapshots are kept; the directory is created. `None`: memory only, gone with the process (a
    /// single node without a configuration, or a test).
    pub data_dir: Option<PathBuf>,
    /// Unique in the cluster; 1 to 253 characters as in resource names.
    pub node_name: String,
    /// The region that the node lies in; created when its first node registers.
    pub region: String,
    /// Where node-to-node traffic is served.
    pub peer_listen: PeerListen,
    /// What other nodes and clients are told to connect to.
    pub advertise: Advertise,
    /// Version of the binary, for `cluster status`.
    pub version: String,
    /// Timers; all nodes of a cluster must agree.
    pub timing: Timing,
    /// Mutual TLS between nodes. `None` is allowed only while every peer address is a loopback address.
    pub tls: Option<PeerTls>,
    /// What to do when the data directory is empty.
    pub start: Start,
    /// A joining node becomes a voter while there are fewer than this; else it stays a learner.
    pub auto_voters: usize,
    /// Log entries between two snapshots.
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot for followers that lag a little.
    pub keep_logs: u64,
    /// How long [`Cluster::propose`](crate::Cluster::propose) tries.
    pub propose_timeout: Duration,
    /// What "durable" means.
    pub durability: Durability,
    /// Further gRPC services on the peer listener, behind the same mutual TLS.
    pub extra_services: Option<Routes>,
}

impl Options {
    /// Defaults for everything that has one: memory only, bootstrap, LAN timers, three voters.
    pub fn new(node_name: impl Into<String>, peer_listen: impl Into<PeerListen>) -> Self {
        Self {
            data_dir: None,
            node_name: node_name.into(),
            region: "default".to_owned(),
            peer_listen: peer_listen.into(),
            advertise: Advertise::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            timing: Timing::Lan,
            tls: None,
            start: Start::Bootstrap,
            auto_voters: 3,
            snapshot_every: 20_000,
            keep_logs: 10_000,
            propose_timeout: Duration::from_secs(5),
            durability: Durability::Synced,
            extra_services: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("data_dir", &self.data_dir)
            .field("node_name", &self.node_name)
            .field("region", &self.region)
            .field("peer_listen", &self.peer_listen)
            .field("timing", &self.timing)
            .field("tls", &self.tls)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

/// A socket address to bind, or a listener that the caller has bound (port 0 in tests, socket activation).
#[derive(Debug)]
pub enum PeerListen {
    /// Bind this.
    Address(SocketAddr),
    /// Use this.
    Bound(TcpListener),
}

impl From<SocketAddr> for PeerListen {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<TcpListener> for PeerListen {
    fn from(listener: TcpListener) -> Self {
        Self::Bound(listener)
    }
}

/// Addresses (`host:port`) that go into the node's resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertise {
    /// Node-to-node traffic. `None`: the address that is listened on, which must then not be a wildcard.
    pub peer: Option<String>,
    /// The control API; may be empty.
    pub control: String,
    /// The gateway; may be empty.
    pub gateway: String,
    /// Metrics and health; may be empty.
    pub admin: String,
}

/// Named timer presets. Leases are only safe if all nodes use the same one, so it is fixed at bootstrap and checked at join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// Nodes a few milliseconds apart: a dead leader is replaced in about 0.7 s.
    #[default]
    Lan,
    /// Nodes up to about 100 ms apart: about 3.5 s.
    Wan,
}

impl Timing {
    /// The name in `InitCluster` and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
        }
    }

    /// Time between heartbeats.
    pub fn heartbeat(self) -> Duration {
        Duration::from_millis(match self {
            Self::Lan => 60,
            Self::Wan => 250,
        })
    }

    /// Shortest and longest election timeout. The longest is the leader's lease as well.
    pub fn election(self) -> (Duration, Duration) {
        match self {
            Self::Lan => (Duration::from_millis(200), Duration::from_millis(400)),
            Self::Wan => (Duration::from_millis(1000), Duration::from_millis(2000)),
        }
    }

    /// HTTP/2 pings between nodes: how often, and how long an answer may take.
    pub(crate) fn keepalive(self) -> Duration {
        match self {
            Self::Lan => Duration::from_millis(500),
            Self::Wan => Duration::from_secs(2),
        }
    }

    /// Longest time that opening a connection may take.
    pub(crate) fn connect(self) -> Duration {
        match self {
            Self::Lan => Duration::from_millis(500),
            Self::Wan => Duration::from_secs(3),
        }
    }

    /// Time between two measurements of how far the local view may be behind.
    pub(crate) fn freshness(self) -> Duration {
        match self {
            Self::Lan => Duration::from_millis(100),
            Self::Wan => Duration::from_millis(500),
        }
    }
}

impl FromStr for Timing {
    type Err = UnknownTiming;

    fn from_str(name: &str) -> Result<Self, UnknownTiming> {
        match name {
            "lan" => Ok(Self::Lan),
            "wan" => Ok(Self::Wan),
            _ => Err(UnknownTiming(name.to_owned())),
        }
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Neither `lan` nor `wan`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown timing preset {0:?}: lan or wan")]
pub struct UnknownTiming(String);

/// PEM files for mutual TLS between nodes. The certificate must be signed by `ca`, be good for client and server
/// authentication, and name the node in exactly one URI subject alternative name: `quorate://node/<node name>`. A peer is
/// who its certificate says, whatever address it was reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTls {
    /// Certificates of the authorities that sign the nodes' certificates.
    pub ca: PathBuf,
    /// This node's certificate, followed by intermediates.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a node with an empty data directory does. A node whose directory has an identity resumes it, whatever this says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Found a new cluster.
    Bootstrap,
    /// Ask these peers (`host:port`) to be taken in.
    Join(Vec<String>),
    /// Nothing: an empty directory is an error.
    Resume,
}

/// When a write counts as durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// On disk, power cuts included.
    #[default]
    Synced,
    /// Handed to the kernel: survives the process, not the machine. For throw-away clusters; a power cut can lose
    /// acknowledged writes or damage the database.
    Unsynced,
}
