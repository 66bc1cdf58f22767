//! The sections of one holder: their numbers and epochs, one under way at a time, and what refusals mean.

use super::mirror::{Mirror, Naming};
use crate::events::Batch;
use crate::index::{HolderCopy, HolderKey, HolderStatus, Outcome, Refusal, Section};

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

    /// Everything that the engine said is void; `restarted`: because it is another process.
    pub fn reset(&mut self, restarted: bool) {
        if restarted {
            // Its numbers begin anew, and so do ours.
            (self.incarnation, self.sequence) = (self.incarnation + 1, 0);
        }
        self.last = None;
        self.mirror.reset();
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
        let right = told.is_some_and(|t| {
            (t.epoch, t.incarnation, t.sequence) == (self.epoch, self.incarnation, self.sequence)
                && (t.trimmed || t.digest == digest)
        });
        // Before its first section, an owner that goes on from what the log had is known there by the one before.
        let wrong = !right && self.told && !self.paused;
        std::mem::replace(&mut self.suspect, wrong) && wrong
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
