//! Commands on their way to the leader of a volatile group.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use quorate_proto::peer::v1::ProposeRequest;

use super::{VolatileGroup, instance::Instance};
use crate::{
    error::ProposeError,
    group::{MAX_COMMAND, NotAccepted, WriteError, refusal_error},
    network::Lane,
};

/// How long a command is tried.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a refusal that a moment may cure, and longest wait for news of a leader.
const PAUSE: Duration = Duration::from_millis(5);
const LEADER_WAIT: Duration = Duration::from_millis(50);
/// Commands under way at a time from this process.
pub(super) const IN_FLIGHT: usize = 256;

impl VolatileGroup {
    /// Applies a command, on whichever member leads; returns the answer of its replica there. One call is one log entry, so
    /// the caller gathers small changes: about 32 KiB is good, 1 MiB the limit. Of calls that overlap any may come first.
    ///
    /// # Errors
    /// [`ProposeError::Timeout`] and [`ProposeError::Stopped`] if it is unknown whether the command is or will be applied,
    /// [`ProposeError::NoLeader`], [`ProposeError::Overloaded`] and [`ProposeError::TooLarge`] if it certainly was not.
    /// Nothing is sent twice once it may have arrived.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, ProposeError> {
        if command.len() > MAX_COMMAND {
            return Err(ProposeError::TooLarge {
                size: command.len(),
                limit: MAX_COMMAND,
            });
        }
        let _permit = self
            .permits
            .try_acquire()
            .map_err(|_| ProposeError::Overloaded)?;
        let began = Instant::now();
        let result = self.try_until(command, began + TIMEOUT).await;
        let label = match &result {
            Ok(_) => "answered",
            Err(ProposeError::NoLeader { .. }) => "refused",
            Err(_) => "unknown",
        };
        metrics::counter!("quorate_raft_proposals_total", "group" => self.name, "result" => label)
            .increment(1);
        if result.is_ok() {
            metrics::histogram!("quorate_raft_commit_seconds", "group" => self.name)
                .record(began.elapsed().as_secs_f64());
        }
        result
    }

    async fn try_until(&self, command: Bytes, until: Instant) -> Result<Bytes, ProposeError> {
        let mut current = self.current.clone();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.stop.is_cancelled() {
                return Err(ProposeError::Stopped);
            }
            if left.is_zero() {
                return Err(ProposeError::NoLeader { waited: TIMEOUT });
            }
            let instance = current.borrow_and_update().clone();
            let Some(instance) = instance else {
                // Not a member yet, or between two epochs.
                let _ = tokio::time::timeout(left.min(LEADER_WAIT), current.changed()).await;
                continue;
            };
            match tokio::time::timeout(left, attempt(&instance, command.clone(), left)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(WriteError::NotAccepted(why))) => {
                    wait_for_leader(&instance, why, left).await;
                }
                // The next epoch may have begun with it or without it.
                Ok(Err(WriteError::Unknown(why))) => {
                    tracing::debug!(group = self.name, why, "the fate of a command is unknown");
                    return Err(ProposeError::Timeout {
                        waited: TIMEOUT.saturating_sub(left),
                    });
                }
                Ok(Err(WriteError::Stopped)) if self.stop.is_cancelled() => {
                    return Err(ProposeError::Stopped);
                }
                Ok(Err(WriteError::Stopped)) | Err(_) => {
                    return Err(ProposeError::Timeout { waited: TIMEOUT });
                }
            }
        }
    }
}

async fn wait_for_leader(instance: &Instance, why: NotAccepted, left: Duration) {
    let mut metrics = instance.raft.metrics();
    let leader = metrics.borrow_watched().current_leader;
    if why != NotAccepted::NotLeader || leader == Some(instance.scope.raft_id) {
        return tokio::time::sleep(PAUSE.min(left)).await;
    }
    let changed = async {
        while metrics.borrow_watched().current_leader == leader {
            if metrics.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = changed => {}
        () = instance.stop.cancelled() => {}
        () = tokio::time::sleep(LEADER_WAIT.min(left)) => {}
    }
}

/// One attempt: here if this member leads, else at the leader.
async fn attempt(
    instance: &Arc<Instance>,
    command: Bytes,
    left: Duration,
) -> Result<Bytes, WriteError> {
    let not_leader = || WriteError::NotAccepted(NotAccepted::NotLeader);
    let scope = instance.scope;
    let (leader, instance_of_leader) = {
        let metrics = instance.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader.ok_or_else(not_leader)?;
        let member = metrics.membership_config.membership().get_node(&leader);
        (leader, member.map(|member| member.instance.clone()))
    };
    if leader == scope.raft_id {
        return Ok(instance.write(command).await?.1);
    }
    let peers = &instance.peers;
    let peer = instance_of_leader
        .and_then(|instance| peers.by_instance(&instance))
        .ok_or_else(not_leader)?;
    let mut client = peers.client(&peer, Lane::Bulk).map_err(|_| not_leader())?;
    let request = ProposeRequest {
        header: Some(scope.header(peers, peer.node_id, leader)),
        commands: command,
        timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
    };
    let reply = client
        .propose(request)
        .await
        .map_err(|status| refusal_error(&status))?;
    peer.seen();
    let mut replies = reply.into_inner().replies;
    replies
        .pop()
        .filter(|_| replies.is_empty())
        .ok_or_else(|| WriteError::Unknown("not one answer to one command".to_owned()))
}
