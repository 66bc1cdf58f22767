//! What the plane tells the node besides figures: things that an operator should hear of.

use quorate_routing::Health;
use std::sync::Arc;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaneEvent {
    /// Two live processes say that they are the same node. One of them has a copied data directory or a wrong configuration.
    NodeIdUsedTwice {
        /// The id.
        node_id: u64,
        /// Identities of the two data directories; equal if one was copied.
        instances: [String; 2],
    },
    /// An endpoint that this node owns became ready or stopped being so.
    Health {
        /// Its name.
        endpoint: Arc<str>,
        /// The verdict.
        health: Health,
        /// Why; empty if it is ready.
        why: String,
    },
    /// A pool's discovery has trouble; what it found before stays in place.
    Discovery {
        /// The pool.
        pool: Arc<str>,
        /// The trouble.
        why: String,
    },
    /// The actors gave up: too many of them ended too often. Nothing is probed any more.
    Failed,
}
