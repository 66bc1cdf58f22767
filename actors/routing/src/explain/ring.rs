//! The latest records, in a ring of fixed size: writers and readers take no lock.

use super::RequestRecord;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire},
};

struct Kept {
    number: u64,
    bytes: usize,
    record: Arc<RequestRecord>,
}

/// See the module's documentation. The oldest records go first, when there are too many or when they take too much memory.
pub(super) struct Ring {
    places: Box<[ArcSwapOption<Kept>]>,
    next: AtomicU64,
    /// No record below this number is left.
    oldest: AtomicU64,
    bytes: AtomicUsize,
    max_bytes: usize,
}

impl Ring {
    pub fn new(capacity: usize, max_bytes: usize) -> Self {
        Self {
            places: (0..capacity.max(1))
                .map(|_| ArcSwapOption::empty())
                .collect(),
            next: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            max_bytes,
        }
    }

    fn place(&self, number: u64) -> Option<&ArcSwapOption<Kept>> {
        let at = usize::try_from(number % self.places.len() as u64).ok()?;
        self.places.get(at)
    }

    pub fn push(&self, record: Arc<RequestRecord>) {
        let bytes = record.bytes();
        let number = self.next.fetch_add(1, AcqRel);
        let Some(place) = self.place(number) else {
            return;
        };
        self.bytes.fetch_add(bytes, AcqRel);
        let kept = Kept {
            number,
            bytes,
            record,
        };
        self.forget(place.swap(Some(Arc::new(kept))));
        while self.bytes.load(Acquire) > self.max_bytes {
            let oldest = self.oldest.fetch_add(1, AcqRel);
            // The newest stays, however large it is.
            if oldest >= number {
                self.oldest.fetch_min(number, AcqRel);
                break;
            }
            let Some(place) = self.place(oldest) else {
                break;
            };
            let there = place.load_full();
            if let Some(kept) = there.filter(|kept| kept.number == oldest) {
                let before = place.compare_and_swap(&kept, None);
                let taken = before.as_ref().is_some_and(|b| Arc::ptr_eq(b, &kept));
                drop(before);
                if taken {
                    self.forget(Some(kept));
                }
            }
        }
    }

    fn forget(&self, kept: Option<Arc<Kept>>) {
        if let Some(kept) = kept {
            self.bytes.fetch_sub(kept.bytes, AcqRel);
        }
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = Arc<RequestRecord>> {
        let next = self.next.load(Acquire);
        let from = next.saturating_sub(self.places.len() as u64);
        (from..next).rev().filter_map(move |number| {
            let kept = self.place(number)?.load();
            // A place that was written again meanwhile holds a newer record, which is not part of this look.
            let kept = kept.as_ref().filter(|kept| kept.number == number)?;
            Some(Arc::clone(&kept.record))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: usize) -> Arc<RequestRecord> {
        Arc::new(RequestRecord {
            request_id: id.to_string(),
            ..Default::default()
        })
    }

    fn ids(ring: &Ring) -> Vec<String> {
        ring.iter().map(|r| r.request_id.clone()).collect()
    }

    #[test]
    fn newest_first_and_the_oldest_go() {
        let ring = Ring::new(3, usize::MAX);
        assert!(ids(&ring).is_empty());
        for id in 0..5 {
            ring.push(record(id));
        }
        assert_eq!(ids(&ring), ["4", "3", "2"]);
        assert_eq!(ring.bytes.load(Acquire), 3 * record(0).bytes());
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stays() {
        let each = record(0).bytes();
        let ring = Ring::new(100, 2 * each);
        for id in 0..7 {
            ring.push(record(id));
        }
        assert_eq!(ids(&ring), ["6", "5"]);
        let tiny = Ring::new(4, 1);
        for id in 0..9 {
            tiny.push(record(id));
            assert_eq!(ids(&tiny), [id.to_string()]);
        }
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing_that_has_room() {
        let ring = Ring::new(4000, usize::MAX);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let ring = &ring;
                scope.spawn(move || (0..1000).for_each(|i| ring.push(record(thread * 1000 + i))));
            }
        });
        let mut all: Vec<usize> = ids(&ring).iter().map(|id| id.parse().unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..4000).collect::<Vec<_>>());
    }
}
