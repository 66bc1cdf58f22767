//! A volatile group's state machine as consensus sees it, for one epoch. Snapshots are taken when one is to be sent and not
//! before: the replica itself is the snapshot that is always there.

use std::{io, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use openraft::{
    OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot},
};
use parking_lot::Mutex;
use quorate_proto::peer::v1::{SnapshotEnd, SnapshotFrame, snapshot_frame::Frame};

use super::{
    contents::{Contents, Lease, Refused},
    replica::{Frozen, Install},
};
use crate::{
    network::Outgoing,
    types::{LogId, Payload, Replies, SnapshotMeta, StoredMembership, TypeConfig},
};

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// A snapshot, leaving or coming in.
pub(crate) enum SnapshotData {
    Frozen(Box<dyn Frozen>),
    /// All pieces have been received.
    Incoming(Box<dyn Install>),
}

impl Outgoing for SnapshotData {
    fn describe(&self) -> String {
        "the replica's contents".to_owned()
    }

    fn frames(self) -> impl Stream<Item = SnapshotFrame> + Send + 'static {
        let frozen = match self {
            Self::Frozen(frozen) => Some((frozen, 0_u64)),
            // Nothing that was received is ever sent on.
            Self::Incoming(_) => None,
        };
        stream::unfold(frozen, |state| async move {
            let (mut frozen, sent) = state?;
            let read = tokio::task::spawn_blocking(move || (frozen.next_chunk(), frozen));
            // A panic of the replica cuts the stream short.
            let (chunk, frozen) = read.await.ok()?;
            let (frame, next) = match chunk {
                Some(bytes) => {
                    let sent = sent + bytes.len() as u64;
                    (Frame::Data(bytes), Some((frozen, sent)))
                }
                None => (Frame::End(SnapshotEnd { length: sent }), None),
            };
            Some((SnapshotFrame { frame: Some(frame) }, next))
        })
    }
}

/// The state machine of one epoch.
pub(crate) struct Machine {
    contents: Arc<Contents>,
    lease: Lease,
    epoch: u64,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// `beginning`: where the log begins if this member founds the epoch.
    pub(crate) fn new(
        contents: Arc<Contents>,
        lease: Lease,
        epoch: u64,
        beginning: Option<(LogId, StoredMembership)>,
    ) -> Self {
        let (applied, membership) = match beginning {
            Some((base, membership)) => (Some(base), membership),
            None => (None, StoredMembership::default()),
        };
        Self {
            contents,
            lease,
            epoch,
            applied,
            membership,
        }
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
        }
    }

    fn frozen(&self) -> SnapshotOf {
        Snapshot {
            meta: self.meta(),
            snapshot: SnapshotData::Frozen(self.contents.freeze()),
        }
    }
}

fn refused(error: Refused) -> io::Error {
    io::Error::other(error)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let index = entry.log_id.index;
            let command = match &entry.payload {
                Payload::Normal(command) => Some(&command.0[..]),
                Payload::Blank | Payload::Membership(_) => None,
            };
            let answer = self
                .contents
                .apply(self.lease, index, command)
                .map_err(refused)?;
            if let Payload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                answers.push((responder, Replies::Volatile(answer)));
            }
        }
        if let Some(applied) = self.applied {
            self.contents
                .applied(self.lease, self.epoch, applied.index)
                .map_err(refused)?;
        }
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            snapshot: Mutex::new(Some(self.frozen())),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        let (contents, lease, epoch) = (Arc::clone(&self.contents), self.lease, self.epoch);
        let index = meta.last_log_id.map_or(0, |id| id.index);
        tokio::task::spawn_blocking(move || {
            let install = match data {
                SnapshotData::Incoming(install) => install,
                SnapshotData::Frozen(mut frozen) => {
                    let mut install = contents.install();
                    while let Some(chunk) = frozen.next_chunk() {
                        install.chunk(&chunk).map_err(Refused::Replica)?;
                    }
                    install
                }
            };
            contents.finish(lease, install, epoch, index)
        })
        .await
        .map_err(io::Error::other)?
        .map_err(refused)?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        Ok(self.applied.is_some().then(|| self.frozen()))
    }
}

/// Hands out what was frozen.
pub(crate) struct Builder {
    snapshot: Mutex<Option<SnapshotOf>>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        self.snapshot
            .get_mut()
            .take()
            .ok_or_else(|| io::Error::other("the snapshot was taken already"))
    }
}
