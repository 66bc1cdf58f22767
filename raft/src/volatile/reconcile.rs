//! Carries out what [`plan`](super::plan) says, for as long as this member leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::{ChangeMembers, Instant as _};
use quorate_proto::v1::resource::Spec;

use super::{
    instance::Instance,
    plan::{self, Seen, Step},
};
use crate::{machine::Published, state::ControlView, types::Member};

const TICK: Duration = Duration::from_millis(200);
/// A change that takes longer waits for a majority; it is looked at again then.
const CHANGE: Duration = Duration::from_secs(5);
/// A member that has been silent for this long is taken out. It comes back when it is heard of again.
const DEAD: Duration = Duration::from_secs(10);
/// A learner that lacks fewer entries than this may vote.
const CAUGHT_UP: u64 = 200;

/// Runs until the instance stops.
pub(super) async fn run(instance: Arc<Instance>, published: Arc<Published>, region: String) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Since when this leader has had each of the members.
    let mut since = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            () = instance.stop.cancelled() => return,
            _ = ticks.tick() => {}
            () = instance.poke.notified() => {}
        }
        // Nothing is changed without a majority, and a change that waits for one would be in the way later.
        if !instance.can_write() {
            since.clear();
            continue;
        }
        let Some(seen) = see(&instance, &published.view(), &region, &mut since) else {
            continue;
        };
        let Some(step) = plan::next(&seen) else {
            continue;
        };
        tracing::info!(
            group = instance.scope.group,
            ?step,
            "membership of a volatile group"
        );
        tokio::select! {
            () = instance.stop.cancelled() => return,
            done = tokio::time::timeout(CHANGE, carry_out(&instance, step)) => {
                if let Ok(Err(why)) = done {
                    tracing::debug!(group = instance.scope.group, why, "membership is tried again");
                }
            }
        }
    }
}

/// The members of a group's record, as openraft knows members; `None` if the record is of another epoch.
pub(super) fn wanted(
    view: &ControlView,
    group: &str,
    region: &str,
    epoch: u64,
) -> Option<BTreeMap<u64, Member>> {
    let record = view
        .volatile_group(group, region)
        .filter(|record| record.epoch == epoch)?;
    let members = record
        .members
        .iter()
        .filter_map(|member| Some((member.raft_id, member_of(view, member.node_id)?)));
    Some(members.collect())
}

/// A node as a member.
pub(super) fn member_of(view: &ControlView, node_id: u64) -> Option<Member> {
    let resource = view.node_by_id(node_id)?;
    let Some(Spec::Node(node)) = &resource.spec else {
        return None;
    };
    Some(Member {
        name: resource.metadata.as_ref()?.name.clone(),
        instance: node.instance.clone(),
        peer_address: node.peer_address.clone(),
    })
}

fn see(
    instance: &Instance,
    view: &ControlView,
    region: &str,
    since: &mut BTreeMap<u64, Instant>,
) -> Option<Seen> {
    let scope = instance.scope;
    let metrics = instance.metrics();
    let membership = metrics.membership_config.membership();
    let wanted = wanted(view, scope.group, region, scope.epoch)?;
    let members: BTreeMap<u64, Member> = membership
        .nodes()
        .map(|(id, member)| (*id, member.clone()))
        .collect();
    since.retain(|id, _| members.contains_key(id));
    for id in members.keys() {
        since.entry(*id).or_insert_with(Instant::now);
    }
    // A member is heard of by its answers under its raft id, one that is not in yet by its node: the process that had the id
    // may be gone while its node goes on.
    let silent = |id: u64, member: &Member| match since.get(&id) {
        Some(since) => metrics
            .heartbeat
            .as_ref()
            .and_then(|acked| acked.get(&id).copied().flatten())
            .map_or_else(|| since.elapsed(), |then| then.elapsed()),
        None => instance
            .peers
            .by_instance(&member.instance)
            .and_then(|peer| peer.silent_for())
            .unwrap_or_else(|| instance.started.elapsed()),
    };
    let dead: BTreeSet<u64> = members
        .iter()
        .chain(&wanted)
        .filter(|(id, member)| **id != scope.raft_id && silent(**id, member) > DEAD)
        .map(|(id, _)| *id)
        .collect();
    let last = metrics.last_log_index.map_or(0, |index| index + 1);
    let caught_up = metrics
        .replication
        .iter()
        .flatten()
        .filter(|(_, matched)| {
            matched.is_some_and(|matched| last.saturating_sub(matched.index + 1) < CAUGHT_UP)
        })
        .map(|(id, _)| *id)
        .collect();
    Some(Seen {
        me: scope.raft_id,
        wanted,
        voters: membership.voter_ids().collect(),
        members,
        dead,
        caught_up,
    })
}

async fn carry_out(instance: &Instance, step: Step) -> Result<(), String> {
    let (change, retain) = match step {
        Step::Add(new) => (ChangeMembers::AddNodes(new), true),
        Step::Voters(voters) => (ChangeMembers::ReplaceAllVoters(voters), false),
        Step::Drop(out) => (ChangeMembers::RemoveNodes(out), false),
        Step::HandOver(to) => {
            return instance
                .raft
                .trigger()
                .transfer_leader(to)
                .await
                .map_err(|error| error.to_string());
        }
    };
    match instance.raft.change_membership(change, retain).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
