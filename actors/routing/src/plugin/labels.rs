//! Label selectors and what plugins remember of labels: an endpoint's labels are fixed for its life, so each is looked at once.

use crate::config::Fields;
use crate::endpoint::Endpoint;
use crate::endpoint::slot::SlotTable;
use http::HeaderName;
use std::collections::BTreeMap;

/// Kubernetes' operators of `matchExpressions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is absent.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// One of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
}

/// A Kubernetes label selector: all parts must hold; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// All of these; `matchLabels` are `In` with one value.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Whether labels meet it.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = value.is_some_and(|value| requirement.values.contains(value));
            match requirement.operator {
                Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// Reads `matchLabels` and `matchExpressions`.
    pub fn read(fields: &mut Fields<'_>) -> Self {
        let mut requirements = Vec::new();
        if let Some(labels) = fields.raw("matchLabels") {
            match labels.as_object() {
                Some(labels) => {
                    for (key, value) in labels {
                        match value.as_str() {
                            Some(value) => requirements.push(Requirement {
                                key: key.clone(),
                                operator: Operator::In,
                                values: vec![value.to_owned()],
                            }),
                            None => {
                                fields.error("matchLabels", format!("`{key}` must be a string"))
                            }
                        }
                    }
                }
                None => fields.error("matchLabels", "must be an object"),
            }
        }
        for (path, item) in fields.items("matchExpressions") {
            let mut entry = Fields::new(&path, Some(item), fields.findings());
            let key = entry.required_text("key");
            if !entry.has("operator") {
                entry.error("operator", "is required");
            }
            let operator = entry.one_of(
                "operator",
                &[
                    ("In", Operator::In),
                    ("NotIn", Operator::NotIn),
                    ("Exists", Operator::Exists),
                    ("DoesNotExist", Operator::DoesNotExist),
                ],
                Operator::Exists,
            );
            let values = entry.texts("values");
            match operator {
                Operator::In | Operator::NotIn if values.is_empty() => {
                    entry.error("values", "must not be empty for In and NotIn");
                }
                Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                    entry.error("values", "must be empty for Exists and DoesNotExist");
                }
                _ => {}
            }
            entry.finish();
            requirements.push(Requirement {
                key,
                operator,
                values,
            });
        }
        Self { requirements }
    }
}

/// Remembers one small number for each endpoint that follows from its labels.
#[derive(Debug, Default)]
pub struct Remembered(SlotTable);

impl Remembered {
    /// What was found out before, or now.
    pub fn get(&self, endpoint: &Endpoint, find: impl FnOnce(&Endpoint) -> u64) -> u64 {
        let known = self.0.get(endpoint.slot());
        if known > 0 {
            return known - 1;
        }
        let found = find(endpoint).min(u64::MAX - 1);
        self.0.set(endpoint.slot(), found + 1);
        found
    }

    /// The same for yes and no.
    pub fn is(&self, endpoint: &Endpoint, find: impl FnOnce(&Endpoint) -> bool) -> bool {
        self.get(endpoint, |e| u64::from(find(e))) == 1
    }
}

/// Reads the name of a header.
pub(crate) fn header_name(
    fields: &mut Fields<'_>,
    key: &'static str,
    default: Option<&'static str>,
) -> Option<HeaderName> {
    let text = match (fields.text(key), default) {
        (Some(text), _) if !text.is_empty() => text,
        (_, Some(default)) => default.to_owned(),
        _ => {
            fields.error(key, "is required");
            return None;
        }
    };
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Some(name),
        Err(_) => {
            fields.error(key, format!("`{text}` is no name of a header"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Findings;

    fn selector(json: &str) -> Result<LabelSelector, Findings> {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        let mut findings = Findings::default();
        let mut fields = Fields::new("p", Some(&value), &mut findings);
        let selector = LabelSelector::read(&mut fields);
        fields.finish();
        if findings.errors.is_empty() {
            Ok(selector)
        } else {
            Err(findings)
        }
    }

    #[test]
    fn selectors_as_kubernetes_has_them() {
        let labels: BTreeMap<String, String> = [("a", "1"), ("b", "2")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        for (json, expected) in [
            ("{}", true),
            (r#"{"matchLabels":{"a":"1","b":"2"}}"#, true),
            (r#"{"matchLabels":{"a":"1","b":"3"}}"#, false),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"In","values":["0","1"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"NotIn","values":["1"]}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"c","operator":"NotIn","values":["1"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"c","operator":"Exists"}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"c","operator":"DoesNotExist"}]}"#,
                true,
            ),
        ] {
            assert_eq!(selector(json).unwrap().matches(&labels), expected, "{json}");
        }
        for json in [
            r#"{"matchLabel":{"a":"1"}}"#,
            r#"{"matchLabels":{"a":1}}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"in","values":["1"]}]}"#,
            r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#,
            r#"{"matchExpressions":[{"operator":"Exists"}]}"#,
        ] {
            assert!(selector(json).is_err(), "{json}");
        }
    }
}
