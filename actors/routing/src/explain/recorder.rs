//! Which requests are recorded, and where their records go.

use super::RequestRecord;
use super::ring::Ring;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What an operator may choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecorderOptions {
    /// Records kept.
    pub capacity: usize,
    /// Memory that they may take, in bytes.
    pub max_bytes: usize,
    /// Share of the requests that are recorded, 0 to 1.
    pub share: f64,
    /// No more than this many in a second, whatever the share: bounds what recording costs under load.
    pub max_per_second: u32,
}

/// Takes records to somewhere else. Must not block and must not keep the request waiting.
pub trait RecordSink: Send + Sync {
    /// A request has ended.
    fn take(&self, record: &Arc<RequestRecord>);
}

/// A sink and the share of requests that it wants.
pub struct SinkOptions {
    /// Where they go.
    pub sink: Arc<dyn RecordSink>,
    /// 0 to 1.
    pub share: f64,
}

struct Sink {
    options: SinkOptions,
    threshold: u64,
}

/// See the module's documentation. Shared by all doors of a node.
pub struct Recorder {
    ring: Ring,
    threshold: u64,
    max_per_second: u32,
    /// Second (upper half) and how many were begun in it.
    window: AtomicU64,
    sink: ArcSwapOption<Sink>,
}

/// A request is taken if a random number is below this.
fn threshold(share: f64) -> u64 {
    // The cast saturates: 1 is everything.
    if share >= 1.0 {
        u64::MAX
    } else {
        (share.max(0.0) * 2f64.powi(64)) as u64
    }
}

/// Another number from the same random one, so that two shares are drawn independently.
fn remixed(random: u64) -> u64 {
    random.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Recorder {
    /// An empty one.
    pub fn new(options: RecorderOptions) -> Self {
        Self {
            ring: Ring::new(options.capacity, options.max_bytes),
            threshold: threshold(options.share),
            max_per_second: options.max_per_second,
            window: AtomicU64::new(0),
            sink: ArcSwapOption::empty(),
        }
    }

    /// Whether a request is to be recorded; `random` is a fresh random number, `now` [`crate::now_ms`]. `asked`: somebody who may
    /// has asked for this very request.
    pub fn wants(&self, random: u64, now: u64, asked: bool) -> bool {
        asked || self.is_for_sink(random) || (self.is_drawn(random) && self.has_room(now / 1000))
    }

    fn is_drawn(&self, random: u64) -> bool {
        self.threshold == u64::MAX || random < self.threshold
    }

    fn is_for_sink(&self, random: u64) -> bool {
        let sink = self.sink.load();
        sink.as_ref()
            .is_some_and(|sink| sink.threshold == u64::MAX || remixed(random) < sink.threshold)
    }

    fn has_room(&self, second: u64) -> bool {
        let second = second & u64::from(u32::MAX);
        let seen = self.window.load(Relaxed);
        if seen >> 32 != second {
            // Of those who see the new second at the same time, one counts for all: a handful more or less.
            self.window.store(second << 32 | 1, Relaxed);
            return self.max_per_second > 0;
        }
        if seen & u64::from(u32::MAX) >= u64::from(self.max_per_second) {
            return false;
        }
        self.window.fetch_add(1, Relaxed);
        true
    }

    /// Takes the record of a request that has ended; `random` is what [`Recorder::wants`] was asked with.
    pub fn finish(&self, record: RequestRecord, random: u64) {
        let record = Arc::new(record);
        let sink = self.sink.load();
        if let Some(sink) = &*sink
            && self.is_for_sink(random)
        {
            sink.options.sink.take(&record);
        }
        self.ring.push(record);
    }

    /// From here on records go to `sink` as well; `None`: no more.
    pub fn set_sink(&self, sink: Option<SinkOptions>) {
        self.sink.store(sink.map(|options| {
            Arc::new(Sink {
                threshold: threshold(options.share),
                options,
            })
        }));
    }

    /// The records that are kept, newest first.
    pub fn records(&self) -> impl Iterator<Item = Arc<RequestRecord>> {
        self.ring.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    fn recorder(share: f64, max_per_second: u32) -> Recorder {
        Recorder::new(RecorderOptions {
            capacity: 10,
            max_bytes: 1 << 20,
            share,
            max_per_second,
        })
    }

    #[test]
    fn share_and_rate_bound_what_is_recorded() {
        let mut random = crate::random::Random::new(1);
        let off = recorder(0.0, 1000);
        assert!((0..1000).all(|_| !off.wants(random.bits(), 1000, false)));
        assert!(off.wants(u64::MAX, 1000, true), "asked for");
        let some = recorder(0.25, u32::MAX);
        let drawn = (0..10_000).filter(|_| some.wants(random.bits(), 1000, false));
        assert!((2200..2800).contains(&drawn.count()));
        let all = recorder(1.0, 7);
        for second in 1..4 {
            let taken = (0..50).filter(|i| all.wants(u64::MAX, second * 1000 + i, false));
            assert_eq!(taken.count(), 7);
        }
        let none = recorder(1.0, 0);
        assert!(!none.wants(0, 1000, false));
    }

    #[derive(Default)]
    struct Ids(Mutex<Vec<String>>);

    impl RecordSink for Ids {
        fn take(&self, record: &Arc<RequestRecord>) {
            self.0.lock().push(record.request_id.clone());
        }
    }

    #[test]
    fn a_sink_gets_its_own_share() {
        let recorder = recorder(0.0, 0);
        let ids = Arc::new(Ids::default());
        let sink = Arc::clone(&ids) as Arc<dyn RecordSink>;
        recorder.set_sink(Some(SinkOptions { sink, share: 1.0 }));
        assert!(recorder.wants(5, 1, false));
        let record = RequestRecord {
            request_id: "a".into(),
            ..Default::default()
        };
        recorder.finish(record.clone(), 5);
        recorder.set_sink(None);
        assert!(!recorder.wants(5, 1, false));
        recorder.finish(record, 5);
        assert_eq!(*ids.0.lock(), ["a"]);
        assert_eq!(recorder.records().count(), 2);
    }
}
