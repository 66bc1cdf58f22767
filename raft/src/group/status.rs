//! What a node knows of the cluster, and what an operator should look at.

use std::{collections::BTreeMap, time::Duration};

use openraft::{Instant, ServerState};
use quorate_proto::{
    peer::v1::{GroupProgress, HelloReply, group_progress::State},
    v1::{NodeSpec, resource::Spec},
};

use super::Group;
use crate::types::{Member, Metrics};

/// A member that has not been heard of for this long counts as unreachable.
const UNREACHABLE: Duration = Duration::from_secs(3);
/// Fewer missing entries than this are no reason to worry.
const LAG_WARNING: u64 = 5_000;

/// Whether a member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Votes and may lead.
    Voter,
    /// Only follows.
    Learner,
}

/// The cluster as the answering node sees it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster_id: String,
    /// The answering node.
    pub node_id: u64,
    /// The leader, if one is known.
    pub leader_id: Option<u64>,
    /// Current term.
    pub term: u64,
    /// Index of the last entry in the local log.
    pub last_log_index: u64,
    /// Index of the last entry applied here.
    pub applied_index: u64,
    /// All members, by node id.
    pub members: Vec<MemberStatus>,
    /// `lan` or `wan`.
    pub timing: &'static str,
    /// Conditions that need an operator, in words.
    pub warnings: Vec<String>,
}

/// One member.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Raft id.
    pub node_id: u64,
    /// Name of its resource.
    pub name: String,
    /// Its spec, if it is registered.
    pub node: Option<NodeSpec>,
    /// Voter or learner.
    pub role: Role,
    /// The answering node has heard of it within the last seconds.
    pub reachable: bool,
    /// Entries that it lacks; known on the leader only.
    pub lag: Option<u64>,
    /// Time since the leader last heard of it; known on the leader only.
    pub last_contact: Option<Duration>,
}

impl Group {
    /// The status of the cluster from here.
    pub(crate) fn status(&self) -> ClusterStatus {
        let metrics = self.metrics();
        let view = self.published.view();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let members: Vec<_> = membership
            .nodes()
            .map(|(id, member)| {
                let role = if voters.contains(id) {
                    Role::Voter
                } else {
                    Role::Learner
                };
                let node = view
                    .node_by_id(*id)
                    .and_then(|resource| match &resource.spec {
                        Some(Spec::Node(node)) => Some(node.clone()),
                        _ => None,
                    });
                self.member(*id, member, node, role, &metrics)
            })
            .collect();
        let mut status = ClusterStatus {
            cluster_id: self.local.cluster_id.clone(),
            node_id: self.local.node_id,
            leader_id: metrics.current_leader,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            applied_index: self.published.applied().saturating_sub(1),
            members,
            timing: self.timing().name(),
            warnings: Vec::new(),
        };
        status.warnings = self.warnings(&metrics, &status);
        status
    }

    fn member(
        &self,
        id: u64,
        member: &Member,
        node: Option<NodeSpec>,
        role: Role,
        metrics: &Metrics,
    ) -> MemberStatus {
        let me = id == self.local.node_id;
        let silent = self.peers.get(id).and_then(|peer| peer.silent_for());
        let next = metrics.last_log_index.map_or(0, |index| index + 1);
        MemberStatus {
            node_id: id,
            name: member.name.clone(),
            node,
            role,
            reachable: me || silent.is_some_and(|silent| silent < UNREACHABLE),
            lag: metrics.replication.as_ref().map(|replication| {
                let matched = replication
                    .get(&id)
                    .copied()
                    .flatten()
                    .map_or(0, |id| id.index + 1);
                if me { 0 } else { next.saturating_sub(matched) }
            }),
            last_contact: metrics.heartbeat.as_ref().and_then(|heartbeat| {
                if me {
                    return Some(Duration::ZERO);
                }
                heartbeat
                    .get(&id)
                    .copied()
                    .flatten()
                    .map(|then| then.elapsed())
            }),
        }
    }

    fn warnings(&self, metrics: &Metrics, status: &ClusterStatus) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(problem) = &*self.problem.borrow() {
            warnings.push(problem.clone());
        }
        if let Err(fatal) = &metrics.running_state {
            warnings.push(format!("consensus has stopped on this node: {fatal}"));
        }
        if status.leader_id.is_none() {
            warnings.push("no leader is known".to_owned());
        }
        let (_, lease) = self.timing().election();
        if self.is_leader()
            && metrics
                .last_quorum_acked
                .is_none_or(|then| then.elapsed() > 2 * lease)
        {
            warnings.push("the leader (this node) has not heard from a majority of the voters: writes do not go through".to_owned());
        }
        let reports: BTreeMap<u64, HelloReply> = self
            .peers
            .all()
            .into_iter()
            .filter_map(|peer| Some((peer.node_id, peer.report()?)))
            .collect();
        for member in &status.members {
            let who = format!("node {} ({})", member.node_id, member.name);
            if !member.reachable {
                warnings.push(format!(
                    "{who} is not reachable from node {}",
                    status.node_id
                ));
                continue;
            }
            let report = reports.get(&member.node_id);
            let progress = report
                .and_then(|report| report.groups.iter().find(|group| group.group == self.name));
            if member.role == Role::Voter
                && progress.is_some_and(|progress| {
                    progress.state() == State::Learner && progress.applied_index > 0
                })
            {
                // A voter that lost its log comes back like this and says nothing by itself.
                warnings.push(format!("{who} is a voter but calls itself a learner: it may have lost its log; replace it"));
            }
            if let Some(problem) = report
                .map(|report| &report.problem)
                .filter(|problem| !problem.is_empty())
            {
                warnings.push(format!("{who}: {problem}"));
            }
            if let Some(lag) = member.lag.filter(|lag| *lag > LAG_WARNING) {
                warnings.push(format!("{who} lacks {lag} log entries"));
            }
        }
        let voters = status
            .members
            .iter()
            .filter(|member| member.role == Role::Voter)
            .count();
        if voters == 2 {
            warnings.push(
                "there are two voters: the loss of either stops all writes; add a third".to_owned(),
            );
        }
        warnings
    }

    /// What this node tells its peers about the group.
    pub(crate) fn progress(&self) -> GroupProgress {
        let metrics = self.metrics();
        let state = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => State::Stopped,
            (_, ServerState::Learner) => State::Learner,
            (_, ServerState::Follower) => State::Follower,
            (_, ServerState::Candidate) => State::Candidate,
            (_, ServerState::Leader) => State::Leader,
        };
        GroupProgress {
            group: self.name.to_owned(),
            state: state.into(),
            term: metrics.current_term,
            leader_id: metrics.current_leader.unwrap_or_default(),
            last_log_index: metrics.last_log_index.unwrap_or_default(),
            applied_index: self.published.applied().saturating_sub(1),
            ..GroupProgress::default()
        }
    }
}
