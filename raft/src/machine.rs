//! The control group's state machine as consensus sees it: applies committed entries, publishes the view, writes and installs
//! snapshots.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt};
use openraft::{
    OptionalSend,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot},
};
use prost::Message;
use quorate_proto::store::v1::CommandBatch;
use tokio::sync::watch;

use crate::{
    snapshots::{SnapshotData, Snapshots},
    state::{ChangeEvent, ControlState, ControlView},
    types::{LogId, Payload, Replies, SnapshotMeta, StoredMembership, TypeConfig},
    watch::{WatchHub, WatchLimits},
};

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// What readers see of the applied state. Replaced once for each batch of applied entries.
pub(crate) struct Published {
    view: ArcSwap<ControlView>,
    pub(crate) hub: WatchHub,
    /// Index of the last applied entry plus one: 0 before the first.
    applied: watch::Sender<u64>,
    revision: watch::Sender<u64>,
}

impl Published {
    fn new(view: Arc<ControlView>, applied: Option<LogId>) -> Self {
        let revision = view.revision();
        Self {
            hub: WatchHub::new(Arc::clone(&view), WatchLimits::default()),
            view: ArcSwap::new(view),
            applied: watch::Sender::new(applied.map_or(0, |id| id.index + 1)),
            revision: watch::Sender::new(revision),
        }
    }

    pub(crate) fn view(&self) -> Arc<ControlView> {
        self.view.load_full()
    }

    pub(crate) fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Number of applied entries (index of the last one plus one).
    pub(crate) fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Changes with each batch of applied entries.
    pub(crate) fn applications(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until entry `index` is applied here.
    pub(crate) async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // The sender lives in `self`.
        let _ = applied.wait_for(|next| *next > index).await;
    }

    /// View first, then the watches, then whoever waits for an index: what a waiter is told is there when it looks.
    /// `events: None` after a jump (an installed snapshot): watches start anew.
    fn publish(
        &self,
        view: Arc<ControlView>,
        applied: Option<LogId>,
        events: Option<Vec<ChangeEvent>>,
    ) {
        let revision = view.revision();
        self.view.store(Arc::clone(&view));
        match events {
            Some(events) if events.is_empty() => {}
            Some(events) => self.hub.publish(view, events),
            None => self.hub.reset(view),
        }
        self.applied
            .send_replace(applied.map_or(0, |id| id.index + 1));
        self.revision
            .send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }
}

/// The state and its place in the log.
pub(crate) struct ControlMachine {
    state: ControlState,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: Arc<Published>,
    snapshots: Arc<Snapshots>,
    /// May a snapshot be written now (is there room on the disk)?
    room: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl ControlMachine {
    /// Starts from the newest snapshot, if there is one.
    pub(crate) fn new(
        snapshots: Arc<Snapshots>,
        restored: Option<(SnapshotMeta, ControlState)>,
        room: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        let (meta, state) = restored.unwrap_or_default();
        let view = Arc::new(view_of(&state, meta.last_log_id));
        Self {
            published: Arc::new(Published::new(view, meta.last_log_id)),
            state,
            applied: meta.last_log_id,
            membership: meta.last_membership,
            snapshots,
            room,
        }
    }

    pub(crate) fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }
}

fn view_of(state: &ControlState, applied: Option<LogId>) -> ControlView {
    let (index, term) = applied.map_or((0, 0), |id| (id.index, id.leader_id.term));
    state.view(index, term)
}

impl RaftStateMachine<TypeConfig> for ControlMachine {
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
        let mut events = Vec::new();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let replies = match entry.payload {
                Payload::Blank => Vec::new(),
                Payload::Normal(commands) => {
                    let batch = CommandBatch::decode(commands.0).map_err(|error| {
                        io::Error::other(format!("log entry {}: {error}", entry.log_id.index))
                    })?;
                    let applied = self
                        .state
                        .apply(entry.log_id.index, &batch)
                        .map_err(io::Error::other)?;
                    events.extend(applied.events);
                    applied.replies
                }
                Payload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            };
            self.applied = Some(entry.log_id);
            if let Some(responder) = responder {
                answers.push((responder, Replies::Control(replies)));
            }
        }
        let view = Arc::new(view_of(&self.state, self.applied));
        self.published.publish(view, self.applied, Some(events));
        for (responder, replies) in answers {
            responder.send(replies);
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        if !force && !(self.room)() {
            tracing::warn!("no snapshot is written: the disk is nearly full");
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.state.clone(),
            meta: SnapshotMeta {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> io::Result<()> {
        let snapshots = Arc::clone(&self.snapshots);
        let known = self.state.cluster_id().to_owned();
        let (wanted, meta) = (meta.clone(), meta.clone());
        let state = tokio::task::spawn_blocking(move || {
            snapshots.install(&wanted, data, (!known.is_empty()).then_some(known.as_str()))
        })
        .await
        .map_err(io::Error::other)?
        .map_err(io::Error::other)?;
        self.state = state;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership;
        let view = Arc::new(view_of(&self.state, self.applied));
        self.published.publish(view, self.applied, None);
        metrics::counter!("quorate_raft_snapshots_installed_total", "group" => crate::types::CONTROL).increment(1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        Ok(self.snapshots.current().map(|stored| Snapshot {
            meta: stored.meta,
            snapshot: stored.data,
        }))
    }
}

/// A frozen state on its way to a snapshot file.
pub(crate) struct Builder {
    state: ControlState,
    meta: SnapshotMeta,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let (state, meta, snapshots) = (
            self.state.clone(),
            self.meta.clone(),
            Arc::clone(&self.snapshots),
        );
        let data = tokio::task::spawn_blocking(move || snapshots.write(&meta, &state))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: data,
        })
    }
}
