//! Which endpoints probably have which blocks: block hash -> endpoints, in shards, with a bounded list of hashes for each endpoint.

use super::hashed::ByHash;
use super::lru::Lru;
use crate::endpoint::Endpoint;
use crate::endpoint::slot::Slot;
use crate::pipeline::{PrefixColumn, ProducerInput};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

const SHARDS: usize = 64;
/// How often endpoints that are gone are looked for, in milliseconds.
const SWEEP_MS: u64 = 30_000;

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
    blocks: Mutex<Lru>,
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

    /// Notes that an endpoint has these blocks now.
    pub(super) fn remember(
        &self,
        endpoint: &Arc<Endpoint>,
        hashes: &[u64],
        capacity: usize,
        now: u64,
    ) {
        let key = endpoint.slot().key();
        let known = self.known.read().get(&key).cloned();
        let known = known.unwrap_or_else(|| {
            let fresh = Known {
                endpoint: Arc::downgrade(endpoint),
                blocks: Mutex::default(),
            };
            Arc::clone(self.known.write().entry(key).or_insert(Arc::new(fresh)))
        });
        let mut blocks = known.blocks.lock();
        // The last block first, so that of an old prompt the end goes before its beginning.
        for hash in hashes.iter().rev() {
            let used = blocks.touch(*hash, capacity);
            if let Some(evicted) = used.evicted {
                self.forget_block(evicted, key);
            }
            if used.new {
                self.shard(*hash)
                    .write()
                    .entry(*hash)
                    .and_modify(|holders| holders.add(key))
                    .or_insert(Holders::One(key));
            }
        }
        drop(blocks);
        self.sweep(now);
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
            let hashes: Vec<u64> = known.blocks.lock().hashes().collect();
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
