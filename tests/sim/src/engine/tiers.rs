//! Places below the GPU that keep KV blocks: host memory and disk.
//!
//! As vLLM's offloading connector and SGLang's write-through policy do it: a prompt's block is written down when it is
//! computed, to every tier; each tier drops its least recently used blocks. A prefix that the GPU has not got is loaded from
//! the fastest tier that has it, block by block, one load at a time on each tier, while the sequence waits; then it is on the
//! GPU and on all tiers again. Writing costs no time.

use super::blocks::{BlockId, BlockPool};
use super::record::{BlockChange, stored};
use super::sequence::Sequence;
use super::{Engine, Naming, Nanos};

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Medium {
    /// The GPU's memory.
    Gpu,
    /// Host memory.
    Cpu,
    /// A disk of the host.
    Disk,
    /// Another engine's host memory.
    Peer,
}

/// One tier below the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierConfig {
    /// What it is.
    pub medium: Medium,
    /// Blocks that it holds.
    pub blocks: u32,
    /// Time to load one block.
    pub load_block: Nanos,
}

/// From which tiers a request may load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadFrom {
    /// Host memory.
    pub cpu: bool,
    /// Disk.
    pub disk: bool,
}

impl Default for LoadFrom {
    fn default() -> Self {
        LoadFrom {
            cpu: true,
            disk: true,
        }
    }
}

impl LoadFrom {
    /// From nowhere: what is not on the GPU is computed.
    pub const NOWHERE: LoadFrom = LoadFrom {
        cpu: false,
        disk: false,
    };

    fn allows(self, medium: Medium) -> bool {
        match medium {
            Medium::Cpu => self.cpu,
            Medium::Disk => self.disk,
            Medium::Gpu | Medium::Peer => true,
        }
    }
}

/// A tier's totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierCount {
    /// What it is.
    pub medium: Medium,
    /// Blocks that it could hold.
    pub blocks: u32,
    /// Blocks that it holds.
    pub cached: usize,
    /// Blocks written to it.
    pub stored: u64,
    /// Blocks loaded from it.
    pub loaded: u64,
    /// Time that loads took.
    pub load_time: Nanos,
}

struct Tier {
    config: TierConfig,
    pool: BlockPool,
    stored: u64,
    loaded: u64,
    load_time: Nanos,
    /// End of its latest load.
    busy_until: Nanos,
}

/// All tiers, fastest first; the last one is other engines, which hold nothing here.
pub(super) struct Tiers(Vec<Tier>);

/// Where a sequence's cached prefix lies: blocks on the GPU, then the tier of each further block.
#[derive(Default)]
pub(super) struct Found {
    pub gpu: Vec<BlockId>,
    pub below: Vec<usize>,
}

/// A sequence whose blocks are being loaded.
pub(super) struct Load {
    pub slot: u32,
    pub ready: Nanos,
    /// Tokens that its blocks then hold.
    pub computed: u32,
}

impl Tiers {
    pub fn new(configs: &[TierConfig], peer_block: Nanos, record: bool) -> Self {
        let peer = TierConfig {
            medium: Medium::Peer,
            blocks: 0,
            load_block: peer_block,
        };
        let tier = |config: &TierConfig| Tier {
            config: *config,
            pool: BlockPool::new(config.blocks)
                .on(config.medium)
                .recording(record),
            stored: 0,
            loaded: 0,
            load_time: 0,
            busy_until: 0,
        };
        Tiers(configs.iter().chain([&peer]).map(tier).collect())
    }

    /// Writes a block down on all tiers.
    pub fn store(&mut self, hash: u64, name: Option<u64>, naming: Option<&Naming>, at: usize) {
        for tier in &mut self.0 {
            if tier.pool.keep(hash, name) {
                tier.stored += 1;
                let medium = tier.config.medium;
                if let Some(naming) = naming {
                    tier.pool
                        .record(|changes| stored(changes, naming, at, medium));
                }
            }
        }
    }

    /// The fastest tier that has a block.
    fn lookup(&self, hash: u64, from: LoadFrom) -> Option<usize> {
        self.0
            .iter()
            .position(|tier| from.allows(tier.config.medium) && tier.pool.lookup(hash).is_some())
    }

    /// Tiers of the blocks with these hashes, as far as they are had. The first `peer` blocks of all hashes, of which `before`
    /// are left out here, another engine has.
    fn below(&self, hashes: &[u64], from: LoadFrom, before: usize, peer: usize) -> Vec<usize> {
        let remote = self.0.len().checked_sub(1);
        let tier = |(at, hash): (usize, &u64)| {
            let here = self.lookup(*hash, from);
            here.or(remote.filter(|_| before + at < peer))
        };
        hashes.iter().enumerate().map_while(tier).collect()
    }

    /// Blocks are used now.
    pub fn touch(&mut self, hashes: &[u64]) {
        for tier in &mut self.0 {
            for hash in hashes {
                tier.pool.touch(*hash);
            }
        }
    }

    /// Loads blocks from the given tiers; returns when the last one is there.
    pub fn load(&mut self, from: &[usize], now: Nanos) -> Nanos {
        let mut ready = now;
        for (at, tier) in self.0.iter_mut().enumerate() {
            let blocks = from.iter().filter(|other| **other == at).count() as u64;
            if blocks == 0 {
                continue;
            }
            let time = blocks.saturating_mul(tier.config.load_block);
            tier.busy_until = tier.busy_until.max(now).saturating_add(time);
            tier.loaded += blocks;
            tier.load_time = tier.load_time.saturating_add(time);
            ready = ready.max(tier.busy_until);
        }
        ready
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        for tier in &mut self.0 {
            tier.pool.reset_cache();
        }
    }

    pub fn take_changes(&mut self, changes: &mut Vec<BlockChange>) {
        for tier in &mut self.0 {
            changes.extend(tier.pool.take_changes());
        }
    }

    fn counts(&self) -> Vec<TierCount> {
        let count = |tier: &Tier| TierCount {
            medium: tier.config.medium,
            blocks: tier.config.blocks,
            cached: tier.pool.cached(),
            stored: tier.stored,
            loaded: tier.loaded,
            load_time: tier.load_time,
        };
        self.0.iter().map(count).collect()
    }
}

impl<T> Engine<T> {
    /// Totals of the tiers below the GPU, fastest first, loads from other engines last.
    pub fn tiers(&self) -> Vec<TierCount> {
        self.tiers.counts()
    }

    /// Blocks at the start of a prompt with these hashes: on the GPU, and further ones below it from where loading is allowed.
    pub fn cached_blocks(&self, hashes: &[u64], tokens: u32, from: LoadFrom) -> (usize, usize) {
        let found = self.find_hashes(hashes, tokens, from, 0);
        (found.gpu.len(), found.below.len())
    }

    /// Blocks at the start of a prompt that are in host memory, for another engine to fetch.
    pub fn offered_blocks(&self, hashes: &[u64]) -> usize {
        let cpu = |tier: &&Tier| tier.config.medium == Medium::Cpu;
        let Some(tier) = self.tiers.0.iter().find(cpu) else {
            return 0;
        };
        let had = |hash: &&u64| tier.pool.lookup(**hash).is_some();
        hashes.iter().take_while(had).count()
    }

    /// Cached blocks at the start of the sequence. At least one token is always left to compute.
    pub(super) fn find(&self, seq: &Sequence<T>) -> Found {
        self.find_hashes(seq.hashes(), seq.known(), seq.load_from, seq.peer_blocks)
    }

    fn find_hashes(&self, hashes: &[u64], known: u32, from: LoadFrom, peer: usize) -> Found {
        if !self.config.prefix_caching {
            return Found::default();
        }
        let limit = (known.saturating_sub(1) / self.config.block_size) as usize;
        let hashes = hashes.get(..limit).unwrap_or(hashes);
        let had = |hash: &u64| self.pool.lookup(*hash);
        let gpu: Vec<BlockId> = hashes.iter().map_while(had).collect();
        let rest = hashes.get(gpu.len()..).unwrap_or_default();
        let below = self.tiers.below(rest, from, gpu.len(), peer);
        Found { gpu, below }
    }

    /// Tells the tiers that a sequence uses its first blocks, and starts loading those that lie below. Returns when they are
    /// there.
    pub(super) fn start_load(&mut self, slot: u32, found: &Found, now: Nanos) -> Nanos {
        let used = found.gpu.len() + found.below.len();
        if let Some(seq) = self.seqs.get(slot as usize).and_then(Option::as_ref) {
            let hashes = seq.hashes();
            self.tiers.touch(hashes.get(..used).unwrap_or(hashes));
        }
        self.tiers.load(&found.below, now)
    }

    /// Sequences whose blocks are there by `now` join the batch.
    pub(super) fn land(&mut self, now: Nanos) {
        let mut at = 0;
        while let Some(load) = self.loading.get(at) {
            if load.ready > now {
                at += 1;
                continue;
            }
            let Load { slot, computed, .. } = self.loading.remove(at);
            self.set_computed(slot, computed);
            self.running.push(slot);
        }
    }

    /// When the next load ends.
    pub(super) fn next_load(&self) -> Option<Nanos> {
        self.loading.iter().map(|load| load.ready).min()
    }
}
