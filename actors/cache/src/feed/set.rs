//! One holder's blocks by tier, and which of them the log has been told.

use crate::Tier;
use crate::index::{Digest, ElementMixer, HolderKey, Section, TIERS};
use std::collections::{HashMap, HashSet, VecDeque};

/// Blocks of one holder: more are not taken.
const MAX_BLOCKS: usize = 16 << 20;
/// Bytes that a key takes in a section, and the head of an operation beside it.
const KEY: usize = 8;
const HEAD: usize = 12;

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// The block before it, if it has one.
    parent: Option<u64>,
    /// Tiers that it is on, a bit each.
    tiers: u8,
    /// Tiers that the log has been told.
    told: u8,
    /// It is in the queue.
    waits: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct OwnedSet {
    blocks: HashMap<u64, Block>,
    /// Blocks of which the log may not have been told all, in the order in which they changed.
    queue: VecDeque<u64>,
    mixer: ElementMixer,
    told: Digest,
    pairs: [u64; TIERS],
}

impl OwnedSet {
    /// An empty set, of which the log has been told.
    #[must_use]
    pub fn new(holder: HolderKey) -> Self {
        Self {
            blocks: HashMap::new(),
            queue: VecDeque::new(),
            mixer: ElementMixer::new(holder),
            told: Digest::default(),
            pairs: [0; TIERS],
        }
    }

    /// Blocks by tier.
    #[must_use]
    pub const fn pairs(&self) -> &[u64; TIERS] {
        &self.pairs
    }

    /// Whether the log has been told everything.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.queue.is_empty()
    }

    /// About how many bytes the log has still to be told.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len() * KEY
    }

    /// The digest of what the log has been told.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.told
    }

    /// Puts a block on a tier. False if there are too many.
    pub fn add(&mut self, tier: Tier, parent: Option<u64>, key: u64) -> bool {
        if self.blocks.len() >= MAX_BLOCKS && !self.blocks.contains_key(&key) {
            return false;
        }
        let block = self.blocks.entry(key).or_default();
        block.parent = block.parent.or(parent);
        let bit = 1 << tier as u8;
        if block.tiers & bit == 0 {
            block.tiers |= bit;
            self.pairs[tier as usize] += 1;
            if !std::mem::replace(&mut block.waits, true) {
                self.queue.push_back(key);
            }
        }
        true
    }

    /// Takes a block from a tier, or from all. True if it is on none now.
    pub fn remove(&mut self, tier: Option<Tier>, key: u64) -> bool {
        let Some(block) = self.blocks.get_mut(&key) else {
            return true;
        };
        let bits = tier.map_or(u8::MAX, |tier| 1 << tier as u8) & block.tiers;
        block.tiers &= !bits;
        for tier in Tier::ALL {
            self.pairs[tier as usize] -= u64::from(bits >> tier as u8 & 1);
        }
        if bits != 0 && !std::mem::replace(&mut block.waits, true) {
            self.queue.push_back(key);
        }
        block.tiers == 0
    }

    /// Forgets everything. The log has to be told with a full set.
    pub fn clear(&mut self) {
        *self = Self {
            mixer: self.mixer,
            ..Self::new(HolderKey {
                endpoint: 0,
                rank: 0,
            })
        };
    }

    /// Takes what the log has as the set.
    pub fn adopt(&mut self, runs: &[(Tier, Vec<u64>)]) {
        self.clear();
        for (tier, keys) in runs {
            let mut parent = None;
            for key in keys {
                let block = self.blocks.entry(*key).or_default();
                block.parent = block.parent.or(parent);
                let bit = 1 << *tier as u8;
                if block.tiers & bit == 0 {
                    (block.tiers, block.told) = (block.tiers | bit, block.told | bit);
                    self.pairs[*tier as usize] += 1;
                    self.told.add(self.mixer.element(*key, *tier));
                }
                parent = Some(*key);
            }
        }
    }

    /// The log knows nothing of the set: all of it waits, chain by chain.
    pub fn untell(&mut self) {
        self.told = Digest::default();
        self.blocks.retain(|_, block| block.tiers != 0);
        let mut followers: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut firsts = Vec::new();
        for (key, block) in &mut self.blocks {
            (block.told, block.waits) = (0, true);
            match block.parent {
                Some(parent) => followers.entry(parent).or_default().push(*key),
                None => firsts.push(*key),
            }
        }
        // Chains whose beginning is not here begin where they can.
        let orphans = followers
            .iter()
            .filter(|(p, _)| !self.blocks.contains_key(p));
        firsts.extend(orphans.flat_map(|(_, keys)| keys.iter().copied()));
        self.queue.clear();
        let mut seen = HashSet::with_capacity(self.blocks.len());
        while let Some(key) = firsts.pop() {
            if seen.insert(key) {
                self.queue.push_back(key);
                firsts.extend(followers.remove(&key).into_iter().flatten());
            }
        }
        // A ring of parents, which only nonsense can make, has no beginning.
        let rest = self.blocks.keys().filter(|key| !seen.contains(key));
        self.queue.extend(rest);
    }

    /// Puts what waits into a section, up to about `bytes`.
    pub fn tell(&mut self, section: &mut Section, bytes: usize) {
        let mut left = bytes;
        let mut added: [Vec<(Option<u64>, Vec<u64>)>; TIERS] = Default::default();
        let mut removed: [Vec<u64>; TIERS] = Default::default();
        while left > 0
            && let Some(key) = self.queue.pop_front()
        {
            let Some(block) = self.blocks.get_mut(&key) else {
                continue;
            };
            let (new, old) = (block.tiers & !block.told, block.told & !block.tiers);
            (block.told, block.waits) = (block.tiers, false);
            let (parent, gone) = (block.parent, block.tiers == 0);
            for tier in Tier::ALL {
                let element = || self.mixer.element(key, tier);
                if new >> tier as u8 & 1 == 1 {
                    self.told.add(element());
                    let runs = &mut added[tier as usize];
                    match runs.last_mut() {
                        Some((_, run)) if parent.is_some() && run.last() == parent.as_ref() => {
                            run.push(key);
                        }
                        _ => {
                            runs.push((parent, vec![key]));
                            left = left.saturating_sub(HEAD);
                        }
                    }
                    left = left.saturating_sub(KEY);
                }
                if old >> tier as u8 & 1 == 1 {
                    self.told.remove(element());
                    removed[tier as usize].push(key);
                    left = left.saturating_sub(KEY);
                }
            }
            if gone {
                self.blocks.remove(&key);
            }
        }
        // Removals first: they make room.
        for tier in Tier::ALL {
            if !removed[tier as usize].is_empty() {
                section.removed(tier, &removed[tier as usize]);
            }
        }
        for tier in Tier::ALL {
            for (parent, run) in &added[tier as usize] {
                section.stored(tier, *parent, run);
            }
        }
    }
}
