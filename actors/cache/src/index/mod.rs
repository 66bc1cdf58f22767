//! The cache index: which KV-cache blocks lie on which holder and tier, for all holders of a region.
//!
//! One copy on each router, changed only by the replicated log ([`CacheIndex::apply`]) and by what picks expect of the next moments
//! ([`CacheIndex::expect`]), read by every pick ([`CacheIndex::lookup`]).
//!
//! How it is built. A block is its 64-bit hash, which stands for the whole chain up to it. Blocks that follow one another are kept
//! together in segments of up to 1,024, and who has them is kept as intervals: one word says "holder 7 has blocks 0 to 611 on its GPU". So
//! a lookup finds the first block in a table, compares the rest of the segment with the request as plain memory, and looks at one word
//! for each holder. Everything that readers see is an atomic word in an array that never moves; versions tell a reader
//! whether the words it took belonged together. Writers lock one of 64 shards, for one stretch of blocks at a time.
//!
//! The index is bounded by the number of (holder, block, tier) it may have. That number and not the bytes decides, because all replicas must
//! decide alike; [`BYTES_PER_PAIR`] is what one takes at most. When it is full, new blocks of the holder that has most are refused (they
//! are the deepest of their chains, and its engine's own evictions make room again); for the blocks of another holder, the one that has
//! most loses its coldest tier. Both are counted, and marked on the holder.
//!
//! A snapshot of another replica is taken in beside what is there, and takes its place at once: a reader finds the old map or the new one. So
//! there are two maps in memory for as long as that takes.
//!
//! Hashes of different models or hash algorithms must not be equal by chance or by design: whoever fills the index mixes what tells
//! them apart into the hash.

mod apply;
mod arena;
mod block_map;
mod blocks;
mod clearing;
mod contents;
mod coverage;
mod delta;
mod digest;
mod expectation;
mod holder;
mod holders;
mod laying;
mod layout;
mod ledger;
mod loading;
mod lookup;
mod segment;
mod shard;
mod snapshot;
mod stats;
mod transfer;
mod weights;
pub(crate) mod wire;

pub use apply::{Applied, Outcome, Refusal};
pub use blocks::SHARDS;
pub use delta::{DeltaBatch, Operation, Section};
pub use digest::{DIGEST_SHARDS, Digest, Digests, Element, ElementMixer};
pub use expectation::Expected;
pub use holder::{HolderKey, MAX_HOLDERS};
pub use holders::Holders;
pub use loading::{SnapshotError, SnapshotLoader};
pub use lookup::{Columns, Match};
pub use snapshot::Snapshot;
pub use stats::{HolderStatus, IndexStats};
pub use transfer::HolderCopy;
pub use weights::{SPECULATIVE, TIERS, TierWeights};
pub use wire::Malformed;

use apply::State;
use arc_swap::ArcSwap;
use contents::Contents;
use parking_lot::Mutex;
use stats::Counters;
use std::sync::Arc;

/// Bytes that one (holder, block, tier) is reckoned at: half of it is usual, blocks that are in no chain take it all
/// (`docs/benchmarks.md`).
pub const BYTES_PER_PAIR: usize = 48;

/// How large the index may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexConfig {
    /// Bytes; the number of (holder, block, tier) that may be known is this by [`BYTES_PER_PAIR`]. All replicas need the same.
    pub max_bytes: usize,
}

impl IndexConfig {
    /// The number of (holder, block, tier) that may be known.
    const fn pairs(self) -> usize {
        self.max_bytes / BYTES_PER_PAIR
    }
}

impl Default for IndexConfig {
    /// 2 GiB: 44 million blocks.
    fn default() -> Self {
        Self { max_bytes: 2 << 30 }
    }
}

/// Which blocks lie where.
pub struct CacheIndex {
    /// What readers see. `state` names the same, for writers.
    contents: ArcSwap<Contents>,
    state: Mutex<State>,
    counters: Counters,
    config: IndexConfig,
}

impl CacheIndex {
    /// An empty index.
    #[must_use]
    pub fn new(config: IndexConfig) -> Self {
        let contents = Arc::new(Contents::new(config));
        Self {
            contents: ArcSwap::new(Arc::clone(&contents)),
            state: Mutex::new(State::of(contents)),
            counters: Counters::default(),
            config,
        }
    }

    /// The most (holder, block, tier) that may be known.
    const fn max_pairs(&self) -> u64 {
        self.config.pairs() as u64
    }

    /// The digests of what is announced: two replicas that have applied the same batches have the same ones.
    #[must_use]
    pub fn digests(&self) -> Digests {
        self.state.lock().digests()
    }

    /// The digest of what one holder has announced.
    #[must_use]
    pub fn digest(&self, holder: HolderKey) -> Option<Digest> {
        self.state
            .lock()
            .entries
            .get(&holder)
            .map(|e| e.sums.digest)
    }
}
