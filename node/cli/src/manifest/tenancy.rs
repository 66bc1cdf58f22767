//! Tenants and API keys.

use std::fmt::Write as _;

use quorate_proto::v1::{ApiKeySpec, Limits, TenantSpec};

use super::{Fields, Tree, timestamp};

pub(super) fn read_tenant(fields: &mut Fields<'_, '_>) -> TenantSpec {
    TenantSpec {
        description: fields.text("description").unwrap_or_default(),
        fairness_id: fields.text("fairnessId").unwrap_or_default(),
        models: fields.texts("models"),
        objectives: fields.texts("objectives"),
        default_objective: fields.text("defaultObjective").unwrap_or_default(),
        limits: fields.section("limits", read_limits),
        disabled: fields.flag("disabled").unwrap_or_default(),
        trusted: fields.flag("trusted").unwrap_or_default(),
    }
}

pub(super) fn read_api_key(fields: &mut Fields<'_, '_>) -> ApiKeySpec {
    let tenant = fields.required_text("tenant").unwrap_or_default();
    let sha256 = fields.required_text("sha256").and_then(|text| {
        let bytes = from_hex(&text);
        if bytes.is_none() {
            let line = fields.line_of("sha256");
            fields.problem(
                line,
                "sha256",
                "must be the 64 hexadecimal digits of a SHA-256 digest",
            );
        }
        bytes
    });
    let expires_at = fields.text("expiresAt").and_then(|text| {
        text.parse()
            .map_err(|_| {
                let line = fields.line_of("expiresAt");
                let message = format!("{text:?} is no time such as 2027-01-31T12:00:00Z");
                fields.problem(line, "expiresAt", message);
            })
            .ok()
    });
    ApiKeySpec {
        tenant,
        sha256: sha256.unwrap_or_default(),
        hint: fields.text("hint").unwrap_or_default(),
        models: fields.texts("models"),
        objectives: fields.texts("objectives"),
        limits: fields.section("limits", read_limits),
        expires_at,
        revoked: fields.flag("revoked").unwrap_or_default(),
    }
}

fn read_limits(fields: &mut Fields<'_, '_>) -> Limits {
    Limits {
        requests_per_second: fields.fraction("requestsPerSecond"),
        tokens_per_minute: fields.number("tokensPerMinute", 1, u64::MAX),
        concurrent: fields.count("concurrent"),
    }
}

pub(super) fn tenant_tree(spec: &TenantSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put_some("description", spec.description.as_str());
    tree.put_some("fairnessId", spec.fairness_id.as_str());
    tree.put_some("models", texts(&spec.models));
    tree.put_some("objectives", texts(&spec.objectives));
    tree.put_some("defaultObjective", spec.default_objective.as_str());
    if let Some(limits) = &spec.limits {
        tree.put("limits", limits_tree(limits));
    }
    tree.put_some("disabled", spec.disabled.then_some(true));
    tree.put_some("trusted", spec.trusted.then_some(true));
    tree
}

pub(super) fn api_key_tree(spec: &ApiKeySpec) -> Tree {
    let mut tree = Tree::map();
    tree.put("tenant", spec.tenant.as_str());
    tree.put("sha256", hex(&spec.sha256));
    tree.put_some("hint", spec.hint.as_str());
    tree.put_some("models", texts(&spec.models));
    tree.put_some("objectives", texts(&spec.objectives));
    if let Some(limits) = &spec.limits {
        tree.put("limits", limits_tree(limits));
    }
    tree.put_some("expiresAt", spec.expires_at.as_ref().map(timestamp));
    tree.put_some("revoked", spec.revoked.then_some(true));
    tree
}

fn limits_tree(limits: &Limits) -> Tree {
    let mut tree = Tree::map();
    if let Some(rate) = limits.requests_per_second {
        tree.put("requestsPerSecond", Tree::Float(rate));
    }
    tree.put_some("tokensPerMinute", limits.tokens_per_minute);
    tree.put_some("concurrent", limits.concurrent);
    tree
}

fn texts(texts: &[String]) -> Tree {
    texts.iter().map(String::as_str).collect()
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 {
        return None;
    }
    let digit = |c: u8| {
        char::from(c)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}
