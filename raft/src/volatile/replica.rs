//! What a volatile group replicates, as its owner implements it.

use bytes::Bytes;

/// The state machine of a volatile group. All members apply the same commands in the same order.
///
/// Calls come from one task, one after the other; reads beside them are the implementation's own business.
pub trait Replica: Send + Sync + 'static {
    /// Applies the command of log entry `index`; the answer goes back to who proposed it. Must depend on nothing but the
    /// contents and the command. Indices go up within an epoch, with gaps.
    fn apply(&self, index: u64, command: &[u8]) -> Bytes;

    /// The contents between two commands, to be read afterwards and elsewhere while further commands are applied: it should
    /// share what does not change. Also called, and dropped unread, when the log is cut short.
    fn freeze(&self) -> Box<dyn Frozen>;

    /// Begins to take in a snapshot of another member beside the present contents, which stay as they are until
    /// [`Install::finish`].
    fn install(&self) -> Box<dyn Install>;

    /// Empties it. Called before a group begins anew from a member whose contents a failed snapshot left in doubt.
    fn reset(&self);
}

/// Contents of a replica as of one log entry.
pub trait Frozen: Send {
    /// The next piece, of at most 1 MiB; `None` after the last.
    fn next_chunk(&mut self) -> Option<Bytes>;
}

/// A snapshot on its way into a replica. Dropped before [`Install::finish`], it changes nothing.
pub trait Install: Send {
    /// The next piece, as [`Frozen::next_chunk`] made it.
    ///
    /// # Errors
    /// What is wrong with it; the snapshot is asked for again.
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String>;

    /// All pieces are there: replaces the replica's contents.
    ///
    /// # Errors
    /// Why that cannot be done. The process then takes part anew, as a member of which nothing is known.
    fn finish(self: Box<Self>) -> Result<(), String>;
}
