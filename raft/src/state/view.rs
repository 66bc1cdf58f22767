//! The read side of the control state: an immutable picture of it after some log entry.

use std::sync::Arc;

use quorate_proto::{
    store::v1::{Command, RemovedNode, VolatileGroup},
    v1::{Kind, Resource},
};

use super::{
    Reply,
    put::belongs_to,
    reply::invalid,
    run,
    tables::{Origin, Tables},
};
use crate::watch::ResumeToken;

/// The state as of one log index. Reads take no lock; clones and older views share what has not changed since.
#[derive(Clone, Debug, Default)]
pub struct ControlView {
    pub(super) tables: Tables,
    applied_index: u64,
    applied_term: u64,
}

impl ControlView {
    pub(super) fn new(tables: Tables, applied_index: u64, applied_term: u64) -> Self {
        Self {
            tables,
            applied_index,
            applied_term,
        }
    }

    /// One resource.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Resource>> {
        self.tables.get(kind, name)
    }

    /// All resources of a kind, in name order.
    pub fn list(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> + use<'_> {
        self.tables.list(kind)
    }

    /// How many resources of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.tables.of_kind(kind).map_or(0, imbl::OrdMap::len)
    }

    /// The endpoints that name this pool or carry the labels that it selects, in name order.
    pub fn endpoints_of<'a>(
        &'a self,
        pool: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a> {
        let selecting = self.get(Kind::Pool, pool).map(|r| &**r);
        self.list(Kind::Endpoint)
            .filter(move |endpoint| belongs_to(endpoint, pool, selecting))
    }

    /// All nodes, in name order.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Resource>> + use<'_> {
        self.list(Kind::Node)
    }

    /// The node with this raft id.
    pub fn node_by_id(&self, id: u64) -> Option<&Arc<Resource>> {
        self.tables.node_by_id(id)
    }

    /// The removed node whose data directory this was.
    pub fn removed_node(&self, instance: &str) -> Option<&RemovedNode> {
        self.tables.removed.get(instance).map(|node| &**node)
    }

    /// The removed node that had this id.
    pub fn removed_node_by_id(&self, id: u64) -> Option<&RemovedNode> {
        self.tables
            .removed
            .values()
            .find(|node| node.node_id == id)
            .map(|node| &**node)
    }

    /// The volatile group with this name of a region.
    pub fn volatile_group(&self, group: &str, region: &str) -> Option<&Arc<VolatileGroup>> {
        self.tables.volatile_group(group, region)
    }

    /// The cluster's id, empty before it is initialised.
    pub fn cluster_id(&self) -> &str {
        &self.tables.cluster_id
    }

    /// The timing preset, "lan" or "wan"; empty before the cluster is initialised.
    pub fn timing(&self) -> &str {
        &self.tables.timing
    }

    /// Number of changes so far; each change of a resource takes the next one as its version.
    pub fn revision(&self) -> u64 {
        self.tables.revision
    }

    /// Index of the last log entry in this view.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// Term of the last log entry in this view.
    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }

    /// Where a watch has to start to see every change after this view.
    pub fn resume_token(&self) -> ResumeToken {
        ResumeToken::new(self.cluster_id(), self.revision())
    }

    /// What the command would be answered if it were applied to this view now, apart from its idempotency key. The
    /// versions in the answer are guesses: other commands may come first.
    pub fn dry_run(&self, command: &Command) -> Reply {
        let Some(op) = &command.op else {
            return Reply::Rejected(invalid("op", "the command is empty"));
        };
        let origin = Origin {
            node_id: command.origin_node_id,
            time_unix_ms: command.time_unix_ms,
        };
        match run(&mut self.tables.clone(), op, origin, &mut Vec::new()) {
            Ok((resource, outcome)) => Reply::Applied {
                resource,
                outcome,
                index: self.applied_index,
            },
            Err(rejection) => Reply::Rejected(rejection),
        }
    }
}
