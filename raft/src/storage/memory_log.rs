//! The log of a volatile group: memory and nothing else. It ends with its process, which is why the process' raft id must
//! never be used again.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    OptionalSend,
    storage::{LogState, RaftLogReader, RaftLogStorage},
};
use parking_lot::Mutex;

use super::tail::{LogSize, Tail, bounds};
use crate::types::{Entry, IoFlushed, LogId, TypeConfig, Vote};

/// A log in memory, cheap to clone; all clones see the same log.
#[derive(Clone, Default)]
pub(crate) struct MemoryLog {
    tail: Arc<Mutex<Tail>>,
}

impl MemoryLog {
    /// The log of a member that begins with a state: everything up to `base` counts as purged.
    pub(crate) fn beginning_after(base: LogId, vote: Vote) -> Self {
        let tail = Tail {
            vote: Some(vote),
            committed: Some(base),
            purged: Some(base),
            ..Tail::default()
        };
        Self {
            tail: Arc::new(Mutex::new(tail)),
        }
    }

    /// Bytes of commands that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.tail.lock().bytes
    }

    /// See [`Tail::size`].
    pub(crate) fn size(&self, snapshot: Option<u64>, keep: usize) -> LogSize {
        self.tail.lock().size(snapshot, keep)
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (from, upto) = bounds(&range);
        Ok(self.tail.lock().range(from, upto).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        Ok(self.tail.lock().request(start, end))
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.tail.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.tail.lock();
        Ok(LogState {
            last_purged_log_id: tail.purged,
            last_log_id: tail.last(),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.tail.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.tail.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.tail.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IoFlushed) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.tail.lock().append(&entries)?;
        callback.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.tail.lock().truncate_after(last_log_id);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut tail = self.tail.lock();
        if tail.purged < Some(log_id) {
            tail.purge(log_id);
        }
        Ok(())
    }
}
