//! The keys that come most often in a stream, in bounded memory.
//!
//! The counters of Misra and Gries (1982) in batches: up to twice as many keys as asked for are counted, then the rarest half goes at once,
//! and what a key that comes later may have had before is remembered as one bound for all. So adding costs a table look-up, and
//! nothing that comes more often than the bound is ever missing.

use std::cmp::Reverse;
use std::collections::HashMap;

/// What is known of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Times that it came since it is counted.
    pub count: u64,
    /// Times that it may have come before, at most.
    pub missed: u64,
    /// Of `count`, those that were hits.
    pub hits: u64,
    /// Length of the prefix that it stands for, in tokens.
    pub tokens: u32,
    /// The key of the next shorter prefix that is counted; 0: there is none.
    pub parent: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Sketch {
    entries: HashMap<u64, Counted>,
    most: usize,
    bound: u64,
}

impl Sketch {
    /// Counts at least the `most` most frequent keys.
    pub fn new(most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            most: most.max(1),
            bound: 0,
        }
    }

    /// The key came once. `of` says what it stands for.
    pub fn add(&mut self, key: u64, of: (u64, u32), hit: bool) {
        let bound = self.bound;
        let entry = self.entries.entry(key).or_insert(Counted {
            missed: bound,
            ..Counted::default()
        });
        entry.count += 1;
        entry.hits += u64::from(hit);
        (entry.parent, entry.tokens) = of;
        if self.entries.len() > 2 * self.most {
            self.prune();
        }
    }

    fn prune(&mut self) {
        let mut all: Vec<(u64, u64)> = self
            .entries
            .iter()
            .map(|(key, e)| (e.count + e.missed, *key))
            .collect();
        all.sort_unstable_by_key(|of| Reverse(*of));
        for (times, key) in all.drain(self.most.min(all.len())..) {
            self.bound = self.bound.max(times);
            self.entries.remove(&key);
        }
    }

    /// All keys that are counted.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Counted)> {
        self.entries.iter().map(|(key, counted)| (*key, counted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_are_bounds_and_what_is_frequent_stays(stream in prop::collection::vec((0u64..60, any::<bool>()), 0..600), most in 1usize..12) {
            let mut sketch = Sketch::new(most);
            let mut exact: HashMap<u64, (u64, u64)> = HashMap::new();
            for (key, hit) in stream {
                sketch.add(key, (key / 2, 16), hit);
                let of = exact.entry(key).or_default();
                *of = (of.0 + 1, of.1 + u64::from(hit));
            }
            prop_assert!(sketch.entries.len() <= 2 * most);
            for (key, counted) in sketch.iter() {
                let (times, hits) = exact[&key];
                prop_assert!(counted.count <= times && times <= counted.count + counted.missed);
                prop_assert!(counted.hits <= hits && counted.hits <= counted.count);
                prop_assert_eq!((counted.parent, counted.tokens), (key / 2, 16));
            }
            for (key, (times, _)) in exact {
                prop_assert!(times <= sketch.bound || sketch.entries.contains_key(&key));
            }
            // The bound rises by one only after more than `most` keys came once more.
            prop_assert!(sketch.bound <= 600 / most as u64);
        }
    }
}
