//! Typed access to the parts of a resource message.

use quorate_proto::v1::{
    EndpointSpec, Kind, Metadata, NodeSpec, PoolSpec, RegionSpec, Resource, SettingSpec,
    resource::Spec,
};

/// Every kind, in the order in which listings, watches and snapshots go through them: what is referred to comes before
/// what refers to it.
pub const KINDS: [Kind; 5] = [
    Kind::Region,
    Kind::Node,
    Kind::Pool,
    Kind::Endpoint,
    Kind::Setting,
];

/// Reads a [`Resource`] without unpacking its options at every place. Resources in the state always have metadata and a
/// spec; for others the answers are empty.
pub trait ResourceExt {
    /// The kind, from the spec; `Unspecified` without one.
    fn kind(&self) -> Kind;
    /// The name, or "".
    fn name(&self) -> &str;
    /// `metadata.resource_version`.
    fn version(&self) -> u64;
    /// `metadata.incarnation`.
    fn incarnation(&self) -> u64;
    /// Whether the labels carry every pair of `selector`. An empty selector selects nothing.
    fn selected_by(&self, selector: &std::collections::BTreeMap<String, String>) -> bool;
    /// The spec, if this is a pool.
    fn pool(&self) -> Option<&PoolSpec>;
    /// The spec, if this is an endpoint.
    fn endpoint(&self) -> Option<&EndpointSpec>;
    /// The spec, if this is a node.
    fn node(&self) -> Option<&NodeSpec>;
    /// The spec, if this is a region.
    fn region(&self) -> Option<&RegionSpec>;
    /// The spec, if this is a setting.
    fn setting(&self) -> Option<&SettingSpec>;
}

fn meta(resource: &Resource) -> Option<&Metadata> {
    resource.metadata.as_ref()
}

impl ResourceExt for Resource {
    fn kind(&self) -> Kind {
        match &self.spec {
            Some(Spec::Pool(_)) => Kind::Pool,
            Some(Spec::Endpoint(_)) => Kind::Endpoint,
            Some(Spec::Node(_)) => Kind::Node,
            Some(Spec::Region(_)) => Kind::Region,
            Some(Spec::Setting(_)) => Kind::Setting,
            None => Kind::Unspecified,
        }
    }

    fn name(&self) -> &str {
        meta(self).map_or("", |m| &m.name)
    }

    fn version(&self) -> u64 {
        meta(self).map_or(0, |m| m.resource_version)
    }

    fn incarnation(&self) -> u64 {
        meta(self).map_or(0, |m| m.incarnation)
    }

    fn selected_by(&self, selector: &std::collections::BTreeMap<String, String>) -> bool {
        !selector.is_empty()
            && meta(self).is_some_and(|m| {
                selector
                    .iter()
                    .all(|(key, value)| m.labels.get(key) == Some(value))
            })
    }

    fn pool(&self) -> Option<&PoolSpec> {
        match &self.spec {
            Some(Spec::Pool(spec)) => Some(spec),
            _ => None,
        }
    }

    fn endpoint(&self) -> Option<&EndpointSpec> {
        match &self.spec {
            Some(Spec::Endpoint(spec)) => Some(spec),
            _ => None,
        }
    }

    fn node(&self) -> Option<&NodeSpec> {
        match &self.spec {
            Some(Spec::Node(spec)) => Some(spec),
            _ => None,
        }
    }

    fn region(&self) -> Option<&RegionSpec> {
        match &self.spec {
            Some(Spec::Region(spec)) => Some(spec),
            _ => None,
        }
    }

    fn setting(&self) -> Option<&SettingSpec> {
        match &self.spec {
            Some(Spec::Setting(spec)) => Some(spec),
            _ => None,
        }
    }
}

/// How a kind is called in messages to people.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "resource",
        Kind::Pool => "pool",
        Kind::Endpoint => "endpoint",
        Kind::Node => "node",
        Kind::Region => "region",
        Kind::Setting => "setting",
    }
}
