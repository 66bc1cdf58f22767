//! The end of a log as it is kept in memory: from the last purge on.

use std::{
    collections::VecDeque,
    io,
    ops::{Bound, RangeBounds},
};

use crate::types::{Entry, LogId, Payload, Vote};

/// A replication request carries about this many bytes of entries at most (and one entry at least).
const READ_BYTES: usize = 1 << 20;

/// What is kept of a log, with the vote beside it.
#[derive(Default)]
pub(super) struct Tail {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Consecutive from `purged` on.
    pub(super) entries: VecDeque<Entry>,
    /// Of the commands in `entries`.
    pub(super) bytes: usize,
}

/// See [`Tail::size`].
pub(crate) struct LogSize {
    pub(crate) total: usize,
    pub(crate) after_snapshot: usize,
    pub(crate) purge_to: Option<u64>,
}

/// Bytes of commands in an entry.
pub(super) fn size(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(commands) => commands.0.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    }
}

/// A range of indices as first and end.
pub(super) fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
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
    (from, upto)
}

impl Tail {
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries
            .back()
            .map(|entry| entry.log_id)
            .or(self.purged)
    }

    /// Entries with index in `from..upto` that are there.
    pub(super) fn range(&self, from: u64, upto: u64) -> impl Iterator<Item = &Entry> {
        let first = self.entries.front().map_or(0, |entry| entry.log_id.index);
        let start = usize::try_from(from.saturating_sub(first))
            .unwrap_or(usize::MAX)
            .min(self.entries.len());
        let end = usize::try_from(upto.saturating_sub(first))
            .unwrap_or(usize::MAX)
            .clamp(start, self.entries.len());
        self.entries.range(start..end)
    }

    /// The first entries in `from..upto` that one request carries.
    pub(super) fn request(&self, from: u64, upto: u64) -> Vec<Entry> {
        let mut bytes = 0;
        let entries = self.range(from, upto).take_while(|entry| {
            let fits = bytes < READ_BYTES;
            bytes += size(entry);
            fits
        });
        entries.cloned().collect()
    }

    /// How many bytes of commands the log holds, seen from the entry where the last snapshot ends; and which entries to
    /// purge so that at most `keep` bytes remain behind the snapshot.
    pub(super) fn size(&self, snapshot: Option<u64>, keep: usize) -> LogSize {
        let mut found = LogSize {
            total: self.bytes,
            after_snapshot: 0,
            purge_to: None,
        };
        let mut behind = 0;
        for entry in self.entries.iter().rev() {
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

    /// Adds entries that follow the last one.
    pub(super) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let first = entries.first().map_or(0, |entry| entry.log_id.index);
        let due = self.last().map_or(first, |last| last.index + 1);
        for (due, entry) in (due..).zip(entries) {
            if entry.log_id.index != due {
                return Err(io::Error::other(format!(
                    "append of log entry {} where {due} is due",
                    entry.log_id.index
                )));
            }
        }
        self.bytes += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
        Ok(())
    }

    /// Drops what comes after `last`; the first index that went.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) -> Option<u64> {
        let mut from = None;
        while let Some(entry) = self
            .entries
            .back()
            .filter(|entry| Some(entry.log_id.index) > last.map(|id| id.index))
        {
            from = Some(entry.log_id.index);
            self.bytes -= size(entry);
            self.entries.pop_back();
        }
        from
    }

    /// Drops the entries up to `last`; the last index that went.
    pub(super) fn purge(&mut self, last: LogId) -> Option<u64> {
        let mut upto = None;
        while let Some(entry) = self
            .entries
            .front()
            .filter(|entry| entry.log_id.index <= last.index)
        {
            upto = Some(entry.log_id.index);
            self.bytes -= size(entry);
            self.entries.pop_front();
        }
        self.purged = Some(last);
        upto
    }
}
