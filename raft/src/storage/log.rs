//! One group's log: kept in memory from the last purge to its end, written through to the node's store.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    OptionalSend,
    storage::{LogState, RaftLogReader, RaftLogStorage},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    load::GroupContent,
    tail::{LogSize, Tail, bounds, size},
    writer::{Op, Writer, stopped},
};
use crate::types::{Entry, IoFlushed, LogId, Membership, Payload, TypeConfig, Vote};

/// A group's log, cheap to clone; all clones see the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    group: Arc<str>,
    tail: Arc<Mutex<Tail>>,
    writer: Arc<Writer>,
}

impl LogStore {
    pub(crate) fn new(group: Arc<str>, content: GroupContent, writer: &Arc<Writer>) -> Self {
        if let (Some((from, upto)), Some(purged)) = (content.leftover, content.purged) {
            writer.send(Op::Purge {
                group: Arc::clone(&group),
                purged,
                from,
                upto,
            });
        }
        let bytes = content.entries.iter().map(size).sum();
        let tail = Tail {
            vote: content.vote,
            committed: content.committed,
            purged: content.purged,
            entries: content.entries,
            bytes,
        };
        Self {
            group,
            tail: Arc::new(Mutex::new(tail)),
            writer: Arc::clone(writer),
        }
    }

    /// How many bytes of commands the log holds, seen from the entry where the last snapshot ends; and which entries to
    /// purge so that at most `keep` bytes remain behind the snapshot.
    pub(crate) fn size(&self, snapshot: Option<u64>, keep: usize) -> LogSize {
        self.tail.lock().size(snapshot, keep)
    }

    /// Whether anything was ever stored.
    pub(crate) fn is_pristine(&self) -> bool {
        let tail = self.tail.lock();
        tail.vote.is_none() && tail.last().is_none()
    }

    /// The last entry that is only in a snapshot by now.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.tail.lock().purged
    }

    /// The last membership in the log, if there is one.
    pub(crate) fn last_membership(&self) -> Option<Membership> {
        self.tail
            .lock()
            .entries
            .iter()
            .rev()
            .find_map(|entry| match &entry.payload {
                Payload::Membership(membership) => Some(membership.clone()),
                Payload::Blank | Payload::Normal(_) => None,
            })
    }

    async fn done(wait: oneshot::Receiver<io::Result<()>>) -> io::Result<()> {
        wait.await.unwrap_or_else(|_| Err(stopped()))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
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

impl RaftLogStorage<TypeConfig> for LogStore {
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
        let (done, wait) = oneshot::channel();
        self.writer.send(Op::Vote {
            group: Arc::clone(&self.group),
            vote: *vote,
            done,
        });
        Self::done(wait).await?;
        self.tail.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.tail.lock().committed = committed;
        if let Some(committed) = committed {
            self.writer.note_committed(&self.group, committed);
        }
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
        self.writer.send(Op::Append {
            group: Arc::clone(&self.group),
            entries,
            done: callback,
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        {
            let mut tail = self.tail.lock();
            let Some(upto) = tail.entries.back().map(|entry| entry.log_id.index) else {
                return Ok(());
            };
            let from = tail.truncate_after(last_log_id);
            let Some(from) = from else {
                return Ok(());
            };
            let keep = tail.last();
            self.writer.send(Op::Truncate {
                group: Arc::clone(&self.group),
                keep,
                from,
                upto,
                done,
            });
        }
        Self::done(wait).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut tail = self.tail.lock();
        if tail.purged >= Some(log_id) {
            return Ok(());
        }
        let from = tail.entries.front().map_or(0, |entry| entry.log_id.index);
        let upto = tail.purge(log_id);
        // An empty range when nothing was there to delete.
        let (from, upto) = upto.map_or((1, 0), |upto| (from, upto));
        self.writer.send(Op::Purge {
            group: Arc::clone(&self.group),
            purged: log_id,
            from,
            upto,
        });
        Ok(())
    }
}
