//! Where each block is: an open-addressing table from block hash to (shard, segment, place), in stripes that are written one by one and
//! read without a lock.
//!
//! A slot is one word: 24 bits of the hash, and the location. The full hash is in the segment, so a reader asks there whether a location is
//! the right one. A slot never moves within a table; a removed one is marked and used again. A stripe that is full is copied to
//! a new table of the right size, which then takes its place: readers of the old one miss at most what was stored meanwhile. The tables of all
//! stripes stand in one list, so that the slots of many hashes can be looked at without anything to wait for in between.

use super::coverage::SEGMENT_BITS;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Tables of the map; the top bits of a mixed hash choose one.
pub(super) const STRIPES: usize = 64;
const TAG_BITS: u32 = 24;
/// Bits of a shard's number in a location.
pub(super) const SHARD_BITS: u32 = 6;
/// Bits of a segment's number in its shard.
pub(super) const SEGMENT_NUMBER_BITS: u32 = 23;
const TAKEN: u64 = 1 << 63;
const REMOVED: u64 = 1;
const LOCATION: u64 = (1 << (SHARD_BITS + SEGMENT_NUMBER_BITS + SEGMENT_BITS)) - 1;
/// Slots of an empty stripe.
const SMALLEST: usize = 16;

/// A block's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Location {
    pub(super) shard: usize,
    pub(super) segment: u32,
    pub(super) place: usize,
}

impl Location {
    const fn pack(self) -> u64 {
        (self.shard as u64) << (SEGMENT_NUMBER_BITS + SEGMENT_BITS)
            | (self.segment as u64) << SEGMENT_BITS
            | self.place as u64
    }

    const fn unpack(word: u64) -> Self {
        Self {
            shard: (word >> (SEGMENT_NUMBER_BITS + SEGMENT_BITS)) as usize
                & ((1 << SHARD_BITS) - 1),
            segment: (word >> SEGMENT_BITS) as u32 & ((1 << SEGMENT_NUMBER_BITS) - 1),
            place: word as usize & ((1 << SEGMENT_BITS) - 1),
        }
    }
}

/// A block and the word that says where it is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    hash: u64,
    word: u64,
}

#[derive(Clone)]
struct Table {
    slots: Arc<[AtomicU64]>,
}

impl Table {
    fn new(slots: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Where the search for a tag begins: in the order of tags, so that a table can be copied from front to back.
    fn home(&self, tag: u64) -> usize {
        (tag as usize * self.slots.len()) >> TAG_BITS
    }

    /// Slot numbers from the tag's home on, once around.
    fn from(&self, tag: u64) -> impl Iterator<Item = usize> {
        let home = self.home(tag);
        (home..self.slots.len()).chain(0..home)
    }
}

#[derive(Default)]
struct Counts {
    /// Slots with a location.
    taken: usize,
    /// Slots marked as removed.
    removed: usize,
}

/// Has a cache line for itself: another processor's writes to the next one do not slow it down.
#[derive(Default)]
#[repr(align(64))]
struct Stripe {
    /// Blocks that were given another location, ever: counted when the new one is there and before the old one is used again.
    moves: AtomicU64,
    counts: Mutex<Counts>,
}

/// The map. Writers of different stripes do not wait for each other, readers for nobody.
pub(super) struct BlockMap {
    stripes: Box<[Stripe]>,
    /// By stripe; only who has the lock of a stripe's counts gives it another one.
    tables: ArcSwap<Vec<Table>>,
    /// Chosen anew in each process, so that nobody outside can aim at one slot.
    seed: u64,
}

impl BlockMap {
    pub(super) fn new() -> Self {
        let tables = (0..STRIPES).map(|_| Table::new(SMALLEST));
        Self {
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            tables: ArcSwap::from_pointee(tables.collect()),
            seed: RandomState::new().hash_one(0u8),
        }
    }

    /// Stripe and tag of a hash.
    fn mix(&self, hash: u64) -> (usize, u64) {
        let wide = u128::from(hash ^ self.seed) * 0x9e37_79b9_7f4a_7c15;
        let mixed = (wide >> 64) as u64 ^ wide as u64;
        let mixed = mixed ^ mixed >> 32;
        (
            (mixed >> 58) as usize,
            mixed >> (58 - TAG_BITS) & ((1 << TAG_BITS) - 1),
        )
    }

    /// The stripe's table from now on. Its lock must be held.
    fn set_table(&self, stripe: usize, table: &Table) {
        self.tables.rcu(|tables| {
            let mut tables = Vec::clone(tables);
            tables[stripe] = table.clone();
            tables
        });
    }

    /// Looks at where the search for each of the hashes begins. The looks do not wait for each other, as those of one search after the other do:
    /// so what comes next finds all of it near.
    pub(super) fn approach(&self, hashes: &[u64]) {
        let tables = self.tables.load();
        let first = |hash: &u64| {
            let (stripe, tag) = self.mix(*hash);
            let table = &tables[stripe];
            table.slots[table.home(tag)].load(Ordering::Relaxed)
        };
        std::hint::black_box(hashes.iter().map(first).fold(0, |all, word| all | word));
    }

    /// The shard that a new segment beginning with the hash goes to.
    pub(super) fn shard(&self, hash: u64, shards: usize) -> usize {
        (self.mix(hash).1 as usize * shards) >> TAG_BITS
    }

    /// The location of a hash for which `right` answers that the block there is the one. It is called for each candidate, usually once.
    pub(super) fn find<T>(
        &self,
        hash: u64,
        mut right: impl FnMut(Location) -> Option<T>,
    ) -> Option<T> {
        let (number, tag) = self.mix(hash);
        let stripe = &self.stripes[number];
        loop {
            let moves = stripe.moves.load(Ordering::Acquire);
            let table = &self.tables.load()[number];
            let mut refused = false;
            for slot in table.from(tag) {
                let word = table.slots[slot].load(Ordering::Acquire);
                if word == 0 {
                    break;
                }
                if word & TAKEN == 0 || (word & !TAKEN) >> (63 - TAG_BITS) != tag {
                    continue;
                }
                if let Some(found) = right(Location::unpack(word)) {
                    return Some(found);
                }
                refused = true;
            }
            // Refused because the block has moved on, perhaps there and back, so that its slot reads as before? Then it was counted.
            fence(Ordering::Acquire);
            if !refused || stripe.moves.load(Ordering::Relaxed) == moves {
                return None;
            }
        }
    }

    /// Adds a hash unless one is there for which `right` says that it is the same: then its location is the error.
    pub(super) fn insert(
        &self,
        hash: u64,
        location: Location,
        mut right: impl FnMut(Location) -> bool,
    ) -> Result<(), Location> {
        let (stripe, tag) = self.mix(hash);
        let mut counts = self.stripes[stripe].counts.lock();
        let mut tables = self.tables.load();
        if (counts.taken + counts.removed + 1) * 5 > tables[stripe].slots.len() * 4 {
            self.set_table(stripe, &Self::copy(&tables[stripe], counts.taken + 1));
            counts.removed = 0;
            tables = self.tables.load();
        }
        let table = &tables[stripe];
        let mut spare = None;
        for slot in table.from(tag) {
            let word = table.slots[slot].load(Ordering::Relaxed);
            if word == 0 {
                spare = spare.or(Some((slot, false)));
                break;
            }
            if word == REMOVED {
                spare = spare.or(Some((slot, true)));
            } else if (word & !TAKEN) >> (63 - TAG_BITS) == tag && right(Location::unpack(word)) {
                return Err(Location::unpack(word));
            }
        }
        // There is always one: a fifth of the slots is kept empty.
        let Some((slot, removed)) = spare else {
            return Err(location);
        };
        counts.taken += 1;
        counts.removed -= usize::from(removed);
        table.slots[slot].store(
            TAKEN | tag << (63 - TAG_BITS) | location.pack(),
            Ordering::Release,
        );
        Ok(())
    }

    /// A hash's stripe, and what [`Self::fill`] puts there.
    pub(super) fn place(&self, hash: u64, location: Location) -> (usize, Place) {
        let (stripe, tag) = self.mix(hash);
        let word = TAKEN | tag << (63 - TAG_BITS) | location.pack();
        (stripe, Place { hash, word })
    }

    /// Makes tables for so many hashes at once.
    pub(super) fn reserve(&self, hashes: usize) {
        // Stripes fill almost evenly.
        let each = hashes / STRIPES + hashes / STRIPES / 32;
        for (number, stripe) in self.stripes.iter().enumerate() {
            let counts = stripe.counts.lock();
            if counts.taken == 0 && each > 0 {
                self.set_table(number, &Self::copy(&Table::new(0), each));
            }
        }
    }

    /// Adds hashes of a stripe of which none should be there. False if one is: then not all were added.
    pub(super) fn fill(
        &self,
        stripe: usize,
        places: &[Place],
        mut right: impl FnMut(Location, u64) -> bool,
    ) -> bool {
        let Some(counts) = self.stripes.get(stripe).map(|stripe| &stripe.counts) else {
            return false;
        };
        let mut counts = counts.lock();
        let mut table = self.tables.load()[stripe].clone();
        if (counts.taken + counts.removed + places.len()) * 5 > table.slots.len() * 4 {
            table = Self::copy(&table, counts.taken + places.len());
            self.set_table(stripe, &table);
            counts.removed = 0;
        }
        let slots = &*table.slots;
        for Place { hash, word } in places {
            let tag = (word & !TAKEN) >> (63 - TAG_BITS);
            let mut slot = table.home(tag);
            loop {
                let there = slots[slot].load(Ordering::Relaxed);
                if there == 0 {
                    break;
                }
                let same = there & TAKEN != 0 && (there & !TAKEN) >> (63 - TAG_BITS) == tag;
                if same && right(Location::unpack(there), *hash) {
                    return false;
                }
                slot = if slot + 1 == slots.len() { 0 } else { slot + 1 };
            }
            slots[slot].store(*word, Ordering::Release);
            counts.taken += 1;
        }
        true
    }

    /// Gives a hash that is at `old` the location `new`.
    pub(super) fn replace(&self, hash: u64, old: Location, new: Location) {
        let (stripe, _) = self.mix(hash);
        self.change(hash, old, |_, table, slot, word| {
            table.slots[slot].store(word & !LOCATION | new.pack(), Ordering::Release);
            self.stripes[stripe].moves.fetch_add(1, Ordering::Release);
        });
    }

    /// Removes a hash that is at `old`. False if it is not.
    pub(super) fn remove(&self, hash: u64, old: Location) -> bool {
        self.change(hash, old, |counts, table, slot, _| {
            counts.taken -= 1;
            // Nothing was pushed past this slot if the next one is empty.
            let next = if slot + 1 == table.slots.len() {
                0
            } else {
                slot + 1
            };
            let last = table.slots[next].load(Ordering::Relaxed) == 0;
            counts.removed += usize::from(!last);
            table.slots[slot].store(if last { 0 } else { REMOVED }, Ordering::Release);
        })
    }

    fn change(
        &self,
        hash: u64,
        old: Location,
        with: impl FnOnce(&mut Counts, &Table, usize, u64),
    ) -> bool {
        let (stripe, tag) = self.mix(hash);
        let mut counts = self.stripes[stripe].counts.lock();
        let table = &self.tables.load()[stripe];
        let wanted = TAKEN | tag << (63 - TAG_BITS) | old.pack();
        for slot in table.from(tag) {
            let word = table.slots[slot].load(Ordering::Relaxed);
            if word == 0 {
                return false;
            }
            if word == wanted {
                with(&mut counts, table, slot, word);
                return true;
            }
        }
        false
    }

    /// A table for `taken` hashes and some more, with what is in `old`.
    fn copy(old: &Table, taken: usize) -> Table {
        // It is filled to five eighths, and copied again at four fifths.
        let table = Table::new((taken * 8 / 5).max(SMALLEST));
        for word in &*old.slots {
            let word = word.load(Ordering::Relaxed);
            if word & TAKEN == 0 {
                continue;
            }
            let tag = (word & !TAKEN) >> (63 - TAG_BITS);
            for slot in table.from(tag) {
                if table.slots[slot].load(Ordering::Relaxed) == 0 {
                    table.slots[slot].store(word, Ordering::Relaxed);
                    break;
                }
            }
        }
        table
    }

    /// Blocks in the map.
    pub(super) fn len(&self) -> usize {
        self.stripes.iter().map(|s| s.counts.lock().taken).sum()
    }

    /// Bytes of the tables.
    pub(super) fn bytes(&self) -> usize {
        let tables = self.tables.load();
        tables.iter().map(|table| table.slots.len() * 8).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn location(n: u64) -> Location {
        Location {
            shard: n as usize % 64,
            segment: n as u32 & 0x7f_ffff,
            place: n as usize % 1024,
        }
    }

    proptest! {
        #[test]
        fn equals_a_map(steps in prop::collection::vec((0u8..3, 0u64..300), 0..2000)) {
            let map = BlockMap::new();
            let mut model: BTreeMap<u64, Location> = BTreeMap::new();
            // Locations are unique, so the model can tell which hash lies where.
            let mut next = 0u64;
            for (what, hash) in steps {
                match what {
                    0 => {
                        next += 1;
                        let known = model.contains_key(&hash);
                        let at = location(next);
                        prop_assert_eq!(map.insert(hash, at, |l| model.get(&hash) == Some(&l)).is_ok(), !known);
                        model.entry(hash).or_insert(at);
                    }
                    1 => if let Some(at) = model.remove(&hash) { prop_assert!(map.remove(hash, at)); },
                    _ => if let Some(at) = model.get_mut(&hash) {
                        next += 1;
                        map.replace(hash, *at, location(next));
                        *at = location(next);
                    },
                }
            }
            prop_assert_eq!(map.len(), model.len());
            for hash in 0..300 {
                let wanted = model.get(&hash).copied();
                prop_assert_eq!(map.find(hash, |l| (Some(l) == wanted).then_some(l)), wanted);
            }
        }
    }

    #[test]
    fn a_location_survives_packing() {
        let at = Location {
            shard: 63,
            segment: (1 << SEGMENT_NUMBER_BITS) - 1,
            place: 1023,
        };
        assert_eq!(Location::unpack(at.pack()), at);
        assert_eq!(at.pack() & !LOCATION, 0);
    }
}
