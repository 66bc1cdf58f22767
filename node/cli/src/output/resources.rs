//! The columns of each kind of resource.

mod scheduling;
mod tenancy;

use std::{collections::BTreeMap, time::SystemTime};

use quorate_proto::v1::{Kind, Metadata, Resource, discovery::Source, resource::Spec};

use super::{Table, age};
use crate::{
    kind,
    manifest::{Tree, engine_word},
};

/// Longest excerpt of a setting's value.
const EXCERPT: usize = 60;

/// The cells after the name, and those of the wide form.
type Cells = (Vec<String>, Vec<String>);

/// The columns after the name, and those of the wide form.
fn columns(kind: Kind) -> (&'static [&'static str], &'static [&'static str]) {
    match kind {
        Kind::Pool => (
            &["MODELS", "ENGINE", "DISCOVERY", "FALLBACK"],
            &["SELECTOR", "PORTS", "PROTOCOL"],
        ),
        Kind::Endpoint => (
            &["POOL", "URL", "ENGINE", "REGION", "DRAINING"],
            &["RANK", "SOURCE", "METRICS"],
        ),
        Kind::Node => (
            &["ID", "REGION", "CONTROL", "GATEWAY", "VERSION"],
            &["PEER", "ADMIN", "INSTANCE"],
        ),
        Kind::Region => (&["DESCRIPTION"], &[]),
        Kind::Setting => (&["BYTES"], &["VALUE"]),
        Kind::SchedulingConfig => (&["POOL", "GENERATION"], &["BYTES"]),
        Kind::ConfigRevision => (&["CONFIG", "GENERATION", "POOL"], &["BYTES"]),
        Kind::Objective => (&["POOL", "PRIORITY"], &[]),
        Kind::ModelRewrite => (&["POOL", "RULES", "STICKY"], &["REWRITES"]),
        Kind::Tenant => (
            &["MODELS", "OBJECTIVES", "LIMITS", "DISABLED"],
            &["FAIRNESS", "TRUSTED", "DEFAULT", "DESCRIPTION"],
        ),
        Kind::ApiKey => (
            &["TENANT", "KEY", "STATE", "EXPIRES"],
            &["MODELS", "OBJECTIVES", "LIMITS"],
        ),
        Kind::Unspecified => (&[], &[]),
    }
}

/// A table of resources of one kind.
pub fn table(kind: Kind, resources: &[Resource], wide: bool, now: SystemTime) -> Table {
    let (narrow, more) = columns(kind);
    let mut heading = vec!["NAME"];
    heading.extend_from_slice(narrow);
    heading.push("AGE");
    if wide {
        heading.extend_from_slice(more);
        heading.extend_from_slice(&["LABELS", "VERSION"]);
    }
    let mut table = Table::new(&heading);
    for resource in resources {
        let fallback = Metadata::default();
        let metadata = resource.metadata.as_ref().unwrap_or(&fallback);
        let (mut cells, extra) = cells(resource, now);
        cells.insert(0, metadata.name.clone());
        cells.push(age(metadata.created_at.as_ref(), now));
        if wide {
            cells.extend(extra);
            cells.push(labels(&metadata.labels));
            cells.push(metadata.resource_version.to_string());
        }
        table.row(cells);
    }
    table
}

/// What a resource is, for one line of a watch: `column=value` of whatever is set.
pub fn summary(resource: &Resource) -> String {
    let (narrow, _) = columns(kind::of(resource));
    let (cells, _) = cells(resource, SystemTime::now());
    let set = narrow
        .iter()
        .zip(cells)
        .filter(|(_, cell)| !cell.is_empty());
    set.map(|(column, cell)| format!("{}={cell}", column.to_lowercase()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `key=value,key=value`
pub fn labels(labels: &BTreeMap<String, String>) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn yes(flag: bool) -> String {
    if flag {
        "yes".to_owned()
    } else {
        String::new()
    }
}

/// The cells after the name, and those of the wide form.
fn cells(resource: &Resource, now: SystemTime) -> Cells {
    match &resource.spec {
        Some(Spec::Pool(pool)) => {
            let discovery = match pool.discovery.as_ref().and_then(|d| d.source.as_ref()) {
                Some(Source::File(file)) => format!("file:{}", file.path),
                Some(Source::Dns(dns)) => format!("dns:{}", dns.name),
                None => String::new(),
            };
            let ports = pool
                .target_ports
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(",");
            (
                vec![
                    pool.models.join(","),
                    engine_word(pool.engine),
                    discovery,
                    yes(pool.fallback),
                ],
                vec![labels(&pool.selector), ports, pool.app_protocol.clone()],
            )
        }
        Some(Spec::Endpoint(endpoint)) => (
            vec![
                endpoint.pool.clone(),
                endpoint.url.clone(),
                engine_word(endpoint.engine),
                endpoint.region.clone(),
                yes(endpoint.draining),
            ],
            vec![
                endpoint
                    .data_parallel_rank
                    .map(|rank| rank.to_string())
                    .unwrap_or_default(),
                endpoint.source.clone(),
                endpoint.metrics_url.clone(),
            ],
        ),
        Some(Spec::Node(node)) => (
            vec![
                node.node_id.to_string(),
                node.region.clone(),
                node.control_address.clone(),
                node.gateway_address.clone(),
                node.version.clone(),
            ],
            vec![
                node.peer_address.clone(),
                node.admin_address.clone(),
                node.instance.clone(),
            ],
        ),
        Some(Spec::Region(region)) => (vec![region.description.clone()], vec![]),
        Some(Spec::Setting(setting)) => (
            vec![setting.json.len().to_string()],
            vec![excerpt(&setting.json)],
        ),
        Some(Spec::SchedulingConfig(spec)) => scheduling::config(resource.metadata.as_ref(), spec),
        Some(Spec::ConfigRevision(spec)) => scheduling::revision(spec),
        Some(Spec::Objective(spec)) => scheduling::objective(spec),
        Some(Spec::ModelRewrite(spec)) => scheduling::rewrite(spec),
        Some(Spec::Tenant(spec)) => tenancy::tenant(spec),
        Some(Spec::ApiKey(spec)) => tenancy::api_key(spec, now),
        None => (vec![], vec![]),
    }
}

fn excerpt(json: &str) -> String {
    let compact =
        serde_json::from_str::<Tree>(json).map_or_else(|_| json.to_owned(), |tree| tree.to_json());
    if compact.chars().count() <= EXCERPT {
        return compact;
    }
    let mut text: String = compact.chars().take(EXCERPT - 3).collect();
    text.push_str("...");
    text
}
