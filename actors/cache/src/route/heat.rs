//! Which beginnings of prompts come most often, for people who want to see what the caches are good for.
//!
//! A pick only puts the keys of some of its prompt's prefixes (those of 1, 2, 4, 8... blocks) into a bounded queue, which takes no lock; where the
//! queue is full they are left out, and counted. Whoever expires what picks expected empties the queues a few times a second into a
//! sketch for each pool. Figures are of the last five to ten minutes.

use super::sketch::{Counted, Sketch};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Prefixes of a prompt that are counted: of up to 2,048 blocks.
const LEVELS: usize = 12;
/// Picks between two times that the queue is emptied.
const QUEUE: usize = 1024;
/// Prefixes of a pool that are counted for certain.
const MOST: usize = 1024;
/// After so long the older half of the figures is forgotten (ms).
const HALF_MS: u64 = 300_000;

/// A prefix and how often it came on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotPrefix {
    /// The key of its last block.
    pub key: u64,
    /// How often, and what it is.
    pub counted: Counted,
}

/// A pool's hottest prefixes.
#[derive(Clone, Debug, Default)]
pub struct HotPool {
    /// Most frequent first.
    pub prefixes: Vec<HotPrefix>,
    /// Picks of prompts whose blocks are known by name, and those among them that were counted.
    pub picks: u64,
    /// See `picks`.
    pub counted: u64,
    /// For how long.
    pub window_ms: u64,
}

/// What a pick leaves behind.
struct Sample {
    keys: [u64; LEVELS],
    levels: u8,
    block_tokens: u32,
    /// Blocks that the picked engine was believed to have.
    cached: u32,
}

/// Lengths, in blocks, of a prompt's prefixes that are counted, with the keys of their last blocks.
pub(super) fn prefixes(keys: &[u64]) -> impl Iterator<Item = (u32, u64)> {
    (0..LEVELS).map_while(|level| {
        let key = keys.get((1usize << level) - 1)?;
        Some((1 << level, *key))
    })
}

#[derive(Default)]
struct Half {
    sketch: Option<Sketch>,
    counted: u64,
    /// Picks when it began.
    picks: u64,
    began: u64,
}

impl Half {
    fn begin(now: u64, picks: u64) -> Self {
        Self {
            sketch: Some(Sketch::new(MOST)),
            counted: 0,
            picks,
            began: now,
        }
    }

    fn take(&mut self, sample: &Sample) {
        let Some(sketch) = &mut self.sketch else {
            return;
        };
        self.counted += 1;
        let mut parent = 0;
        let keys = sample.keys.iter().take(usize::from(sample.levels));
        for (level, key) in keys.enumerate() {
            let blocks = 1u32 << level;
            let tokens = blocks.saturating_mul(sample.block_tokens);
            sketch.add(*key, (parent, tokens), sample.cached >= blocks);
            parent = *key;
        }
    }
}

struct Inner {
    samples: Receiver<Sample>,
    young: Half,
    old: Half,
}

/// One pool's picks.
pub(super) struct PoolHeat {
    queue: SyncSender<Sample>,
    picks: AtomicU64,
    inner: Mutex<Inner>,
}

impl PoolHeat {
    fn new(now: u64) -> Self {
        let (queue, samples) = sync_channel(QUEUE);
        Self {
            queue,
            picks: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                samples,
                young: Half::begin(now, 0),
                old: Half::default(),
            }),
        }
    }

    /// A prompt of these blocks was sent to an engine that is believed to have the first `cached` of them.
    pub fn picked(&self, keys: &[u64], block_tokens: u32, cached: u32) {
        self.picks.fetch_add(1, Relaxed);
        let mut sample = Sample {
            keys: [0; LEVELS],
            levels: 0,
            block_tokens,
            cached,
        };
        for (place, (_, key)) in sample.keys.iter_mut().zip(prefixes(keys)) {
            *place = key;
            sample.levels += 1;
        }
        // A full queue: the pick is not counted.
        let _ = self.queue.try_send(sample);
    }

    fn drain(&self, now: u64) {
        let mut inner = self.inner.lock();
        let Inner {
            samples,
            young,
            old,
        } = &mut *inner;
        if now.saturating_sub(young.began) >= HALF_MS {
            let next = Half::begin(now, self.picks.load(Relaxed));
            *old = std::mem::replace(young, next);
        }
        // As many as can be there, so that it ends however fast they come.
        for sample in samples.try_iter().take(QUEUE) {
            young.take(&sample);
        }
    }

    fn hot(&self, most: usize, now: u64) -> HotPool {
        let inner = self.inner.lock();
        let halves = [&inner.young, &inner.old];
        let mut all: HashMap<u64, Counted> = HashMap::new();
        for (key, half) in halves
            .iter()
            .flat_map(|h| h.sketch.iter().flat_map(Sketch::iter))
        {
            let sum = all.entry(key).or_insert(Counted {
                count: 0,
                missed: 0,
                hits: 0,
                ..*half
            });
            sum.count += half.count;
            sum.missed += half.missed;
            sum.hits += half.hits;
        }
        let first = if inner.old.sketch.is_some() {
            &inner.old
        } else {
            &inner.young
        };
        let mut prefixes: Vec<HotPrefix> = all
            .into_iter()
            .map(|(key, counted)| HotPrefix { key, counted })
            .collect();
        prefixes.sort_unstable_by_key(|p| (std::cmp::Reverse(p.counted.count), p.key));
        prefixes.truncate(most);
        HotPool {
            prefixes,
            picks: self.picks.load(Relaxed).saturating_sub(first.picks),
            counted: halves.iter().map(|half| half.counted).sum(),
            window_ms: now.saturating_sub(first.began),
        }
    }
}

/// By pool.
#[derive(Default)]
pub(super) struct Heat(Mutex<BTreeMap<Arc<str>, Arc<PoolHeat>>>);

impl Heat {
    /// The pool's, which begins now if there is none yet.
    pub fn of(&self, pool: &Arc<str>, now: u64) -> Arc<PoolHeat> {
        let mut pools = self.0.lock();
        let heat = pools
            .entry(Arc::clone(pool))
            .or_insert_with(|| Arc::new(PoolHeat::new(now)));
        Arc::clone(heat)
    }

    fn all(&self) -> Vec<Arc<PoolHeat>> {
        self.0.lock().values().map(Arc::clone).collect()
    }

    /// Counts what picks have left.
    pub fn drain(&self, now: u64) {
        self.all().iter().for_each(|heat| heat.drain(now));
    }

    /// A pool's `most` hottest prefixes; `None`: nothing of it was ever counted.
    pub fn hot(&self, pool: &str, most: usize, now: u64) -> Option<HotPool> {
        let heat = self.0.lock().get(pool).map(Arc::clone)?;
        heat.drain(now);
        Some(heat.hot(most, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(hot: &HotPool, key: u64) -> (u64, u64, u32, u64) {
        let of = hot.prefixes.iter().find(|p| p.key == key);
        of.map_or((0, 0, 0, 0), |p| {
            let c = p.counted;
            (c.count, c.hits, c.tokens, c.parent)
        })
    }

    #[test]
    fn prefixes_are_counted_with_what_was_cached_of_them() {
        let heat = Heat::default();
        let pool: Arc<str> = "chat".into();
        assert!(heat.hot("chat", 9, 0).is_none());
        let of = heat.of(&pool, 1_000);
        // Three prompts that begin alike, of 5, 4 and 3 blocks of 16 tokens.
        of.picked(&[1, 2, 3, 4, 5], 16, 0);
        of.picked(&[1, 2, 3, 4], 16, 4);
        of.picked(&[1, 2, 9], 16, 3);
        of.picked(&[], 16, 0);
        let hot = heat.hot("chat", 99, 2_000).unwrap();
        assert_eq!((hot.picks, hot.counted, hot.window_ms), (4, 4, 1_000));
        assert_eq!(key(&hot, 1), (3, 2, 16, 0));
        assert_eq!(key(&hot, 2), (3, 2, 32, 1));
        assert_eq!(key(&hot, 4), (2, 1, 64, 2));
        assert_eq!(hot.prefixes.len(), 3, "blocks between are not counted");
        assert_eq!(heat.hot("chat", 1, 2_000).unwrap().prefixes.len(), 1);

        // Five minutes later they still count, ten minutes later they are forgotten.
        heat.drain(1_000 + HALF_MS);
        of.picked(&[1, 2], 16, 0);
        let hot = heat.hot("chat", 99, 2_000 + HALF_MS).unwrap();
        assert_eq!((key(&hot, 2).0, hot.picks), (4, 5));
        heat.drain(1_000 + 2 * HALF_MS);
        let hot = heat.hot("chat", 99, 1_000 + 2 * HALF_MS).unwrap();
        assert_eq!((key(&hot, 2).0, key(&hot, 4).0, hot.picks), (1, 0, 1));
    }

    #[test]
    fn a_full_queue_costs_the_count_and_nothing_else() {
        let heat = Heat::default();
        let of = heat.of(&"chat".into(), 0);
        for _ in 0..QUEUE + 10 {
            of.picked(&[7], 16, 1);
        }
        let hot = heat.hot("chat", 9, 1).unwrap();
        assert_eq!(
            (hot.picks, hot.counted, key(&hot, 7).0),
            (QUEUE as u64 + 10, QUEUE as u64, QUEUE as u64)
        );
    }
}
