//! A process' part in one epoch of a volatile group: one openraft instance under one raft id, both never used again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{
    Config, Instant as _, SnapshotPolicy, StepDownPolicy,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError},
    storage::Snapshot,
    vote::RaftLeaderId as _,
};
use quorate_proto::peer::v1::{
    self as peer, ProposeReply, ProposeRequest, Refusal, SnapshotBegin, SnapshotFrame,
    snapshot_frame::Frame,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    contents::Contents,
    machine::{Machine, SnapshotData},
};
use crate::{
    alone::leads_alone,
    error::Error,
    group::{MAX_COMMAND, NotAccepted, WriteError, not_accepted},
    network::{Network, Peers, Scope, bad_snapshot, refuse},
    options::Timing,
    storage::MemoryLog,
    types::{
        Commands, LeaderId, LogId, Member, Membership, Metrics, Replies, StoredMembership,
        TypeConfig, Vote,
    },
    wire,
};

/// A region is a LAN, whatever the control group spans.
pub(super) const TIMING: Timing = Timing::Lan;
/// A leader that was heard of within this time is there. Many heartbeats, and less than the wait before a founding.
const HEARD: Duration = Duration::from_secs(1);
/// Entries after the last snapshot that make the next one due; entries that are kept behind it.
const SNAPSHOT_ENTRIES: u64 = 20_000;
const KEEP_ENTRIES: u64 = 5_000;
/// The same in bytes of commands.
const SNAPSHOT_BYTES: usize = 64 << 20;
const KEEP_BYTES: usize = 32 << 20;
/// Budget of a whole snapshot: 500 MB over a slow network.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(300);

/// A running member.
pub(crate) struct Instance {
    pub(crate) scope: Scope,
    pub(crate) raft: openraft::Raft<TypeConfig, Machine>,
    pub(super) contents: Arc<Contents>,
    pub(super) peers: Arc<Peers>,
    /// Wakes whoever reconciles the membership.
    pub(super) poke: Notify,
    pub(super) stop: CancellationToken,
    pub(super) started: Instant,
    log: MemoryLog,
    /// Microseconds from `started` to the last frame of a leader; 0: none yet.
    heard: AtomicU64,
    /// How far the leader had committed when this member first heard of it.
    joined_at: OnceLock<u64>,
    receiving: tokio::sync::Mutex<()>,
}

impl Instance {
    /// Begins to take part. `founder`: the epoch begins with what this process holds.
    pub(super) async fn start(
        contents: Arc<Contents>,
        peers: Arc<Peers>,
        scope: Scope,
        me: Member,
        founder: bool,
    ) -> Result<Self, Error> {
        let id = scope.raft_id;
        let (log, machine) = if founder {
            let (lease, index) = contents.found(scope.epoch);
            let base = LogId::new(LeaderId::new(1, id), index);
            let alone = Membership::new(vec![[id].into()], BTreeMap::from([(id, me)]))
                .map_err(|error| Error::Raft(error.to_string()))?;
            let membership = StoredMembership::new(Some(base), alone);
            let log = MemoryLog::beginning_after(base, Vote::new(1, id));
            let beginning = Some((base, membership));
            let machine = Machine::new(Arc::clone(&contents), lease, scope.epoch, beginning);
            (log, machine)
        } else {
            let lease = contents.follow();
            let machine = Machine::new(Arc::clone(&contents), lease, scope.epoch, None);
            (MemoryLog::default(), machine)
        };
        let network = Network::new(Arc::clone(&peers), scope);
        let raft = openraft::Raft::new(id, config(scope)?, network, log.clone(), machine)
            .await
            .map_err(|error| Error::Raft(error.to_string()))?;
        if founder {
            // It is its own majority.
            raft.trigger()
                .elect(false)
                .await
                .map_err(|error| Error::Raft(error.to_string()))?;
        }
        Ok(Self {
            scope,
            raft,
            contents,
            peers,
            poke: Notify::new(),
            stop: CancellationToken::new(),
            started: Instant::now(),
            log,
            heard: AtomicU64::new(0),
            joined_at: OnceLock::new(),
            receiving: tokio::sync::Mutex::default(),
        })
    }

    pub(super) async fn stop(&self) {
        self.stop.cancel();
        let _ = self.raft.shutdown().await;
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Stops the clock while there is no other member, and starts it again when there is: soon enough for those that wait an election's time.
    pub(super) fn rest_alone(&self) {
        let alone = leads_alone(&self.raft.metrics().borrow_watched());
        self.raft.runtime_config().tick(!alone);
    }

    /// Consensus has stopped by itself.
    pub(super) fn failed(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .running_state
            .as_ref()
            .err()
            .map(ToString::to_string)
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raft.metrics().borrow_watched().current_leader == Some(self.scope.raft_id)
    }

    /// A leader's frame was accepted.
    pub(crate) fn heard(&self) {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.heard.store(now.max(1), Ordering::Relaxed);
    }

    /// Whether there is a leader that can write, as far as this member can know: it leads and has just heard from a majority,
    /// or it has just heard from a leader.
    pub(super) fn quorate(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.running_state.is_err() {
            return false;
        }
        match metrics.current_leader {
            None => false,
            Some(leader) if leader == self.scope.raft_id => self.has_majority(&metrics, HEARD),
            Some(_) => {
                let heard = self.heard.load(Ordering::Relaxed);
                let then = self.started + Duration::from_micros(heard);
                heard != 0 && then.elapsed() < HEARD
            }
        }
    }

    /// Whether this member leads and has just heard from a majority.
    pub(super) fn can_write(&self) -> bool {
        let (shortest, _) = TIMING.election();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.current_leader == Some(self.scope.raft_id) && self.has_majority(&metrics, shortest)
    }

    /// Whether this leader has heard from a majority so lately. One that votes alone is its own majority; nothing renews its time while
    /// nothing is written.
    fn has_majority(&self, metrics: &Metrics, lately: Duration) -> bool {
        let mut voters = metrics.membership_config.voter_ids();
        if (voters.next(), voters.next()) == (Some(self.scope.raft_id), None) {
            return true;
        }
        let acked = metrics.last_quorum_acked;
        acked.is_some_and(|then| then.elapsed() < lately)
    }

    /// Whether this member has applied as far as the leader had committed when they first met.
    pub(super) fn caught_up(&self) -> bool {
        let metrics = self.metrics();
        let joined_at = match self.joined_at.get() {
            Some(index) => *index,
            None => match metrics.cluster_committed {
                Some(committed) if self.quorate() => {
                    *self.joined_at.get_or_init(|| committed.index)
                }
                _ => return false,
            },
        };
        metrics
            .last_applied
            .is_some_and(|applied| applied.index >= joined_at)
    }

    /// Keeps the log within its bounds; returns its size in bytes.
    pub(super) async fn compact(&self) -> usize {
        let snapshot = self.raft.metrics().borrow_watched().snapshot;
        let size = self.log.size(snapshot.map(|id| id.index), KEEP_BYTES);
        if size.after_snapshot > SNAPSHOT_BYTES {
            let _ = self.raft.trigger().snapshot().await;
        }
        if let Some(upto) = size.purge_to {
            let _ = self.raft.trigger().purge_log(upto).await;
        }
        size.total
    }

    pub(super) fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// Writes an entry as the leader; returns its index and the replica's answer.
    pub(super) async fn write(&self, command: Bytes) -> Result<(u64, Bytes), WriteError> {
        match self.raft.client_write(Commands(command)).await {
            Ok(response) => match response.data {
                Replies::Volatile(answer) => Ok((response.log_id.index, answer)),
                Replies::Control(_) => {
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

    /// Answers a proposal that another member forwarded.
    pub(crate) async fn propose_here(
        &self,
        message: ProposeRequest,
    ) -> Result<ProposeReply, Status> {
        if message.commands.len() > MAX_COMMAND {
            return Err(Status::invalid_argument("the command is too large"));
        }
        let not_leader = |why: NotAccepted| {
            refuse(
                Refusal::NotLeader,
                format!("the command was not accepted ({why:?})"),
            )
        };
        if !self.is_leader() {
            return Err(not_leader(NotAccepted::NotLeader));
        }
        let timeout = Duration::from_millis(message.timeout_ms.into());
        match tokio::time::timeout(timeout, self.write(message.commands)).await {
            Ok(Ok((index, answer))) => Ok(ProposeReply {
                index,
                replies: vec![answer],
            }),
            Ok(Err(WriteError::NotAccepted(why))) => Err(not_leader(why)),
            Ok(Err(WriteError::Unknown(why))) => Err(Status::unknown(why)),
            Ok(Err(WriteError::Stopped)) => Err(Status::unknown("the leader has stopped")),
            Err(_) => Err(Status::deadline_exceeded(
                "the command was not answered in time",
            )),
        }
    }

    /// Takes in a snapshot from the leader, piece by piece; returns this member's vote.
    pub(crate) async fn receive(
        &self,
        begin: SnapshotBegin,
        mut frames: Streaming<SnapshotFrame>,
    ) -> Result<peer::Vote, Status> {
        let _one = self
            .receiving
            .try_lock()
            .map_err(|_| Status::unavailable("another snapshot is being received"))?;
        let began = Instant::now();
        let vote = begin
            .vote
            .as_ref()
            .map(wire::to_vote)
            .ok_or_else(|| bad_snapshot("no vote"))?;
        let meta = wire::to_snapshot_meta(begin.meta.unwrap_or_default())
            .map_err(|error| bad_snapshot(&error.to_string()))?;
        let mut install = self.contents.install();
        let mut length = 0_u64;
        loop {
            match frames.message().await?.and_then(|frame| frame.frame) {
                Some(Frame::Data(bytes)) => {
                    length += bytes.len() as u64;
                    install = tokio::task::spawn_blocking(move || {
                        install.chunk(&bytes).map(|()| install)
                    })
                    .await
                    .map_err(|error| Status::internal(error.to_string()))?
                    .map_err(Status::data_loss)?;
                    // A member that is being brought up to date hears from its leader by this, too.
                    self.heard();
                }
                Some(Frame::End(end)) if end.length == length => break,
                Some(Frame::End(_)) => return Err(bad_snapshot("pieces are missing")),
                Some(Frame::Begin(_)) => return Err(bad_snapshot("it begins twice")),
                None => return Err(bad_snapshot("it was cut off")),
            }
        }
        let snapshot = Snapshot {
            meta,
            snapshot: SnapshotData::Incoming(install),
        };
        let response = self
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        metrics::counter!("quorate_raft_snapshots_installed_total", "group" => self.scope.group)
            .increment(1);
        tracing::info!(
            group = self.scope.group,
            bytes = length,
            seconds = began.elapsed().as_secs_f64(),
            "took in a snapshot"
        );
        Ok(wire::vote(&response.vote))
    }
}

fn config(scope: Scope) -> Result<Arc<Config>, Error> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (shortest, longest) = TIMING.election();
    let config = Config {
        cluster_name: scope.group.to_owned(),
        heartbeat_interval: millis(TIMING.heartbeat()),
        heartbeat_min_interval: Some(millis(TIMING.heartbeat())),
        election_timeout_min: millis(shortest),
        election_timeout_max: millis(longest),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        // Entries are large: about 1 MiB of them goes at a time anyway.
        max_payload_entries: 64,
        replication_lag_threshold: SNAPSHOT_ENTRIES + KEEP_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        purge_batch_size: KEEP_ENTRIES / 4,
        enable_pre_vote: Some(true),
        // There is nothing to restore.
        enable_leader_restore: Some(false),
        removed_leader_step_down: StepDownPolicy::After(millis(shortest)),
        ..Config::default()
    };
    config
        .validate()
        .map(Arc::new)
        .map_err(|error| Error::Raft(error.to_string()))
}
