//! The sections of one holder: their numbers and epochs, one under way at a time, and what refusals mean.

use super::mirror::{Mirror, Naming};
use crate::events::Batch;
use crate::index::{HolderCopy, HolderKey, HolderStatus, Outcome, Refusal, Section};
use std::sync::Arc;

/// Bits of a section's number below the engine's batch number.
const PART_BITS: u32 = 16;
/// The epoch of an owner that takes over from `known`. `part` tells owners apart that do so at the same moment: the node's number, and
/// something of the process' own.
#[must_use]
pub const fn next_epoch(known: u64, part: u32) -> u64 {
    ((known >> 32) + 1) << 32 | part as u64
}

/// What an outcome means for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Fine,
    /// The full set follows.
    Again,
    /// The log has no place for the holder; the full set follows later.
    NoRoom,
    /// Another node owns the holder in this epoch.
    Outbid(u64),
}

/// One data-parallel rank of an endpoint that this node owns.
#[derive(Debug)]
pub struct Holder {
    key: HolderKey,
    mirror: Mirror,
    epoch: u64,
    incarnation: u64,
    sequence: u64,
    /// Number and hash of the engine's last batch.
    last: Option<(u64, u64)>,
    under_way: bool,
    /// Nothing is said until the owner has decided how to go on.
    paused: bool,
    /// The log had something else when it was last looked at.
    suspect: bool,
    /// A section was told to the log.
    told: bool,
    totals: HolderTotals,
    /// What the last audit found; `None`: none yet since it was taken over.
    agrees: Option<bool>,
}

/// What became of one holder since it was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HolderTotals {
    /// Sections that were proposed.
    pub sections: u64,
    /// Of these, the beginnings of full sets.
    pub full_sets: u64,
    /// Times that all that its engine had said became void.
    pub resets: u64,
    /// Batches of its engine that could not be read.
    pub unreadable: u64,
    /// Audits that found that the log had something else.
    pub mismatches: u64,
}

impl Holder {
    /// Takes a holder over. `known` is what the log has of it, and `resumes` says that the engine can prove its stream. Answers the holder and where its stream goes on: number and hash of a batch; nothing: from the
    /// beginning.
    #[must_use]
    pub fn take_over(
        key: HolderKey,
        naming: Naming,
        part: u32,
        known: Option<&HolderCopy>,
        resumes: bool,
    ) -> (Self, Option<(u64, u64)>) {
        let mut holder = Self {
            key,
            mirror: Mirror::new(key, naming),
            epoch: next_epoch(known.map_or(0, |k| k.epoch), part),
            incarnation: known.map_or(1, |k| k.incarnation + 1),
            sequence: 0,
            last: None,
            under_way: false,
            paused: false,
            suspect: false,
            told: false,
            totals: HolderTotals::default(),
            agrees: None,
        };
        if let Some(known) = known
            && resumes
            && known.mark != 0
            && let Some(seq) = (known.sequence >> PART_BITS).checked_sub(1)
            && holder.mirror.adopt(known)
        {
            (holder.incarnation, holder.sequence) = (known.incarnation, known.sequence);
            holder.last = Some((seq, known.mark));
        }
        let last = holder.last;
        (holder, last)
    }

    /// Which it is.
    #[must_use]
    pub const fn key(&self) -> HolderKey {
        self.key
    }

    /// Its blocks.
    #[must_use]
    pub const fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// The owner's epoch.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of its last section.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// A section of it is under way.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// What became of it.
    #[must_use]
    pub const fn totals(&self) -> HolderTotals {
        self.totals
    }

    /// Whether the log had what it was told when that was last compared.
    #[must_use]
    pub const fn agrees(&self) -> Option<bool> {
        self.agrees
    }

    /// A batch of the engine cannot be read: what it said is lost, and with it the proof of what came before.
    pub fn unreadable(&mut self) {
        self.totals.unreadable += 1;
        self.reset(false);
    }

    /// Everything that the engine said is void; `restarted`: because it is another process.
    pub fn reset(&mut self, restarted: bool) {
        if restarted {
            // Its numbers begin anew, and so do ours.
            (self.incarnation, self.sequence) = (self.incarnation + 1, 0);
        }
        self.totals.resets += 1;
        self.last = None;
        if restarted {
            self.mirror.renew();
        } else {
            self.mirror.reset();
        }
    }

    /// The engine was found not to hash as its settings say; everything that it said is void.
    pub fn distrust(&mut self, finding: Arc<str>) {
        self.last = None;
        self.mirror.distrust(finding);
    }

    /// Its next chains are compared with its settings again.
    pub fn recheck(&mut self) {
        self.mirror.recheck();
    }

    /// Takes the engine's batch `seq`, whose payload has this hash. True if the engine should tell everything again.
    pub fn apply(&mut self, seq: Option<u64>, mark: u64, batch: &Batch) -> bool {
        self.last = seq.map(|seq| (seq, mark));
        self.mirror.apply(batch)
    }

    /// About how many bytes it has to tell the log; 0: nothing.
    #[must_use]
    pub fn waiting(&self) -> usize {
        if self.paused {
            return 0;
        }
        self.mirror.set.waiting() + usize::from(self.mirror.replace)
    }

    /// Owned in a higher epoch: the full set follows.
    pub fn outbid(&mut self, epoch: u64, part: u32) {
        self.epoch = next_epoch(epoch.max(self.epoch), part);
        self.untell();
    }

    /// Whether the log has something else than it was told, for the second time.
    pub(super) fn differs(&mut self, told: Option<&HolderStatus>) -> bool {
        let digest = self.mirror.set.digest();
        let same = told.map(|t| {
            (t.incarnation, t.sequence) == (self.incarnation, self.sequence)
                && (t.trimmed || t.digest == digest)
        });
        let right = same == Some(true) && told.is_some_and(|t| t.epoch == self.epoch);
        // Before its first section, an owner that goes on from what the log had is known there by the one before.
        let wrong = !right && self.told && !self.paused;
        self.agrees = if self.told { Some(right) } else { same };
        let again = std::mem::replace(&mut self.suspect, wrong) && wrong;
        self.totals.mismatches += u64::from(again);
        again
    }

    /// The log does not have what it was told: the full set follows.
    pub fn untell(&mut self) {
        (self.paused, self.suspect) = (false, false);
        self.mirror.untell();
    }

    /// The next section, of about `bytes`, unless one is under way or there is nothing to say.
    pub fn section(&mut self, bytes: usize) -> Option<Section> {
        if self.under_way || self.waiting() == 0 {
            return None;
        }
        let from = self.sequence;
        let mut section = Section::new(self.key, self.incarnation, self.epoch, from, from);
        section.replace = std::mem::replace(&mut self.mirror.replace, false);
        if section.replace {
            section.space = self.mirror.space().cloned();
        }
        self.mirror.set.tell(&mut section, bytes);
        section.digest = Some(self.mirror.set.digest());
        let last = self.last.filter(|_| self.mirror.set.is_told());
        let number = last
            .and_then(|(seq, _)| seq.checked_add(1)?.checked_mul(1 << PART_BITS))
            .unwrap_or(0);
        section.to = number.max(from + 1);
        if section.to == number {
            section.mark = last.map_or(0, |(_, mark)| mark);
        }
        (self.sequence, self.under_way) = (section.to, true);
        (self.told, self.suspect) = (true, false);
        self.totals.sections += 1;
        self.totals.full_sets += u64::from(section.replace);
        Some(section)
    }

    /// What came of its section.
    pub fn answered(&mut self, outcome: Outcome) -> Verdict {
        self.under_way = false;
        match outcome {
            Outcome::Applied { .. } | Outcome::Repeated => Verdict::Fine,
            Outcome::Refused(Refusal::OldEpoch { epoch }) => {
                self.paused = true;
                Verdict::Outbid(epoch)
            }
            Outcome::Refused(Refusal::TooManyHolders) => {
                self.paused = true;
                Verdict::NoRoom
            }
            Outcome::Refused(_) => {
                self.mirror.untell();
                Verdict::Again
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tier;
    use crate::hash::ExtraForm;
    use crate::index::{CacheIndex, DeltaBatch, IndexConfig};
    use crate::keys::{KeySpace, Scheme};

    #[test]
    fn an_owner_that_goes_on_without_a_word_is_compared_as_well() {
        let index = CacheIndex::new(IndexConfig { max_bytes: 1 << 20 });
        let key = HolderKey {
            endpoint: 1,
            rank: 0,
        };
        let scheme = Scheme::of(Some("sha256_cbor"), None, ExtraForm::Tagged);
        let naming = Naming {
            model: "m".into(),
            block_tokens: Some(16),
            scheme: scheme.clone(),
        };
        let tell = |block: u64, from, to| {
            let mut section = Section::new(key, 1, next_epoch(0, 1), from, to);
            (section.replace, section.mark) = (from == 0, 9);
            section.space = KeySpace::new("m", 16, scheme.clone()).ok();
            section.stored(Tier::Gpu, None, &[block]);
            let sections = vec![section];
            index.apply(&DeltaBatch { sections });
        };
        tell(5, 0, 1 << PART_BITS);
        let known = index.copy(key).unwrap();
        let (mut holder, resume) = Holder::take_over(key, naming, 2, Some(&known), true);
        assert_eq!((resume, holder.agrees()), (Some((0, 9)), None));
        assert!(!holder.differs(index.holders().first()));
        assert_eq!(holder.agrees(), Some(true));
        // The owner before was not dead.
        tell(6, 1 << PART_BITS, 2 << PART_BITS);
        assert!(!holder.differs(index.holders().first()));
        assert_eq!(
            (holder.agrees(), holder.totals().mismatches),
            (Some(false), 0)
        );
        holder.unreadable();
        holder.section(1 << 20).unwrap();
        let totals = HolderTotals {
            sections: 1,
            full_sets: 1,
            resets: 1,
            unreadable: 1,
            mismatches: 0,
        };
        assert_eq!(holder.totals(), totals);
        // Told, and not there, twice.
        assert!(!holder.differs(index.holders().first()));
        assert!(holder.differs(index.holders().first()));
        assert_eq!(
            (holder.agrees(), holder.totals().mismatches),
            (Some(false), 1)
        );
    }
}
