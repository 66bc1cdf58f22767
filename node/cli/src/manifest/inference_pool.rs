//! llm-d's InferencePool, taken as it is: `inference.networking.k8s.io/v1` and the older `v1alpha2` form.
//!
//! What Kubernetes needs it for and Quorate does not (the endpoint picker's address, the namespace, the status) is named in
//! a warning. Fields: https://gateway-api-inference-extension.sigs.k8s.io/reference/spec/

use quorate_proto::v1::{PoolSpec, Resource, resource::Spec};

use super::{
    Fields, Findings,
    foreign::{part, read_metadata, warn_of_leftovers},
    node::{Node, Value},
    own::APP_PROTOCOLS,
};

/// Whether this is one of the API groups that define InferencePool.
pub(super) fn is_group_of(api_version: &str) -> bool {
    matches!(
        api_version.split_once('/'),
        Some(("inference.networking.k8s.io" | "inference.networking.x-k8s.io", version)) if !version.is_empty()
    )
}

/// The pool that the document describes, or None after a problem.
pub(super) fn read(root: &Node, findings: &mut Findings) -> Option<(Resource, Option<u64>)> {
    let problems_before = findings.problems.len();
    let mut fields = Fields::of(root, "", findings)?;
    fields.take("apiVersion");
    fields.take("kind");
    let metadata = part(&mut fields, "metadata", read_metadata);
    let spec = part(&mut fields, "spec", read_spec);
    for (name, missing) in [("metadata", metadata.is_none()), ("spec", spec.is_none())] {
        if missing && fields.findings.problems.len() == problems_before {
            fields.missing(name);
        }
    }
    warn_of_leftovers(&mut fields);
    Some((
        Resource {
            metadata: Some(metadata?),
            spec: Some(Spec::Pool(spec?)),
        },
        None,
    ))
}

fn read_spec(fields: &mut Fields<'_, '_>) -> PoolSpec {
    let selector = match fields.take("selector") {
        None => {
            fields.missing("selector");
            Default::default()
        }
        Some(node) => {
            let path = fields.path_of("selector");
            match node.get("matchLabels") {
                Some(Node {
                    value: Value::Map(_),
                    ..
                }) => {
                    // A label selector; only its matchLabels exist in the v1 schema.
                    let Some(mut inner) = Fields::of(node, &path, fields.findings) else {
                        return PoolSpec::default();
                    };
                    let labels = inner.strings("matchLabels");
                    inner.close();
                    labels
                }
                // v1alpha2: the labels themselves.
                _ => super::fields::string_map(node, &path, fields.findings),
            }
        }
    };
    let mut target_ports = Vec::new();
    for (i, item) in fields.list("targetPorts").iter().enumerate() {
        let path = fields.path_of(&format!("targetPorts[{i}]"));
        if let Some(mut entry) = Fields::of(item, &path, fields.findings) {
            match entry.port("number") {
                Some(port) => target_ports.push(port),
                None if item.get("number").is_none() => entry.missing("number"),
                None => {}
            }
            entry.close();
        }
    }
    // v1alpha2 has one port.
    target_ports.extend(fields.port("targetPortNumber"));
    let app_protocol = fields
        .choice("appProtocol", &APP_PROTOCOLS)
        .unwrap_or_default()
        .to_owned();
    for reference in ["endpointPickerRef", "extensionRef"] {
        if fields.take(reference).is_some() {
            let (path, line) = (fields.path_of(reference), fields.line_of(reference));
            fields.findings.warning(
                line,
                &path,
                "is ignored: every router node picks endpoints itself",
            );
        }
    }
    PoolSpec {
        selector,
        target_ports,
        app_protocol,
        ..PoolSpec::default()
    }
}
