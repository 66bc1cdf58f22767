//! Taking a node in, on the leader: issue its id, let it learn, make it a voter if voters are wanted.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use openraft::ChangeMembers;
use quorate_proto::{
    peer::v1::{JoinReply, JoinRequest, Refusal},
    store::v1::{RegisterNode, command::Op, rejection::Code as RejectionCode},
    v1::resource::Spec,
};
use tonic::Status;

use super::Group;
use crate::{
    network::refuse,
    state::{Reply, SCHEMA},
    types::Member,
    wire,
};

/// How long a joining node may take to catch up within one call; it asks again.
const SETTLE: Duration = Duration::from_secs(10);

impl Group {
    /// Handles a join as the leader. The caller's identity has been checked against its certificate.
    pub(crate) async fn join_as_leader(
        self: &Arc<Self>,
        request: JoinRequest,
    ) -> Result<JoinReply, Status> {
        if self.published.view().cluster_id().is_empty() {
            // Its founder was elected and has not written the first entry yet: no reason to turn anybody away for good.
            return Err(Status::unavailable("the cluster is being founded"));
        }
        let timing = self.timing().name();
        if request.timing != timing {
            return Err(refuse(
                Refusal::Timing,
                format!(
                    "the cluster uses the timing preset {timing:?}, the node {:?}",
                    request.timing
                ),
            ));
        }
        if request.schema < SCHEMA {
            return Err(refuse(
                Refusal::Schema,
                format!(
                    "the cluster writes schema {SCHEMA}, the node knows up to {}: run a newer version",
                    request.schema
                ),
            ));
        }
        let Some(node) = request.node else {
            return Err(Status::invalid_argument("the node is missing"));
        };
        if let Some(removed) = self.published.view().removed_node(&node.instance) {
            return Err(refuse(
                Refusal::Removed,
                format!(
                    "this data directory was node {} ({}), which was removed from the cluster for good: start with an empty \
                     one",
                    removed.node_id, removed.name
                ),
            ));
        }
        let member = Member {
            name: request.name.clone(),
            instance: node.instance.clone(),
            peer_address: node.peer_address.clone(),
        };
        let register = RegisterNode {
            name: request.name.clone(),
            node: Some(node),
        };
        let _one_at_a_time = self.changes.lock().await;
        let reply = self
            .write_command(Op::RegisterNode(register))
            .await
            .map_err(|error| error.to_status())?;
        let node_id = match reply {
            Reply::Applied { resource, .. } => match &resource.spec {
                Some(Spec::Node(node)) => node.node_id,
                _ => {
                    return Err(Status::internal(
                        "the registration was not answered with a node",
                    ));
                }
            },
            Reply::Rejected(rejection) if rejection.code == i32::from(RejectionCode::Invalid) => {
                return Err(Status::invalid_argument(format!(
                    "{}: {}",
                    rejection.field, rejection.message
                )));
            }
            Reply::Rejected(rejection) => {
                return Err(refuse(Refusal::NameInUse, rejection.message));
            }
        };
        self.peers.learn(node_id, &member);
        self.add_member(node_id, member)
            .await
            .map_err(|error| error.to_status())?;
        let mut voter = self.voters().contains(&node_id);
        if request.settle && !voter && self.voters().len() < self.auto_voters {
            tokio::time::timeout(SETTLE, self.caught_up(node_id))
                .await
                .map_err(|_| Status::unavailable("the node has not caught up yet"))?;
            self.apply_change(ChangeMembers::AddVoterIds(BTreeSet::from([node_id])), true)
                .await
                .map_err(|error| error.to_status())?;
            voter = true;
        }
        tracing::info!(
            node_id,
            name = request.name,
            voter,
            settle = request.settle,
            "a node has joined"
        );
        let metrics = self.metrics();
        Ok(JoinReply {
            cluster_id: self.local.cluster_id.clone(),
            node_id,
            timing: timing.to_owned(),
            membership: Some(wire::membership(metrics.membership_config.membership())),
            voter,
        })
    }
}
