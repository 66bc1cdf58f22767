//! Times between the tokens of one stream, kept until its end: only then it is known how many tokens its events held.

use crate::metrics::PER_TOKEN;
use metrics::Histogram;

const BUCKETS: usize = PER_TOKEN.len() + 1;

/// Sums by the buckets of the histogram that they go into, so that a stream of any length takes the same memory and its end costs
/// no more than a few values.
#[derive(Debug)]
pub(crate) struct Gaps {
    counts: [u32; BUCKETS],
    sums: [f64; BUCKETS],
}

impl Default for Gaps {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            sums: [0.0; BUCKETS],
        }
    }
}

impl Gaps {
    /// `events` token events came, each `seconds` after the one before.
    pub fn add(&mut self, seconds: f64, events: u32) {
        let bucket = PER_TOKEN.partition_point(|bound| *bound < seconds);
        if let (Some(count), Some(sum)) = (self.counts.get_mut(bucket), self.sums.get_mut(bucket)) {
            *count = count.saturating_add(events);
            *sum += seconds * f64::from(events);
        }
    }

    /// Records them as the gaps between `tokens` tokens, or as they came if that is not known. Sum and number are exact.
    pub fn record(&self, tokens: Option<u64>, histogram: &Histogram) {
        self.spread(tokens, |seconds, count| {
            histogram.record_many(seconds, count);
        });
    }

    fn spread(&self, tokens: Option<u64>, mut record: impl FnMut(f64, usize)) {
        let events: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        if events == 0 {
            return;
        }
        // Fewer tokens than events: the engine counts otherwise, and the events are what a client saw.
        let tokens = tokens.unwrap_or(events).max(events);
        let mut passed = 0u64;
        let mut given = 0;
        for (count, sum) in self.counts.iter().zip(self.sums) {
            if *count == 0 {
                continue;
            }
            passed += u64::from(*count);
            // Each bucket gets its share of the tokens, and rounding moves at most one to the next.
            let until = (u128::from(tokens) * u128::from(passed) / u128::from(events)) as u64;
            let share = until - given;
            given = until;
            record(sum / share as f64, share as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spread(gaps: &Gaps, tokens: Option<u64>) -> Vec<(f64, usize)> {
        let mut got = Vec::new();
        gaps.spread(tokens, |seconds, count| got.push((seconds, count)));
        got
    }

    #[test]
    fn tokens_of_one_event_share_its_time() {
        let mut gaps = Gaps::default();
        gaps.add(0.03, 10);
        assert_eq!(spread(&gaps, None), [(0.03, 10)]);
        let [(seconds, count)] = spread(&gaps, Some(30))[..] else {
            panic!("one bucket")
        };
        assert!((seconds - 0.01).abs() < 1e-9 && count == 30);
        assert!(spread(&Gaps::default(), Some(5)).is_empty());
    }

    proptest! {
        #[test]
        fn number_and_sum_are_kept(
            added in prop::collection::vec((0.0f64..12.0, 1u32..4), 1..60), more in 0u64..500, known in any::<bool>(),
        ) {
            let mut gaps = Gaps::default();
            added.iter().for_each(|(seconds, events)| gaps.add(*seconds, *events));
            let events: u64 = added.iter().map(|(_, events)| u64::from(*events)).sum();
            let sum: f64 = added.iter().map(|(seconds, events)| seconds * f64::from(*events)).sum();
            let got = spread(&gaps, known.then_some(events + more));
            let count: usize = got.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(count as u64, if known { events + more } else { events });
            let total: f64 = got.iter().map(|(seconds, count)| seconds * *count as f64).sum();
            prop_assert!((total - sum).abs() < 1e-6);
        }
    }
}
