//! What the index has to answer: sets of blocks for each holder, looked through one by one.

use proptest::prelude::*;
use quorate_cache::Tier;
use quorate_cache::index::{
    CacheIndex, Columns, Digest, ElementMixer, HolderKey, Match, SPECULATIVE,
};
use std::collections::{BTreeMap, BTreeSet};

/// A forest of chains: each node is a run of blocks that goes on where another run has a block.
#[derive(Clone, Debug)]
pub(crate) struct Forest {
    /// From the first block on, for each node: the whole chain to its end.
    pub(crate) chains: Vec<Vec<u64>>,
}

pub(crate) fn forest() -> impl Strategy<Value = Forest> {
    let run = prop_oneof![3 => 1usize..12, 2 => 1usize..150, 1 => 900usize..1300];
    prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            run,
        ),
        2..7,
    )
    .prop_map(|nodes| {
        let mut chains: Vec<Vec<u64>> = vec![Vec::new()];
        let mut next = 0u64;
        for (from, cut, len) in nodes {
            let base = from.get(&chains).clone();
            let mut chain = base[..if base.is_empty() {
                0
            } else {
                cut.index(base.len() + 1)
            }]
                .to_vec();
            for _ in 0..len {
                // Small numbers and spread ones, zero too.
                chain.push(if next < 20 {
                    next
                } else {
                    next.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                });
                next += 1;
            }
            chains.push(chain);
        }
        chains.remove(0);
        Forest { chains }
    })
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) incarnation: u64,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) blocks: BTreeSet<(u64, Tier)>,
    pub(crate) expected: BTreeMap<u64, u64>,
}

pub(crate) fn key(holder: u64) -> HolderKey {
    HolderKey {
        endpoint: 100 + holder / 2,
        rank: (holder % 2) as u32,
    }
}

#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) holders: BTreeMap<u64, Known>,
    /// Epochs in which holders were removed.
    pub(crate) fences: BTreeMap<u64, u64>,
}

impl Model {
    pub(crate) fn best(known: &Known, hash: u64) -> Option<usize> {
        let announced = Tier::ALL
            .into_iter()
            .find(|t| known.blocks.contains(&(hash, *t)))
            .map(|t| t as usize);
        announced.or_else(|| known.expected.contains_key(&hash).then_some(SPECULATIVE))
    }

    pub(crate) fn lookup(known: &Known, chain: &[u64]) -> Match {
        let mut found = Match::default();
        for hash in chain {
            let Some(lane) = Self::best(known, *hash) else {
                break;
            };
            found.by_tier[lane] += 1;
            found.blocks += 1;
        }
        for tier in Tier::ALL {
            found.prefix[tier as usize] = chain
                .iter()
                .take_while(|h| known.blocks.contains(&(**h, tier)))
                .count() as u32;
        }
        found
    }

    pub(crate) fn digest(holder: u64, known: &Known) -> Digest {
        let mixer = ElementMixer::new(key(holder));
        let mut digest = Digest::default();
        known
            .blocks
            .iter()
            .for_each(|(hash, tier)| digest.add(mixer.element(*hash, *tier)));
        digest
    }

    pub(crate) fn check(
        &self,
        index: &CacheIndex,
        forest: &Forest,
        expectations: bool,
    ) -> Result<(), TestCaseError> {
        let mut columns = Columns::new();
        for chain in &forest.chains {
            // The same columns are used again and again.
            for len in [chain.len(), chain.len() / 2] {
                index.lookup(&chain[..len], &mut columns);
                let mut seen = 0;
                for (holder, known) in &self.holders {
                    let mut known = known.clone();
                    if !expectations {
                        known.expected.clear();
                    }
                    let wanted = Self::lookup(&known, &chain[..len]);
                    prop_assert_eq!(
                        columns.get(key(*holder)),
                        wanted,
                        "holder {}, {} of {:?}",
                        holder,
                        len,
                        chain.first()
                    );
                    seen += usize::from(wanted.blocks > 0);
                }
                prop_assert_eq!(columns.iter().count(), seen);
            }
        }
        for (holder, known) in &self.holders {
            prop_assert_eq!(
                index.digest(key(*holder)),
                Some(Self::digest(*holder, known))
            );
        }
        let stats = index.stats();
        prop_assert_eq!(stats.holders, self.holders.len());
        prop_assert_eq!(
            stats.pairs,
            self.holders
                .values()
                .map(|k| k.blocks.len() as u64)
                .sum::<u64>()
        );
        if expectations {
            prop_assert_eq!(
                stats.expected_now,
                self.holders
                    .values()
                    .map(|k| k.expected.len() as u64)
                    .sum::<u64>()
            );
            let blocks: BTreeSet<u64> = self
                .holders
                .values()
                .flat_map(|k| {
                    k.blocks
                        .iter()
                        .map(|b| b.0)
                        .chain(k.expected.keys().copied())
                })
                .collect();
            prop_assert_eq!(stats.blocks, blocks.len());
        }
        prop_assert_eq!(
            stats.expected,
            stats.confirmed + stats.dropped + stats.expected_now
        );
        Ok(())
    }
}
