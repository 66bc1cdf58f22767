//! Both sides of the comparison behind one face: chains of blocks stored at and removed from holders, and the longest prefix of each.
//!
//! The peer takes two hashes for a block: that of its own tokens, by which it is looked up, and that of the chain up to it. Chains here are
//! made of the peer's own hashes, and this index gets the second one. Each side is given what it looks up by; neither hashes in the timing.

#[path = "../../src/index/mod.rs"]
pub mod index;
#[path = "../../src/tier.rs"]
pub mod tier;

pub use tier::Tier;

use dynamo_kv_router::indexer::{KvIndexerInterface, SyncIndexer, ThreadPoolIndexer};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, RouterEvent, compute_seq_hash_for_block,
};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, PositionalIndexer};
use index::{CacheIndex, Columns, DeltaBatch, HolderKey, IndexConfig, Section};
use std::collections::BTreeMap;

/// A chain in both sides' hashes.
#[derive(Clone, Debug)]
pub struct Chain {
    pub local: Vec<LocalBlockHash>,
    pub sequence: Vec<u64>,
}

impl Chain {
    /// The chain of these blocks.
    pub fn of(blocks: &[u64]) -> Self {
        let local: Vec<LocalBlockHash> = blocks.iter().map(|b| LocalBlockHash(*b)).collect();
        let sequence = compute_seq_hash_for_block(&local);
        Self { local, sequence }
    }

    /// Blocks in it.
    pub fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.sequence.is_empty()
    }
}

/// This index with as many holders.
pub struct Ours {
    pub index: CacheIndex,
    sequence: Vec<u64>,
}

impl Ours {
    /// An empty one.
    pub fn new(holders: u64) -> Self {
        let index = CacheIndex::new(IndexConfig::default());
        for endpoint in 0..holders {
            let mut section = Section::new(HolderKey { endpoint, rank: 0 }, 1, 1, 0, 1);
            section.replace = true;
            index.apply(&DeltaBatch {
                sections: vec![section],
            });
        }
        Self {
            index,
            sequence: vec![1; holders as usize],
        }
    }

    fn section(&mut self, endpoint: u64) -> Section {
        let sequence = &mut self.sequence[endpoint as usize];
        *sequence += 1;
        Section::new(
            HolderKey { endpoint, rank: 0 },
            1,
            1,
            *sequence - 1,
            *sequence,
        )
    }

    /// Stores blocks `[from, to)` of the chain.
    pub fn store(&mut self, holder: u64, chain: &Chain, from: usize, to: usize) {
        let mut section = self.section(holder);
        section.stored(
            Tier::Gpu,
            from.checked_sub(1).map(|f| chain.sequence[f]),
            &chain.sequence[from..to],
        );
        self.index.apply(&DeltaBatch {
            sections: vec![section],
        });
    }

    /// Removes the chain's blocks from `from` on.
    pub fn remove(&mut self, holder: u64, chain: &Chain, from: usize) {
        let mut section = self.section(holder);
        let back: Vec<u64> = chain.sequence[from..].iter().rev().copied().collect();
        section.removed(Tier::Gpu, &back);
        self.index.apply(&DeltaBatch {
            sections: vec![section],
        });
    }

    /// Looks the chain up.
    pub fn scores(&self, chain: &Chain, columns: &mut Columns) -> BTreeMap<u64, u32> {
        self.index.lookup(&chain.sequence, columns);
        columns
            .iter()
            .map(|(key, found)| (key.endpoint, found.blocks))
            .collect()
    }
}

/// One of the peer's indexers with its writer threads.
pub struct Peer<T: SyncIndexer> {
    pub pool: ThreadPoolIndexer<T>,
    runtime: tokio::runtime::Runtime,
    events: u64,
}

impl<T: SyncIndexer> Peer<T> {
    /// An empty one.
    pub fn new(backend: T) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        Self {
            pool: ThreadPoolIndexer::new(backend, 1, 16),
            runtime,
            events: 0,
        }
    }

    fn send(&mut self, worker: u64, data: KvCacheEventData) {
        self.events += 1;
        let event = RouterEvent::new(
            worker,
            KvCacheEvent {
                event_id: self.events,
                data,
                dp_rank: 0,
            },
        );
        self.runtime.block_on(self.pool.apply_event(event));
    }

    /// Stores blocks `[from, to)` of the chain.
    pub fn store(&mut self, holder: u64, chain: &Chain, from: usize, to: usize) {
        let blocks = (from..to)
            .map(|i| KvCacheStoredBlockData {
                block_hash: ExternalSequenceBlockHash(chain.sequence[i]),
                tokens_hash: chain.local[i],
                mm_extra_info: None,
            })
            .collect();
        let parent_hash = from
            .checked_sub(1)
            .map(|f| ExternalSequenceBlockHash(chain.sequence[f]));
        let data = KvCacheStoreData {
            parent_hash,
            start_position: Some(from as u32),
            blocks,
        };
        self.send(holder, KvCacheEventData::Stored(data));
    }

    /// Removes the chain's blocks from `from` on.
    pub fn remove(&mut self, holder: u64, chain: &Chain, from: usize) {
        let block_hashes = chain.sequence[from..]
            .iter()
            .rev()
            .map(|h| ExternalSequenceBlockHash(*h))
            .collect();
        self.send(
            holder,
            KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }),
        );
    }

    /// Waits until all events are applied.
    pub fn settle(&self) {
        self.runtime.block_on(self.pool.flush_and_wait()).expect("its threads run");
    }

    /// Looks the chain up.
    pub fn scores(&self, chain: &Chain) -> BTreeMap<u64, u32> {
        let found = self.pool.backend().find_matches(&chain.local, false);
        found
            .scores
            .iter()
            .filter(|(_, blocks)| **blocks > 0)
            .map(|(worker, blocks)| (worker.worker_id, *blocks))
            .collect()
    }
}

/// The peer's default.
pub fn compressed() -> Peer<ConcurrentRadixTreeCompressed> {
    Peer::new(ConcurrentRadixTreeCompressed::new())
}

/// The peer's index by position, with its own step.
pub fn positional() -> Peer<PositionalIndexer> {
    Peer::new(PositionalIndexer::new(64))
}
