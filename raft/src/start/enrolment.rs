//! A node's place in the cluster once it runs: its resource is brought up to date, and it may become a voter.

use std::{sync::Arc, time::Duration};

use quorate_proto::{
    peer::v1::Refusal,
    store::v1::{Command, command::Op},
    v1::{NodeSpec, resource::Spec},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    cluster::{Inner, StopReason},
    error::Error,
    group::Group,
    identity::{DataDir, Identity},
    network::{Lane, refusal_of},
    state::SCHEMA,
};

use super::contact::join_request;
use super::{JOIN_CALL, RETRY};

/// Brings the node's resource and role up to date, once, as soon as there is a leader to do it with.
pub(super) struct Enrolment {
    pub(super) group: Arc<Group>,
    pub(super) data: Option<Arc<DataDir>>,
    pub(super) identity: Identity,
    pub(super) spec: NodeSpec,
    pub(super) settled: watch::Sender<bool>,
    pub(super) stopped: watch::Sender<Option<StopReason>>,
}

impl Enrolment {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = RETRY;
            let member_settled = self
                .identity
                .member
                .as_ref()
                .is_some_and(|member| member.settled);
            if member_settled {
                // Ready to serve; what remains is to tell others of a changed address or version.
                self.settled.send_replace(true);
            }
            if self.group.leader().is_none() {
                continue;
            }
            if member_settled && self.up_to_date() {
                return;
            }
            match self.ask(!member_settled).await {
                Ok(()) => {
                    if let Err(error) = self.settle() {
                        tracing::warn!(%error, "the identity file cannot be written");
                        continue;
                    }
                    self.settled.send_replace(true);
                    return;
                }
                Err(status) => match refusal_of(&status) {
                    Some(Refusal::Removed) => Inner::stop_for(&self.stopped, StopReason::Removed),
                    Some(refusal) => {
                        tracing::debug!(?refusal, why = status.message(), "enrolment refused")
                    }
                    None => tracing::debug!(why = status.message(), "enrolment failed"),
                },
            }
        }
    }

    /// Whether the registered resource says what this process is.
    fn up_to_date(&self) -> bool {
        let view = self.group.published.view();
        // Not there yet: the log has not been applied so far.
        view.node_by_id(self.spec.node_id)
            .is_some_and(|node| matches!(&node.spec, Some(Spec::Node(spec)) if *spec == self.spec))
    }

    async fn ask(&self, settle: bool) -> Result<(), Status> {
        let local = &self.group.local;
        let request = join_request(
            &self.identity,
            self.spec.clone(),
            local.start_id,
            &local.cluster_id,
            settle,
        );
        if self.group.is_leader() {
            return self.group.join_as_leader(request).await.map(drop);
        }
        let leader = self
            .group
            .leader()
            .ok_or_else(|| Status::unavailable("no leader"))?;
        let peer = self
            .group
            .peers
            .get(leader)
            .ok_or_else(|| Status::unavailable("the leader is unknown"))?;
        let mut client = self
            .group
            .peers
            .client(&peer, Lane::Urgent)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        tokio::time::timeout(JOIN_CALL, client.join(request))
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))?
            .map(drop)
    }

    fn settle(&mut self) -> Result<(), Error> {
        if let Some(member) = &mut self.identity.member {
            member.settled = true;
        }
        match &self.data {
            Some(data) => data.write_identity(&self.identity),
            None => Ok(()),
        }
    }
}

impl Group {
    /// Writes a command of the node's own as the leader. `Err(Some)`: the state refused it, with its reason.
    pub(super) async fn write_own(&self, op: Op) -> Result<(), Option<String>> {
        use prost::Message;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let command = Command {
            idempotency_key: String::new(),
            time_unix_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            origin_node_id: self.local.node_id,
            op: Some(op),
        };
        let batch = quorate_proto::store::v1::CommandBatch {
            schema: SCHEMA,
            commands: vec![command],
        };
        match self.write(batch.encode_to_vec().into()).await {
            Ok((_, replies)) => match replies.into_iter().next() {
                Some(crate::state::Reply::Rejected(rejection)) => Err(Some(rejection.message)),
                _ => Ok(()),
            },
            Err(_) => Err(None),
        }
    }
}
