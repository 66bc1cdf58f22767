//! What a change adds up to: the digests and counts of the holder and of the map, kept beside each added and removed block.

use super::digest::{DIGEST_SHARDS, Digest, ElementMixer};
use super::snapshot::Session;
use super::weights::TIERS;
use crate::Tier;
use std::sync::Weak;

/// What a writer adds to a holder's coverage.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    /// Announced by the engine.
    Announced(Tier),
    /// Expected by a pick, until its generation has passed.
    Expected(u16),
}

/// Whose blocks change, and how.
#[derive(Clone, Copy)]
pub(super) struct Who {
    pub(super) holder: u16,
    /// The holder's stamp in the table that the caller looked at.
    pub(super) stamp: u32,
    /// What an addition adds.
    pub(super) entry: Entry,
}

impl Who {
    /// For changes that concern many holders.
    pub(super) const NOBODY: Self = Self {
        holder: 0,
        stamp: 0,
        entry: Entry::Expected(0),
    };
}

/// Sums of one holder's announced blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) digest: Digest,
    /// Blocks by tier.
    pub(super) pairs: [u64; TIERS],
}

impl Sums {
    /// Blocks on all tiers; one that is on two counts twice.
    pub(super) fn total(&self) -> u64 {
        self.pairs.iter().sum()
    }
}

/// The books of one change.
pub(super) struct Ledger<'a> {
    pub(super) who: Who,
    /// The holder's sums and the digest shards, if announced blocks change.
    account: Option<(ElementMixer, &'a mut Sums, &'a mut [Digest; DIGEST_SHARDS])>,
    /// Snapshots that are being read.
    pub(super) sessions: &'a [Weak<Session>],
    pub(super) added: u64,
    pub(super) removed: u64,
    /// Blocks that were expected and are announced now.
    pub(super) confirmed: u64,
    /// Blocks newly expected.
    pub(super) expected: u64,
    /// Blocks no longer expected, though never announced.
    pub(super) dropped: u64,
}

impl<'a> Ledger<'a> {
    /// For changes of announced blocks.
    pub(super) const fn of(
        who: Who,
        mixer: ElementMixer,
        sums: &'a mut Sums,
        shards: &'a mut [Digest; DIGEST_SHARDS],
    ) -> Self {
        let mut book = Self::of_expected(who);
        book.account = Some((mixer, sums, shards));
        book
    }

    /// For changes of what is expected only.
    pub(super) const fn of_expected(who: Who) -> Self {
        Self {
            who,
            account: None,
            sessions: &[],
            added: 0,
            removed: 0,
            confirmed: 0,
            expected: 0,
            dropped: 0,
        }
    }

    pub(super) fn add(&mut self, hash: u64, tier: Tier) {
        self.added += 1;
        if let Some((mixer, sums, shards)) = &mut self.account {
            let element = mixer.element(hash, tier);
            sums.digest.add(element);
            sums.pairs[tier as usize] += 1;
            shards[usize::from(element.shard)].add(element);
        }
    }

    pub(super) fn remove(&mut self, hash: u64, tier: Tier) {
        self.removed += 1;
        if let Some((mixer, sums, shards)) = &mut self.account {
            let element = mixer.element(hash, tier);
            sums.digest.remove(element);
            sums.pairs[tier as usize] -= 1;
            shards[usize::from(element.shard)].remove(element);
        }
    }
}
