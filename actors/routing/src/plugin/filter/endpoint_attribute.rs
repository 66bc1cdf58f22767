//! `endpoint-attribute-filter`: endpoints of which a number passes a threshold, lies in a range, is among the best k, or beyond a
//! percentile of the candidates.

use super::keep;
use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Filter, Row, Tools};
use crate::plugin::scalar::Scalar;

/// How a number is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `<`
    LessThan,
    /// `<=`
    LessThanOrEqual,
    /// `>`
    GreaterThan,
    /// `>=`
    GreaterThanOrEqual,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

impl Compare {
    fn holds(self, value: f64, with: f64) -> bool {
        match self {
            Self::LessThan => value < with,
            Self::LessThanOrEqual => value <= with,
            Self::GreaterThan => value > with,
            Self::GreaterThanOrEqual => value >= with,
            Self::Equal => value == with,
            Self::NotEqual => value != with,
        }
    }
}

/// Which numbers pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// Compared with a value.
    Threshold(Compare, f64),
    /// Within, bounds included.
    Range(f64, f64),
    /// The k highest (or lowest).
    TopK(usize, bool),
    /// At least (or at most) the nearest-rank percentile.
    Percentile(f64, bool),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct AttributeFilter {
    /// The number.
    pub scalar: Scalar,
    /// Which numbers pass.
    pub algorithm: Algorithm,
    /// Endpoints without the number pass.
    pub pass_missing: bool,
    /// Keeps all if none passes.
    pub fallback_on_empty: bool,
}

impl AttributeFilter {
    /// Numbers in ascending order.
    fn sorted(&self, context: &Context<'_>, rows: &[Row], tools: &mut Tools) {
        tools.keys.clear();
        tools.keys.extend(
            rows.iter()
                .filter_map(|row| Some((self.scalar.of(context, *row)?, *row))),
        );
        tools
            .keys
            .sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    }
}

impl Filter for AttributeFilter {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, tools: &mut Tools) {
        let value = |row: Row| self.scalar.of(context, row);
        let or_missing =
            |row: Row, passes: &dyn Fn(f64) -> bool| value(row).map_or(self.pass_missing, passes);
        match self.algorithm {
            Algorithm::Threshold(compare, with) => keep(rows, self.fallback_on_empty, |row| {
                or_missing(row, &|v| compare.holds(v, with))
            }),
            Algorithm::Range(min, max) => keep(rows, self.fallback_on_empty, |row| {
                or_missing(row, &|v| (min..=max).contains(&v))
            }),
            Algorithm::TopK(k, highest) => {
                self.sorted(context, rows, tools);
                if highest {
                    tools.keys.reverse();
                }
                tools.keys.truncate(k);
                let best = &tools.keys;
                keep(rows, self.fallback_on_empty, |row| {
                    or_missing(row, &|_| best.iter().any(|(_, of)| *of == row))
                });
            }
            Algorithm::Percentile(percent, highest) => {
                self.sorted(context, rows, tools);
                let n = tools.keys.len();
                let rank = ((percent / 100.0 * n as f64).ceil() as usize).clamp(1, n.max(1));
                let cutoff = tools.keys.get(rank - 1).map_or(0.0, |(value, _)| *value);
                keep(rows, self.fallback_on_empty, |row| {
                    or_missing(row, &|v| if highest { v >= cutoff } else { v <= cutoff })
                });
            }
        }
    }
}

fn number(fields: &mut Fields<'_>, key: &'static str) -> f64 {
    if !fields.has(key) {
        fields.error(key, "is required");
    }
    fields.number(key, 0.0, f64::NEG_INFINITY..=f64::INFINITY)
}

fn algorithm(fields: &mut Fields<'_>) -> Algorithm {
    if !fields.has("type") {
        fields.error("type", "is required");
    }
    let names = ["threshold", "range", "topK", "percentile"];
    let kind = fields.one_of("type", &names.map(|name| (name, name)), "threshold");
    for other in names {
        if other != kind && fields.raw(other).is_some() {
            fields.warn(other, format!("has no meaning for the type `{kind}`"));
        }
    }
    match kind {
        "range" => fields.object("range", |range| {
            let (min, max) = (number(range, "min"), number(range, "max"));
            if min > max {
                range.error("min", "must not be more than `max`");
            }
            Algorithm::Range(min, max)
        }),
        "topK" => fields.object("topK", |top| {
            if !top.has("k") {
                top.error("k", "is required");
            }
            let k = top.whole("k", 1, 1..=u64::from(u32::MAX));
            let highest = top.flag("higherIsBetter", true);
            Algorithm::TopK(usize::try_from(k).unwrap_or(usize::MAX), highest)
        }),
        "percentile" => fields.object("percentile", |percentile| {
            if !percentile.has("percentile") {
                percentile.error("percentile", "is required");
            }
            let percent = percentile.number("percentile", 50.0, 0.0..=100.0);
            Algorithm::Percentile(percent, percentile.flag("higherIsBetter", true))
        }),
        _ => fields.object("threshold", |threshold| {
            if !threshold.has("operator") {
                threshold.error("operator", "is required");
            }
            let compare = threshold.one_of(
                "operator",
                &[
                    ("LessThan", Compare::LessThan),
                    ("LessThanOrEqual", Compare::LessThanOrEqual),
                    ("GreaterThan", Compare::GreaterThan),
                    ("GreaterThanOrEqual", Compare::GreaterThanOrEqual),
                    ("Equal", Compare::Equal),
                    ("NotEqual", Compare::NotEqual),
                ],
                Compare::LessThan,
            );
            Algorithm::Threshold(compare, number(threshold, "value"))
        }),
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let attribute = fields.required_text("attribute");
    fields.text("producer");
    Built::filter(AttributeFilter {
        scalar: Scalar::named(&attribute),
        pass_missing: fields.one_of("onMissing", &[("Pass", true), ("Fail", false)], true),
        fallback_on_empty: fields.flag("fallbackOnEmpty", false),
        algorithm: fields.object("algorithm", algorithm),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn each_algorithm() {
        let mut f = Fixture::labelled(&[
            &[("g", "4")],
            &[("g", "1")],
            &[("g", "3")],
            &[("g", "2")],
            &[],
        ]);
        let filter = |algorithm, pass_missing, fallback_on_empty| AttributeFilter {
            scalar: Scalar::named("g"),
            algorithm,
            pass_missing,
            fallback_on_empty,
        };
        let threshold = |compare, value| Algorithm::Threshold(compare, value);
        for (algorithm, expected) in [
            (threshold(Compare::LessThan, 2.0), vec![1]),
            (threshold(Compare::LessThanOrEqual, 2.0), vec![1, 3]),
            (threshold(Compare::GreaterThan, 3.0), vec![0]),
            (threshold(Compare::GreaterThanOrEqual, 3.0), vec![0, 2]),
            (threshold(Compare::Equal, 3.0), vec![2]),
            (threshold(Compare::NotEqual, 3.0), vec![0, 1, 3]),
            (Algorithm::Range(2.0, 3.0), vec![2, 3]),
            (Algorithm::TopK(2, true), vec![0, 2]),
            (Algorithm::TopK(2, false), vec![1, 3]),
            (Algorithm::TopK(9, false), vec![0, 1, 2, 3]),
            (Algorithm::Percentile(75.0, true), vec![0, 2]),
            (Algorithm::Percentile(25.0, false), vec![1]),
            (Algorithm::Percentile(0.0, true), vec![0, 1, 2, 3]),
        ] {
            assert_eq!(
                f.filter(&filter(algorithm, false, false)),
                expected,
                "{algorithm:?}"
            );
        }
        let none = threshold(Compare::GreaterThan, 9.0);
        assert_eq!(f.filter(&filter(none, true, false)), [4]);
        assert_eq!(f.filter(&filter(none, false, false)), [0; 0]);
        assert_eq!(f.filter(&filter(none, false, true)), [0, 1, 2, 3, 4]);
    }
}
