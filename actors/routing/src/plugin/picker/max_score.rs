//! `max-score-picker`: the best sums, best first. Among equals turns are taken, so that a burst spreads evenly.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Picker, Row, Tools};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// See the module's documentation.
#[derive(Debug)]
pub struct MaxScore {
    max: usize,
    turn: AtomicUsize,
}

impl MaxScore {
    /// Chooses up to `max`. Routers begin their turns at different places if their `start` differs.
    pub fn new(max: usize, start: usize) -> Self {
        Self {
            max,
            turn: AtomicUsize::new(start),
        }
    }
}

impl Picker for MaxScore {
    fn pick(&self, rows: &[Row], totals: &[f64], tools: &mut Tools, picked: &mut Vec<Row>) {
        let turn = match tools.turn {
            Some(given) => given,
            None => self.turn.fetch_add(1, Relaxed),
        };
        tools.turn = Some(turn);
        if self.max == 1 {
            let (mut best, mut equals) = (f64::NEG_INFINITY, 0usize);
            for total in totals {
                if *total > best {
                    best = *total;
                    equals = 1;
                } else if *total == best {
                    equals += 1;
                }
            }
            let nth = turn % equals.max(1);
            let winner = rows
                .iter()
                .zip(totals)
                .filter(|(_, total)| **total == best)
                .nth(nth);
            picked.extend(winner.map(|(row, _)| *row));
            return;
        }
        let keys = &mut tools.keys;
        keys.clear();
        keys.extend(totals.iter().copied().zip(rows.iter().copied()));
        keys.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut rest = &mut keys[..];
        while let Some((total, _)) = rest.first().copied() {
            let equals = rest.partition_point(|(t, _)| t.total_cmp(&total).is_eq());
            let (group, after) = std::mem::take(&mut rest).split_at_mut(equals);
            group.rotate_left(turn % equals.max(1));
            rest = after;
        }
        picked.extend(keys.iter().take(self.max).map(|(_, row)| *row));
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let start = usize::try_from(crate::random::process_seed() >> 32).unwrap_or(0);
    Built::picker(MaxScore::new(super::max_endpoints(fields), start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pick(picker: &MaxScore, totals: &[f64]) -> Vec<Row> {
        let rows: Vec<Row> = (10..10 + totals.len()).collect();
        let mut picked = Vec::new();
        picker.pick(&rows, totals, &mut Tools::default(), &mut picked);
        picked
    }

    #[test]
    fn equals_take_turns() {
        let one = MaxScore::new(1, 0);
        let turns: Vec<Row> = (0..6)
            .flat_map(|_| pick(&one, &[1.0, 2.0, 2.0, 0.5, 2.0]))
            .collect();
        assert_eq!(turns, [11, 12, 14, 11, 12, 14]);
        let three = MaxScore::new(3, 0);
        assert_eq!(pick(&three, &[1.0, 2.0, 2.0, 3.0]), [13, 11, 12]);
        assert_eq!(pick(&three, &[1.0, 2.0, 2.0, 3.0]), [13, 12, 11]);
        assert_eq!(pick(&three, &[1.0]), [10]);
    }

    proptest! {
        #[test]
        fn best_first_and_nobody_twice(
            totals in prop::collection::vec((0u8..4).prop_map(f64::from), 1..20),
            max in 1usize..8,
            start in 0usize..100,
        ) {
            let picked = pick(&MaxScore::new(max, start), &totals);
            prop_assert_eq!(picked.len(), max.min(totals.len()));
            let mut sorted = totals.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let got: Vec<f64> = picked.iter().map(|row| totals[row - 10]).collect();
            prop_assert_eq!(&got[..], &sorted[..picked.len()]);
            let mut unique = picked.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), picked.len());
        }
    }
}
