//! The background work of a running node: says hello to its peers, keeps the peer table in step with the membership, watches
//! over disk and memory, feeds the metrics, and notices when the node has to stop.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use quorate_proto::peer::v1::Refusal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    alone::leads_alone,
    cluster::{Inner, Leadership, StopReason, leadership},
    group::Group,
    identity::DataDir,
    network::{Lane, Peer, refusal_of},
};

const TICK: Duration = Duration::from_secs(1);
const HELLO_TIMEOUT: Duration = Duration::from_millis(900);
/// With less room than this on the disk the node takes no writes and does not lead; with twice as much it does again.
const DISK_RESERVE: u64 = 16 << 20;
/// Bytes of commands after the last snapshot that make the next one due, and bytes that are kept behind a snapshot: what a
/// restart has to read and to apply again stays within a second.
const SNAPSHOT_BYTES: usize = 16 << 20;
const KEEP_BYTES: usize = 8 << 20;

/// What the supervisor works on.
pub(crate) struct Supervisor {
    pub(crate) group: Arc<Group>,
    pub(crate) data: Option<Arc<DataDir>>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) stopped: watch::Sender<Option<StopReason>>,
}

impl Supervisor {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut metrics = self.group.raft.metrics();
        let mut failed = self.group.writer.failed();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.follow_membership();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.tick().await,
                changed = metrics.changed() => {
                    self.follow_membership();
                    if changed.is_err() {
                        self.check_running();
                        return;
                    }
                }
                changed = failed.changed() => {
                    let why = failed.borrow_and_update().clone();
                    if let Some(why) = why {
                        self.group.set_problem(Some(why.clone()));
                        Inner::stop_for(&self.stopped, StopReason::Storage(why));
                    }
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Publishes the leadership, keeps the peer table to the members, and the clock running while there are others.
    fn follow_membership(&self) {
        let now = leadership(&self.group);
        self.leadership.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        let me = self.group.local.node_id;
        let metrics = self.group.raft.metrics();
        let (membership, alone) = {
            let metrics = metrics.borrow_watched();
            (
                Arc::clone(&metrics.membership_config),
                leads_alone(&metrics),
            )
        };
        self.group.raft.runtime_config().tick(!alone);
        for (id, member) in membership.nodes().filter(|(id, _)| **id != me) {
            self.group.peers.learn(*id, member);
        }
        // Before the first log entry is read the membership is empty; what was learned from disk stays until then.
        if membership.nodes().next().is_some() {
            self.group
                .peers
                .retain(|id| membership.get_node(&id).is_some());
        }
        self.check_running();
    }

    fn check_running(&self) {
        if let Err(fatal) = &self.group.raft.metrics().borrow_watched().running_state {
            let failed = self.group.writer.failed().borrow().clone();
            let reason = match failed {
                Some(why) => StopReason::Storage(why),
                None => StopReason::Raft(fatal.to_string()),
            };
            // A deliberate shutdown has noted its reason before.
            Inner::stop_for(&self.stopped, reason);
        }
    }

    async fn tick(&self) {
        self.check_disk().await;
        self.compact().await;
        self.say_hello().await;
        if self
            .group
            .published
            .view()
            .removed_node_by_id(self.group.local.node_id)
            .is_some()
        {
            Inner::stop_for(&self.stopped, StopReason::Removed);
        }
        self.gauges();
    }

    async fn say_hello(&self) {
        let hellos = self.group.peers.all().into_iter().map(|peer| async move {
            self.hello(&peer).await;
        });
        join_all(hellos).await;
    }

    async fn hello(&self, peer: &Peer) {
        let peers = &self.group.peers;
        let Ok(mut client) = peers.client(peer, Lane::Urgent) else {
            return;
        };
        let hello = peers.hello(peer.node_id, false);
        match tokio::time::timeout(HELLO_TIMEOUT, client.hello(hello)).await {
            Ok(Ok(reply)) => peer.reported(reply.into_inner()),
            Ok(Err(status)) => match refusal_of(&status) {
                Some(Refusal::Removed) => Inner::stop_for(&self.stopped, StopReason::Removed),
                Some(Refusal::Duplicate) => {
                    Inner::stop_for(
                        &self.stopped,
                        StopReason::Duplicate(status.message().to_owned()),
                    );
                }
                Some(refusal) => tracing::warn!(
                    node = peer.node_id,
                    ?refusal,
                    why = status.message(),
                    "hello refused"
                ),
                None => {}
            },
            Err(_) => {}
        }
    }

    async fn check_disk(&self) {
        let Some(free) = self.data.as_ref().and_then(|data| data.free_bytes()) else {
            return;
        };
        metrics::gauge!("quorate_raft_disk_free_bytes").set(free as f64);
        let group = &self.group;
        let writable = group.writable.load(Ordering::Relaxed);
        if writable && free < DISK_RESERVE {
            group.writable.store(false, Ordering::Relaxed);
            group.raft.runtime_config().elect(false);
            group.set_problem(Some(format!(
                "only {} KiB are free on the disk of the data directory: this node takes no writes and does not lead",
                free >> 10
            )));
        } else if !writable && free >= 2 * DISK_RESERVE {
            group.writable.store(true, Ordering::Relaxed);
            group.raft.runtime_config().elect(true);
            group.set_problem(None);
        }
        if !group.writable.load(Ordering::Relaxed)
            && group.is_leader()
            && let Some(successor) = group.successor()
        {
            let _ = group.raft.trigger().transfer_leader(successor).await;
        }
    }

    /// openraft compacts by number of entries; this bounds the bytes as well.
    async fn compact(&self) {
        let snapshot = self
            .group
            .raft
            .metrics()
            .borrow_watched()
            .snapshot
            .map(|id| id.index);
        let size = self.group.log.size(snapshot, KEEP_BYTES);
        metrics::gauge!("quorate_raft_log_memory_bytes", "group" => self.group.name)
            .set(size.total as f64);
        if size.after_snapshot > SNAPSHOT_BYTES {
            let _ = self.group.raft.trigger().snapshot().await;
        }
        if let Some(upto) = size.purge_to {
            let _ = self.group.raft.trigger().purge_log(upto).await;
        }
    }

    fn gauges(&self) {
        let group = &self.group;
        let name = group.name;
        let metrics = group.metrics();
        metrics::gauge!("quorate_raft_term", "group" => name).set(metrics.current_term as f64);
        metrics::gauge!("quorate_raft_is_leader", "group" => name)
            .set(f64::from(u8::from(group.is_leader())));
        metrics::gauge!("quorate_raft_has_leader", "group" => name)
            .set(f64::from(u8::from(metrics.current_leader.is_some())));
        metrics::gauge!("quorate_raft_last_log_index", "group" => name)
            .set(metrics.last_log_index.unwrap_or_default() as f64);
        metrics::gauge!("quorate_raft_applied_index", "group" => name)
            .set(group.published.applied().saturating_sub(1) as f64);
        metrics::gauge!("quorate_raft_snapshot_index", "group" => name)
            .set(metrics.snapshot.map_or(0, |id| id.index) as f64);
        metrics::gauge!("quorate_raft_voters", "group" => name).set(group.voters().len() as f64);
        let status = group.status();
        metrics::gauge!("quorate_raft_warnings", "group" => name).set(status.warnings.len() as f64);
        for member in &status.members {
            if let Some(lag) = member.lag {
                metrics::gauge!("quorate_raft_lag_entries", "group" => name, "node" => member.name.clone())
                    .set(lag as f64);
            }
        }
    }
}
