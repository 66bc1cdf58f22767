//! Block hashes as the engines compute them.
//!
//! A block's hash covers everything before it: `h[i] = H(h[i-1], tokens of block i, extra keys of block i)`. vLLM serialises
//! that triple (pickle or canonical CBOR) and hashes the bytes; SGLang hashes the parent's digest and the tokens. [`Hasher`]
//! does either, so that a prompt's blocks can be looked up before an engine has named them. Where the engine's own bytes
//! depend on what cannot be known outside of it (a random seed, shared Python objects) the answer is [`NotComputable`],
//! never a hash that is almost right.

mod hasher;
mod pickle;
mod serial;

#[cfg(test)]
mod golden;

pub use hasher::{
    Algorithm, Digest, Extra, ExtraForm, Hasher, Item, NotComputable, PromptExtras, VLLM_SEED,
};
