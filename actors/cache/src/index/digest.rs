//! A 128-bit fingerprint of a set that does not depend on the order in which the set came about.
//!
//! Each (holder, block, tier) is mixed to 128 bits and the set's digest is their sum: adding and removing one is one addition, and the digest
//! of a union of disjoint sets is the sum of theirs. It detects faults, not forgery: whoever can choose hashes can make two sets collide.

use super::holder::HolderKey;
use crate::Tier;

/// Digest shards: the top bits of a block's mixed hash choose one.
pub const DIGEST_SHARDS: usize = 64;

/// The digest of a set of (holder, block, tier).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// Adds one element. The set must not have it yet.
    pub const fn add(&mut self, element: Element) {
        self.0 = self.0.wrapping_add(element.mixed);
    }

    /// Removes one element. The set must have it.
    pub const fn remove(&mut self, element: Element) {
        self.0 = self.0.wrapping_sub(element.mixed);
    }
}

/// One (holder, block, tier), mixed.
#[derive(Clone, Copy, Debug)]
pub struct Element {
    pub(super) mixed: u128,
    /// The digest shard of its block.
    pub(super) shard: u8,
}

/// What the elements of one holder have in common.
#[derive(Clone, Copy, Debug)]
pub struct ElementMixer {
    seeds: [u64; 2],
}

impl ElementMixer {
    /// For the elements of one holder.
    #[must_use]
    pub const fn new(holder: HolderKey) -> Self {
        let a = fold(
            holder.endpoint ^ 0xa076_1d64_78bd_642f,
            holder.rank as u64 ^ 0xe703_7ed1_a0b4_28db,
        );
        Self {
            seeds: [a, fold(a ^ 0x8ebc_6af0_9c88_c6e3, 0x5899_65cc_7537_4cc3)],
        }
    }

    /// The element of a block on a tier.
    #[must_use]
    pub const fn element(&self, hash: u64, tier: Tier) -> Element {
        let block = fold(hash ^ 0x1d8e_4e27_c47d_124f, 0xeb44_acca_b455_d165);
        let lane = (tier as u8 as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let low = fold(
            hash ^ self.seeds[0],
            lane ^ 0x2d35_8dcc_aa6c_78a5 ^ self.seeds[1],
        );
        let high = fold(block ^ self.seeds[1], low ^ hash ^ 0x8bb8_4b93_962e_acc9);
        Element {
            mixed: (high as u128) << 64 | low as u128,
            shard: (block >> 58) as u8,
        }
    }
}

/// Product of two words, both halves of it.
const fn fold(a: u64, b: u64) -> u64 {
    let wide = a as u128 * b as u128;
    (wide >> 64) as u64 ^ wide as u64
}

/// What two replicas compare: equal digests, equal maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of each holder, in the order of keys: its incarnation, and what it holds.
    pub holders: Vec<(HolderKey, u64, Digest)>,
    /// Of each digest shard over all holders.
    pub shards: [Digest; DIGEST_SHARDS],
}

impl Digests {
    /// The digest of the whole map.
    #[must_use]
    pub fn whole(&self) -> Digest {
        Digest(self.shards.iter().fold(0, |sum, d| sum.wrapping_add(d.0)))
    }

    /// The holders whose incarnation or digest is not the same on the other replica, or that only one of them has.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<HolderKey> {
        let mut found = Vec::new();
        let (mut ours, mut theirs) = (
            self.holders.iter().peekable(),
            other.holders.iter().peekable(),
        );
        loop {
            match (ours.peek(), theirs.peek()) {
                (None, None) => return found,
                (Some(a), Some(b)) if a.0 == b.0 => {
                    if a != b {
                        found.push(a.0);
                    }
                    ours.next();
                    theirs.next();
                }
                (Some(a), Some(b)) if a.0 < b.0 => found.extend(ours.next().map(|a| a.0)),
                (Some(_), None) => found.extend(ours.next().map(|a| a.0)),
                _ => found.extend(theirs.next().map(|b| b.0)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn order_does_not_matter_and_removal_undoes(mut blocks in prop::collection::hash_set(any::<(u64, u8)>(), 1..50), extra: u64) {
            let mixer = ElementMixer::new(HolderKey { endpoint: 9, rank: 1 });
            blocks.retain(|(h, _)| *h != extra);
            let element = |(h, t): &(u64, u8)| mixer.element(*h, Tier::ALL[usize::from(t % 5)]);
            let blocks: HashSet<_> = blocks.iter().map(|(h, t)| (*h, t % 5)).collect();
            let mut forward = Digest::default();
            blocks.iter().for_each(|b| forward.add(element(b)));
            let mut sorted: Vec<_> = blocks.iter().collect();
            sorted.sort();
            let mut backward = Digest::default();
            backward.add(mixer.element(extra, Tier::Gpu));
            sorted.iter().for_each(|b| backward.add(element(b)));
            prop_assert_ne!(forward, backward);
            backward.remove(mixer.element(extra, Tier::Gpu));
            prop_assert_eq!(forward, backward);
        }
    }

    #[test]
    fn elements_differ_in_every_part() {
        let mut seen = HashSet::new();
        for endpoint in 0..10 {
            for rank in 0..4 {
                let mixer = ElementMixer::new(HolderKey { endpoint, rank });
                for hash in 0..50 {
                    for tier in Tier::ALL {
                        assert!(seen.insert(mixer.element(hash, tier).mixed));
                    }
                }
            }
        }
        // Neighbouring hashes spread over the digest shards.
        let mixer = ElementMixer::new(HolderKey {
            endpoint: 0,
            rank: 0,
        });
        let shards: HashSet<u8> = (0..1000)
            .map(|h| mixer.element(h, Tier::Gpu).shard)
            .collect();
        assert_eq!(shards.len(), DIGEST_SHARDS);
    }
}
