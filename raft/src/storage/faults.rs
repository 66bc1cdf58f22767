//! What happens when the disk fails: nothing is acknowledged, nothing more is written, and whoever waits is told.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use openraft::{
    storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt},
    vote::RaftLeaderId,
};
use parking_lot::Mutex;

use super::{
    Storage,
    backend::{Backend, Change, Memory},
    load::{self, Loaded},
    log::LogStore,
    writer::Writer,
};
use crate::{
    options::Durability,
    types::{CONTROL, Commands, Entry, LeaderId, LogId, Payload, Vote},
};

/// A memory backend that fails on demand and counts its syncs.
struct Failing {
    inner: Memory,
    full: Arc<AtomicBool>,
    syncs: Arc<AtomicUsize>,
    written: Arc<Mutex<Vec<String>>>,
}

impl Backend for Failing {
    fn commit(&mut self, changes: Vec<Change>, sync: bool) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "no space left on device",
            ));
        }
        self.syncs.fetch_add(usize::from(sync), Ordering::SeqCst);
        self.written
            .lock()
            .extend(changes.iter().map(|(key, _)| super::record::show_key(key)));
        self.inner.commit(changes, sync)
    }

    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.inner.scan(visit)
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    Entry {
        log_id: id(term, index),
        payload: Payload::Normal(Commands(Bytes::from(vec![7; len]))),
    }
}

struct Parts {
    log: LogStore,
    writer: Arc<Writer>,
    full: Arc<AtomicBool>,
    syncs: Arc<AtomicUsize>,
    /// Keys in the order in which they reached the backend.
    written: Arc<Mutex<Vec<String>>>,
}

fn failing() -> Parts {
    let (full, syncs, written) = (Arc::default(), Arc::default(), Arc::default());
    let backend = Failing {
        inner: Memory::default(),
        full: Arc::clone(&full),
        syncs: Arc::clone(&syncs),
        written: Arc::clone(&written),
    };
    let storage = Storage {
        backend: Box::new(backend),
        watermark: None,
        loaded: Loaded::default(),
        path: "test".into(),
    };
    let (writer, mut logs) = storage.start(&[CONTROL], None).unwrap();
    Parts {
        log: logs.remove(0),
        writer,
        full,
        syncs,
        written,
    }
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_stays_closed() {
    let mut parts = failing();
    parts.log.save_vote(&Vote::new(1, 1)).await.unwrap();
    parts.log.blocking_append([entry(1, 0, 10)]).await.unwrap();
    parts.full.store(true, Ordering::SeqCst);
    assert!(parts.log.blocking_append([entry(1, 1, 10)]).await.is_err());
    let why = parts.writer.failed().borrow().clone().unwrap();
    assert!(why.contains("no space left"), "{why}");
    // The disk has room again, but what the database holds is unknown: nothing is written until a restart checks it.
    parts.full.store(false, Ordering::SeqCst);
    assert!(parts.log.save_vote(&Vote::new(2, 1)).await.is_err());
    assert_eq!(
        parts.log.read_vote().await.unwrap(),
        Some(Vote::new(1, 1)),
        "a vote that is not on disk was never cast"
    );
    assert!(parts.log.blocking_append([entry(1, 2, 10)]).await.is_err());
}

#[tokio::test]
async fn appends_that_wait_share_a_sync() {
    let mut parts = failing();
    parts.log.save_vote(&Vote::new(1, 1)).await.unwrap();
    let before = parts.syncs.load(Ordering::SeqCst);
    let mut waits = Vec::new();
    for index in 0..500 {
        let (tx, rx) = openraft_oneshot();
        parts
            .log
            .append(
                [entry(1, index, 10)],
                openraft::storage::IOFlushed::signal(tx),
            )
            .await
            .unwrap();
        waits.push(rx);
    }
    for wait in waits {
        wait.await.unwrap().unwrap();
    }
    let used = parts.syncs.load(Ordering::SeqCst) - before;
    assert!(used < 500, "{used} syncs for 500 appends");
}

type IoResult = io::Result<()>;

fn openraft_oneshot() -> (
    openraft::alias::OneshotSenderOf<crate::types::TypeConfig, IoResult>,
    openraft::alias::OneshotReceiverOf<crate::types::TypeConfig, IoResult>,
) {
    use openraft::type_config::TypeConfigExt;
    crate::types::TypeConfig::oneshot()
}

#[tokio::test]
async fn everything_comes_back_after_truncation_purge_and_large_entries() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Storage::open(dir.path(), Durability::Synced).unwrap();
    let (writer, mut logs) = open().start(&[CONTROL], None).unwrap();
    let mut log = logs.remove(0);
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    log.blocking_append(
        (0..3000).map(|index| entry(1, index, if index % 500 == 0 { 200_000 } else { 20 })),
    )
    .await
    .unwrap();
    log.truncate_after(Some(id(1, 2400))).await.unwrap();
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    log.blocking_append((2401..2600).map(|index| entry(2, index, 30)))
        .await
        .unwrap();
    log.save_committed(Some(id(2, 2500))).await.unwrap();
    log.purge(id(1, 1999)).await.unwrap();
    let want = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(want.len(), 600);
    writer.close().await.unwrap();

    let (_writer, mut logs) = open().start(&[CONTROL], None).unwrap();
    let mut log = logs.remove(0);
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), want);
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(id(1, 1999)), Some(id(2, 2599)))
    );
    assert_eq!(
        log.read_vote().await.unwrap(),
        Some(Vote::new_committed(2, 1))
    );
    assert_eq!(log.read_committed().await.unwrap(), Some(id(2, 2500)));
}

#[tokio::test]
async fn a_committed_position_never_runs_ahead_of_the_log() {
    let mut parts = failing();
    parts.log.save_vote(&Vote::new(1, 1)).await.unwrap();
    // A follower hears that entry 5 is committed before entries 1 to 5 are written here.
    parts.log.save_committed(Some(id(1, 5))).await.unwrap();
    parts.log.blocking_append([entry(1, 0, 1)]).await.unwrap();
    parts.log.save_vote(&Vote::new(2, 1)).await.unwrap();
    parts
        .log
        .blocking_append((1..=5).map(|index| entry(1, index, 1)))
        .await
        .unwrap();
    parts.log.save_vote(&Vote::new(3, 1)).await.unwrap();
    let written = parts.written.lock();
    let at = |key: &str| {
        written
            .iter()
            .position(|written| written == key)
            .expect("written")
    };
    assert!(at("control/log/5.0") < at("control/committed"));
}

#[test]
fn a_hole_in_the_log_is_refused() {
    let mut backend = Memory::default();
    let vote = super::record::Key::meta(CONTROL, "vote");
    let sealed = super::record::seal(
        &vote,
        1,
        &prost::Message::encode_to_vec(&crate::wire::vote(&Vote::new(1, 1))),
    );
    let mut changes = vec![(vote, Some(sealed))];
    for index in [0, 1, 3] {
        let pairs = super::record::encode_entry(CONTROL, &entry(1, index, 5));
        changes.extend(pairs.into_iter().map(|(key, value)| (key, Some(value))));
    }
    backend.commit(changes, true).unwrap();
    let Err(error) = load::load(&backend, std::path::Path::new("db")) else {
        panic!("a log with a hole was accepted");
    };
    assert!(
        error.to_string().contains("log entry 2 is missing"),
        "{error}"
    );
}
