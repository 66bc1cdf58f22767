//! The longest cached prefix of a request at all holders at once.

use super::CacheIndex;
use super::coverage::{EXPECTED, Interval, sweep};
use super::holder::{HolderKey, HolderTable};
use super::weights::{TIERS, TierWeights};
use crate::Tier;
use std::sync::Arc;

/// What one holder has of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// Blocks one after another from the first one on, on whatever tier, expected ones included.
    pub blocks: u32,
    /// The same blocks, each on the best tier it is on; the last lane ([`SPECULATIVE`](super::SPECULATIVE)) counts those that are only
    /// expected.
    pub by_tier: [u32; TIERS + 1],
    /// By tier: blocks from the first one on that are all on this very tier.
    pub prefix: [u32; TIERS],
}

impl Match {
    /// Sum of what the blocks are worth.
    #[must_use]
    pub fn weight(&self, weights: &TierWeights) -> f32 {
        self.by_tier
            .iter()
            .zip(weights.lanes())
            .map(|(blocks, weight)| *blocks as f32 * weight)
            .sum()
    }

    /// Blocks that an engine said it has, on a tier that we know.
    #[must_use]
    pub const fn announced(&self) -> u32 {
        let [gpu, cpu, disk, remote, ..] = self.by_tier;
        gpu + cpu + disk + remote
    }

    /// Blocks on the tier.
    #[must_use]
    pub const fn on(&self, tier: Tier) -> u32 {
        self.by_tier[tier as usize]
    }
}

/// The answer to a lookup, by holder. It keeps its memory: use one for each thread.
#[derive(Debug, Default)]
pub struct Columns {
    table: Arc<HolderTable>,
    rows: Vec<Match>,
    found: Vec<u16>,
    list: Vec<Interval>,
}

impl Columns {
    /// An empty answer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The holders that have at least the first block, with their incarnations, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (HolderKey, u64, &Match)> {
        self.found.iter().filter_map(|slot| {
            let holder = self.table.slots.get(usize::from(*slot))?.as_ref()?;
            Some((
                holder.key,
                holder.incarnation,
                self.rows.get(usize::from(*slot))?,
            ))
        })
    }

    /// What a holder has.
    #[must_use]
    pub fn get(&self, key: HolderKey) -> Match {
        self.table
            .find(key)
            .and_then(|(slot, _)| self.rows.get(usize::from(slot)))
            .copied()
            .unwrap_or_default()
    }

    /// The longest match of all.
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.found
            .iter()
            .filter_map(|slot| self.rows.get(usize::from(*slot)))
            .map(|m| m.blocks)
            .max()
            .unwrap_or(0)
    }

    fn begin(&mut self, index: &CacheIndex) {
        let table = index.holders.load();
        for slot in self.found.drain(..) {
            if let Some(row) = self.rows.get_mut(usize::from(slot)) {
                *row = Match::default();
            }
        }
        if !Arc::ptr_eq(&table, &self.table) {
            self.table = Arc::clone(&table);
            self.rows.resize(self.table.slots.len(), Match::default());
        }
    }
}

impl CacheIndex {
    /// Finds for every holder how much of the chain it has, from its first block on. Takes no lock and never waits for a writer; what is
    /// being changed meanwhile is seen before or after its change, block by block.
    pub fn lookup(&self, hashes: &[u64], columns: &mut Columns) {
        columns.begin(self);
        let Columns {
            rows, found, list, ..
        } = columns;
        let mut at = 0;
        while let Some((len, place)) = self.core.read(hashes.get(at..).unwrap_or(&[]), list) {
            let mut onward = false;
            let mut rest = list.as_slice();
            while let Some(first) = rest.first() {
                let holder = first.holder();
                let own = rest.iter().take_while(|i| i.holder() == holder).count();
                let (own, next) = rest.split_at(own);
                rest = next;
                let Some(row) = rows
                    .get_mut(usize::from(holder))
                    .filter(|r| r.blocks as usize == at)
                else {
                    continue;
                };
                let got = extend(row, own, place, place + len, at as u32);
                if got > 0 && at == 0 {
                    found.push(holder);
                }
                onward |= got == len;
            }
            at += len;
            if !onward {
                break;
            }
        }
    }
}

/// Adds what the holder's intervals cover of `[from, to)` without a gap. Answers how many blocks that is.
fn extend(row: &mut Match, own: &[Interval], from: usize, to: usize, before: u32) -> usize {
    for interval in own
        .iter()
        .filter(|i| i.lane() != EXPECTED && i.covers(from))
    {
        let prefix = &mut row.prefix[usize::from(interval.lane())];
        if *prefix == before {
            *prefix += (interval.end().min(to) - from) as u32;
        }
    }
    let got = match own {
        [only] if only.covers(from) => {
            let got = only.end().min(to) - from;
            row.by_tier[usize::from(only.lane())] += got as u32;
            got
        }
        [_] => 0,
        _ => sweep(own.iter().copied(), from, to, &mut row.by_tier),
    };
    row.blocks += got as u32;
    got
}
