//! A shard's segments as words: stretches of a chain's blocks that lie together, each with the list of who has which part of it.
//!
//! A segment is two words. The head says where its hashes are, how many there are, and a version that changes whenever a place comes to
//! mean another block. The list word is the only interval itself, or says where the intervals are, with a version of
//! its own. A reader takes head, hashes, list word and intervals, and looks again whether both words are the same: then what it
//! has belonged together. It tries again only if a writer has got on meanwhile, so a writer that is held up holds up nobody.

use super::arena::Words;
use super::coverage::{Interval, SEGMENT};
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The list word is the only interval.
const SINGLE: u64 = 1 << 63;
/// Attempts of a reader; each failed one means that a writer has changed this very segment meanwhile.
const ATTEMPTS: usize = 1000;

/// A segment's first word: version (21 bits), length (11), first word of its hashes (32).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Head(pub(super) u64);

impl Head {
    pub(super) const fn new(at: u32, len: usize, version: u64) -> Self {
        Self((version & 0x1f_ffff) << 43 | (len as u64) << 32 | at as u64)
    }

    pub(super) const fn at(self) -> u32 {
        self.0 as u32
    }

    pub(super) const fn len(self) -> usize {
        (self.0 >> 32) as usize & 0x7ff
    }

    pub(super) const fn version(self) -> u64 {
        self.0 >> 43
    }

    /// Whether places mean the same blocks under both.
    const fn agrees(self, other: Self) -> bool {
        self.at() == other.at() && self.version() == other.version()
    }
}

/// A segment's second word if it is not an interval: version (15 bits), number of intervals (16), their first word (32).
#[derive(Clone, Copy)]
pub(super) struct ListWord(pub(super) u64);

impl ListWord {
    pub(super) const fn new(at: u32, len: usize, version: u64) -> Self {
        Self((version & 0x7fff) << 48 | (len as u64 & 0xffff) << 32 | at as u64)
    }

    pub(super) const fn single(interval: Interval) -> Self {
        Self(SINGLE | interval.0)
    }

    pub(super) const fn as_single(self) -> Option<Interval> {
        if self.0 & SINGLE != 0 {
            Some(Interval(self.0 & !SINGLE))
        } else {
            None
        }
    }

    pub(super) const fn at(self) -> u32 {
        self.0 as u32
    }

    pub(super) const fn len(self) -> usize {
        (self.0 >> 32) as usize & 0xffff
    }
}

/// The words of a shard that readers see.
pub(super) struct Segments {
    /// Hashes and lists.
    pub(super) words: Words,
    /// Two words for each segment.
    pub(super) records: Words,
}

impl Segments {
    /// The two words of a segment.
    pub(super) fn record(&self, segment: u32) -> Option<(&AtomicU64, &AtomicU64)> {
        match self.records.area(segment * 2, 2) {
            [head, list] => Some((head, list)),
            _ => None,
        }
    }

    /// How many of `hashes` the segment has one after another from `place` on, with the intervals of its holders in `list`; nothing if the
    /// first one is not there.
    pub(super) fn read(
        &self,
        segment: u32,
        place: usize,
        hashes: &[u64],
        list: &mut Vec<Interval>,
    ) -> Option<usize> {
        let (head_word, list_word) = self.record(segment)?;
        for _ in 0..ATTEMPTS {
            let head = Head(head_word.load(Ordering::Acquire));
            let area = self.words.area(
                head.at().wrapping_add(place as u32),
                head.len().saturating_sub(place).min(hashes.len()),
            );
            let same = common(hashes, area);
            let listed = ListWord(list_word.load(Ordering::Acquire));
            if same > 0 {
                list.clear();
                match listed.as_single() {
                    Some(interval) => list.push(interval),
                    None => list.extend(
                        self.words
                            .area(listed.at(), listed.len())
                            .iter()
                            .map(|w| Interval(w.load(Ordering::Relaxed))),
                    ),
                }
            }
            fence(Ordering::Acquire);
            let still = Head(head_word.load(Ordering::Relaxed)).agrees(head);
            if still
                && (same == 0
                    || listed.as_single().is_some()
                    || list_word.load(Ordering::Relaxed) == listed.0)
            {
                return (same > 0).then_some(same);
            }
        }
        None
    }

    /// Whether the segment has `hash` at `place`, or is about to.
    pub(super) fn means(&self, segment: u32, place: usize, hash: u64) -> bool {
        let Some((head_word, _)) = self.record(segment) else {
            return false;
        };
        for _ in 0..ATTEMPTS {
            let head = Head(head_word.load(Ordering::Acquire));
            let there = self
                .words
                .word(head.at().wrapping_add(place as u32))
                .map(|w| w.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if Head(head_word.load(Ordering::Relaxed)).agrees(head) {
                return there == Some(hash);
            }
        }
        false
    }

    /// Whether the segment has `hash` at `place` now.
    pub(super) fn has(&self, segment: u32, place: usize, hash: u64) -> bool {
        let Some((head_word, _)) = self.record(segment) else {
            return false;
        };
        for _ in 0..ATTEMPTS {
            let head = Head(head_word.load(Ordering::Acquire));
            if place >= head.len() {
                return false;
            }
            let there = self
                .words
                .word(head.at().wrapping_add(place as u32))
                .map(|w| w.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if Head(head_word.load(Ordering::Relaxed)).agrees(head) {
                return there == Some(hash);
            }
        }
        false
    }

    /// For the writer, whose lock keeps the segment still: its head.
    pub(super) fn head(&self, segment: u32) -> Head {
        self.record(segment)
            .map_or(Head(0), |(head, _)| Head(head.load(Ordering::Relaxed)))
    }

    /// For the writer: changes the head. What it wrote before is seen by who sees this, and this by who sees what it writes next.
    pub(super) fn set_head(&self, segment: u32, head: Head) {
        if let Some((word, _)) = self.record(segment) {
            word.store(head.0, Ordering::Release);
            fence(Ordering::Release);
        }
    }

    /// For the writer: the hashes of the segment.
    pub(super) fn hashes(&self, head: Head) -> &[AtomicU64] {
        self.words.area(head.at(), head.len())
    }

    /// For the writer: the intervals of the segment.
    pub(super) fn load_list(&self, segment: u32, list: &mut Vec<Interval>) {
        list.clear();
        let Some((_, word)) = self.record(segment) else {
            return;
        };
        let listed = ListWord(word.load(Ordering::Relaxed));
        match listed.as_single() {
            Some(interval) => list.push(interval),
            None => list.extend(
                self.words
                    .area(listed.at(), listed.len())
                    .iter()
                    .map(|w| Interval(w.load(Ordering::Relaxed))),
            ),
        }
    }
}

/// Length of the common beginning.
fn common(hashes: &[u64], area: &[AtomicU64]) -> usize {
    const STEP: usize = 8;
    let mut same = 0;
    for (a, b) in hashes.chunks_exact(STEP).zip(area.chunks_exact(STEP)) {
        let mut differ = 0;
        for (a, b) in a.iter().zip(b) {
            differ |= a ^ b.load(Ordering::Relaxed);
        }
        if differ != 0 {
            break;
        }
        same += STEP;
    }
    let rest = hashes.iter().zip(area).skip(same);
    same + rest
        .take_while(|(a, b)| **a == b.load(Ordering::Relaxed))
        .count()
}

const _: () = assert!(SEGMENT < 0x800);
