//! The handle of a running node.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::async_runtime::watch::WatchReceiver;
use quorate_proto::{
    peer::v1::Replace, peer::v1::change_membership_request::Change, store::v1::Command,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;

use crate::{
    error::{ChangeError, Error, ProposeError, ReadError},
    group::{Applied, ClusterStatus, Freshness, Group, Members, Proposer, Reader},
    network::{Admission, Lane, caller_of},
    options::{Options, Timing},
    start,
    state::ControlView,
    volatile::Hosted,
    watch::{ResumeToken, WatchError, WatchFilter, WatchStream},
};

/// How long reads and `ready` try by default.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Reflects every write acknowledged before the call, on whichever node. Needs a quorum.
    Linearizable,
    /// The node's own view, at once.
    Stale,
}

/// Which state a read was served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadStamp {
    /// Log index that the view had applied.
    pub applied_index: u64,
    /// How far the view may be behind the cluster; `None` if no leader was heard of since start.
    pub age: Option<Duration>,
    /// The node that answered.
    pub node_id: u64,
}

/// Why a node stopped, or has to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// [`Cluster::shutdown`] was called.
    #[error("the node was shut down")]
    Shutdown,
    /// The node was removed from the cluster. Its data directory is of no further use.
    #[error("this node was removed from the cluster for good; its data directory can be deleted")]
    Removed,
    /// Another process runs with this node's identity.
    #[error("{0}")]
    Duplicate(String),
    /// The data directory cannot be written; consensus has stopped, nothing more is acknowledged.
    #[error("{0}; the node must be restarted once that is repaired")]
    Storage(String),
    /// Consensus stopped for another reason.
    #[error("consensus stopped: {0}")]
    Raft(String),
}

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader_id: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Whether this node is it.
    pub here: bool,
}

/// Another node, for services that talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Raft id.
    pub node_id: u64,
    /// Name of its resource.
    pub name: String,
    /// Its region; empty until it is registered here.
    pub region: String,
    /// `host:port` of node-to-node traffic.
    pub address: String,
    /// Heard of within the last seconds.
    pub reachable: bool,
}

/// A running node of a cluster. Clones are handles of the same node; the node runs until [`Cluster::shutdown`] (or until its
/// runtime ends), not until the last handle is dropped.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) group: Arc<Group>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) hosted: Arc<Hosted>,
    pub(crate) proposer: Proposer,
    pub(crate) reader: Reader,
    pub(crate) freshness: Freshness,
    pub(crate) propose_timeout: Duration,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopped: watch::Sender<Option<StopReason>>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    /// The node's role is settled: joining is over.
    pub(crate) settled: watch::Receiver<bool>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("cluster_id", &self.cluster_id())
            .field("node_id", &self.node_id())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// Starts a node: resumes the identity in the data directory, or founds or joins a cluster as the options say. Returns
    /// once the node takes part; [`Cluster::ready`] waits until it is up to date.
    ///
    /// # Errors
    /// [`Error`]: nothing is left running.
    pub async fn start(options: Options) -> Result<Self, Error> {
        start::start(options).await
    }

    /// Applies a command, on whichever node leads, within the configured time.
    ///
    /// # Errors
    /// [`ProposeError`], which says whether the command may have been applied.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.propose_within(command, self.inner.propose_timeout)
            .await
    }

    /// [`Cluster::propose`] with a time limit of its own.
    ///
    /// The command's `time_unix_ms` (if 0) and `origin_node_id` are filled in. Without an idempotency key the command gets
    /// one that only this call knows, so that it is applied at most once however often it has to be sent.
    ///
    /// # Errors
    /// As [`Cluster::propose`].
    pub async fn propose_within(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Applied, ProposeError> {
        self.inner.proposer.propose(command, timeout).await
    }

    /// The local view of the applied state. Lock-free; never waits.
    pub fn view(&self) -> Arc<ControlView> {
        self.inner.group.published.view()
    }

    /// A view with a guarantee of how fresh it is.
    ///
    /// # Errors
    /// [`ReadError`] for linearizable reads without a quorum; stale reads always succeed.
    pub async fn read(
        &self,
        consistency: Consistency,
    ) -> Result<(Arc<ControlView>, ReadStamp), ReadError> {
        self.read_within(consistency, READ_TIMEOUT).await
    }

    /// [`Cluster::read`] with a time limit of its own.
    ///
    /// # Errors
    /// As [`Cluster::read`].
    pub async fn read_within(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<(Arc<ControlView>, ReadStamp), ReadError> {
        let asked = Instant::now();
        let age = match consistency {
            Consistency::Linearizable => {
                self.inner.reader.barrier(timeout).await?;
                // Fresh as of the call, hence at most this old now.
                Some(asked.elapsed())
            }
            Consistency::Stale => self.age(),
        };
        let view = self.view();
        let stamp = ReadStamp {
            applied_index: view.applied_index(),
            age,
            node_id: self.node_id(),
        };
        Ok((view, stamp))
    }

    /// How far the local view may be behind the cluster; `None` if no leader was heard of since start.
    pub fn age(&self) -> Option<Duration> {
        self.inner.freshness.age()
    }

    /// Follows changes. See [`WatchHub::subscribe`](crate::watch::WatchHub::subscribe).
    ///
    /// # Errors
    /// [`WatchError`] if the token cannot be resumed from here.
    pub fn watch(
        &self,
        filter: WatchFilter,
        resume: Option<&ResumeToken>,
    ) -> Result<WatchStream, WatchError> {
        self.inner.group.published.hub.subscribe(filter, resume)
    }

    /// The view's revision, for those who only need to know that something changed.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.inner.group.published.revision()
    }

    /// Who leads; changes as that does.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.inner.group.is_leader()
    }

    /// This node's raft id.
    pub fn node_id(&self) -> u64 {
        self.inner.group.local.node_id
    }

    /// This node's name.
    pub fn node_name(&self) -> &str {
        &self.inner.group.local.name
    }

    /// The identity of this node's data directory.
    pub fn instance(&self) -> &str {
        &self.inner.group.local.instance
    }

    /// The random number of this process.
    pub fn start_id(&self) -> u64 {
        self.inner.group.local.start_id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> &str {
        &self.inner.group.local.cluster_id
    }

    /// The cluster's timing preset.
    pub fn timing(&self) -> Timing {
        self.inner.group.timing()
    }

    /// `host:port` of this node's peer listener, as told to others.
    pub fn peer_address(&self) -> &str {
        &self.inner.group.local.peer_address
    }

    /// What is wrong with this node itself, in words; `None` if it is healthy.
    pub fn problem(&self) -> watch::Receiver<Option<String>> {
        self.inner.group.problem.subscribe()
    }

    /// Waits until the node has its place in the cluster and its view is as fresh as at least the moment it was started,
    /// including everything that this node had acknowledged before a restart.
    ///
    /// # Errors
    /// [`ReadError::NoLeader`] if that did not come about in time.
    pub async fn ready(&self, timeout: Duration) -> Result<(), ReadError> {
        let ready = async {
            let mut settled = self.inner.settled.clone();
            settled
                .wait_for(|settled| *settled)
                .await
                .map_err(|_| ReadError::Stopped)?;
            self.inner
                .group
                .raft
                .wait_for_recovery(None)
                .await
                .map_err(|_| ReadError::Stopped)?;
            self.inner.reader.barrier(timeout).await
        };
        tokio::time::timeout(timeout, ready)
            .await
            .unwrap_or(Err(ReadError::NoLeader { waited: timeout }))
    }

    /// The cluster as seen from here.
    pub fn status(&self) -> ClusterStatus {
        self.inner.group.status()
    }

    /// Makes a learner a voter, once it has caught up.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn promote(&self, node_id: u64) -> Result<Members, ChangeError> {
        self.inner.group.change(Change::Promote(node_id)).await
    }

    /// Makes a voter a learner.
    ///
    /// # Errors
    /// [`ChangeError`]; refused if the remaining reachable voters were no majority.
    pub async fn demote(&self, node_id: u64) -> Result<Members, ChangeError> {
        self.inner.group.change(Change::Demote(node_id)).await
    }

    /// Takes a node out for good: its id and its data directory are refused from then on.
    ///
    /// # Errors
    /// As [`Cluster::demote`].
    pub async fn remove(&self, node_id: u64) -> Result<Members, ChangeError> {
        self.inner.group.change(Change::Remove(node_id)).await
    }

    /// One membership change that takes a dead voter out for good and puts a learner in its place.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn replace(&self, dead: u64, new: u64) -> Result<Members, ChangeError> {
        self.inner
            .group
            .change(Change::Replace(Replace { dead, new }))
            .await
    }

    /// Hands the leadership to a voter, or to the one that is farthest; returns the leader then.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64, ChangeError> {
        let members = self
            .inner
            .group
            .change(Change::Transfer(to.unwrap_or_default()))
            .await?;
        Ok(members.leader)
    }

    /// All other nodes.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let status = self.status();
        let me = self.node_id();
        let others = status
            .members
            .into_iter()
            .filter(|member| member.node_id != me);
        others
            .map(|member| {
                let peer = self
                    .inner
                    .group
                    .peers
                    .get(member.node_id)
                    .map(|peer| peer.member());
                PeerInfo {
                    node_id: member.node_id,
                    name: member.name,
                    region: member.node.map(|node| node.region).unwrap_or_default(),
                    address: peer.map(|peer| peer.peer_address).unwrap_or_default(),
                    reachable: member.reachable,
                }
            })
            .collect()
    }

    /// The connection to another node that consensus uses as well, for further services on the peer listener. It is opened
    /// when first used and reconnects by itself; ask again after an error, because the node may have moved.
    pub fn peer_channel(&self, node_id: u64) -> Option<Channel> {
        let peers = &self.inner.group.peers;
        let peer = peers.get(node_id)?;
        peers.channel(&peer, Lane::Data).ok()
    }

    /// Whether a call on the peer listener may speak for a node, by the same check as consensus makes: the node was not
    /// removed, and with mutual TLS the caller's certificate names it. `call` is the request's extensions. For
    /// [`Options::extra_services`].
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn check_caller(
        &self,
        node_id: u64,
        call: &tonic::Extensions,
    ) -> Result<(), tonic::Status> {
        let caller = caller_of(call);
        self.inner.admission.check_node(node_id, caller.as_ref())
    }

    /// Waits until the node has stopped or has to, and says why. After anything but [`StopReason::Shutdown`] the process
    /// should call [`Cluster::shutdown`] and end with the message.
    pub async fn stopped(&self) -> StopReason {
        let mut stopped = self.inner.stopped.subscribe();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(StopReason::Shutdown),
            Err(_) => StopReason::Shutdown,
        }
    }

    /// Leaves the volatile groups, hands the leadership over, if this node leads, then stops and closes the data directory.
    pub async fn shutdown(&self) {
        self.inner.hosted.shutdown().await;
        let group = &self.inner.group;
        if group.is_leader() && group.voters().len() > 1 {
            let (_, longest) = group.timing().election();
            let transfer = group
                .change_as_leader(Change::Transfer(0), Instant::now() + 3 * longest)
                .await;
            if let Err(error) = transfer {
                tracing::warn!(%error, "stopping without handing the leadership over");
            }
        }
        self.inner.stopped.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert(StopReason::Shutdown);
            first
        });
        let _ = group.raft.shutdown().await;
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        if let Err(error) = group.writer.close().await {
            tracing::warn!(%error, "closing the data directory");
        }
    }
}

impl Inner {
    /// Notes the first reason to stop.
    pub(crate) fn stop_for(stopped: &watch::Sender<Option<StopReason>>, reason: StopReason) {
        stopped.send_if_modified(|known| {
            if known.is_some() {
                return false;
            }
            tracing::error!(%reason, "this node has to stop");
            *known = Some(reason);
            true
        });
    }
}

/// The leadership in openraft's metrics.
pub(crate) fn leadership(group: &Group) -> Leadership {
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    Leadership {
        leader_id: metrics.current_leader,
        term: metrics.current_term,
        here: metrics.current_leader == Some(group.local.node_id),
    }
}
