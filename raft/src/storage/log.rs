//! One group's log: kept in memory from the last purge to its end, written through to the node's store.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use openraft::{
    OptionalSend,
    storage::{LogState, RaftLogReader, RaftLogStorage},
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    load::GroupContent,
    writer::{Op, Writer, stopped},
};
use crate::types::{Entry, IoFlushed, LogId, Membership, Payload, TypeConfig, Vote};

/// A replication request carries about this many bytes of entries at most (and one entry at least).
const READ_BYTES: usize = 1 << 20;

/// A group's log, cheap to clone; all clones see the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    group: Arc<str>,
    tail: Arc<Mutex<Tail>>,
    writer: Arc<Writer>,
}

#[derive(Default)]
struct Tail {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Consecutive from `purged` on.
    entries: VecDeque<Entry>,
    /// Of the commands in `entries`.
    bytes: usize,
}

/// See [`LogStore::size`].
pub(crate) struct LogSize {
    pub(crate) total: usize,
    pub(crate) after_snapshot: usize,
    pub(crate) purge_to: Option<u64>,
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(commands) => commands.0.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    }
}

impl Tail {
    fn last(&self) -> Option<LogId> {
        self.entries
            .back()
            .map(|entry| entry.log_id)
            .or(self.purged)
    }

    /// Entries with index in `from..upto` that are there.
    fn range(&self, from: u64, upto: u64) -> impl Iterator<Item = &Entry> {
        let first = self.entries.front().map_or(0, |entry| entry.log_id.index);
        let start = usize::try_from(from.saturating_sub(first))
            .unwrap_or(usize::MAX)
            .min(self.entries.len());
        let end = usize::try_from(upto.saturating_sub(first))
            .unwrap_or(usize::MAX)
            .clamp(start, self.entries.len());
        self.entries.range(start..end)
    }
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
        let tail = self.tail.lock();
        let mut found = LogSize {
            total: tail.bytes,
            after_snapshot: 0,
            purge_to: None,
        };
        let mut behind = 0;
        for entry in tail.entries.iter().rev() {
            if Some(entry.log_id.index) > snapshot {
                found.after_snapshot += size(entry);
                continue;
            }
            behind += size(entry);
            if behind > keep {
                found.purge_to = Some(entry.log_id.index);
                break;
            }
        }
        found
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
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let upto = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(upto) => *upto,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.tail.lock().range(from, upto).cloned().collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let mut bytes = 0;
        let tail = self.tail.lock();
        let entries = tail.range(start, end).take_while(|entry| {
            let fits = bytes < READ_BYTES;
            bytes += size(entry);
            fits
        });
        Ok(entries.cloned().collect())
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
        {
            let mut tail = self.tail.lock();
            let first = entries.first().map_or(0, |entry| entry.log_id.index);
            let due = tail.last().map_or(first, |last| last.index + 1);
            for (due, entry) in (due..).zip(&entries) {
                if entry.log_id.index != due {
                    return Err(io::Error::other(format!(
                        "append of log entry {} where {due} is due",
                        entry.log_id.index
                    )));
                }
            }
            tail.bytes += entries.iter().map(size).sum::<usize>();
            tail.entries.extend(entries.iter().cloned());
        }
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
            let mut from = None;
            while let Some(last) = tail
                .entries
                .back()
                .filter(|entry| Some(entry.log_id.index) > last_log_id.map(|id| id.index))
            {
                from = Some(last.log_id.index);
                let gone = size(last);
                tail.bytes -= gone;
                tail.entries.pop_back();
            }
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
        let mut upto = None;
        while let Some(first) = tail
            .entries
            .front()
            .filter(|entry| entry.log_id.index <= log_id.index)
        {
            upto = Some(first.log_id.index);
            let gone = size(first);
            tail.bytes -= gone;
            tail.entries.pop_front();
        }
        tail.purged = Some(log_id);
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
