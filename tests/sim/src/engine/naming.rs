//! The names that an engine publishes for a sequence's blocks, and the tokens that go with them.
//!
//! The pool finds blocks by its own hashes, whatever is published: engines differ in what their published hashes cover, and
//! a simulator with and one without events must answer alike.

use quorate_cache::hash::{Digest, Extra, Hasher};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Whose prompt it is, besides its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Number, name and path of the adapter.
    pub lora: Option<(u32, String, String)>,
    /// Cache salt.
    pub salt: Option<String>,
    /// The conversation, which is told and enters no hash.
    pub session: Option<String>,
}

/// How names are made.
#[derive(Clone, Debug)]
pub enum Scheme {
    /// As the engine does, from digest to digest.
    Chained(Arc<Hasher>),
    /// A page's tokens only, wherever it stands (SGLang up to 0.5.17).
    PageOnly,
    /// Numbers of no meaning outside, one from another (TensorRT-LLM).
    Opaque,
}

/// The names of one sequence's blocks so far.
#[derive(Clone, Debug)]
pub struct Naming {
    scheme: Scheme,
    block_size: u32,
    identity: Arc<Identity>,
    parent: Option<Digest>,
    names: Vec<u64>,
    tokens: Vec<u32>,
}

impl Naming {
    /// Names all full blocks of `tokens`.
    pub fn new(scheme: Scheme, block_size: u32, identity: Identity, tokens: &[u32]) -> Self {
        let parent = match &scheme {
            Scheme::Chained(hasher) => hasher.root(identity.salt.as_deref()),
            Scheme::PageOnly | Scheme::Opaque => None,
        };
        let mut naming = Naming {
            scheme,
            block_size: block_size.max(1),
            identity: Arc::new(identity),
            parent,
            names: Vec::with_capacity(tokens.len() / block_size.max(1) as usize),
            tokens: tokens.to_vec(),
        };
        naming.catch_up();
        naming
    }

    /// Whose they are.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Name of a full block.
    pub fn name(&self, block: usize) -> Option<u64> {
        self.names.get(block).copied()
    }

    /// Tokens of a full block.
    pub fn tokens(&self, block: usize) -> &[u32] {
        let size = self.block_size as usize;
        self.tokens
            .get(block * size..(block + 1) * size)
            .unwrap_or_default()
    }

    /// One more token.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.catch_up();
    }

    fn catch_up(&mut self) {
        let size = self.block_size as usize;
        let mut scratch = Vec::new();
        while let Some(block) = self
            .tokens
            .get(self.names.len() * size..(self.names.len() + 1) * size)
        {
            let before = self.names.last().copied();
            let name = match &self.scheme {
                Scheme::Chained(hasher) => {
                    let mut extras = Vec::new();
                    // SGLang's hashes do not cover adapters.
                    if let (Some((_, name, path)), Hasher::Vllm { .. }) =
                        (&self.identity.lora, hasher.as_ref())
                    {
                        extras.push(Extra::Lora { name, path });
                    }
                    if let (None, Some(salt)) = (before, &self.identity.salt) {
                        extras.push(Extra::Salt(salt));
                    }
                    match hasher.block(self.parent.as_ref(), block, &extras, &mut scratch) {
                        Ok(digest) => {
                            self.parent = Some(digest);
                            hasher.key(&digest)
                        }
                        // An adapter named as its path: nobody outside could compute the engine's hash either.
                        Err(_) => opaque(before, block, &self.identity),
                    }
                }
                Scheme::PageOnly => opaque(None, block, &Identity::default()),
                Scheme::Opaque => opaque(before, block, &self.identity),
            };
            self.names.push(name);
        }
    }
}

fn opaque(parent: Option<u64>, tokens: &[u32], identity: &Identity) -> u64 {
    let seed = parent.unwrap_or_else(|| {
        let lora = identity.lora.as_ref().map_or(0, |(index, ..)| index + 1);
        let salt = identity.salt.as_deref().unwrap_or_default();
        xxh3_64_with_seed(salt.as_bytes(), u64::from(lora))
    });
    let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
    xxh3_64_with_seed(&bytes, seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_tokens_are_named_as_a_prompt_would_be() {
        let all: Vec<u32> = (0..50).collect();
        for scheme in [
            Scheme::Chained(Arc::new(Hasher::Sglang)),
            Scheme::PageOnly,
            Scheme::Opaque,
        ] {
            let mut grown = Naming::new(scheme.clone(), 16, Identity::default(), &all[..20]);
            all[20..].iter().for_each(|token| grown.push(*token));
            let whole = Naming::new(scheme, 16, Identity::default(), &all);
            assert_eq!((&grown.names, grown.names.len()), (&whole.names, 3));
            assert_eq!(grown.tokens(2), &all[32..48]);
            assert!(grown.tokens(3).is_empty());
        }
    }

    #[test]
    fn the_first_pages_have_the_engine_s_own_hashes() {
        let tokens: Vec<u32> = (0..32).collect();
        let sglang = Scheme::Chained(Arc::new(Hasher::Sglang));
        let naming = Naming::new(sglang, 16, Identity::default(), &tokens);
        assert_eq!(naming.names, [6738917275443968386, 5080553031686747138]);
    }
}
