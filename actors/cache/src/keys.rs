//! The keys by which blocks are known to the index, made from tokens or from an engine's hashes so that both give the same.
//!
//! Where a router can compute an engine's own hashes, a key is the engine's 64-bit hash, mixed with what tells its space apart: events
//! need no tokens then, and a new owner can go on where the old one stopped. Where it cannot (the engine draws its seed at
//! random, or hashes in a way that is not known), a key is a hash of our own over the chain of tokens, and the owner of the
//! engine's endpoint learns which of the engine's hashes it stands for from the token ids in its events.
//!
//! Only the main attention group of a model has keys: a prefix counts as cached where all its layers' full attention is.

use crate::hash::{
    Algorithm, Digest, ExtraForm, Hasher, Item, NotComputable, PromptExtras, VLLM_SEED,
};
use crate::index::Malformed;
use crate::index::wire::{Reader, put_varint};
use quorate_routing::tokens::{Origin, PromptTokens};
use std::hash::Hash;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Longest name of a model and longest seed, in bytes: more is refused.
const MOST_TEXT: usize = 1024;
/// Most tokens in a block.
const MOST_BLOCK: u32 = 1 << 20;

/// How an engine names its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// As vLLM does.
    Vllm {
        /// Hash and serialisation.
        algorithm: Algorithm,
        /// How extra keys stand in it.
        form: ExtraForm,
        /// `PYTHONHASHSEED`, or what the engine takes without it.
        seed: Arc<str>,
    },
    /// As SGLang does.
    Sglang,
    /// Not computable: a hash of our own.
    Own,
}

impl Scheme {
    /// What an engine of these settings does: `algorithm` is vLLM's `--prefix-caching-hash-algo` or `sglang`. Without a seed, vLLM's SHA-256
    /// algorithms are taken to begin with the fixed one of 0.30 and later; the others draw one at random.
    #[must_use]
    pub fn of(algorithm: Option<&str>, seed: Option<&str>, form: ExtraForm) -> Self {
        let Some(name) = algorithm else {
            return Self::Own;
        };
        if name == "sglang" {
            return Self::Sglang;
        }
        let Some(algorithm) = Algorithm::of_name(name) else {
            return Self::Own;
        };
        let seed = match (seed, algorithm) {
            (Some(seed), _) => seed,
            (None, Algorithm::Sha256 | Algorithm::Sha256Cbor) => VLLM_SEED,
            (None, Algorithm::Xxhash | Algorithm::XxhashCbor) => return Self::Own,
        };
        Self::Vllm {
            algorithm,
            form,
            seed: seed.into(),
        }
    }

    fn number(&self) -> u8 {
        match self {
            Self::Own => 0,
            Self::Sglang => 1,
            Self::Vllm {
                algorithm, form, ..
            } => {
                let algorithm = match algorithm {
                    Algorithm::Sha256 => 2,
                    Algorithm::Sha256Cbor => 3,
                    Algorithm::Xxhash => 4,
                    Algorithm::XxhashCbor => 5,
                };
                let tagged = matches!(form, ExtraForm::Tagged);
                algorithm | u8::from(tagged) << 4
            }
        }
    }

    fn of_number(number: u8, seed: &str) -> Option<Self> {
        let algorithm = match number & 0xf {
            0 | 1 if number > 1 || !seed.is_empty() => return None,
            0 => return Some(Self::Own),
            1 => return Some(Self::Sglang),
            2 => Algorithm::Sha256,
            3 => Algorithm::Sha256Cbor,
            4 => Algorithm::Xxhash,
            5 => Algorithm::XxhashCbor,
            _ => return None,
        };
        let form = match number >> 4 {
            0 => ExtraForm::Untagged,
            1 => ExtraForm::Tagged,
            _ => return None,
        };
        Some(Self::Vllm {
            algorithm,
            form,
            seed: seed.into(),
        })
    }
}

/// See the module's documentation. Cheap to clone; equal where it gives equal keys.
#[derive(Clone, Debug)]
pub struct KeySpace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: Box<str>,
    block_tokens: u32,
    scheme: Scheme,
    hasher: Option<Hasher>,
    encoded: Box<[u8]>,
    /// Hash of the encoding: what tells this space's keys from another's.
    mix: u64,
}

impl PartialEq for KeySpace {
    fn eq(&self, other: &Self) -> bool {
        self.inner.encoded == other.inner.encoded
    }
}

impl Eq for KeySpace {}

impl Hash for KeySpace {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.inner.mix);
    }
}

impl KeySpace {
    /// The space of a base model's blocks of `block_tokens` tokens.
    ///
    /// # Errors
    /// No block has no tokens or more than a million; a name or a seed is too long; a seed that cannot be pickled.
    pub fn new(model: &str, block_tokens: u32, scheme: Scheme) -> Result<Self, NotComputable> {
        if !(1..=MOST_BLOCK).contains(&block_tokens) || model.len() > MOST_TEXT {
            return Err(NotComputable::NoBlockSize);
        }
        let (hasher, seed) = match &scheme {
            Scheme::Own => (None, ""),
            Scheme::Sglang => (Some(Hasher::Sglang), ""),
            Scheme::Vllm { seed, .. } if seed.len() > MOST_TEXT => {
                return Err(NotComputable::RandomSeed);
            }
            Scheme::Vllm {
                algorithm,
                form,
                seed,
            } => (
                Some(Hasher::vllm(*algorithm, *form, Some(seed))?),
                seed.as_ref(),
            ),
        };
        let mut encoded = vec![scheme.number()];
        put_varint(&mut encoded, u64::from(block_tokens));
        for text in [model, seed] {
            put_varint(&mut encoded, text.len() as u64);
            encoded.extend_from_slice(text.as_bytes());
        }
        let inner = Inner {
            model: model.into(),
            block_tokens,
            hasher,
            mix: xxh3_64(&encoded),
            encoded: encoded.into(),
            scheme,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Its form in the log: `scheme u8 | block tokens v | model's length v | model | seed's length v | seed` (v: LEB128).
    #[must_use]
    pub fn encoded(&self) -> &[u8] {
        &self.inner.encoded
    }

    /// The space that was encoded.
    ///
    /// # Errors
    /// The bytes are no space.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let number = reader.byte()?;
        let block_tokens = u32::try_from(reader.varint()?)
            .map_err(|_| Malformed::of("a block has too many tokens"))?;
        let mut text = || {
            let length = reader.count(1)?;
            std::str::from_utf8(reader.bytes(length)?)
                .map_err(|_| Malformed::of("the text of a key space is not UTF-8"))
        };
        let (model, seed) = (text()?, text()?);
        if !reader.is_empty() {
            return Err(Malformed::of("bytes follow a key space"));
        }
        let scheme = Scheme::of_number(number, seed)
            .ok_or(Malformed::of("a scheme of keys is not known"))?;
        Self::new(model, block_tokens, scheme).map_err(|_| Malformed::of("a key space cannot be"))
    }

    /// The base model.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.inner.model
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block_tokens(&self) -> u32 {
        self.inner.block_tokens
    }

    /// How the engine names its blocks.
    #[must_use]
    pub fn scheme(&self) -> &Scheme {
        &self.inner.scheme
    }

    /// The engine's rule, if it can be computed: [`KeySpace::key_of_hash`] has a meaning then.
    #[must_use]
    pub fn hasher(&self) -> Option<&Hasher> {
        self.inner.hasher.as_ref()
    }

    /// The key of a block that the engine named.
    #[must_use]
    pub fn key_of_hash(&self, engine_hash: u64) -> u64 {
        engine_hash ^ self.inner.mix
    }

    /// Where a chain of our own begins: before the first block of prompts of this adapter and salt (empty: none).
    #[must_use]
    pub fn own_root(&self, lora: &str, salt: &str) -> u64 {
        let mut hash = Xxh3::with_seed(self.inner.mix);
        for text in [lora, salt] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.digest()
    }

    /// The key of our own for the block after `parent`, with the items that are no text and reach into it: each by its identifier and
    /// where it begins, in tokens, against the block's start.
    pub fn own_key<'a>(
        &self,
        parent: u64,
        tokens: &[u32],
        items: impl IntoIterator<Item = (&'a str, i64)>,
    ) -> u64 {
        let mut hash = Xxh3::with_seed(parent);
        hash.update(bytemuck::cast_slice(tokens));
        for (identifier, offset) in items {
            hash.update(&(identifier.len() as u64).to_le_bytes());
            hash.update(identifier.as_bytes());
            hash.update(&offset.to_le_bytes());
        }
        hash.digest()
    }

    /// Where an engine loaded an adapter from is part of the names of the adapter's blocks.
    #[must_use]
    pub fn hashes_lora_path(&self) -> bool {
        let form = match &self.inner.scheme {
            Scheme::Vllm { form, .. } => *form,
            Scheme::Sglang | Scheme::Own => return false,
        };
        form == ExtraForm::Tagged
    }

    /// Appends the keys of a prompt's whole blocks, at most `max_blocks`, from the first on. None for tokens that are an estimate; only
    /// those before the first guessed item where the tokens are not exact. `lora_path` is where the engine says that it loaded the
    /// prompt's adapter from; it is looked at where [`KeySpace::hashes_lora_path`].
    ///
    /// # Errors
    /// The engine's hashes do not cover what the prompt has, or not in a way that can be computed. Nothing was appended then.
    pub fn keys(
        &self,
        tokens: &PromptTokens,
        lora_path: Option<&str>,
        max_blocks: usize,
        keys: &mut Vec<u64>,
    ) -> Result<(), NotComputable> {
        let blocks = self.blocks_of(tokens, lora_path, max_blocks)?;
        let mut progress = self.beginning(tokens);
        self.go_on(tokens, lora_path, &mut progress, blocks, keys)
    }

    /// How many of a prompt's blocks have keys that can be known, at most `max_blocks`; see [`Self::keys`].
    ///
    /// # Errors
    /// As for [`Self::keys`], as far as that can be told beforehand.
    pub fn blocks_of(
        &self,
        tokens: &PromptTokens,
        lora_path: Option<&str>,
        max_blocks: usize,
    ) -> Result<usize, NotComputable> {
        if tokens.origin == Origin::Estimate {
            return Ok(0);
        }
        if tokens.lora.is_some() && lora_path.is_none() && self.hashes_lora_path() {
            // Only the engine knows the adapter's path.
            return Err(NotComputable::NotCovered);
        }
        let mut end = tokens.ids.len();
        if !tokens.exact {
            end = end.min(tokens.media.first().map_or(0, |span| span.start));
        }
        let size = self.inner.block_tokens.max(1) as usize;
        Ok((end / size).min(max_blocks))
    }

    /// Before a prompt's first block.
    #[must_use]
    pub fn beginning(&self, tokens: &PromptTokens) -> Progress {
        let after = match &self.inner.hasher {
            Some(hasher) => After::Digest(hasher.root(tokens.salt.as_deref())),
            None => {
                let text = |text: &Option<Arc<str>>| text.clone().unwrap_or_default();
                After::Key(self.own_root(&text(&tokens.lora), &text(&tokens.salt)))
            }
        };
        Progress { blocks: 0, after }
    }

    /// Appends the keys of further blocks of a prompt, until `blocks` of it are done: no more than [`Self::blocks_of`] says.
    ///
    /// # Errors
    /// As for [`Self::keys`]. Nothing was appended then.
    pub fn go_on(
        &self,
        tokens: &PromptTokens,
        lora_path: Option<&str>,
        progress: &mut Progress,
        blocks: usize,
        keys: &mut Vec<u64>,
    ) -> Result<(), NotComputable> {
        let size = self.inner.block_tokens as usize;
        let ids = tokens.ids.get(..blocks.saturating_mul(size));
        let ids = ids.unwrap_or_default();
        let from = keys.len();
        match (&self.inner.hasher, &mut progress.after) {
            (Some(hasher), After::Digest(digest)) => {
                let (lora, salt) = (tokens.lora.as_deref(), tokens.salt.as_deref());
                let items: Vec<Item<'_>> = tokens
                    .media
                    .iter()
                    .map(|span| Item {
                        identifier: &span.identifier,
                        start: span.start,
                        len: span.len,
                    })
                    .collect();
                let extras = PromptExtras {
                    lora: lora.map(|name| (name, lora_path.unwrap_or_default())),
                    salt,
                    items: &items,
                };
                let done = (progress.blocks, *digest);
                *digest = hasher.prompt_after(done, ids, size, &extras, keys)?;
                for key in keys.iter_mut().skip(from) {
                    *key = self.key_of_hash(*key);
                }
            }
            (None, After::Key(parent)) => {
                self.own_keys((progress.blocks, parent), tokens, ids, keys);
            }
            // The progress of another space, whose blocks have nothing to do with these.
            _ => return Err(NotComputable::NotCovered),
        }
        progress.blocks = blocks;
        Ok(())
    }

    fn own_keys(
        &self,
        (done, parent): (usize, &mut u64),
        tokens: &PromptTokens,
        ids: &[u32],
        keys: &mut Vec<u64>,
    ) {
        let size = self.inner.block_tokens as usize;
        for (at, block) in ids.chunks_exact(size).enumerate().skip(done) {
            let (start, end) = (at * size, (at + 1) * size);
            let items = tokens
                .media
                .iter()
                .filter(|span| span.start < end && span.start.saturating_add(span.len) > start)
                .map(|span| (span.identifier.as_str(), span.start as i64 - start as i64));
            *parent = self.own_key(*parent, block, items);
            keys.push(*parent);
        }
    }
}

/// How far the keys of a prompt are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    blocks: usize,
    after: After,
}

/// What the next block's key is made from besides its own tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Digest(Option<Digest>),
    Key(u64),
}

impl Progress {
    /// Blocks done.
    #[must_use]
    pub const fn blocks(&self) -> usize {
        self.blocks
    }
}

#[cfg(test)]
mod tests;
