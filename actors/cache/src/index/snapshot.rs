//! Snapshots: everything that is announced, as a stream of checked chunks, and the way back.
//!
//! Taking one holds up nobody. It stands for the moment at which it was begun: a batch that is applied while it is being read first
//! copies each shard that it is about to change, as its chunks. Several may be read at a time, each with copies of its own: at most what
//! its chunks take together.
//!
//! Layout of a chunk (integers little-endian; v is LEB128): `magic "QCIX" | version u8 = 1 | kind u8 | number u32 | length u32 | body | CRC-32 of
//! all before`. Kinds: 0 the holders, 1 blocks, 2 the end.
//! ```text
//! holders  blocks v | count v | (endpoint u64 | rank v | incarnation v | epoch v | sequence v | mark u64 | trimmed u8 | space's length v | space)...
//!          | removed holders v | (endpoint u64 | rank v | epoch v)...
//! blocks   (blocks v | hash u64... | intervals v | (holder's number in the list above v | tier u8 | first v | blocks v)...)...
//!          (the first number is how many blocks follow or a few more, so that tables get their size at once)
//! end      (digest u128 of each holder)... | digest u128 of each digest shard...
//! ```

use super::CacheIndex;
use super::contents::Contents;
use super::coverage::{EXPECTED, Interval, Places};
use super::shard::{Shard, Writer};
use super::wire::put_varint;
use crate::keys::KeySpace;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const MAGIC: [u8; 4] = *b"QCIX";
pub(super) const VERSION: u8 = 1;
pub(super) const HOLDERS: u8 = 0;
pub(super) const BLOCKS: u8 = 1;
pub(super) const END: u8 = 2;
/// Bytes before a chunk's body.
pub(super) const HEADER: usize = 14;
/// A body is closed at the first segment's end after so many bytes.
const BODY: usize = 256 << 10;

/// What writers and the reader of a snapshot share: the shards that had to be copied before the reader came to them.
pub(super) struct Session {
    /// By shard: it has been copied. Changes under the shard's lock only.
    done: Vec<AtomicBool>,
    /// By slot: the holder's number in the snapshot.
    numbers: Vec<Option<u32>>,
    copies: Mutex<Vec<Option<Vec<Vec<u8>>>>>,
}

impl Session {
    /// Copies the shard, unless that has been done. Its lock is held.
    pub(super) fn capture(&self, shard: &Shard, w: &Writer) {
        let done = self.done.get(shard.number());
        if done.is_some_and(|done| !done.swap(true, Ordering::Relaxed)) {
            let bodies = self.bodies(shard, w);
            if let Some(slot) = self.copies.lock().get_mut(shard.number()) {
                *slot = Some(bodies);
            }
        }
    }

    /// What is announced in the shard, as bodies of chunks.
    fn bodies(&self, shard: &Shard, w: &Writer) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        let mut body = Vec::new();
        let mut list: Vec<Interval> = Vec::new();
        for segment in 0..w.made() {
            let head = shard.segments.head(segment);
            if head.len() == 0 {
                continue;
            }
            shard.segments.load_list(segment, &mut list);
            list.retain(|i| i.lane() != EXPECTED);
            let announced = Places::of(&list);
            let area = shard.segments.hashes(head);
            let mut next = announced.stretch(0);
            while let Some((start, end)) = next {
                next = announced.stretch(end);
                let words = area.get(start..end).unwrap_or_default();
                put_varint(&mut body, words.len() as u64);
                let from = body.len();
                body.resize(from + words.len() * 8, 0);
                let (into, _) = body[from..].as_chunks_mut::<8>();
                for (into, word) in into.iter_mut().zip(words) {
                    *into = word.load(Ordering::Relaxed).to_le_bytes();
                }
                let part: Vec<(u32, Interval)> = list
                    .iter()
                    .filter_map(|i| {
                        Some((
                            *self.numbers.get(usize::from(i.holder()))?.as_ref()?,
                            i.within(start, end)?,
                        ))
                    })
                    .collect();
                put_varint(&mut body, part.len() as u64);
                for (number, interval) in part {
                    put_varint(&mut body, u64::from(number));
                    body.push(interval.lane());
                    put_varint(&mut body, interval.start() as u64);
                    put_varint(&mut body, (interval.end() - interval.start()) as u64);
                }
            }
            if body.len() >= BODY {
                bodies.push(std::mem::take(&mut body));
            }
        }
        if !body.is_empty() {
            bodies.push(body);
        }
        bodies
    }
}

/// A snapshot being taken: an iterator over its chunks. What it is taken of lives as long as it does.
pub struct Snapshot {
    contents: Arc<Contents>,
    session: Arc<Session>,
    shard: usize,
    number: u32,
    ready: VecDeque<(u8, Vec<u8>)>,
    end: Option<Vec<u8>>,
}

impl CacheIndex {
    /// Begins a snapshot of what is announced now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut state = self.state.lock();
        state.prune();
        let contents = Arc::clone(&state.contents);
        let mut numbers = vec![None; state.table.slots.len()];
        let (mut holders, mut end) = (Vec::new(), Vec::new());
        put_varint(&mut holders, contents.core.map.len() as u64);
        put_varint(&mut holders, state.entries.len() as u64);
        for (number, (key, entry)) in state.entries.iter().enumerate() {
            if let Some(slot) = numbers.get_mut(usize::from(entry.slot)) {
                *slot = Some(number as u32);
            }
            holders.extend_from_slice(&key.endpoint.to_le_bytes());
            for value in [
                u64::from(key.rank),
                entry.incarnation,
                entry.epoch,
                entry.sequence,
            ] {
                put_varint(&mut holders, value);
            }
            holders.extend_from_slice(&entry.mark.to_le_bytes());
            holders.push(u8::from(entry.trimmed));
            let space = state.table.find(*key).and_then(|(_, h)| h.space.as_ref());
            let space = space.map_or(&[][..], KeySpace::encoded);
            put_varint(&mut holders, space.len() as u64);
            holders.extend_from_slice(space);
            end.extend_from_slice(&entry.sums.digest.0.to_le_bytes());
        }
        put_varint(&mut holders, state.fences.len() as u64);
        for (key, epoch) in &state.fences {
            holders.extend_from_slice(&key.endpoint.to_le_bytes());
            put_varint(&mut holders, u64::from(key.rank));
            put_varint(&mut holders, *epoch);
        }
        end.extend(state.shards.iter().flat_map(|d| d.0.to_le_bytes()));
        let shards = &contents.core.shards;
        let session = Arc::new(Session {
            done: shards.iter().map(|_| AtomicBool::new(false)).collect(),
            numbers,
            copies: Mutex::new(shards.iter().map(|_| None).collect()),
        });
        state.sessions.push(Arc::downgrade(&session));
        drop(state);
        Snapshot {
            contents,
            session,
            shard: 0,
            number: 0,
            ready: VecDeque::from([(HOLDERS, holders)]),
            end: Some(end),
        }
    }
}

impl Iterator for Snapshot {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        while self.ready.is_empty()
            && let Some(shard) = self.contents.core.shards.get(self.shard)
        {
            self.session.capture(shard, &shard.writer.lock());
            let copy = self
                .session
                .copies
                .lock()
                .get_mut(self.shard)
                .and_then(Option::take);
            self.ready
                .extend(copy.into_iter().flatten().map(|body| (BLOCKS, body)));
            self.shard += 1;
        }
        let (kind, body) = self
            .ready
            .pop_front()
            .or_else(|| self.end.take().map(|end| (END, end)))?;
        let mut chunk = Vec::with_capacity(HEADER + body.len() + 4);
        chunk.extend_from_slice(&MAGIC);
        chunk.extend_from_slice(&[VERSION, kind]);
        chunk.extend_from_slice(&self.number.to_le_bytes());
        chunk.extend_from_slice(&(body.len() as u32).to_le_bytes());
        chunk.extend_from_slice(&body);
        chunk.extend_from_slice(&crc32fast::hash(&chunk).to_le_bytes());
        self.number += 1;
        Some(chunk)
    }
}
