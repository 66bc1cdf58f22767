//! What the engine knows of one sequence: its tokens, the hashes of its blocks, its place in time.

use super::blocks::BlockId;
use super::tiers::LoadFrom;
use super::{FinishReason, Naming, Nanos};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A prompt as the KV cache sees it: chained hashes of its full blocks, and the tokens of the last, partial one.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// Tokens in all.
    pub tokens: u32,
    /// Hash of each full block, chained from the root.
    pub hashes: Vec<u64>,
    /// Tokens after the last full block.
    pub tail: Vec<u32>,
    /// Start of the chain: adapter and cache salt.
    pub root: u64,
}

/// Where a chain of block hashes starts: requests for another adapter, or with another salt, share no block.
pub fn root_hash(lora: Option<&str>, cache_salt: Option<&str>) -> u64 {
    let mut root = 0;
    if let Some(lora) = lora {
        root = xxh3_64_with_seed(lora.as_bytes(), root ^ 0x6c6f_7261);
    }
    if let Some(salt) = cache_salt {
        root = xxh3_64_with_seed(salt.as_bytes(), root ^ 0x7361_6c74);
    }
    root
}

/// Hash of a full block that follows the block with hash `parent`.
fn chain(parent: u64, tokens: &[u32]) -> u64 {
    let mut bytes = [0u8; 4 * MAX_BLOCK_SIZE as usize];
    let len = tokens.len().min(MAX_BLOCK_SIZE as usize) * 4;
    for (at, token) in bytes.chunks_exact_mut(4).zip(tokens) {
        at.copy_from_slice(&token.to_le_bytes());
    }
    xxh3_64_with_seed(&bytes[..len], parent)
}

/// Largest block size that the hash buffer takes.
pub const MAX_BLOCK_SIZE: u32 = 256;

impl Prompt {
    /// Hashes `tokens` in blocks of `block_size`.
    pub fn new(tokens: &[u32], block_size: u32, root: u64) -> Self {
        let mut hashes = Vec::with_capacity(tokens.len() / block_size as usize);
        let mut parent = root;
        let blocks = tokens.chunks_exact(block_size as usize);
        let tail = blocks.remainder().to_vec();
        for block in blocks {
            parent = chain(parent, block);
            hashes.push(parent);
        }
        Prompt {
            tokens: tokens.len() as u32,
            hashes,
            tail,
            root,
        }
    }
}

/// One sequence to generate. What it will say is known beforehand; the engine decides when.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// The prompt.
    pub prompt: Prompt,
    /// Every token that will be generated, at least one.
    pub output: Arc<[u32]>,
    /// Why it ends after them.
    pub finish: FinishReason,
    /// Index of its LoRA adapter.
    pub lora: Option<u32>,
    /// The published names of its blocks, where changes are recorded.
    pub naming: Option<Naming>,
    /// Ends at once with [`FinishReason::CacheThreshold`] when a smaller share of the prompt is cached.
    pub cache_hit_threshold: Option<f64>,
    /// From which tiers its prefix may be loaded.
    pub load_from: LoadFrom,
    /// Blocks at the start of the prompt that another engine lends.
    pub peer_blocks: usize,
}

/// When a sequence got where. Virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Added to the engine.
    pub arrival: Nanos,
    /// First left the waiting queue.
    pub scheduled: Option<Nanos>,
    /// First token out.
    pub first_token: Option<Nanos>,
    /// Latest token out.
    pub last_token: Option<Nanos>,
}

pub(super) struct Sequence<T> {
    pub payload: T,
    pub order: u64,
    pub prompt_tokens: u32,
    pub output: Arc<[u32]>,
    pub finish: FinishReason,
    pub lora: Option<u32>,
    pub naming: Option<Naming>,
    pub cache_hit_threshold: Option<f64>,
    pub load_from: LoadFrom,
    pub peer_blocks: usize,
    pub times: Times,
    /// Tokens generated so far.
    pub emitted: u32,
    /// Tokens whose KV is in the blocks.
    pub computed: u32,
    /// Prompt tokens found in the cache when it was first scheduled.
    pub cached: u32,
    /// Of these, loaded from below the GPU.
    pub loaded: u32,
    pub blocks: Vec<BlockId>,
    /// Blocks made findable so far.
    pub sealed: usize,
    root: u64,
    hashes: Vec<u64>,
    tail: Vec<u32>,
}

impl<T> Sequence<T> {
    pub fn new(payload: T, new: NewSequence, order: u64, arrival: Nanos) -> Self {
        Sequence {
            payload,
            order,
            prompt_tokens: new.prompt.tokens,
            output: new.output,
            finish: new.finish,
            lora: new.lora,
            naming: new.naming,
            cache_hit_threshold: new.cache_hit_threshold,
            load_from: new.load_from,
            peer_blocks: new.peer_blocks,
            times: Times {
                arrival,
                ..Times::default()
            },
            emitted: 0,
            computed: 0,
            cached: 0,
            loaded: 0,
            blocks: Vec::new(),
            sealed: 0,
            root: new.prompt.root,
            hashes: new.prompt.hashes,
            tail: new.prompt.tail,
        }
    }

    /// Prompt and generated tokens.
    pub fn known(&self) -> u32 {
        self.prompt_tokens + self.emitted
    }

    /// Hashes of all full blocks of the known tokens.
    pub fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Appends the next token of the output to the known tokens.
    pub fn append(&mut self, block_size: u32) {
        let token = self
            .output
            .get(self.emitted as usize)
            .copied()
            .unwrap_or_default();
        self.emitted += 1;
        self.tail.push(token);
        if let Some(naming) = &mut self.naming {
            naming.push(token);
        }
        if self.tail.len() == block_size as usize {
            let parent = self.hashes.last().copied().unwrap_or(self.root);
            self.hashes.push(chain(parent, &self.tail));
            self.tail.clear();
        }
    }

    pub fn done(&self) -> bool {
        self.emitted as usize >= self.output.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_depends_on_everything_before() {
        let a: Vec<u32> = (0..40).collect();
        let mut b = a.clone();
        b[0] = 99;
        let (pa, pb) = (Prompt::new(&a, 16, 0), Prompt::new(&b, 16, 0));
        assert_eq!((pa.hashes.len(), pa.tail.len()), (2, 8));
        assert_ne!(pa.hashes[1], pb.hashes[1]);
        assert_eq!(Prompt::new(&a[..32], 16, 0).hashes, pa.hashes);
        assert_ne!(
            Prompt::new(&a, 16, root_hash(Some("x"), None)).hashes,
            pa.hashes
        );
        assert_ne!(root_hash(Some("x"), None), root_hash(None, Some("x")));
    }

    #[test]
    fn generated_tokens_hash_as_a_prompt_would() {
        let all: Vec<u32> = (0..50).collect();
        let new = NewSequence {
            prompt: Prompt::new(&all[..20], 16, 7),
            output: all[20..].into(),
            finish: FinishReason::Length,
            lora: None,
            naming: None,
            cache_hit_threshold: None,
            load_from: LoadFrom::default(),
            peer_blocks: 0,
        };
        let mut seq = Sequence::new((), new, 0, 0);
        while !seq.done() {
            seq.append(16);
        }
        assert_eq!(seq.hashes(), Prompt::new(&all, 16, 7).hashes);
    }
}
