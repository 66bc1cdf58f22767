//! The longest cached prefix of a request at all holders at once.

use super::CacheIndex;
use super::contents::Contents;
use super::coverage::{EXPECTED, Interval, sweep};
use super::holder::{HolderKey, HolderTable};
use super::weights::{TIERS, TierWeights};
use crate::Tier;
use crate::keys::KeySpace;
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

    /// Adds what the intervals of one holder cover of `[from, to)` without a gap. Answers how many blocks that is.
    fn extend(&mut self, own: &[Interval], from: usize, to: usize) -> usize {
        for interval in own
            .iter()
            .filter(|i| i.lane() != EXPECTED && i.covers(from))
        {
            let prefix = &mut self.prefix[usize::from(interval.lane())];
            if *prefix == self.blocks {
                *prefix += (interval.end().min(to) - from) as u32;
            }
        }
        let got = sweep(own.iter().copied(), from, to, &mut self.by_tier);
        self.blocks += got as u32;
        got
    }

    /// Blocks on the tier.
    #[must_use]
    pub const fn on(&self, tier: Tier) -> u32 {
        self.by_tier[tier as usize]
    }
}

/// A holder's match, in short: most holders have all they have on one tier.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// The lookup that wrote it; what another one left counts as nothing.
    round: u32,
    blocks: u32,
    /// The lane that all blocks are on, or [`MIXED`].
    lane: u32,
    /// If mixed: where the whole match is.
    mixed: u32,
}

const MIXED: u32 = u32::MAX;

impl Row {
    /// The match of a row that is not mixed.
    fn uniform(&self) -> Match {
        let mut whole = Match {
            blocks: self.blocks,
            ..Match::default()
        };
        if let Some(lane) = whole.by_tier.get_mut(self.lane as usize) {
            *lane = self.blocks;
        }
        if let Some(prefix) = whole.prefix.get_mut(self.lane as usize) {
            *prefix = self.blocks;
        }
        whole
    }

    /// Adds what the holder's intervals cover of `[from, to)` without a gap, to the `before` blocks that a holder must have to get this far.
    /// Answers how many blocks that is.
    #[inline]
    fn extend(
        &mut self,
        mixed: &mut Vec<Match>,
        round: u32,
        own: &[Interval],
        (from, to): (usize, usize),
        before: u32,
    ) -> usize {
        let first = before == 0;
        if !first && (self.round != round || self.blocks != before) {
            return 0;
        }
        if let [only] = own
            && (first || self.lane == u32::from(only.lane()))
        {
            if !only.covers(from) {
                return 0;
            }
            let got = only.end().min(to) - from;
            *self = Self {
                round,
                blocks: before + got as u32,
                lane: u32::from(only.lane()),
                mixed: 0,
            };
            return got;
        }
        let mut whole = match mixed.get(self.mixed as usize) {
            _ if first => Match::default(),
            Some(whole) if self.lane == MIXED => *whole,
            _ => self.uniform(),
        };
        let got = whole.extend(own, from, to);
        if got > 0 {
            if first || self.lane != MIXED {
                mixed.push(whole);
                *self = Self {
                    round,
                    blocks: whole.blocks,
                    lane: MIXED,
                    mixed: mixed.len() as u32 - 1,
                };
            } else if let Some(place) = mixed.get_mut(self.mixed as usize) {
                *place = whole;
                self.blocks = whole.blocks;
            }
        }
        got
    }
}

/// The answer to a lookup, by holder. It keeps its memory: use one for each thread.
#[derive(Debug, Default)]
pub struct Columns {
    table: Arc<HolderTable>,
    /// By slot.
    rows: Vec<Row>,
    round: u32,
    found: Vec<u16>,
    mixed: Vec<Match>,
    list: Vec<Interval>,
}

impl Columns {
    /// An empty answer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The holders that have at least the first block, with what they have, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (HolderKey, Match)> {
        self.rows().map(|(key, row)| (key, self.whole(row)))
    }

    /// The holders that have at least the first block, with what it is worth.
    pub fn scores(&self, weights: &TierWeights) -> impl Iterator<Item = (HolderKey, f32)> {
        self.rows().map(|(key, row)| {
            let score = match weights.lanes().get(row.lane as usize) {
                Some(weight) => row.blocks as f32 * weight,
                None => self.whole(row).weight(weights),
            };
            (key, score)
        })
    }

    /// What a holder has.
    #[must_use]
    pub fn get(&self, key: HolderKey) -> Match {
        let row = self
            .table
            .by_key
            .get(&key)
            .and_then(|slot| self.rows.get(usize::from(*slot)));
        row.filter(|r| r.round == self.round)
            .map(|r| self.whole(r))
            .unwrap_or_default()
    }

    /// The engine process that a holder was when the lookup was made.
    #[must_use]
    pub fn incarnation(&self, key: HolderKey) -> Option<u64> {
        self.table.find(key).map(|(_, holder)| holder.incarnation)
    }

    /// How a holder's keys are made, as it was when the lookup was made.
    #[must_use]
    pub fn space(&self, key: HolderKey) -> Option<&KeySpace> {
        self.table.find(key)?.1.space.as_ref()
    }

    /// The longest match of all.
    #[must_use]
    pub fn longest(&self) -> u32 {
        self.rows().map(|(_, row)| row.blocks).max().unwrap_or(0)
    }

    fn rows(&self) -> impl Iterator<Item = (HolderKey, &Row)> {
        self.found.iter().filter_map(|slot| {
            let slot = usize::from(*slot);
            Some((*self.table.keys.get(slot)?, self.rows.get(slot)?))
        })
    }

    fn whole(&self, row: &Row) -> Match {
        match row.lane {
            MIXED => self
                .mixed
                .get(row.mixed as usize)
                .copied()
                .unwrap_or_default(),
            _ => row.uniform(),
        }
    }

    fn begin(&mut self, contents: &Contents) {
        let table = contents.holders.load();
        if !Arc::ptr_eq(&table, &self.table) {
            self.table = Arc::clone(&table);
            self.rows.resize(self.table.slots.len(), Row::default());
        }
        self.found.clear();
        self.mixed.clear();
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.rows.fill(Row::default());
            self.round = 1;
        }
    }
}

impl CacheIndex {
    /// Finds for every holder how much of the chain it has, from its first block on. Takes no lock and never waits for a writer; what is
    /// being changed meanwhile is seen before or after its change, block by block.
    pub fn lookup(&self, hashes: &[u64], columns: &mut Columns) {
        let contents = self.contents.load();
        columns.begin(&contents);
        let Columns {
            rows,
            round,
            found,
            mixed,
            list,
            ..
        } = columns;
        let mut at = 0;
        while let Some((len, place)) = contents.core.read(hashes.get(at..).unwrap_or(&[]), list) {
            let mut onward = false;
            let mut rest = list.as_slice();
            while let [first, others @ ..] = rest {
                let holder = first.holder();
                let alone = others.first().is_none_or(|i| i.holder() != holder);
                let count = if alone {
                    1
                } else {
                    rest.iter().take_while(|i| i.holder() == holder).count()
                };
                let (own, next) = rest.split_at(count);
                rest = next;
                let Some(row) = rows.get_mut(usize::from(holder)) else {
                    continue;
                };
                let got = row.extend(mixed, *round, own, (place, place + len), at as u32);
                if at == 0 && got > 0 {
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
