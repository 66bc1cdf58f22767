//! Changes of who votes, who learns and who leads. Carried out by the leader, whichever node they are asked of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{
    ChangeMembers,
    async_runtime::watch::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use prost::Message;
use quorate_proto::{
    peer::v1::{ChangeMembershipReply, ChangeMembershipRequest, change_membership_request::Change},
    store::v1::{Command, CommandBatch, RemoveNode, command::Op},
};
use tonic::{Code, Status};

use super::{Group, WriteError};
use crate::{
    error::ChangeError,
    network::{Lane, refusal_of},
    state::{Reply, schema_of},
    types::Member,
};

/// A learner that lacks fewer entries than this may vote.
const CAUGHT_UP: u64 = 200;
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);

/// Who is in the group after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Node ids that vote.
    pub voters: Vec<u64>,
    /// Node ids that only learn.
    pub learners: Vec<u64>,
    /// 0: none known.
    pub leader: u64,
}

impl From<ChangeMembershipReply> for Members {
    fn from(reply: ChangeMembershipReply) -> Self {
        Self {
            voters: reply.voters,
            learners: reply.learners,
            leader: reply.leader,
        }
    }
}

impl From<Members> for ChangeMembershipReply {
    fn from(members: Members) -> Self {
        Self {
            voters: members.voters,
            learners: members.learners,
            leader: members.leader,
        }
    }
}

impl ChangeError {
    pub(crate) fn to_status(&self) -> Status {
        let code = match self {
            Self::UnknownNode(_) => Code::NotFound,
            Self::Refused(_) => Code::FailedPrecondition,
            Self::Unavailable(_) | Self::Stopped => Code::Unavailable,
            Self::Timeout(_) => Code::DeadlineExceeded,
        };
        let mut status = Status::new(code, self.plain());
        if let Self::UnknownNode(id) = self
            && let Ok(value) = id.to_string().parse()
        {
            status.metadata_mut().insert("quorate-node", value);
        }
        status
    }

    fn plain(&self) -> String {
        match self {
            Self::Refused(why) | Self::Unavailable(why) | Self::Timeout(why) => why.clone(),
            Self::UnknownNode(_) | Self::Stopped => self.to_string(),
        }
    }

    fn from_status(status: &Status) -> Self {
        let why = status.message().to_owned();
        match status.code() {
            Code::NotFound => {
                let id = status
                    .metadata()
                    .get("quorate-node")
                    .and_then(|id| id.to_str().ok()?.parse().ok());
                Self::UnknownNode(id.unwrap_or_default())
            }
            Code::FailedPrecondition if refusal_of(status).is_none() => Self::Refused(why),
            Code::DeadlineExceeded => Self::Timeout(why),
            _ => Self::Unavailable(why),
        }
    }
}

impl Group {
    /// Carries out a change, here or at the leader.
    pub(crate) async fn change(self: &Arc<Self>, change: Change) -> Result<Members, ChangeError> {
        let until = Instant::now() + CHANGE_TIMEOUT;
        loop {
            let leader = self.leader();
            let result = match leader {
                None => Err(ChangeError::Unavailable("there is no leader".to_owned())),
                Some(leader) if leader == self.local.node_id => {
                    self.change_as_leader(change, until).await
                }
                Some(leader) => self.forward_change(leader, change, until).await,
            };
            match result {
                Err(ChangeError::Unavailable(_)) if Instant::now() < until => {
                    self.leader_change(leader, PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn forward_change(
        &self,
        leader: u64,
        change: Change,
        until: Instant,
    ) -> Result<Members, ChangeError> {
        let unavailable = |why: String| ChangeError::Unavailable(why);
        let peer = self
            .peers
            .get(leader)
            .ok_or_else(|| unavailable("the leader is unknown".to_owned()))?;
        let mut client = self
            .peers
            .client(&peer, Lane::Urgent)
            .map_err(|error| unavailable(error.to_string()))?;
        let request = ChangeMembershipRequest {
            header: Some(crate::network::header(&self.peers, self.name, leader)),
            change: Some(change),
        };
        let remaining = until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(remaining, client.change_membership(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().into()),
            Ok(Err(status)) => Err(ChangeError::from_status(&status)),
            Err(_) => Err(ChangeError::Timeout(
                "the leader did not answer in time".to_owned(),
            )),
        }
    }

    /// Carries out a change as the leader.
    pub(crate) async fn change_as_leader(
        self: &Arc<Self>,
        change: Change,
        until: Instant,
    ) -> Result<Members, ChangeError> {
        let remaining = until.saturating_duration_since(Instant::now());
        let work = async {
            let _one_at_a_time = self.changes.lock().await;
            if !self.is_leader() {
                return Err(ChangeError::Unavailable(
                    "the leadership has moved".to_owned(),
                ));
            }
            match change {
                Change::Promote(id) => self.promote(id).await,
                Change::Demote(id) => self.demote(id).await,
                Change::Remove(id) => self.remove(id).await,
                Change::Replace(replace) => self.replace(replace.dead, replace.new).await,
                Change::Transfer(id) => self.transfer((id != 0).then_some(id)).await,
            }
        };
        tokio::time::timeout(remaining, work)
            .await
            .unwrap_or_else(|_| {
                Err(ChangeError::Timeout(
                    "the change did not finish in time".to_owned(),
                ))
            })
    }

    pub(crate) fn members(&self) -> Members {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        Members {
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            leader: metrics.current_leader.unwrap_or_default(),
        }
    }

    fn known(&self, id: u64) -> Result<bool, ChangeError> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        if membership.get_node(&id).is_none() {
            return Err(ChangeError::UnknownNode(id));
        }
        Ok(membership.voter_ids().any(|voter| voter == id))
    }

    async fn promote(&self, id: u64) -> Result<Members, ChangeError> {
        if self.known(id)? {
            return Ok(self.members());
        }
        self.caught_up(id).await;
        self.apply_change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true)
            .await
    }

    async fn demote(self: &Arc<Self>, id: u64) -> Result<Members, ChangeError> {
        if !self.known(id)? {
            return Ok(self.members());
        }
        self.check_quorum_without(id, None).await?;
        self.give_way(id).await?;
        self.apply_change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), true)
            .await
    }

    async fn remove(self: &Arc<Self>, id: u64) -> Result<Members, ChangeError> {
        let view = self.published.view();
        match self.known(id) {
            Ok(voter) => {
                if voter {
                    self.check_quorum_without(id, None).await?;
                    self.give_way(id).await?;
                    self.apply_change(ChangeMembers::RemoveVoters(BTreeSet::from([id])), false)
                        .await?;
                } else {
                    self.apply_change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false)
                        .await?;
                }
            }
            // Out of the membership already: an earlier attempt got only half the way.
            Err(unknown)
                if view.node_by_id(id).is_none() && view.removed_node_by_id(id).is_none() =>
            {
                return Err(unknown);
            }
            Err(_) => {}
        }
        self.bury(id).await
    }

    async fn replace(self: &Arc<Self>, dead: u64, new: u64) -> Result<Members, ChangeError> {
        if dead == new {
            return Err(ChangeError::Refused(
                "a node cannot replace itself".to_owned(),
            ));
        }
        let dead_votes = match self.known(dead) {
            Ok(votes) => votes,
            Err(_) if self.published.view().node_by_id(dead).is_some() => false,
            Err(unknown) => return Err(unknown),
        };
        if !dead_votes {
            return Err(ChangeError::Refused(format!(
                "node {dead} is not a voter: remove it instead"
            )));
        }
        if dead == self.local.node_id {
            return Err(ChangeError::Refused(
                "the leader cannot be replaced: transfer the leadership first".to_owned(),
            ));
        }
        let already = self.known(new)?;
        if !already {
            self.caught_up(new).await;
        }
        self.check_quorum_without(dead, Some(new)).await?;
        let mut voters = self.voters();
        voters.remove(&dead);
        voters.insert(new);
        self.apply_change(ChangeMembers::ReplaceAllVoters(voters), false)
            .await?;
        self.bury(dead).await
    }

    /// Hands the leadership to `to`, or to the voter that is farthest. Returns once the new leader is known here.
    async fn transfer(&self, to: Option<u64>) -> Result<Members, ChangeError> {
        let me = self.local.node_id;
        let to = match to {
            Some(id) if !self.known(id)? => {
                return Err(ChangeError::Refused(format!(
                    "node {id} is a learner and cannot lead"
                )));
            }
            Some(id) => id,
            None => self.successor().ok_or_else(|| {
                ChangeError::Refused("there is no other reachable voter to lead".to_owned())
            })?,
        };
        if to == me {
            return Ok(self.members());
        }
        if !self.alive(to) {
            return Err(ChangeError::Refused(format!("node {to} is not reachable")));
        }
        let (_, longest) = self.timing().election();
        for _ in 0..3 {
            self.raft
                .trigger()
                .transfer_leader(to)
                .await
                .map_err(|_| ChangeError::Stopped)?;
            let until = Instant::now() + 2 * longest;
            while Instant::now() < until {
                if self.leader() == Some(to) {
                    return Ok(self.members());
                }
                self.leader_change(self.leader(), PAUSE).await;
            }
            if self.leader().is_some_and(|leader| leader != me) {
                break;
            }
        }
        match self.leader() {
            Some(leader) if leader == to => Ok(self.members()),
            Some(leader) if leader != me => Err(ChangeError::Refused(format!(
                "node {leader} was elected instead of {to}"
            ))),
            _ => Err(ChangeError::Timeout(format!("node {to} did not take over"))),
        }
    }

    /// The reachable voter whose log is farthest.
    pub(crate) fn successor(&self) -> Option<u64> {
        let metrics = self.metrics();
        let matched = metrics.replication.unwrap_or_default();
        self.voters()
            .into_iter()
            .filter(|id| *id != self.local.node_id && self.alive(*id))
            .max_by_key(|id| matched.get(id).copied().flatten())
    }

    /// If `id` leads, hands the leadership over; the new leader then carries the change out.
    async fn give_way(&self, id: u64) -> Result<(), ChangeError> {
        if id != self.local.node_id {
            return Ok(());
        }
        self.transfer(None).await?;
        Err(ChangeError::Unavailable(
            "the leadership was handed over for this change".to_owned(),
        ))
    }

    /// Waits until a learner has nearly all of the log; the caller bounds the time.
    pub(super) async fn caught_up(&self, id: u64) {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let now = metrics.borrow_watched();
                let matched = now
                    .replication
                    .as_ref()
                    .and_then(|replication| replication.get(&id).copied().flatten())
                    .map_or(0, |id| id.index + 1);
                let last = now.last_log_index.map_or(0, |index| index + 1);
                if now.replication.is_none()
                    || (matched > 0 && last.saturating_sub(matched) < CAUGHT_UP)
                {
                    return;
                }
            }
            // Progress is published with the metrics.
            let _ = tokio::time::timeout(PAUSE, metrics.changed()).await;
        }
    }

    /// Adds a learner, or updates where a member is.
    pub(super) async fn add_member(&self, id: u64, member: Member) -> Result<Members, ChangeError> {
        let known = self
            .metrics()
            .membership_config
            .membership()
            .get_node(&id)
            .cloned();
        match known {
            Some(known) if known == member => Ok(self.members()),
            Some(_) => {
                self.apply_change(
                    ChangeMembers::SetNodes(BTreeMap::from([(id, member)])),
                    true,
                )
                .await
            }
            None => {
                self.apply_change(
                    ChangeMembers::AddNodes(BTreeMap::from([(id, member)])),
                    true,
                )
                .await
            }
        }
    }

    pub(super) async fn apply_change(
        &self,
        change: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<Members, ChangeError> {
        let until = Instant::now() + CHANGE_TIMEOUT;
        loop {
            match self.raft.change_membership(change.clone(), retain).await {
                Ok(_) => return Ok(self.members()),
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                    match error {
                        // The previous change, or the first entry of a new leader, is not committed yet.
                        ChangeMembershipError::InProgress(_)
                        | ChangeMembershipError::UncommittedLeaderLog(_)
                            if Instant::now() < until =>
                        {
                            tokio::time::sleep(PAUSE).await;
                        }
                        ChangeMembershipError::LearnerNotFound(error) => {
                            return Err(ChangeError::UnknownNode(error.node_id));
                        }
                        other => return Err(ChangeError::Refused(other.to_string())),
                    }
                }
                Err(RaftError::APIError(error)) => {
                    return Err(ChangeError::Unavailable(format!(
                        "the leadership is moving ({error})"
                    )));
                }
                Err(RaftError::Fatal(_)) => return Err(ChangeError::Stopped),
            }
        }
    }

    /// Records that a node is gone for good; its id and its data directory are refused from then on.
    async fn bury(&self, id: u64) -> Result<Members, ChangeError> {
        match self
            .write_command(Op::RemoveNode(RemoveNode { node_id: id }))
            .await?
        {
            Reply::Applied { .. } => Ok(self.members()),
            // A repeated call.
            Reply::Rejected(_) if self.published.view().removed_node_by_id(id).is_some() => {
                Ok(self.members())
            }
            Reply::Rejected(rejection) => Err(ChangeError::Refused(rejection.message)),
        }
    }

    /// Writes one command of the cluster's own as the leader.
    pub(super) async fn write_command(&self, op: Op) -> Result<Reply, ChangeError> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let command = Command {
            idempotency_key: String::new(),
            time_unix_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            origin_node_id: self.local.node_id,
            op: Some(op),
        };
        let commands = vec![command];
        let batch = CommandBatch {
            schema: schema_of(&commands),
            commands,
        };
        match self.write(Bytes::from(batch.encode_to_vec())).await {
            Ok((_, replies)) => replies
                .into_iter()
                .next()
                .ok_or_else(|| ChangeError::Unavailable("the command was not answered".to_owned())),
            Err(WriteError::NotAccepted(why)) => Err(ChangeError::Unavailable(format!(
                "the leader takes no writes at present ({why:?})"
            ))),
            Err(WriteError::Unknown(why)) => Err(ChangeError::Unavailable(why)),
            Err(WriteError::Stopped) => Err(ChangeError::Stopped),
        }
    }
}
