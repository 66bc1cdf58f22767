//! Sessions and the endpoints that they are bound to, in shards, bounded, forgotten after a time without use.
//!
//! Routers tell each other. Two of them may bind the same session at the same time: the binding with the larger stamp holds on
//! all of them. A stamp is the time of day in milliseconds, with bits of the endpoint's name below it so that no two endpoints tie.

use crate::endpoint::Endpoint;
use crate::learnt::SessionBinding;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_64;

const SHARDS: usize = 16;
/// Sessions that a shard keeps; beyond that the least recently used of a few go.
const SHARD_CAPACITY: usize = 65_536;
/// How many are looked at to find one to forget.
const SAMPLE: usize = 8;
/// Sessions of a shard that wait to be told; more are lost until they are used again.
const MOST_UNTOLD: usize = 1_024;
/// A session in use is told again after this time (ms), or a fourth of its life if that is shorter, so that others keep it.
const TELL_AGAIN_MS: u64 = 30_000;
/// Bits of a stamp below the time.
const TIE_BITS: u32 = 16;

/// An endpoint that sessions are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its slot's uid.
    pub uid: u64,
    /// The same on all routers, and most probably not that of another endpoint.
    pub tie: u16,
}

impl Place {
    /// Of an endpoint.
    pub fn of(endpoint: &Endpoint) -> Self {
        let spec = endpoint.spec();
        let tie = xxh3_64(spec.name.as_bytes()) ^ spec.incarnation;
        Self {
            uid: endpoint.slot().uid(),
            tie: (tie & 0xffff) as u16,
        }
    }
}

#[derive(Clone, Copy)]
struct Binding {
    uid: u64,
    used_at: u64,
    stamp: u64,
    told_at: u64,
}

#[derive(Default)]
struct Shard {
    sessions: HashMap<u64, Binding>,
    swept_at: u64,
    untold: Vec<u64>,
    lost: u64,
}

impl Shard {
    fn tell(&mut self, session: u64) {
        if self.untold.len() < MOST_UNTOLD {
            self.untold.push(session);
        } else {
            self.lost += 1;
        }
    }

    /// Makes room for one more.
    fn shrink(&mut self) {
        if self.sessions.len() < SHARD_CAPACITY {
            return;
        }
        let oldest = self
            .sessions
            .iter()
            .take(SAMPLE)
            .min_by_key(|(_, binding)| binding.used_at)
            .map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            self.sessions.remove(&oldest);
        }
    }
}

/// See the module's documentation. Sessions are known by a 64-bit hash of their name.
pub struct Bindings {
    shards: Box<[Mutex<Shard>]>,
    ttl_ms: u64,
    sweep_ms: u64,
    tell_again_ms: u64,
    /// Time of day at 0 of the process's clock.
    epoch_ms: u64,
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
        let day = SystemTime::now().duration_since(UNIX_EPOCH);
        let epoch_ms = day.map_or(0, ms).saturating_sub(crate::now_ms());
        Self::with_epoch(ttl, sweep, epoch_ms)
    }

    /// The same with a clock of which 0 is that time of day.
    pub(super) fn with_epoch(ttl: Duration, sweep: Duration, epoch_ms: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            ttl_ms: ms(ttl),
            sweep_ms: ms(sweep),
            tell_again_ms: TELL_AGAIN_MS.min(ms(ttl) / 4),
            epoch_ms,
        }
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[(key >> 60) as usize % SHARDS]
    }

    fn stamp(&self, place: Place, now: u64) -> u64 {
        let day = self.epoch_ms.saturating_add(now) & (u64::MAX >> TIE_BITS);
        day << TIE_BITS | u64::from(place.tie)
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
        let uid = binding.uid;
        if now.saturating_sub(binding.told_at) >= self.tell_again_ms {
            binding.told_at = now;
            shard.tell(key);
        }
        Some(uid)
    }

    /// Binds a session, unless it is bound to an endpoint that is `still_there`.
    pub fn bind(&self, session: &str, place: Place, now: u64, still_there: impl Fn(u64) -> bool) {
        let key = xxh3_64(session.as_bytes());
        let mut shard = self.shard(key).lock();
        if now.saturating_sub(shard.swept_at) >= self.sweep_ms {
            shard.swept_at = now;
            let ttl = self.ttl_ms;
            shard
                .sessions
                .retain(|_, binding| now.saturating_sub(binding.used_at) <= ttl);
        }
        let mut fresh = Binding {
            uid: place.uid,
            used_at: now,
            stamp: self.stamp(place, now),
            told_at: now,
        };
        if let Some(binding) = shard.sessions.get_mut(&key) {
            let expired = now.saturating_sub(binding.used_at) > self.ttl_ms;
            if !expired && still_there(binding.uid) {
                binding.used_at = now;
                return;
            }
            // Later than what it replaces, whatever the clock of the router says that bound it.
            fresh.stamp = fresh.stamp.max(binding.stamp.saturating_add(1));
            *binding = fresh;
        } else {
            shard.shrink();
            shard.sessions.insert(key, fresh);
        }
        shard.tell(key);
    }

    /// Takes over a binding of another router, if it is later than the one here.
    pub fn learn(&self, told: &SessionBinding, uid: u64, now: u64) {
        if told.idle_ms > self.ttl_ms {
            return;
        }
        let heard = Binding {
            uid,
            used_at: now.saturating_sub(told.idle_ms),
            stamp: told.stamp,
            told_at: now,
        };
        let mut shard = self.shard(told.session).lock();
        if let Some(binding) = shard.sessions.get_mut(&told.session) {
            let expired = now.saturating_sub(binding.used_at) > self.ttl_ms;
            if told.stamp > binding.stamp || expired {
                *binding = heard;
            } else if told.stamp == binding.stamp {
                binding.used_at = binding.used_at.max(heard.used_at);
                binding.told_at = now;
            }
            return;
        }
        shard.shrink();
        shard.sessions.insert(told.session, heard);
    }

    /// Takes what others have not been told, at most so many, the newest of each shard first: bindings and the uids of their endpoints.
    pub fn take(&self, most: usize, now: u64) -> Vec<(u64, SessionBinding)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            while all.len() < most
                && let Some(session) = shard.untold.pop()
            {
                all.extend(shard.sessions.get(&session).map(|b| told(session, b, now)));
            }
        }
        all
    }

    /// How many sessions were not told for want of room, since the last call.
    pub fn lost(&self) -> u64 {
        let lost = self
            .shards
            .iter()
            .map(|s| std::mem::take(&mut s.lock().lost));
        lost.sum()
    }

    /// The bindings to an endpoint, at most so many, those used last if there are more.
    pub fn copy(&self, uid: u64, most: usize, now: u64) -> Vec<SessionBinding> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let here = shard.sessions.iter().filter(|(_, b)| b.uid == uid);
            all.extend(here.map(|(session, b)| told(*session, b, now).1));
        }
        all.sort_unstable_by_key(|b| b.idle_ms);
        all.truncate(most);
        all
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

fn told(session: u64, binding: &Binding, now: u64) -> (u64, SessionBinding) {
    let told = SessionBinding {
        session,
        stamp: binding.stamp,
        idle_ms: now.saturating_sub(binding.used_at),
    };
    (binding.uid, told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(uid: u16) -> Place {
        Place {
            uid: uid.into(),
            tie: uid,
        }
    }

    #[test]
    fn bound_until_unused_or_gone() {
        let b = Bindings::new(Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(b.get("s", 0), None);
        b.bind("s", at(7), 0, |_| true);
        assert_eq!(b.get("s", 900), Some(7));
        b.bind("s", at(8), 900, |_| true);
        assert_eq!(b.get("s", 1800), Some(7), "used at 900");
        b.bind("s", at(8), 1800, |uid| uid != 7);
        assert_eq!(b.get("s", 1801), Some(8), "7 is gone");
        assert_eq!(b.get("s", 2802), None);
        b.bind("s", at(9), 5000, |_| true);
        b.bind("t", at(9), 9000, |_| true);
        assert_eq!(b.get("s", 9000), None);
    }

    #[test]
    fn never_more_than_its_capacity() {
        let b = Bindings::new(Duration::from_secs(1000), Duration::from_secs(1000));
        for i in 0..(SHARDS * SHARD_CAPACITY + 50_000) {
            b.bind(&i.to_string(), at(1), 1, |_| true);
        }
        assert!(b.len() <= SHARDS * SHARD_CAPACITY, "{}", b.len());
    }

    fn routers(n: usize) -> Vec<Bindings> {
        let long = Duration::from_secs(1000);
        // Clocks that differ, and times of day that do so too.
        let new = |i| Bindings::with_epoch(long, long, 1_000_000 + 300 * i as u64);
        (0..n).map(new).collect()
    }

    proptest! {
        /// Whatever was bound where at the same time, and in whatever order the routers hear of it: all end at the same endpoint.
        #[test]
        fn routers_agree_in_the_end(
            binds in prop::collection::vec((0usize..3, 1u16..5, 0u64..1000), 1..12),
            order in prop::collection::vec((0usize..3, 0usize..3), 0..12),
        ) {
            let routers = routers(3);
            let carry = |from: usize, to: usize, told: &[(u64, SessionBinding)]| {
                if from != to {
                    for (uid, binding) in told {
                        routers[to].learn(binding, *uid, 2000);
                    }
                }
            };
            for (router, uid, now) in &binds {
                routers[*router].bind("s", at(*uid), *now, |_| false);
            }
            // Some hear of a binding that is replaced here before everybody has heard of it.
            for (from, to) in order {
                carry(from, to, &routers[from].take(usize::MAX, 2000));
                routers[from].bind("s", at(1), 1500, |uid| uid != 2);
            }
            for (from, router) in routers.iter().enumerate() {
                let uid = router.get("s", 2000);
                let all: Vec<_> = uid.into_iter().flat_map(|uid| {
                    let bindings = router.copy(uid, 10, 2000);
                    bindings.into_iter().map(move |b| (uid, b))
                }).collect();
                for to in 0..3 {
                    carry(from, to, &all);
                }
            }
            let ends: Vec<_> = routers.iter().map(|r| r.get("s", 2001)).collect();
            prop_assert!(ends.iter().all(|e| *e == ends[0] && e.is_some()), "{:?}", ends);
        }
    }

    #[test]
    fn a_session_in_use_is_told_again_and_kept_by_others() {
        let routers = routers(2);
        routers[0].bind("s", at(3), 0, |_| true);
        for now in (0..5_000_000).step_by(10_000) {
            assert_eq!(routers[0].get("s", now), Some(3));
            for (uid, told) in routers[0].take(10, now) {
                routers[1].learn(&told, uid, now + 40);
            }
        }
        assert_eq!(routers[1].get("s", 5_000_000), Some(3));
        let idle = SessionBinding {
            session: 1,
            stamp: 1,
            idle_ms: 1_000_001,
        };
        routers[1].learn(&idle, 3, 5_000_000);
        assert_eq!(routers[1].len(), 1, "expired before it came");
    }

    #[test]
    fn more_than_can_be_told_is_lost_and_counted() {
        let b = &routers(1)[0];
        for i in 0..2 * SHARDS * MOST_UNTOLD {
            b.bind(&i.to_string(), at(1), 1, |_| true);
        }
        let told = b.take(usize::MAX, 2).len();
        assert_eq!(told as u64 + b.lost(), 2 * (SHARDS * MOST_UNTOLD) as u64);
        assert!(told <= SHARDS * MOST_UNTOLD && b.take(1, 3).is_empty());
    }
}
