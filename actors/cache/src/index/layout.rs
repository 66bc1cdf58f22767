//! A shard's memory: the lists of segments and the areas of their hashes, each published so that readers find the old or the new.

use super::arena::{CHUNK, class};
use super::block_map::SEGMENT_NUMBER_BITS;
use super::coverage::Interval;
use super::segment::{Head, ListWord};
use super::shard::{Shard, Writer};
use std::sync::atomic::{Ordering, fence};

impl Shard {
    /// Makes the list the segment's. False if there is no memory for it; a list that gets shorter always finds room.
    pub(super) fn publish_list(&self, w: &mut Writer, segment: u32, list: &[Interval]) -> bool {
        let Some((_, word)) = self.segments.record(segment) else {
            return false;
        };
        let old = ListWord(word.load(Ordering::Relaxed));
        let old_area = match old.as_single() {
            Some(_) => &[],
            None => self.segments.words.area(old.at(), old.len()),
        };
        if old_area.len() == list.len() && list.len() > 1 {
            let mut differing = old_area
                .iter()
                .zip(list)
                .filter(|(a, b)| a.load(Ordering::Relaxed) != b.0);
            if let (first, None) = (differing.next(), differing.next()) {
                // One interval is one word: a reader sees it before or after.
                if let Some((word, interval)) = first {
                    word.store(interval.0, Ordering::Release);
                }
                return true;
            }
        }
        w.versions += 1;
        let new = match list {
            [] => ListWord::new(0, 0, w.versions),
            [one] => ListWord::single(*one),
            _ => match w.space.take(&self.segments.words, class(list.len())) {
                Some(at) => {
                    for (word, interval) in
                        self.segments.words.area(at, list.len()).iter().zip(list)
                    {
                        word.store(interval.0, Ordering::Relaxed);
                    }
                    ListWord::new(at, list.len(), w.versions)
                }
                None if list.len() < old_area.len() => {
                    // No other room: readers see no holders while the old area is written over.
                    word.store(ListWord::new(0, 0, w.versions).0, Ordering::Release);
                    fence(Ordering::Release);
                    for (word, interval) in old_area.iter().zip(list) {
                        word.store(interval.0, Ordering::Relaxed);
                    }
                    w.versions += 1;
                    word.store(
                        ListWord::new(old.at(), list.len(), w.versions).0,
                        Ordering::Release,
                    );
                    w.space
                        .trim(old.at(), class(old_area.len()), class(list.len()));
                    return true;
                }
                None => return false,
            },
        };
        word.store(new.0, Ordering::Release);
        fence(Ordering::Release);
        if !old_area.is_empty() {
            w.space.give(old.at(), class(old_area.len()));
        }
        true
    }

    /// Makes room for `len` blocks in the segment.
    pub(super) fn grow(&self, w: &mut Writer, segment: u32, len: usize) -> bool {
        let (old, new) = (w.classes[segment as usize], class(len));
        if new <= old {
            return true;
        }
        let head = self.segments.head(segment);
        let Some(at) = w.space.take(&self.segments.words, new) else {
            return false;
        };
        for (to, from) in self
            .segments
            .words
            .area(at, head.len())
            .iter()
            .zip(self.segments.hashes(head))
        {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.segments
            .set_head(segment, Head::new(at, head.len(), head.version() + 1));
        w.space.give(head.at(), old);
        w.classes[segment as usize] = new;
        true
    }

    /// A segment without blocks, with room for `len`.
    pub(super) fn take_segment(&self, w: &mut Writer, len: usize) -> Option<u32> {
        let segment = match w.free.pop() {
            Some(segment) => segment,
            None => {
                let most = (2 << SEGMENT_NUMBER_BITS) / CHUNK;
                let chunk = w.next as usize * 2 / CHUNK;
                if chunk >= most || !self.segments.records.make(chunk) {
                    return None;
                }
                w.next += 1;
                if w.classes.len() == w.classes.capacity() {
                    // By an eighth and not by half: there may be millions.
                    let more = w.classes.len() / 8 + 64;
                    w.classes.reserve_exact(more);
                    w.live.reserve_exact(more);
                }
                w.classes.push(0);
                w.live.push(0);
                w.next - 1
            }
        };
        let Some(at) = w.space.take(&self.segments.words, class(len)) else {
            w.free.push(segment);
            return None;
        };
        w.classes[segment as usize] = class(len);
        w.live[segment as usize] = 0;
        self.segments.set_head(
            segment,
            Head::new(at, 0, self.segments.head(segment).version() + 1),
        );
        Some(segment)
    }

    /// Gives back a segment that no block is in, and that nobody's set names.
    pub(super) fn free_segment(&self, w: &mut Writer, segment: u32) {
        let head = self.segments.head(segment);
        self.segments
            .set_head(segment, Head::new(0, 0, head.version() + 1));
        self.publish_list(w, segment, &[]);
        w.space.give(head.at(), w.classes[segment as usize]);
        w.free.push(segment);
    }
}
