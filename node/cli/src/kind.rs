//! The kinds of resource and what they are called: in manifests, on the command line, in messages.

use quorate_proto::v1::{Kind, Resource, resource::Spec};

use crate::exit::{Exit, Failure};

/// The names of a kind.
#[derive(Debug)]
pub(crate) struct KindNames {
    pub kind: Kind,
    /// In manifests.
    pub manifest: &'static str,
    /// In messages and in `-o name`.
    pub singular: &'static str,
    pub plural: &'static str,
    pub short: &'static str,
}

/// All kinds, in the order in which they are applied and listed: what is referred to comes first.
pub(crate) const KINDS: [KindNames; 11] = [
    KindNames {
        kind: Kind::Region,
        manifest: "Region",
        singular: "region",
        plural: "regions",
        short: "reg",
    },
    KindNames {
        kind: Kind::Node,
        manifest: "Node",
        singular: "node",
        plural: "nodes",
        short: "no",
    },
    KindNames {
        kind: Kind::Pool,
        manifest: "Pool",
        singular: "pool",
        plural: "pools",
        short: "po",
    },
    KindNames {
        kind: Kind::Endpoint,
        manifest: "Endpoint",
        singular: "endpoint",
        plural: "endpoints",
        short: "ep",
    },
    KindNames {
        kind: Kind::Setting,
        manifest: "Setting",
        singular: "setting",
        plural: "settings",
        short: "set",
    },
    KindNames {
        kind: Kind::SchedulingConfig,
        manifest: "SchedulingConfig",
        singular: "schedulingconfig",
        plural: "schedulingconfigs",
        short: "sc",
    },
    KindNames {
        kind: Kind::ConfigRevision,
        manifest: "ConfigRevision",
        singular: "configrevision",
        plural: "configrevisions",
        short: "cr",
    },
    KindNames {
        kind: Kind::Objective,
        manifest: "Objective",
        singular: "objective",
        plural: "objectives",
        short: "obj",
    },
    KindNames {
        kind: Kind::ModelRewrite,
        manifest: "ModelRewrite",
        singular: "modelrewrite",
        plural: "modelrewrites",
        short: "mr",
    },
    KindNames {
        kind: Kind::Tenant,
        manifest: "Tenant",
        singular: "tenant",
        plural: "tenants",
        short: "tn",
    },
    KindNames {
        kind: Kind::ApiKey,
        manifest: "ApiKey",
        singular: "apikey",
        plural: "apikeys",
        short: "ak",
    },
];

/// The names of a kind, if this build knows it.
pub(crate) fn names(kind: Kind) -> Option<&'static KindNames> {
    KINDS.iter().find(|names| names.kind == kind)
}

/// What a kind is called in messages.
pub(crate) fn singular(kind: Kind) -> &'static str {
    names(kind).map_or("resource", |names| names.singular)
}

/// Whether clients declare it. The others are written by the cluster itself.
pub(crate) fn is_declared(kind: Kind) -> bool {
    !matches!(kind, Kind::Node | Kind::ConfigRevision)
}

/// Place of a kind in the order of application.
pub(crate) fn rank(kind: Kind) -> usize {
    KINDS
        .iter()
        .position(|names| names.kind == kind)
        .unwrap_or(KINDS.len())
}

/// A kind as it is written on the command line: singular, plural or short, in any case.
pub(crate) fn parse(text: &str) -> Result<Kind, Failure> {
    let word = text.to_lowercase();
    if let Some(names) = KINDS
        .iter()
        .find(|n| [n.singular, n.plural, n.short].contains(&word.as_str()))
    {
        return Ok(names.kind);
    }
    let words = KINDS
        .iter()
        .flat_map(|names| [names.singular, names.plural]);
    let hint = crate::manifest::suggestion(&word, words);
    let all = KINDS
        .iter()
        .map(|names| names.plural)
        .collect::<Vec<_>>()
        .join(", ");
    Err(Failure::new(
        Exit::Usage,
        format!("unknown kind {text:?}{hint} (kinds: {all})"),
    ))
}

/// The kind of a resource; `Unspecified` if this build does not know it.
pub(crate) fn of(resource: &Resource) -> Kind {
    match resource.spec {
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

/// The name of a resource, or "".
pub(crate) fn name_of(resource: &Resource) -> &str {
    resource.metadata.as_ref().map_or("", |m| &m.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_kind_is_understood() {
        for names in &KINDS {
            for word in [names.singular, names.plural, names.short, names.manifest] {
                assert_eq!(parse(word).ok(), Some(names.kind), "{word}");
            }
        }
        let failure = parse("endpoitns").expect_err("no such kind");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.message.contains("did you mean \"endpoints\"?"),
            "{failure}"
        );
    }
}
