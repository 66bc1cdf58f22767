//! What a pool's scheduling needs to know of its engines' caches: which events to follow, and how their blocks are named.

use crate::endpoint::Endpoint;
use crate::pipeline::{Row, TierBlocks};
use crate::tokens::PromptTokens;
use std::sync::Arc;

/// Where the KV-cache events of a pool's engines come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EventsFrom {
    /// Each engine is asked where it publishes them.
    #[default]
    Discover,
    /// An engine's host, at this port plus the engine's data-parallel rank.
    Port(u16),
    /// The engines dial this ZMQ address of the router's, `tcp://*:5557` say.
    Bind(String),
    /// Each engine is polled for them (TensorRT-LLM).
    Poll,
    /// Nowhere.
    Off,
}

/// See the module's documentation. What is said here holds where an engine does not say it itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheNeeds {
    /// Where events come from.
    pub events: EventsFrom,
    /// Port of the replay socket, plus the rank; `None`: what the engine says, else none.
    pub replay_port: Option<u16>,
    /// Only topics that begin like this; empty: all.
    pub topic: String,
    /// Tokens in a block.
    pub block_tokens: Option<u32>,
    /// How engines hash blocks: vLLM's `--prefix-caching-hash-algo`, or `sglang`. `None`: learnt from their events.
    pub algorithm: Option<String>,
    /// What engines' hashes begin with (`PYTHONHASHSEED`).
    pub hash_seed: Option<String>,
    /// An engine of which nothing is heard gets a small prompt, to see whether and how it announces its blocks.
    pub self_check: bool,
}

/// What one data-parallel rank of an endpoint has of a prompt, in blocks of its engine's size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankCache {
    /// Place of its endpoint among those that were asked for.
    pub row: Row,
    /// The rank.
    pub rank: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Blocks of the prompt that can be cached: all whole ones but that of the last token.
    pub blocks: u32,
    /// Blocks that it has, from the first one on.
    pub cached: u32,
    /// The same by the best tier that each lies on.
    pub tiers: TierBlocks,
    /// The same in tokens, each weighing what its tier is worth to the pool's scheduling.
    pub worth: f64,
}

/// A beginning of a prompt, and the key that stands for it in the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixKey {
    /// Its length.
    pub tokens: u32,
    /// The key of its last block.
    pub key: u64,
}

/// What the engines have of a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptCache {
    /// Every rank of which anything is known, in order.
    pub ranks: Vec<RankCache>,
    /// Beginnings by which prompts are counted, shortest first, one way of naming blocks after another.
    pub prefixes: Vec<PrefixKey>,
}

/// Why nothing can be said of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLookedUp {
    /// Tokens that no engine has.
    #[error("its tokens are only estimated, and an estimate is never what an engine has cached")]
    Estimate,
    /// No engine has said anything.
    #[error("no engine of the pool has told of its cache yet")]
    NoHolder,
    /// An item or an adapter whose part in the blocks' names is not known.
    #[error("the names of its blocks cannot be computed")]
    NotComputable,
}

/// Says what of a prompt the engines have cached, as a pick would find it, but without a pick. For people, not for the request path.
pub trait PrefixLookup: Send + Sync {
    /// What each rank of these endpoints has.
    ///
    /// # Errors
    /// [`NotLookedUp`].
    fn look_up(
        &self,
        tokens: &PromptTokens,
        endpoints: &[Arc<Endpoint>],
    ) -> Result<PromptCache, NotLookedUp>;
}
