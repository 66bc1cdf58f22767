//! Quorate's own manifests: `apiVersion: quorate/v1`.

use quorate_proto::v1::{
    BreakerPolicy, Discovery, DnsDiscovery, EndpointSpec, Engine, FileDiscovery, HealthPolicy,
    Kind, Metadata, PoolSpec, RegionSpec, Resource, SettingSpec, discovery::Source, resource::Spec,
};

use super::{
    Fields, Findings, Tree, name_error,
    node::{Node, Value},
    scheduling, tenancy,
};
use crate::kind::KINDS;

/// Words for the engines.
pub(super) const ENGINES: [(&str, Engine); 4] = [
    ("vllm", Engine::Vllm),
    ("sglang", Engine::Sglang),
    ("trtllm", Engine::Trtllm),
    ("triton", Engine::Triton),
];

/// Protocols that can be spoken on an endpoint's port.
pub(super) const APP_PROTOCOLS: [(&str, &str); 2] =
    [("http", "http"), ("kubernetes.io/h2c", "kubernetes.io/h2c")];

/// The resource and its version, or None after a problem.
pub(super) fn read(
    root: &Node,
    kind: &str,
    findings: &mut Findings,
) -> Option<(Resource, Option<u64>)> {
    let mut fields = Fields::of(root, "", findings)?;
    fields.take("apiVersion");
    fields.take("kind");
    let kind_line = fields.line_of("kind");
    let metadata = fields.section("metadata", read_metadata);
    if metadata.is_none() && fields.findings.problems.is_empty() {
        fields.missing("metadata");
    }
    let spec = match KINDS
        .iter()
        .find(|names| names.manifest == kind)
        .map(|names| names.kind)
    {
        Some(Kind::Pool) => fields.section("spec", read_pool).map(Spec::Pool),
        Some(Kind::Endpoint) => fields.section("spec", read_endpoint).map(Spec::Endpoint),
        Some(Kind::Region) => Some(Spec::Region(
            fields.section("spec", read_region).unwrap_or_default(),
        )),
        Some(Kind::Setting) => fields.section("spec", read_setting).map(Spec::Setting),
        Some(Kind::SchedulingConfig) => fields
            .section("spec", scheduling::read_config)
            .map(Spec::SchedulingConfig),
        Some(Kind::Objective) => Some(Spec::Objective(
            fields
                .section("spec", scheduling::read_objective)
                .unwrap_or_default(),
        )),
        Some(Kind::ModelRewrite) => fields
            .section("spec", scheduling::read_rewrite)
            .map(Spec::ModelRewrite),
        Some(Kind::Tenant) => Some(Spec::Tenant(
            fields
                .section("spec", tenancy::read_tenant)
                .unwrap_or_default(),
        )),
        Some(Kind::ApiKey) => fields
            .section("spec", tenancy::read_api_key)
            .map(Spec::ApiKey),
        Some(Kind::ConfigRevision) => {
            fields.problem(
                kind_line,
                "kind",
                "ConfigRevision is written by the cluster itself (apply a SchedulingConfig, or `quorate config rollback`)",
            );
            return None;
        }
        Some(_) => {
            fields.problem(
                kind_line,
                "kind",
                format!("{kind} is written by the cluster itself (a node joins with `quorate router --join`)"),
            );
            return None;
        }
        None => {
            let words = KINDS
                .iter()
                .map(|names| names.manifest)
                .filter(|word| !matches!(*word, "Node" | "ConfigRevision"));
            let hint = super::suggestion(kind, words.clone());
            let list = words.collect::<Vec<_>>().join(", ");
            fields.problem(
                kind_line,
                "kind",
                format!("{kind:?} is not known{hint} (kinds: {list})"),
            );
            return None;
        }
    };
    if spec.is_none()
        && root
            .get("spec")
            .is_none_or(|node| matches!(node.value, Value::Null))
    {
        fields.missing("spec");
    }
    fields.close();
    let (metadata, version) = metadata?;
    Some((
        Resource {
            metadata: Some(metadata),
            spec: Some(spec?),
        },
        version,
    ))
}

fn read_metadata(fields: &mut Fields<'_, '_>) -> (Metadata, Option<u64>) {
    let name = fields.required_text("name").unwrap_or_default();
    if let Some(error) = name_error(&name).filter(|_| !name.is_empty()) {
        let line = fields.line_of("name");
        fields.problem(line, "name", error);
    }
    let (labels, annotations) = (fields.strings("labels"), fields.strings("annotations"));
    // What the server sets and `get` shows. Only the version can be of use again.
    let version = fields.number("resourceVersion", 1, u64::MAX);
    for output_only in ["incarnation", "generation", "createdAt", "updatedAt"] {
        fields.take(output_only);
    }
    (
        Metadata {
            name,
            labels,
            annotations,
            ..Metadata::default()
        },
        version,
    )
}

fn read_pool(fields: &mut Fields<'_, '_>) -> PoolSpec {
    let models = fields.texts("models");
    let selector = fields.strings("selector");
    let target_ports = read_ports(fields);
    PoolSpec {
        models,
        selector,
        target_ports,
        discovery: fields.section("discovery", read_discovery),
        health: fields.section("health", read_health),
        breaker: fields.section("breaker", read_breaker),
        fallback: fields.flag("fallback").unwrap_or_default(),
        app_protocol: fields
            .choice("appProtocol", &APP_PROTOCOLS)
            .unwrap_or_default()
            .to_owned(),
        engine: read_engine(fields),
    }
}

fn read_ports(fields: &mut Fields<'_, '_>) -> Vec<u32> {
    let path = fields.path_of("targetPorts");
    let mut ports = Vec::new();
    for (i, item) in fields.list("targetPorts").iter().enumerate() {
        let port = super::fields::number(item, &format!("{path}[{i}]"), 1, 65535, fields.findings);
        ports.extend(port.and_then(|port| u32::try_from(port).ok()));
    }
    ports
}

fn read_discovery(fields: &mut Fields<'_, '_>) -> Discovery {
    let file = fields.section("file", |f| FileDiscovery {
        path: f.required_text("path").unwrap_or_default(),
    });
    let dns = fields.section("dns", |f| DnsDiscovery {
        name: f.required_text("name").unwrap_or_default(),
        port: f.port("port").unwrap_or_default(),
        interval: f.duration("interval"),
        scheme: f
            .choice("scheme", &[("http", "http"), ("https", "https")])
            .unwrap_or_default()
            .to_owned(),
    });
    let source = match (file, dns) {
        (Some(_), Some(_)) => {
            let line = fields.line_of("dns");
            fields.problem(
                line,
                "dns",
                "a pool has one source of endpoints: file or dns, not both",
            );
            None
        }
        (Some(file), None) => Some(Source::File(file)),
        (None, Some(dns)) => Some(Source::Dns(dns)),
        (None, None) => None,
    };
    Discovery { source }
}

fn read_health(fields: &mut Fields<'_, '_>) -> HealthPolicy {
    HealthPolicy {
        path: fields.text("path").unwrap_or_default(),
        interval: fields.duration("interval"),
        unhealthy_interval: fields.duration("unhealthyInterval"),
        timeout: fields.duration("timeout"),
        unhealthy_threshold: fields.count("unhealthyThreshold").unwrap_or_default(),
        healthy_threshold: fields.count("healthyThreshold").unwrap_or_default(),
        slow_start: fields.duration("slowStart"),
        stall_timeout: fields.duration("stallTimeout"),
        metrics_interval: fields.duration("metricsInterval"),
    }
}

fn read_breaker(fields: &mut Fields<'_, '_>) -> BreakerPolicy {
    BreakerPolicy {
        consecutive_failures: fields.count("consecutiveFailures").unwrap_or_default(),
        open: fields.duration("open"),
        max_open: fields.duration("maxOpen"),
    }
}

fn read_engine(fields: &mut Fields<'_, '_>) -> i32 {
    fields
        .choice("engine", &ENGINES)
        .unwrap_or(Engine::Unspecified)
        .into()
}

fn read_endpoint(fields: &mut Fields<'_, '_>) -> EndpointSpec {
    EndpointSpec {
        pool: fields.text("pool").unwrap_or_default(),
        url: fields.required_text("url").unwrap_or_default(),
        engine: read_engine(fields),
        region: fields.text("region").unwrap_or_default(),
        data_parallel_rank: fields.count("dataParallelRank"),
        metrics_url: fields.text("metricsUrl").unwrap_or_default(),
        draining: fields.flag("draining").unwrap_or_default(),
        source: fields.text("source").unwrap_or_default(),
    }
}

fn read_region(fields: &mut Fields<'_, '_>) -> RegionSpec {
    RegionSpec {
        description: fields.text("description").unwrap_or_default(),
    }
}

/// The value as YAML, or as JSON text that is kept to the letter.
fn read_setting(fields: &mut Fields<'_, '_>) -> SettingSpec {
    let value = fields.take_any("value");
    let text = fields.text("json");
    let json = match (value, text) {
        (Some(_), Some(_)) => {
            let line = fields.line_of("json");
            fields.problem(
                line,
                "json",
                "a setting has a value or a json text, not both",
            );
            String::new()
        }
        (Some(value), None) => value.to_tree().to_json(),
        (None, Some(text)) => {
            if let Err(error) = serde_json::from_str::<Tree>(&text) {
                let line = fields.line_of("json");
                fields.problem(line, "json", format!("is not JSON: {error}"));
            }
            text
        }
        (None, None) => {
            fields.missing("value");
            String::new()
        }
    };
    SettingSpec { json }
}
