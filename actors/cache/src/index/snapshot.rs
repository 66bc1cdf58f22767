//! Snapshots: everything that is announced, as a stream of checked chunks, and the way back.
//!
//! Taking one holds up nobody. It stands for the moment at which it was begun: a batch that is applied while it is being read first
//! copies each shard that it is about to change, as its chunks.
//!
//! Layout of a chunk (integers little-endian; v is LEB128): `magic "QCIX" | version u8 = 1 | kind u8 | number u32 | length u32 | body | CRC-32 of
//! all before`. Kinds: 0 the holders, 1 blocks, 2 the end.
//! ```text
//! holders  count v | (endpoint u64 | rank v | incarnation v | epoch v | sequence v | mark u64 | trimmed u8 | space's length v | space)...
//!          | removed holders v | (endpoint u64 | rank v | epoch v)...
//! blocks   (blocks v | hash u64... | intervals v | (holder's number in the list above v | tier u8 | first v | blocks v)...)...
//! end      (digest u128 of each holder)... | digest u128 of each digest shard...
//! ```

use super::apply::MAX_FENCES;
use super::coverage::{EXPECTED, Interval, Places};
use super::delta::Section;
use super::digest::{DIGEST_SHARDS, Digest};
use super::holder::{HolderKey, MAX_HOLDERS};
use super::shard::{Shard, Writer};
use super::weights::tier_of;
use super::wire::{Malformed, Reader, put_varint};
use super::{CacheIndex, IndexConfig};
use crate::keys::KeySpace;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const MAGIC: [u8; 4] = *b"QCIX";
const VERSION: u8 = 1;
const HOLDERS: u8 = 0;
const BLOCKS: u8 = 1;
const END: u8 = 2;
/// Bytes before a chunk's body.
const HEADER: usize = 14;
/// A body is closed at the first segment's end after so many bytes.
const BODY: usize = 256 << 10;

/// Why a snapshot was not taken or not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Another one is being taken.
    #[error("a snapshot is being taken already")]
    Busy,
    /// A chunk was damaged on its way.
    #[error("chunk {0} is damaged: its checksum differs")]
    Damaged(u32),
    /// A chunk is missing, or came twice.
    #[error("chunk {expected} was expected, {got} came")]
    OutOfOrder {
        /// The number that should come.
        expected: u32,
        /// The number that came.
        got: u32,
    },
    /// A chunk's content does not fit the layout.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The stream ended before the last chunk.
    #[error("the snapshot is not complete")]
    Incomplete,
    /// What was loaded is not what was written.
    #[error("the digest of what was loaded is not the snapshot's")]
    DigestDiffers,
    /// It does not fit into this index.
    #[error("the snapshot has more blocks than this index may hold")]
    TooLarge,
}

/// What writers and the reader of a snapshot share: the shards that had to be copied before the reader came to them.
pub(super) struct Session {
    number: u64,
    /// By slot: the holder's number in the snapshot.
    numbers: Vec<Option<u32>>,
    copies: Mutex<Vec<Option<Vec<Vec<u8>>>>>,
}

impl Session {
    /// Copies the shard, unless that has been done. Its lock is held.
    pub(super) fn capture(&self, shard: &Shard, w: &mut Writer) {
        if w.captured != self.number {
            w.captured = self.number;
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
            let mut place = 0;
            while place < area.len() {
                if !announced.has(place) {
                    place += 1;
                    continue;
                }
                let start = place;
                while place < area.len() && announced.has(place) {
                    place += 1;
                }
                put_varint(&mut body, (place - start) as u64);
                body.extend(
                    area.iter()
                        .take(place)
                        .skip(start)
                        .flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()),
                );
                let part: Vec<(u32, Interval)> = list
                    .iter()
                    .filter_map(|i| {
                        Some((
                            *self.numbers.get(usize::from(i.holder()))?.as_ref()?,
                            i.within(start, place)?,
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

/// A snapshot being taken: an iterator over its chunks.
pub struct Snapshot<I> {
    index: I,
    session: Arc<Session>,
    shard: usize,
    number: u32,
    ready: VecDeque<(u8, Vec<u8>)>,
    end: Option<Vec<u8>>,
}

impl CacheIndex {
    /// Begins a snapshot of what is announced now. One can be taken at a time.
    ///
    /// # Errors
    /// If one is being taken.
    pub fn snapshot(&self) -> Result<Snapshot<&Self>, SnapshotError> {
        Snapshot::begin(self)
    }

    /// The same for a reader that outlives the caller.
    ///
    /// # Errors
    /// If one is being taken.
    pub fn shared_snapshot(self: Arc<Self>) -> Result<Snapshot<Arc<Self>>, SnapshotError> {
        Snapshot::begin(self)
    }
}

impl<I: Deref<Target = CacheIndex>> Snapshot<I> {
    fn begin(index: I) -> Result<Self, SnapshotError> {
        let mut state = index.state.lock();
        if state.session.strong_count() > 0 {
            return Err(SnapshotError::Busy);
        }
        state.sessions += 1;
        let mut numbers = vec![None; state.table.slots.len()];
        let (mut holders, mut end) = (Vec::new(), Vec::new());
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
        let copies = Mutex::new(index.core.shards.iter().map(|_| None).collect());
        let session = Arc::new(Session {
            number: state.sessions,
            numbers,
            copies,
        });
        state.session = Arc::downgrade(&session);
        drop(state);
        Ok(Self {
            index,
            session,
            shard: 0,
            number: 0,
            ready: VecDeque::from([(HOLDERS, holders)]),
            end: Some(end),
        })
    }
}

impl<I: Deref<Target = CacheIndex>> Iterator for Snapshot<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        while self.ready.is_empty()
            && let Some(shard) = self.index.core.shards.get(self.shard)
        {
            self.session.capture(shard, &mut shard.writer.lock());
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

/// Builds an index from the chunks of a snapshot. Nothing else sees it before it is complete and its digests are right.
pub struct SnapshotLoader {
    index: CacheIndex,
    holders: Vec<(HolderKey, bool)>,
    number: u32,
    complete: bool,
    hashes: Vec<u64>,
}

impl SnapshotLoader {
    /// For an index of this size.
    #[must_use]
    pub fn new(config: IndexConfig) -> Self {
        Self {
            index: CacheIndex::new(config),
            holders: Vec::new(),
            number: 0,
            complete: false,
            hashes: Vec::new(),
        }
    }

    /// Takes the next chunk, whole.
    ///
    /// # Errors
    /// What is wrong with it. The loader is of no more use then.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), SnapshotError> {
        let Some((content, sum)) = chunk.split_last_chunk::<4>() else {
            return Err(SnapshotError::Incomplete);
        };
        if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
            return Err(SnapshotError::Damaged(self.number));
        }
        let mut reader = Reader::new(content);
        if reader.bytes(4)? != MAGIC {
            return Err(Malformed("it is no snapshot of the cache index").into());
        }
        if reader.byte()? != VERSION {
            return Err(Malformed("the snapshot has a version that is not known").into());
        }
        let kind = reader.byte()?;
        let got = reader.half()?;
        if got != self.number || self.complete {
            return Err(SnapshotError::OutOfOrder {
                expected: self.number,
                got,
            });
        }
        let length = reader.half()?;
        if length as usize + HEADER != content.len() {
            return Err(Malformed("a chunk's length is not what it says").into());
        }
        match (kind, self.number) {
            (HOLDERS, 0) => self.holders(&mut reader)?,
            (BLOCKS, 1..) => self.blocks(&mut reader)?,
            (END, 1..) => self.end(&mut reader)?,
            _ => return Err(Malformed("a chunk has a kind that does not belong there").into()),
        }
        if !reader.is_empty() {
            return Err(Malformed("bytes follow a chunk's content").into());
        }
        self.number += 1;
        Ok(())
    }

    /// The index, once all chunks are there.
    ///
    /// # Errors
    /// If the last chunk has not come.
    pub fn finish(self) -> Result<CacheIndex, SnapshotError> {
        if self.complete {
            Ok(self.index)
        } else {
            Err(SnapshotError::Incomplete)
        }
    }

    fn holders(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let count = reader.count(22)?;
        if count > MAX_HOLDERS {
            return Err(SnapshotError::TooLarge);
        }
        let mut state = self.index.state.lock();
        for _ in 0..count {
            let endpoint = reader.word()?;
            let rank =
                u32::try_from(reader.varint()?).map_err(|_| Malformed("a rank is too large"))?;
            let key = HolderKey { endpoint, rank };
            let (incarnation, epoch, sequence) =
                (reader.varint()?, reader.varint()?, reader.varint()?);
            let mark = reader.word()?;
            let trimmed = reader.byte()? != 0;
            let length = reader.count(1)?;
            let space = reader.bytes(length)?;
            if state.entries.contains_key(&key) {
                return Err(Malformed("a holder comes twice").into());
            }
            let mut section = Section::new(key, incarnation, epoch, sequence, sequence);
            section.mark = mark;
            if !space.is_empty() {
                section.space = Some(KeySpace::decode(space)?);
            }
            self.index
                .renew(&mut state, &section)
                .ok_or(SnapshotError::TooLarge)?;
            self.holders.push((key, trimmed));
        }
        let fences = reader.count(10)?;
        if fences > MAX_FENCES {
            return Err(SnapshotError::TooLarge);
        }
        for _ in 0..fences {
            let (endpoint, rank) = (reader.word()?, reader.varint()?);
            let rank = u32::try_from(rank).map_err(|_| Malformed("a rank is too large"))?;
            let epoch = reader.varint()?;
            state
                .fences
                .push_back((HolderKey { endpoint, rank }, epoch));
        }
        Ok(())
    }

    fn blocks(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let mut state = self.index.state.lock();
        while !reader.is_empty() {
            self.hashes.clear();
            reader.words(&mut self.hashes)?;
            // An interval takes four bytes at least.
            for _ in 0..reader.count(4)? {
                let holder = self
                    .holders
                    .get(usize::try_from(reader.varint()?).unwrap_or(usize::MAX));
                let tier = tier_of(reader.byte()?).ok_or(Malformed("a tier is not known"))?;
                let first = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
                let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
                let hashes = self.hashes.get(first..first.saturating_add(len));
                let (Some((key, _)), Some(hashes)) = (holder, hashes) else {
                    return Err(Malformed("an interval has no such holder or blocks").into());
                };
                if self.index.store_all(&mut state, *key, tier, None, hashes) > 0 {
                    return Err(SnapshotError::TooLarge);
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let mut state = self.index.state.lock();
        for (key, trimmed) in &self.holders {
            let digest = Digest(reader.double()?);
            let entry = state
                .entries
                .get_mut(key)
                .ok_or(SnapshotError::DigestDiffers)?;
            if entry.sums.digest != digest {
                return Err(SnapshotError::DigestDiffers);
            }
            entry.trimmed = *trimmed;
        }
        for shard in 0..DIGEST_SHARDS {
            if state.shards.get(shard) != Some(&Digest(reader.double()?)) {
                return Err(SnapshotError::DigestDiffers);
            }
        }
        self.complete = true;
        Ok(())
    }
}
