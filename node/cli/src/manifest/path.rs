//! From the field paths of the API to those of a manifest.

/// The API says `spec.pool.health.unhealthy_interval`, a manifest `spec.health.unhealthyInterval`.
pub fn field_in_manifest(path: &str) -> String {
    let path = path.strip_prefix("resource.").unwrap_or(path);
    let mut out = String::with_capacity(path.len());
    for (i, segment) in path.split('.').enumerate() {
        // The name of the spec's kind is not in a manifest: it is said by `kind:`.
        if i == 1
            && out == "spec"
            && matches!(
                segment,
                "pool"
                    | "endpoint"
                    | "node"
                    | "region"
                    | "setting"
                    | "scheduling_config"
                    | "objective"
                    | "model_rewrite"
                    | "tenant"
                    | "api_key"
            )
        {
            continue;
        }
        if i > 0 {
            out.push('.');
        }
        // Keys of labels and selectors are the user's own words.
        let is_key =
            out.ends_with("labels.") || out.ends_with("annotations.") || out.ends_with("selector.");
        camel(segment, is_key, &mut out);
    }
    out
}

fn camel(segment: &str, verbatim: bool, out: &mut String) {
    let end = if verbatim {
        0
    } else {
        segment.find('[').unwrap_or(segment.len())
    };
    let (name, rest) = segment.split_at(end);
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else {
            out.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (api, manifest) in [
            (
                "spec.pool.health.unhealthy_interval",
                "spec.health.unhealthyInterval",
            ),
            ("spec.pool.target_ports[2]", "spec.targetPorts[2]"),
            ("spec.endpoint.url", "spec.url"),
            ("spec.endpoint.pool", "spec.pool"),
            ("resource.metadata.name", "metadata.name"),
            ("metadata.labels.my_key", "metadata.labels.my_key"),
            ("metadata.labels[my_key]", "metadata.labels[my_key]"),
            (
                "spec.scheduling_config.config.plugins[2].type",
                "spec.config.plugins[2].type",
            ),
            (
                "spec.tenant.limits.tokens_per_minute",
                "spec.limits.tokensPerMinute",
            ),
            ("spec.api_key.tenant", "spec.tenant"),
            ("idempotency_key", "idempotencyKey"),
            ("", ""),
        ] {
            assert_eq!(field_in_manifest(api), manifest);
        }
    }
}
