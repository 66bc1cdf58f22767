//! Token ids of pieces of text that were tokenized before, bounded by bytes.
//!
//! Two generations a shard: what is used moves to the young one; when that is full the old one is emptied and takes its place. Texts and ids
//! lie one after the other in chunks of memory that are kept and never grow: allocated piece by piece it would be given back to the system and
//! asked for anew all the time. A piece is compared as a whole, so that no two pieces are ever taken for each other.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const SHARDS: usize = 16;
/// What an entry costs beside its text and its ids.
const OVERHEAD: usize = 96;
/// Bytes of text in a chunk, and as many of ids.
const CHUNK: usize = 64 << 10;

fn cost(text: &str, ids: &[u32]) -> usize {
    text.len() + size_of_val(ids) + OVERHEAD
}

/// Where a piece lies in its generation.
#[derive(Clone, Debug)]
struct Piece {
    first: bool,
    chunk: usize,
    text: Range<usize>,
    ids: Range<usize>,
}

#[derive(Debug, Default)]
struct Chunk {
    texts: String,
    ids: Vec<u32>,
}

impl Chunk {
    /// With room for this piece, and for more if it is not a large one.
    fn for_piece(text: &str, ids: &[u32]) -> Self {
        Self {
            texts: String::with_capacity(text.len().max(CHUNK)),
            ids: Vec::with_capacity(ids.len().max(CHUNK / size_of::<u32>())),
        }
    }

    fn has_room(&self, text: &str, ids: &[u32]) -> bool {
        self.texts.capacity() - self.texts.len() >= text.len()
            && self.ids.capacity() - self.ids.len() >= ids.len()
    }
}

#[derive(Debug, Default)]
struct Generation {
    pieces: HashMap<u64, Piece>,
    chunks: Vec<Chunk>,
    /// The chunk that pieces are added to.
    filling: usize,
    cost: usize,
}

impl Generation {
    /// The ids of a text.
    fn ids(&self, key: u64, text: &str, first: bool) -> Option<&[u32]> {
        let piece = self.pieces.get(&key)?;
        let chunk = self.chunks.get(piece.chunk)?;
        let same = piece.first == first && chunk.texts.get(piece.text.clone()) == Some(text);
        chunk.ids.get(piece.ids.clone()).filter(|_| same)
    }

    fn add(&mut self, key: u64, text: &str, first: bool, ids: &[u32]) {
        let full = |chunk: &Chunk| !chunk.has_room(text, ids);
        while self.chunks.get(self.filling).is_some_and(full) {
            self.filling += 1;
        }
        if self.filling >= self.chunks.len() {
            self.chunks.push(Chunk::for_piece(text, ids));
        }
        let Some(chunk) = self.chunks.get_mut(self.filling) else {
            return;
        };
        let piece = Piece {
            first,
            chunk: self.filling,
            text: chunk.texts.len()..chunk.texts.len() + text.len(),
            ids: chunk.ids.len()..chunk.ids.len() + ids.len(),
        };
        chunk.texts.push_str(text);
        chunk.ids.extend_from_slice(ids);
        self.cost += cost(text, ids);
        self.pieces.insert(key, piece);
    }

    fn clear(&mut self) {
        self.pieces.clear();
        // One that was made for a large piece is not kept: the next one may be larger.
        self.chunks.retain(|chunk| chunk.texts.capacity() == CHUNK);
        for chunk in &mut self.chunks {
            chunk.texts.clear();
            chunk.ids.clear();
        }
        self.filling = 0;
        self.cost = 0;
    }
}

#[derive(Debug, Default)]
struct Shard {
    young: Generation,
    old: Generation,
}

impl Shard {
    fn make_room(&mut self, cost: usize, most: usize) {
        if self.young.cost + cost > most {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
    }
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

    /// What `read` makes of the ids of `text`, if it is there.
    fn find<T>(&self, text: &str, first: bool, read: impl FnOnce(&[u32]) -> T) -> Option<T> {
        let key = self.key(text, first);
        let mut shard = self.shards.get(key as usize % SHARDS)?.lock();
        if let Some(ids) = shard.young.ids(key, text, first) {
            return Some(read(ids));
        }
        let cost = cost(text, shard.old.ids(key, text, first)?);
        let Shard { young, old } = &mut *shard;
        if young.cost + cost <= self.bytes {
            let ids = old.ids(key, text, first)?;
            young.add(key, text, first, ids);
            return Some(read(ids));
        }
        // It would be emptied in what comes next, were it not taken out before.
        let ids = old.ids(key, text, first)?.to_vec();
        shard.make_room(cost, self.bytes);
        shard.young.add(key, text, first, &ids);
        Some(read(&ids))
    }

    /// Puts the ids of `text` behind `out`, if it is there. `first`: it stands at the beginning of a prompt.
    pub fn extend(&self, text: &str, first: bool, out: &mut Vec<u32>) -> bool {
        self.find(text, first, |ids| out.extend_from_slice(ids))
            .is_some()
    }

    /// `text` is there.
    pub fn contains(&self, text: &str, first: bool) -> bool {
        self.find(text, first, |_| ()).is_some()
    }

    /// Remembers the ids of `text`, unless it is larger than a generation.
    pub fn insert(&self, text: &str, first: bool, ids: &[u32]) {
        let (cost, key) = (cost(text, ids), self.key(text, first));
        if cost <= self.bytes
            && let Some(shard) = self.shards.get(key as usize % SHARDS)
        {
            let mut shard = shard.lock();
            if shard.young.ids(key, text, first).is_none() {
                shard.make_room(cost, self.bytes);
                shard.young.add(key, text, first, ids);
            }
        }
    }

    /// Bytes held by both generations.
    pub fn bytes(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.young.cost + shard.old.cost
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
