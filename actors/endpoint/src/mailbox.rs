//! Sending to an actor, counted: ractor's mailboxes have no bound, so their depth is a figure that can be watched.

use metrics::{Gauge, gauge};
use ractor::ActorRef;

/// A message under way. It counts until it is dropped, handled or not.
pub struct Letter<M> {
    /// The message.
    pub body: M,
    depth: Gauge,
}

impl<M> Drop for Letter<M> {
    fn drop(&mut self) {
        self.depth.decrement(1.0);
    }
}

/// Where to send messages for one actor. Clones are cheap.
pub struct Mailbox<M: Send + 'static> {
    actor: ActorRef<Letter<M>>,
    depth: Gauge,
}

impl<M: Send + 'static> Mailbox<M> {
    /// `kind` labels the figures; there are a handful of kinds.
    pub fn new(actor: ActorRef<Letter<M>>, kind: &'static str) -> Self {
        Self {
            actor,
            depth: gauge!("quorate_actor_mailbox_depth", "kind" => kind),
        }
    }

    /// Sends; false if the actor has ended.
    pub fn send(&self, body: M) -> bool {
        self.depth.increment(1.0);
        let depth = self.depth.clone();
        self.actor.cast(Letter { body, depth }).is_ok()
    }
}

impl<M: Send + 'static> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self {
            actor: self.actor.clone(),
            depth: self.depth.clone(),
        }
    }
}
