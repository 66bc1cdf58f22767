//! Token ids of pieces of text that were tokenized before, bounded by bytes.
//!
//! Two generations a shard: what is used moves to the young one; when that is full the old one is dropped. A piece is compared as a
//! whole, so that no two pieces are ever taken for each other.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const SHARDS: usize = 16;
/// What an entry costs beside its text and its ids.
const OVERHEAD: usize = 96;

#[derive(Debug)]
struct Piece {
    text: Box<str>,
    first: bool,
    ids: Box<[u32]>,
}

impl Piece {
    fn cost(&self) -> usize {
        self.text.len() + 4 * self.ids.len() + OVERHEAD
    }
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u64, Arc<Piece>>,
    old: HashMap<u64, Arc<Piece>>,
    young_bytes: usize,
}

/// The cache of one tokenizer.
#[derive(Debug)]
pub(super) struct Segments {
    shards: Vec<Mutex<Shard>>,
    seed: u64,
    /// Of one generation of one shard.
    bytes: usize,
}

impl Segments {
    /// A cache that holds at most about `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            seed: RandomState::new().hash_one(0),
            bytes: bytes / SHARDS / 2,
        }
    }

    fn key(&self, text: &str, first: bool) -> u64 {
        xxh3_64_with_seed(text.as_bytes(), self.seed ^ u64::from(first))
    }

    fn find(&self, text: &str, first: bool) -> Option<Arc<Piece>> {
        let key = self.key(text, first);
        let mut shard = self.shards.get(key as usize % SHARDS)?.lock();
        let piece = match shard.young.get(&key) {
            Some(piece) => Arc::clone(piece),
            None => {
                let piece = shard.old.remove(&key)?;
                self.put(&mut shard, key, Arc::clone(&piece));
                piece
            }
        };
        drop(shard);
        (piece.first == first && *piece.text == *text).then_some(piece)
    }

    fn put(&self, shard: &mut Shard, key: u64, piece: Arc<Piece>) {
        let cost = piece.cost();
        if shard.young_bytes + cost > self.bytes {
            shard.old = std::mem::take(&mut shard.young);
            shard.young_bytes = 0;
        }
        shard.young_bytes += cost;
        if let Some(before) = shard.young.insert(key, piece) {
            shard.young_bytes -= before.cost();
        }
    }

    /// Puts the ids of `text` behind `out`, if it is there. `first`: it stands at the beginning of a prompt.
    pub fn extend(&self, text: &str, first: bool, out: &mut Vec<u32>) -> bool {
        match self.find(text, first) {
            Some(piece) => {
                out.extend_from_slice(&piece.ids);
                true
            }
            None => false,
        }
    }

    /// `text` is there.
    pub fn contains(&self, text: &str, first: bool) -> bool {
        self.find(text, first).is_some()
    }

    /// Remembers the ids of `text`, unless it is larger than a generation.
    pub fn insert(&self, text: &str, first: bool, ids: &[u32]) {
        let piece = Piece {
            text: text.into(),
            first,
            ids: ids.into(),
        };
        let key = self.key(text, first);
        if piece.cost() <= self.bytes
            && let Some(shard) = self.shards.get(key as usize % SHARDS)
        {
            self.put(&mut shard.lock(), key, Arc::new(piece));
        }
    }

    /// Bytes held by both generations.
    pub fn bytes(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            let pieces = shard.young.values().chain(shard.old.values());
            pieces.map(|piece| piece.cost()).sum::<usize>()
        };
        self.shards.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_right() {
        let cache = Segments::new(64 << 10);
        for n in 0..5_000u32 {
            cache.insert(&format!("text {n}"), n % 2 == 0, &[n]);
            assert!(cache.bytes() <= 64 << 10);
        }
        let mut found = 0;
        for n in 0..5_000u32 {
            let mut out = vec![];
            if cache.extend(&format!("text {n}"), n % 2 == 0, &mut out) {
                assert_eq!(out, [n]);
                found += 1;
            }
            assert!(!cache.contains(&format!("text {n}"), n % 2 == 1));
        }
        assert!(found > 100);
        cache.insert(&"x".repeat(1 << 20), true, &[1]);
        assert!(!cache.contains(&"x".repeat(1 << 20), true));
    }
}
