//! `random-picker`: any of them, whatever their sums.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Picker, Row, Tools};

/// See the module's documentation.
#[derive(Debug)]
pub struct Uniform {
    /// How many are chosen.
    pub max: usize,
}

impl Picker for Uniform {
    fn pick(&self, rows: &[Row], _: &[f64], tools: &mut Tools, picked: &mut Vec<Row>) {
        let from = picked.len();
        // Selection sampling, then a shuffle of the few that were chosen.
        let mut wanted = self.max.min(rows.len());
        for (i, row) in rows.iter().enumerate() {
            if tools.random.below(rows.len() - i) < wanted {
                picked.push(*row);
                wanted -= 1;
            }
        }
        if let Some(chosen) = picked.get_mut(from..) {
            for i in (1..chosen.len()).rev() {
                chosen.swap(i, tools.random.below(i + 1));
            }
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::picker(Uniform {
        max: super::max_endpoints(fields),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_the_same_chance_at_every_place() {
        let mut tools = Tools::default();
        let mut first = [0; 4];
        let mut chosen = [0; 4];
        for _ in 0..8000 {
            let mut picked = Vec::new();
            Uniform { max: 2 }.pick(
                &[0, 1, 2, 3],
                &[9.0, 0.0, 0.0, 0.0],
                &mut tools,
                &mut picked,
            );
            assert_eq!(picked.len(), 2);
            assert_ne!(picked[0], picked[1]);
            first[picked[0]] += 1;
            picked.iter().for_each(|row| chosen[*row] += 1);
        }
        assert!(first.iter().all(|n| (1800..2200).contains(n)), "{first:?}");
        assert!(
            chosen.iter().all(|n| (3700..4300).contains(n)),
            "{chosen:?}"
        );
    }
}
