//! Which stretch of a segment a holder has on which tier: packed intervals in a sorted list, as pure functions.
//!
//! Intervals of one (holder, tier) are disjoint and do not touch, so the one that contains a block says how far the tier reaches from
//! there. Intervals of expected blocks are disjoint but may touch, because each keeps the generation that added it.

use super::weights::{SPECULATIVE, TIERS};

/// Most blocks in a segment.
pub(super) const SEGMENT: usize = 1 << SEGMENT_BITS;
/// Bits of a block's place in its segment.
pub(super) const SEGMENT_BITS: u32 = 10;

/// Lane number of an expected block.
pub(super) const EXPECTED: u8 = SPECULATIVE as u8;

/// Holder (16 bits), lane (3), first block (10), end (11), generation (16), from bit 55 down: sorted as a number, a list is in the order
/// holder, lane, first block. Bit 63 stays free for the segment's own use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Interval(pub(super) u64);

impl Interval {
    pub(super) const fn new(
        holder: u16,
        lane: u8,
        start: usize,
        end: usize,
        generation: u16,
    ) -> Self {
        Self(
            (holder as u64) << 40
                | (lane as u64) << 37
                | (start as u64) << 27
                | (end as u64) << 16
                | generation as u64,
        )
    }

    pub(super) const fn holder(self) -> u16 {
        (self.0 >> 40) as u16
    }

    pub(super) const fn lane(self) -> u8 {
        (self.0 >> 37) as u8 & 7
    }

    pub(super) const fn start(self) -> usize {
        (self.0 >> 27) as usize & 0x3ff
    }

    pub(super) const fn end(self) -> usize {
        (self.0 >> 16) as usize & 0x7ff
    }

    pub(super) const fn generation(self) -> u16 {
        self.0 as u16
    }

    pub(super) const fn covers(self, place: usize) -> bool {
        self.start() <= place && place < self.end()
    }

    /// The same interval seen from a segment that holds `[from, to)` of this one, if any of it is there.
    pub(super) fn within(self, from: usize, to: usize) -> Option<Self> {
        let (start, end) = (self.start().max(from), self.end().min(to));
        (start < end).then(|| {
            Self::new(
                self.holder(),
                self.lane(),
                start - from,
                end - from,
                self.generation(),
            )
        })
    }
}

/// Stretches of places.
pub(super) type Stretches = Vec<(usize, usize)>;

/// The part of the sorted list that belongs to `holder` on `lane`.
pub(super) fn span(list: &[Interval], holder: u16, lane: u8) -> std::ops::Range<usize> {
    let low = Interval::new(holder, lane, 0, 0, 0);
    let high = Interval(low.0 + (1 << 37));
    list.partition_point(|i| *i < low)..list.partition_point(|i| *i < high)
}

/// The part of the sorted list that belongs to `holder`.
pub(super) fn span_of_holder(list: &[Interval], holder: u16) -> std::ops::Range<usize> {
    let low = Interval::new(holder, 0, 0, 0, 0);
    let high = Interval(low.0 + (1 << 40));
    list.partition_point(|i| *i < low)..list.partition_point(|i| *i < high)
}

/// Adds `[start, end)`, and writes what was not there before to `fresh`.
pub(super) fn cover(
    list: &mut Vec<Interval>,
    holder: u16,
    lane: u8,
    start: usize,
    end: usize,
    fresh: &mut Stretches,
) {
    let span = span(list, holder, lane);
    let first = span.start + list[span.clone()].partition_point(|i| i.end() < start);
    let last = span.start + list[span].partition_point(|i| i.start() <= end);
    let (mut from, mut to, mut at) = (start, end, start);
    for interval in &list[first..last] {
        if at < interval.start() {
            fresh.push((at, interval.start().min(end)));
        }
        at = at.max(interval.end());
        from = from.min(interval.start());
        to = to.max(interval.end());
    }
    if at < end {
        fresh.push((at, end));
    }
    let merged = Interval::new(holder, lane, from, to, 0);
    if last == first + 1 {
        list[first] = merged;
    } else {
        list.splice(first..last, [merged]);
    }
}

/// Takes `[start, end)` away, and writes what was there to `gone`.
pub(super) fn uncover(
    list: &mut Vec<Interval>,
    holder: u16,
    lane: u8,
    start: usize,
    end: usize,
    gone: &mut Stretches,
) {
    let span = span(list, holder, lane);
    let first = span.start + list[span.clone()].partition_point(|i| i.end() <= start);
    let last = span.start + list[span].partition_point(|i| i.start() < end);
    if first >= last {
        return;
    }
    let (mut head, mut tail) = (None, None);
    for interval in &list[first..last] {
        gone.push((interval.start().max(start), interval.end().min(end)));
        if interval.start() < start {
            head = Some(Interval::new(
                holder,
                lane,
                interval.start(),
                start,
                interval.generation(),
            ));
        }
        if interval.end() > end {
            tail = Some(Interval::new(
                holder,
                lane,
                end,
                interval.end(),
                interval.generation(),
            ));
        }
    }
    match (head, tail) {
        (Some(kept), None) | (None, Some(kept)) if last == first + 1 => list[first] = kept,
        _ => {
            list.splice(first..last, head.into_iter().chain(tail));
        }
    }
}

/// Adds `[start, end)` as expected in `generation` wherever the holder has no announced block; an older expectation there gives way to the
/// new one. Writes what was neither announced nor expected before to `fresh`. False if nothing changed.
pub(super) fn expect(
    list: &mut Vec<Interval>,
    holder: u16,
    start: usize,
    end: usize,
    generation: u16,
    fresh: &mut Stretches,
) -> bool {
    let mut wanted: Stretches = vec![(start, end)];
    for interval in &list[span_of_holder(list, holder)] {
        if interval.lane() != EXPECTED {
            wanted = subtract(&wanted, interval.start(), interval.end());
        }
    }
    let changed = !wanted.is_empty();
    for (from, to) in wanted {
        let mut was = Stretches::new();
        uncover(list, holder, EXPECTED, from, to, &mut was);
        let mut unknown: Stretches = vec![(from, to)];
        for (a, b) in was {
            unknown = subtract(&unknown, a, b);
        }
        fresh.extend(unknown);
        let span = span(list, holder, EXPECTED);
        let at = span.start + list[span].partition_point(|i| i.start() < from);
        list.insert(at, Interval::new(holder, EXPECTED, from, to, generation));
    }
    changed
}

/// `stretches` without `[start, end)`.
fn subtract(stretches: &Stretches, start: usize, end: usize) -> Stretches {
    let mut rest = Stretches::with_capacity(stretches.len() + 1);
    for &(from, to) in stretches {
        if from < start.min(to) {
            rest.push((from, start.min(to)));
        }
        if end.max(from) < to {
            rest.push((end.max(from), to));
        }
    }
    rest
}

/// The blocks that a holder has one after another from `from` on, at most up to `to`, each on its best lane. `own` are all intervals of the
/// holder; the lengths are added to `by_lane`. Answers how many there are.
pub(super) fn sweep(
    own: impl Iterator<Item = Interval> + Clone,
    from: usize,
    to: usize,
    by_lane: &mut [u32; TIERS + 1],
) -> usize {
    let mut at = from;
    while at < to {
        let mut best: Option<Interval> = None;
        // Where a better lane than the best one begins.
        let mut until = to;
        for interval in own.clone() {
            if interval.covers(at) && best.is_none_or(|b| interval.lane() < b.lane()) {
                best = Some(interval);
            }
        }
        let Some(best) = best else { break };
        for interval in own.clone() {
            if interval.lane() < best.lane() && interval.start() > at {
                until = until.min(interval.start());
            }
        }
        let next = best.end().min(until);
        by_lane[usize::from(best.lane())] += (next - at) as u32;
        at = next;
    }
    at - from
}

/// A bit for each place of a segment.
#[derive(Clone)]
pub(super) struct Places([u64; SEGMENT / 64]);

impl Places {
    pub(super) const fn none() -> Self {
        Self([0; SEGMENT / 64])
    }

    /// The places that some interval of the list covers.
    pub(super) fn of(list: &[Interval]) -> Self {
        let mut places = Self::none();
        for interval in list {
            places.set(interval.start(), interval.end());
        }
        places
    }

    pub(super) fn set(&mut self, start: usize, end: usize) {
        for word in start / 64..end.div_ceil(64) {
            let low = start.saturating_sub(word * 64);
            let high = (end - word * 64).min(64);
            self.0[word] |= (u64::MAX >> (64 - (high - low))) << low;
        }
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.0[place / 64] >> (place % 64) & 1 == 1
    }

    /// The first stretch of marked places that ends behind `from`, as far as it lies there.
    pub(super) fn stretch(&self, from: usize) -> Option<(usize, usize)> {
        let start = self.next(from, 0)?;
        let end = self.next(start, u64::MAX).unwrap_or(SEGMENT);
        Some((start, end))
    }

    /// The first place from `from` on whose bit is not that of `skip`, which has all bits set or none.
    fn next(&self, from: usize, skip: u64) -> Option<usize> {
        let mut at = from;
        while let Some(word) = self.0.get(at / 64) {
            let rest = (word ^ skip) >> (at % 64);
            if rest != 0 {
                return Some(at + rest.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
