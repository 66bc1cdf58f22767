//! The rules of what decides how a pool schedules: scheduling configs, objectives and model rewrites.
//!
//! Whether a config's text makes sense is for the build that compiles it, so it is checked where a client hands it in and not
//! here: plugins come and go, and nodes of neighbouring versions must still agree on what is in the state.

use quorate_proto::v1::{ModelRewriteRule, ModelRewriteSpec, ObjectiveSpec, SchedulingConfigSpec};

use super::{Checked, fail, name, require};

/// Longest name of a scheduling config: its revisions are named after it.
const MAX_CONFIG_NAME: usize = 200;
const MAX_CONFIG_BYTES: usize = 256 << 10;
const MAX_MODEL_NAME: usize = 256;
const MAX_RULES: usize = 64;
const MAX_MATCHES: usize = 64;
const MAX_TARGETS: usize = 64;
const MAX_WEIGHT: u32 = 1_000_000;

pub(super) fn config(config_name: &str, spec: &SchedulingConfigSpec) -> Checked {
    require(
        config_name.len() <= MAX_CONFIG_NAME,
        "metadata.name",
        format_args!("must be at most {MAX_CONFIG_NAME} bytes long"),
    )?;
    name("spec.scheduling_config.pool", &spec.pool)?;
    let field = "spec.scheduling_config.config";
    require(
        spec.config.len() <= MAX_CONFIG_BYTES,
        field,
        format_args!("must be at most {} KiB long", MAX_CONFIG_BYTES >> 10),
    )?;
    require(!spec.config.trim().is_empty(), field, "must not be empty")
}

pub(super) fn objective(spec: &ObjectiveSpec) -> Checked {
    pool_or_all("spec.objective.pool", &spec.pool)
}

pub(super) fn model_rewrite(spec: &ModelRewriteSpec) -> Checked {
    pool_or_all("spec.model_rewrite.pool", &spec.pool)?;
    let field = "spec.model_rewrite.rules";
    require(
        (1..=MAX_RULES).contains(&spec.rules.len()),
        field,
        format_args!("must be 1 to {MAX_RULES}"),
    )?;
    for (i, one) in spec.rules.iter().enumerate() {
        rule(&format!("{field}[{i}]"), one)?;
    }
    Ok(())
}

fn rule(field: &str, rule: &ModelRewriteRule) -> Checked {
    require(
        rule.matches.len() <= MAX_MATCHES,
        format_args!("{field}.matches"),
        format_args!("must be at most {MAX_MATCHES}"),
    )?;
    for (i, one) in rule.matches.iter().enumerate() {
        model_name(&format!("{field}.matches[{i}].model"), &one.model)?;
    }
    require(
        (1..=MAX_TARGETS).contains(&rule.targets.len()),
        format_args!("{field}.targets"),
        format_args!("must be 1 to {MAX_TARGETS}"),
    )?;
    for (i, target) in rule.targets.iter().enumerate() {
        model_name(&format!("{field}.targets[{i}].model"), &target.model)?;
        require(
            target
                .weight
                .is_none_or(|weight| (1..=MAX_WEIGHT).contains(&weight)),
            format_args!("{field}.targets[{i}].weight"),
            format_args!("must be from 1 to {MAX_WEIGHT}"),
        )?;
    }
    Ok(())
}

fn pool_or_all(field: &str, pool: &str) -> Checked {
    if pool.is_empty() {
        return Ok(());
    }
    name(field, pool)
}

/// A model's name as clients write it.
pub(super) fn model_name(field: &str, model: &str) -> Checked {
    if (1..=MAX_MODEL_NAME).contains(&model.len())
        && !model.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        return Ok(());
    }
    fail(
        field,
        format_args!(
            "must be 1 to {MAX_MODEL_NAME} bytes without white space or control characters"
        ),
    )
}
