//! The rules of tenants, their keys and their limits.

use quorate_proto::v1::{ApiKeySpec, Limits, TenantSpec};

use super::{Checked, MAX_DESCRIPTION, fail, name, require, scheduling::model_name, text};

const MAX_MODELS: usize = 256;
const MAX_OBJECTIVES: usize = 64;
const MAX_FAIRNESS_ID: usize = 128;
const MAX_HINT: usize = 16;
const SHA256_BYTES: usize = 32;
/// More than any fleet serves, and still exact in every calculation with it.
const MAX_REQUESTS_PER_SECOND: f64 = 1e6;
const MIN_REQUESTS_PER_SECOND: f64 = 1e-3;
const MAX_TOKENS_PER_MINUTE: u64 = 1_000_000_000_000;
const MAX_CONCURRENT: u32 = 1_000_000;

pub(super) fn tenant(spec: &TenantSpec) -> Checked {
    text(
        "spec.tenant.description",
        &spec.description,
        MAX_DESCRIPTION,
    )?;
    require(
        spec.fairness_id.len() <= MAX_FAIRNESS_ID
            && spec.fairness_id.bytes().all(|b| b.is_ascii_graphic()),
        "spec.tenant.fairness_id",
        format_args!("must be at most {MAX_FAIRNESS_ID} printable ASCII characters without spaces"),
    )?;
    models("spec.tenant.models", &spec.models)?;
    objectives("spec.tenant.objectives", &spec.objectives)?;
    if !spec.default_objective.is_empty() {
        let field = "spec.tenant.default_objective";
        name(field, &spec.default_objective)?;
        require(
            spec.objectives.is_empty() || spec.objectives.contains(&spec.default_objective),
            field,
            "must be one of the tenant's objectives",
        )?;
    }
    limits("spec.tenant.limits", spec.limits.as_ref())
}

pub(super) fn api_key(spec: &ApiKeySpec) -> Checked {
    name("spec.api_key.tenant", &spec.tenant)?;
    require(
        spec.sha256.len() == SHA256_BYTES,
        "spec.api_key.sha256",
        format_args!("must be the {SHA256_BYTES} bytes of a SHA-256 digest"),
    )?;
    require(
        spec.hint.len() <= MAX_HINT && spec.hint.bytes().all(|b| b.is_ascii_graphic()),
        "spec.api_key.hint",
        format_args!(
            "must be at most {MAX_HINT} printable ASCII characters: it is for recognising a key, not for keeping it"
        ),
    )?;
    models("spec.api_key.models", &spec.models)?;
    objectives("spec.api_key.objectives", &spec.objectives)?;
    limits("spec.api_key.limits", spec.limits.as_ref())?;
    if let Some(end) = &spec.expires_at {
        require(
            (0..=super::super::tables::MAX_UNIX_MS / 1000).contains(&end.seconds)
                && (0..1_000_000_000).contains(&end.nanos),
            "spec.api_key.expires_at",
            "must be a time from 1970 to 9999",
        )?;
    }
    Ok(())
}

fn models(field: &str, models: &[String]) -> Checked {
    require(
        models.len() <= MAX_MODELS,
        field,
        format_args!("must be at most {MAX_MODELS}"),
    )?;
    for (i, model) in models.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let stem = model.strip_suffix('*').unwrap_or(model);
        if stem.contains('*') {
            return fail(field, "may have a '*' at its end only");
        }
        model_name(&field, model)?;
    }
    Ok(())
}

fn objectives(field: &str, objectives: &[String]) -> Checked {
    require(
        objectives.len() <= MAX_OBJECTIVES,
        field,
        format_args!("must be at most {MAX_OBJECTIVES}"),
    )?;
    objectives
        .iter()
        .enumerate()
        .try_for_each(|(i, objective)| name(&format!("{field}[{i}]"), objective))
}

fn limits(field: &str, limits: Option<&Limits>) -> Checked {
    let Some(limits) = limits else { return Ok(()) };
    require(
        limits
            .requests_per_second
            .is_none_or(|rate| (MIN_REQUESTS_PER_SECOND..=MAX_REQUESTS_PER_SECOND).contains(&rate)),
        format_args!("{field}.requests_per_second"),
        format_args!("must be from {MIN_REQUESTS_PER_SECOND} to {MAX_REQUESTS_PER_SECOND}"),
    )?;
    require(
        limits
            .tokens_per_minute
            .is_none_or(|rate| (1..=MAX_TOKENS_PER_MINUTE).contains(&rate)),
        format_args!("{field}.tokens_per_minute"),
        format_args!("must be from 1 to {MAX_TOKENS_PER_MINUTE}"),
    )?;
    require(
        limits
            .concurrent
            .is_none_or(|most| (1..=MAX_CONCURRENT).contains(&most)),
        format_args!("{field}.concurrent"),
        format_args!("must be from 1 to {MAX_CONCURRENT}"),
    )
}
