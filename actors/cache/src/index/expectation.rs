//! What a pick expects: the engine that gets the request will soon have its blocks. Until the engine says so, or the generation has passed,
//! the index answers as if it were so, and the next pick of the same prefix goes to the same place.
//!
//! Expectations are no part of digests and snapshots, and end with the map that they were added to when a snapshot takes its place. They never stand for a block that is announced: they are added only where the holder
//! has nothing, and an announcement takes their place.

use super::CacheIndex;
use super::holder::HolderKey;
use super::ledger::{Entry, Ledger, Who};
use std::sync::atomic::Ordering;

/// One part in this many of the index may be expectations.
const SHARE: u64 = 8;

/// What came of an expectation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// So many blocks are expected that were neither announced nor expected before.
    Added(u64),
    /// The holder is not known, or has another incarnation by now.
    NotThere,
    /// Too much is expected already; nothing was added.
    Full,
}

impl CacheIndex {
    /// Expects the holder, in this incarnation, to have all blocks of the chain soon. `generation` is a clock of the caller's choice that
    /// never goes back (ticks of half a second, say); what is expected again counts from the later one.
    ///
    /// Takes a lock for each stretch of blocks that lie together, for as long as it takes to write them.
    pub fn expect(
        &self,
        key: HolderKey,
        incarnation: u64,
        hashes: &[u64],
        generation: u64,
    ) -> Expected {
        let contents = self.contents.load();
        let table = contents.holders.load();
        let Some((slot, holder)) = table
            .find(key)
            .filter(|(_, h)| h.incarnation == incarnation)
        else {
            return Expected::NotThere;
        };
        if contents.standing() + hashes.len() as u64 > self.max_pairs() / SHARE {
            self.counters
                .expectations_refused
                .fetch_add(1, Ordering::Relaxed);
            return Expected::Full;
        }
        let who = Who {
            holder: slot,
            stamp: holder.stamp,
            entry: Entry::Expected(generation as u16),
        };
        let mut book = Ledger::of_expected(who);
        contents.core.store(None, hashes, &mut book);
        contents.book(&book);
        self.counters.book(&book);
        Expected::Added(book.expected)
    }

    /// Drops what was expected in `generation` or before and has not been announced. Call it at least once in 32,000 generations.
    /// Answers how many blocks that were.
    pub fn expire(&self, generation: u64) -> u64 {
        let mut book = Ledger::of_expected(Who::NOBODY);
        let contents = self.contents.load();
        contents.core.expire(generation as u16, &mut book);
        contents.book(&book);
        self.counters.book(&book);
        book.dropped
    }
}
