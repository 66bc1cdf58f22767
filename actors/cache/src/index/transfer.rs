//! One holder's blocks as they are, for whoever takes its endpoint over; and the contents of one index put into another, when a snapshot came.

use super::CacheIndex;
use super::apply::State;
use super::contents::Contents;
use super::coverage::EXPECTED;
use super::holder::HolderKey;
use super::weights::tier_of;
use crate::Tier;
use crate::keys::KeySpace;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is announced for one holder.
#[derive(Clone, Debug)]
pub struct HolderCopy {
    /// Its engine process.
    pub incarnation: u64,
    /// The epoch of its owner.
    pub epoch: u64,
    /// The number that its last section ended with.
    pub sequence: u64,
    /// Hash of the engine's last message that the blocks come from; 0: none.
    pub mark: u64,
    /// How its keys are made.
    pub space: Option<KeySpace>,
    /// Blocks that follow one another, with their tier.
    pub runs: Vec<(Tier, Vec<u64>)>,
}

impl CacheIndex {
    /// Copies what is announced for a holder. Takes time in proportion to its blocks, and nothing is applied meanwhile.
    #[must_use]
    pub fn copy(&self, key: HolderKey) -> Option<HolderCopy> {
        let state = self.state.lock();
        let entry = state.entries.get(&key)?;
        let (slot, holder) = state.table.find(key)?;
        let mut runs = Vec::new();
        let mut list = Vec::new();
        for shard in &state.contents.core.shards {
            let mut writer = shard.writer.lock();
            for segment in &writer.tenant(slot).segments {
                shard.segments.load_list(*segment, &mut list);
                let area = shard.segments.hashes(shard.segments.head(*segment));
                for interval in &list {
                    if interval.holder() != slot || interval.lane() == EXPECTED {
                        continue;
                    }
                    let words = area.get(interval.start()..interval.end());
                    if let (Some(tier), Some(words)) = (tier_of(interval.lane()), words) {
                        let hashes = words.iter().map(|w| w.load(Ordering::Relaxed));
                        runs.push((tier, hashes.collect()));
                    }
                }
            }
        }
        Some(HolderCopy {
            incarnation: entry.incarnation,
            epoch: entry.epoch,
            sequence: entry.sequence,
            mark: entry.mark,
            space: holder.space.clone(),
            runs,
        })
    }

    /// Forgets everything at once, as a group does that begins anew. May take time: it waits for readers, and frees memory.
    pub fn reset(&self) {
        self.replace(State::of(Arc::new(Contents::new(self.config))));
    }

    /// Takes over what another index of the same size has announced, in place of what it had itself: a reader finds the one or the other.
    /// Batches that were applied here and are not in the other one are gone. May take time: it waits for readers, and frees memory.
    pub fn assume(&self, other: Self) {
        self.replace(other.state.into_inner());
    }

    fn replace(&self, with: State) {
        let unknown = with.pairs_by_tier()[Tier::Unknown as usize];
        let c = &self.counters;
        c.added.fetch_add(with.pairs, Ordering::Relaxed);
        c.unknown_tier.fetch_add(unknown, Ordering::Relaxed);
        let old = {
            let mut state = self.state.lock();
            self.contents.store(Arc::clone(&with.contents));
            std::mem::replace(&mut *state, with)
        };
        c.removed.fetch_add(old.pairs, Ordering::Relaxed);
        c.dropped
            .fetch_add(old.contents.retire(), Ordering::Relaxed);
    }
}
