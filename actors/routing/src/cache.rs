//! What a pool's scheduling needs to know of its engines' caches: which events to follow, and how their blocks are named.

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
}
