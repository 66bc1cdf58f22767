//! A small number for each live endpoint, and tables that are kept by it.
//!
//! A plugin that remembers something of each endpoint (when it was last used, whether its labels match) must find it without
//! hashing a name for each endpoint of each pick. Numbers are reused after an endpoint is gone, so a table stays as small as the
//! number of endpoints that were alive at the same time; each cell says whose value it holds, so that nobody reads what was
//! remembered of a predecessor.

use parking_lot::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// The free numbers and the next one that nobody had.
static NUMBERS: Mutex<(Vec<u32>, u32)> = Mutex::new((Vec::new(), 0));
const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
static NEXT_UID: AtomicU64 = AtomicU64::new(1);

/// An endpoint's number, held as long as the endpoint is.
#[derive(Debug)]
pub struct Slot {
    index: u32,
    uid: u64,
}

impl Slot {
    /// A number that no other live endpoint has.
    pub(super) fn claim() -> Self {
        let mut numbers = NUMBERS.lock();
        let index = numbers.0.pop().unwrap_or_else(|| {
            let index = numbers.1;
            numbers.1 = index.saturating_add(1);
            index
        });
        Self {
            index,
            uid: NEXT_UID.fetch_add(1, Relaxed),
        }
    }

    /// Small; unique among live endpoints.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Index and uid in one number, unique in the process: what an index keeps instead of a name.
    pub fn key(&self) -> u64 {
        self.uid << INDEX_BITS | u64::from(self.index) & INDEX_MASK
    }

    /// The index within a [`Slot::key`].
    pub fn index_of(key: u64) -> usize {
        (key & INDEX_MASK) as usize
    }

    /// Unique in the process, never 0.
    pub fn uid(&self) -> u64 {
        self.uid
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        NUMBERS.lock().0.push(self.index);
    }
}

#[derive(Default)]
struct Cell {
    owner: AtomicU64,
    value: AtomicU64,
}

/// First block's size; each further block doubles the whole.
const FIRST: u32 = 64;
const BLOCKS: usize = 27;

/// A number for each endpoint: 0 until set. Reads and writes take no lock; a table grows without moving what it has.
pub struct SlotTable {
    blocks: [OnceLock<Box<[Cell]>>; BLOCKS],
}

impl Default for SlotTable {
    fn default() -> Self {
        Self {
            blocks: [const { OnceLock::new() }; BLOCKS],
        }
    }
}

impl std::fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlotTable")
    }
}

/// Block and place in it: block 0 has `FIRST` cells, block n >= 1 has `FIRST << (n - 1)`.
fn locate(index: u32) -> (usize, usize) {
    if index < FIRST {
        return (0, index as usize);
    }
    let block = (index / FIRST).ilog2() + 1;
    (block as usize, (index - (FIRST << (block - 1))) as usize)
}

impl SlotTable {
    /// What was set for this very endpoint; 0 if nothing was.
    pub fn get(&self, slot: &Slot) -> u64 {
        let (block, at) = locate(slot.index);
        let cell = self
            .blocks
            .get(block)
            .and_then(OnceLock::get)
            .and_then(|cells| cells.get(at));
        match cell {
            Some(cell) if cell.owner.load(Acquire) == slot.uid => cell.value.load(Relaxed),
            _ => 0,
        }
    }

    /// Remembers a number for an endpoint. Allocates only when the table grows.
    pub fn set(&self, slot: &Slot, value: u64) {
        let (block, at) = locate(slot.index);
        let Some(cells) = self.blocks.get(block) else {
            return;
        };
        let size = if block == 0 {
            FIRST
        } else {
            FIRST << (block - 1)
        };
        let cells = cells.get_or_init(|| (0..size).map(|_| Cell::default()).collect());
        if let Some(cell) = cells.get(at) {
            cell.value.store(value, Relaxed);
            cell.owner.store(slot.uid, Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for index in 0..10_000 {
            let (block, at) = locate(index);
            let size = if block == 0 { 64 } else { 64 << (block - 1) };
            assert!(at < size, "{index}: {at} in block {block}");
            assert!(seen.insert((block, at)));
        }
    }

    #[test]
    fn a_successor_does_not_inherit() {
        let table = SlotTable::default();
        let first = Slot {
            index: 70,
            uid: u64::MAX,
        };
        assert_eq!(table.get(&first), 0);
        table.set(&first, 5);
        assert_eq!(table.get(&first), 5);
        let next = Slot {
            index: 70,
            uid: u64::MAX - 1,
        };
        assert_eq!(table.get(&next), 0);
        table.set(&next, 6);
        assert_eq!((table.get(&first), table.get(&next)), (0, 6));
        // They were not claimed, so their numbers must not be given back.
        std::mem::forget((first, next));
    }

    #[test]
    fn live_slots_are_distinct() {
        let slots: Vec<Slot> = (0..200).map(|_| Slot::claim()).collect();
        let mut indices: Vec<u32> = slots.iter().map(Slot::index).collect();
        indices.sort_unstable();
        indices.dedup();
        assert_eq!(indices.len(), 200);
    }
}
