//! One holder's blocks as they are, for whoever takes its endpoint over; and the contents of one index put into another, when a snapshot came.

use super::CacheIndex;
use super::apply::State;
use super::coverage::EXPECTED;
use super::delta::Section;
use super::holder::HolderKey;
use super::weights::tier_of;
use crate::Tier;
use crate::keys::KeySpace;
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
        self.copy_from(&self.state.lock(), key)
    }

    fn copy_from(&self, state: &State, key: HolderKey) -> Option<HolderCopy> {
        let entry = state.entries.get(&key)?;
        let (slot, holder) = state.table.find(key)?;
        let mut runs = Vec::new();
        let mut list = Vec::new();
        for shard in &self.core.shards {
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

    /// Forgets everything, as a group does that begins anew.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        self.empty(&mut state);
    }

    fn empty(&self, state: &mut State) {
        let keys: Vec<HolderKey> = state.entries.keys().copied().collect();
        for key in keys {
            self.forget(state, key);
        }
        state.fences.clear();
    }

    /// Takes over what another index of the same size has announced, in place of what it had itself. Readers see less for the moment.
    pub fn assume(&self, other: &Self) {
        let theirs = other.state.lock();
        let mut state = self.state.lock();
        self.empty(&mut state);
        for (key, entry) in &theirs.entries {
            let Some(copy) = other.copy_from(&theirs, *key) else {
                continue;
            };
            let mut section = Section::new(
                *key,
                copy.incarnation,
                copy.epoch,
                copy.sequence,
                copy.sequence,
            );
            (section.mark, section.space) = (copy.mark, copy.space);
            if self.renew(&mut state, &section).is_none() {
                continue;
            }
            for (tier, hashes) in copy.runs {
                self.store_all(&mut state, *key, tier, None, &hashes);
            }
            if let Some(own) = state.entries.get_mut(key) {
                own.trimmed |= entry.trimmed;
            }
        }
        state.fences.clone_from(&theirs.fences);
    }
}
