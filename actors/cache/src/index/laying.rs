//! Laying down blocks together with all who have them, in a map that nobody reads yet. Nothing is looked for: what is to come is new, and a
//! block that comes twice is noticed when the table of places gets it. The table is filled in batches by stripe, so that a stripe is locked
//! once for many blocks and its slots are in reach.

use super::block_map::{Location, Place, STRIPES};
use super::blocks::{Core, SHARDS};
use super::coverage::{Interval, Places};
use super::segment::Head;
use super::shard::{Shard, Writer};
use std::sync::atomic::Ordering;

/// Places of a stripe that are put into the table together. All that wait take 2 MiB.
const BATCH: usize = 2048;

/// What cannot be laid down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// What is wrong with it.
    Malformed(&'static str),
    /// There is no memory for it.
    Full,
}

/// Places that the table has not been told yet, by stripe.
pub(super) struct Laying {
    waiting: Vec<Vec<Place>>,
}

impl Laying {
    pub(super) fn new() -> Self {
        Self {
            waiting: vec![Vec::new(); STRIPES],
        }
    }

    /// Lays down a stretch of blocks with the intervals of its holders, in whatever order they are.
    pub(super) fn lay(
        &mut self,
        core: &Core,
        hashes: &[u64],
        list: &mut [Interval],
    ) -> Result<(), Unfit> {
        list.sort_unstable();
        check(hashes.len(), list).map_err(Unfit::Malformed)?;
        let number = hashes.first().map_or(0, |h| core.map.shard(*h, SHARDS));
        let shard = core.shards.get(number).ok_or(Unfit::Full)?;
        let segment = shard.lay(&mut shard.writer.lock(), hashes, list);
        let segment = segment.ok_or(Unfit::Full)?;
        for (place, hash) in hashes.iter().enumerate() {
            let at = shard.location(segment, place);
            let (stripe, place) = core.map.place(*hash, at);
            let waiting = &mut self.waiting[stripe];
            waiting.push(place);
            if waiting.len() == BATCH {
                tell(core, stripe, waiting)?;
            }
        }
        Ok(())
    }

    /// The table gets what waits.
    pub(super) fn finish(&mut self, core: &Core) -> Result<(), Unfit> {
        for (stripe, waiting) in self.waiting.iter_mut().enumerate() {
            tell(core, stripe, waiting)?;
        }
        Ok(())
    }
}

fn tell(core: &Core, stripe: usize, waiting: &mut Vec<Place>) -> Result<(), Unfit> {
    let new = core
        .map
        .fill(stripe, waiting, |at: Location, hash| core.means(at, hash));
    waiting.clear();
    if new {
        Ok(())
    } else {
        Err(Unfit::Malformed("a block comes twice"))
    }
}

/// Whether the sorted list is one that a segment of so many blocks, which are not too many, can have.
fn check(len: usize, list: &[Interval]) -> Result<(), &'static str> {
    if len == 0 {
        return Err("a stretch has no blocks");
    }
    if list.len() > usize::from(u16::MAX) {
        return Err("a stretch has too many intervals");
    }
    if list.iter().any(|i| i.start() >= i.end() || i.end() > len) {
        return Err("an interval is empty or not of its stretch");
    }
    let same = |a: &Interval, b: &Interval| (a.holder(), a.lane()) == (b.holder(), b.lane());
    let apart = |a: &Interval, b: &Interval| !same(a, b) || a.end() < b.start();
    if !list.is_sorted_by(apart) {
        return Err("intervals of a holder touch");
    }
    let covered = Places::of(list);
    if !(0..len).all(|place| covered.has(place)) {
        return Err("a block has no holder");
    }
    Ok(())
}

impl Shard {
    /// Makes a segment of the blocks and the checked list, of which the table is told later. Nothing if there is no memory for it.
    fn lay(&self, w: &mut Writer, hashes: &[u64], list: &[Interval]) -> Option<u32> {
        let segment = self.take_segment(w, hashes.len())?;
        let head = self.segments.head(segment);
        let area = self.segments.words.area(head.at(), hashes.len());
        for (word, hash) in area.iter().zip(hashes) {
            word.store(*hash, Ordering::Relaxed);
        }
        if !self.publish_list(w, segment, list) {
            self.free_segment(w, segment);
            return None;
        }
        for interval in list {
            w.tenant(interval.holder()).segments.insert(segment);
        }
        w.live[segment as usize] = hashes.len() as u16;
        let filled = Head::new(head.at(), hashes.len(), head.version());
        self.segments.set_head(segment, filled);
        Some(segment)
    }
}

#[cfg(test)]
mod tests {
    use super::super::coverage::SEGMENT;
    use super::*;

    #[test]
    fn only_lists_that_a_segment_can_have() {
        let of = |holder, lane, start, end| Interval::new(holder, lane, start, end, 0);
        assert_eq!(
            check(3, &[of(0, 0, 0, 1), of(0, 0, 2, 3), of(1, 0, 0, 2)]),
            Ok(())
        );
        assert_eq!(check(SEGMENT, &[of(0, 0, 0, SEGMENT)]), Ok(()));
        for (len, list) in [
            (0, vec![]),
            (2, vec![of(0, 0, 0, 1)]),
            (2, vec![of(0, 0, 0, 2), of(1, 0, 1, 1)]),
            (2, vec![of(0, 0, 0, 3)]),
            (3, vec![of(0, 0, 0, 2), of(0, 0, 1, 3)]),
            (3, vec![of(0, 0, 0, 2), of(0, 0, 2, 3)]),
            (1, vec![of(0, 0, 0, 1), of(0, 0, 0, 1)]),
        ] {
            assert!(check(len, &list).is_err(), "{len} {list:?}");
        }
    }

    #[test]
    fn a_block_that_comes_twice_is_noticed() {
        let core = Core::new(1 << 12, 1 << 20);
        let mut laying = Laying::new();
        let mut list = [Interval::new(0, 0, 0, 2, 0)];
        laying.lay(&core, &[1, 2], &mut list).unwrap();
        laying.lay(&core, &[3, 4], &mut list).unwrap();
        assert_eq!(laying.finish(&core), Ok(()));
        assert_eq!(core.map.len(), 4);
        laying.lay(&core, &[5, 2], &mut list).unwrap();
        assert_eq!(
            laying.finish(&core),
            Err(Unfit::Malformed("a block comes twice"))
        );
    }
}
