//! Which endpoints probably have which blocks: block hash -> endpoints, in shards, with a bounded list of hashes for each endpoint;
//! and beside each list what other routers have not been told of it.

use super::hashed::ByHash;
use super::lru::Lru;
use crate::endpoint::Endpoint;
use crate::endpoint::slot::Slot;
use crate::pipeline::{PrefixColumn, ProducerInput};
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

const SHARDS: usize = 64;
/// Where a hash has the number of its shard: neither of the bits that a map looks at first nor of those that it compares.
const SHARD_SHIFT: u32 = 40;
const SHARD_BITS: u64 = (SHARDS as u64 - 1) << SHARD_SHIFT;
/// How often endpoints that are gone are looked for, in milliseconds.
const SWEEP_MS: u64 = 30_000;
/// Blocks of one endpoint that wait to be told; the oldest of more are lost.
const MOST_UNTOLD: usize = 4_096;
/// Blocks that are read or written while an endpoint is locked: picks wait for it.
const PIECE: usize = 64;

/// An endpoint that has a block: the key of its slot, and the block's place in its list.
#[derive(Clone, Copy)]
struct Holder {
    key: u64,
    place: u32,
}

/// Most blocks are on one endpoint.
enum Holders {
    One(Holder),
    Many(Vec<Holder>),
}

impl Holders {
    fn as_slice(&self) -> &[Holder] {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(all) => all,
        }
    }

    fn place_of(&self, key: u64) -> Option<u32> {
        let holder = self.as_slice().iter().find(|holder| holder.key == key)?;
        Some(holder.place)
    }

    /// Adds one that is not there.
    fn add(&mut self, holder: Holder) {
        match self {
            Self::One(only) => *self = Self::Many(vec![*only, holder]),
            Self::Many(all) => all.push(holder),
        }
    }

    /// True if nobody is left.
    fn remove(&mut self, key: u64) -> bool {
        match self {
            Self::One(only) => only.key == key,
            Self::Many(all) => {
                all.retain(|holder| holder.key != key);
                all.is_empty()
            }
        }
    }
}

type Shard = RwLock<ByHash<Holders>>;

/// A shard for writing, locked as long as what comes next is in it too: the blocks of a chain are. Whoever has one may not take the lock of
/// a [`Known`].
struct Writing<'a> {
    shards: &'a [Shard; SHARDS],
    at: Option<(usize, RwLockWriteGuard<'a, ByHash<Holders>>)>,
}

impl Writing<'_> {
    fn map(&mut self, hash: u64) -> &mut ByHash<Holders> {
        let shard = shard_of(hash);
        if self.at.as_ref().is_some_and(|(at, _)| *at != shard) {
            self.at = None;
        }
        let shards = self.shards;
        let (_, map) = self
            .at
            .get_or_insert_with(|| (shard, shards[shard].write()));
        map
    }

    fn forget(&mut self, hash: u64, key: u64) {
        let map = self.map(hash);
        if map
            .get_mut(&hash)
            .is_some_and(|holders| holders.remove(key))
        {
            map.remove(&hash);
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
    /// Had to go, and is still in a shard that is not locked now. Empty between two calls.
    gone: Vec<u64>,
}

impl Blocks {
    fn new() -> Self {
        Self {
            lru: Lru::default(),
            untold: VecDeque::with_capacity(MOST_UNTOLD),
            untold_size: 0,
            lost: 0,
            gone: Vec::new(),
        }
    }

    fn tell(&mut self, hash: u64) {
        if self.untold.len() >= MOST_UNTOLD {
            self.untold.pop_front();
            self.lost += 1;
        }
        self.untold.push_back(hash);
    }

    /// Takes what had to go out of its shards.
    fn let_go(&mut self, writing: &mut Writing<'_>, key: u64) {
        for hash in self.gone.drain(..) {
            writing.forget(hash, key);
        }
    }
}

fn shard_of(hash: u64) -> usize {
    ((hash & SHARD_BITS) >> SHARD_SHIFT) as usize
}

/// Gives all blocks of a chain the shard of the first one: they are looked up, stored and forgotten together, under one lock.
pub(super) fn keep_together(hashes: &mut [u64]) {
    if let [first, others @ ..] = hashes {
        for hash in others {
            *hash = *hash & !SHARD_BITS | *first & SHARD_BITS;
        }
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
    shards: Box<[Shard; SHARDS]>,
    known: RwLock<HashMap<u64, Arc<Known>>>,
    swept_at: AtomicU64,
}

impl Default for PrefixIndex {
    fn default() -> Self {
        Self {
            shards: Box::new(std::array::from_fn(|_| Shard::default())),
            known: RwLock::default(),
            swept_at: AtomicU64::new(0),
        }
    }
}

impl PrefixIndex {
    fn writing(&self) -> Writing<'_> {
        Writing {
            shards: &self.shards,
            at: None,
        }
    }

    /// Sets how many blocks of the chain each row has, from its beginning and without a gap.
    pub(super) fn look_up(
        &self,
        hashes: &[u64],
        input: &ProducerInput<'_>,
        column: &mut PrefixColumn,
    ) {
        let Some(first) = hashes.first() else { return };
        let mut at = shard_of(*first);
        let mut map = self.shards[at].read();
        for (i, hash) in hashes.iter().enumerate() {
            if shard_of(*hash) != at {
                at = shard_of(*hash);
                drop(map);
                map = self.shards[at].read();
            }
            let Some(holders) = map.get(hash) else {
                return;
            };
            if i == 0 {
                map_rows(input, &mut column.rows_by_slot);
            }
            let mut any = false;
            for Holder { key, .. } in holders.as_slice() {
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
    fn touch(
        writing: &mut Writing<'_>,
        blocks: &mut Blocks,
        hash: u64,
        (key, capacity): (u64, usize),
        at: At,
    ) -> bool {
        let map = writing.map(hash);
        let place = map.get(&hash).and_then(|holders| holders.place_of(key));
        if let Some(place) = place {
            let used = blocks.lru.touch(place, at.now, at.heard);
            if used.untold {
                blocks.tell(hash);
            }
            return !used.lately;
        }
        let (place, evicted) = blocks.lru.add(hash, capacity, at.now, at.heard);
        match evicted {
            Some(old) if shard_of(old) == shard_of(hash) => writing.forget(old, key),
            Some(old) => blocks.gone.push(old),
            None => {}
        }
        let holder = Holder { key, place };
        writing
            .map(hash)
            .entry(hash)
            .and_modify(|holders| holders.add(holder))
            .or_insert(Holders::One(holder));
        if !at.heard {
            blocks.tell(hash);
        }
        true
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
        let mut writing = self.writing();
        for hash in chain.hashes.iter().rev() {
            if !Self::touch(&mut writing, &mut blocks, *hash, (key, chain.capacity), at) {
                break;
            }
        }
        blocks.let_go(&mut writing, key);
        drop(writing);
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
            let mut writing = self.writing();
            for hash in piece {
                Self::touch(&mut writing, &mut blocks, *hash, (key, chain.capacity), at);
            }
            blocks.let_go(&mut writing, key);
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
            let blocks = known.blocks.lock();
            let mut writing = self.writing();
            for hash in blocks.lru.hashes() {
                writing.forget(hash, key);
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
