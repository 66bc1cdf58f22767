//! What a client may write and delete, and which resources must hold together.

use std::sync::Arc;

use quorate_proto::{
    store::v1::{DeleteResource, PutResource, Rejection},
    v1::{ApiKeySpec, EndpointSpec, Kind, Resource, resource::Spec},
};

use super::{
    ChangeEvent,
    reply::{Done, expect_version, invalid, not_found, precondition},
    resource::{ResourceExt as _, kind_name},
    tables::{Origin, Tables},
    validate,
};

/// Names of resources that a message lists at most.
const NAMED_IN_MESSAGES: usize = 3;

impl Tables {
    pub(super) fn put(
        &mut self,
        put: &PutResource,
        origin: Origin,
        events: &mut Vec<ChangeEvent>,
    ) -> Done {
        let Some(resource) = &put.resource else {
            return Err(invalid("resource", "must be set"));
        };
        let mut next = validate::canonical(resource)?;
        let (kind, existing) = (next.kind(), self.get(next.kind(), next.name()).cloned());
        if kind == Kind::Node {
            return Err(invalid(
                "spec.node",
                "nodes are written by the cluster itself when they join",
            ));
        }
        if kind == Kind::ConfigRevision {
            return Err(invalid(
                "spec.config_revision",
                "config revisions are written by the cluster itself: apply the scheduling config",
            ));
        }
        expect_version(kind, next.name(), put.expected_version, existing.as_deref())?;
        let Resource { metadata, spec } = &mut next;
        let name = metadata.as_ref().map_or("", |m| m.name.as_str());
        match spec {
            Some(Spec::Endpoint(endpoint)) => {
                self.complete_endpoint(endpoint, existing.as_deref(), origin)?
            }
            Some(Spec::Pool(pool)) if pool.fallback => self.check_only_fallback(name)?,
            Some(Spec::SchedulingConfig(config)) => {
                self.check_pool(&config.pool)?;
                self.check_only_config(name, &config.pool)?;
            }
            Some(Spec::Objective(objective)) => self.check_pool(&objective.pool)?,
            Some(Spec::ModelRewrite(rewrite)) => self.check_pool(&rewrite.pool)?,
            Some(Spec::ApiKey(key)) => self.check_key(name, key)?,
            _ => {}
        }
        let (written, outcome) = self.write(next, existing, origin, events);
        self.keep_revision(&written, origin, events);
        Ok((written, outcome))
    }

    /// Refuses a reference to a pool that is not there. The empty name stands for all pools.
    fn check_pool(&self, pool: &str) -> Result<(), Rejection> {
        if pool.is_empty() || self.get(Kind::Pool, pool).is_some() {
            return Ok(());
        }
        Err(precondition(format!(
            "pool {pool:?} does not exist: apply the pool before what is for it"
        )))
    }

    fn check_only_config(&self, name: &str, pool: &str) -> Result<(), Rejection> {
        let of_pool = |r: &&Arc<Resource>| r.scheduling_config().is_some_and(|c| c.pool == pool);
        match self
            .list(Kind::SchedulingConfig)
            .filter(of_pool)
            .find(|r| r.name() != name)
        {
            Some(other) => Err(precondition(format!(
                "pool {pool:?} has the scheduling config {:?} already, and there can be only one: change or delete that",
                other.name()
            ))),
            None => Ok(()),
        }
    }

    /// A key must belong to a tenant and be nobody else's.
    fn check_key(&self, name: &str, key: &ApiKeySpec) -> Result<(), Rejection> {
        if self.get(Kind::Tenant, &key.tenant).is_none() {
            return Err(precondition(format!(
                "tenant {:?} does not exist: apply the tenant before its keys",
                key.tenant
            )));
        }
        let same = |r: &&Arc<Resource>| r.api_key().is_some_and(|k| k.sha256 == key.sha256);
        match self
            .list(Kind::ApiKey)
            .filter(same)
            .find(|r| r.name() != name)
        {
            Some(other) => Err(precondition(format!(
                "API key {:?} has the same digest: a key is kept under one name",
                other.name()
            ))),
            None => Ok(()),
        }
    }

    /// Fills in what an endpoint leaves open and checks what it refers to.
    fn complete_endpoint(
        &self,
        endpoint: &mut EndpointSpec,
        existing: Option<&Resource>,
        origin: Origin,
    ) -> Result<(), Rejection> {
        if !endpoint.pool.is_empty() && self.get(Kind::Pool, &endpoint.pool).is_none() {
            return Err(precondition(format!(
                "pool {:?} does not exist: apply the pool before its endpoints",
                endpoint.pool
            )));
        }
        if endpoint.region.is_empty() {
            let known = existing
                .and_then(|r| r.endpoint())
                .map(|e| e.region.as_str());
            let own = || Some(self.node_by_id(origin.node_id)?.node()?.region.as_str());
            match known.or_else(own) {
                Some(region) => endpoint.region = region.to_owned(),
                None => {
                    return Err(invalid(
                        "spec.endpoint.region",
                        "must be set: the accepting node has no region",
                    ));
                }
            }
        } else if self.get(Kind::Region, &endpoint.region).is_none() {
            return Err(precondition(format!(
                "region {:?} does not exist: it comes with the first node that joins in it, or apply a region of that name",
                endpoint.region
            )));
        }
        Ok(())
    }

    fn check_only_fallback(&self, name: &str) -> Result<(), Rejection> {
        match self
            .list(Kind::Pool)
            .find(|r| r.name() != name && r.pool().is_some_and(|p| p.fallback))
        {
            Some(other) => Err(precondition(format!(
                "pool {:?} is the fallback pool already, and there can be only one",
                other.name()
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn delete(
        &mut self,
        delete: &DeleteResource,
        events: &mut Vec<ChangeEvent>,
    ) -> Done {
        let kind = match Kind::try_from(delete.kind) {
            Ok(Kind::Unspecified) | Err(_) => return Err(invalid("kind", "must be a known kind")),
            Ok(Kind::Node) => {
                return Err(invalid(
                    "kind",
                    "nodes are not deleted: remove the node from the cluster instead",
                ));
            }
            Ok(kind) => kind,
        };
        if delete.expected_version == Some(0) {
            return Err(invalid(
                "expected_version",
                "must not be 0: there would be nothing to delete",
            ));
        }
        let name = delete.name.as_str();
        let Some(existing) = self.get(kind, name).cloned() else {
            return Err(not_found(kind, name));
        };
        expect_version(kind, name, delete.expected_version, Some(&existing))?;
        match kind {
            Kind::Pool => {
                self.check_unused(kind, name, Kind::Endpoint, |r| {
                    r.endpoint().map(|e| &e.pool)
                })?;
                self.check_unused(kind, name, Kind::SchedulingConfig, |r| {
                    r.scheduling_config().map(|c| &c.pool)
                })?;
                self.check_unused(kind, name, Kind::Objective, |r| {
                    r.objective().map(|o| &o.pool)
                })?;
                self.check_unused(kind, name, Kind::ModelRewrite, |r| {
                    r.model_rewrite().map(|r| &r.pool)
                })?;
            }
            Kind::Tenant => {
                self.check_unused(kind, name, Kind::ApiKey, |r| r.api_key().map(|k| &k.tenant))?
            }
            Kind::ConfigRevision => {
                return Err(invalid(
                    "kind",
                    "config revisions are not deleted by themselves: they go with their scheduling config",
                ));
            }
            Kind::SchedulingConfig => self.forget_revisions(name, events),
            Kind::Region => {
                self.check_unused(kind, name, Kind::Endpoint, |r| {
                    r.endpoint().map(|e| &e.region)
                })?;
                self.check_unused(kind, name, Kind::Node, |r| r.node().map(|n| &n.region))?;
            }
            _ => {}
        }
        self.erase(kind, name, events);
        Ok((existing, quorate_proto::v1::ApplyOutcome::Unspecified))
    }

    /// Refuses to delete what resources of the kind `user` refer to.
    fn check_unused(
        &self,
        kind: Kind,
        name: &str,
        user: Kind,
        refers_to: impl Fn(&Resource) -> Option<&String>,
    ) -> Result<(), Rejection> {
        let mut users = self
            .list(user)
            .filter(|r| refers_to(r).is_some_and(|n| n == name));
        let named: Vec<_> = users
            .by_ref()
            .take(NAMED_IN_MESSAGES)
            .map(|r| r.name())
            .collect();
        if named.is_empty() {
            return Ok(());
        }
        let more = match users.count() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let discovered = match user {
            Kind::Endpoint if kind == Kind::Pool => {
                " (and the pool's discovery first, if it declares them)"
            }
            _ => "",
        };
        let (kind, user) = (kind_name(kind), kind_name(user));
        Err(precondition(format!(
            "{kind} {name:?} is named by {user} {}{more}: take those out first{discovered}",
            named.join(", ")
        )))
    }
}

/// Whether an endpoint belongs to a pool: it names it, or carries the labels that it selects.
pub(super) fn belongs_to(
    endpoint: &Arc<Resource>,
    pool_name: &str,
    pool: Option<&Resource>,
) -> bool {
    endpoint.endpoint().is_some_and(|e| e.pool == pool_name)
        || pool
            .and_then(|r| r.pool())
            .is_some_and(|p| endpoint.selected_by(&p.selector))
}
