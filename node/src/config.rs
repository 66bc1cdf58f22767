//! The configuration of a router node: one TOML file, every key with a default, unknown keys refused with a suggestion.
//!
//! `deploy/router.toml` is the annotated example; a test keeps it and these types in step.

pub mod auth;
pub mod explain;

use crate::log::LogConfig;
use anyhow::Context;
use quorate_extproc::ExtProcConfig;
use quorate_gateway::{GatewayConfig, HumanDuration};
use quorate_raft::state::validate;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who this node is.
    pub node: NodeConfig,
    /// How the cluster works together; what is set at the bootstrap holds for all nodes.
    pub cluster: ClusterConfig,
    /// Node-to-node traffic.
    pub peer: PeerConfig,
    /// The gRPC control API.
    pub control: ControlConfig,
    /// The OpenAI-compatible front.
    pub gateway: GatewayConfig,
    /// Who may use it.
    pub auth: auth::AuthConfig,
    /// The endpoint picker for an existing Envoy.
    pub ext_proc: ExtProcConfig,
    /// The map of KV-cache blocks.
    pub cache: CacheConfig,
    /// Which requests leave a record.
    pub explain: explain::ExplainConfig,
    /// Metrics and health over HTTP.
    pub admin: AdminConfig,
    /// Logs.
    pub log: LogConfig,
}

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Unique name in the cluster; empty: the host name.
    pub name: String,
    /// The region the node stands in.
    pub region: String,
    /// Where the replicated state is kept.
    pub data_dir: PathBuf,
    /// Longest time that open streams get to end when the node stops.
    pub drain_timeout: HumanDuration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            region: "default".into(),
            data_dir: "/var/lib/quorate".into(),
            drain_timeout: HumanDuration::secs(570),
        }
    }
}

/// `[cache]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Memory that the map of KV-cache blocks may take, in MiB. The same on all nodes of a region.
    pub max_mib: usize,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { max_mib: 2048 }
    }
}

/// `[cluster]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Timers of the consensus: one region, or several. The bootstrap decides; a node that joins must agree.
    pub timing: Timing,
    /// A joining node becomes a voter while there are fewer voters than this.
    pub auto_voters: usize,
    /// Addresses (host:port of [peer]) of nodes to join through; the command line's --join goes before it.
    pub join: Vec<String>,
    /// Log entries between two snapshots of the control state.
    pub snapshot_every: u64,
    /// Log entries kept behind a snapshot, for nodes that were away for a moment.
    pub keep_logs: u64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            timing: Timing::Lan,
            auto_voters: 3,
            join: Vec::new(),
            snapshot_every: 20_000,
            keep_logs: 10_000,
        }
    }
}

/// Named timer presets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// Round trips of up to about 10 ms.
    #[default]
    Lan,
    /// Voters in several regions.
    Wan,
}

/// `[peer]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerConfig {
    /// Where other nodes connect to.
    pub listen: SocketAddr,
    /// host:port that other nodes use for it; empty: the listening address.
    pub advertise: String,
    /// Mutual TLS; required unless every peer is on loopback.
    pub tls: Option<TlsFiles>,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            advertise: String::new(),
            tls: None,
        }
    }
}

/// A key, its certificate and the authority that the other side must be signed by (PEM files).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// This node's certificate chain.
    pub cert: PathBuf,
    /// This node's private key.
    pub key: PathBuf,
}

/// `[control]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where the control API listens.
    pub listen: SocketAddr,
    /// host:port that clients use for it; empty: the listening address.
    pub advertise: String,
    /// TLS; clients must show a certificate of this authority. Required unless `listen` is loopback.
    pub tls: Option<TlsFiles>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            advertise: String::new(),
            tls: None,
        }
    }
}

/// `[admin]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Where /metrics, /health and /ready listen.
    pub listen: SocketAddr,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7072)),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Says the file, the line and the key, with the nearest known key for one that is unknown.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text)
            .with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        toml::from_str(text).map_err(|e| {
            let hint = did_you_mean(e.message())
                .map(|h| format!("\n{h}"))
                .unwrap_or_default();
            anyhow::anyhow!("{}{hint}", e.to_string().trim_end())
        })
    }

    /// Checks what no single key shows.
    ///
    /// # Errors
    /// Names the keys that do not fit together.
    pub fn check(&self) -> anyhow::Result<()> {
        // Told here as well: a node that is stopped while it starts would not say it.
        validate::name("node name", &self.node_name())?;
        anyhow::ensure!(
            !self.node.region.is_empty(),
            "node.region must not be empty"
        );
        self.gateway.validate()?;
        self.auth.check()?;
        self.ext_proc.validate()?;
        self.explain.check()?;
        anyhow::ensure!(
            self.cluster.auto_voters % 2 == 1 && self.cluster.auto_voters <= 7,
            "cluster.auto_voters is {}: use an odd number of at most 7",
            self.cluster.auto_voters
        );
        anyhow::ensure!(
            self.cluster.snapshot_every > 0,
            "cluster.snapshot_every must be at least 1"
        );
        anyhow::ensure!(
            self.peer.tls.is_some() || self.peer.listen.ip().is_loopback(),
            "peer.listen is {}, and node-to-node traffic without TLS is allowed on loopback only: set [peer.tls] \
             (`quorate certs` makes the files)",
            self.peer.listen
        );
        anyhow::ensure!(
            self.control.tls.is_some() || self.control.listen.ip().is_loopback(),
            "control.listen is {}, and the control API without TLS is allowed on loopback only: set [control.tls] \
             (`quorate certs` makes the files)",
            self.control.listen
        );
        for (key, listen, advertise) in [
            ("peer", self.peer.listen, &self.peer.advertise),
            ("control", self.control.listen, &self.control.advertise),
        ] {
            anyhow::ensure!(
                !(listen.ip().is_unspecified() && advertise.is_empty()),
                "{key}.listen is {listen}, which other nodes cannot connect to: set {key}.advertise to host:port"
            );
        }
        Ok(())
    }

    /// The node's name: the configured one, else the host name.
    pub fn node_name(&self) -> String {
        if self.node.name.is_empty() {
            let uname = rustix::system::uname();
            uname.nodename().to_string_lossy().to_lowercase()
        } else {
            self.node.name.clone()
        }
    }
}

/// `advertise` if set, else the listening address.
pub fn advertised(listen: SocketAddr, advertise: &str) -> String {
    if advertise.is_empty() {
        listen.to_string()
    } else {
        advertise.to_owned()
    }
}

/// The nearest known key to the one that serde says is unknown.
fn did_you_mean(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown ") {
        return None;
    }
    let unknown = quoted.next()?;
    let (nearest, distance) = quoted
        .map(|known| (known, strsim::osa_distance(unknown, known)))
        .min_by_key(|(_, distance)| *distance)?;
    (distance <= 1 + unknown.len() / 3).then(|| format!("did you mean `{nearest}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotated_example_is_valid_and_says_the_defaults() {
        let text = include_str!("../../deploy/router.toml");
        let config = Config::parse(text).unwrap();
        config.check().unwrap();
        // Every commented-out key must be a key that exists: uncommented, the file still parses.
        let uncommented: String = text
            .lines()
            .map(|line| match line.strip_prefix("#= ") {
                Some(setting) => format!("{setting}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let all = Config::parse(&uncommented).unwrap();
        assert!(all.peer.tls.is_some());
        assert!(config.ext_proc.listen.is_none() && all.ext_proc.listen.is_some());
        assert!(all.ext_proc.tls.is_some());
        // What is shown beside an example is the default.
        assert_eq!(
            format!("{:?}", all.explain),
            format!("{:?}", explain::ExplainConfig::default())
        );
        let shown = format!(
            "{:?}",
            quorate_extproc::ExtProcConfig {
                listen: None,
                seed: None,
                trust_headers: None,
                tls: None,
                ..all.ext_proc
            }
        );
        assert_eq!(
            shown,
            format!("{:?}", quorate_extproc::ExtProcConfig::default())
        );
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let error = Config::parse("[node]\nnam = \"x\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("unknown field `nam`") && error.contains("did you mean `name`?"),
            "{error}"
        );
        assert!(error.contains("line 2"), "{error}");
        let error = Config::parse("[gatway]\n").unwrap_err().to_string();
        assert!(error.contains("did you mean `gateway`?"), "{error}");
        let error = Config::parse("[cluster]\ntiming = \"wam\"\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean `wan`?"), "{error}");
        assert!(Config::parse("node = 3").is_err() && Config::parse("[node").is_err());
    }

    #[test]
    fn plain_text_off_loopback_is_refused() {
        for text in [
            "[peer]\nlisten = \"10.0.0.1:7071\"",
            "[control]\nlisten = \"10.0.0.1:7070\"",
        ] {
            let error = Config::parse(text)
                .unwrap()
                .check()
                .unwrap_err()
                .to_string();
            assert!(error.contains("loopback only"), "{error}");
        }
        let error = Config::parse("[cluster]\nauto_voters = 2")
            .unwrap()
            .check()
            .unwrap_err()
            .to_string();
        assert!(error.contains("odd"), "{error}");
        let error = Config::parse("[node]\nname = \"Not A Name\"")
            .unwrap()
            .check()
            .unwrap_err()
            .to_string();
        assert!(error.contains("node name"), "{error}");
    }
}
