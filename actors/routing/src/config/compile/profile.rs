//! A scheduling profile with its plugins resolved.

use super::Plugins;
use crate::config::problem::suggestion;
use crate::config::{Findings, ProfileSpec};
use crate::pipeline::{Named, Profile, Weighted};
use crate::plugin::picker::max_score::MaxScore;
use std::sync::Arc;

/// The filters, scorers and picker that `spec` names, which stands at `path`; what is wrong is found.
pub(super) fn build(
    spec: &ProfileSpec,
    path: &str,
    plugins: &Plugins<'_>,
    findings: &mut Findings,
) -> Profile {
    let mut profile = Profile {
        name: spec.name.as_str().into(),
        filters: Vec::new(),
        scorers: Vec::new(),
        picker: Named::new("max-score-picker", Arc::new(MaxScore::new(1, 0)) as Arc<_>),
    };
    let mut has_picker = false;
    for (i, reference) in spec.plugins.iter().enumerate() {
        let at = format!("{path}.plugins[{i}]");
        let name = reference.plugin_ref.as_str();
        let Some((plugin, built)) = plugins.get(name) else {
            let names = plugins.built.iter().map(|(spec, _)| spec.name.as_str());
            let hint = suggestion(name, names);
            findings.error(
                format!("{at}.pluginRef"),
                format!("there is no plugin `{name}`{hint}"),
            );
            continue;
        };
        if let Some(filter) = &built.filter {
            profile.filters.push(Named::new(name, Arc::clone(filter)));
        }
        if let Some(scorer) = &built.scorer {
            profile.scorers.push(Weighted {
                scorer: Named::new(name, Arc::clone(scorer)),
                weight: reference.weight.unwrap_or(1.0),
            });
        } else if reference.weight.is_some() {
            findings.warn(
                format!("{at}.weight"),
                "has no meaning for a plugin that does not score",
            );
        }
        if let Some(picker) = &built.picker {
            if has_picker {
                findings.error(at.clone(), format!("`{name}` is a second picker"));
            }
            has_picker = true;
            profile.picker = Named::new(name, Arc::clone(picker));
        }
        // A plugin whose parameters are wrong is nothing, and that has been said.
        let usable = built.filter.is_some() || built.scorer.is_some() || built.picker.is_some();
        let failed = findings
            .errors
            .iter()
            .any(|e| e.path.contains("parameters"));
        if !usable && !failed {
            let message = format!("`{}` is no filter, scorer or picker", plugin.kind);
            findings.error(at, message);
        }
    }
    profile
}
