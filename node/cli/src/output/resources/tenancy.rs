//! Cells of tenants and API keys.

use std::time::SystemTime;

use quorate_proto::v1::{ApiKeySpec, Limits, TenantSpec};

use super::{Cells, yes};
use crate::manifest::timestamp;

pub(super) fn tenant(spec: &TenantSpec) -> Cells {
    (
        vec![
            spec.models.join(","),
            spec.objectives.join(","),
            limits(spec.limits.as_ref()),
            yes(spec.disabled),
        ],
        vec![
            spec.fairness_id.clone(),
            yes(spec.trusted),
            spec.default_objective.clone(),
            spec.description.clone(),
        ],
    )
}

pub(super) fn api_key(spec: &ApiKeySpec, now: SystemTime) -> Cells {
    let expired = spec
        .expires_at
        .and_then(|end| SystemTime::try_from(end).ok())
        .is_some_and(|end| end <= now);
    let state = match (spec.revoked, expired) {
        (true, _) => "revoked",
        (false, true) => "expired",
        (false, false) => "valid",
    };
    let end = spec.expires_at.as_ref().map(timestamp).unwrap_or_default();
    (
        vec![
            spec.tenant.clone(),
            spec.hint.clone(),
            state.to_owned(),
            end,
        ],
        vec![
            spec.models.join(","),
            spec.objectives.join(","),
            limits(spec.limits.as_ref()),
        ],
    )
}

/// `10/s,60000tok/min,8 at once`
fn limits(limits: Option<&Limits>) -> String {
    let Some(limits) = limits else {
        return String::new();
    };
    [
        limits.requests_per_second.map(|rate| format!("{rate}/s")),
        limits
            .tokens_per_minute
            .map(|rate| format!("{rate}tok/min")),
        limits.concurrent.map(|most| format!("{most} at once")),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(",")
}
