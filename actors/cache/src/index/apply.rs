//! Applying a batch: the same batches in the same order make the same map on every replica, whatever its picks expected meanwhile.
//!
//! A section that does not continue what is known changes nothing; its outcome says what the owner has to do, which is mostly to send the
//! full set.

use super::CacheIndex;
use super::blocks::Core;
use super::contents::Contents;
use super::delta::{DeltaBatch, Operation, Section};
use super::digest::{DIGEST_SHARDS, Digest, Digests};
use super::holder::{HolderKey, HolderTable};
use super::ledger::{Entry, Ledger, Sums, Who};
use super::shard::Lanes;
use super::snapshot::Session;
use super::weights::TIERS;
use crate::Tier;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Removed holders that are remembered. What was under way when one was removed comes long before so many others are.
pub(super) const MAX_FENCES: usize = 1024;

/// Why a section changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The holder is not known here, and the section is not a full set.
    #[error("the holder is not known: send the full set")]
    UnknownHolder,
    /// A batch is missing between the last one and this.
    #[error("the section continues {from}, but {known} is where we are: send the full set")]
    Gap {
        /// Where we are.
        known: u64,
        /// What the section continues.
        from: u64,
    },
    /// Another owner has taken over.
    #[error("epoch {epoch} owns the holder")]
    OldEpoch {
        /// The owner's epoch.
        epoch: u64,
    },
    /// The incarnation is another, and the section is not a full set.
    #[error("incarnation {incarnation} is known: send the full set")]
    OtherIncarnation {
        /// The one that is known.
        incarnation: u64,
    },
    /// There is no place for another holder.
    #[error("there are too many holders")]
    TooManyHolders,
    /// The digest after the section was not the owner's: the holder's set is empty now.
    #[error("the digest differs from the owner's, the set was cleared: send the full set")]
    DigestDiffers,
}

/// What came of one section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Applied {
        /// Blocks added that the holder did not have on the tier.
        added: u64,
        /// Blocks removed that it had.
        removed: u64,
        /// Blocks not added because the index is full.
        refused: u64,
    },
    /// It had been applied before: a repetition.
    Repeated,
    /// It was not applied.
    Refused(Refusal),
}

/// What came of a batch, section by section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// In the order of the batch's sections.
    pub outcomes: Vec<(HolderKey, Outcome)>,
}

impl Applied {
    /// The holders of which the owner has to send the full set.
    pub fn wanted(&self) -> impl Iterator<Item = HolderKey> {
        self.outcomes
            .iter()
            .filter_map(|(holder, outcome)| match outcome {
                Outcome::Refused(Refusal::OldEpoch { .. } | Refusal::TooManyHolders) => None,
                Outcome::Refused(_) => Some(*holder),
                _ => None,
            })
    }
}

/// What is known of a holder beside its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HolderEntry {
    pub(super) slot: u16,
    pub(super) incarnation: u64,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) mark: u64,
    pub(super) sums: Sums,
    /// Blocks were refused or evicted since the last full set, so the owner's digest is another.
    pub(super) trimmed: bool,
}

/// The part of the index that only the log changes.
pub(super) struct State {
    pub(super) table: HolderTable,
    pub(super) entries: BTreeMap<HolderKey, HolderEntry>,
    pub(super) shards: [Digest; DIGEST_SHARDS],
    pub(super) pairs: u64,
    /// Removed holders and the epoch in which they were, the oldest first: nothing that was under way then brings one back.
    pub(super) fences: VecDeque<(HolderKey, u64)>,
    /// Snapshots of `contents` that are being read.
    pub(super) sessions: Vec<Weak<Session>>,
    /// What readers see, too.
    pub(super) contents: Arc<Contents>,
}

impl State {
    /// Of contents without holders.
    pub(super) fn of(contents: Arc<Contents>) -> Self {
        let shards = [Digest::default(); DIGEST_SHARDS];
        Self {
            table: HolderTable::default(),
            entries: BTreeMap::new(),
            shards,
            pairs: 0,
            fences: VecDeque::new(),
            sessions: Vec::new(),
            contents,
        }
    }

    pub(super) fn pairs_by_tier(&self) -> [u64; TIERS] {
        let mut by_tier = [0; TIERS];
        for entry in self.entries.values() {
            let both = by_tier.iter_mut().zip(entry.sums.pairs);
            both.for_each(|(sum, n)| *sum += n);
        }
        by_tier
    }

    /// Lets go of snapshots that nobody reads any more.
    pub(super) fn prune(&mut self) {
        self.sessions.retain(|s| s.strong_count() > 0);
    }

    pub(super) fn digests(&self) -> Digests {
        Digests {
            holders: self
                .entries
                .iter()
                .map(|(k, e)| (*k, e.incarnation, e.sums.digest))
                .collect(),
            shards: self.shards,
        }
    }

    /// The epoch in which a holder that is not there was removed, if that was not long ago.
    fn fence(&self, key: HolderKey) -> Option<u64> {
        if self.entries.contains_key(&key) {
            return None;
        }
        let fence = self.fences.iter().find(|(removed, _)| *removed == key)?;
        Some(fence.1)
    }

    fn raise_fence(&mut self, key: HolderKey, epoch: u64) {
        self.fences.retain(|(removed, _)| *removed != key);
        self.fences.push_back((key, epoch));
        if self.fences.len() > MAX_FENCES {
            self.fences.pop_front();
        }
    }

    /// Shows readers the holders as they are.
    pub(super) fn publish_holders(&self) {
        self.contents.holders.store(Arc::new(self.table.clone()));
    }

    /// The holder with the most blocks, the lowest key where two have the same.
    fn largest(&self) -> Option<HolderKey> {
        self.entries
            .iter()
            .rev()
            .max_by_key(|(_, e)| e.sums.total())
            .map(|(k, _)| *k)
    }
}

/// What one section adds up to.
#[derive(Default)]
struct Sum {
    added: u64,
    removed: u64,
    refused: u64,
}

impl CacheIndex {
    /// Applies one batch of the log. Batches are applied one at a time, in the order of the log.
    pub fn apply(&self, batch: &DeltaBatch) -> Applied {
        let mut state = self.state.lock();
        state.prune();
        let outcomes = batch
            .sections
            .iter()
            .map(|s| (s.holder, self.apply_section(&mut state, s)))
            .collect();
        Applied { outcomes }
    }

    fn apply_section(&self, state: &mut State, section: &Section) -> Outcome {
        let key = section.holder;
        let refuse = |why| {
            self.counters
                .sections_refused
                .fetch_add(1, Ordering::Relaxed);
            Outcome::Refused(why)
        };
        if let Some(entry) = state.entries.get(&key)
            && section.epoch < entry.epoch
        {
            return refuse(Refusal::OldEpoch { epoch: entry.epoch });
        }
        if let Some(fence) = state.fence(key)
            && section.epoch <= fence
        {
            return refuse(Refusal::OldEpoch { epoch: fence });
        }
        if section.remove {
            let removed = self.forget(state, key);
            state.raise_fence(key, section.epoch);
            return Outcome::Applied {
                added: 0,
                removed,
                refused: 0,
            };
        }
        let mut sum = Sum::default();
        if section.replace {
            match state.entries.get(&key) {
                // A full set that came twice, or after that of a later engine process.
                Some(e)
                    if e.epoch == section.epoch
                        && (section.incarnation, section.to) <= (e.incarnation, e.sequence) =>
                {
                    return Outcome::Repeated;
                }
                _ => {}
            }
            match self.renew(state, section) {
                Some(removed) => sum.removed = removed,
                None => return refuse(Refusal::TooManyHolders),
            }
        } else {
            let Some(entry) = state.entries.get_mut(&key) else {
                return refuse(Refusal::UnknownHolder);
            };
            if section.incarnation != entry.incarnation {
                return refuse(Refusal::OtherIncarnation {
                    incarnation: entry.incarnation,
                });
            }
            if section.to <= entry.sequence && section.epoch == entry.epoch {
                return Outcome::Repeated;
            }
            if section.from != entry.sequence {
                return refuse(Refusal::Gap {
                    known: entry.sequence,
                    from: section.from,
                });
            }
            (entry.epoch, entry.sequence) = (section.epoch, section.to);
            entry.mark = section.mark;
        }
        for operation in section.operations() {
            self.apply_operation(state, key, operation, &mut sum);
        }
        let Some(entry) = state.entries.get(&key) else {
            return refuse(Refusal::UnknownHolder);
        };
        if section.digest.is_some_and(|d| d != entry.sums.digest) && !entry.trimmed {
            self.counters
                .digest_mismatches
                .fetch_add(1, Ordering::Relaxed);
            self.clear_holder(state, key, Lanes::All);
            // Nothing continues from here but a full set.
            self.forget(state, key);
            return refuse(Refusal::DigestDiffers);
        }
        Outcome::Applied {
            added: sum.added,
            removed: sum.removed,
            refused: sum.refused,
        }
    }

    fn apply_operation(
        &self,
        state: &mut State,
        key: HolderKey,
        operation: Operation,
        sum: &mut Sum,
    ) {
        match operation {
            Operation::Stored {
                tier,
                parent,
                hashes,
            } => self.store(state, key, tier, parent, hashes, sum),
            Operation::Removed { tier, hashes } => {
                sum.removed += self
                    .change(state, key, |core, book| core.remove(tier, hashes, book))
                    .1;
            }
            Operation::Cleared(tier) => {
                sum.removed += self.clear_holder(state, key, tier.map_or(Lanes::All, Lanes::One))
            }
        }
    }

    /// Adds blocks as far as the bound lets it.
    fn store(
        &self,
        state: &mut State,
        key: HolderKey,
        tier: Tier,
        parent: Option<u64>,
        hashes: &[u64],
        sum: &mut Sum,
    ) {
        let mut done = 0;
        while done < hashes.len() {
            let room =
                usize::try_from(self.max_pairs().saturating_sub(state.pairs)).unwrap_or(usize::MAX);
            if room == 0 && !self.evict_for(state, key) {
                break;
            }
            let Some(part) = hashes
                .get(done..done + room.min(hashes.len() - done))
                .filter(|p| !p.is_empty())
            else {
                continue;
            };
            let before = if done == 0 {
                parent
            } else {
                hashes.get(done - 1).copied()
            };
            let (stored, _) = self.change(state, key, |core, book| {
                book.who.entry = Entry::Announced(tier);
                let stored = core.store(before, part, book);
                sum.added += book.added;
                stored
            });
            done += stored;
            if stored < part.len() {
                self.counters
                    .out_of_memory
                    .fetch_add((part.len() - stored) as u64, Ordering::Relaxed);
                break;
            }
        }
        if tier == Tier::Unknown {
            self.counters
                .unknown_tier
                .fetch_add(hashes.len() as u64, Ordering::Relaxed);
        }
        if done < hashes.len() {
            let refused = (hashes.len() - done) as u64;
            sum.refused += refused;
            self.counters.refused.fetch_add(refused, Ordering::Relaxed);
            if let Some(entry) = state.entries.get_mut(&key) {
                entry.trimmed = true;
            }
        }
    }

    /// Makes room in a full index for a block of `key`. False if `key` itself has the most.
    fn evict_for(&self, state: &mut State, key: HolderKey) -> bool {
        let Some(victim) = state.largest().filter(|v| *v != key) else {
            return false;
        };
        let Some(entry) = state.entries.get_mut(&victim) else {
            return false;
        };
        let Some(tier) = Tier::ALL
            .into_iter()
            .rev()
            .find(|t| entry.sums.pairs[*t as usize] > 0)
        else {
            return false;
        };
        entry.trimmed = true;
        let evicted = self.clear_holder(state, victim, Lanes::One(tier));
        self.counters.evicted.fetch_add(evicted, Ordering::Relaxed);
        evicted > 0
    }

    fn clear_holder(&self, state: &mut State, key: HolderKey, lanes: Lanes) -> u64 {
        self.change(state, key, |core, book| core.clear(lanes, book))
            .1
    }

    /// Runs a change of a holder's blocks and books it. Answers what the change answered, and how many blocks were removed.
    fn change<T: Default>(
        &self,
        state: &mut State,
        key: HolderKey,
        change: impl FnOnce(&Core, &mut Ledger) -> T,
    ) -> (T, u64) {
        let (Some((slot, holder)), Some(entry)) =
            (state.table.find(key), state.entries.get_mut(&key))
        else {
            return Default::default();
        };
        let who = Who {
            holder: slot,
            stamp: holder.stamp,
            entry: Entry::Announced(Tier::Unknown),
        };
        let mut book = Ledger::of(who, holder.mixer, &mut entry.sums, &mut state.shards);
        book.sessions = &state.sessions;
        let answer = change(&state.contents.core, &mut book);
        let (added, removed) = (book.added, book.removed);
        state.contents.book(&book);
        self.counters.book(&book);
        state.pairs = state.pairs + added - removed;
        (answer, removed)
    }

    /// Makes the holder known with an empty set. Answers how many blocks it had; nothing if there is no place for it.
    fn renew(&self, state: &mut State, section: &Section) -> Option<u64> {
        let key = section.holder;
        // The new stamp goes first: what is expected from now on is of the new incarnation or not taken.
        let slot = state
            .table
            .enter(key, section.incarnation, section.space.clone())?;
        let stamp = state.table.find(key).map_or(0, |(_, h)| h.stamp);
        state.contents.core.admit(slot, stamp);
        let removed = self.clear_holder(state, key, Lanes::All);
        let entry = HolderEntry {
            slot,
            incarnation: section.incarnation,
            epoch: section.epoch,
            sequence: section.to,
            mark: section.mark,
            sums: Sums::default(),
            trimmed: false,
        };
        state.entries.insert(key, entry);
        state.publish_holders();
        Some(removed)
    }

    /// Removes a holder and all that is known of it. Answers how many blocks it had.
    fn forget(&self, state: &mut State, key: HolderKey) -> u64 {
        let Some(slot) = state.entries.get(&key).map(|e| e.slot) else {
            return 0;
        };
        // Stamp 0 is nobody's: nothing is expected of the slot from here on.
        state.contents.core.admit(slot, 0);
        let removed = self.clear_holder(state, key, Lanes::All);
        state.entries.remove(&key);
        state.table.leave(key);
        state.publish_holders();
        removed
    }
}
