//! The KV block pool: reference counts, prefix cache and LRU eviction of blocks that nobody uses.
//!
//! A block is in one of three states: in use (`refs > 0`), free and blank, or free and still cached. Free blocks stand in
//! one intrusive list in the order in which they were released; allocation takes its head, so the least recently used
//! cached block is the one that loses its contents. This is vLLM's `FreeKVCacheBlockQueue` rule.

use super::record::BlockChange;
use super::tiers::Medium;
use crate::hash::HashKeyed;
#[cfg(test)]
use std::collections::HashMap;

/// Index of a block in the pool.
pub type BlockId = u32;

const NONE: BlockId = BlockId::MAX;

#[derive(Clone)]
struct Block {
    hash: Option<u64>,
    /// What its contents are called outside.
    name: Option<u64>,
    refs: u32,
    prev: BlockId,
    next: BlockId,
}

/// All KV blocks of one tier of an engine.
pub struct BlockPool {
    blocks: Vec<Block>,
    cached: HashKeyed<BlockId>,
    head: BlockId,
    tail: BlockId,
    free: usize,
    medium: Medium,
    changes: Option<Vec<BlockChange>>,
}

impl BlockPool {
    /// A pool of `total` blank blocks.
    pub fn new(total: u32) -> Self {
        let mut pool = BlockPool {
            blocks: vec![
                Block {
                    hash: None,
                    name: None,
                    refs: 0,
                    prev: NONE,
                    next: NONE
                };
                total as usize
            ],
            cached: HashKeyed::default(),
            head: NONE,
            tail: NONE,
            free: 0,
            medium: Medium::Gpu,
            changes: None,
        };
        for id in 0..total {
            pool.push_free(id);
        }
        pool
    }

    /// The same pool, which writes down what changes if `on`.
    pub fn recording(mut self, on: bool) -> Self {
        self.changes = on.then(Vec::new);
        self
    }

    /// The same pool in another place than the GPU.
    pub fn on(mut self, medium: Medium) -> Self {
        self.medium = medium;
        self
    }

    /// The changes since the last call.
    pub fn take_changes(&mut self) -> Vec<BlockChange> {
        self.changes
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Writes a change down, if anybody wants to know.
    pub fn record(&mut self, write: impl FnOnce(&mut Vec<BlockChange>)) {
        if let Some(changes) = &mut self.changes {
            write(changes);
        }
    }

    /// Blocks that can be allocated now (blank or cached).
    pub fn free(&self) -> usize {
        self.free
    }

    /// All blocks.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks whose contents can be found by hash, in use or not.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// The block that holds the contents with this hash.
    pub fn lookup(&self, hash: u64) -> Option<BlockId> {
        self.cached.get(&hash).copied()
    }

    /// Whether nobody uses the block.
    pub fn is_free(&self, id: BlockId) -> bool {
        self.blocks[id as usize].refs == 0
    }

    /// One more user of a cached block.
    pub fn share(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.unlink(id);
        }
        self.blocks[id as usize].refs += 1;
    }

    /// A blank block for one user; the least recently used cached block is emptied when no blank one is left.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.head;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        if let Some(hash) = self.blocks[id as usize].hash.take() {
            self.cached.remove(&hash);
            if let Some(name) = self.blocks[id as usize].name.take() {
                let medium = self.medium;
                self.record(|changes| changes.push(BlockChange::Removed { name, medium }));
            }
        }
        self.blocks[id as usize].refs = 1;
        Some(id)
    }

    /// Makes a full block findable, called `name` outside. A second block with the same contents stays unlisted: false.
    pub fn seal(&mut self, id: BlockId, hash: u64, name: Option<u64>) -> bool {
        if let std::collections::hash_map::Entry::Vacant(slot) = self.cached.entry(hash) {
            slot.insert(id);
            self.blocks[id as usize].hash = Some(hash);
            self.blocks[id as usize].name = name;
            return true;
        }
        false
    }

    /// Keeps contents that nobody uses, as the most recently used. Returns whether they are new here.
    pub fn keep(&mut self, hash: u64, name: Option<u64>) -> bool {
        if self.touch(hash) {
            return false;
        }
        let Some(id) = self.allocate() else {
            return false;
        };
        let new = self.seal(id, hash, name);
        self.release(id);
        new
    }

    /// Marks contents as the most recently used, if they are here.
    pub fn touch(&mut self, hash: u64) -> bool {
        let Some(id) = self.lookup(hash) else {
            return false;
        };
        self.share(id);
        self.release(id);
        true
    }

    /// One user fewer. The last one sends the block to the end of the free list, contents kept.
    pub fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        debug_assert!(block.refs > 0, "block {id} released twice");
        block.refs = block.refs.saturating_sub(1);
        if block.refs == 0 {
            self.push_free(id);
        }
    }

    /// Forgets all contents that nobody uses; contents in use stay findable.
    pub fn reset_cache(&mut self) {
        let blocks = &mut self.blocks;
        let mut forgotten = Vec::new();
        self.cached.retain(|_, id| {
            let block = &mut blocks[*id as usize];
            if block.refs == 0 {
                block.hash = None;
                forgotten.extend(block.name.take());
            }
            block.refs > 0
        });
        // Only the GPU's cache has an event for losing everything.
        let all = self.cached.is_empty() && self.medium == Medium::Gpu;
        let medium = self.medium;
        self.record(|changes| {
            if all {
                changes.push(BlockChange::Cleared(forgotten));
            } else {
                let removed = |name| BlockChange::Removed { name, medium };
                changes.extend(forgotten.into_iter().map(removed));
            }
        });
    }

    fn push_free(&mut self, id: BlockId) {
        self.blocks[id as usize].prev = self.tail;
        self.blocks[id as usize].next = NONE;
        match self.tail {
            NONE => self.head = id,
            tail => self.blocks[tail as usize].next = id,
        }
        self.tail = id;
        self.free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let Block { prev, next, .. } = self.blocks[id as usize];
        match prev {
            NONE => self.head = next,
            prev => self.blocks[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => self.blocks[next as usize].prev = prev,
        }
        self.free -= 1;
    }

    /// Panics unless the free list, the reference counts and the cache agree with each other and with `uses`, the
    /// number of users of each block.
    #[cfg(test)]
    pub fn check(&self, uses: &HashMap<BlockId, u32>) {
        let mut at = self.head;
        let mut listed = 0;
        let mut prev = NONE;
        while at != NONE {
            let block = &self.blocks[at as usize];
            assert_eq!(block.refs, 0, "block {at} is free and in use");
            assert_eq!(block.prev, prev);
            prev = at;
            at = block.next;
            listed += 1;
        }
        assert_eq!(prev, self.tail);
        assert_eq!(listed, self.free);
        for (id, block) in self.blocks.iter().enumerate() {
            let id = id as BlockId;
            assert_eq!(
                block.refs,
                uses.get(&id).copied().unwrap_or(0),
                "users of block {id}"
            );
            if let Some(hash) = block.hash {
                assert_eq!(self.cached.get(&hash), Some(&id));
            }
        }
        let in_use = self.blocks.iter().filter(|b| b.refs > 0).count();
        assert_eq!(in_use + self.free, self.blocks.len());
        for (hash, id) in &self.cached {
            assert_eq!(self.blocks[*id as usize].hash, Some(*hash));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_released_contents_go_first() {
        let mut pool = BlockPool::new(2);
        let a = pool.allocate().unwrap();
        let b = pool.allocate().unwrap();
        assert!(pool.allocate().is_none());
        pool.seal(a, 11, None);
        pool.seal(b, 22, None);
        pool.release(b);
        pool.release(a);
        assert_eq!(pool.allocate(), Some(b));
        assert_eq!(pool.lookup(22), None);
        assert_eq!(pool.lookup(11), Some(a));
    }

    #[test]
    fn shared_block_survives_one_release() {
        let mut pool = BlockPool::new(1);
        let a = pool.allocate().unwrap();
        pool.seal(a, 5, None);
        pool.share(a);
        pool.release(a);
        assert_eq!(pool.free(), 0);
        pool.release(a);
        assert_eq!(pool.free(), 1);
        pool.share(a);
        assert_eq!(pool.free(), 0);
        pool.release(a);
        pool.reset_cache();
        assert_eq!(pool.lookup(5), None);
        assert_eq!(pool.cached(), 0);
    }
}
