//! `approx-prefix-cache-producer`: how much of a prompt each endpoint probably has cached, from what this router sent where.
//!
//! The prompt's bytes are cut into blocks of as many bytes as the estimated tokens of a block have, and each block is hashed with the
//! hash of the one before as seed (xxHash64; the first seed follows from model, cache salt and a secret), so that equal hashes mean equal
//! prefixes. The last, shorter block counts as well. After a pick the hashes are remembered for the endpoint that got the request (and
//! the one that computes its prompt): optimistic, nothing confirms it. The routers of a region tell each other.

mod hashed;
mod index;
mod lru;

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::endpoint::Endpoint;
use crate::learnt::{Learner, Learnt, NotLearnt};
use crate::pipeline::{
    Attributes, BYTES_PER_TOKEN, ColumnId, Context, DataProducer, Extras, OnPicked, ProducerInput,
    Row, SchedulingRequest, Stages,
};
use index::Chain;
pub use index::PrefixIndex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use xxhash_rust::xxh64::{Xxh64, xxh64};

/// With automatic tuning, blocks are at least this long: shorter ones make the index large and tell little.
const TUNED_BLOCK_TOKENS: u32 = 64;

/// See the module's documentation.
pub struct ApproxPrefix {
    column: ColumnId,
    prefill: Option<usize>,
    auto_tune: bool,
    block_tokens: u32,
    max_tokens: usize,
    capacity: usize,
    /// Begins every chain.
    secret: u64,
    index: PrefixIndex,
    /// Size of the blocks that the last request was cut into; 0: none yet.
    size_now: AtomicU32,
    /// Where taking begins: not always with the same endpoint.
    turn: AtomicUsize,
}

impl ApproxPrefix {
    /// How many blocks an endpoint has room for.
    fn capacity_of(&self, endpoint: &Endpoint, block_tokens: u32) -> usize {
        let tuned = endpoint
            .cache_shape()
            .filter(|shape| self.auto_tune && shape.blocks > 0)
            .map(|shape| {
                let tokens = u64::from(shape.blocks) * u64::from(shape.block_tokens);
                usize::try_from(tokens / u64::from(block_tokens.max(1))).unwrap_or(usize::MAX)
            });
        tuned.unwrap_or(self.capacity).max(1)
    }

    /// The size of blocks in use, or that a request to this endpoint would have.
    fn size_for(&self, endpoint: &Endpoint) -> u32 {
        match self.size_now.load(Relaxed) {
            0 if self.auto_tune => endpoint
                .cache_shape()
                .map_or(0, |shape| shape.block_tokens)
                .max(TUNED_BLOCK_TOKENS),
            0 => self.block_tokens,
            now => now,
        }
    }
}

impl Learner for ApproxPrefix {
    fn take(
        &self,
        endpoints: &[Arc<Endpoint>],
        budget: &mut usize,
        _: u64,
    ) -> Vec<(Arc<Endpoint>, Learnt)> {
        let turn = self.turn.fetch_add(1, Relaxed) % endpoints.len().max(1);
        let (before, after) = endpoints.split_at(turn);
        let mut all = Vec::new();
        for endpoint in after.iter().chain(before) {
            if let Some((block_tokens, hashes)) = self.index.take(endpoint, *budget) {
                *budget -= hashes.len().min(*budget);
                let blocks = Learnt::Blocks {
                    block_tokens,
                    hashes,
                };
                all.push((Arc::clone(endpoint), blocks));
            }
        }
        all
    }

    fn lost(&self) -> u64 {
        self.index.lost()
    }

    fn copy(&self, endpoint: &Arc<Endpoint>, words: usize, _: u64) -> Option<Learnt> {
        let hashes = self.index.copy(endpoint, words);
        (!hashes.is_empty()).then(|| Learnt::Blocks {
            block_tokens: self.size_for(endpoint),
            hashes,
        })
    }

    fn learn(&self, endpoint: &Arc<Endpoint>, learnt: &Learnt, now: u64) -> Result<(), NotLearnt> {
        let Learnt::Blocks {
            block_tokens,
            hashes,
        } = learnt
        else {
            return Err(NotLearnt::Kind);
        };
        if *block_tokens != self.size_for(endpoint) {
            return Err(NotLearnt::BlockSize);
        }
        let chain = Chain {
            hashes,
            block_tokens: *block_tokens,
            capacity: self.capacity_of(endpoint, *block_tokens),
        };
        self.index.hear(endpoint, chain, now);
        Ok(())
    }
}

/// Appends the chain of block hashes of a prompt, at most `max` of them. Other secrets, other hashes.
pub fn hash_blocks(
    request: &SchedulingRequest<'_>,
    secret: u64,
    block_bytes: usize,
    max: usize,
    hashes: &mut Vec<u64>,
) {
    let Some(prompt) = request.prompt else { return };
    let mut seed = xxh64(request.model.as_bytes(), secret);
    if let Some(salt) = request.cache_salt {
        seed = xxh64(salt.as_bytes(), seed);
    }
    // What of a block has come so far, where it does not lie in one piece.
    let mut part: Option<(Xxh64, usize)> = None;
    prompt.pieces(&mut |mut piece| {
        while !piece.is_empty() && hashes.len() < max {
            let (mut hasher, length) = match part.take() {
                Some(part) => part,
                None => {
                    if let Some((block, rest)) = piece.split_at_checked(block_bytes) {
                        seed = xxh64(block, seed);
                        hashes.push(seed);
                        piece = rest;
                        continue;
                    }
                    (Xxh64::new(seed), 0)
                }
            };
            let (now, rest) = piece.split_at(piece.len().min(block_bytes - length));
            hasher.update(now);
            piece = rest;
            if length + now.len() == block_bytes {
                seed = hasher.digest();
                hashes.push(seed);
            } else {
                part = Some((hasher, length + now.len()));
            }
        }
    });
    if let Some((hasher, _)) = part
        && hashes.len() < max
    {
        hashes.push(hasher.digest());
    }
}

impl DataProducer for ApproxPrefix {
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
        let Some(column) = attributes.prefix_mut(self.column) else {
            return;
        };
        let engine_block = input
            .rows
            .first()
            .and_then(|row| input.endpoints.get(*row)?.cache_shape())
            .map_or(0, |shape| shape.block_tokens);
        let block_tokens = if self.auto_tune {
            engine_block.max(TUNED_BLOCK_TOKENS)
        } else {
            self.block_tokens
        };
        let block = block_tokens as usize;
        let mut hashes = std::mem::take(&mut column.hashes);
        hashes.clear();
        hash_blocks(
            input.request,
            self.secret,
            block * BYTES_PER_TOKEN,
            self.max_tokens.div_ceil(block),
            &mut hashes,
        );
        index::keep_together(&mut hashes);
        if self.size_now.load(Relaxed) != block_tokens {
            self.size_now.store(block_tokens, Relaxed);
        }
        column.block_tokens = block_tokens;
        column.total_blocks = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        self.index.look_up(&hashes, input, column);
        column.hashes = hashes;
    }
}

impl OnPicked for ApproxPrefix {
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, _: &mut Extras) {
        let Some(column) = context.attributes.prefix(self.column) else {
            return;
        };
        if column.hashes.is_empty() {
            return;
        }
        let prefill = self
            .prefill
            .and_then(|profile| stages.best_of(profile))
            .filter(|row| *row != primary);
        for row in [Some(primary), prefill].into_iter().flatten() {
            let Some(endpoint) = context.endpoint(row) else {
                continue;
            };
            let chain = Chain {
                hashes: &column.hashes,
                block_tokens: column.block_tokens,
                capacity: self.capacity_of(endpoint, column.block_tokens),
            };
            self.index.remember(endpoint, chain, context.now);
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let block = fields.whole("blockSizeTokens", 16, 1..=65_536);
    if fields.raw("blockSize").is_some() {
        fields.warn(
            "blockSize",
            "is deprecated and not read: use `blockSizeTokens`",
        );
    }
    let by_tokens = fields.whole("maxPrefixTokensToMatch", 131_072, 1..=1 << 32);
    let by_blocks = fields.whole_if("maxPrefixBlocksToMatch", 1..=1 << 32);
    if by_blocks.is_some() {
        fields.warn(
            "maxPrefixBlocksToMatch",
            "is deprecated: use `maxPrefixTokensToMatch`",
        );
    }
    let max_tokens = match by_blocks {
        Some(blocks) if !fields.has("maxPrefixTokensToMatch") => blocks.saturating_mul(block),
        _ => by_tokens,
    };
    let capacity = fields.whole("lruCapacityPerServer", 31_250, 1..=1 << 32);
    let plugin = Arc::new(ApproxPrefix {
        column: build.own(Produces::Prefix),
        prefill: build.profile("prefill"),
        auto_tune: fields.flag("autoTune", true),
        block_tokens: u32::try_from(block).unwrap_or(16),
        max_tokens: usize::try_from(max_tokens).unwrap_or(usize::MAX),
        capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
        secret: build.secret(),
        index: PrefixIndex::default(),
        size_now: AtomicU32::new(0),
        turn: AtomicUsize::new(0),
    });
    Built {
        producer: Some(plugin.clone()),
        on_picked: Some(plugin.clone()),
        learner: Some(plugin),
        ..Built::default()
    }
}

#[cfg(test)]
mod tests;
