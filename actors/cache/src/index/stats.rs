//! What the index counts.

use super::CacheIndex;
use super::digest::Digest;
use super::holder::HolderKey;
use super::ledger::Ledger;
use super::weights::TIERS;
use crate::keys::KeySpace;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that grow, and how much is expected now.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) added: AtomicU64,
    pub(super) removed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) out_of_memory: AtomicU64,
    pub(super) unknown_tier: AtomicU64,
    pub(super) sections_refused: AtomicU64,
    pub(super) digest_mismatches: AtomicU64,
    pub(super) expected: AtomicU64,
    pub(super) confirmed: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) expectations_refused: AtomicU64,
}

impl Counters {
    pub(super) fn book(&self, book: &Ledger) {
        let counts = [
            (&self.added, book.added),
            (&self.removed, book.removed),
            (&self.expected, book.expected),
            (&self.confirmed, book.confirmed),
            (&self.dropped, book.dropped),
        ];
        for (counter, count) in counts.into_iter().filter(|(_, n)| *n > 0) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Figures of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Holders known.
    pub holders: usize,
    /// Different blocks known, expected ones included.
    pub blocks: usize,
    /// (holder, block, tier) announced.
    pub pairs: u64,
    /// The most of them that may be.
    pub max_pairs: u64,
    /// By tier.
    pub pairs_by_tier: [u64; TIERS],
    /// (holder, block) expected now.
    pub expected_now: u64,
    /// Bytes taken, spare room included.
    pub bytes: usize,
    /// Announced since the start.
    pub added: u64,
    /// Removed since the start, one by one or with their holder.
    pub removed: u64,
    /// Not added because the index was full.
    pub refused: u64,
    /// Removed to make room.
    pub evicted: u64,
    /// Not added because the memory set aside was used up; part of `refused`.
    pub out_of_memory: u64,
    /// Announced on a tier of unknown name. More than 0 means that a name has to be taught.
    pub unknown_tier: u64,
    /// Sections that were not applied.
    pub sections_refused: u64,
    /// Sections after which the digest was not the owner's. Anything but 0 is a fault.
    pub digest_mismatches: u64,
    /// Expected since the start.
    pub expected: u64,
    /// Of those, announced in time.
    pub confirmed: u64,
    /// Of those, never announced.
    pub dropped: u64,
    /// Picks whose expectations were not taken because there were too many.
    pub expectations_refused: u64,
}

/// What is known of a holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderStatus {
    /// The holder.
    pub holder: HolderKey,
    /// Its engine process.
    pub incarnation: u64,
    /// The epoch of its owner.
    pub epoch: u64,
    /// The number that its last section ended with.
    pub sequence: u64,
    /// Hash of the engine's last message that its blocks come from; 0: none.
    pub mark: u64,
    /// How its keys are made, as its owner said.
    pub space: Option<KeySpace>,
    /// Blocks by tier.
    pub pairs: [u64; TIERS],
    /// The digest of its set.
    pub digest: Digest,
    /// Whether blocks of it were refused or evicted since its last full set, because the index was full.
    pub trimmed: bool,
}

impl CacheIndex {
    /// Figures of the index. Takes every shard's lock for a moment.
    #[must_use]
    pub fn stats(&self) -> IndexStats {
        let (holders, pairs, pairs_by_tier, contents) = {
            let state = self.state.lock();
            (
                state.entries.len(),
                state.pairs,
                state.pairs_by_tier(),
                Arc::clone(&state.contents),
            )
        };
        let c = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IndexStats {
            holders,
            blocks: contents.core.map.len(),
            pairs,
            max_pairs: self.max_pairs(),
            pairs_by_tier,
            expected_now: contents.standing(),
            bytes: contents.core.bytes(),
            added: get(&c.added),
            removed: get(&c.removed),
            refused: get(&c.refused),
            evicted: get(&c.evicted),
            out_of_memory: get(&c.out_of_memory),
            unknown_tier: get(&c.unknown_tier),
            sections_refused: get(&c.sections_refused),
            digest_mismatches: get(&c.digest_mismatches),
            expected: get(&c.expected),
            confirmed: get(&c.confirmed),
            dropped: get(&c.dropped),
            expectations_refused: get(&c.expectations_refused),
        }
    }

    /// How a holder's keys are made. Takes no lock.
    #[must_use]
    pub fn space_of(&self, holder: HolderKey) -> Option<KeySpace> {
        let contents = self.contents.load();
        contents.holders.load().find(holder)?.1.space.clone()
    }

    /// The holders, in the order of keys.
    #[must_use]
    pub fn holders(&self) -> Vec<HolderStatus> {
        let state = self.state.lock();
        let status = |(holder, e): (&HolderKey, &super::apply::HolderEntry)| HolderStatus {
            holder: *holder,
            incarnation: e.incarnation,
            epoch: e.epoch,
            sequence: e.sequence,
            mark: e.mark,
            space: state.table.find(*holder).and_then(|(_, h)| h.space.clone()),
            pairs: e.sums.pairs,
            digest: e.sums.digest,
            trimmed: e.trimmed,
        };
        state.entries.iter().map(status).collect()
    }
}
