//! The way back from a snapshot to an index: chunks are checked, and their blocks laid down as they are. See [`super::snapshot`] for the layout.

use super::apply::{HolderEntry, MAX_FENCES, State};
use super::coverage::{Interval, SEGMENT};
use super::digest::{DIGEST_SHARDS, Digest, ElementMixer};
use super::holder::{HolderKey, MAX_HOLDERS};
use super::laying::{Laying, Unfit};
use super::ledger::{Entry, Ledger, Sums, Who};
use super::snapshot::{BLOCKS, END, HEADER, HOLDERS, MAGIC, VERSION};
use super::weights::tier_of;
use super::wire::{Malformed, Reader};
use super::{CacheIndex, IndexConfig};
use crate::Tier;
use crate::keys::KeySpace;

/// Why a snapshot was not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
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

/// A holder of the snapshot.
struct Loaded {
    key: HolderKey,
    who: Who,
    mixer: ElementMixer,
    trimmed: bool,
    sums: Sums,
}

/// Builds an index from the chunks of a snapshot. Nothing else sees it before it is complete and its digests are right.
pub struct SnapshotLoader {
    index: CacheIndex,
    /// By number in the snapshot.
    holders: Vec<Loaded>,
    laying: Laying,
    number: u32,
    complete: bool,
    hashes: Vec<u64>,
    list: Vec<Interval>,
}

impl SnapshotLoader {
    /// For an index of this size.
    #[must_use]
    pub fn new(config: IndexConfig) -> Self {
        Self {
            index: CacheIndex::new(config),
            holders: Vec::new(),
            laying: Laying::new(),
            number: 0,
            complete: false,
            hashes: Vec::new(),
            list: Vec::new(),
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
        let blocks = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        let count = reader.count(22)?;
        if count > MAX_HOLDERS {
            return Err(SnapshotError::TooLarge);
        }
        let max_pairs = self.index.config.pairs();
        let mut state = self.index.state.lock();
        // A number that is too large costs no memory that is never written to.
        state.contents.core.map.reserve(blocks.min(max_pairs));
        for _ in 0..count {
            let loaded = holder(&mut state, reader)?;
            self.holders.push(loaded);
        }
        let fences = reader.count(10)?;
        if fences > MAX_FENCES {
            return Err(SnapshotError::TooLarge);
        }
        for _ in 0..fences {
            let key = holder_key(reader)?;
            let epoch = reader.varint()?;
            state.fences.push_back((key, epoch));
        }
        state.publish_holders();
        Ok(())
    }

    fn blocks(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let mut state = self.index.state.lock();
        let State {
            pairs,
            shards,
            contents,
            ..
        } = &mut *state;
        while !reader.is_empty() {
            self.hashes.clear();
            self.list.clear();
            reader.words(&mut self.hashes)?;
            if self.hashes.len() > SEGMENT {
                return Err(Malformed("a stretch has too many blocks").into());
            }
            // An interval takes four bytes at least.
            for _ in 0..reader.count(4)? {
                let number = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
                let tier = tier_of(reader.byte()?).ok_or(Malformed("a tier is not known"))?;
                let first = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
                let len = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
                let hashes = self.hashes.get(first..first.saturating_add(len));
                let (Some(holder), Some(hashes)) = (self.holders.get_mut(number), hashes) else {
                    return Err(Malformed("an interval has no such holder or blocks").into());
                };
                let Loaded {
                    who, mixer, sums, ..
                } = holder;
                self.list
                    .push(Interval::new(who.holder, tier as u8, first, first + len, 0));
                let mut book = Ledger::of(*who, *mixer, sums, shards);
                hashes.iter().for_each(|hash| book.add(*hash, tier));
                *pairs += book.added;
            }
            if *pairs > self.index.max_pairs() {
                return Err(SnapshotError::TooLarge);
            }
            self.laying
                .lay(&contents.core, &self.hashes, &mut self.list)?;
        }
        Ok(())
    }

    fn end(&mut self, reader: &mut Reader) -> Result<(), SnapshotError> {
        let mut state = self.index.state.lock();
        self.laying.finish(&state.contents.core)?;
        for loaded in self.holders.drain(..) {
            let digest = Digest(reader.double()?);
            let entry = state.entries.get_mut(&loaded.key);
            let entry = entry.ok_or(SnapshotError::DigestDiffers)?;
            if loaded.sums.digest != digest {
                return Err(SnapshotError::DigestDiffers);
            }
            (entry.sums, entry.trimmed) = (loaded.sums, loaded.trimmed);
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

fn holder_key(reader: &mut Reader) -> Result<HolderKey, Malformed> {
    let (endpoint, rank) = (reader.word()?, reader.varint()?);
    let rank = u32::try_from(rank).map_err(|_| Malformed("a rank is too large"))?;
    Ok(HolderKey { endpoint, rank })
}

/// Makes the next holder of the list known.
fn holder(state: &mut State, reader: &mut Reader) -> Result<Loaded, SnapshotError> {
    let key = holder_key(reader)?;
    let (incarnation, epoch, sequence) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let mark = reader.word()?;
    let trimmed = reader.byte()? != 0;
    let length = reader.count(1)?;
    let space = match reader.bytes(length)? {
        [] => None,
        space => Some(KeySpace::decode(space)?),
    };
    if state.entries.contains_key(&key) {
        return Err(Malformed("a holder comes twice").into());
    }
    let slot = state.table.enter(key, incarnation, space);
    let slot = slot.ok_or(SnapshotError::TooLarge)?;
    let (_, entered) = state.table.find(key).ok_or(SnapshotError::TooLarge)?;
    let (mixer, stamp) = (entered.mixer, entered.stamp);
    state.contents.core.admit(slot, stamp);
    let entry = HolderEntry {
        slot,
        incarnation,
        epoch,
        sequence,
        mark,
        sums: Sums::default(),
        trimmed: false,
    };
    state.entries.insert(key, entry);
    let who = Who {
        holder: slot,
        stamp,
        entry: Entry::Announced(Tier::Unknown),
    };
    Ok(Loaded {
        key,
        who,
        mixer,
        trimmed,
        sums: Sums::default(),
    })
}

impl From<Unfit> for SnapshotError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Malformed(problem) => Malformed(problem).into(),
            Unfit::Full => Self::TooLarge,
        }
    }
}
