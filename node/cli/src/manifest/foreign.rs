//! Reading objects of other projects: what is not known is named in a warning and left out.

use quorate_proto::v1::Metadata;

use super::{Fields, name_error};

/// Like [`Fields::section`], but what is not known is a warning.
pub(super) fn part<'n, T>(
    fields: &mut Fields<'n, '_>,
    name: &'static str,
    read: impl FnOnce(&mut Fields<'n, '_>) -> T,
) -> Option<T> {
    let node = fields.take(name)?;
    let path = fields.path_of(name);
    let mut inner = Fields::of(node, &path, fields.findings)?;
    let value = read(&mut inner);
    warn_of_leftovers(&mut inner);
    Some(value)
}

/// Names each field that nobody asked for.
pub(super) fn warn_of_leftovers(fields: &mut Fields<'_, '_>) {
    for (name, line) in fields.leftovers() {
        let path = fields.path_of(name);
        let hint = fields.hint(name);
        fields.findings.warning(
            line,
            &path,
            format!("has no meaning here and is ignored{hint}"),
        );
    }
}

/// A Kubernetes object's metadata.
pub(super) fn read_metadata(fields: &mut Fields<'_, '_>) -> Metadata {
    let name = fields.required_text("name").unwrap_or_default();
    if let Some(error) = name_error(&name).filter(|_| !name.is_empty()) {
        let line = fields.line_of("name");
        fields.problem(line, "name", error);
    }
    let (labels, annotations) = (fields.strings("labels"), fields.strings("annotations"));
    if fields.take("namespace").is_some() {
        let (path, line) = (fields.path_of("namespace"), fields.line_of("namespace"));
        fields.findings.warning(
            line,
            &path,
            "is ignored: there are no namespaces, names are unique in the cluster",
        );
    }
    Metadata {
        name,
        labels,
        annotations,
        ..Metadata::default()
    }
}
