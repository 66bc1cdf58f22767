//! What a process knows of its volatile groups.

use quorate_proto::peer::v1::{GroupProgress, group_progress::State};

use super::{VolatileGroup, instance::Instance};
use crate::group::Role;

/// A volatile group as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolatileStatus {
    /// The group's name.
    pub group: &'static str,
    /// Its region; empty until this process has asked to join.
    pub region: String,
    /// Number of the epoch; 0 until this process is a member. A higher one than before: the group began anew, with the
    /// contents of one member, and what was written last may be gone.
    pub epoch: u64,
    /// This process' raft id; 0 until it is a member.
    pub raft_id: u64,
    /// Raft id of the leader, if one is known.
    pub leader: Option<u64>,
    /// The leader can write, as far as this process can know.
    pub quorate: bool,
    /// See [`VolatileGroup::warm`].
    pub warm: bool,
    /// Index of the last entry in the replica's contents; they may stem from an epoch before (see `contents_epoch`).
    pub applied_index: u64,
    /// The epoch that the replica was last changed in; 0: never.
    pub contents_epoch: u64,
    /// Index of the last entry known to be committed.
    pub commit_index: u64,
    /// Bytes of commands that the log holds.
    pub log_bytes: u64,
    /// By raft id.
    pub members: Vec<VolatileMemberStatus>,
}

/// One member of a volatile group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolatileMemberStatus {
    /// Raft id of the process in this group.
    pub raft_id: u64,
    /// The node that it runs on; 0 if that is not known here.
    pub node_id: u64,
    /// The node's name.
    pub name: String,
    /// Voter or learner.
    pub role: Role,
    /// Entries that it lacks; known on the leader only.
    pub lag: Option<u64>,
}

impl VolatileGroup {
    /// The group as this process sees it.
    pub fn status(&self) -> VolatileStatus {
        let position = self.contents.position();
        let mut status = VolatileStatus {
            group: self.name,
            region: self.region.lock().clone(),
            epoch: 0,
            raft_id: 0,
            leader: None,
            quorate: false,
            warm: *self.warm.borrow(),
            applied_index: position.index.unwrap_or_default(),
            contents_epoch: position.epoch,
            commit_index: 0,
            log_bytes: 0,
            members: Vec::new(),
        };
        let Some(instance) = self.current() else {
            return status;
        };
        let metrics = instance.metrics();
        status.epoch = instance.scope.epoch;
        status.raft_id = instance.scope.raft_id;
        status.leader = metrics.current_leader;
        status.quorate = instance.quorate();
        status.commit_index = metrics.cluster_committed.map_or(0, |id| id.index);
        status.log_bytes = instance.log_bytes() as u64;
        status.members = self.members(&instance);
        status
    }

    fn members(&self, instance: &Instance) -> Vec<VolatileMemberStatus> {
        let metrics = instance.metrics();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.map_or(0, |index| index + 1);
        let local = &self.control.local;
        let member = |id: &u64, member: &crate::types::Member| {
            let node_id = if member.instance == local.instance {
                local.node_id
            } else {
                let peer = self.control.peers.by_instance(&member.instance);
                peer.map_or(0, |peer| peer.node_id)
            };
            let voter = membership.voter_ids().any(|voter| voter == *id);
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id));
            VolatileMemberStatus {
                raft_id: *id,
                node_id,
                name: member.name.clone(),
                role: if voter { Role::Voter } else { Role::Learner },
                lag: matched
                    .map(|matched| last.saturating_sub(matched.map_or(0, |id| id.index + 1))),
            }
        };
        membership
            .nodes()
            .map(|(id, known)| member(id, known))
            .collect()
    }

    /// What this node tells its peers about the group.
    pub(super) fn progress(&self) -> Option<GroupProgress> {
        let instance = self.current()?;
        let metrics = instance.metrics();
        let position = self.contents.position();
        let state = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, openraft::ServerState::Shutdown) => State::Stopped,
            (_, openraft::ServerState::Learner) => State::Learner,
            (_, openraft::ServerState::Follower) => State::Follower,
            (_, openraft::ServerState::Candidate) => State::Candidate,
            (_, openraft::ServerState::Leader) => State::Leader,
        };
        Some(GroupProgress {
            group: self.name.to_owned(),
            state: state.into(),
            term: metrics.current_term,
            leader_id: metrics.current_leader.unwrap_or_default(),
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            applied_index: position.index.unwrap_or_default(),
            epoch: instance.scope.epoch,
            contents_epoch: position.epoch,
            quorate: instance.quorate(),
        })
    }

    /// Feeds the gauges that the control group has as well, under this group's name.
    pub(super) fn gauges(&self) {
        let name = self.name;
        let Some(instance) = self.current() else {
            metrics::gauge!("quorate_raft_has_leader", "group" => name).set(0.0);
            return;
        };
        let metrics = instance.metrics();
        let status = self.status();
        let flag = |set: bool| f64::from(u8::from(set));
        metrics::gauge!("quorate_raft_epoch", "group" => name).set(status.epoch as f64);
        metrics::gauge!("quorate_raft_term", "group" => name).set(metrics.current_term as f64);
        metrics::gauge!("quorate_raft_is_leader", "group" => name)
            .set(flag(status.leader == Some(status.raft_id)));
        metrics::gauge!("quorate_raft_has_leader", "group" => name).set(flag(status.quorate));
        metrics::gauge!("quorate_raft_last_log_index", "group" => name)
            .set(metrics.last_log_index.unwrap_or_default() as f64);
        metrics::gauge!("quorate_raft_applied_index", "group" => name)
            .set(status.applied_index as f64);
        metrics::gauge!("quorate_raft_snapshot_index", "group" => name)
            .set(metrics.snapshot.map_or(0, |id| id.index) as f64);
        let voters = status.members.iter();
        let voters = voters.filter(|member| member.role == Role::Voter).count();
        metrics::gauge!("quorate_raft_voters", "group" => name).set(voters as f64);
        for member in &status.members {
            if let Some(lag) = member.lag {
                metrics::gauge!("quorate_raft_lag_entries", "group" => name, "node" => member.name.clone())
                    .set(lag as f64);
            }
        }
    }
}
