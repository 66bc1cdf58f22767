//! One engine's rule for block hashes, applied to whole prompts or block by block.

use super::{pickle, serial};
use ring::digest::{SHA256, digest};
use xxhash_rust::xxh3::xxh3_128;

/// The seed of vLLM from 0.30 on for `sha256` and `sha256_cbor`, unless `PYTHONHASHSEED` is set.
pub const VLLM_SEED: &str = "vllm-none-hash";

const SGLANG_SALT: &[u8] = b"sglang-cache-salt-v1\0";

/// vLLM's `--prefix-caching-hash-algo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256 of the pickled triple. vLLM's default.
    Sha256,
    /// SHA-256 of the triple in canonical CBOR.
    Sha256Cbor,
    /// XXH3-128 of the pickled triple.
    Xxhash,
    /// XXH3-128 of the triple in canonical CBOR.
    XxhashCbor,
}

impl Algorithm {
    /// The algorithm with this name on vLLM's command line. `builtin` is Python's own `hash` and has no place here.
    pub fn of_name(name: &str) -> Option<Algorithm> {
        Some(match name {
            "sha256" => Algorithm::Sha256,
            "sha256_cbor" | "sha256_cbor_64bit" => Algorithm::Sha256Cbor,
            "xxhash" => Algorithm::Xxhash,
            "xxhash_cbor" => Algorithm::XxhashCbor,
            _ => return None,
        })
    }

    fn hash(self, bytes: &[u8]) -> Digest {
        match self {
            Algorithm::Sha256 | Algorithm::Sha256Cbor => Digest::sha256(bytes),
            Algorithm::Xxhash | Algorithm::XxhashCbor => {
                Digest::new(&xxh3_128(bytes).to_be_bytes())
            }
        }
    }

    fn pickles(self) -> bool {
        matches!(self, Algorithm::Sha256 | Algorithm::Xxhash)
    }
}

/// How extra keys stand in the hashed triple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraForm {
    /// vLLM up to 0.30: bare values.
    Untagged,
    /// vLLM from 0.31 on: each in a tuple that begins with its kind.
    Tagged,
}

/// The hash cannot be computed outside of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotComputable {
    /// The engine draws its seed at random.
    #[error("the engine draws the seed of its block hashes at random")]
    RandomSeed,
    /// The pickled bytes depend on which Python objects are one.
    #[error("the engine's pickled extra keys depend on which of its strings are one object")]
    SharedObjects,
    /// SGLang keeps blocks of this kind apart without showing it in their hashes.
    #[error("the engine's block hashes do not cover this request's extra keys")]
    NotCovered,
    /// A block has one token at least.
    #[error("the block size is zero")]
    NoBlockSize,
}

/// A block's full digest, parent of the next one's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    bytes: [u8; 32],
    len: u8,
}

impl Digest {
    fn new(bytes: &[u8]) -> Digest {
        let mut out = [0; 32];
        let len = bytes.len().min(out.len());
        out[..len].copy_from_slice(&bytes[..len]);
        Digest {
            bytes: out,
            len: len as u8,
        }
    }

    #[cfg(test)]
    pub(super) fn for_test(bytes: &[u8]) -> Digest {
        Digest::new(bytes)
    }

    fn sha256(bytes: &[u8]) -> Digest {
        Digest::new(digest(&SHA256, bytes).as_ref())
    }

    /// Its 32 or 16 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What enters one block's hash besides its tokens. Engines take them in the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra<'a> {
    /// A LoRA adapter: on every block.
    Lora {
        /// Its name.
        name: &'a str,
        /// Where it was loaded from; hashed in the tagged form only.
        path: &'a str,
    },
    /// A multimodal item that reaches into the block.
    Item {
        /// Content hash or the client's identifier.
        identifier: &'a str,
        /// Where it begins against the start of the block, in tokens.
        offset: i64,
    },
    /// The request's cache salt: on the first block only.
    Salt(&'a str),
    /// Digest of prompt embeddings.
    Embeds(&'a [u8]),
}

impl Extra<'_> {
    pub(super) fn tag(&self) -> &'static str {
        match self {
            Extra::Lora { .. } => "lora",
            Extra::Item { .. } => "mm",
            Extra::Salt(_) => "cache_salt",
            Extra::Embeds(_) => "prompt_embeds",
        }
    }
}

/// A multimodal item in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Content hash or the client's identifier.
    pub identifier: &'a str,
    /// Its first placeholder token.
    pub start: usize,
    /// Number of its placeholder tokens.
    pub len: usize,
}

/// What enters a prompt's hashes besides its tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptExtras<'a> {
    /// Name and path of the adapter.
    pub lora: Option<(&'a str, &'a str)>,
    /// Cache salt.
    pub salt: Option<&'a str>,
    /// Multimodal items, by ascending start.
    pub items: &'a [Item<'a>],
}

/// One engine's rule.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// vLLM.
    Vllm {
        /// Hash and serialisation.
        algorithm: Algorithm,
        /// How extra keys stand in it.
        form: ExtraForm,
        /// Parent of the first block (`NONE_HASH`).
        none: Digest,
    },
    /// SGLang since hashes are chained (0.5.18 surely; 0.5.5 not).
    Sglang,
}

impl Hasher {
    /// vLLM's rule. `seed` is `PYTHONHASHSEED`; without one, engines from 0.30 on use [`VLLM_SEED`] for the SHA-256
    /// algorithms: name it, or state by `None` that the seed is random.
    pub fn vllm(
        algorithm: Algorithm,
        form: ExtraForm,
        seed: Option<&str>,
    ) -> Result<Hasher, NotComputable> {
        let seed = seed.ok_or(NotComputable::RandomSeed)?;
        let mut bytes = Vec::with_capacity(seed.len() + 16);
        if algorithm.pickles() {
            pickle::text(&mut bytes, seed).map_err(|_| NotComputable::SharedObjects)?;
        } else {
            serial::text(&mut bytes, seed);
        }
        Ok(Hasher::Vllm {
            algorithm,
            form,
            none: algorithm.hash(&bytes),
        })
    }

    /// Parent of a prompt's first block. `None` where the engine begins without one.
    pub fn root(&self, salt: Option<&str>) -> Option<Digest> {
        match self {
            Hasher::Vllm { none, .. } => Some(*none),
            Hasher::Sglang => salt.map(|salt| {
                let mut bytes = SGLANG_SALT.to_vec();
                bytes.extend(salt.as_bytes());
                Digest::sha256(&bytes)
            }),
        }
    }

    /// Digest of a full block after `parent`. `scratch` is working memory.
    pub fn block(
        &self,
        parent: Option<&Digest>,
        tokens: &[u32],
        extras: &[Extra<'_>],
        scratch: &mut Vec<u8>,
    ) -> Result<Digest, NotComputable> {
        scratch.clear();
        match self {
            Hasher::Vllm {
                algorithm,
                form,
                none,
            } => {
                let parent = parent.unwrap_or(none).as_bytes();
                if algorithm.pickles() {
                    pickle::block(scratch, parent, tokens, extras, *form)
                        .map_err(|_| NotComputable::SharedObjects)?;
                } else {
                    serial::block(scratch, parent, tokens, extras, *form);
                }
                Ok(algorithm.hash(scratch))
            }
            Hasher::Sglang => {
                // The salt is in the root.
                if extras.iter().any(|extra| !matches!(extra, Extra::Salt(_))) {
                    return Err(NotComputable::NotCovered);
                }
                if let Some(parent) = parent {
                    scratch.extend(parent.as_bytes());
                }
                for token in tokens {
                    scratch.extend(token.to_le_bytes());
                }
                Ok(Digest::sha256(scratch))
            }
        }
    }

    /// The 64 bits by which events name the block: vLLM's last eight bytes, SGLang's first.
    pub fn key(&self, digest: &Digest) -> u64 {
        let bytes = digest.as_bytes();
        let part = match self {
            Hasher::Vllm { .. } => bytes.last_chunk::<8>(),
            Hasher::Sglang => bytes.first_chunk::<8>(),
        };
        part.map_or(0, |part| u64::from_be_bytes(*part))
    }

    /// Appends the keys of all full blocks of a prompt to `keys`, none on error.
    pub fn prompt(
        &self,
        tokens: &[u32],
        block_size: usize,
        extras: &PromptExtras<'_>,
        keys: &mut Vec<u64>,
    ) -> Result<(), NotComputable> {
        self.prompt_after(
            (0, self.root(extras.salt)),
            tokens,
            block_size,
            extras,
            keys,
        )
        .map(|_| ())
    }

    /// The same for what follows the first blocks of a prompt, whose number and last digest are given. `tokens` is the whole prompt.
    /// Answers the digest of its last full block.
    pub fn prompt_after(
        &self,
        (done, mut parent): (usize, Option<Digest>),
        tokens: &[u32],
        block_size: usize,
        extras: &PromptExtras<'_>,
        keys: &mut Vec<u64>,
    ) -> Result<Option<Digest>, NotComputable> {
        if block_size == 0 {
            return Err(NotComputable::NoBlockSize);
        }
        let before = keys.len();
        let (mut scratch, mut of_block) = (Vec::new(), Vec::new());
        // Items end in ascending order too: those before `first` are behind.
        let mut first = 0;
        for (at, block) in tokens.chunks_exact(block_size).enumerate().skip(done) {
            let (start, end) = (at * block_size, (at + 1) * block_size);
            of_block.clear();
            if let Some((name, path)) = extras.lora {
                of_block.push(Extra::Lora { name, path });
            }
            while extras
                .items
                .get(first)
                .is_some_and(|item| item.start.saturating_add(item.len) <= start)
            {
                first += 1;
            }
            let here = extras.items.get(first..).unwrap_or_default();
            for item in here.iter().take_while(|item| item.start < end) {
                of_block.push(Extra::Item {
                    identifier: item.identifier,
                    offset: item.start as i64 - start as i64,
                });
            }
            if let (0, Some(salt)) = (at, extras.salt) {
                of_block.push(Extra::Salt(salt));
            }
            match self.block(parent.as_ref(), block, &of_block, &mut scratch) {
                Ok(digest) => {
                    keys.push(self.key(&digest));
                    parent = Some(digest);
                }
                Err(error) => {
                    keys.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(parent)
    }
}
