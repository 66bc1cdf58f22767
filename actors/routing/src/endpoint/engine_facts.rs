//! What an engine says of itself that changes rarely: adapters and the size of its KV cache.

use serde::{Deserialize, Serialize};

/// LoRA adapters on an engine (vLLM's `vllm:lora_requests_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterLoad {
    /// Adapters with running requests, sorted.
    pub running: Vec<String>,
    /// Adapters with waiting requests only, sorted.
    pub waiting: Vec<String>,
    /// How many adapters fit at the same time; 0: not said.
    pub max: u32,
}

/// Size of an engine's KV cache (vLLM's `vllm:cache_config_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheShape {
    /// Tokens in a block; not 0.
    pub block_tokens: u32,
    /// Number of blocks; 0: not said.
    pub blocks: u32,
}

impl CacheShape {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.block_tokens) << 32 | u64::from(self.blocks)
    }

    pub(super) fn unpack(packed: u64) -> Option<Self> {
        let shape = Self {
            block_tokens: u32::try_from(packed >> 32).unwrap_or(u32::MAX),
            blocks: packed as u32,
        };
        (shape.block_tokens > 0).then_some(shape)
    }
}
