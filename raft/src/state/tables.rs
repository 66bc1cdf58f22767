//! The tables of the control state: resources by kind and name, the removed nodes, the volatile groups, and the counters.

use std::sync::Arc;

use imbl::OrdMap;
use prost_types::Timestamp;
use quorate_proto::{
    store::v1::RemovedNode,
    v1::{ApplyOutcome, Kind, Metadata, Resource},
};

use super::{
    ChangeEvent, ChangeType,
    resource::{KINDS, ResourceExt as _},
    volatile::Groups,
};

type ByName = OrdMap<Arc<str>, Arc<Resource>>;

/// Everything that readers see. A clone shares all of it, so it costs a few reference counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    /// Empty until the cluster is initialised.
    pub(super) cluster_id: Arc<str>,
    pub(super) timing: Arc<str>,
    /// Changes so far. Each change takes the next number as its resource version, so a version is never used twice, also
    /// by two changes of one log entry.
    pub(super) revision: u64,
    /// Indexed by [`slot`].
    pub(super) kinds: [ByName; KINDS.len()],
    /// By instance.
    pub(super) removed: OrdMap<Arc<str>, Arc<RemovedNode>>,
    /// Their changes take no revision and make no event: they are the nodes' own business, not an operator's.
    pub(super) volatile: Groups,
    /// Raft ids issued to members of volatile groups so far.
    pub(super) raft_ids: u64,
}

/// Latest time that a protobuf timestamp can carry: the end of the year 9999.
pub(super) const MAX_UNIX_MS: i64 = 253_402_300_799_999;

fn slot(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Unspecified => None,
        Kind::Pool => Some(0),
        Kind::Endpoint => Some(1),
        Kind::Node => Some(2),
        Kind::Region => Some(3),
        Kind::Setting => Some(4),
        Kind::SchedulingConfig => Some(5),
        Kind::ConfigRevision => Some(6),
        Kind::Objective => Some(7),
        Kind::ModelRewrite => Some(8),
        Kind::Tenant => Some(9),
        Kind::ApiKey => Some(10),
    }
}

/// Where a command came from and when: the only clock that apply knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) node_id: u64,
    pub(super) time_unix_ms: i64,
}

impl Origin {
    fn timestamp(self) -> Timestamp {
        let ms = self.time_unix_ms.clamp(0, MAX_UNIX_MS);
        Timestamp {
            seconds: ms / 1000,
            nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
        }
    }
}

impl Tables {
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Resource>> {
        self.kinds.get(slot(kind)?)?.get(name)
    }

    pub(super) fn of_kind(&self, kind: Kind) -> Option<&ByName> {
        self.kinds.get(slot(kind)?)
    }

    pub(super) fn list(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> + use<'_> {
        self.of_kind(kind).into_iter().flat_map(OrdMap::values)
    }

    pub(super) fn node_by_id(&self, id: u64) -> Option<&Arc<Resource>> {
        self.list(Kind::Node)
            .find(|r| r.node().is_some_and(|n| n.node_id == id))
    }

    /// Puts a resource into its table as it is. False if it has no kind.
    pub(super) fn insert(&mut self, resource: Arc<Resource>) -> bool {
        let Some(table) = slot(resource.kind()).and_then(|slot| self.kinds.get_mut(slot)) else {
            return false;
        };
        match table.get_mut(resource.name()) {
            Some(held) => *held = resource,
            None => {
                table.insert(Arc::from(resource.name()), resource);
            }
        }
        true
    }

    /// Writes a checked resource over the one that is there as one change, or finds that nothing would change.
    pub(super) fn write(
        &mut self,
        mut next: Resource,
        existing: Option<Arc<Resource>>,
        origin: Origin,
        events: &mut Vec<ChangeEvent>,
    ) -> (Arc<Resource>, ApplyOutcome) {
        let mut metadata = next.metadata.take().unwrap_or_default();
        if let Some(existing) = &existing
            && existing.spec == next.spec
            && existing.metadata.as_ref().is_some_and(|m| {
                m.labels == metadata.labels && m.annotations == metadata.annotations
            })
        {
            return (Arc::clone(existing), ApplyOutcome::Unchanged);
        }
        let revision = self.next_revision();
        metadata.resource_version = revision;
        metadata.updated_at = Some(origin.timestamp());
        let outcome = match existing.as_deref() {
            Some(Resource {
                metadata: Some(old),
                spec,
            }) => {
                metadata.incarnation = old.incarnation;
                metadata.created_at = old.created_at;
                metadata.generation = old.generation.saturating_add(u64::from(*spec != next.spec));
                ApplyOutcome::Updated
            }
            _ => {
                metadata.incarnation = revision;
                metadata.created_at = metadata.updated_at;
                metadata.generation = 1;
                ApplyOutcome::Created
            }
        };
        next.metadata = Some(metadata);
        let resource = Arc::new(next);
        self.insert(Arc::clone(&resource));
        events.push(ChangeEvent {
            change: ChangeType::Put,
            resource: Arc::clone(&resource),
            revision,
        });
        (resource, outcome)
    }

    /// Takes a resource out as one change.
    pub(super) fn erase(
        &mut self,
        kind: Kind,
        name: &str,
        events: &mut Vec<ChangeEvent>,
    ) -> Option<Arc<Resource>> {
        let resource = self.kinds.get_mut(slot(kind)?)?.remove(name)?;
        let revision = self.next_revision();
        events.push(ChangeEvent {
            change: ChangeType::Delete,
            resource: Arc::clone(&resource),
            revision,
        });
        Some(resource)
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }
}

/// Metadata with nothing but a name.
pub(super) fn named(name: &str) -> Metadata {
    Metadata {
        name: name.to_owned(),
        ..Metadata::default()
    }
}
