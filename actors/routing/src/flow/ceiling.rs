//! Usage-limit policies: how full the pool may be for a band to dispatch.

use crate::config::{HoldbackDomain, UsageLimitPolicy};

/// A band's place among the bands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// 0 is the highest band.
    pub index: usize,
    /// Number of bands.
    pub bands: usize,
    /// Its priority.
    pub priority: i32,
    /// Priority of the highest band.
    pub highest: i32,
    /// Priority of the lowest band.
    pub lowest: i32,
}

impl Rank {
    /// From 0 for the highest band to 1 for the lowest.
    fn depth(&self) -> f64 {
        match self.bands {
            0 | 1 => 0.0,
            n => self.index as f64 / (n - 1) as f64,
        }
    }

    fn depth_by_value(&self) -> f64 {
        let range = f64::from(self.highest) - f64::from(self.lowest);
        if range > 0.0 {
            (f64::from(self.highest) - f64::from(self.priority)) / range
        } else {
            0.0
        }
    }
}

/// The saturation below which the band is open in every cycle.
pub fn steady(policy: &UsageLimitPolicy, rank: Rank) -> f64 {
    match *policy {
        UsageLimitPolicy::Static { threshold } => threshold,
        UsageLimitPolicy::PriorityHoldback {
            min_ceiling,
            max_ceiling,
            domain,
        } => {
            let depth = match domain {
                HoldbackDomain::Rank => rank.depth(),
                HoldbackDomain::Value => rank.depth_by_value(),
            };
            max_ceiling - depth * (max_ceiling - min_ceiling)
        }
        // Open while saturation < 1 - depth * saturation.
        UsageLimitPolicy::SoftReflective => 1.0 / (1.0 + rank.depth()),
    }
}

/// The saturation from which on the band is shut in every cycle.
pub fn hard(policy: &UsageLimitPolicy, rank: Rank) -> f64 {
    match policy {
        UsageLimitPolicy::SoftReflective => 1.0,
        _ => steady(policy, rank),
    }
}

/// Whether the band may dispatch at this saturation. `cycle` counts the decisions that were made for the band between its
/// two limits, from 1: there it is open once in a while, less often the fuller the pool is.
pub fn is_open(policy: &UsageLimitPolicy, rank: Rank, saturation: f64, cycle: u64) -> bool {
    if saturation < steady(policy, rank) {
        return true;
    }
    if saturation >= hard(policy, rank) {
        return false;
    }
    let every = (saturation / (1.0 - saturation)).round().clamp(1.0, 1e9) as u64;
    cycle.is_multiple_of(every)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(index: usize, priorities: &[i32]) -> Rank {
        Rank {
            index,
            bands: priorities.len(),
            priority: priorities[index],
            highest: priorities[0],
            lowest: priorities[priorities.len() - 1],
        }
    }

    #[test]
    fn static_and_holdback_ceilings() {
        let fixed = UsageLimitPolicy::Static { threshold: 0.9 };
        assert_eq!(steady(&fixed, rank(1, &[5, 0])), 0.9);
        let bands = [100, 0, -10];
        let by = |domain| UsageLimitPolicy::PriorityHoldback {
            min_ceiling: 0.5,
            max_ceiling: 1.0,
            domain,
        };
        let ranks: Vec<f64> = (0..3)
            .map(|i| steady(&by(HoldbackDomain::Rank), rank(i, &bands)))
            .collect();
        assert_eq!(ranks, [1.0, 0.75, 0.5]);
        let values = steady(&by(HoldbackDomain::Value), rank(1, &bands));
        assert!((values - (1.0 - 0.5 * 100.0 / 110.0)).abs() < 1e-12);
        assert_eq!(steady(&by(HoldbackDomain::Rank), rank(0, &[7])), 1.0);
        assert!(!is_open(&by(HoldbackDomain::Rank), rank(2, &bands), 0.5, 1));
        assert!(is_open(&by(HoldbackDomain::Rank), rank(2, &bands), 0.49, 1));
    }

    #[test]
    fn the_soft_ceiling_reflects_saturation() {
        let soft = UsageLimitPolicy::SoftReflective;
        let bands = [2, 1, 0];
        let opened = |index, saturation: f64| {
            (1..=100)
                .filter(|c| is_open(&soft, rank(index, &bands), saturation, *c))
                .count()
        };
        assert_eq!(opened(0, 0.99), 100);
        assert_eq!((opened(0, 1.0), opened(2, 1.0), opened(1, 1.2)), (0, 0, 0));
        // The lowest band: open below 1 - 1 * s, so below one half.
        assert_eq!(
            (opened(2, 0.49), opened(2, 0.8), opened(2, 0.9)),
            (100, 25, 11)
        );
        // The middle one: below 1 - s / 2, so below two thirds.
        assert_eq!((opened(1, 0.66), opened(1, 0.8)), (100, 25));
    }
}
