//! `label-selector-filter`: endpoints whose labels match a Kubernetes selector. `by-label` and `by-label-selector` are its older
//! spellings.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::pipeline::{Context, Filter, Row, Tools};
use crate::plugin::labels::{LabelSelector, Remembered};

/// `label-selector-filter`.
#[derive(Debug, Default)]
pub struct BySelector {
    selector: LabelSelector,
    known: Remembered,
}

impl BySelector {
    /// Keeps what the selector matches.
    pub fn new(selector: LabelSelector) -> Self {
        Self {
            selector,
            known: Remembered::default(),
        }
    }
}

impl Filter for BySelector {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        rows.retain(|row| {
            context.endpoint(*row).is_some_and(|endpoint| {
                self.known
                    .is(endpoint, |e| self.selector.matches(&e.spec().labels))
            })
        });
    }
}

/// `by-label`.
#[derive(Debug, Default)]
pub struct ByLabel {
    label: String,
    values: Vec<String>,
    allows_no_label: bool,
    known: Remembered,
}

impl ByLabel {
    /// Keeps endpoints whose label has one of the values, and, if allowed, those without the label.
    pub fn new(label: String, values: Vec<String>, allows_no_label: bool) -> Self {
        Self {
            label,
            values,
            allows_no_label,
            known: Remembered::default(),
        }
    }
}

impl Filter for ByLabel {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        rows.retain(|row| {
            context.endpoint(*row).is_some_and(|endpoint| {
                self.known
                    .is(endpoint, |e| match e.spec().labels.get(&self.label) {
                        Some(value) => self.values.contains(value),
                        None => self.allows_no_label,
                    })
            })
        });
    }
}

pub(crate) fn build_selector(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::filter(BySelector::new(LabelSelector::read(fields)))
}

pub(crate) fn build_by_label(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let label = fields.required_text("label");
    let values = fields.texts("validValues");
    let allows_no_label = fields.flag("allowsNoLabel", false);
    if values.is_empty() && !allows_no_label {
        fields.error(
            "validValues",
            "must not be empty unless `allowsNoLabel` is true",
        );
    }
    Built::filter(ByLabel::new(label, values, allows_no_label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::Fixture;
    use crate::plugin::labels::{Operator, Requirement};

    #[test]
    fn selector_and_values() {
        let mut f = Fixture::labelled(&[&[("a", "1")], &[("a", "2")], &[]]);
        let selector = LabelSelector {
            requirements: vec![Requirement {
                key: "a".into(),
                operator: Operator::In,
                values: vec!["1".into()],
            }],
        };
        let filter = BySelector::new(selector);
        for _ in 0..2 {
            assert_eq!(f.filter(&filter), [0]);
        }
        assert_eq!(
            f.filter(&ByLabel::new("a".into(), vec!["2".into()], false)),
            [1]
        );
        assert_eq!(
            f.filter(&ByLabel::new("a".into(), vec!["2".into()], true)),
            [1, 2]
        );
        assert_eq!(
            f.filter(&ByLabel::new("b".into(), vec!["2".into()], false)),
            [0; 0]
        );
    }
}
