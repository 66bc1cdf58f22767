//! The one thread that writes a node's durable state: first in, first out over all groups, as many operations to a sync as are
//! waiting (group commit), and nothing after the first failure.
//!
//! One thread and one queue give what Raft asks of a disk: a vote is never reordered with the log around it. The queue has no
//! bound of its own; what it holds is already in the in-memory logs, which compaction bounds.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{oneshot, watch};

use super::{
    backend::{Backend, Change},
    record::{self, Key},
    watermark::Watermark,
};
use crate::{
    identity::DataDir,
    types::{Entry, IoFlushed, LogId, Vote},
    wire,
};

/// At most this much goes into one sync; more would only make the first waiter wait.
const BATCH_OPS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;
/// Purged records deleted with a busy batch and per idle step. Deleting everything at once would stall commits for a second.
const PURGE_BUSY: u64 = 256;
const PURGE_IDLE: u64 = 2000;
/// Committed positions reach the disk with the next batch, or after this long without one.
const COMMITTED_IDLE: Duration = Duration::from_millis(500);

/// One operation on a group.
pub(crate) enum Op {
    Append {
        group: Arc<str>,
        entries: Vec<Entry>,
        done: IoFlushed,
    },
    Vote {
        group: Arc<str>,
        vote: Vote,
        done: Done,
    },
    /// Deletes the entries `from..=upto`, which follow `keep`.
    Truncate {
        group: Arc<str>,
        keep: Option<LogId>,
        from: u64,
        upto: u64,
        done: Done,
    },
    /// Deletes the entries `from..=upto`; `purged` is remembered as the end of what is gone.
    Purge {
        group: Arc<str>,
        purged: LogId,
        from: u64,
        upto: u64,
    },
    /// Completes once everything before it, and the committed positions, are durable and the store is closed.
    Close { done: Done },
}

pub(crate) type Done = oneshot::Sender<io::Result<()>>;

/// The handle of the thread; dropping the last one stops it after the work that was handed in.
pub(crate) struct Writer {
    ops: Sender<Op>,
    committed: Arc<Mutex<BTreeMap<Arc<str>, LogId>>>,
    failed: watch::Receiver<Option<String>>,
}

impl Writer {
    /// `pieces`: for each group the entries that take more than one record; `last`: the index of its last entry.
    pub(crate) fn spawn(
        backend: Box<dyn Backend>,
        watermark: Option<Watermark>,
        pieces: BTreeMap<Arc<str>, BTreeMap<u64, u16>>,
        last: BTreeMap<Arc<str>, u64>,
        lock: Option<Arc<DataDir>>,
    ) -> io::Result<Arc<Self>> {
        let (ops, queue) = channel();
        let committed = Arc::default();
        let (fail, failed) = watch::channel(None);
        let worker = Worker {
            backend,
            watermark,
            pieces,
            last,
            purges: Vec::new(),
            committed: Arc::clone(&committed),
            failure: None,
            fail,
            closing: None,
            _lock: lock,
        };
        thread::Builder::new()
            .name("raft-writer".to_owned())
            .spawn(move || worker.run(&queue))?;
        Ok(Arc::new(Self {
            ops,
            committed,
            failed,
        }))
    }

    pub(crate) fn send(&self, op: Op) {
        // The thread only ends after the last handle; if it died, `Op` is dropped and whoever waits for it learns that way.
        let _ = self.ops.send(op);
    }

    /// Remembers how far a group is committed; written with the next batch, because losing it costs only a replay.
    pub(crate) fn note_committed(&self, group: &Arc<str>, committed: LogId) {
        self.committed.lock().insert(Arc::clone(group), committed);
    }

    /// `Some(why)` after the first failed write; nothing is written after that.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// Finishes everything handed in so far, writes the committed positions and closes the store; what comes later fails.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(Op::Close { done });
        wait.await.unwrap_or_else(|_| Err(stopped()))
    }
}

pub(crate) fn stopped() -> io::Error {
    io::Error::other("the storage thread has stopped")
}

struct Worker {
    backend: Box<dyn Backend>,
    watermark: Option<Watermark>,
    pieces: BTreeMap<Arc<str>, BTreeMap<u64, u16>>,
    /// Index of each group's last entry that was handed to the backend.
    last: BTreeMap<Arc<str>, u64>,
    /// Ranges of purged entries whose records are still to be deleted.
    purges: Vec<(Arc<str>, u64, u64)>,
    committed: Arc<Mutex<BTreeMap<Arc<str>, LogId>>>,
    failure: Option<(io::ErrorKind, String)>,
    fail: watch::Sender<Option<String>>,
    closing: Option<Done>,
    /// Released after the backend (fields are dropped in order).
    _lock: Option<Arc<DataDir>>,
}

enum Waiter {
    Raft(IoFlushed),
    Task(Done),
}

#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    waiters: Vec<Waiter>,
    sync: bool,
    marks: Vec<(Arc<str>, MarkChange)>,
}

enum MarkChange {
    Last(Option<LogId>),
    Vote(Vote),
}

impl Batch {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.push((key, Some(value)));
    }
}

impl Worker {
    fn run(mut self, queue: &Receiver<Op>) {
        let mut held = None;
        loop {
            let first = match held.take() {
                Some(op) => op,
                None if self.purges.is_empty() => match queue.recv_timeout(COMMITTED_IDLE) {
                    Ok(op) => op,
                    Err(RecvTimeoutError::Timeout) => {
                        self.idle();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match queue.try_recv() {
                    Ok(op) => op,
                    Err(TryRecvError::Empty) => {
                        self.purge_step(PURGE_IDLE);
                        continue;
                    }
                    Err(TryRecvError::Disconnected) => return,
                },
            };
            let mut batch = Batch::default();
            let truncates = matches!(first, Op::Truncate { .. });
            self.take(first, &mut batch);
            while !truncates
                && self.closing.is_none()
                && batch.waiters.len() < BATCH_OPS
                && batch.bytes < BATCH_BYTES
            {
                match queue.try_recv() {
                    // A truncation lowers the watermark first, so it goes alone.
                    Ok(op @ Op::Truncate { .. }) => {
                        held = Some(op);
                        break;
                    }
                    Ok(op) => self.take(op, &mut batch),
                    Err(_) => break,
                }
            }
            if !truncates {
                self.take_purges(&mut batch, PURGE_BUSY);
            }
            self.commit(batch, truncates);
            if let Some(done) = self.closing.take() {
                let result = self.result();
                // The database and the directory's lock are released before the caller hears of it.
                drop(self);
                let _ = done.send(result);
                return;
            }
        }
    }

    fn result(&self) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
        }
    }

    fn take(&mut self, op: Op, batch: &mut Batch) {
        match op {
            Op::Append {
                group,
                entries,
                done,
            } => {
                for entry in &entries {
                    let pairs = record::encode_entry(&group, entry);
                    if let Ok(pieces @ 2..) = u16::try_from(pairs.len()) {
                        self.pieces
                            .entry(Arc::clone(&group))
                            .or_default()
                            .insert(entry.log_id.index, pieces);
                    }
                    for (key, value) in pairs {
                        batch.put(key, value);
                    }
                }
                if let Some(last) = entries.last() {
                    self.last.insert(Arc::clone(&group), last.log_id.index);
                    batch
                        .marks
                        .push((group, MarkChange::Last(Some(last.log_id))));
                }
                batch.waiters.push(Waiter::Raft(done));
                batch.sync = true;
            }
            Op::Vote { group, vote, done } => {
                let key = Key::meta(&group, "vote");
                let value = record::seal(&key, 1, &wire::vote(&vote).encode_to_vec());
                batch.put(key, value);
                batch.marks.push((group, MarkChange::Vote(vote)));
                batch.waiters.push(Waiter::Task(done));
                batch.sync = true;
            }
            Op::Truncate {
                group,
                keep,
                from,
                upto,
                done,
            } => {
                self.delete(&group, from, upto, batch);
                batch.marks.push((group, MarkChange::Last(keep)));
                batch.waiters.push(Waiter::Task(done));
                batch.sync = true;
            }
            Op::Purge {
                group,
                purged,
                from,
                upto,
            } => {
                let key = Key::meta(&group, "purged");
                let value = record::seal(&key, 1, &wire::log_id(&purged).encode_to_vec());
                batch.put(key, value);
                let last = self.last.entry(Arc::clone(&group)).or_default();
                *last = purged.index.max(*last);
                if from <= upto {
                    self.purges.push((group, from, upto));
                }
            }
            Op::Close { done } => {
                self.closing = Some(done);
                batch.sync = true;
            }
        }
    }

    fn delete(&mut self, group: &Arc<str>, from: u64, upto: u64, batch: &mut Batch) {
        let large = self.pieces.entry(Arc::clone(group)).or_default();
        for index in from..=upto {
            for piece in 0..large.remove(&index).unwrap_or(1) {
                batch.changes.push((Key::log(group, index, piece), None));
            }
        }
    }

    fn take_purges(&mut self, batch: &mut Batch, mut budget: u64) {
        while budget > 0 {
            let Some((group, from, upto)) = self.purges.pop() else {
                break;
            };
            let last = upto.min(from + budget - 1);
            self.delete(&group, from, last, batch);
            budget -= last - from + 1;
            if last < upto {
                self.purges.push((group, last + 1, upto));
            }
        }
    }

    fn purge_step(&mut self, budget: u64) {
        let mut batch = Batch::default();
        self.take_purges(&mut batch, budget);
        self.commit(batch, false);
    }

    /// Nothing was written for a while: bring the committed positions to disk.
    fn idle(&mut self) {
        let writable = |(group, committed): (&Arc<str>, &LogId)| {
            self.last
                .get(group)
                .is_some_and(|last| *last >= committed.index)
        };
        let waiting = self.committed.lock().iter().any(writable);
        if waiting && self.failure.is_none() {
            self.commit(
                Batch {
                    sync: true,
                    ..Batch::default()
                },
                false,
            );
        }
    }

    fn commit(&mut self, mut batch: Batch, lowers_mark: bool) {
        let started = Instant::now();
        if batch.sync {
            self.take_committed(&mut batch);
        }
        if self.failure.is_none() {
            let (sync, bytes) = (batch.sync, batch.bytes);
            match self.write(&mut batch, lowers_mark) {
                Ok(()) if sync => {
                    metrics::histogram!("quorate_raft_fsync_seconds")
                        .record(started.elapsed().as_secs_f64());
                    metrics::counter!("quorate_raft_stored_bytes_total").increment(bytes as u64);
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::error!(%error, "the node's storage failed; it writes no more");
                    let why = if error.kind() == io::ErrorKind::StorageFull {
                        format!("no space left on the disk of the data directory ({error})")
                    } else {
                        format!("writing to the data directory failed: {error}")
                    };
                    self.fail.send_replace(Some(why.clone()));
                    self.failure = Some((error.kind(), why));
                    self.purges.clear();
                }
            }
        }
        // Newest first: openraft watches a high-water mark, so one wake-up then serves all appends of this batch.
        for waiter in batch.waiters.into_iter().rev() {
            match waiter {
                Waiter::Raft(done) => done.io_completed(self.result()),
                Waiter::Task(done) => drop(done.send(self.result())),
            }
        }
    }

    /// A follower may know that an entry is committed before the entry is written here; the record must not run ahead.
    fn take_committed(&mut self, batch: &mut Batch) {
        self.committed.lock().retain(|group, committed| {
            if self
                .last
                .get(group)
                .is_none_or(|last| *last < committed.index)
            {
                return true;
            }
            let key = Key::meta(group, "committed");
            let value = record::seal(&key, 1, &wire::log_id(committed).encode_to_vec());
            batch.put(key, value);
            false
        });
    }

    fn write(&mut self, batch: &mut Batch, lowers_mark: bool) -> io::Result<()> {
        let marks = std::mem::take(&mut batch.marks);
        if lowers_mark {
            self.mark(&marks, true)?;
        }
        if !batch.changes.is_empty() || batch.sync {
            self.backend
                .commit(std::mem::take(&mut batch.changes), batch.sync)?;
        }
        if !lowers_mark && !marks.is_empty() {
            self.mark(&marks, false)?;
        }
        Ok(())
    }

    fn mark(&mut self, changes: &[(Arc<str>, MarkChange)], sync: bool) -> io::Result<()> {
        let Some(watermark) = &mut self.watermark else {
            return Ok(());
        };
        for (group, change) in changes {
            let mark = watermark.mark(group);
            match change {
                MarkChange::Last(last) => mark.set_last(*last),
                MarkChange::Vote(vote) => mark.set_vote(vote),
            }
        }
        watermark.write(sync)
    }
}
