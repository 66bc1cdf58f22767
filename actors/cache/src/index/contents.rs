//! Blocks and holders as readers find them: all of it is replaced at once when a snapshot was taken in or everything is forgotten.

use super::IndexConfig;
use super::blocks::Core;
use super::holder::HolderTable;
use super::ledger::Ledger;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Longest wait for readers of a map that was replaced. They are done in microseconds; a snapshot being read takes longer.
const READERS: Duration = Duration::from_millis(20);

pub(super) struct Contents {
    pub(super) core: Core,
    /// Published as a whole with each change.
    pub(super) holders: ArcSwap<HolderTable>,
    /// (holder, block) expected now.
    standing: AtomicI64,
}

impl Contents {
    pub(super) fn new(config: IndexConfig) -> Self {
        Self {
            core: Core::new(config.pairs(), config.max_bytes),
            holders: ArcSwap::default(),
            standing: AtomicI64::new(0),
        }
    }

    /// (holder, block) expected now.
    pub(super) fn standing(&self) -> u64 {
        self.standing.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// Books what a change did to what is expected.
    pub(super) fn book(&self, book: &Ledger) {
        let change = book.expected.cast_signed() - (book.confirmed + book.dropped).cast_signed();
        if change != 0 {
            self.standing.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Waits for those who still read what nobody finds any more, so that none of them is the one who frees it. Answers how much was
    /// expected in it.
    pub(super) fn retire(self: &Arc<Self>) -> u64 {
        let step = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while Arc::strong_count(self) > 1 && waited < READERS {
            std::thread::sleep(step);
            waited += step;
        }
        self.standing()
    }
}
