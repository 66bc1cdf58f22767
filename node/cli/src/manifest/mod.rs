//! Manifests: what `apply -f` reads and `get -o yaml` writes.
//!
//! A file holds one or more documents in YAML (or JSON, which is YAML too), each `apiVersion: quorate/v1` with a kind,
//! metadata and a spec, or one of llm-d's InferencePool, EndpointPickerConfig, InferenceObjective and InferenceModelRewrite. Reading is strict (an unknown field is an error that suggests the right
//! one) and finds everything that is wrong in one go. What is written can be applied again.

pub mod duration;
mod fields;
mod foreign;
mod inference_pool;
mod llmd;
mod node;
mod own;
mod path;
mod render;
mod scheduling;
mod tenancy;
mod tree;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use quorate_proto::v1::{Kind, Resource};

use crate::kind;
use fields::{Fields, Findings};
use node::{Node, Value};

pub(crate) use fields::suggestion;
pub use llmd::POOL_ANNOTATION;
pub use path::field_in_manifest;
pub(crate) use render::engine_word;
pub use render::{manifest_of, timestamp};
pub(crate) use tenancy::hex;
pub use tree::Tree;

/// The `apiVersion` of Quorate's own manifests.
pub const API_VERSION: &str = "quorate/v1";

/// Largest file that is read.
pub const MAX_BYTES: usize = 64 << 20;

/// Something wrong or remarkable in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0: not known.
    pub line: u64,
    /// The field, like `spec.health.interval`; may be empty.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    /// The problem with the name of its file in front, the way compilers write it.
    pub fn in_file(&self, file: &str) -> String {
        let path = if self.path.is_empty() {
            String::new()
        } else {
            format!("{}: ", self.path)
        };
        match self.line {
            0 => format!("{file}: {path}{}", self.message),
            line => format!("{file}:{line}: {path}{}", self.message),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong in a file. Displayed as one line for each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ManifestError {
    /// At least one, in file order.
    pub problems: Vec<Problem>,
}

/// One resource that a file declares.
#[derive(Clone, Debug)]
pub struct Document {
    /// Without the fields that only the server sets.
    pub resource: Resource,
    /// Its kind.
    pub kind: Kind,
    /// Where the document begins, from 1.
    pub line: u64,
    /// `metadata.resourceVersion`, if the document carries it.
    pub resource_version: Option<u64>,
    /// Line of each field, by path.
    lines: HashMap<String, u64>,
}

impl Document {
    /// The resource's name.
    pub fn name(&self) -> &str {
        kind::name_of(&self.resource)
    }

    /// Line of a field, or of the nearest one around it.
    pub fn line_of(&self, path: &str) -> u64 {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = path.get(..end).unwrap_or_default(),
                None => return self.line,
            }
        }
    }
}

/// What a file declares.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// In file order. No two have the same kind and name.
    pub documents: Vec<Document>,
    /// What has no meaning here and is not applied.
    pub warnings: Vec<Problem>,
}

/// Reads a whole file.
///
/// # Errors
/// Everything that is wrong in it; for text that is no YAML, the first error.
pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
    let one = |line, message: String| ManifestError {
        problems: vec![Problem {
            line,
            path: String::new(),
            message,
        }],
    };
    if text.len() > MAX_BYTES {
        return Err(one(
            0,
            format!("the file is larger than {} MiB", MAX_BYTES >> 20),
        ));
    }
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let roots: Vec<Node> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            one(line, first_line(&error.without_snippet().to_string()))
        })?;
    let mut findings = Findings::default();
    let mut documents = Vec::new();
    for root in &roots {
        read_document(root, text, &mut findings, &mut documents);
    }
    find_repeated(&documents, &mut findings);
    if !findings.problems.is_empty() {
        findings.problems.sort_by_key(|problem| problem.line);
        return Err(ManifestError {
            problems: findings.problems,
        });
    }
    if documents.is_empty() {
        let mut problems = vec![Problem {
            line: 0,
            path: String::new(),
            message: "the file declares nothing that can be applied".to_owned(),
        }];
        // They say why.
        problems.append(&mut findings.warnings);
        return Err(ManifestError { problems });
    }
    Ok(Manifest {
        documents,
        warnings: findings.warnings,
    })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// `text` is where the document can be cut out by its lines.
fn read_document(root: &Node, text: &str, findings: &mut Findings, documents: &mut Vec<Document>) {
    let Value::Map(_) = &root.value else {
        findings.problem(
            root.line,
            "",
            format!("a document must be an object, not {}", root.value.is_a()),
        );
        return;
    };
    let (api_version, kind) = (root.get_text("apiVersion"), root.get_text("kind"));
    match (api_version, kind) {
        (None, _) => findings.problem(
            root.line,
            "apiVersion",
            format!("is missing: expected {API_VERSION}"),
        ),
        (_, None) => findings.problem(root.line, "kind", "is missing"),
        (Some(API_VERSION | "v1"), Some("List")) => {
            let Some(Node {
                value: Value::Seq(items),
                ..
            }) = root.get("items")
            else {
                findings.problem(root.line, "items", "must be a list");
                return;
            };
            for item in items {
                read_document(item, "", findings, documents);
            }
        }
        (Some(API_VERSION), Some(kind)) => {
            add(own::read(root, kind, findings), root, findings, documents)
        }
        (Some(api), Some("InferencePool")) if inference_pool::is_group_of(api) => {
            add(
                inference_pool::read(root, findings),
                root,
                findings,
                documents,
            );
        }
        (Some(api), Some(kind)) if llmd::is_known(api, kind) => {
            add(
                llmd::read(root, kind, text, findings),
                root,
                findings,
                documents,
            );
        }
        (Some(api), Some(kind)) if api.starts_with("quorate/") => {
            findings.problem(
                root.line,
                "apiVersion",
                format!("{api:?} is not known for {kind}: expected {API_VERSION}"),
            );
        }
        (Some(api), Some(kind)) => {
            let name = root
                .get("metadata")
                .and_then(|m| m.get_text("name"))
                .unwrap_or_default();
            findings.warning(
                root.line,
                "",
                format!("{kind} {name:?} of {api} has no meaning to this version of Quorate and is skipped"),
            );
        }
    }
}

fn add(
    read: Option<(Resource, Option<u64>)>,
    root: &Node,
    findings: &mut Findings,
    documents: &mut Vec<Document>,
) {
    let lines = std::mem::take(&mut findings.lines);
    if let Some((resource, resource_version)) = read {
        documents.push(Document {
            kind: kind::of(&resource),
            resource,
            line: root.line,
            resource_version,
            lines,
        });
    }
}

fn find_repeated(documents: &[Document], findings: &mut Findings) {
    let mut seen = HashSet::new();
    for document in documents {
        if !seen.insert((document.kind, document.name())) {
            let message = format!(
                "{} {:?} is declared twice",
                kind::singular(document.kind),
                document.name()
            );
            findings.problem(document.line_of("metadata.name"), "metadata.name", message);
        }
    }
}

/// What makes a name unusable; see `Metadata.name` in the .proto file for the rule.
pub(crate) fn name_error(name: &str) -> Option<&'static str> {
    let ends = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: u8| ends(c) || matches!(c, b'-' | b'.' | b'_' | b':');
    let bytes = name.as_bytes();
    if bytes.len() > 253 {
        return Some("is longer than 253 characters");
    }
    let fine = bytes.first().copied().is_some_and(ends)
        && bytes.last().copied().is_some_and(ends)
        && bytes.iter().copied().all(inner);
    (!fine).then_some(
        "must consist of lower-case letters, digits, '-', '.', '_' and ':', and begin and end with a letter or digit",
    )
}
