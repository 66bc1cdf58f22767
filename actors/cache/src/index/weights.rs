//! What a block is worth to a request by the tier it lies on.

use crate::Tier;

/// Number of tiers that a block can be announced on.
pub const TIERS: usize = Tier::ALL.len();

/// The lane of [`Match::by_tier`](super::Match::by_tier) that counts blocks which are only expected, not announced.
pub const SPECULATIVE: usize = TIERS;

/// The tier of a number in batches, snapshots and columns: its place in [`Tier::ALL`].
pub(super) fn tier_of(number: u8) -> Option<Tier> {
    Tier::ALL.get(usize::from(number)).copied()
}

/// What one block is worth by the best tier it lies on, from 0 (as good as not cached) to 1 (in the accelerator).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierWeights {
    lanes: [f32; TIERS + 1],
}

impl Default for TierWeights {
    fn default() -> Self {
        Self {
            lanes: [1.0, 0.8, 0.5, 0.3, 0.0, 1.0],
        }
    }
}

impl TierWeights {
    /// These weights with one tier's changed. A weight outside 0 to 1 is moved to the nearer end, one that is no number counts as 0, and
    /// the unknown tier keeps its 0 whatever is asked.
    #[must_use]
    pub fn with(mut self, tier: Tier, weight: f32) -> Self {
        if tier != Tier::Unknown {
            self.lanes[tier as usize] = Self::sane(weight);
        }
        self
    }

    /// These weights with that of blocks which are only expected changed.
    #[must_use]
    pub fn with_speculative(mut self, weight: f32) -> Self {
        self.lanes[SPECULATIVE] = Self::sane(weight);
        self
    }

    /// By lane: the tiers, then expected blocks.
    #[must_use]
    pub const fn lanes(&self) -> &[f32; TIERS + 1] {
        &self.lanes
    }

    fn sane(weight: f32) -> f32 {
        if weight.is_nan() {
            0.0
        } else {
            weight.clamp(0.0, 1.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_weigh_nothing_and_numbers_are_the_tiers() {
        let weights = TierWeights::default()
            .with(Tier::Unknown, 1.0)
            .with(Tier::Cpu, 7.0)
            .with(Tier::Disk, f32::NAN);
        assert_eq!(weights.lanes(), &[1.0, 1.0, 0.0, 0.3, 0.0, 1.0]);
        assert_eq!(weights.with_speculative(-1.0).lanes()[SPECULATIVE], 0.0);
        for (number, tier) in Tier::ALL.into_iter().enumerate() {
            assert_eq!((tier as usize, tier_of(number as u8)), (number, Some(tier)));
        }
        assert_eq!(tier_of(TIERS as u8), None);
    }
}
