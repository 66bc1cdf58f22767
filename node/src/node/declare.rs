//! Writes that the node itself makes: what discovery found, and the endpoints of `quorate serve`.

use quorate_endpoint::{Declare, DeclareError, DiscoveryOp};
use quorate_proto::store::v1::{Command, DeleteResource, PutResource, command::Op};
use quorate_proto::v1;
use quorate_raft::{Cluster, ProposeError};

/// Takes discovery's changes to the control state.
pub struct ThroughCluster {
    cluster: Cluster,
}

impl ThroughCluster {
    /// Writes through this handle.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }
}

#[tonic::async_trait]
impl Declare for ThroughCluster {
    async fn apply(&self, ops: Vec<DiscoveryOp>) -> Result<(), DeclareError> {
        let mut refused = Vec::new();
        for op in ops {
            let op = match op {
                DiscoveryOp::Put {
                    resource,
                    expected_version,
                } => Op::Put(PutResource {
                    resource: Some(*resource),
                    expected_version: Some(expected_version),
                }),
                DiscoveryOp::Delete {
                    name,
                    expected_version,
                } => Op::Delete(DeleteResource {
                    kind: v1::Kind::Endpoint.into(),
                    name,
                    expected_version: Some(expected_version),
                }),
            };
            match propose(&self.cluster, op).await {
                Ok(()) => {}
                // One bad or outrun change does not keep the others back.
                Err(error @ ProposeError::Rejected(_)) => refused.push(error.to_string()),
                Err(error) => return Err(DeclareError(error.to_string())),
            }
        }
        if refused.is_empty() {
            Ok(())
        } else {
            Err(DeclareError(refused.join("; ")))
        }
    }
}

/// Creates or replaces a resource.
///
/// # Errors
/// As [`Cluster::propose`].
pub async fn put(cluster: &Cluster, resource: v1::Resource) -> Result<(), ProposeError> {
    propose(
        cluster,
        Op::Put(PutResource {
            resource: Some(resource),
            expected_version: None,
        }),
    )
    .await
}

async fn propose(cluster: &Cluster, op: Op) -> Result<(), ProposeError> {
    cluster
        .propose(Command {
            op: Some(op),
            ..Default::default()
        })
        .await
        .map(|_| ())
}
