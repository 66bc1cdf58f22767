//! The control state as snapshot records, and back.

use std::sync::Arc;

use quorate_proto::{
    store::v1::{
        Applied, ClusterFacts, CommandReply, RememberedReply, SnapshotRecord, command_reply,
        snapshot_record::Record,
    },
    v1::{ApplyOutcome, Resource},
};

use super::{
    ControlState,
    resource::{KINDS, ResourceExt as _},
};

/// Records that do not make up a state. The file they came from was intact, so this is a fault of whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The facts must come first, once.
    #[error("the first record, and only the first, must carry the cluster's facts")]
    Facts,
    /// A record of a type that this build does not know.
    #[error("a record of an unknown type: it was written by a newer build")]
    Unknown,
    /// A record that lacks a part or appears twice.
    #[error("{0}")]
    Invalid(String),
}

impl ControlState {
    /// The state as records, always the same for the same state: facts, removed nodes, volatile groups, resources,
    /// remembered replies.
    pub fn records(&self) -> impl Iterator<Item = SnapshotRecord> + use<'_> {
        let tables = &self.tables;
        let facts = Record::Facts(ClusterFacts {
            cluster_id: tables.cluster_id.to_string(),
            timing: tables.timing.to_string(),
            revision: tables.revision,
            raft_ids: tables.raft_ids,
        });
        let removed = tables
            .removed
            .values()
            .map(|node| Record::RemovedNode((**node).clone()));
        let volatile = tables
            .volatile
            .values()
            .map(|group| Record::VolatileGroup((**group).clone()));
        let resources = KINDS
            .into_iter()
            .flat_map(|kind| tables.list(kind))
            .map(|resource| Record::Resource(Resource::clone(resource)));
        let remembered = self.remembered.iter().map(|first| {
            Record::Remembered(RememberedReply {
                idempotency_key: first.key.to_string(),
                command_digest: first.digest,
                reply: Some(CommandReply::from(&first.reply())),
                index: first.index,
            })
        });
        std::iter::once(facts)
            .chain(removed)
            .chain(volatile)
            .chain(resources)
            .chain(remembered)
            .map(|record| SnapshotRecord {
                record: Some(record),
            })
    }
}

/// Builds a state from records, one at a time.
#[derive(Debug, Default)]
pub struct StateRestore {
    state: ControlState,
    has_facts: bool,
}

impl StateRestore {
    /// Takes the next record.
    ///
    /// # Errors
    /// See [`RestoreError`]; the restore is of no use after one.
    pub fn push(&mut self, record: SnapshotRecord) -> Result<(), RestoreError> {
        let record = record.record.ok_or(RestoreError::Unknown)?;
        if matches!(record, Record::Facts(_)) == self.has_facts {
            return Err(RestoreError::Facts);
        }
        let state = &mut self.state;
        match record {
            Record::Facts(facts) => {
                state.tables.cluster_id = Arc::from(facts.cluster_id);
                state.tables.timing = Arc::from(facts.timing);
                state.tables.revision = facts.revision;
                state.tables.raft_ids = facts.raft_ids;
                self.has_facts = true;
            }
            Record::RemovedNode(node) => {
                let instance = Arc::from(node.instance.as_str());
                if state
                    .tables
                    .removed
                    .insert(instance, Arc::new(node))
                    .is_some()
                {
                    return Err(RestoreError::Invalid("a removed node appears twice".into()));
                }
            }
            Record::VolatileGroup(group) => state
                .tables
                .restore_volatile(group)
                .map_err(RestoreError::Invalid)?,
            Record::Resource(resource) => {
                let (kind, name) = (resource.kind(), resource.name());
                if name.is_empty() || resource.version() > state.tables.revision {
                    return Err(RestoreError::Invalid(format!(
                        "a resource ({name:?}) without a name or kind, or from the future"
                    )));
                }
                if state.tables.get(kind, name).is_some() {
                    return Err(RestoreError::Invalid(format!(
                        "resource {name:?} appears twice"
                    )));
                }
                if !state.tables.insert(Arc::new(resource)) {
                    return Err(RestoreError::Unknown);
                }
            }
            Record::Remembered(first) => self.remember(first)?,
        }
        Ok(())
    }

    fn remember(&mut self, first: RememberedReply) -> Result<(), RestoreError> {
        let key = first.idempotency_key;
        let Some(CommandReply {
            result:
                Some(command_reply::Result::Applied(Applied {
                    resource: Some(resource),
                    outcome,
                    ..
                })),
        }) = first.reply
        else {
            return Err(RestoreError::Invalid(format!(
                "the remembered reply of key {key:?} is not a success"
            )));
        };
        let outcome = ApplyOutcome::try_from(outcome).map_err(|_| RestoreError::Unknown)?;
        // Most replies are the present version of their resource: share it instead of keeping it twice.
        let shared = self
            .state
            .tables
            .get(resource.kind(), resource.name())
            .filter(|held| ***held == resource)
            .cloned();
        let resource = shared.unwrap_or_else(|| Arc::new(resource));
        if !self
            .state
            .remembered
            .insert(&key, first.command_digest, resource, outcome, first.index)
        {
            return Err(RestoreError::Invalid(format!(
                "idempotency key {key:?} appears twice"
            )));
        }
        Ok(())
    }

    /// The state, once all records are in.
    ///
    /// # Errors
    /// [`RestoreError::Facts`] if no record came.
    pub fn finish(self) -> Result<ControlState, RestoreError> {
        if self.has_facts {
            Ok(self.state)
        } else {
            Err(RestoreError::Facts)
        }
    }
}
