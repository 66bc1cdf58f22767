//! Cells of scheduling configs and their revisions, objectives and model rewrites.

use quorate_proto::v1::{
    ConfigRevisionSpec, Metadata, ModelRewriteRule, ModelRewriteSpec, ObjectiveSpec,
    SchedulingConfigSpec,
};

use super::{Cells, yes};

/// Longest excerpt of rules.
const EXCERPT: usize = 80;

pub(super) fn config(metadata: Option<&Metadata>, spec: &SchedulingConfigSpec) -> Cells {
    let generation = metadata.map_or(0, |m| m.generation);
    (
        vec![spec.pool.clone(), generation.to_string()],
        vec![spec.config.len().to_string()],
    )
}

pub(super) fn revision(spec: &ConfigRevisionSpec) -> Cells {
    (
        vec![
            spec.scheduling_config.clone(),
            spec.generation.to_string(),
            spec.pool.clone(),
        ],
        vec![spec.config.len().to_string()],
    )
}

pub(super) fn objective(spec: &ObjectiveSpec) -> Cells {
    (
        vec![pool_or_all(&spec.pool), spec.priority.to_string()],
        vec![],
    )
}

pub(super) fn rewrite(spec: &ModelRewriteSpec) -> Cells {
    let rules: Vec<String> = spec.rules.iter().map(rule).collect();
    let mut rules = rules.join("; ");
    if rules.chars().count() > EXCERPT {
        rules = rules.chars().take(EXCERPT - 3).collect::<String>() + "...";
    }
    (
        vec![
            pool_or_all(&spec.pool),
            spec.rules.len().to_string(),
            yes(spec.sticky),
        ],
        vec![rules],
    )
}

/// `a|b -> c:90,d:10`
fn rule(rule: &ModelRewriteRule) -> String {
    let from: Vec<&str> = rule.matches.iter().map(|one| one.model.as_str()).collect();
    let from = if from.is_empty() {
        "*".to_owned()
    } else {
        from.join("|")
    };
    let to: Vec<String> = rule
        .targets
        .iter()
        .map(|target| match target.weight {
            Some(weight) => format!("{}:{weight}", target.model),
            None => target.model.clone(),
        })
        .collect();
    format!("{from} -> {}", to.join(","))
}

fn pool_or_all(pool: &str) -> String {
    if pool.is_empty() {
        "(all)".to_owned()
    } else {
        pool.to_owned()
    }
}
