//! One subscriber's side of a watch.

use std::{collections::VecDeque, sync::Arc};

use futures_util::{Stream, stream};
use quorate_proto::v1::{Kind, Resource, WatchResponse, watch_response};
use tokio::sync::watch;

use super::{History, ResumeToken, WatchError, WatchFilter};
use crate::state::{ChangeEvent, ChangeType, ControlView, KINDS, ResourceExt as _};

/// Changes looked at in one go; also how far a filtered watch may fall behind its last token before it gets a bookmark.
const SCAN: u64 = 256;

/// What a watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEventType {
    /// The resource was created or replaced (or is there, before `Synced`).
    Put,
    /// The resource was deleted.
    Delete,
    /// The present state has been sent.
    Synced,
    /// Nothing matched for a while; only the token moves on.
    Bookmark,
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchEvent {
    /// What happened.
    pub kind: WatchEventType,
    /// With a put or a delete: the resource, or its last state.
    pub resource: Option<Arc<Resource>>,
    /// Where to resume after this message. None before `Synced`: a watch that breaks there starts anew.
    pub resume_token: Option<ResumeToken>,
}

impl From<&WatchEvent> for WatchResponse {
    fn from(event: &WatchEvent) -> Self {
        let kind = match event.kind {
            WatchEventType::Put => watch_response::Type::Put,
            WatchEventType::Delete => watch_response::Type::Delete,
            WatchEventType::Synced => watch_response::Type::Synced,
            WatchEventType::Bookmark => watch_response::Type::Bookmark,
        };
        WatchResponse {
            r#type: kind.into(),
            resource: event.resource.as_deref().cloned(),
            resume_token: event
                .resume_token
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }
    }
}

/// The part of the present state that was not sent yet.
#[derive(Debug)]
struct Initial {
    view: Arc<ControlView>,
    /// Kinds not begun yet; the first one of `KINDS` comes first.
    kinds: VecDeque<Kind>,
    batch: VecDeque<Arc<Resource>>,
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct WatchStream {
    history: watch::Receiver<Arc<History>>,
    filter: WatchFilter,
    cluster_id: String,
    initial: Option<Initial>,
    /// Changes up to this revision were delivered, are in `ready`, or did not match.
    scanned: u64,
    /// Revision of the last token that was handed out.
    told: u64,
    ready: VecDeque<Arc<ChangeEvent>>,
    ended: bool,
}

impl WatchStream {
    pub(super) fn new(
        history: watch::Receiver<Arc<History>>,
        now: Arc<History>,
        filter: WatchFilter,
        resume: Option<&ResumeToken>,
    ) -> Self {
        let cluster_id = now.view.cluster_id().to_owned();
        let start = resume.map_or(now.view.revision(), ResumeToken::revision);
        let initial = resume.is_none().then(|| Initial {
            kinds: KINDS
                .into_iter()
                .filter(|kind| filter.kinds.is_empty() || filter.kinds.contains(kind))
                .collect(),
            batch: VecDeque::new(),
            view: Arc::clone(&now.view),
        });
        Self {
            history,
            filter,
            cluster_id,
            initial,
            scanned: start,
            told: start,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// The next message; waits until there is one. May be cancelled without losing any.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] if this subscriber was too slow, [`WatchError::Closed`] when the hub is gone. The watch
    /// has ended then.
    pub async fn next(&mut self) -> Result<WatchEvent, WatchError> {
        if self.ended {
            return Err(WatchError::Closed);
        }
        let next = self.wait_for_next().await;
        self.ended = next.is_err();
        next
    }

    /// The watch as a stream that ends after its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<WatchEvent, WatchError>> + Send {
        stream::unfold(self, |mut watch| async move {
            if watch.ended {
                return None;
            }
            Some((watch.next().await, watch))
        })
    }

    /// A bookmark of how far this watch has looked, for callers that send one from time to time. None while messages wait
    /// to be read.
    pub fn bookmark(&mut self) -> Option<WatchEvent> {
        (self.initial.is_none() && self.ready.is_empty() && !self.ended)
            .then(|| self.event(WatchEventType::Bookmark, None, self.scanned))
    }

    async fn wait_for_next(&mut self) -> Result<WatchEvent, WatchError> {
        loop {
            let now = Arc::clone(&self.history.borrow_and_update());
            if self.initial.is_some() {
                // Behind the ring there is no way on after `Synced`; say so now.
                if self.scanned < now.floor() || self.cluster_changed(&now) {
                    return Err(WatchError::Compacted);
                }
                return Ok(self.next_initial());
            }
            if let Some(event) = self.ready.pop_front() {
                let kind = match event.change {
                    ChangeType::Put => WatchEventType::Put,
                    ChangeType::Delete => WatchEventType::Delete,
                };
                return Ok(self.event(kind, Some(Arc::clone(&event.resource)), event.revision));
            }
            if self.scanned < now.floor() || self.cluster_changed(&now) {
                return Err(WatchError::Compacted);
            }
            if self.scanned < now.view.revision() {
                self.scan(&now);
                if self.ready.is_empty() && self.scanned - self.told >= SCAN {
                    return Ok(self.event(WatchEventType::Bookmark, None, self.scanned));
                }
                continue;
            }
            drop(now);
            self.history
                .changed()
                .await
                .map_err(|_| WatchError::Closed)?;
        }
    }

    /// A watch that began before the cluster had an id sees it appear; it does not follow a node into another cluster.
    fn cluster_changed(&mut self, now: &History) -> bool {
        if self.cluster_id.is_empty() {
            now.view.cluster_id().clone_into(&mut self.cluster_id);
        }
        self.cluster_id != now.view.cluster_id()
    }

    fn next_initial(&mut self) -> WatchEvent {
        while let Some(initial) = &mut self.initial {
            if let Some(resource) = initial.batch.pop_front() {
                return WatchEvent {
                    kind: WatchEventType::Put,
                    resource: Some(resource),
                    resume_token: None,
                };
            }
            let Some(kind) = initial.kinds.pop_front() else {
                break;
            };
            initial.batch = match &self.filter.name {
                Some(name) => initial.view.get(kind, name).cloned().into_iter().collect(),
                None => initial.view.list(kind).cloned().collect(),
            };
        }
        self.initial = None;
        self.event(WatchEventType::Synced, None, self.scanned)
    }

    /// Takes the matching ones of the next changes.
    fn scan(&mut self, now: &History) {
        let Ok(start) = usize::try_from(self.scanned - now.floor()) else {
            return;
        };
        let end = now.ring.len().min(start + SCAN as usize);
        for event in (start..end).filter_map(|i| now.ring.get(i)) {
            if self.matches(&event.resource) {
                self.ready.push_back(Arc::clone(event));
            }
            self.scanned = event.revision;
        }
    }

    fn matches(&self, resource: &Resource) -> bool {
        (self.filter.kinds.is_empty() || self.filter.kinds.contains(&resource.kind()))
            && self
                .filter
                .name
                .as_ref()
                .is_none_or(|name| name == resource.name())
    }

    fn event(
        &mut self,
        kind: WatchEventType,
        resource: Option<Arc<Resource>>,
        revision: u64,
    ) -> WatchEvent {
        self.told = revision;
        WatchEvent {
            kind,
            resource,
            resume_token: Some(ResumeToken::new(&self.cluster_id, revision)),
        }
    }
}
