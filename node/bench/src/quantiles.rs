//! Durations recorded in a histogram and shown as quantiles.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// Longest duration that is told apart, one hour; longer ones count as that long.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Durations in nanoseconds with three significant digits.
#[derive(Clone)]
pub(crate) struct Durations(Histogram<u32>);

impl Durations {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Durations(Histogram::new_with_bounds(1, LONGEST_NS, 3)?))
    }

    pub(crate) fn record(&mut self, value: Duration) {
        self.record_n(value, 1);
    }

    pub(crate) fn record_n(&mut self, value: Duration, count: u32) {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(ns, count);
    }

    pub(crate) fn add(&mut self, other: &Durations) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        let us = |ns: u64| (ns as f64 / 100.0).round() / 10.0;
        let at = |q: f64| us(self.0.value_at_quantile(q).min(self.0.max()));
        Quantiles {
            count: self.0.len(),
            mean: (self.0.mean() / 100.0).round() / 10.0,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: us(self.0.max()),
        }
    }
}

/// Quantiles of a set of durations, in microseconds; all zero when nothing was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Durations recorded.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 % took no longer.
    pub p90: f64,
    /// 95 % took no longer.
    pub p95: f64,
    /// 99 % took no longer.
    pub p99: f64,
    /// 99.9 % took no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_is_zero() {
        let q = Durations::new().unwrap().quantiles();
        assert_eq!(
            (q.count, q.mean, q.p50, q.p999, q.max),
            (0, 0.0, 0.0, 0.0, 0.0)
        );
    }

    #[test]
    fn too_long_counts_as_the_longest() {
        let mut d = Durations::new().unwrap();
        d.record(Duration::from_secs(1 << 40));
        let q = d.quantiles();
        assert_eq!(q.count, 1);
        assert!(q.max >= 3.6e9, "{}", q.max);
    }

    proptest! {
        // The exact quantile of a sample and the histogram's differ by no more than its three digits (and the rounding to 0.1 us).
        #[test]
        fn agree_with_sorting(mut us in proptest::collection::vec(0u64..60_000_000, 1..400)) {
            let mut d = Durations::new().unwrap();
            for v in &us {
                d.record(Duration::from_micros(*v));
            }
            us.sort_unstable();
            let q = d.quantiles();
            for (p, got) in [(0.5, q.p50), (0.9, q.p90), (0.95, q.p95), (0.99, q.p99), (0.999, q.p999), (1.0, q.max)] {
                let rank = ((us.len() as f64 * p).ceil() as usize).clamp(1, us.len());
                let want = us[rank - 1] as f64;
                prop_assert!((got - want).abs() <= want * 0.001 + 0.11, "p{} {} {}", p, got, want);
            }
            prop_assert_eq!(q.count, us.len() as u64);
        }
    }
}
