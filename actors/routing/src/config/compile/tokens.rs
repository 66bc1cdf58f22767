//! Who makes tokens, and who needs them.

use super::Entry;
use crate::config::registry::{Built, Registry};
use crate::config::{Findings, PluginSpec};

/// These compare prompts with what engines have, and so need their very tokens.
const EXACT: [&str; 2] = [
    "precise-prefix-cache-producer",
    "precise-prefix-cache-scorer",
];
/// These make tokens.
const TOKENS: [&str; 2] = ["token-producer", "tokenizer"];

/// Adds the default maker of tokens where something needs the very ones that engines see and nobody makes any. Whether something does.
pub(super) fn add_default(entries: &mut Vec<Entry>, registry: &Registry) -> bool {
    let any = |kinds: &[&str]| {
        entries
            .iter()
            .any(|e| kinds.contains(&e.spec.kind.as_str()))
    };
    let wanted = any(&EXACT);
    let kind = TOKENS[0];
    if wanted && registry.get(kind).is_some() && !any(&TOKENS) {
        entries.push(Entry {
            spec: PluginSpec {
                name: kind.to_owned(),
                kind: kind.to_owned(),
                parameters: None,
            },
            path: format!("(default) {kind}"),
        });
    }
    wanted
}

/// What one plugin of a configuration has; a second one is an error.
pub(super) fn only<T>(
    built: &[(PluginSpec, Built)],
    kind: &str,
    findings: &mut Findings,
    take: impl Fn(&Built) -> Option<T>,
) -> Option<T> {
    let mut found = built.iter().filter_map(|(_, built)| take(built));
    let first = found.next();
    if found.next().is_some() {
        findings.error("plugins", format!("there can be only one `{kind}`"));
    }
    first
}
