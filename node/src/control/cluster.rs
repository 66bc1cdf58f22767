//! Membership: who votes, who learns, who leads.
//!
//! These calls need no memory of their idempotency keys: each names the state that it wants, and a repeated one finds it.

use super::{ControlContext, status};
use quorate_proto::v1::{
    self, ClusterStatusRequest, ClusterStatusResponse, DemoteRequest, MembershipResponse,
    PromoteRequest, RemoveNodeRequest, ReplaceRequest, TransferLeadershipRequest,
    TransferLeadershipResponse, cluster_server::Cluster as ClusterApi,
};
use quorate_raft::state::validate;
use quorate_raft::{ChangeError, ClusterStatus, Consistency, MemberStatus, Members, Role};
use tonic::{Request, Response, Status};

pub struct Service {
    context: ControlContext,
}

impl Service {
    pub fn new(context: ControlContext) -> Self {
        Self { context }
    }

    /// Whether a replacement has come about already: the dead node is gone for good and the new one votes.
    async fn is_replaced(&self, dead: u64, new: u64) -> Option<MembershipResponse> {
        let (view, _) = self
            .context
            .cluster
            .read(Consistency::Linearizable)
            .await
            .ok()?;
        view.removed_node_by_id(dead)?;
        let members = self.context.cluster.status().members;
        let ids = |role| {
            members
                .iter()
                .filter(|member| member.role == role)
                .map(|member| member.node_id)
                .collect()
        };
        let response = MembershipResponse {
            voters: ids(Role::Voter),
            learners: ids(Role::Learner),
        };
        response.voters.contains(&new).then_some(response)
    }
}

/// A node id from a request.
fn node_id(field: &str, id: u64) -> Result<u64, Status> {
    if id == 0 {
        Err(status::invalid(field, "must be set"))
    } else {
        Ok(id)
    }
}

fn checked_key(key: &str) -> Result<(), Status> {
    validate::idempotency_key(key).map_err(status::field)
}

fn answer(changed: Result<Members, ChangeError>) -> Result<Response<MembershipResponse>, Status> {
    let members = changed.map_err(status::change)?;
    Ok(Response::new(MembershipResponse {
        voters: members.voters,
        learners: members.learners,
    }))
}

fn to_wire(status: ClusterStatus) -> ClusterStatusResponse {
    ClusterStatusResponse {
        cluster_id: status.cluster_id,
        node_id: status.node_id,
        leader_id: status.leader_id.unwrap_or_default(),
        term: status.term,
        last_log_index: status.last_log_index,
        applied_index: status.applied_index,
        members: status.members.into_iter().map(member).collect(),
        timing: status.timing.to_owned(),
        warnings: status.warnings,
    }
}

fn member(member: MemberStatus) -> v1::MemberStatus {
    let role = match member.role {
        Role::Voter => v1::Role::Voter,
        Role::Learner => v1::Role::Learner,
    };
    v1::MemberStatus {
        node_id: member.node_id,
        name: member.name,
        node: member.node,
        role: role.into(),
        reachable: member.reachable,
        lag: member.lag,
        last_contact: member
            .last_contact
            .and_then(|contact| contact.try_into().ok()),
    }
}

#[tonic::async_trait]
impl ClusterApi for Service {
    async fn status(
        &self,
        _: Request<ClusterStatusRequest>,
    ) -> Result<Response<ClusterStatusResponse>, Status> {
        Ok(Response::new(to_wire(self.context.cluster.status())))
    }

    async fn promote(
        &self,
        request: Request<PromoteRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        let request = request.into_inner();
        checked_key(&request.idempotency_key)?;
        let node_id = node_id("node_id", request.node_id)?;
        tracing::info!(node_id, "promotion was asked for");
        answer(self.context.cluster.promote(node_id).await)
    }

    async fn demote(
        &self,
        request: Request<DemoteRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        let request = request.into_inner();
        checked_key(&request.idempotency_key)?;
        let node_id = node_id("node_id", request.node_id)?;
        tracing::info!(node_id, "demotion was asked for");
        answer(self.context.cluster.demote(node_id).await)
    }

    async fn remove(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        let request = request.into_inner();
        checked_key(&request.idempotency_key)?;
        let node_id = node_id("node_id", request.node_id)?;
        tracing::info!(node_id, "removal was asked for");
        answer(self.context.cluster.remove(node_id).await)
    }

    async fn replace(
        &self,
        request: Request<ReplaceRequest>,
    ) -> Result<Response<MembershipResponse>, Status> {
        let request = request.into_inner();
        checked_key(&request.idempotency_key)?;
        let (dead, new) = (
            node_id("dead_node_id", request.dead_node_id)?,
            node_id("new_node_id", request.new_node_id)?,
        );
        tracing::info!(dead, new, "replacement was asked for");
        match self.context.cluster.replace(dead, new).await {
            // Is it there no more because an earlier attempt of this call took it out?
            Err(error @ ChangeError::UnknownNode(id)) if id == dead => {
                match self.is_replaced(dead, new).await {
                    Some(response) => Ok(Response::new(response)),
                    None => Err(status::change(error)),
                }
            }
            other => answer(other),
        }
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let to = Some(request.into_inner().node_id).filter(|id| *id != 0);
        tracing::info!(?to, "a transfer of the leadership was asked for");
        let leader_id = self
            .context
            .cluster
            .transfer_leadership(to)
            .await
            .map_err(status::change)?;
        Ok(Response::new(TransferLeadershipResponse { leader_id }))
    }
}
