//! Sessions and the endpoints that they are bound to, in shards, bounded, forgotten after a time without use.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

const SHARDS: usize = 16;
/// Sessions that a shard keeps; beyond that the least recently used of a few go.
const SHARD_CAPACITY: usize = 65_536;
/// How many are looked at to find one to forget.
const SAMPLE: usize = 8;

#[derive(Clone, Copy)]
struct Binding {
    uid: u64,
    used_at: u64,
}

#[derive(Default)]
struct Shard {
    sessions: HashMap<u64, Binding>,
    swept_at: u64,
}

/// See the module's documentation. Sessions are known by a 64-bit hash of their name.
pub struct Bindings {
    shards: Box<[Mutex<Shard>]>,
    ttl_ms: u64,
    sweep_ms: u64,
}

impl std::fmt::Debug for Bindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bindings")
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Bindings {
    /// Empty. A binding ends `ttl` after its last use; the expired ones are removed every `sweep`.
    pub fn new(ttl: Duration, sweep: Duration) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            ttl_ms: ms(ttl),
            sweep_ms: ms(sweep),
        }
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[(key >> 60) as usize % SHARDS]
    }

    /// The endpoint (its slot's uid) of a session. Counts as use.
    pub fn get(&self, session: &str, now: u64) -> Option<u64> {
        let key = xxh3_64(session.as_bytes());
        let mut shard = self.shard(key).lock();
        let binding = shard.sessions.get_mut(&key)?;
        if now.saturating_sub(binding.used_at) > self.ttl_ms {
            shard.sessions.remove(&key);
            return None;
        }
        binding.used_at = now;
        Some(binding.uid)
    }

    /// Binds a session, unless it is bound to an endpoint that is `still_there`.
    pub fn bind(&self, session: &str, uid: u64, now: u64, still_there: impl Fn(u64) -> bool) {
        let key = xxh3_64(session.as_bytes());
        let mut shard = self.shard(key).lock();
        if now.saturating_sub(shard.swept_at) >= self.sweep_ms {
            shard.swept_at = now;
            let ttl = self.ttl_ms;
            shard
                .sessions
                .retain(|_, binding| now.saturating_sub(binding.used_at) <= ttl);
        }
        if let Some(binding) = shard.sessions.get_mut(&key) {
            let expired = now.saturating_sub(binding.used_at) > self.ttl_ms;
            if expired || !still_there(binding.uid) {
                binding.uid = uid;
            }
            binding.used_at = now;
            return;
        }
        if shard.sessions.len() >= SHARD_CAPACITY {
            let oldest = shard
                .sessions
                .iter()
                .take(SAMPLE)
                .min_by_key(|(_, binding)| binding.used_at)
                .map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                shard.sessions.remove(&oldest);
            }
        }
        shard.sessions.insert(key, Binding { uid, used_at: now });
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().sessions.len()).sum()
    }

    /// None is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_until_unused_or_gone() {
        let b = Bindings::new(Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(b.get("s", 0), None);
        b.bind("s", 7, 0, |_| true);
        assert_eq!(b.get("s", 900), Some(7));
        b.bind("s", 8, 900, |_| true);
        assert_eq!(b.get("s", 1800), Some(7), "used at 900");
        b.bind("s", 8, 1800, |uid| uid != 7);
        assert_eq!(b.get("s", 1801), Some(8), "7 is gone");
        assert_eq!(b.get("s", 2802), None);
        b.bind("s", 9, 5000, |_| true);
        b.bind("t", 9, 9000, |_| true);
        assert_eq!(b.get("s", 9000), None);
    }

    #[test]
    fn never_more_than_its_capacity() {
        let b = Bindings::new(Duration::from_secs(1000), Duration::from_secs(1000));
        for i in 0..(SHARDS * SHARD_CAPACITY + 50_000) {
            b.bind(&i.to_string(), 1, 1, |_| true);
        }
        assert!(b.len() <= SHARDS * SHARD_CAPACITY, "{}", b.len());
    }
}
