//! The map and the shards together: finding a block, storing a chain, removing blocks.

use super::block_map::{BlockMap, Location};
use super::coverage::Interval;
use super::ledger::Ledger;
use super::shard::{Added, Lanes, Shard, Writer};
use crate::Tier;
use parking_lot::MutexGuard;
use std::sync::Weak;

/// Shards, each with a lock for its writers.
pub const SHARDS: usize = 64;
/// A block that moves each time a writer looks for it is given up; it takes another writer to move it.
const ATTEMPTS: usize = 1000;

pub(super) struct Core {
    pub(super) map: BlockMap,
    pub(super) shards: Box<[Shard]>,
}

impl Core {
    /// Room for about `pairs` blocks of holders.
    pub(super) fn new(pairs: usize, bytes: usize) -> Self {
        // Shards fill unevenly, and areas have spare room: twice the even share. Chunks are made when needed.
        let words = bytes / 8 / SHARDS * 2;
        let segments = pairs / SHARDS * 2;
        Self {
            map: BlockMap::new(),
            shards: (0..SHARDS)
                .map(|n| Shard::new(n, words, segments))
                .collect(),
        }
    }

    /// Whether `hash` is at the location, or is about to be.
    pub(super) fn means(&self, at: Location, hash: u64) -> bool {
        self.shards
            .get(at.shard)
            .is_some_and(|s| s.segments.means(at.segment, at.place, hash))
    }

    /// Where the block is.
    fn locate(&self, hash: u64) -> Option<Location> {
        self.map.find(hash, |at| {
            self.shards
                .get(at.shard)?
                .segments
                .has(at.segment, at.place, hash)
                .then_some(at)
        })
    }

    /// How many of `hashes` lie together from the first one on, where the first one lies, and in `list` who has what of the segment.
    pub(super) fn read(&self, hashes: &[u64], list: &mut Vec<Interval>) -> Option<(usize, usize)> {
        self.map.find(*hashes.first()?, |at| {
            let len = self
                .shards
                .get(at.shard)?
                .segments
                .read(at.segment, at.place, hashes, list)?;
            Some((len, at.place))
        })
    }

    /// The shard for its writer. Where announced blocks are about to change, the snapshots that are being read get the shard as
    /// it is first.
    fn lock<'a>(
        &'a self,
        shard: usize,
        book: &Ledger,
    ) -> Option<(&'a Shard, MutexGuard<'a, Writer>)> {
        let shard = self.shards.get(shard)?;
        let writer = shard.writer.lock();
        for session in book.sessions.iter().filter_map(Weak::upgrade) {
            session.capture(shard, &writer);
        }
        Some((shard, writer))
    }

    /// Adds an entry of a holder for each of `hashes`, which follow one another in a chain whose last block before them is `parent`.
    /// Answers for how many, from the first on: fewer than all if the memory is used up, or if the slot has changed hands.
    pub(super) fn store(&self, parent: Option<u64>, hashes: &[u64], book: &mut Ledger) -> usize {
        let mut done = 0;
        let mut before: Option<Location> = None;
        let mut known: Option<Location> = None;
        let mut attempts = 0;
        while done < hashes.len() && attempts < ATTEMPTS {
            let rest = &hashes[done..];
            if let Some(at) = known.take().or_else(|| self.locate(rest[0])) {
                let Some((shard, mut w)) = self.lock(at.shard, book) else {
                    return done;
                };
                if !w.welcomes(book.who) {
                    return done;
                }
                match shard.extend(&mut w, self, at, rest, book) {
                    // A cut may have moved the last block; it is looked for when it is needed.
                    Some(len) if len > 0 => (done, before, attempts) = (done + len, None, 0),
                    Some(_) => return done,
                    None => attempts += 1,
                }
                continue;
            }
            let last = if done == 0 {
                parent
            } else {
                Some(hashes[done - 1])
            };
            let after = before
                .take()
                .or_else(|| last.and_then(|hash| self.locate(hash)));
            let mut added = Added::Blocks(0);
            if let (Some(after), Some(last)) = (after, last) {
                let Some((shard, mut w)) = self.lock(after.shard, book) else {
                    return done;
                };
                if !w.welcomes(book.who) {
                    return done;
                }
                added = shard.append(&mut w, self, after, last, rest, book);
                if let Added::Blocks(len @ 1..) = added {
                    before = Some(Location {
                        place: after.place + len,
                        ..after
                    });
                }
            }
            if added == Added::Blocks(0) {
                let number = self.map.shard(rest[0], SHARDS);
                let Some((shard, mut w)) = self.lock(number, book) else {
                    return done;
                };
                if !w.welcomes(book.who) {
                    return done;
                }
                let (made, segment) = shard.create(&mut w, self, rest, book);
                added = made;
                match made {
                    Added::Blocks(0) => return done,
                    Added::Blocks(len) => {
                        before = Some(Location {
                            shard: number,
                            segment,
                            place: len - 1,
                        })
                    }
                    Added::Known(_) => {}
                }
            }
            match added {
                Added::Blocks(len) => (done, attempts) = (done + len, 0),
                Added::Known(at) => (known, attempts) = (Some(at), attempts + 1),
            }
        }
        done
    }

    /// Takes blocks of a holder away on one tier; those that it has not are passed over.
    pub(super) fn remove(&self, tier: Tier, hashes: &[u64], book: &mut Ledger) {
        let mut rest = hashes;
        let mut attempts = 0;
        while let [first, others @ ..] = rest {
            let Some(at) = self.locate(*first) else {
                (rest, attempts) = (others, 0);
                continue;
            };
            let Some((shard, mut w)) = self.lock(at.shard, book) else {
                return;
            };
            let done = shard.remove(&mut w, self, at, rest, tier, book);
            attempts += 1;
            if done > 0 || attempts == ATTEMPTS {
                (rest, attempts) = (&rest[done.max(1)..], 0);
            }
        }
    }

    /// Takes all blocks of a holder away, or those on one tier.
    pub(super) fn clear(&self, lanes: Lanes, book: &mut Ledger) {
        for shard in 0..SHARDS {
            if let Some((shard, mut w)) = self.lock(shard, book) {
                shard.clear(&mut w, self, lanes, book);
            }
        }
    }

    /// Gives the slot another stamp in all shards.
    pub(super) fn admit(&self, holder: u16, stamp: u32) {
        for shard in &self.shards {
            shard.writer.lock().admit(holder, stamp);
        }
    }

    /// Drops what was expected in generations up to `generation`.
    pub(super) fn expire(&self, generation: u16, book: &mut Ledger) {
        for shard in &self.shards {
            shard.expire(&mut shard.writer.lock(), self, generation, book);
        }
    }

    /// Bytes taken, spare room included.
    pub(super) fn bytes(&self) -> usize {
        self.map.bytes() + self.shards.iter().map(Shard::bytes).sum::<usize>()
    }
}
