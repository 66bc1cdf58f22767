//! Keeps this process a member of its group: joins, begins each epoch, asks for a new one when the majority is gone, and
//! leaves at the end. One task for each group.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use quorate_proto::{
    peer::v1::group_progress::State,
    store::v1::{
        Command, FoundVolatile, JoinVolatile, LeaveVolatile, VolatileGroup as Record, command::Op,
    },
    v1::resource::Spec,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    contents::{Contents, Position},
    founding::{self, Outlook, Word},
    instance::{Instance, TIMING},
    reconcile,
};
use crate::{
    error::ProposeError,
    group::{Group, Proposer},
    network::Scope,
};

const TICK: Duration = Duration::from_millis(100);
const COMPACT_TICKS: u64 = 5;
/// The control group answers within this time, or is asked again later.
const ASK: Duration = Duration::from_secs(2);
/// A peer that has been silent for longer says nothing about the present.
const RECENT_WORD: Duration = Duration::from_secs(3);
/// Epochs that began longer ago do not slow the next one down.
const RECENT_EPOCH: Duration = Duration::from_secs(120);
/// What a member that leaves waits for the others to do without it.
const GOODBYE: Duration = Duration::from_millis(1500);
/// Members that lose their leader at one moment do not ask at one moment.
const JITTER_MS: u64 = 500;

/// See the module.
pub(super) struct Driver {
    pub(super) name: &'static str,
    pub(super) control: Arc<Group>,
    pub(super) proposer: Proposer,
    pub(super) contents: Arc<Contents>,
    pub(super) current: watch::Sender<Option<Arc<Instance>>>,
    pub(super) epoch: watch::Sender<u64>,
    pub(super) warm: watch::Sender<bool>,
    pub(super) stop: CancellationToken,
    /// Number that this membership is known by.
    pub(super) start_id: u64,
    pub(super) region: Arc<parking_lot::Mutex<String>>,
    /// Since when there is no leader that can write.
    pub(super) leaderless: Option<Instant>,
    /// When this process entered epochs.
    pub(super) epochs: VecDeque<Instant>,
    pub(super) jitter: Duration,
}

impl Driver {
    pub(super) async fn run(mut self) {
        let mut applied = self.control.published.applications();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let stop = self.stop.clone();
        let mut count = 0_u64;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = ticks.tick() => {
                    count += 1;
                    if count.is_multiple_of(COMPACT_TICKS) {
                        self.compact().await;
                    }
                }
                changed = applied.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
            }
            self.follow().await;
            self.look().await;
        }
        self.depart().await;
    }

    fn instance(&self) -> Option<Arc<Instance>> {
        self.current.borrow().clone()
    }

    /// Does what the control group has decided about this process.
    async fn follow(&mut self) {
        let view = self.control.published.view();
        let me = self.control.local.node_id;
        let Some(Spec::Node(node)) = view.node_by_id(me).and_then(|node| node.spec.as_ref()) else {
            // Not registered yet, or removed; then the node stops by itself.
            return;
        };
        let region = node.region.clone();
        let record = view.volatile_group(self.name, &region);
        let mine = record.and_then(|record| {
            let mut members = record.members.iter();
            let mine =
                members.find(|member| member.node_id == me && member.start_id == self.start_id)?;
            Some((record, mine.raft_id))
        });
        let Some((record, raft_id)) = mine else {
            *self.region.lock() = region;
            return self.join().await;
        };
        if let Some(instance) = self.instance() {
            if let Some(why) = instance.failed() {
                tracing::error!(
                    group = self.name,
                    why,
                    "a volatile group has stopped here; it is joined anew"
                );
                self.retire().await;
                self.start_id = fastrand::u64(1..);
                return;
            }
            if (instance.scope.epoch, instance.scope.raft_id) == (record.epoch, raft_id) {
                instance.poke.notify_one();
                return;
            }
        }
        let record = Arc::clone(record);
        self.begin(&record, raft_id, &region).await;
    }

    async fn join(&mut self) {
        self.retire().await;
        let join = Op::JoinVolatile(JoinVolatile {
            group: self.name.to_owned(),
            node_id: self.control.local.node_id,
            start_id: self.start_id,
        });
        self.ask_unless_stopped(join, "joining a volatile group")
            .await;
    }

    async fn ask_unless_stopped(&self, op: Op, what: &str) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.ask(op, what) => {}
        }
    }

    /// Proposes a command to the control group; waits until this node has applied it.
    async fn ask(&self, op: Op, what: &str) {
        let command = Command {
            op: Some(op),
            ..Command::default()
        };
        let done = async {
            let applied = self.proposer.propose(command, ASK).await?;
            self.control.published.wait_applied(applied.index).await;
            Ok::<_, ProposeError>(())
        };
        match tokio::time::timeout(ASK, done).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(group = self.name, %error, what, "is tried again"),
            Err(_) => tracing::debug!(group = self.name, what, "is tried again"),
        }
    }

    /// Ends this process' part in the present epoch.
    async fn retire(&self) {
        if let Some(old) = self.current.send_replace(None) {
            old.stop().await;
        }
    }

    async fn begin(&mut self, record: &Record, raft_id: u64, region: &str) {
        self.retire().await;
        let view = self.control.published.view();
        let Some(me) = reconcile::member_of(&view, self.control.local.node_id) else {
            return;
        };
        let scope = Scope {
            group: self.name,
            epoch: record.epoch,
            raft_id,
        };
        let founder = record.founder == raft_id;
        tracing::info!(
            group = self.name,
            region,
            epoch = record.epoch,
            raft_id,
            founder,
            "taking part in a volatile group"
        );
        let peers = Arc::clone(&self.control.peers);
        let contents = Arc::clone(&self.contents);
        match Instance::start(contents, peers, scope, me, founder).await {
            Ok(instance) => {
                let instance = Arc::new(instance);
                tokio::spawn(reconcile::run(
                    Arc::clone(&instance),
                    Arc::clone(&self.control.published),
                    region.to_owned(),
                ));
                self.current.send_replace(Some(instance));
                self.epoch.send_replace(record.epoch);
            }
            Err(error) => {
                tracing::error!(group = self.name, %error, "a volatile group did not start");
                // The id may have been used.
                self.start_id = fastrand::u64(1..);
            }
        }
        let now = Instant::now();
        self.leaderless = Some(now);
        self.jitter = Duration::from_millis(fastrand::u64(0..JITTER_MS));
        self.epochs.push_back(now);
        self.epochs.retain(|then| then.elapsed() < RECENT_EPOCH);
    }

    /// Looks after the running instance.
    async fn look(&mut self) {
        let Some(instance) = self.instance() else {
            return;
        };
        instance.rest_alone();
        if instance.quorate() {
            self.leaderless = None;
        } else {
            self.leaderless.get_or_insert_with(Instant::now);
        }
        if !*self.warm.borrow() && instance.caught_up() {
            tracing::info!(group = self.name, "up to date with a volatile group");
            self.warm.send_replace(true);
        }
        if let Some(since) = self.leaderless {
            self.consider_founding(&instance, since).await;
        }
    }

    async fn compact(&self) {
        if let Some(instance) = self.instance() {
            let bytes = instance.compact().await;
            metrics::gauge!("quorate_raft_log_memory_bytes", "group" => self.name)
                .set(bytes as f64);
        }
    }

    async fn consider_founding(&self, instance: &Instance, since: Instant) {
        let view = self.control.published.view();
        let region = self.region.lock().clone();
        let Some(record) = view
            .volatile_group(self.name, &region)
            .filter(|record| record.epoch == instance.scope.epoch)
        else {
            return;
        };
        let outlook = self.outlook(record, instance.scope.raft_id);
        let due = founding::patience(&outlook)
            .is_some_and(|patience| since.elapsed() >= patience + self.jitter);
        if !due {
            return;
        }
        tracing::warn!(
            group = self.name,
            epoch = record.epoch,
            "no leader with a majority: asking for a new epoch of a volatile group"
        );
        let found = Op::FoundVolatile(FoundVolatile {
            group: self.name.to_owned(),
            node_id: self.control.local.node_id,
            start_id: self.start_id,
            expected_epoch: record.epoch,
        });
        self.ask_unless_stopped(found, "a new epoch").await;
    }

    /// What the other members have last said about themselves.
    fn outlook(&self, record: &Record, me: u64) -> Outlook {
        let others = record.members.iter().filter(|member| member.raft_id != me);
        let mut outlook = Outlook {
            me,
            position: self.contents.position(),
            others: others.clone().count(),
            recent: u32::try_from(self.epochs.len().saturating_sub(1)).unwrap_or(u32::MAX),
            ..Outlook::default()
        };
        for member in others {
            let peer = self.control.peers.get(member.node_id);
            let Some(peer) = peer.filter(|peer| peer.silent_for().is_some_and(|s| s < RECENT_WORD))
            else {
                continue;
            };
            outlook.reachable += 1;
            let report = peer.report();
            let mut said = report.iter().flat_map(|report| &report.groups);
            let said = said.find(|said| said.group == self.name && said.epoch == record.epoch);
            outlook.words.extend(said.map(|said| Word {
                raft_id: member.raft_id,
                leads: said.state() == State::Leader,
                leader: (said.leader_id != 0).then_some(said.leader_id),
                quorate: said.quorate,
                position: Position {
                    epoch: said.contents_epoch,
                    index: (said.contents_epoch != 0).then_some(said.applied_index),
                },
            }));
        }
        outlook
    }

    /// Hands the leadership over, leaves, and waits a little for the others to go on without this member.
    async fn depart(self) {
        if let Some(instance) = self.instance() {
            let metrics = instance.metrics();
            let others = metrics.membership_config.voter_ids().count() > 1;
            if others && instance.quorate() {
                hand_over(&instance).await;
            }
            let leave = Op::LeaveVolatile(LeaveVolatile {
                group: self.name.to_owned(),
                node_id: self.control.local.node_id,
                start_id: self.start_id,
            });
            let leave = self.ask(leave, "leaving a volatile group");
            let _ = tokio::time::timeout(GOODBYE, leave).await;
            if others && instance.quorate() {
                let _ = tokio::time::timeout(GOODBYE, dispensable(&instance)).await;
            }
        }
        self.retire().await;
    }
}

/// If this member leads, makes the voter lead that has most of the log.
async fn hand_over(instance: &Instance) {
    if !instance.is_leader() {
        return;
    }
    let metrics = instance.metrics();
    let replication = metrics.replication.unwrap_or_default();
    let successor = metrics
        .membership_config
        .voter_ids()
        .filter(|id| *id != instance.scope.raft_id)
        .max_by_key(|id| replication.get(id).copied().flatten());
    let Some(successor) = successor else {
        return;
    };
    let _ = instance.raft.trigger().transfer_leader(successor).await;
    let (_, longest) = TIMING.election();
    let moved = async {
        while instance.is_leader() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(2 * longest, moved).await.is_err() {
        tracing::warn!(
            group = instance.scope.group,
            "stopping without handing the leadership over"
        );
    }
}

/// Returns once the membership that is being agreed on does not have this member's vote.
async fn dispensable(instance: &Instance) {
    loop {
        let metrics = instance.metrics();
        let sets = metrics.membership_config.membership().get_joint_config();
        if !sets
            .last()
            .is_some_and(|voters| voters.contains(&instance.scope.raft_id))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
