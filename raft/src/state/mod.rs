//! The replicated control state: a pure function from the log to pools, endpoints, nodes, regions, settings, scheduling configs
//! with their history, objectives, model rewrites, tenants and API keys.
//!
//! `apply` reads no clock, draws no random number and iterates over ordered tables only, so every node that applies the
//! same log holds the same state, byte for byte in a snapshot. Whatever changes which commands are accepted, or what they
//! do, is a new schema: the number in [`SCHEMA`] goes up, and a node refuses an entry that is newer than it knows instead
//! of applying it in its own way.

mod history;
mod nodes;
mod page;
mod put;
mod records;
mod remembered;
mod reply;
mod resource;
mod tables;
pub mod url;
pub mod validate;
mod view;
mod volatile;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use quorate_proto::{
    store::v1::{Command, CommandBatch, command::Op},
    v1::{Kind, Resource},
};

pub use history::CONFIG_HISTORY;
pub use page::{BadPageToken, ListFilter, MAX_PAGE_SIZE, Page};
pub use records::{RestoreError, StateRestore};
pub use reply::Reply;
pub use resource::{KINDS, ResourceExt, kind_name};
pub use view::ControlView;

use remembered::Remembered;
use reply::{Done, invalid, key_reused, precondition};
use tables::{Origin, Tables};

/// Version of the commands and snapshot records that this build writes, and the newest that it reads.
pub const SCHEMA: u32 = 3;

/// The schema that these commands need: 3 if one is about a volatile group, 2 if one is about a kind that schema 1 did not
/// have. Entries carry the lowest that does, so that nodes of the version before keep up for as long as nobody uses what they do not know.
pub(crate) fn schema_of(commands: &[Command]) -> u32 {
    let is_new = |kind: i32| kind > Kind::Setting as i32;
    let needs = |command: &Command| match &command.op {
        Some(Op::JoinVolatile(_) | Op::FoundVolatile(_) | Op::LeaveVolatile(_)) => 3,
        Some(Op::Put(put))
            if put
                .resource
                .as_ref()
                .is_some_and(|r| is_new(r.kind() as i32)) =>
        {
            2
        }
        Some(Op::Delete(delete)) if is_new(delete.kind) => 2,
        // A pool's deletion asks whether a new kind refers to it, a node's removal whether it is in a volatile group; without
        // one the answer is that of schema 1.
        _ => 1,
    };
    commands.iter().map(needs).max().unwrap_or(1)
}

/// The id of the node that founds the cluster. Every other id is the revision of the node's registration.
pub const FOUNDER_ID: u64 = 1;

/// What happened to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    /// Created or replaced.
    Put,
    /// Deleted; the event carries its last state.
    Delete,
}

/// One change, in commit order. The revisions of successive changes are successive numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeEvent {
    /// Put or delete.
    pub change: ChangeType,
    /// The resource after a put, the last state after a delete.
    pub resource: Arc<Resource>,
    /// The state's revision after this change.
    pub revision: u64,
}

/// What one log entry did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppliedBatch {
    /// One reply for each command, in order.
    pub replies: Vec<Reply>,
    /// The changes that the commands made, in order.
    pub events: Vec<ChangeEvent>,
}

/// A log entry that this build must not apply. The node has to stop: skipping it would let its state diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "log entry {index} has schema {found}, this build knows 1 to {SCHEMA}: run a newer build on this node"
)]
pub struct UnknownSchema {
    /// Log index of the entry.
    pub index: u64,
    /// Its schema.
    pub found: u32,
}

/// The state of the control group. Cloning it shares everything and takes a few reference counts.
#[derive(Clone, Debug, Default)]
pub struct ControlState {
    tables: Tables,
    remembered: Remembered,
}

impl ControlState {
    /// Applies one log entry: each command by itself, in order; a refused command changes nothing.
    ///
    /// # Errors
    /// [`UnknownSchema`] if the entry was written by a newer build; then nothing was applied.
    pub fn apply(
        &mut self,
        index: u64,
        batch: &CommandBatch,
    ) -> Result<AppliedBatch, UnknownSchema> {
        if !(1..=SCHEMA).contains(&batch.schema) {
            return Err(UnknownSchema {
                index,
                found: batch.schema,
            });
        }
        let mut events = Vec::with_capacity(batch.commands.len());
        let replies = batch
            .commands
            .iter()
            .map(|command| self.execute(index, command, &mut events))
            .collect();
        Ok(AppliedBatch { replies, events })
    }

    /// What readers of this state get, stamped with the last log entry that it contains.
    pub fn view(&self, applied_index: u64, applied_term: u64) -> ControlView {
        ControlView::new(self.tables.clone(), applied_index, applied_term)
    }

    /// The cluster's id, empty before `InitCluster`.
    pub fn cluster_id(&self) -> &str {
        &self.tables.cluster_id
    }

    /// Number of changes so far.
    pub fn revision(&self) -> u64 {
        self.tables.revision
    }

    fn execute(&mut self, index: u64, command: &Command, events: &mut Vec<ChangeEvent>) -> Reply {
        let key = command.idempotency_key.as_str();
        let Some(op) = &command.op else {
            return Reply::Rejected(invalid("op", "the command is empty"));
        };
        if let Err(error) = validate::idempotency_key(key) {
            return Reply::Rejected(error.into());
        }
        let digest = (!key.is_empty()).then(|| remembered::digest(op));
        if let Some(digest) = digest
            && let Some(first) = self.remembered.get(key)
        {
            return if first.digest == digest {
                first.reply()
            } else {
                Reply::Rejected(key_reused(key))
            };
        }
        let origin = Origin {
            node_id: command.origin_node_id,
            time_unix_ms: command.time_unix_ms,
        };
        match run(&mut self.tables, op, origin, events) {
            Ok((resource, outcome)) => {
                // Only what took effect is remembered. A refusal changed nothing, so repeating the command is safe, may
                // succeed once its reason is gone, and bad requests cannot push good keys out of the bounded table.
                if let Some(digest) = digest {
                    self.remembered
                        .insert(key, digest, Arc::clone(&resource), outcome, index);
                }
                Reply::Applied {
                    resource,
                    outcome,
                    index,
                }
            }
            Err(rejection) => Reply::Rejected(rejection),
        }
    }
}

/// Runs one operation. All checks come before the first write, so an error means that nothing was changed.
fn run(tables: &mut Tables, op: &Op, origin: Origin, events: &mut Vec<ChangeEvent>) -> Done {
    if tables.cluster_id.is_empty() && !matches!(op, Op::InitCluster(_)) {
        return Err(precondition("the cluster is not initialised"));
    }
    match op {
        Op::Put(put) => tables.put(put, origin, events),
        Op::Delete(delete) => tables.delete(delete, events),
        Op::RegisterNode(register) => tables.register_node(register, origin, events),
        Op::RemoveNode(remove) => tables.remove_node(remove, events),
        Op::InitCluster(init) => tables.init_cluster(init, origin, events),
        Op::JoinVolatile(join) => tables.join_volatile(join),
        Op::FoundVolatile(found) => tables.found_volatile(found),
        Op::LeaveVolatile(leave) => tables.leave_volatile(leave),
    }
}
