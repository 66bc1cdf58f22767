//! Writing results: tables for people, YAML, JSON and names for programs.

pub mod resources;
mod table;

use std::io::Write;

use quorate_proto::v1::Resource;

use crate::{
    exit::{Exit, Failure},
    kind,
    manifest::{API_VERSION, Tree, manifest_of},
};

pub use table::{Table, age, plain};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns
    Table,
    /// More columns
    Wide,
    /// YAML documents; those of resources can be applied again
    Yaml,
    /// JSON
    Json,
    /// KIND/NAME, one a line
    Name,
}

/// Writes a value as one YAML document, without a separator.
pub(crate) fn yaml(value: &Tree) -> Result<String, Failure> {
    serde_saphyr::to_string(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as YAML: {error}")))
}

/// Writes a value as indented JSON.
pub(crate) fn json(value: &Tree) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as JSON: {error}")))
}

/// Writes resources as YAML documents, as JSON or as names. A single one was asked for by name: JSON is then the object
/// itself and not a list.
///
/// # Errors
/// The stream cannot be written.
pub fn write_documents(
    resources: &[Resource],
    format: Format,
    single: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    match format {
        Format::Json => {
            let value = match resources {
                [one] if single => manifest_of(one),
                many => {
                    let mut list = Tree::map();
                    list.put("apiVersion", API_VERSION);
                    list.put("kind", "List");
                    list.put("items", Tree::Seq(many.iter().map(manifest_of).collect()));
                    list
                }
            };
            writeln!(out, "{}", json(&value)?)?;
        }
        Format::Yaml => {
            for (i, resource) in resources.iter().enumerate() {
                if i > 0 {
                    writeln!(out, "---")?;
                }
                out.write_all(yaml(&manifest_of(resource))?.as_bytes())?;
            }
        }
        Format::Name | Format::Table | Format::Wide => {
            for resource in resources {
                writeln!(out, "{}", full_name(resource))?;
            }
        }
    }
    Ok(())
}

/// `kind/name`
pub fn full_name(resource: &Resource) -> String {
    format!(
        "{}/{}",
        kind::singular(kind::of(resource)),
        kind::name_of(resource)
    )
}
