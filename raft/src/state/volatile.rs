//! Volatile groups: which processes of a region take part in a group without a disk, under which raft ids, in which epoch.
//!
//! A volatile group forgets its log when its processes end, so a process that comes back must be a new member: a raft id is
//! issued to each process and never again. Which members may form the group is decided here, because the group cannot
//! decide it once its majority is gone.

use std::sync::Arc;

use imbl::OrdMap;
use quorate_proto::{
    store::v1::{
        FoundVolatile, JoinVolatile, LeaveVolatile, Rejection, VolatileGroup, VolatileMember,
        rejection::Code,
    },
    v1::{ApplyOutcome, Kind, Resource},
};

use super::{
    reply::{Done, invalid, not_found, precondition},
    resource::ResourceExt as _,
    tables::Tables,
    validate,
};

/// Name of the group and region.
pub(super) type GroupKey = (Arc<str>, Arc<str>);
pub(super) type Groups = OrdMap<GroupKey, Arc<VolatileGroup>>;

/// What [`Tables::volatile_caller`] found: the node, the key of its region's group, and the group if there is one.
type Caller = (Arc<Resource>, GroupKey, Option<Arc<VolatileGroup>>);

impl Tables {
    pub(super) fn volatile_group(&self, group: &str, region: &str) -> Option<&Arc<VolatileGroup>> {
        self.volatile.get(&(Arc::from(group), Arc::from(region)))
    }

    /// The checks that all commands share.
    fn volatile_caller(
        &self,
        group: &str,
        node_id: u64,
        start_id: u64,
    ) -> Result<Caller, Rejection> {
        validate::name("group", group)?;
        if start_id == 0 {
            return Err(invalid("start_id", "must be set"));
        }
        let node = self
            .node_by_id(node_id)
            .cloned()
            .ok_or_else(|| not_found(Kind::Node, &node_id.to_string()))?;
        let region = node.node().map_or("", |node| node.region.as_str());
        let key = (Arc::from(group), Arc::from(region));
        let known = self.volatile.get(&key).cloned();
        Ok((node, key, known))
    }

    pub(super) fn join_volatile(&mut self, join: &JoinVolatile) -> Done {
        let (node, key, known) = self.volatile_caller(&join.group, join.node_id, join.start_id)?;
        let outcome = match &known {
            Some(group) if find(group, join.node_id, join.start_id).is_some() => {
                return Ok((node, ApplyOutcome::Unchanged));
            }
            Some(_) => ApplyOutcome::Updated,
            None => ApplyOutcome::Created,
        };
        let mut group = known.map_or_else(
            || VolatileGroup {
                group: join.group.clone(),
                region: key.1.to_string(),
                ..VolatileGroup::default()
            },
            |known| VolatileGroup::clone(&known),
        );
        // The node's earlier process, here or in the region that the node was in before.
        self.withdraw(join.node_id, |known| *known.0 == *key.0);
        group
            .members
            .retain(|member| member.node_id != join.node_id);
        self.raft_ids += 1;
        let raft_id = self.raft_ids;
        if group.members.is_empty() {
            group.epoch += 1;
            group.founder = raft_id;
        }
        group.members.push(VolatileMember {
            raft_id,
            node_id: join.node_id,
            start_id: join.start_id,
        });
        self.volatile.insert(key, Arc::new(group));
        Ok((node, outcome))
    }

    pub(super) fn found_volatile(&mut self, found: &FoundVolatile) -> Done {
        let (node, key, known) =
            self.volatile_caller(&found.group, found.node_id, found.start_id)?;
        let Some((known, raft_id)) = known.and_then(|known| {
            let raft_id = find(&known, found.node_id, found.start_id)?.raft_id;
            Some((known, raft_id))
        }) else {
            return Err(precondition(format!(
                "this process of node {} is not a member of group {:?} in region {:?}",
                found.node_id, found.group, key.1
            )));
        };
        if known.epoch != found.expected_epoch {
            return Err(Rejection {
                code: Code::VersionConflict.into(),
                message: format!(
                    "group {:?} of region {:?} is in epoch {}, not {}",
                    found.group, key.1, known.epoch, found.expected_epoch
                ),
                current_version: known.epoch,
                ..Rejection::default()
            });
        }
        let group = VolatileGroup {
            epoch: known.epoch + 1,
            founder: raft_id,
            ..VolatileGroup::clone(&known)
        };
        self.volatile.insert(key, Arc::new(group));
        Ok((node, ApplyOutcome::Updated))
    }

    pub(super) fn leave_volatile(&mut self, leave: &LeaveVolatile) -> Done {
        let (node, key, known) =
            self.volatile_caller(&leave.group, leave.node_id, leave.start_id)?;
        if known.is_none_or(|known| find(&known, leave.node_id, leave.start_id).is_none()) {
            return Ok((node, ApplyOutcome::Unchanged));
        }
        self.withdraw(leave.node_id, |known| *known == key);
        Ok((node, ApplyOutcome::Updated))
    }

    /// Takes a node's member out of the groups that `which` names. The groups stay, for their epoch.
    pub(super) fn withdraw(&mut self, node_id: u64, which: impl Fn(&GroupKey) -> bool) {
        let concerned: Vec<GroupKey> = self
            .volatile
            .iter()
            .filter(|(key, group)| {
                which(key) && group.members.iter().any(|member| member.node_id == node_id)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in concerned {
            if let Some(group) = self.volatile.get_mut(&key) {
                let mut smaller = VolatileGroup::clone(group);
                smaller.members.retain(|member| member.node_id != node_id);
                *group = Arc::new(smaller);
            }
        }
    }

    /// Puts a group from a snapshot into its place.
    ///
    /// # Errors
    /// Why it cannot be part of this state.
    pub(super) fn restore_volatile(&mut self, group: VolatileGroup) -> Result<(), String> {
        let issued = |id: u64| (1..=self.raft_ids).contains(&id);
        if !issued(group.founder) || !group.members.iter().all(|member| issued(member.raft_id)) {
            return Err(format!(
                "group {:?} has a member whose id was never issued",
                group.group
            ));
        }
        let key = (
            Arc::from(group.group.as_str()),
            Arc::from(group.region.as_str()),
        );
        match self.volatile.insert(key, Arc::new(group)) {
            Some(twice) => Err(format!(
                "group {:?} of region {:?} appears twice",
                twice.group, twice.region
            )),
            None => Ok(()),
        }
    }
}

/// The member that a process is.
fn find(group: &VolatileGroup, node_id: u64, start_id: u64) -> Option<&VolatileMember> {
    group
        .members
        .iter()
        .find(|member| member.node_id == node_id && member.start_id == start_id)
}
