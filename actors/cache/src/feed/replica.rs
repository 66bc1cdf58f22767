//! The index as the contents of a replicated group: what an entry of the log does to it.
//!
//! An entry begins with its kind: 1 a batch of sections, 2 a check, 3 a new beginning. A check makes each replica note its digest as of that entry and
//! compare what the entry says of the check before with what it noted then. A replica that differs cannot tell which holder is
//! wrong, and forgetting for itself would leave it behind the others: its node proposes a new beginning, which empties all
//! replicas alike, and the owners send full sets.

use super::outcome::encode_outcomes;
use crate::index::{CacheIndex, DeltaBatch, IndexConfig, Snapshot, SnapshotLoader};
use bytes::Bytes;
use metrics::counter;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const CHECK: u8 = 2;
const ANEW: u8 = 3;

/// A digest as of an entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Noted {
    index: u64,
    digest: u128,
}

/// See the module's documentation.
pub struct Replicated {
    index: Arc<CacheIndex>,
    config: IndexConfig,
    noted: Mutex<Option<Noted>>,
    differs: Mutex<bool>,
    mismatches: AtomicU64,
    begun_anew: AtomicU64,
}

/// How a replica's contents were found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaTotals {
    /// Checks that found another digest here than at the proposer.
    pub mismatches: u64,
    /// Times that all replicas were emptied because one of them differed.
    pub begun_anew: u64,
}

impl Replicated {
    /// Of an empty index, with what it was made with.
    #[must_use]
    pub fn new(index: Arc<CacheIndex>, config: IndexConfig) -> Self {
        Self {
            index,
            config,
            noted: Mutex::default(),
            differs: Mutex::default(),
            mismatches: AtomicU64::new(0),
            begun_anew: AtomicU64::new(0),
        }
    }

    /// The index.
    #[must_use]
    pub const fn index(&self) -> &Arc<CacheIndex> {
        &self.index
    }

    /// How its contents were found to be since the process began.
    #[must_use]
    pub fn totals(&self) -> ReplicaTotals {
        ReplicaTotals {
            mismatches: self.mismatches.load(Relaxed),
            begun_anew: self.begun_anew.load(Relaxed),
        }
    }

    /// Applies an entry; the answer is for who proposed it.
    pub fn apply(&self, index: u64, entry: &[u8]) -> Bytes {
        let mut answer = Vec::new();
        match entry.split_first() {
            Some((&CHECK, rest)) => self.check(index, rest),
            Some((&ANEW, [])) => {
                self.index.reset();
                *self.noted.lock() = None;
                self.begun_anew.fetch_add(1, Relaxed);
            }
            _ => match DeltaBatch::decode(entry) {
                Ok(batch) => encode_outcomes(&self.index.apply(&batch).outcomes, &mut answer),
                Err(error) => {
                    counter!("quorate_cache_entries_malformed_total").increment(1);
                    tracing::error!(%error, "an entry of the cache group is not understood");
                }
            },
        }
        answer.into()
    }

    fn check(&self, index: u64, entry: &[u8]) {
        let now = Noted {
            index,
            digest: self.index.digests().whole().0,
        };
        let before = self.noted.lock().replace(now);
        let (Some((at, [])), Some(before)) = (entry.split_at_checked(24), before) else {
            return;
        };
        let word = |from: usize| {
            at.get(from..from + 8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        let said = Noted {
            index: word(0),
            digest: u128::from(word(8)) | u128::from(word(16)) << 64,
        };
        if said.index == before.index && said.digest != before.digest {
            counter!("quorate_cache_digest_mismatches_total", "between" => "replicas").increment(1);
            self.mismatches.fetch_add(1, Relaxed);
            tracing::error!(
                entry = before.index,
                "this node's map of KV-cache blocks is not the proposer's: all nodes begin anew"
            );
            *self.differs.lock() = true;
        }
    }

    /// The next check to propose: what this replica noted at the one before.
    #[must_use]
    pub fn next_check(&self) -> Bytes {
        let mut entry = vec![CHECK];
        if let Some(noted) = *self.noted.lock() {
            entry.extend_from_slice(&noted.index.to_le_bytes());
            entry.extend_from_slice(&noted.digest.to_le_bytes());
        }
        entry.into()
    }

    /// A new beginning, if this replica was found to differ since the last call.
    pub fn remedy(&self) -> Option<Bytes> {
        std::mem::take(&mut *self.differs.lock()).then(|| Bytes::from_static(&[ANEW]))
    }

    /// What is announced now, to be read later, also beside others.
    #[must_use]
    pub fn freeze(&self) -> Snapshot {
        self.index.snapshot()
    }

    /// A loader for a snapshot of another replica.
    #[must_use]
    pub fn loader(&self) -> SnapshotLoader {
        SnapshotLoader::new(self.config)
    }

    /// Replaces the contents by a snapshot that was loaded, at once for all readers. It must be of an entry after all that were applied here;
    /// what comes after it in the log is applied on top. Blocks for some milliseconds.
    pub fn install(&self, loaded: CacheIndex) {
        *self.noted.lock() = None;
        self.index.assume(loaded);
    }

    /// Empties it.
    pub fn reset(&self) {
        *self.noted.lock() = None;
        self.index.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tier;
    use crate::index::{HolderKey, Section};

    fn entry(block: u64, from: u64) -> Vec<u8> {
        let key = HolderKey {
            endpoint: 1,
            rank: 0,
        };
        let mut section = Section::new(key, 1, 1, from, from + 1);
        section.replace = from == 0;
        section.stored(Tier::Gpu, None, &[block]);
        let mut bytes = Vec::new();
        let sections = vec![section];
        DeltaBatch { sections }.encode(&mut bytes);
        bytes
    }

    #[test]
    fn replicas_that_differ_begin_anew_together() {
        let config = IndexConfig { max_bytes: 1 << 20 };
        let new = || Replicated::new(Arc::new(CacheIndex::new(config)), config);
        let (a, b) = (new(), new());
        let both = |at: u64, bytes: &[u8]| assert_eq!(a.apply(at, bytes), b.apply(at, bytes));
        both(1, &entry(5, 0));
        both(2, &a.next_check());
        both(3, &a.next_check());
        assert!(a.remedy().is_none() && b.remedy().is_none());
        // A fault: one of them has what the other has not.
        b.apply(4, &entry(6, 1));
        both(5, &a.next_check());
        both(6, &a.next_check());
        assert!(a.remedy().is_none());
        let remedy = b.remedy().unwrap();
        both(7, &remedy);
        both(8, &entry(7, 0));
        assert_eq!(a.index().digests(), b.index().digests());
        assert_eq!(a.index().stats().pairs, 1);
        let totals = |mismatches| ReplicaTotals {
            mismatches,
            begun_anew: 1,
        };
        assert_eq!((a.totals(), b.totals()), (totals(0), totals(1)));
        // A third one joins with a snapshot.
        let c = new();
        c.apply(1, &entry(9, 0));
        let mut loader = c.loader();
        for chunk in a.freeze() {
            loader.push(&chunk).unwrap();
        }
        c.install(loader.finish().unwrap());
        assert_eq!(a.index().digests(), c.index().digests());
        assert_eq!(a.index().holders(), c.index().holders());
        // Nonsense changes nothing.
        both(9, &[]);
        both(10, &[9, 9]);
        assert_eq!(a.index().stats().pairs, 1);
    }
}
