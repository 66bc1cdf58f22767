//! Words that many threads read while one writes: chunks of atomics which never move, and the writer's list of what is free in them.
//!
//! A reader never follows a pointer: it reads words by number and checks afterwards, against the segment's own version, that what it read
//! still belonged together. So an area can be used again at once, and nothing here needs unsafe code.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// Words in a chunk: the most that one area can have.
pub(super) const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 15;

/// Words by number, in chunks that are made when first needed.
pub(super) struct Words {
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Words {
    /// Room for `most` words.
    pub(super) fn new(most: usize) -> Self {
        let chunks = most.div_ceil(CHUNK).clamp(1, 1 << (32 - CHUNK_BITS));
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
        }
    }

    /// `len` words from `at`; empty where there are none (a number from a torn read).
    pub(super) fn area(&self, at: u32, len: usize) -> &[AtomicU64] {
        let (chunk, offset) = ((at >> CHUNK_BITS) as usize, at as usize & (CHUNK - 1));
        self.chunks
            .get(chunk)
            .and_then(OnceLock::get)
            .and_then(|c| c.get(offset..offset + len))
            .unwrap_or(&[])
    }

    /// One word.
    pub(super) fn word(&self, at: u32) -> Option<&AtomicU64> {
        let (chunk, offset) = ((at >> CHUNK_BITS) as usize, at as usize & (CHUNK - 1));
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// Makes the chunk. False if it would be one too many.
    pub(super) fn make(&self, chunk: usize) -> bool {
        let Some(slot) = self.chunks.get(chunk) else {
            return false;
        };
        slot.get_or_init(|| bytemuck::zeroed_slice_box(CHUNK));
        true
    }

    /// Bytes in use by chunks.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.iter().filter(|c| c.get().is_some()).count() * CHUNK * 8
    }
}

/// The sizes of areas: powers of two and what lies halfway between them, so at most a third of an area is spare.
pub(super) const SIZES: [u16; 30] = [
    1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
    3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
];

/// The number of the smallest size that holds `len` words.
pub(super) fn class(len: usize) -> u8 {
    SIZES.partition_point(|s| usize::from(*s) < len) as u8
}

/// The writer's side of [`Words`]: what is free.
pub(super) struct Space {
    /// First word never given out.
    next: usize,
    free: [Vec<u32>; SIZES.len()],
    used: usize,
}

impl Space {
    pub(super) const fn new() -> Self {
        Self {
            next: 0,
            free: [const { Vec::new() }; SIZES.len()],
            used: 0,
        }
    }

    /// An area of the class, or nothing when `words` is full.
    pub(super) fn take(&mut self, words: &Words, class: u8) -> Option<u32> {
        let class = usize::from(class);
        let size = usize::from(*SIZES.get(class)?);
        self.used += size;
        if let Some(at) = self.free[class].pop() {
            return Some(at);
        }
        // The rest of a chunk that is too small for the area is kept for smaller ones.
        let left = self.next.next_multiple_of(CHUNK) - self.next;
        if left < size {
            self.keep(self.next, left);
            self.next += left;
        }
        if words.make(self.next / CHUNK) {
            let at = self.next as u32;
            self.next += size;
            return Some(at);
        }
        // No fresh words: break up a larger free area.
        let larger = (class + 1..SIZES.len()).find(|c| !self.free[*c].is_empty());
        let Some(at) = larger.and_then(|c| self.free[c].pop().map(|at| (at, c))) else {
            self.used -= size;
            return None;
        };
        self.keep(at.0 as usize + size, usize::from(SIZES[at.1]) - size);
        Some(at.0)
    }

    /// Gives an area back.
    pub(super) fn give(&mut self, at: u32, class: u8) {
        if let Some(free) = self.free.get_mut(usize::from(class)) {
            free.push(at);
            self.used -= usize::from(SIZES[usize::from(class)]);
        }
    }

    /// Gives back the end of an area, down to what the smaller class needs.
    pub(super) fn trim(&mut self, at: u32, old: u8, new: u8) {
        let size = |class: u8| SIZES.get(usize::from(class)).map_or(0, |s| usize::from(*s));
        self.keep(at as usize + size(new), size(old).saturating_sub(size(new)));
        self.used -= size(old).saturating_sub(size(new));
    }

    /// Bytes that the free lists take.
    pub(super) fn bytes(&self) -> usize {
        self.free.iter().map(|f| f.capacity() * 4).sum()
    }

    fn keep(&mut self, mut at: usize, mut len: usize) {
        while len > 0 {
            let class = SIZES.partition_point(|s| usize::from(*s) <= len) - 1;
            self.free[class].push(at as u32);
            at += usize::from(SIZES[class]);
            len -= usize::from(SIZES[class]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn areas_never_overlap(steps in prop::collection::vec((any::<bool>(), 1usize..3000), 1..300)) {
            let words = Words::new(3 * CHUNK);
            let mut space = Space::new();
            let mut held: Vec<(u32, u8)> = Vec::new();
            for (take, len) in steps {
                if take {
                    let class = class(len);
                    prop_assert!(usize::from(SIZES[usize::from(class)]) >= len);
                    if let Some(at) = space.take(&words, class) {
                        prop_assert_eq!(words.area(at, len).len(), len);
                        held.push((at, class));
                    }
                } else if !held.is_empty() {
                    let (at, class) = held.swap_remove(len % held.len());
                    space.give(at, class);
                }
                let mut sorted = held.clone();
                sorted.sort_unstable();
                for pair in sorted.windows(2) {
                    prop_assert!(pair[0].0 + u32::from(SIZES[usize::from(pair[0].1)]) <= pair[1].0);
                }
                prop_assert_eq!(space.used, held.iter().map(|h| usize::from(SIZES[usize::from(h.1)])).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_full_arena_refuses_and_recovers() {
        let words = Words::new(CHUNK);
        let mut space = Space::new();
        let all = space.take(&words, class(CHUNK)).unwrap();
        assert_eq!(space.take(&words, class(1)), None);
        space.give(all, class(CHUNK));
        assert!(space.take(&words, class(5)).is_some());
        assert!(words.area(u32::MAX - 3, 8).is_empty());
        assert!(words.word(u32::MAX).is_none());
    }
}
