//! Keys of prompts that came before, or began like this one. Hashing a prompt's blocks as an engine does costs some hundred nanoseconds a
//! block; so the keys are kept in pieces, each known by one hash over its tokens and all before it. A prompt that came before costs a
//! look for each piece, the next turn of a conversation hashes its new blocks only, and what prompts begin with is kept once.

use crate::keys::{KeySpace, Progress};
use parking_lot::Mutex;
use quorate_routing::tokens::PromptTokens;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

const SHARDS: usize = 16;
/// Blocks of a piece. The last one of a prompt may have fewer.
const PIECE: usize = 32;
/// Words that a piece takes besides its keys, about.
const OVERHEAD: usize = 16;

/// Keys of some blocks, and how to go on behind them.
#[derive(Clone)]
struct Piece {
    keys: Arc<[u64]>,
    after: Progress,
}

/// What a piece is known by: it is a hash already.
#[derive(Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, name: u128) {
        // The lower bits choose the shard.
        self.0 = (name >> 64) as u64;
    }
}

type Pieces = HashMap<u128, Piece, BuildHasherDefault<NameHasher>>;

/// The younger generation, and the one before it.
#[derive(Default)]
struct Shard {
    young: Pieces,
    old: Pieces,
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

impl KeyCache {
    pub fn new(bytes: usize) -> Self {
        Self {
            shards: Default::default(),
            words: bytes / 8 / 2 / SHARDS,
            seed: RandomState::new().hash_one(0),
        }
    }

    /// Appends the keys of a prompt's blocks, at most `most`; `hash` is one of the space, `lora_path` as for
    /// [`KeySpace::keys`]. False, and nothing appended, if they cannot be
    /// computed.
    pub fn keys(
        &self,
        (space, hash): (&KeySpace, u64),
        tokens: &PromptTokens,
        lora_path: Option<&str>,
        most: usize,
        keys: &mut Vec<u64>,
    ) -> bool {
        let Ok(blocks) = space.blocks_of(tokens, lora_path, most) else {
            return false;
        };
        let from = keys.len();
        let size = space.block_tokens() as usize;
        let mut name = self.beginning(hash, tokens, lora_path);
        let mut progress = None;
        let mut done = 0;
        while done < blocks {
            let end = (done + PIECE).min(blocks);
            name = next(name, tokens, (done * size, end * size));
            if let Some(after) = self.get(name, end, keys) {
                progress = Some(after);
            } else {
                let mut now = progress.unwrap_or_else(|| space.beginning(tokens));
                let before = keys.len();
                if space.go_on(tokens, lora_path, &mut now, end, keys).is_err() {
                    keys.truncate(from);
                    return false;
                }
                self.put(name, keys.get(before..).unwrap_or_default(), now);
                progress = Some(now);
            }
            done = end;
        }
        true
    }

    /// What prompts are known by before their first block.
    fn beginning(&self, space: u64, tokens: &PromptTokens, lora_path: Option<&str>) -> u128 {
        let mut hasher = Xxh3::with_seed(self.seed ^ space);
        for text in [tokens.lora.as_deref(), tokens.salt.as_deref(), lora_path] {
            // Each length first, so that nothing can pass for something else.
            match text {
                Some(text) => {
                    hasher.update(&(text.len() as u64).to_le_bytes());
                    hasher.update(text.as_bytes());
                }
                None => hasher.update(&u64::MAX.to_le_bytes()),
            }
        }
        hasher.digest128()
    }

    /// Puts the keys up to the block `end` behind `out`, if they are known.
    fn get(&self, name: u128, end: usize, out: &mut Vec<u64>) -> Option<Progress> {
        let mut shard = self.shards.get(name as usize % SHARDS)?.lock();
        if let Some(piece) = shard.young.get(&name).filter(|p| p.after.blocks() == end) {
            out.extend_from_slice(&piece.keys);
            return Some(piece.after);
        }
        let piece = shard.old.remove(&name)?;
        let after = piece.after;
        if after.blocks() != end {
            return None;
        }
        out.extend_from_slice(&piece.keys);
        self.add(&mut shard, name, piece);
        Some(after)
    }

    fn put(&self, name: u128, keys: &[u64], after: Progress) {
        if let Some(shard) = self.shards.get(name as usize % SHARDS) {
            let keys = keys.into();
            self.add(&mut shard.lock(), name, Piece { keys, after });
        }
    }

    fn add(&self, shard: &mut Shard, name: u128, piece: Piece) {
        let words = |piece: &Piece| piece.keys.len() + OVERHEAD;
        if shard.words + words(&piece) > self.words {
            shard.old = std::mem::take(&mut shard.young);
            shard.words = 0;
        }
        shard.words += words(&piece);
        if let Some(before) = shard.young.insert(name, piece) {
            shard.words -= words(&before);
        }
    }
}

/// What the piece with these tokens behind the one called `name` is known by.
fn next(name: u128, tokens: &PromptTokens, (start, end): (usize, usize)) -> u128 {
    let ids = tokens.ids.get(start..end).unwrap_or_default();
    let link = |name: u128, bytes: &[u8]| {
        name.rotate_left(1) ^ xxh3_128_with_seed(bytes, name as u64 ^ (name >> 64) as u64)
    };
    let mut name = link(name, bytemuck::cast_slice(ids));
    for span in &tokens.media {
        if span.start < end && span.start.saturating_add(span.len) > start {
            name = link(name, span.identifier.as_bytes());
            let place = [span.start as u64, span.len as u64];
            name = link(name, bytemuck::cast_slice(&place));
        }
    }
    name
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
    use crate::hash::ExtraForm;
    use crate::keys::Scheme;
    use proptest::prelude::*;
    use quorate_routing::request::MediaKind;
    use quorate_routing::tokens::{MediaSpan, Origin};

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

    fn spaces() -> Vec<KeySpace> {
        let vllm = |algorithm, form| Scheme::of(Some(algorithm), Some("0"), form);
        let schemes = [
            Scheme::Own,
            Scheme::Sglang,
            vllm("sha256_cbor", ExtraForm::Tagged),
            vllm("sha256", ExtraForm::Untagged),
        ];
        let space = |scheme| KeySpace::new("m", 2, scheme).unwrap();
        schemes.into_iter().map(space).collect()
    }

    /// Prompts of few kinds of tokens that begin alike, some with an item, an adapter, or a salt.
    fn prompt() -> impl Strategy<Value = PromptTokens> {
        let text = || prop::option::weighted(0.2, prop::sample::select(vec!["", "a", "b"]));
        let item = prop::option::weighted(0.3, (0usize..120, 1usize..20, "[ab]"));
        let lengths = prop_oneof![0usize..9, 60usize..70, 100usize..260];
        let changed = prop::option::of(any::<prop::sample::Index>());
        (lengths, changed, text(), text(), item, any::<bool>()).prop_map(
            |(len, changed, lora, salt, item, exact)| {
                let mut ids: Vec<u32> = (0..len as u32).collect();
                if let (Some(at), true) = (changed, len > 0) {
                    ids[at.index(len)] = 7000;
                }
                let mut prompt = tokens(&ids, lora, salt);
                prompt.exact = exact;
                if let Some((start, len, identifier)) = item {
                    prompt.media.push(MediaSpan {
                        start,
                        len,
                        identifier,
                        kind: MediaKind::Image,
                    });
                }
                prompt
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_what_would_be_made(
            prompts in prop::collection::vec((prompt(), 0usize..140), 1..20), small: bool
        ) {
            let spaces = spaces();
            // Sometimes so small that most is forgotten again.
            let cache = KeyCache::new(if small { SHARDS * 2 * 8 * 100 } else { 1 << 20 });
            for (prompt, most) in prompts.iter().chain(&prompts) {
                for space in &spaces {
                    let (mut made, mut remembered) = (vec![1], vec![1]);
                    let could = space.keys(prompt, Some("/a"), *most, &mut made).is_ok();
                    let of = (space, hash_of(space));
                    prop_assert_eq!(cache.keys(of, prompt, Some("/a"), *most, &mut remembered), could);
                    prop_assert_eq!(&remembered, &made);
                }
            }
        }
    }

    #[test]
    fn all_that_blocks_are_known_by_counts() {
        let cache = KeyCache::new(1 << 20);
        let item = |identifier: &str, start| {
            let mut prompt = tokens(&[1, 2, 3, 4], None, None);
            prompt.media.push(MediaSpan {
                start,
                len: 1,
                identifier: identifier.to_owned(),
                kind: MediaKind::Image,
            });
            prompt
        };
        let all = [
            (1, tokens(&[1, 2, 3, 4], None, None)),
            (2, tokens(&[1, 2, 3, 4], None, None)),
            (1, tokens(&[1, 2, 3, 5], None, None)),
            (1, tokens(&[1, 2, 3, 4], Some("a"), None)),
            (1, tokens(&[1, 2, 3, 4], None, Some("a"))),
            (1, tokens(&[1, 2, 3, 4], Some(""), None)),
            (1, item("a", 0)),
            (1, item("b", 0)),
            (1, item("a", 1)),
        ];
        let name = |(space, tokens): &(u64, PromptTokens)| {
            let first = next(cache.beginning(*space, tokens, None), tokens, (0, 2));
            next(first, tokens, (2, 4))
        };
        let names: Vec<u128> = all.iter().map(name).collect();
        for (i, a) in names.iter().enumerate() {
            for (j, b) in names.iter().enumerate() {
                assert_eq!(i == j, a == b, "{i} {j}");
            }
        }
        let adapter = tokens(&[1, 2, 3, 4], Some("a"), None);
        let loaded = [None, Some("/a"), Some("/b")].map(|path| cache.beginning(1, &adapter, path));
        assert!(loaded[0] != loaded[1] && loaded[1] != loaded[2] && loaded[0] != loaded[2]);
        // Items behind a piece are no part of it.
        let (with, without) = (item("a", 3), tokens(&[1, 2, 3, 4], None, None));
        let first = |tokens| next(cache.beginning(1, tokens, None), tokens, (0, 2));
        assert_eq!(first(&with), first(&without));
    }

    #[test]
    fn bounded_and_what_is_used_stays() {
        let cache = KeyCache::new(SHARDS * 2 * 8 * 200);
        let space = &spaces()[2];
        let prompt = |n: u32| tokens(&[n, 1, 2, 3, 4, 5], None, None);
        let mut out = Vec::new();
        for n in 1..5_000 {
            for n in [0, n] {
                assert!(cache.keys((space, 1), &prompt(n), None, 9, &mut out));
            }
            let first = prompt(0);
            let name = next(cache.beginning(1, &first, None), &first, (0, 6));
            assert!(cache.get(name, 3, &mut out).is_some(), "{n}");
            assert!(cache.get(name, 2, &mut out).is_none(), "of other blocks");
            out.clear();
        }
        let held = |of: &Mutex<Shard>| {
            let shard = of.lock();
            let pieces = shard.young.values().chain(shard.old.values());
            pieces.map(|p| p.keys.len() + OVERHEAD).sum::<usize>()
        };
        assert!(cache.shards.iter().map(held).sum::<usize>() <= SHARDS * 2 * 200);
    }
}
