//! Which endpoints probably have which blocks: block hash -> endpoints, in shards, with a bounded list of hashes for each endpoint;
//! and beside each list what other routers have not been told of it.

use super::hashed::ByHash;
use super::lru::Lru;
use crate::endpoint::Endpoint;
use crate::endpoint::slot::Slot;
use crate::pipeline::{PrefixColumn, ProducerInput};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

const SHARDS: usize = 64;
/// How often endpoints that are gone are looked for, in milliseconds.
const SWEEP_MS: u64 = 30_000;
/// Blocks of one endpoint that wait to be told; the oldest of more are lost.
const MOST_UNTOLD: usize = 4_096;
/// Blocks that are read or written while an endpoint is locked: picks wait for it.
const PIECE: usize = 64;

/// Endpoints by the key of their slot. Most blocks are on one.
enum Holders {
    One(u64),
    Many(Vec<u64>),
}

impl Holders {
    fn as_slice(&self) -> &[u64] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }

    fn add(&mut self, key: u64) {
        match self {
            Self::One(only) if *only == key => {}
            Self::One(only) => *self = Self::Many(vec![*only, key]),
            Self::Many(keys) => {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
    }

    /// True if nobody is left.
    fn remove(&mut self, key: u64) -> bool {
        match self {
            Self::One(only) => *only == key,
            Self::Many(keys) => {
                keys.retain(|k| *k != key);
                keys.is_empty()
            }
        }
    }
}

struct Known {
    endpoint: Weak<Endpoint>,
    blocks: Mutex<Blocks>,
}

struct Blocks {
    lru: Lru,
    /// The newest last. Its memory is there from the beginning.
    untold: VecDeque<u64>,
    untold_size: u32,
    lost: u64,
}

impl Blocks {
    fn new() -> Self {
        Self {
            lru: Lru::default(),
            untold: VecDeque::with_capacity(MOST_UNTOLD),
            untold_size: 0,
            lost: 0,
        }
    }

    fn tell(&mut self, hash: u64) {
        if self.untold.len() >= MOST_UNTOLD {
            self.untold.pop_front();
            self.lost += 1;
        }
        self.untold.push_back(hash);
    }
}

/// Blocks of an endpoint, and how many it has room for.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub hashes: &'a [u64],
    /// Tokens in a block.
    pub block_tokens: u32,
    pub capacity: usize,
}

/// See the module's documentation.
pub struct PrefixIndex {
    shards: Box<[RwLock<ByHash<Holders>>]>,
    known: RwLock<HashMap<u64, Arc<Known>>>,
    swept_at: AtomicU64,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            known: RwLock::default(),
            swept_at: AtomicU64::new(0),
        }
    }
}

impl PrefixIndex {
    fn shard(&self, hash: u64) -> &RwLock<ByHash<Holders>> {
        // The map itself uses the hash's lowest and highest bits.
        &self.shards[(hash >> 40) as usize % SHARDS]
    }

    /// Sets how many blocks of the chain each row has, from its beginning and without a gap.
    pub(super) fn look_up(
        &self,
        hashes: &[u64],
        input: &ProducerInput<'_>,
        column: &mut PrefixColumn,
    ) {
        for (i, hash) in hashes.iter().enumerate() {
            let shard = self.shard(*hash).read();
            let Some(holders) = shard.get(hash) else {
                return;
            };
            if i == 0 {
                map_rows(input, &mut column.rows_by_slot);
            }
            let mut any = false;
            for key in holders.as_slice() {
                let row = column.rows_by_slot.get(Slot::index_of(*key)).copied();
                let Some(row) = row.filter(|row| *row != u32::MAX).map(|row| row as usize) else {
                    continue;
                };
                let same = input
                    .endpoints
                    .get(row)
                    .is_some_and(|e| e.slot().key() == *key);
                if same && column.matched(row) as usize == i {
                    column.set(row, i as u32 + 1);
                    any = true;
                }
            }
            if !any {
                return;
            }
        }
    }

    fn known(&self, endpoint: &Arc<Endpoint>) -> Arc<Known> {
        let key = endpoint.slot().key();
        let known = self.known.read().get(&key).cloned();
        known.unwrap_or_else(|| {
            let fresh = Known {
                endpoint: Arc::downgrade(endpoint),
                blocks: Mutex::new(Blocks::new()),
            };
            Arc::clone(self.known.write().entry(key).or_insert(Arc::new(fresh)))
        })
    }

    /// False if the block was used a moment ago as well.
    fn touch(&self, blocks: &mut Blocks, hash: u64, key: u64, capacity: usize, at: At) -> bool {
        let used = blocks.lru.touch(hash, capacity, at.now, at.heard);
        if let Some(evicted) = used.evicted {
            self.forget_block(evicted, key);
        }
        if used.new {
            self.shard(hash)
                .write()
                .entry(hash)
                .and_modify(|holders| holders.add(key))
                .or_insert(Holders::One(key));
        }
        if used.untold {
            blocks.tell(hash);
        }
        !used.lately
    }

    /// Notes that this router sent an endpoint these blocks, in the order of the prompt.
    pub(super) fn remember(&self, endpoint: &Arc<Endpoint>, chain: Chain<'_>, now: u64) {
        let key = endpoint.slot().key();
        let known = self.known(endpoint);
        let mut blocks = known.blocks.lock();
        if blocks.untold_size != chain.block_tokens {
            blocks.untold_size = chain.block_tokens;
            blocks.untold.clear();
        }
        let at = At { now, heard: false };
        // The last block first, so that of an old prompt the end goes before its beginning. What comes before a block in its
        // prompt was used whenever the block was, so that nothing is left to do before one that was used just now.
        for hash in chain.hashes.iter().rev() {
            if !self.touch(&mut blocks, *hash, key, chain.capacity, at) {
                break;
            }
        }
        drop(blocks);
        self.sweep(now);
    }

    /// Notes what another router said, those to be forgotten first at the beginning.
    pub(super) fn hear(&self, endpoint: &Arc<Endpoint>, chain: Chain<'_>, now: u64) {
        let key = endpoint.slot().key();
        let known = self.known(endpoint);
        let at = At { now, heard: true };
        for piece in chain.hashes.chunks(PIECE) {
            let mut blocks = known.blocks.lock();
            for hash in piece {
                self.touch(&mut blocks, *hash, key, chain.capacity, at);
            }
        }
        self.sweep(now);
    }

    /// Takes the newest blocks of an endpoint that others have not been told, at most so many, the newest last; and their size.
    pub(super) fn take(&self, endpoint: &Endpoint, most: usize) -> Option<(u32, Vec<u64>)> {
        let known = self.known.read().get(&endpoint.slot().key()).cloned()?;
        let waiting = known.blocks.lock().untold.len();
        if waiting == 0 || most == 0 {
            return None;
        }
        let mut taken = Vec::with_capacity(most.min(MOST_UNTOLD));
        let mut blocks = known.blocks.lock();
        let from = blocks.untold.len().saturating_sub(most);
        taken.extend(blocks.untold.range(from..));
        blocks.untold.truncate(from);
        Some((blocks.untold_size, taken))
    }

    /// How many blocks were lost before they were taken, since the last call.
    pub(super) fn lost(&self) -> u64 {
        let known = self.known.read();
        let lost = known
            .values()
            .map(|k| std::mem::take(&mut k.blocks.lock().lost));
        lost.sum()
    }

    /// The blocks of an endpoint, at most so many, those used lately last.
    pub(super) fn copy(&self, endpoint: &Endpoint, most: usize) -> Vec<u64> {
        let known = self.known.read().get(&endpoint.slot().key()).cloned();
        let Some(known) = known else {
            return Vec::new();
        };
        let mut found: Vec<(u32, u64)> = Vec::new();
        loop {
            let blocks = known.blocks.lock();
            let from = found.len();
            if from >= blocks.lru.len() {
                break;
            }
            found.extend(blocks.lru.piece(from, PIECE));
        }
        // Of one moment, those that came first are the ends of prompts.
        found.sort_by_key(|(told_at, _)| *told_at);
        let from = found.len().saturating_sub(most);
        found.drain(from..).map(|(_, hash)| hash).collect()
    }

    fn forget_block(&self, hash: u64, key: u64) {
        let mut shard = self.shard(hash).write();
        if shard
            .get_mut(&hash)
            .is_some_and(|holders| holders.remove(key))
        {
            shard.remove(&hash);
        }
    }

    /// Forgets endpoints that are gone, now and then.
    fn sweep(&self, now: u64) {
        let last = self.swept_at.load(Relaxed);
        if now.saturating_sub(last) < SWEEP_MS
            || self
                .swept_at
                .compare_exchange(last, now, Relaxed, Relaxed)
                .is_err()
        {
            return;
        }
        let gone: Vec<u64> = self
            .known
            .read()
            .iter()
            .filter(|(_, known)| known.endpoint.strong_count() == 0)
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            let Some(known) = self.known.write().remove(&key) else {
                continue;
            };
            let hashes: Vec<u64> = known.blocks.lock().lru.hashes().collect();
            for hash in hashes {
                self.forget_block(hash, key);
            }
        }
    }

    /// Number of different blocks, and of endpoints, that are known.
    pub fn size(&self) -> (usize, usize) {
        let blocks = self.shards.iter().map(|shard| shard.read().len()).sum();
        (blocks, self.known.read().len())
    }
}

/// When a block was used, and who says so.
#[derive(Clone, Copy)]
struct At {
    now: u64,
    heard: bool,
}

/// Fills in which row each slot is; `u32::MAX`: none.
fn map_rows(input: &ProducerInput<'_>, rows_by_slot: &mut Vec<u32>) {
    rows_by_slot.clear();
    for row in input.rows {
        let Some(endpoint) = input.endpoints.get(*row) else {
            continue;
        };
        let slot = endpoint.slot().index() as usize;
        if slot >= rows_by_slot.len() {
            rows_by_slot.resize(slot + 1, u32::MAX);
        }
        if let Some(cell) = rows_by_slot.get_mut(slot) {
            *cell = u32::try_from(*row).unwrap_or(u32::MAX);
        }
    }
}

#[cfg(test)]
mod tests;
