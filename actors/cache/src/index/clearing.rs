//! The removing side of a shard: single blocks, whole holders, expired expectations, and the tidying of what they leave behind.

use super::arena::SIZES;
use super::block_map::Location;
use super::blocks::Core;
use super::coverage::{EXPECTED, Interval, Places, span, span_of_holder, uncover};
use super::ledger::Ledger;
use super::segment::Head;
use super::shard::{Lanes, Mark, Shard, Writer};
use crate::Tier;
use std::sync::atomic::{AtomicU64, Ordering};

/// A segment with fewer places than this is left as it is.
const TIDY: usize = 16;

impl Shard {
    /// Takes blocks of a holder away on one tier: the first of `hashes`, and those after it that lie beside it in either direction, as a
    /// chain's end does that is evicted from the back. Answers how many; 0 if the first one is not here.
    pub(super) fn remove(
        &self,
        w: &mut Writer,
        core: &Core,
        at: Location,
        hashes: &[u64],
        tier: Tier,
        book: &mut Ledger,
    ) -> usize {
        let area = self.segments.hashes(self.segments.head(at.segment));
        let meant = |(hash, word): &(&u64, &AtomicU64)| **hash == word.load(Ordering::Relaxed);
        let (before, after) = area.split_at(at.place.min(area.len()));
        let up = hashes.iter().zip(after).take_while(meant).count();
        if up == 0 {
            return 0;
        }
        let down = hashes[1..].iter().zip(before.iter().rev());
        let down = 1 + down.take_while(meant).count();
        let (start, end) = if up > 1 {
            (at.place, at.place + up)
        } else {
            (at.place + 1 - down, at.place + 1)
        };
        let holder = book.who.holder;
        let mut list = std::mem::take(&mut w.list);
        self.segments.load_list(at.segment, &mut list);
        let mut gone = std::mem::take(&mut w.stretches);
        gone.clear();
        uncover(&mut list, holder, tier as u8, start, end, &mut gone);
        // Taking the middle out of an interval makes one more: without memory for that, the rest of the interval goes too.
        if !gone.is_empty() && !self.publish_list(w, at.segment, &list) {
            let after = list
                .iter()
                .find(|i| i.holder() == holder && i.lane() == tier as u8 && i.start() == end);
            if let Some((from, to)) = after.map(|i| (i.start(), i.end())) {
                uncover(&mut list, holder, tier as u8, from, to, &mut gone);
                self.publish_list(w, at.segment, &list);
            }
        }
        self.settle(w, core, at.segment, &list, (&gone, Some(tier)), book);
        if span_of_holder(&list, holder).is_empty() {
            w.tenant(holder).segments.remove(&at.segment);
        }
        w.list = list;
        w.stretches = gone;
        end - start
    }

    /// Takes all blocks of a holder away, or those on one tier.
    pub(super) fn clear(&self, w: &mut Writer, core: &Core, lanes: Lanes, book: &mut Ledger) {
        let holder = book.who.holder;
        let segments: Vec<u32> = w.tenant(holder).segments.iter().copied().collect();
        let mut list = std::mem::take(&mut w.list);
        for segment in segments {
            self.segments.load_list(segment, &mut list);
            let span = match lanes {
                Lanes::All => span_of_holder(&list, holder),
                Lanes::One(tier) => span(&list, holder, tier as u8),
            };
            let gone: Vec<Interval> = list.drain(span).collect();
            if gone.is_empty() {
                continue;
            }
            if span_of_holder(&list, holder).is_empty() {
                w.tenant(holder).segments.remove(&segment);
            }
            self.publish_list(w, segment, &list);
            for tier in Tier::ALL {
                let area = self.segments.words.area(
                    self.segments.head(segment).at(),
                    self.segments.head(segment).len(),
                );
                for interval in gone.iter().filter(|i| i.lane() == tier as u8) {
                    for word in area.get(interval.start()..interval.end()).unwrap_or(&[]) {
                        book.remove(word.load(Ordering::Relaxed), tier);
                    }
                }
            }
            let expected = gone.iter().filter(|i| i.lane() == EXPECTED);
            book.dropped += expected.map(|i| (i.end() - i.start()) as u64).sum::<u64>();
            let stretches: Vec<_> = gone.iter().map(|i| (i.start(), i.end())).collect();
            self.settle(w, core, segment, &list, (&stretches, None), book);
        }
        w.list = list;
    }

    /// Drops what was expected in generations up to `generation` and has not been announced since.
    pub(super) fn expire(&self, w: &mut Writer, core: &Core, generation: u16, book: &mut Ledger) {
        loop {
            // Marks are not in order, and the loop below adds some: a segment that is tidied gets new ones for what was expected before.
            let (due, rest) = std::mem::take(&mut w.marks)
                .into_iter()
                .partition::<Vec<_>, _>(|mark| passed(mark.generation, generation));
            w.marks = rest;
            if due.is_empty() {
                return;
            }
            for mark in due {
                self.expire_mark(w, core, &mark, generation, book);
            }
        }
    }

    fn expire_mark(
        &self,
        w: &mut Writer,
        core: &Core,
        mark: &Mark,
        generation: u16,
        book: &mut Ledger,
    ) {
        let (segment, holder) = (mark.segment, mark.holder);
        let mut list = std::mem::take(&mut w.list);
        self.segments.load_list(segment, &mut list);
        let mut gone = Vec::new();
        list.retain(|i| {
            let goes =
                i.holder() == holder && i.lane() == EXPECTED && passed(i.generation(), generation);
            if goes {
                gone.push((i.start(), i.end()));
            }
            !goes
        });
        if !gone.is_empty() {
            book.dropped += gone.iter().map(|(a, b)| (b - a) as u64).sum::<u64>();
            self.publish_list(w, segment, &list);
            if span_of_holder(&list, holder).is_empty() {
                w.tenant(holder).segments.remove(&segment);
            }
            self.settle(w, core, segment, &list, (&gone, None), book);
        }
        w.list = list;
    }

    /// Books the blocks that lost an announced entry on `tier`, and removes those of `gone` that nobody has any more.
    fn settle(
        &self,
        w: &mut Writer,
        core: &Core,
        segment: u32,
        list: &[Interval],
        (gone, tier): (&[(usize, usize)], Option<Tier>),
        book: &mut Ledger,
    ) {
        let head = self.segments.head(segment);
        let area = self.segments.hashes(head);
        // For one block the list is looked through once, for many the places are marked first.
        let single = matches!(gone, [(a, b)] if b - a == 1);
        let covered = if single { None } else { Some(Places::of(list)) };
        let has = |place| {
            covered
                .as_ref()
                .map_or_else(|| list.iter().any(|i| i.covers(place)), |c| c.has(place))
        };
        let mut dead = 0;
        for place in gone.iter().flat_map(|(a, b)| *a..*b) {
            let Some(word) = area.get(place) else {
                continue;
            };
            let hash = word.load(Ordering::Relaxed);
            if let Some(tier) = tier {
                book.remove(hash, tier);
            }
            let at = self.location(segment, place);
            if !has(place) && core.map.remove(hash, at) {
                // A hash that is not the block's: readers who compare stop here.
                word.store(!hash, Ordering::Relaxed);
                dead += 1;
            }
        }
        if dead == 0 {
            return;
        }
        w.live[segment as usize] -= dead;
        let live = usize::from(w.live[segment as usize]);
        if live == 0 {
            self.free_segment(w, segment);
            return;
        }
        let mut len = head.len();
        if list.iter().all(|i| i.end() < len) {
            len = list.iter().map(|i| i.end()).max().unwrap_or(0);
            self.segments
                .set_head(segment, Head::new(head.at(), len, head.version() + 1));
        }
        let room = usize::from(SIZES[usize::from(w.classes[segment as usize])]);
        if room >= TIDY && (live * 2 < len || len * 4 <= room) {
            self.rehouse(w, core, segment, list, None);
        }
    }

    /// Moves each stretch of living blocks to a segment of its own, cut once more at `cut`. Nothing changes if there is no memory for it.
    pub(super) fn rehouse(
        &self,
        w: &mut Writer,
        core: &Core,
        segment: u32,
        list: &[Interval],
        cut: Option<usize>,
    ) {
        let head = self.segments.head(segment);
        let covered = Places::of(list);
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for place in (0..head.len()).filter(|p| covered.has(*p)) {
            match runs.last_mut() {
                Some(run) if run.1 == place && Some(place) != cut => run.1 += 1,
                _ => runs.push((place, place + 1)),
            }
        }
        let mut new = Vec::with_capacity(runs.len());
        for (start, end) in &runs {
            let Some(to) = self.take_segment(w, end - start) else {
                break;
            };
            new.push(to);
            let part: Vec<Interval> = list.iter().filter_map(|i| i.within(*start, *end)).collect();
            let area = self
                .segments
                .words
                .area(self.segments.head(to).at(), end - start);
            for (to, from) in area
                .iter()
                .zip(self.segments.hashes(head).get(*start..*end).unwrap_or(&[]))
            {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            if !self.publish_list(w, to, &part) {
                break;
            }
            w.live[to as usize] = (end - start) as u16;
            let fresh = self.segments.head(to);
            self.segments
                .set_head(to, Head::new(fresh.at(), end - start, fresh.version()));
        }
        if new.len() < runs.len() || new.last().is_some_and(|s| w.live[*s as usize] == 0) {
            for to in new {
                self.free_segment(w, to);
            }
            return;
        }
        for ((start, end), to) in runs.iter().zip(&new) {
            for (place, word) in self
                .segments
                .hashes(head)
                .iter()
                .enumerate()
                .take(*end)
                .skip(*start)
            {
                let hash = word.load(Ordering::Relaxed);
                core.map.replace(
                    hash,
                    self.location(segment, place),
                    self.location(*to, place - start),
                );
            }
            for interval in list.iter().filter_map(|i| i.within(*start, *end)) {
                if interval.lane() == EXPECTED {
                    w.mark(interval.generation(), *to, interval.holder());
                }
                w.tenant(interval.holder()).segments.insert(*to);
            }
        }
        for interval in list {
            w.tenant(interval.holder()).segments.remove(&segment);
        }
        self.free_segment(w, segment);
    }
}

/// Whether `generation` is not after `until`; generations wrap around.
pub(super) const fn passed(generation: u16, until: u16) -> bool {
    until.wrapping_sub(generation) < 1 << 15
}
