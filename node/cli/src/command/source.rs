//! Manifests from files, directories and standard input.

use std::{
    collections::HashMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use quorate_proto::v1::resource::Spec;

use crate::{
    Exit, Failure, Io, kind,
    manifest::{self, Document, MAX_BYTES},
};

/// A document and the file that it is from.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub document: Document,
    pub file: String,
}

impl Declared {
    /// `kind/name`
    pub fn full_name(&self) -> String {
        format!(
            "{}/{}",
            kind::singular(self.document.kind),
            self.document.name()
        )
    }

    /// Whether it is a pool that takes what no other pool answers to.
    pub fn is_fallback_pool(&self) -> bool {
        matches!(&self.document.resource.spec, Some(Spec::Pool(pool)) if pool.fallback)
    }

    /// Puts the place in the file in front of what a server says about the document.
    pub fn locate(&self, failure: Failure) -> Failure {
        let line = failure
            .field
            .as_deref()
            .map_or(self.document.line, |field| self.document.line_of(field));
        let context = format!("{}:{line}: {}", self.file, self.full_name());
        failure.context(context)
    }
}

/// What becomes of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Warnings {
    /// They are told.
    Tell,
    /// They are told and count as errors.
    Refuse,
    /// What is not applied does not matter.
    Ignore,
}

/// Reads and checks all files. Documents come in the order in which they can be applied: what is referred to first.
pub(super) fn read_all(
    paths: &[PathBuf],
    on_warning: Warnings,
    io: &mut Io<'_>,
) -> Result<Vec<Declared>, Failure> {
    let mut declared = Vec::new();
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    for (name, text) in read_texts(paths, io)? {
        match manifest::parse(&text) {
            Ok(manifest) => {
                warnings.extend(
                    manifest
                        .warnings
                        .iter()
                        .map(|warning| warning.in_file(&name)),
                );
                let with_file = |document| Declared {
                    document,
                    file: name.clone(),
                };
                declared.extend(manifest.documents.into_iter().map(with_file));
            }
            Err(error) => {
                problems.extend(error.problems.iter().map(|problem| problem.in_file(&name)))
            }
        }
    }
    let mut seen: HashMap<_, &Declared> = HashMap::new();
    for this in &declared {
        let key = (this.document.kind, this.document.name());
        if let Some(first) = seen.insert(key, this)
            && first.file != this.file
        {
            problems.push(format!(
                "{}:{}: {} is declared in {} as well",
                this.file,
                this.document.line,
                this.full_name(),
                first.file
            ));
        }
    }
    for warning in warnings.iter().filter(|_| on_warning != Warnings::Ignore) {
        writeln!(io.err, "warning: {}", crate::output::plain(warning))?;
    }
    if on_warning == Warnings::Refuse {
        problems.extend(warnings);
    }
    if !problems.is_empty() {
        // One line each; the first one gets the word "error" from whoever reports the failure.
        let message = problems
            .iter()
            .map(|p| crate::output::plain(p))
            .collect::<Vec<_>>()
            .join("\nerror: ");
        return Err(Failure::new(Exit::Invalid, message));
    }
    // There can be one fallback pool: the one that stops being it goes before the one that becomes it.
    declared.sort_by_key(|this| (kind::rank(this.document.kind), this.is_fallback_pool()));
    Ok(declared)
}

pub(super) fn read_texts(
    paths: &[PathBuf],
    io: &mut Io<'_>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            texts.push(("stdin".to_owned(), text_of("stdin", &mut *io.input)?));
            continue;
        }
        let at = |error: std::io::Error| Failure::from(error).context(path.display());
        if std::fs::metadata(path).map_err(at)?.is_dir() {
            for file in manifests_in(path)? {
                texts.push(read_file(&file)?);
            }
        } else {
            texts.push(read_file(path)?);
        }
    }
    Ok(texts)
}

/// The manifests of a directory (not of those below it), in name order.
fn manifests_in(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let at = |error: std::io::Error| Failure::from(error).context(dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(at)? {
        let path = entry.map_err(at)?.path();
        let is_manifest = path
            .extension()
            .is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if is_manifest && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let message = format!(
            "{}: there is no .yaml, .yml or .json file in it",
            dir.display()
        );
        return Err(Failure::new(Exit::NotFound, message));
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<(String, String), Failure> {
    let name = path.display().to_string();
    let mut file =
        std::fs::File::open(path).map_err(|error| Failure::from(error).context(&name))?;
    let text = text_of(&name, &mut file)?;
    Ok((name, text))
}

fn text_of(name: &str, input: &mut dyn std::io::Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    // One byte more than may be: the parser then says that it is too large.
    let limit = u64::try_from(MAX_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    input
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::from(error).context(name))?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::new(Exit::Invalid, format!("{name}: is not UTF-8 text")))
}
