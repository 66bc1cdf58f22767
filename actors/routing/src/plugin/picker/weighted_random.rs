//! `weighted-random-picker`: with a chance in proportion to the sum (A-Res, Efraimidis and Spirakis 2006: the largest U^(1/sum) win).
//! A sum of 0 has no chance beside others; all 0: any of them.

use super::random::Uniform;
use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Picker, Row, Tools};

/// See the module's documentation.
#[derive(Debug)]
pub struct WeightedRandom {
    /// How many are chosen.
    pub max: usize,
}

impl Picker for WeightedRandom {
    fn pick(&self, rows: &[Row], totals: &[f64], tools: &mut Tools, picked: &mut Vec<Row>) {
        if totals.iter().all(|total| *total <= 0.0) {
            Uniform { max: self.max }.pick(rows, totals, tools, picked);
            return;
        }
        let Tools { random, keys, .. } = tools;
        keys.clear();
        keys.extend(rows.iter().zip(totals).map(|(row, total)| {
            // ln(U) / w orders as U^(1/w) does, and does not underflow for small w.
            let key = if *total > 0.0 {
                (1.0 - random.unit()).ln() / total
            } else {
                f64::NEG_INFINITY
            };
            (key, *row)
        }));
        if self.max < keys.len() {
            keys.select_nth_unstable_by(self.max - 1, |a, b| b.0.total_cmp(&a.0));
            keys.truncate(self.max);
        }
        keys.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        picked.extend(keys.iter().map(|(_, row)| *row));
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::picker(WeightedRandom {
        max: super::max_endpoints(fields).max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_follow_the_sums() {
        let mut tools = Tools::default();
        let mut first = [0; 3];
        for _ in 0..9000 {
            let mut picked = Vec::new();
            WeightedRandom { max: 1 }.pick(&[0, 1, 2], &[1.0, 2.0, 0.0], &mut tools, &mut picked);
            first[picked[0]] += 1;
        }
        assert!(
            (2700..3300).contains(&first[0]) && first[2] == 0,
            "{first:?}"
        );
        let mut picked = Vec::new();
        WeightedRandom { max: 5 }.pick(&[0, 1, 2], &[1.0, 2.0, 0.0], &mut tools, &mut picked);
        assert_eq!((picked.len(), picked[2]), (3, 2));
        let mut seen = [false; 3];
        for _ in 0..100 {
            let mut picked = Vec::new();
            WeightedRandom { max: 1 }.pick(&[0, 1, 2], &[0.0; 3], &mut tools, &mut picked);
            seen[picked[0]] = true;
        }
        assert_eq!(seen, [true; 3]);
    }
}
