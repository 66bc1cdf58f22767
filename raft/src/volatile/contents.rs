//! What a process holds of a volatile group, through all of the group's epochs, and which epoch may change it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::replica::{Frozen, Install, Replica};

/// Where in the history of the group the replica stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The epoch whose log it was last changed by; 0: it is empty.
    pub(crate) epoch: u64,
    /// The last entry applied.
    pub(crate) index: Option<u64>,
}

/// The replica with its position. Only the holder of the newest [`Lease`] may change it, so an epoch that is being stopped
/// cannot write into the next one.
pub(crate) struct Contents {
    replica: Arc<dyn Replica>,
    gate: Mutex<Gate>,
    position: watch::Sender<Position>,
}

#[derive(Default)]
struct Gate {
    lease: u64,
    /// A snapshot could not be finished: the replica may hold anything.
    in_doubt: bool,
}

/// The right to change the contents, until the next one is handed out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease(u64);

/// The lease has passed on, or the replica refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the group has begun anew")]
    Superseded,
    #[error("the snapshot cannot be taken in: {0}")]
    Replica(String),
}

impl Contents {
    pub(crate) fn new(replica: Arc<dyn Replica>) -> Self {
        Self {
            replica,
            gate: Mutex::default(),
            position: watch::Sender::new(Position::default()),
        }
    }

    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }

    /// Begins an epoch that takes its contents from another member; until then they stay what they are.
    pub(crate) fn follow(&self) -> Lease {
        let mut gate = self.gate.lock();
        gate.lease += 1;
        Lease(gate.lease)
    }

    /// Begins an epoch with the contents as they are, or with none if they are in doubt. The index is that of the last entry
    /// in them.
    pub(crate) fn found(&self, epoch: u64) -> (Lease, u64) {
        let mut gate = self.gate.lock();
        gate.lease += 1;
        if gate.in_doubt {
            self.replica.reset();
            gate.in_doubt = false;
        }
        let index = self.position().index.unwrap_or(0);
        self.moved(epoch, index);
        (Lease(gate.lease), index)
    }

    fn moved(&self, epoch: u64, index: u64) {
        self.position.send_replace(Position {
            epoch,
            index: Some(index),
        });
    }

    /// Applies an entry; `None`: one that has no command. The position is told by [`Contents::applied`].
    pub(crate) fn apply(
        &self,
        lease: Lease,
        index: u64,
        command: Option<&[u8]>,
    ) -> Result<Bytes, Refused> {
        let gate = self.gate.lock();
        if gate.lease != lease.0 {
            return Err(Refused::Superseded);
        }
        Ok(command.map_or_else(Bytes::new, |command| self.replica.apply(index, command)))
    }

    /// Entries up to this one are applied.
    pub(crate) fn applied(&self, lease: Lease, epoch: u64, index: u64) -> Result<(), Refused> {
        let gate = self.gate.lock();
        if gate.lease != lease.0 {
            return Err(Refused::Superseded);
        }
        self.moved(epoch, index);
        Ok(())
    }

    pub(crate) fn freeze(&self) -> Box<dyn Frozen> {
        self.replica.freeze()
    }

    pub(crate) fn install(&self) -> Box<dyn Install> {
        self.replica.install()
    }

    /// Replaces the contents by a snapshot that is there as a whole. Blocking.
    pub(crate) fn finish(
        &self,
        lease: Lease,
        install: Box<dyn Install>,
        epoch: u64,
        index: u64,
    ) -> Result<(), Refused> {
        let mut gate = self.gate.lock();
        if gate.lease != lease.0 {
            return Err(Refused::Superseded);
        }
        // A panic in there leaves it set, too.
        gate.in_doubt = true;
        if let Err(why) = install.finish() {
            self.position.send_replace(Position::default());
            return Err(Refused::Replica(why));
        }
        gate.in_doubt = false;
        self.moved(epoch, index);
        Ok(())
    }
}
