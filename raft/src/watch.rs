//! Watches: every subscriber sees the present state, then each change in commit order, without a gap and without a repeat.
//!
//! The hub keeps the newest changes in a ring that is bounded by number and by bytes. Publishing swaps one pointer and
//! never waits for a subscriber; a subscriber reads the ring at its own pace. One that falls behind the ring's oldest
//! change is told so ([`WatchError::Compacted`]) and never skips silently.

mod stream;
mod token;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use imbl::Vector;
use parking_lot::Mutex;
use prost::Message as _;
use quorate_proto::v1::Kind;
use tokio::sync::watch;

use crate::state::{ChangeEvent, ControlView};

pub use stream::{WatchEvent, WatchEventType, WatchStream};
pub use token::ResumeToken;

/// What a subscriber wants to see; the default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchFilter {
    /// Empty: all kinds.
    pub kinds: Vec<Kind>,
    /// Only resources of this name.
    pub name: Option<String>,
}

/// Why a watch cannot start or go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The changes after the token (or after what a slow subscriber has read) are no longer kept.
    #[error("the changes since the resume token are no longer kept: list and watch anew")]
    Compacted,
    /// The token was not issued by a watch or a listing.
    #[error("the resume token is malformed")]
    BadToken,
    /// The token was issued by another cluster.
    #[error("the resume token belongs to cluster {found:?}, this is {expected:?}")]
    WrongCluster {
        /// The cluster in the token.
        found: String,
        /// This cluster.
        expected: String,
    },
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// How much history a hub keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLimits {
    /// Changes.
    pub events: usize,
    /// Bytes of their resources (encoded size). The newest change is kept whatever its size.
    pub bytes: usize,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            events: 16_384,
            bytes: 32 << 20,
        }
    }
}

/// One moment of the hub: the view, and the changes that led to it.
#[derive(Clone, Debug, Default)]
struct History {
    view: Arc<ControlView>,
    /// Changes with the revisions `view.revision() - ring.len() + 1 ..= view.revision()`.
    ring: Vector<Arc<ChangeEvent>>,
}

impl History {
    /// The newest revision whose change is no longer kept.
    fn floor(&self) -> u64 {
        self.view.revision().saturating_sub(self.ring.len() as u64)
    }
}

/// Publishes changes to any number of subscribers. Clones are handles of the same hub.
#[derive(Clone, Debug)]
pub struct WatchHub {
    published: Arc<watch::Sender<Arc<History>>>,
    /// What only the publisher needs.
    publisher: Arc<Mutex<Publisher>>,
}

#[derive(Debug)]
struct Publisher {
    limits: WatchLimits,
    ring_bytes: usize,
}

fn event_bytes(event: &ChangeEvent) -> usize {
    event.resource.encoded_len()
}

impl WatchHub {
    /// A hub whose history begins at `view`.
    pub fn new(view: Arc<ControlView>, limits: WatchLimits) -> Self {
        let (published, _) = watch::channel(Arc::new(History {
            view,
            ring: Vector::new(),
        }));
        Self {
            published: Arc::new(published),
            publisher: Arc::new(Mutex::new(Publisher {
                limits,
                ring_bytes: 0,
            })),
        }
    }

    /// Publishes the changes that led from the last published view to this one. Call it in commit order, with the events
    /// of each apply. Should they not continue the history (as after a snapshot was installed), the history restarts at
    /// `view` and subscribers that are behind it get [`WatchError::Compacted`].
    pub fn publish(&self, view: Arc<ControlView>, events: Vec<ChangeEvent>) {
        let mut publisher = self.publisher.lock();
        let last = Arc::clone(&self.published.borrow());
        let mut expected = last.view.revision();
        let continues =
            last.view.cluster_id() == view.cluster_id() || last.view.cluster_id().is_empty();
        let continues = continues
            && events.iter().all(|event| {
                expected += 1;
                event.revision == expected
            })
            && expected == view.revision();
        if !continues {
            publisher.ring_bytes = 0;
            self.published.send_replace(Arc::new(History {
                view,
                ring: Vector::new(),
            }));
            return;
        }
        let mut ring = last.ring.clone();
        for event in events {
            publisher.ring_bytes += event_bytes(&event);
            ring.push_back(Arc::new(event));
        }
        let limits = publisher.limits;
        while ring.len() > limits.events.max(1)
            || (publisher.ring_bytes > limits.bytes && ring.len() > 1)
        {
            let Some(oldest) = ring.pop_front() else {
                break;
            };
            publisher.ring_bytes -= event_bytes(&oldest);
        }
        self.published
            .send_replace(Arc::new(History { view, ring }));
    }

    /// Restarts the history at `view`, after a snapshot was installed.
    pub fn reset(&self, view: Arc<ControlView>) {
        let mut publisher = self.publisher.lock();
        publisher.ring_bytes = 0;
        self.published.send_replace(Arc::new(History {
            view,
            ring: Vector::new(),
        }));
    }

    /// Starts a watch. Without a token: a put for each matching resource as of one moment, then `Synced`, then every
    /// change after that moment. With a token (of any node of the cluster): every change after the token.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] if the history after the token is not kept here, [`WatchError::WrongCluster`] if the token
    /// is of another cluster.
    pub fn subscribe(
        &self,
        filter: WatchFilter,
        resume: Option<&ResumeToken>,
    ) -> Result<WatchStream, WatchError> {
        let mut history = self.published.subscribe();
        let now = Arc::clone(&history.borrow_and_update());
        if let Some(token) = resume {
            if token.cluster_id() != now.view.cluster_id() {
                return Err(WatchError::WrongCluster {
                    found: token.cluster_id().to_owned(),
                    expected: now.view.cluster_id().to_owned(),
                });
            }
            if token.revision() < now.floor() {
                return Err(WatchError::Compacted);
            }
        }
        Ok(WatchStream::new(history, now, filter, resume))
    }

    /// Subscriptions that are open.
    pub fn subscribers(&self) -> usize {
        self.published.receiver_count()
    }
}
