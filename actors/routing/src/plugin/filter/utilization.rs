//! `utilization-filter`: endpoints that are within every cap. A figure that is not known counts as 0.

use super::keep;
use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Filter, Row, Tools};
use crate::plugin::scalar::Scalar;

/// See the module's documentation.
#[derive(Debug)]
pub struct Utilization {
    /// Figure and cap.
    pub conditions: Vec<(Scalar, f64)>,
    /// Keeps all if none is within.
    pub fallback_on_empty: bool,
}

impl Filter for Utilization {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        keep(rows, self.fallback_on_empty, |row| {
            self.conditions
                .iter()
                .all(|(figure, max)| figure.of(context, row).unwrap_or(0.0) <= *max)
        });
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let mut conditions = Vec::new();
    for (path, item) in fields.items("conditions") {
        let mut entry = Fields::new(&path, Some(item), fields.findings());
        for key in ["metric", "maxValue"] {
            if !entry.has(key) {
                entry.error(key, "is required");
            }
        }
        let metric = entry.one_of(
            "metric",
            &[
                "active-requests",
                "running-requests",
                "waiting-queue",
                "kv-cache-utilization",
            ]
            .map(|name| (name, name)),
            "active-requests",
        );
        conditions.push((
            Scalar::named(metric),
            entry.number("maxValue", 0.0, 0.0..=f64::INFINITY),
        ));
        entry.finish();
    }
    if conditions.is_empty() {
        fields.error("conditions", "must not be empty");
    }
    Built::filter(Utilization {
        conditions,
        fallback_on_empty: fields.flag("fallbackOnEmpty", false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn every_cap_counts() {
        let mut f = Fixture::new(4)
            .load(0, 1, 4, 0.5)
            .load(1, 1, 5, 0.5)
            .load(2, 1, 4, 0.9);
        let mut filter = Utilization {
            conditions: vec![(Scalar::Queue, 4.0), (Scalar::KvUsage, 0.6)],
            fallback_on_empty: false,
        };
        assert_eq!(f.filter(&filter), [0, 3]);
        filter.conditions.push((Scalar::InFlight, 0.0));
        for e in &f.endpoints {
            e.set_remote_in_flight(1);
        }
        assert_eq!(f.filter(&filter), [0; 0]);
        filter.fallback_on_empty = true;
        assert_eq!(f.filter(&filter), [0, 1, 2, 3]);
    }
}
