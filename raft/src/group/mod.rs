//! A running group: the consensus handle with what belongs to it, and the operations that a leader performs.

mod freshness;
mod join;
mod membership;
mod pace;
mod proposer;
mod quorum;
mod reader;
mod status;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    ReadPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
};
use tokio::sync::watch;

pub(crate) use freshness::Freshness;
pub use membership::Members;
pub use proposer::Applied;
pub(crate) use proposer::{MAX_COMMAND, Proposer, refusal_error};
pub(crate) use reader::Reader;
pub use status::{ClusterStatus, MemberStatus, Role};

use crate::{
    machine::Published,
    network::{Local, Peers},
    options::Timing,
    state::Reply,
    storage::{LogStore, Writer},
    types::{Commands, Metrics, Raft, Replies, TypeConfig},
};

/// What the parts of a node that deal with a group share.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) writer: Arc<Writer>,
    pub(crate) published: Arc<Published>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) local: Arc<Local>,
    pub(crate) auto_voters: usize,
    /// One membership change at a time.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Cleared while the disk is nearly full: the node takes no writes and does not lead.
    pub(crate) writable: AtomicBool,
    /// What is wrong with this node itself, in words.
    pub(crate) problem: watch::Sender<Option<String>>,
}

/// Why a batch was not written by this node.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// Certainly not in the log: this node does not lead, or may not accept writes at present.
    NotAccepted(NotAccepted),
    /// It may or may not end up committed.
    Unknown(String),
    /// Consensus has stopped on this node; the entry may or may not end up committed.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAccepted {
    NotLeader,
    /// Leads, but has not heard from a quorum for the length of a lease (always so just after an election).
    NoQuorum,
    Storage,
    Stopped,
}

pub(crate) fn not_accepted(forward: &ForwardToLeader<TypeConfig>) -> NotAccepted {
    match forward.reason {
        ForwardReason::LeaseExpired => NotAccepted::NoQuorum,
        ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => NotAccepted::NotLeader,
    }
}

impl Group {
    pub(crate) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().current_leader
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.leader() == Some(self.local.node_id)
    }

    pub(crate) fn timing(&self) -> Timing {
        self.local.timing
    }

    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        self.raft
            .metrics()
            .borrow_watched()
            .membership_config
            .voter_ids()
            .collect()
    }

    /// Waits until the known leader is another one than `than`, or `at_most` has passed.
    pub(crate) async fn leader_change(&self, than: Option<u64>, at_most: Duration) {
        let mut metrics = self.raft.metrics();
        let changed = async {
            while metrics.borrow_watched().current_leader == than {
                if metrics.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let _ = tokio::time::timeout(at_most, changed).await;
    }

    /// Writes one entry as the leader; returns its index and the commands' replies once it is applied here.
    pub(crate) async fn write(&self, commands: Bytes) -> Result<(u64, Vec<Reply>), WriteError> {
        if !self.writable.load(Ordering::Relaxed) {
            return Err(WriteError::NotAccepted(NotAccepted::Storage));
        }
        match self.raft.client_write(Commands(commands)).await {
            Ok(response) => match response.data {
                Replies::Control(replies) => Ok((response.log_id.index, replies)),
                Replies::Volatile(_) => {
                    Err(WriteError::Unknown("an answer of another group".into()))
                }
            },
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(WriteError::NotAccepted(not_accepted(&forward)))
            }
            Err(RaftError::APIError(error)) => Err(WriteError::Unknown(error.to_string())),
            Err(RaftError::Fatal(_)) => Err(WriteError::Stopped),
        }
    }

    /// The index that a reader must have applied, asked of this node as the leader. `lease`: trust the lease instead of
    /// asking a quorum.
    pub(crate) async fn read_index(&self, lease: bool) -> Result<u64, NotAccepted> {
        let policy = if lease {
            ReadPolicy::LeaseRead
        } else {
            ReadPolicy::ReadIndex
        };
        match self.raft.get_read_linearizer(policy).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(not_accepted(&forward))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(NotAccepted::NoQuorum)
            }
            Err(RaftError::Fatal(_)) => Err(NotAccepted::Stopped),
        }
    }

    /// Sets or clears what is wrong with this node.
    pub(crate) fn set_problem(&self, problem: Option<String>) {
        self.problem.send_if_modified(|known| {
            if *known == problem {
                return false;
            }
            match &problem {
                Some(problem) => tracing::error!(problem, "this node is not healthy"),
                None => tracing::info!("this node is healthy again"),
            }
            *known = problem;
            true
        });
    }
}
