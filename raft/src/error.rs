//! The crate's errors. Each says what was refused, why, and what to do about it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use quorate_proto::store::v1::Rejection;

use crate::snapshot::SnapshotError;
pub use crate::storage::StorageError;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value in the options cannot be used.
    #[error("{0}")]
    Options(String),
    /// The peer address cannot be listened on.
    #[error("cannot listen on {address} for node-to-node traffic: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another process uses the data directory.
    #[error("{}: another process uses this data directory", .0.display())]
    Locked(PathBuf),
    /// The data directory is empty and the node was told to resume.
    #[error("{}: there is no node here to resume; bootstrap a cluster or join one", .0.display())]
    NoIdentity(PathBuf),
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A snapshot file cannot be used.
    #[error(
        "{0}. The node does not start, because it could answer with wrong state. Remove this node from the cluster and let it \
         join again with an empty data directory"
    )]
    Snapshot(#[from] SnapshotError),
    /// A certificate or key cannot be used.
    #[error("{}: {why}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Plain text to a peer that is not on this machine.
    #[error(
        "{0} is not a loopback address: node-to-node traffic to other machines needs TLS (ca, cert and key)"
    )]
    PlainText(String),
    /// The cluster, or a member of it, refused this node.
    #[error("refused by {peer}: {why}")]
    Refused {
        /// Address of the peer that refused.
        peer: String,
        /// Its reason.
        why: String,
    },
    /// No peer could take the node in.
    #[error("could not join within {} s: {why}", .waited.as_secs())]
    JoinTimeout {
        /// How long it was tried.
        waited: Duration,
        /// The last reason.
        why: String,
    },
    /// Consensus did not start.
    #[error("consensus did not start: {0}")]
    Raft(String),
}

/// Why a command was not (or may not have been) applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// The state refused it; nothing was changed. Repeating the same command does not help.
    #[error("{}", .0.message)]
    Rejected(Rejection),
    /// There was no leader with a quorum within the deadline. The command was certainly not applied.
    #[error("no leader with a quorum was reached within {waited:?}; nothing was changed")]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
    },
    /// The command was handed to a leader and no answer came in time: it may or may not be applied. Retry with the same
    /// idempotency key, or read.
    #[error("no answer within {waited:?}; whether the command was applied is unknown")]
    Timeout {
        /// How long was waited.
        waited: Duration,
    },
    /// The leader's disk is nearly full and no other node could take over. Nothing was changed.
    #[error("the leader's disk is nearly full; nothing was changed")]
    NoSpace,
    /// More commands are waiting than the node holds. Nothing was changed.
    #[error("too many commands are waiting")]
    Overloaded,
    /// Larger than a log entry may be.
    #[error("the command has {size} bytes, {limit} are allowed")]
    TooLarge {
        /// Encoded size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The node is stopping or its storage has failed. A command that was under way may or may not be applied.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a linearizable read could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There was no leader with a quorum within the deadline.
    #[error("no leader with a quorum confirmed the read within {waited:?}")]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// Why a membership change or a leadership transfer did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The cluster has no such node.
    #[error("there is no node {0} in the cluster")]
    UnknownNode(u64),
    /// The change makes no sense, or would cost the quorum.
    #[error("{0}")]
    Refused(String),
    /// Another change is under way, or there is no leader.
    #[error("{0}; try again")]
    Unavailable(String),
    /// Begun, and not finished in time; it may still come about.
    #[error("{0}; the change may still come about, see the cluster's status")]
    Timeout(String),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}
