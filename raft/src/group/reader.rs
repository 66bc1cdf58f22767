//! Linearizable reads on any node: one question to the leader at a time serves every reader that was waiting when it was
//! asked.

use std::{sync::Arc, time::Duration};

use quorate_proto::peer::v1::ReadIndexRequest;
use tokio::sync::{mpsc, oneshot};

use super::{Group, NotAccepted};
use crate::{error::ReadError, network::Lane};

const QUEUE: usize = 16_384;
const PAUSE: Duration = Duration::from_millis(5);

/// The entrance for linearizable reads; cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    queue: mpsc::Sender<oneshot::Sender<u64>>,
    group: Arc<Group>,
}

impl Reader {
    pub(crate) fn spawn(group: Arc<Group>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(Arc::clone(&group), waiting));
        Self { queue, group }
    }

    /// Returns once the local state reflects every write acknowledged before the call.
    pub(crate) async fn barrier(&self, timeout: Duration) -> Result<(), ReadError> {
        let ready = async {
            let (reply, index) = oneshot::channel();
            self.queue
                .send(reply)
                .await
                .map_err(|_| ReadError::Stopped)?;
            let index = index.await.map_err(|_| ReadError::Stopped)?;
            self.group.published.wait_applied(index).await;
            Ok(())
        };
        tokio::time::timeout(timeout, ready)
            .await
            .unwrap_or(Err(ReadError::NoLeader { waited: timeout }))
    }
}

async fn run(group: Arc<Group>, mut waiting: mpsc::Receiver<oneshot::Sender<u64>>) {
    let mut readers = Vec::new();
    // A reader that comes while a question is out waits for the next one: the answer might predate it.
    while waiting.recv_many(&mut readers, QUEUE).await > 0 {
        loop {
            readers.retain(|reader| !reader.is_closed());
            if readers.is_empty() {
                break;
            }
            match ask_leader(&group, false).await {
                Ok(index) => {
                    for reader in readers.drain(..) {
                        let _ = reader.send(index);
                    }
                    break;
                }
                Err(NotAccepted::Stopped) => return,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// The read index, from whoever leads.
pub(super) async fn ask_leader(group: &Group, lease: bool) -> Result<u64, NotAccepted> {
    let leader = group.leader().ok_or(NotAccepted::NotLeader)?;
    if leader == group.local.node_id {
        return group.read_index(lease).await;
    }
    let peer = group.peers.get(leader).ok_or(NotAccepted::NotLeader)?;
    let mut client = group
        .peers
        .client(&peer, Lane::Urgent)
        .map_err(|_| NotAccepted::NotLeader)?;
    let request = ReadIndexRequest {
        header: Some(crate::network::header(&group.peers, group.name, leader)),
        lease,
    };
    let (_, lease_length) = group.timing().election();
    match tokio::time::timeout(2 * lease_length, client.read_index(request)).await {
        Ok(Ok(reply)) => {
            peer.seen();
            Ok(reply.into_inner().index)
        }
        _ => Err(NotAccepted::NotLeader),
    }
}
