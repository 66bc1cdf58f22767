//! From a resource to its manifest: the inverse of reading, apart from defaults and fields that only the server sets.

use prost_types::Timestamp;
use quorate_proto::v1::{
    BreakerPolicy, ConfigRevisionSpec, Discovery, EndpointSpec, HealthPolicy, Metadata, NodeSpec,
    PoolSpec, Resource, SettingSpec, discovery::Source, resource::Spec,
};

use super::{API_VERSION, Tree, duration, own::ENGINES, scheduling, tenancy};
use crate::kind;

/// The manifest of a resource. What is unset is left out.
pub fn manifest_of(resource: &Resource) -> Tree {
    let mut tree = Tree::map();
    tree.put("apiVersion", API_VERSION);
    tree.put(
        "kind",
        kind::names(kind::of(resource)).map_or("Unknown", |names| names.manifest),
    );
    tree.put(
        "metadata",
        resource.metadata.as_ref().map_or_else(Tree::map, metadata),
    );
    match &resource.spec {
        Some(Spec::Pool(spec)) => tree.put("spec", pool(spec)),
        Some(Spec::Endpoint(spec)) => tree.put("spec", endpoint(spec)),
        Some(Spec::Node(spec)) => tree.put("spec", node(spec)),
        Some(Spec::Region(spec)) => {
            let mut region = Tree::map();
            region.put_some("description", spec.description.as_str());
            tree.put_some("spec", region);
        }
        Some(Spec::Setting(spec)) => tree.put("spec", setting(spec)),
        Some(Spec::SchedulingConfig(spec)) => tree.put("spec", scheduling::config_tree(spec)),
        Some(Spec::ConfigRevision(spec)) => tree.put("spec", revision(spec)),
        Some(Spec::Objective(spec)) => tree.put("spec", scheduling::objective_tree(spec)),
        Some(Spec::ModelRewrite(spec)) => tree.put("spec", scheduling::rewrite_tree(spec)),
        Some(Spec::Tenant(spec)) => tree.put_some("spec", tenancy::tenant_tree(spec)),
        Some(Spec::ApiKey(spec)) => tree.put("spec", tenancy::api_key_tree(spec)),
        None => {}
    }
    tree
}

fn metadata(metadata: &Metadata) -> Tree {
    let mut tree = Tree::map();
    tree.put("name", metadata.name.as_str());
    tree.put_some("labels", &metadata.labels);
    tree.put_some("annotations", &metadata.annotations);
    for (name, number) in [
        ("resourceVersion", metadata.resource_version),
        ("incarnation", metadata.incarnation),
        ("generation", metadata.generation),
    ] {
        tree.put_some(name, (number > 0).then_some(number));
    }
    tree.put_some("createdAt", metadata.created_at.as_ref().map(timestamp));
    tree.put_some("updatedAt", metadata.updated_at.as_ref().map(timestamp));
    tree
}

/// A point in time as RFC 3339 text, in UTC.
pub fn timestamp(timestamp: &Timestamp) -> String {
    timestamp.to_string()
}

fn pool(spec: &PoolSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put_some(
        "models",
        spec.models.iter().map(String::as_str).collect::<Tree>(),
    );
    tree.put_some("selector", &spec.selector);
    tree.put_some(
        "targetPorts",
        spec.target_ports.iter().copied().collect::<Tree>(),
    );
    if let Some(set) = &spec.discovery {
        tree.put("discovery", discovery(set));
    }
    if let Some(set) = &spec.health {
        tree.put("health", health(set));
    }
    if let Some(set) = &spec.breaker {
        tree.put("breaker", breaker(set));
    }
    tree.put_some("fallback", spec.fallback.then_some(true));
    tree.put_some("appProtocol", spec.app_protocol.as_str());
    tree.put_some("engine", engine(spec.engine));
    tree
}

fn discovery(discovery: &Discovery) -> Tree {
    let mut tree = Tree::map();
    match &discovery.source {
        Some(Source::File(file)) => {
            let mut inner = Tree::map();
            inner.put("path", file.path.as_str());
            tree.put("file", inner);
        }
        Some(Source::Dns(dns)) => {
            let mut inner = Tree::map();
            inner.put("name", dns.name.as_str());
            inner.put_some("port", (dns.port > 0).then_some(dns.port));
            put_duration(&mut inner, "interval", dns.interval.as_ref());
            inner.put_some("scheme", dns.scheme.as_str());
            tree.put("dns", inner);
        }
        None => {}
    }
    tree
}

fn health(health: &HealthPolicy) -> Tree {
    let mut tree = Tree::map();
    tree.put_some("path", health.path.as_str());
    put_duration(&mut tree, "interval", health.interval.as_ref());
    put_duration(
        &mut tree,
        "unhealthyInterval",
        health.unhealthy_interval.as_ref(),
    );
    put_duration(&mut tree, "timeout", health.timeout.as_ref());
    tree.put_some(
        "unhealthyThreshold",
        (health.unhealthy_threshold > 0).then_some(health.unhealthy_threshold),
    );
    tree.put_some(
        "healthyThreshold",
        (health.healthy_threshold > 0).then_some(health.healthy_threshold),
    );
    put_duration(&mut tree, "slowStart", health.slow_start.as_ref());
    put_duration(&mut tree, "stallTimeout", health.stall_timeout.as_ref());
    put_duration(
        &mut tree,
        "metricsInterval",
        health.metrics_interval.as_ref(),
    );
    tree
}

fn breaker(breaker: &BreakerPolicy) -> Tree {
    let mut tree = Tree::map();
    tree.put_some(
        "consecutiveFailures",
        (breaker.consecutive_failures > 0).then_some(breaker.consecutive_failures),
    );
    put_duration(&mut tree, "open", breaker.open.as_ref());
    put_duration(&mut tree, "maxOpen", breaker.max_open.as_ref());
    tree
}

fn put_duration(tree: &mut Tree, name: &str, duration: Option<&prost_types::Duration>) {
    tree.put_some(name, duration.map(duration::text_of));
}

/// The word for an engine; a number for one that is newer than this build; null if it is not said.
fn engine(number: i32) -> Tree {
    match ENGINES
        .iter()
        .find(|(_, engine)| i32::from(*engine) == number)
    {
        Some((word, _)) => (*word).into(),
        None if number == 0 => Tree::Null,
        None => Tree::Int(number.into()),
    }
}

fn endpoint(spec: &EndpointSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put_some("pool", spec.pool.as_str());
    tree.put("url", spec.url.as_str());
    tree.put_some("engine", engine(spec.engine));
    tree.put_some("region", spec.region.as_str());
    tree.put_some("dataParallelRank", spec.data_parallel_rank);
    tree.put_some("metricsUrl", spec.metrics_url.as_str());
    tree.put_some("draining", spec.draining.then_some(true));
    tree.put_some("source", spec.source.as_str());
    tree
}

fn node(spec: &NodeSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put("nodeId", spec.node_id);
    for (name, text) in [
        ("instance", &spec.instance),
        ("region", &spec.region),
        ("peerAddress", &spec.peer_address),
        ("controlAddress", &spec.control_address),
        ("gatewayAddress", &spec.gateway_address),
        ("adminAddress", &spec.admin_address),
        ("version", &spec.version),
    ] {
        tree.put_some(name, text.as_str());
    }
    tree
}

fn revision(spec: &ConfigRevisionSpec) -> Tree {
    let mut tree = Tree::map();
    tree.put("schedulingConfig", spec.scheduling_config.as_str());
    tree.put("generation", spec.generation);
    tree.put("pool", spec.pool.as_str());
    tree.put("config", spec.config.as_str());
    tree
}

/// As a YAML value if reading that gives the same text again, else as the text itself.
fn setting(spec: &SettingSpec) -> Tree {
    let mut tree = Tree::map();
    match serde_json::from_str::<Tree>(&spec.json) {
        Ok(value) if value.to_json() == spec.json => tree.put("value", value),
        _ => tree.put("json", spec.json.as_str()),
    }
    tree
}

/// The word for an engine, or its number, or "".
pub(crate) fn engine_word(number: i32) -> String {
    match engine(number) {
        Tree::Text(word) => word,
        Tree::Int(number) => number.to_string(),
        _ => String::new(),
    }
}
