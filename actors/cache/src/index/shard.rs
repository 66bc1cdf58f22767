//! The writing side of a shard: making, filling, emptying and tidying segments under the shard's lock.

use super::arena::{Space, Words};
use super::block_map::{Location, SEGMENT_NUMBER_BITS};
use super::blocks::Core;
use super::coverage::{EXPECTED, Interval, SEGMENT, Stretches, cover, expect, uncover};
use super::ledger::{Entry, Ledger, Who};
use super::segment::{Head, Segments};
use crate::Tier;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;

/// A list longer than this is cut by cutting its segment, while that has more than one block.
const LONG_LIST: usize = 8192;

/// How far the addition of new blocks got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// So many of them are there now.
    Blocks(usize),
    /// The first one is not new: it is here.
    Known(Location),
}

/// What a removal concerns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lanes {
    /// One tier.
    One(Tier),
    /// All tiers and what is expected.
    All,
}

/// A holder in a shard.
#[derive(Default)]
pub(super) struct Tenant {
    stamp: u32,
    /// Segments with an interval of the holder.
    pub(super) segments: HashSet<u32, BuildHasherDefault<SegmentHasher>>,
}

/// Segment numbers are dense and not chosen by anybody outside: one multiplication spreads them.
#[derive(Default)]
pub(super) struct SegmentHasher(u64);

impl Hasher for SegmentHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

/// An expectation to be looked at when its generation has passed.
pub(super) struct Mark {
    pub(super) generation: u16,
    pub(super) segment: u32,
    pub(super) holder: u16,
}

pub(super) struct Shard {
    number: usize,
    pub(super) segments: Segments,
    pub(super) writer: Mutex<Writer>,
}

/// What only the holder of the shard's lock sees.
pub(super) struct Writer {
    pub(super) space: Space,
    pub(super) next: u32,
    pub(super) free: Vec<u32>,
    /// By segment: the size of its hash area.
    pub(super) classes: Vec<u8>,
    /// By segment: blocks that somebody has or is expected to have.
    pub(super) live: Vec<u16>,
    pub(super) tenants: Vec<Tenant>,
    pub(super) marks: Vec<Mark>,
    pub(super) versions: u64,
    pub(super) list: Vec<Interval>,
    pub(super) stretches: Stretches,
}

impl Shard {
    pub(super) fn new(number: usize, words: usize, segments: usize) -> Self {
        let records = Words::new((segments * 2).min(2 << SEGMENT_NUMBER_BITS));
        let writer = Writer {
            space: Space::new(),
            next: 0,
            free: Vec::new(),
            classes: Vec::new(),
            live: Vec::new(),
            tenants: Vec::new(),
            marks: Vec::new(),
            versions: 0,
            list: Vec::new(),
            stretches: Vec::new(),
        };
        Self {
            number,
            segments: Segments {
                words: Words::new(words),
                records,
            },
            writer: Mutex::new(writer),
        }
    }

    pub(super) const fn number(&self) -> usize {
        self.number
    }

    /// Bytes that the shard takes, spare room included.
    pub(super) fn bytes(&self) -> usize {
        let w = self.writer.lock();
        let sets: usize = w
            .tenants
            .iter()
            .map(|t| t.segments.capacity() * 8 / 7 * 5 + size_of::<Tenant>())
            .sum();
        let lists = w.free.capacity() * 4
            + w.classes.capacity()
            + w.live.capacity() * 2
            + w.marks.capacity() * size_of::<Mark>();
        self.segments.words.bytes() + self.segments.records.bytes() + w.space.bytes() + sets + lists
    }

    pub(super) const fn location(&self, segment: u32, place: usize) -> Location {
        Location {
            shard: self.number,
            segment,
            place,
        }
    }

    /// Covers the blocks of `hashes` that the segment has from `place` on. Answers how many that are; nothing if the first one is not
    /// there; `Some(0)` if there is no memory for it.
    pub(super) fn extend(
        &self,
        w: &mut Writer,
        core: &Core,
        at: Location,
        hashes: &[u64],
        book: &mut Ledger,
    ) -> Option<usize> {
        let mut list = std::mem::take(&mut w.list);
        let found = self.extend_with(w, at, hashes, book, &mut list);
        if list.len() > LONG_LIST {
            let len = self.segments.head(at.segment).len();
            if len > 1 {
                self.rehouse(w, core, at.segment, &list, Some(len / 2));
            }
        }
        w.list = list;
        found
    }

    fn extend_with(
        &self,
        w: &mut Writer,
        at: Location,
        hashes: &[u64],
        book: &mut Ledger,
        list: &mut Vec<Interval>,
    ) -> Option<usize> {
        if !self.segments.has(at.segment, at.place, *hashes.first()?) {
            return None;
        }
        let head = self.segments.head(at.segment);
        let area = self.segments.hashes(head).get(at.place..)?;
        let len = hashes
            .iter()
            .zip(area)
            .take_while(|(a, b)| **a == b.load(Ordering::Relaxed))
            .count();
        self.segments.load_list(at.segment, list);
        let covered = self.cover(w, at.segment, list, at.place, at.place + len, book);
        Some(if covered { len } else { 0 })
    }

    /// Adds an entry for `[start, end)` to the segment's list. False if there is no memory for it.
    fn cover(
        &self,
        w: &mut Writer,
        segment: u32,
        list: &mut Vec<Interval>,
        start: usize,
        end: usize,
        book: &mut Ledger,
    ) -> bool {
        let mut fresh = std::mem::take(&mut w.stretches);
        fresh.clear();
        let mut confirmed = Stretches::new();
        let changed = match book.who.entry {
            Entry::Announced(tier) => {
                cover(list, book.who.holder, tier as u8, start, end, &mut fresh);
                uncover(list, book.who.holder, EXPECTED, start, end, &mut confirmed);
                !fresh.is_empty() || !confirmed.is_empty()
            }
            Entry::Expected(generation) => {
                expect(list, book.who.holder, start, end, generation, &mut fresh)
            }
        };
        if !changed {
            w.stretches = fresh;
            return true;
        }
        let done = self.publish_list(w, segment, list);
        if done {
            book.confirmed += confirmed.iter().map(|(a, b)| (b - a) as u64).sum::<u64>();
            match book.who.entry {
                Entry::Announced(tier) => {
                    let area = self
                        .segments
                        .words
                        .area(self.segments.head(segment).at(), end);
                    for word in fresh
                        .iter()
                        .flat_map(|(a, b)| area.get(*a..*b).unwrap_or(&[]))
                    {
                        book.add(word.load(Ordering::Relaxed), tier);
                    }
                }
                Entry::Expected(generation) => {
                    book.expected += fresh.iter().map(|(a, b)| (b - a) as u64).sum::<u64>();
                    w.mark(generation, segment, book.who.holder);
                }
            }
            w.tenant(book.who.holder).segments.insert(segment);
        }
        w.stretches = fresh;
        done
    }

    /// Adds blocks behind the segment's last one, if `after` is that. Answers how many of `hashes`, or where the first one already is.
    pub(super) fn append(
        &self,
        w: &mut Writer,
        core: &Core,
        after: Location,
        parent: u64,
        hashes: &[u64],
        book: &mut Ledger,
    ) -> Added {
        let head = self.segments.head(after.segment);
        let (len, wanted) = (
            head.len(),
            hashes.len().min(SEGMENT - head.len().min(SEGMENT)),
        );
        if after.place + 1 != len
            || wanted == 0
            || !self.segments.has(after.segment, after.place, parent)
        {
            return Added::Blocks(0);
        }
        let mut list = std::mem::take(&mut w.list);
        self.segments.load_list(after.segment, &mut list);
        let added = match self.grow(w, after.segment, len + wanted) {
            true => self.fill(w, core, after.segment, &hashes[..wanted], book, &mut list),
            false => Added::Blocks(0),
        };
        w.list = list;
        added
    }

    /// Makes a segment of the blocks. Answers how many of `hashes` it has, or where the first one already is.
    pub(super) fn create(
        &self,
        w: &mut Writer,
        core: &Core,
        hashes: &[u64],
        book: &mut Ledger,
    ) -> (Added, u32) {
        let wanted = hashes.len().min(SEGMENT);
        let Some(segment) = self.take_segment(w, wanted) else {
            return (Added::Blocks(0), 0);
        };
        let mut list = std::mem::take(&mut w.list);
        list.clear();
        let added = self.fill(w, core, segment, &hashes[..wanted], book, &mut list);
        w.list = list;
        if !matches!(added, Added::Blocks(1..)) {
            self.free_segment(w, segment);
        }
        (added, segment)
    }

    /// Writes blocks behind the segment's last one, where there is room. None of them is in the map, as far as the caller has seen.
    fn fill(
        &self,
        w: &mut Writer,
        core: &Core,
        segment: u32,
        hashes: &[u64],
        book: &mut Ledger,
        list: &mut Vec<Interval>,
    ) -> Added {
        let head = self.segments.head(segment);
        let len = head.len();
        for (word, hash) in self
            .segments
            .words
            .area(head.at() + len as u32, hashes.len())
            .iter()
            .zip(hashes)
        {
            word.store(*hash, Ordering::Relaxed);
        }
        core.map.approach(hashes);
        // From here on the map may lead here; nobody reads beyond the length until it is set.
        let mut there = None;
        let mut count = 0;
        for (i, hash) in hashes.iter().enumerate() {
            match core
                .map
                .insert(*hash, self.location(segment, len + i), |l| {
                    core.means(l, *hash)
                }) {
                Ok(()) => count += 1,
                Err(at) => {
                    there = Some(at);
                    break;
                }
            }
        }
        if count == 0 {
            return there.map_or(Added::Blocks(0), Added::Known);
        }
        if !self.cover(w, segment, list, len, len + count, book) {
            for (i, hash) in hashes[..count].iter().enumerate() {
                core.map.remove(*hash, self.location(segment, len + i));
            }
            return Added::Blocks(0);
        }
        w.live[segment as usize] += count as u16;
        self.segments
            .set_head(segment, Head::new(head.at(), len + count, head.version()));
        Added::Blocks(count)
    }
}

impl Writer {
    /// The holder's entry in this shard.
    pub(super) fn tenant(&mut self, holder: u16) -> &mut Tenant {
        let at = usize::from(holder);
        if self.tenants.len() <= at {
            self.tenants.resize_with(at + 1, Tenant::default);
        }
        &mut self.tenants[at]
    }

    /// Whether an addition for the holder is still wanted: the slot has not changed hands since the caller looked.
    pub(super) fn welcomes(&mut self, who: Who) -> bool {
        self.tenant(who.holder).stamp == who.stamp
    }

    /// From now on the slot belongs to the holder with this stamp.
    pub(super) fn admit(&mut self, holder: u16, stamp: u32) {
        self.tenant(holder).stamp = stamp;
    }

    pub(super) fn mark(&mut self, generation: u16, segment: u32, holder: u16) {
        self.marks.push(Mark {
            generation,
            segment,
            holder,
        });
    }

    /// The number of segments ever made.
    pub(super) const fn made(&self) -> u32 {
        self.next
    }
}
