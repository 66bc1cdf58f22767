//! Several routers that place heavy requests at the same moment, before any of them has heard of the others' picks.
//!
//! Requests often come in bursts, and then each router finds the same endpoints to be the least loaded. So each counts on the others: an
//! endpoint that is another router's to begin with has, for a heavy request, what such a request would bring it as well, times the chance that
//! somebody is placing one right now. The chance is learnt: the share of a router's own moments of heavy requests within which it heard that
//! others had placed some. Where requests come one by one it is near nothing, and each pick is as one router's would be.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Prompt tokens to compute from which on other routers should know of a request before they place theirs: about a tenth of a second of an
/// engine's time.
pub const HEAVY_TOKENS: u64 = 2_048;
/// Heavy requests this near to each other (ms) are one moment: what is told travels in about a millisecond, 25 at most.
const MOMENT_MS: u64 = 10;
/// How much of the chance a moment decides.
const STEP: f32 = 0.25;
/// Below this nobody is counted on.
const LEAST: f32 = 0.25;

/// What a pick knows of the routers beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beside {
    /// This router's place among those of its region.
    pub rank: u32,
    /// How many they are.
    pub count: u32,
    /// The chance, 0 to 1, that others are placing heavy requests now.
    pub chance: f32,
}

impl Beside {
    /// The candidate at this place is another router's to begin with.
    pub fn is_anothers(&self, place: usize) -> bool {
        place % self.count.max(1) as usize != self.rank as usize
    }
}

/// What a router learns of those beside it. Written by whoever places and hears; of two at the same moment one may be lost.
#[derive(Debug, Default)]
pub struct Neighbours {
    /// Rank, then count.
    place: AtomicU64,
    /// When the last heavy request was placed here.
    placed_at: AtomicU64,
    /// Since this moment began, others were heard of.
    heard: AtomicBool,
    /// Bits of the chance.
    chance: AtomicU32,
}

impl Neighbours {
    /// This router is the `rank`th of `count`.
    pub fn set_place(&self, rank: u32, count: u32) {
        self.place
            .store(u64::from(rank) << 32 | u64::from(count), Relaxed);
    }

    /// A heavy request was placed here at `now`.
    pub fn placed(&self, now: u64) {
        let before = self.placed_at.swap(now, Relaxed);
        if now.saturating_sub(before) <= MOMENT_MS {
            return;
        }
        let chance = f32::from_bits(self.chance.load(Relaxed));
        let met = f32::from(u8::from(self.heard.swap(false, Relaxed)));
        let next = chance + STEP * (met - chance);
        self.chance.store(next.to_bits(), Relaxed);
    }

    /// Another router said at `now` that it has placed one.
    pub fn heard(&self, now: u64) {
        if now.saturating_sub(self.placed_at.load(Relaxed)) <= MOMENT_MS {
            self.heard.store(true, Relaxed);
        }
    }

    /// For a pick; `None`: nobody has to be counted on.
    pub fn beside(&self) -> Option<Beside> {
        let place = self.place.load(Relaxed);
        let beside = Beside {
            rank: (place >> 32) as u32,
            count: place as u32,
            chance: f32::from_bits(self.chance.load(Relaxed)),
        };
        (beside.count > 1 && beside.chance >= LEAST).then_some(beside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chance_is_that_of_moments_in_which_others_were_heard_of() {
        let neighbours = Neighbours::default();
        neighbours.set_place(1, 3);
        let mut now = 1_000;
        let mut burst = |heard_after: Option<u64>| {
            now += 1_000;
            for later in [0, 1, 2] {
                neighbours.placed(now + later);
            }
            if let Some(later) = heard_after {
                neighbours.heard(now + 2 + later);
            }
            neighbours.beside().map(|b| b.chance)
        };
        // Alone, or heard of much later: nobody is counted on.
        for _ in 0..50 {
            assert_eq!(burst(None), None);
            assert_eq!(burst(Some(MOMENT_MS + 1)), None);
        }
        let chances: Vec<_> = (0..50).map(|_| burst(Some(3))).collect();
        assert_eq!(chances[0], None, "one is no habit");
        assert!(chances.is_sorted());
        assert!(chances.last().unwrap().unwrap() > 0.98);
        // Every fourth.
        let mut some = Vec::new();
        for n in 0..400 {
            some.push(burst((n % 4 == 0).then_some(1)).unwrap_or(0.0));
        }
        let mean = some[100..].iter().sum::<f32>() / 300.0;
        assert!((0.1..0.4).contains(&mean), "{mean}");
        neighbours.set_place(0, 1);
        assert_eq!(burst(Some(1)), None, "nobody beside");
    }

    #[test]
    fn each_place_is_one_routers() {
        for count in 1..6u32 {
            for place in 0..20 {
                let owners = (0..count).filter(|rank| {
                    let beside = Beside {
                        rank: *rank,
                        count,
                        chance: 1.0,
                    };
                    !beside.is_anothers(place)
                });
                assert_eq!(owners.count(), 1);
            }
        }
    }
}
