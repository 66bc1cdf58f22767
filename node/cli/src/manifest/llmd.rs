//! What llm-d and the inference gateway API write besides the InferencePool, taken as it is: EndpointPickerConfig,
//! InferenceObjective and InferenceModelRewrite.
//!
//! What has no meaning here is named in a warning. An EndpointPickerConfig is kept as its own text, comments included, and is
//! checked by the router that it is applied to. It names no pool; that comes from the command line, from the annotation
//! [`POOL_ANNOTATION`], or there is only one.

use quorate_proto::v1::{
    Metadata, ModelMatch, ModelRewriteRule, ModelRewriteSpec, ModelRewriteTarget, ObjectiveSpec,
    Resource, SchedulingConfigSpec, resource::Spec,
};

use super::{
    Fields, Findings,
    foreign::{part, read_metadata, warn_of_leftovers},
    node::{Node, Value},
};

/// Names the pool of an EndpointPickerConfig.
pub const POOL_ANNOTATION: &str = "quorate/pool";

/// Group of each kind, as in `<group>/<version>`; the second ones are from before the kinds moved.
const GROUPS: [&str; 3] = [
    "llm-d.ai",
    "inference.networking.x-k8s.io",
    "inference.networking.k8s.io",
];

/// Whether this module reads the document.
pub(super) fn is_known(api_version: &str, kind: &str) -> bool {
    matches!(
        kind,
        "EndpointPickerConfig" | "InferenceObjective" | "InferenceModelRewrite"
    ) && api_version
        .split_once('/')
        .is_some_and(|(group, version)| GROUPS.contains(&group) && !version.is_empty())
}

/// The resource that the document describes, or None after a problem. `text` is the file, or empty if the document is no
/// part of it that could be cut out.
pub(super) fn read(
    root: &Node,
    kind: &str,
    text: &str,
    findings: &mut Findings,
) -> Option<(Resource, Option<u64>)> {
    let resource = match kind {
        "EndpointPickerConfig" => read_config(root, text, findings)?,
        "InferenceObjective" => read_object(root, findings, |fields| {
            Spec::Objective(ObjectiveSpec {
                priority: fields.signed("priority").unwrap_or_default(),
                pool: pool_ref(fields),
            })
        })?,
        _ => read_object(root, findings, |fields| {
            Spec::ModelRewrite(ModelRewriteSpec {
                pool: pool_ref(fields),
                rules: rules(fields),
                // A field of ours, which llm-d's reader ignores.
                sticky: fields.flag("sticky").unwrap_or_default(),
            })
        })?,
    };
    Some((resource, None))
}

fn read_object(
    root: &Node,
    findings: &mut Findings,
    read_spec: impl FnOnce(&mut Fields<'_, '_>) -> Spec,
) -> Option<Resource> {
    let mut fields = Fields::of(root, "", findings)?;
    let problems_before = fields.findings.problems.len();
    fields.take("apiVersion");
    fields.take("kind");
    let metadata = part(&mut fields, "metadata", read_metadata);
    let spec = part(&mut fields, "spec", read_spec);
    for (name, missing) in [("metadata", metadata.is_none()), ("spec", spec.is_none())] {
        if missing && fields.findings.problems.len() == problems_before {
            fields.missing(name);
        }
    }
    // Output of the controllers that watch it elsewhere.
    fields.take("status");
    warn_of_leftovers(&mut fields);
    Some(Resource {
        metadata: Some(metadata?),
        spec: Some(spec?),
    })
}

/// The pool's name; none means all pools.
fn pool_ref(fields: &mut Fields<'_, '_>) -> String {
    part(fields, "poolRef", |reference| {
        // Where Kubernetes finds it.
        reference.take("group");
        reference.take("kind");
        reference.required_text("name").unwrap_or_default()
    })
    .unwrap_or_default()
}

fn rules(fields: &mut Fields<'_, '_>) -> Vec<ModelRewriteRule> {
    parts(fields, "rules", |rule| ModelRewriteRule {
        matches: parts(rule, "matches", |one| {
            let model = part(one, "model", |model| {
                model.choice("type", &[("Exact", ())]);
                model.required_text("value").unwrap_or_default()
            });
            if model.is_none() {
                one.missing("model");
            }
            ModelMatch {
                model: model.unwrap_or_default(),
            }
        }),
        targets: parts(rule, "targets", |target| ModelRewriteTarget {
            model: target.required_text("modelRewrite").unwrap_or_default(),
            weight: target.count("weight"),
        }),
    })
}

/// A list of objects, in each of which what is not known is a warning.
fn parts<'n, T>(
    fields: &mut Fields<'n, '_>,
    name: &'static str,
    read: impl Fn(&mut Fields<'n, '_>) -> T,
) -> Vec<T> {
    let path = fields.path_of(name);
    let mut values = Vec::new();
    for (i, item) in fields.list(name).iter().enumerate() {
        if let Some(mut inner) = Fields::of(item, &format!("{path}[{i}]"), fields.findings) {
            values.push(read(&mut inner));
            warn_of_leftovers(&mut inner);
        }
    }
    values
}

/// Kept as it is. The metadata, which llm-d's reader does not know, name the config and its pool.
fn read_config(root: &Node, text: &str, findings: &mut Findings) -> Option<Resource> {
    let metadata = match root.get("metadata") {
        None
        | Some(Node {
            value: Value::Null, ..
        }) => Metadata::default(),
        Some(node) => {
            let mut fields = Fields::of(node, "metadata", findings)?;
            let metadata = Metadata {
                name: fields.text("name").unwrap_or_default(),
                labels: fields.strings("labels"),
                annotations: fields.strings("annotations"),
                ..Metadata::default()
            };
            warn_of_leftovers(&mut fields);
            metadata
        }
    };
    let pool = metadata
        .annotations
        .get(POOL_ANNOTATION)
        .cloned()
        .unwrap_or_default();
    findings.keep_lines(root, "spec.config");
    let config = match cut_out(text, root.line) {
        Some(text) => text.to_owned(),
        None => {
            let tree = root.to_tree();
            crate::output::yaml(&tree).unwrap_or_else(|_| tree.to_json())
        }
    };
    let name = if metadata.name.is_empty() {
        pool.clone()
    } else {
        metadata.name
    };
    Some(Resource {
        metadata: Some(Metadata { name, ..metadata }),
        spec: Some(Spec::SchedulingConfig(SchedulingConfigSpec {
            pool,
            config,
        })),
    })
}

/// The lines of the document that has this line in it (from 1), with the comments before and after. Only `---` and `...` at the
/// very beginning of a line end a document, also inside of its texts.
fn cut_out(text: &str, line: u64) -> Option<&str> {
    let is_mark = |line: &str| {
        let ends = |mark| {
            line.strip_prefix(mark)
                .is_some_and(|rest: &str| rest.chars().next().is_none_or(char::is_whitespace))
        };
        ends("---") || ends("...")
    };
    let at = usize::try_from(line).ok()?.checked_sub(1)?;
    let (mut start, mut end, mut offset) = (0, text.len(), 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        if is_mark(line) {
            if i >= at {
                // What begins on the line of its mark cannot be cut out of lines.
                if i == at {
                    return None;
                }
                end = offset;
                break;
            }
            start = next;
        }
        offset = next;
    }
    let part = text.get(start..end)?;
    (!part.trim().is_empty()).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_out_with_their_comments() {
        let text =
            "# a\na: 1\n--- # b\n# c\nb: |\n  --- no mark\n  x\n# d\n...\n---\nc: 1\n--- {d: 1}\n";
        for (line, part) in [
            (2, Some("# a\na: 1\n")),
            (5, Some("# c\nb: |\n  --- no mark\n  x\n# d\n")),
            (11, Some("c: 1\n")),
            (12, None),
        ] {
            assert_eq!(cut_out(text, line), part, "{line}");
        }
        assert_eq!(cut_out("a: 1", 1), Some("a: 1"));
        assert_eq!(cut_out("", 1), None);
        assert_eq!(cut_out("a: 1", 0), None);
    }
}
