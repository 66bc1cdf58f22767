//! Which plugin fills which column, which ones are created because something reads their column, and in which order they run.

use super::problem::Findings;
use super::{PluginSpec, registry};
use crate::pipeline::{ColumnId, Filled, Shape};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Produces {
    /// Cached blocks of the prompt, by endpoint.
    Prefix,
    /// The same column, but filled with where a burst of requests is to go: read only by who names its producer.
    Placement,
    /// Expected latencies, by endpoint.
    Prediction,
    /// Share of the multimodal items that an endpoint has encoded already.
    Multimodal,
    /// Prompt tokens that an endpoint would have to compute.
    Uncached,
    /// The session's name.
    Session,
}

impl Produces {
    /// The plugin that is created when something reads the column and nothing fills it.
    fn default_type(self) -> &'static str {
        match self {
            Self::Prefix => "approx-prefix-cache-producer",
            Self::Placement => "burst-prefix-cache-producer",
            Self::Prediction => "predicted-latency-producer",
            Self::Multimodal => "mm-embeddings-cache-producer",
            Self::Uncached => "inflight-load-producer",
            Self::Session => "session-id-producer",
        }
    }
}

impl Produces {
    /// Whether who asks for `other` can read this.
    fn reads_as(self, other: Self) -> bool {
        self == other || (self == Self::Placement && other == Self::Prefix)
    }
}

struct Column {
    plugin: String,
    what: Produces,
    id: ColumnId,
}

/// Who fills what.
#[derive(Default)]
pub(super) struct Ledger {
    columns: Vec<Column>,
    /// Number of columns so far.
    pub shape: Shape,
    /// Plugins that nobody configured and something needs.
    pub created: Vec<PluginSpec>,
    /// Reader and filler.
    edges: Vec<(String, String)>,
}

impl Ledger {
    /// Gives a plugin its column.
    pub fn claim(&mut self, plugin: &str, what: Produces) -> ColumnId {
        let next = match what {
            Produces::Prefix | Produces::Placement => &mut self.shape.prefix,
            Produces::Prediction => &mut self.shape.predictions,
            Produces::Multimodal | Produces::Uncached => &mut self.shape.numbers,
            Produces::Session => &mut self.shape.texts,
        };
        let id = *next;
        *next += 1;
        self.columns.push(Column {
            plugin: plugin.to_owned(),
            what,
            id,
        });
        id
    }

    /// All columns, for records.
    pub fn filled(&self) -> Vec<Filled> {
        self.columns
            .iter()
            .map(|column| Filled {
                producer: column.plugin.as_str().into(),
                what: column.what,
                id: column.id,
            })
            .collect()
    }

    /// The column that a plugin fills.
    pub fn own(&self, plugin: &str, what: Produces) -> ColumnId {
        self.columns
            .iter()
            .find(|c| c.plugin == plugin && c.what == what)
            .map_or(0, |c| c.id)
    }

    /// The first column of a kind, if there is one.
    pub fn existing(&mut self, reader: &str, what: Produces) -> Option<ColumnId> {
        let column = self.columns.iter().find(|c| c.what == what)?;
        self.edges.push((reader.to_owned(), column.plugin.clone()));
        Some(column.id)
    }

    /// The column of the named plugin, or the first of its kind, or that of a default plugin that is created for it.
    pub fn column(
        &mut self,
        reader: &str,
        what: Produces,
        named: Option<&str>,
        path: &str,
        findings: &mut Findings,
    ) -> ColumnId {
        let found = match named {
            Some(name) => self
                .columns
                .iter()
                .find(|c| c.plugin == name && c.what.reads_as(what)),
            None => self.columns.iter().find(|c| c.what == what),
        };
        if let Some(column) = found {
            self.edges.push((reader.to_owned(), column.plugin.clone()));
            return column.id;
        }
        let default = what.default_type();
        if let Some(name) = named.filter(|name| *name != default) {
            findings.error(path, format!("`{name}` is no plugin that produces this"));
            return 0;
        }
        self.created.push(PluginSpec {
            name: default.to_owned(),
            kind: default.to_owned(),
            parameters: None,
        });
        let mut id = 0;
        for produced in registry::produces(default) {
            let claimed = self.claim(default, *produced);
            if *produced == what {
                id = claimed;
            }
        }
        self.edges.push((reader.to_owned(), default.to_owned()));
        id
    }

    /// Producers' names so that each comes after those it reads from.
    ///
    /// # Errors
    /// The names of a cycle's members.
    pub fn order(&self, producers: &[String]) -> Result<Vec<String>, Vec<String>> {
        let mut left: Vec<&String> = producers.iter().collect();
        let mut ordered: Vec<String> = Vec::new();
        while !left.is_empty() {
            let waits = |name: &String| {
                self.edges
                    .iter()
                    .any(|(reader, filler)| reader == name && left.contains(&filler))
            };
            let (next, rest): (Vec<&String>, Vec<&String>) =
                left.iter().copied().partition(|name| !waits(name));
            if next.is_empty() {
                return Err(rest.into_iter().cloned().collect());
            }
            ordered.extend(next.into_iter().cloned());
            left = rest;
        }
        Ok(ordered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_run_after_what_they_read_and_cycles_are_found() {
        let mut ledger = Ledger::default();
        let mut findings = Findings::default();
        for (name, what) in [
            ("load", Produces::Uncached),
            ("prefix", Produces::Prefix),
            ("predict", Produces::Prediction),
        ] {
            ledger.claim(name, what);
        }
        ledger.column("load", Produces::Prefix, None, "", &mut findings);
        ledger.column(
            "predict",
            Produces::Uncached,
            Some("load"),
            "",
            &mut findings,
        );
        let names: Vec<String> = ["predict", "load", "prefix"].map(String::from).to_vec();
        assert_eq!(ledger.order(&names).unwrap(), ["prefix", "load", "predict"]);
        ledger.column("prefix", Produces::Prediction, None, "", &mut findings);
        let mut cycle = ledger.order(&names).unwrap_err();
        cycle.sort();
        assert_eq!(cycle, ["load", "predict", "prefix"]);
        assert!(findings.errors.is_empty());
        ledger.column("x", Produces::Prefix, Some("nobody"), "p", &mut findings);
        assert_eq!(findings.errors.len(), 1);
        assert!(ledger.created.is_empty());
    }

    #[test]
    fn a_column_without_a_filler_gets_the_default_one() {
        let mut ledger = Ledger::default();
        let mut findings = Findings::default();
        let a = ledger.column("scorer", Produces::Prefix, None, "", &mut findings);
        let b = ledger.column("filter", Produces::Prefix, None, "", &mut findings);
        assert_eq!((a, b, ledger.created.len()), (0, 0, 1));
        assert_eq!(ledger.created[0].kind, "approx-prefix-cache-producer");
    }
}
