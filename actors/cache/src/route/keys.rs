//! Keys of prompts that came before. Hashing a prompt's blocks as an engine does costs some hundred nanoseconds a block; that it is
//! the same prompt again is known from one hash over its tokens.

use crate::keys::KeySpace;
use parking_lot::Mutex;
use quorate_routing::tokens::PromptTokens;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

const SHARDS: usize = 16;

/// The younger generation, and the one before it.
#[derive(Default)]
struct Shard {
    young: HashMap<u128, Arc<[u64]>>,
    old: HashMap<u128, Arc<[u64]>>,
    /// Words in the younger one.
    words: usize,
}

/// See the module's documentation. Keeps what was used last, within a number of bytes.
pub(super) struct KeyCache {
    shards: [Mutex<Shard>; SHARDS],
    /// Words of a generation of a shard.
    words: usize,
    seed: u64,
}

/// What a prompt with its keys in one space is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known(u128);

impl KeyCache {
    pub fn new(bytes: usize) -> Self {
        Self {
            shards: Default::default(),
            words: bytes / 8 / 2 / SHARDS,
            seed: RandomState::new().hash_one(0),
        }
    }

    /// `space` is a hash of the space, `lora_path` what enters the prompt's keys besides the tokens.
    pub fn known(&self, space: u64, lora_path: Option<&str>, tokens: &PromptTokens) -> Known {
        let mut hasher = Xxh3::with_seed(self.seed ^ space);
        hasher.update(bytemuck::cast_slice(&tokens.ids));
        // Each length first, so that nothing can pass for something else.
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(&[u8::from(tokens.exact)]);
        let (lora, salt) = (tokens.lora.as_deref(), tokens.salt.as_deref());
        for text in [lora, salt, lora_path] {
            match text {
                Some(text) => add(text.as_bytes()),
                None => add(b"\xff"),
            }
        }
        for span in &tokens.media {
            add(span.identifier.as_bytes());
            add(&(span.start as u64).to_le_bytes());
            add(&(span.len as u64).to_le_bytes());
        }
        Known(hasher.digest128())
    }

    /// Puts the keys behind `out`, if they are known.
    pub fn get(&self, known: Known, out: &mut Vec<u64>) -> bool {
        let Some(shard) = self.shards.get(known.0 as usize % SHARDS) else {
            return false;
        };
        let mut shard = shard.lock();
        if let Some(keys) = shard.young.get(&known.0) {
            out.extend_from_slice(keys);
            return true;
        }
        match shard.old.remove(&known.0) {
            Some(keys) => {
                out.extend_from_slice(&keys);
                self.add(&mut shard, known, keys);
                true
            }
            None => false,
        }
    }

    pub fn put(&self, known: Known, keys: &[u64]) {
        if keys.len() <= self.words
            && let Some(shard) = self.shards.get(known.0 as usize % SHARDS)
        {
            self.add(&mut shard.lock(), known, keys.into());
        }
    }

    fn add(&self, shard: &mut Shard, known: Known, keys: Arc<[u64]>) {
        if shard.words + keys.len() > self.words {
            shard.old = std::mem::take(&mut shard.young);
            shard.words = 0;
        }
        shard.words += keys.len();
        if let Some(before) = shard.young.insert(known.0, keys) {
            shard.words -= before.len();
        }
    }
}

/// A hash by which spaces are told apart in the cache.
pub(super) fn hash_of(space: &KeySpace) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    space.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_routing::tokens::Origin;

    fn tokens(ids: &[u32], lora: Option<&str>, salt: Option<&str>) -> PromptTokens {
        PromptTokens {
            ids: ids.into(),
            media: Vec::new(),
            lora: lora.map(Arc::from),
            salt: salt.map(Arc::from),
            origin: Origin::Local,
            exact: true,
        }
    }

    #[test]
    fn all_that_blocks_are_known_by_counts() {
        let cache = KeyCache::new(1 << 20);
        let all = [
            (1, tokens(&[1, 2, 3], None, None)),
            (2, tokens(&[1, 2, 3], None, None)),
            (1, tokens(&[1, 2], None, None)),
            (1, tokens(&[1, 2, 3], Some("a"), None)),
            (1, tokens(&[1, 2, 3], None, Some("a"))),
            (1, tokens(&[1, 2, 3], Some(""), None)),
            (
                1,
                PromptTokens {
                    exact: false,
                    ..tokens(&[1, 2, 3], None, None)
                },
            ),
        ];
        let known: Vec<Known> = all.iter().map(|(s, t)| cache.known(*s, None, t)).collect();
        for (i, a) in known.iter().enumerate() {
            for (j, b) in known.iter().enumerate() {
                assert_eq!(i == j, a == b, "{i} {j}");
            }
        }
        let adapter = tokens(&[1, 2, 3], Some("a"), None);
        let loaded = ["/a", "/b"].map(|path| cache.known(1, Some(path), &adapter));
        assert!(loaded[0] != loaded[1] && !known.contains(&loaded[0]));
    }

    #[test]
    fn bounded_and_what_is_used_stays() {
        let cache = KeyCache::new(SHARDS * 2 * 8 * 100);
        let of = |n: u32| cache.known(0, None, &tokens(&[n], None, None));
        let mut out = Vec::new();
        cache.put(of(0), &[7; 5]);
        for n in 1..5_000 {
            cache.put(of(n), &[u64::from(n); 5]);
            assert!(cache.get(of(0), &mut out), "{n}");
            out.clear();
        }
        let held = |of: &Mutex<Shard>| {
            let shard = of.lock();
            shard
                .young
                .values()
                .chain(shard.old.values())
                .map(|k| k.len())
                .sum::<usize>()
        };
        assert!(cache.shards.iter().map(held).sum::<usize>() <= SHARDS * 2 * 100);
        assert!(!cache.get(of(1), &mut out));
        cache.put(of(6_000), &[1; 101]);
        assert!(!cache.get(of(6_000), &mut out), "larger than a generation");
    }
}
