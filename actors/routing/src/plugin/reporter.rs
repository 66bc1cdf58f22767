//! `request-attribute-reporter`: a number made of a finished request's usage, told to the proxy in front as dynamic metadata under
//! a key of the operator's choice, for its rate limits, its bills and its logs. Zero is not told.

use crate::config::Fields;
use crate::config::registry::{Build, Built};
use crate::expression::{Expression, Kind, ReportedUsage};
use std::sync::Arc;

/// Where the proxy's load balancer looks.
const NAMESPACE: &str = "envoy.lb";
/// Attributes of one reporter.
const MAX_ATTRIBUTES: usize = 16;

/// One attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    namespace: Arc<str>,
    name: Arc<str>,
    expression: Expression,
    condition: Option<Expression>,
}

/// An attribute's value for one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// Of the metadata.
    pub namespace: Arc<str>,
    /// The key in it.
    pub name: Arc<str>,
    /// A whole number that is not zero.
    pub value: f64,
}

impl Report {
    /// What there is to tell.
    pub fn of(&self, usage: &ReportedUsage) -> Option<Reported> {
        if let Some(condition) = &self.condition
            && !condition.is_true(usage)
        {
            return None;
        }
        let value = self.expression.number(usage)?.trunc();
        (value != 0.0).then(|| Reported {
            namespace: Arc::clone(&self.namespace),
            name: Arc::clone(&self.name),
            value,
        })
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    let mut reports = Vec::new();
    let items = fields.items("attributes");
    if items.is_empty() {
        fields.error("attributes", "must not be empty");
    }
    if items.len() > MAX_ATTRIBUTES {
        let message = format!("must have at most {MAX_ATTRIBUTES} entries");
        fields.error("attributes", message);
    }
    for (path, item) in items {
        let mut entry = Fields::new(&path, Some(item), fields.findings());
        let (namespace, name) = entry.object("key", |key| {
            let namespace = key.text("namespace").filter(|n| !n.is_empty());
            (namespace, key.required_text("name"))
        });
        let expression = read(&mut entry, "expression", Kind::Number);
        let condition = read(&mut entry, "condition", Kind::Truth);
        if expression.is_none() && !entry.has("expression") {
            entry.error("expression", "is required");
        }
        entry.finish();
        if let Some(expression) = expression {
            reports.push(Report {
                namespace: namespace.as_deref().unwrap_or(NAMESPACE).into(),
                name: name.into(),
                expression,
                condition,
            });
        }
    }
    Built {
        reports,
        ..Built::default()
    }
}

fn read(entry: &mut Fields<'_>, key: &'static str, kind: Kind) -> Option<Expression> {
    let text = entry.text(key)?;
    match Expression::parse(&text, kind) {
        Ok(expression) => {
            for name in expression.unknown() {
                entry.warn(
                    key,
                    format!("no engine's usage has `{name}`: it counts as absent"),
                );
            }
            Some(expression)
        }
        Err(error) => {
            entry.error(key, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{CompiledPolicy, ConfigErrors, EndpointPickerConfig};
    use crate::expression::ReportedUsage;

    fn compile(attributes: &str) -> Result<CompiledPolicy, ConfigErrors> {
        let text = format!(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: request-attribute-reporter\n  \
             parameters:\n    attributes: {attributes}\n"
        );
        EndpointPickerConfig::parse(&text)?.config.compile()
    }

    const USAGE: ReportedUsage = ReportedUsage {
        prompt: Some(7),
        completion: Some(2),
        cached: None,
    };

    fn told(attributes: &str, usage: &ReportedUsage) -> Vec<(String, String, f64)> {
        let policy = compile(attributes).unwrap();
        let told = policy.reports.iter().filter_map(|report| report.of(usage));
        told.map(|r| (r.namespace.to_string(), r.name.to_string(), r.value))
            .collect()
    }

    #[test]
    fn values_are_whole_and_zero_is_not_told() {
        let cost =
            |expression: &str| format!("[{{key: {{name: cost}}, expression: '{expression}'}}]");
        let one = |value| vec![("envoy.lb".to_owned(), "cost".to_owned(), value)];
        for (expression, expected) in [
            ("usage.prompt_tokens + usage.completion_tokens", one(9.0)),
            ("usage.prompt_tokens / 2", one(3.0)),
            ("-usage.prompt_tokens / 2", one(-3.0)),
            ("usage.prompt_tokens / 8", vec![]),
            ("usage.prompt_tokens_details.cached_tokens", vec![]),
        ] {
            assert_eq!(told(&cost(expression), &USAGE), expected, "{expression}");
        }
        assert_eq!(
            told(
                r#"[{key: {namespace: bills, name: out}, expression: usage.completion_tokens,
                     condition: has(usage.completion_tokens)}, {key: {name: in}, expression: usage.prompt_tokens}]"#,
                &ReportedUsage {
                    completion: None,
                    ..USAGE
                }
            ),
            [("envoy.lb".to_owned(), "in".to_owned(), 7.0)]
        );
        assert_eq!(
            told(
                "[{key: {namespace: bills, name: out}, expression: usage.completion_tokens, condition: usage.total_tokens > 8}]",
                &USAGE
            ),
            [("bills".to_owned(), "out".to_owned(), 2.0)]
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (attributes, part) in [
            ("[]", "must not be empty"),
            ("[{expression: '1'}]", "key.name"),
            ("[{key: {name: x}}]", "expression"),
            ("[{key: {name: x}, expression: '1 +'}]", "missing"),
            (
                "[{key: {name: x}, expression: 'true'}]",
                "has to give a number",
            ),
            (
                "[{key: {name: x}, expression: '1', condition: '1'}]",
                "has to give true or false",
            ),
            ("[{key: {name: x, space: y}, expression: '1'}]", "space"),
        ] {
            let error = compile(attributes).err().expect(attributes).to_string();
            assert!(error.contains(part), "{attributes}: {error}");
        }
        let policy = compile("[{key: {name: x}, expression: 'usage.cost'}]").unwrap();
        let warned = policy
            .warnings
            .iter()
            .any(|w| w.to_string().contains("`cost`"));
        assert!(warned, "{:?}", policy.warnings);
    }
}
