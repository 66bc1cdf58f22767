//! Typed access to the parts of a resource message.

use quorate_proto::v1::{
    ApiKeySpec, ConfigRevisionSpec, EndpointSpec, Kind, Metadata, ModelRewriteSpec, NodeSpec,
    ObjectiveSpec, PoolSpec, RegionSpec, Resource, SchedulingConfigSpec, SettingSpec, TenantSpec,
    resource::Spec,
};

/// Every kind, in the order in which listings, watches and snapshots go through them: what is referred to comes before
/// what refers to it.
pub const KINDS: [Kind; 11] = [
    Kind::Region,
    Kind::Node,
    Kind::Pool,
    Kind::Endpoint,
    Kind::Setting,
    Kind::SchedulingConfig,
    Kind::ConfigRevision,
    Kind::Objective,
    Kind::ModelRewrite,
    Kind::Tenant,
    Kind::ApiKey,
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
    /// The spec, if this is a scheduling config.
    fn scheduling_config(&self) -> Option<&SchedulingConfigSpec>;
    /// The spec, if this is a version of a scheduling config.
    fn config_revision(&self) -> Option<&ConfigRevisionSpec>;
    /// The spec, if this is an objective.
    fn objective(&self) -> Option<&ObjectiveSpec>;
    /// The spec, if this is a model rewrite.
    fn model_rewrite(&self) -> Option<&ModelRewriteSpec>;
    /// The spec, if this is a tenant.
    fn tenant(&self) -> Option<&TenantSpec>;
    /// The spec, if this is an API key.
    fn api_key(&self) -> Option<&ApiKeySpec>;
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
            Some(Spec::SchedulingConfig(_)) => Kind::SchedulingConfig,
            Some(Spec::ConfigRevision(_)) => Kind::ConfigRevision,
            Some(Spec::Objective(_)) => Kind::Objective,
            Some(Spec::ModelRewrite(_)) => Kind::ModelRewrite,
            Some(Spec::Tenant(_)) => Kind::Tenant,
            Some(Spec::ApiKey(_)) => Kind::ApiKey,
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

    fn scheduling_config(&self) -> Option<&SchedulingConfigSpec> {
        match &self.spec {
            Some(Spec::SchedulingConfig(spec)) => Some(spec),
            _ => None,
        }
    }

    fn config_revision(&self) -> Option<&ConfigRevisionSpec> {
        match &self.spec {
            Some(Spec::ConfigRevision(spec)) => Some(spec),
            _ => None,
        }
    }

    fn objective(&self) -> Option<&ObjectiveSpec> {
        match &self.spec {
            Some(Spec::Objective(spec)) => Some(spec),
            _ => None,
        }
    }

    fn model_rewrite(&self) -> Option<&ModelRewriteSpec> {
        match &self.spec {
            Some(Spec::ModelRewrite(spec)) => Some(spec),
            _ => None,
        }
    }

    fn tenant(&self) -> Option<&TenantSpec> {
        match &self.spec {
            Some(Spec::Tenant(spec)) => Some(spec),
            _ => None,
        }
    }

    fn api_key(&self) -> Option<&ApiKeySpec> {
        match &self.spec {
            Some(Spec::ApiKey(spec)) => Some(spec),
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
        Kind::SchedulingConfig => "scheduling config",
        Kind::ConfigRevision => "config revision",
        Kind::Objective => "objective",
        Kind::ModelRewrite => "model rewrite",
        Kind::Tenant => "tenant",
        Kind::ApiKey => "API key",
    }
}
