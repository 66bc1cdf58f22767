//! Who is in a volatile group, and in which epoch: examples, and random histories against a model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quorate_proto::{
    store::v1::{
        Command, FoundVolatile, JoinVolatile, LeaveVolatile, VolatileGroup, command::Op,
        rejection::Code,
    },
    v1::ApplyOutcome,
};

use super::fixtures::*;
use crate::{
    snapshot,
    state::{ControlState, ControlView, Reply, schema_of},
};

fn join(group: &str, node_id: u64, start_id: u64) -> Command {
    command(Op::JoinVolatile(JoinVolatile {
        group: group.into(),
        node_id,
        start_id,
    }))
}

fn found(group: &str, node_id: u64, start_id: u64, expected_epoch: u64) -> Command {
    command(Op::FoundVolatile(FoundVolatile {
        group: group.into(),
        node_id,
        start_id,
        expected_epoch,
    }))
}

fn leave(group: &str, node_id: u64, start_id: u64) -> Command {
    command(Op::LeaveVolatile(LeaveVolatile {
        group: group.into(),
        node_id,
        start_id,
    }))
}

/// A cluster with nodes 1, 3 and 4 in region r1.
fn three_nodes() -> ControlState {
    let mut state = ControlState::default();
    let entry = batch([
        init("c1", "n0"),
        register("n1", "i1", "r1"),
        register("n2", "i2", "r1"),
    ]);
    state.apply(1, &entry).unwrap();
    state
}

fn run(state: &mut ControlState, command: Command) -> Result<ApplyOutcome, Code> {
    match state.apply(9, &batch([command])).unwrap().replies.remove(0) {
        Reply::Applied { outcome, .. } => Ok(outcome),
        Reply::Rejected(rejection) => Err(rejection.code()),
    }
}

fn view(state: &ControlState) -> ControlView {
    state.view(9, 1)
}

/// Epoch, founder and the members as (raft id, node, start).
fn group(state: &ControlState) -> (u64, u64, Vec<(u64, u64, u64)>) {
    let view = view(state);
    let group = view.volatile_group("cache", "r1").unwrap();
    let members = group.members.iter();
    let members = members.map(|m| (m.raft_id, m.node_id, m.start_id));
    (group.epoch, group.founder, members.collect())
}

#[test]
fn each_process_gets_an_id_of_its_own_and_takes_its_nodes_place() {
    let mut state = three_nodes();
    let revision = state.revision();
    assert_eq!(
        run(&mut state, join("cache", 1, 10)),
        Ok(ApplyOutcome::Created)
    );
    assert_eq!(
        run(&mut state, join("cache", 3, 30)),
        Ok(ApplyOutcome::Updated)
    );
    assert_eq!(
        run(&mut state, join("cache", 3, 30)),
        Ok(ApplyOutcome::Unchanged)
    );
    assert_eq!(
        run(&mut state, join("other", 3, 30)),
        Ok(ApplyOutcome::Created)
    );
    assert_eq!(group(&state), (1, 1, vec![(1, 1, 10), (2, 3, 30)]));
    // The founder's node starts again: the epoch goes on, with whoever is left of it.
    assert_eq!(
        run(&mut state, join("cache", 1, 11)),
        Ok(ApplyOutcome::Updated)
    );
    assert_eq!(group(&state), (1, 1, vec![(2, 3, 30), (4, 1, 11)]));
    assert_eq!(state.revision(), revision, "no resource was changed");
}

#[test]
fn one_founding_wins_and_only_members_found() {
    let mut state = three_nodes();
    run(&mut state, join("cache", 1, 10)).unwrap();
    run(&mut state, join("cache", 3, 30)).unwrap();
    assert_eq!(
        run(&mut state, found("cache", 3, 30, 1)),
        Ok(ApplyOutcome::Updated)
    );
    assert_eq!(
        run(&mut state, found("cache", 1, 10, 1)),
        Err(Code::VersionConflict)
    );
    assert_eq!(
        run(&mut state, found("cache", 3, 31, 2)),
        Err(Code::FailedPrecondition)
    );
    assert_eq!(
        run(&mut state, found("other", 3, 30, 0)),
        Err(Code::FailedPrecondition)
    );
    assert_eq!(group(&state), (2, 2, vec![(1, 1, 10), (2, 3, 30)]));
}

#[test]
fn the_last_ones_return_begins_a_new_epoch() {
    let mut state = three_nodes();
    run(&mut state, join("cache", 1, 10)).unwrap();
    run(&mut state, join("cache", 1, 11)).unwrap();
    assert_eq!(group(&state), (2, 2, vec![(2, 1, 11)]));
    assert_eq!(
        run(&mut state, leave("cache", 1, 10)),
        Ok(ApplyOutcome::Unchanged)
    );
    assert_eq!(
        run(&mut state, leave("cache", 1, 11)),
        Ok(ApplyOutcome::Updated)
    );
    assert_eq!(group(&state), (2, 2, vec![]));
    run(&mut state, join("cache", 3, 30)).unwrap();
    assert_eq!(group(&state), (3, 3, vec![(3, 3, 30)]));
}

#[test]
fn a_removed_node_and_one_that_moved_are_out() {
    let mut state = three_nodes();
    for node in [1, 3, 4] {
        run(&mut state, join("cache", node, node * 10)).unwrap();
    }
    run(&mut state, remove(4)).unwrap();
    assert_eq!(group(&state).2, vec![(1, 1, 10), (2, 3, 30)]);
    run(&mut state, register("n1", "i1", "r2")).unwrap();
    run(&mut state, join("cache", 3, 31)).unwrap();
    assert_eq!(group(&state).2, vec![(1, 1, 10)]);
    let elsewhere = view(&state);
    assert_eq!(
        elsewhere.volatile_group("cache", "r2").unwrap().members[0].raft_id,
        4
    );
}

#[test]
fn what_cannot_be_is_refused() {
    let mut state = three_nodes();
    assert_eq!(run(&mut state, join("", 1, 10)), Err(Code::Invalid));
    assert_eq!(run(&mut state, join("Cache", 1, 10)), Err(Code::Invalid));
    assert_eq!(run(&mut state, join("cache", 1, 0)), Err(Code::Invalid));
    assert_eq!(run(&mut state, join("cache", 2, 10)), Err(Code::NotFound));
    assert_eq!(run(&mut state, leave("cache", 2, 10)), Err(Code::NotFound));
    assert_eq!(
        run(&mut state, leave("cache", 1, 10)),
        Ok(ApplyOutcome::Unchanged)
    );
    assert!(view(&state).volatile_group("cache", "r1").is_none());
    assert_eq!(schema_of(&[join("cache", 1, 1), put(pool("p"))]), 3);
}

/// The rules once more, by group and region.
#[derive(Default)]
struct Model {
    groups: BTreeMap<(String, String), VolatileGroup>,
    regions: BTreeMap<u64, String>,
    issued: u64,
}

impl Model {
    fn execute(&mut self, op: &Op) -> Result<(), Code> {
        match op {
            Op::JoinVolatile(join) => {
                let region = self
                    .regions
                    .get(&join.node_id)
                    .ok_or(Code::NotFound)?
                    .clone();
                let key = (join.group.clone(), region.clone());
                let is_me = |node, start| node == join.node_id && start == join.start_id;
                if self
                    .groups
                    .get(&key)
                    .is_some_and(|group| group.members.iter().any(|m| is_me(m.node_id, m.start_id)))
                {
                    return Ok(());
                }
                for ((name, _), group) in &mut self.groups {
                    if *name == join.group {
                        group.members.retain(|m| m.node_id != join.node_id);
                    }
                }
                self.issued += 1;
                let group = self.groups.entry(key).or_default();
                (group.group, group.region) = (join.group.clone(), region);
                if group.members.is_empty() {
                    group.epoch += 1;
                    group.founder = self.issued;
                }
                group
                    .members
                    .push(quorate_proto::store::v1::VolatileMember {
                        raft_id: self.issued,
                        node_id: join.node_id,
                        start_id: join.start_id,
                    });
            }
            Op::FoundVolatile(found) => {
                let region = self
                    .regions
                    .get(&found.node_id)
                    .ok_or(Code::NotFound)?
                    .clone();
                let group = self
                    .groups
                    .get_mut(&(found.group.clone(), region))
                    .ok_or(Code::FailedPrecondition)?;
                let mut members = group.members.iter();
                let me = members
                    .find(|m| m.node_id == found.node_id && m.start_id == found.start_id)
                    .ok_or(Code::FailedPrecondition)?;
                if group.epoch != found.expected_epoch {
                    return Err(Code::VersionConflict);
                }
                group.epoch += 1;
                group.founder = me.raft_id;
            }
            Op::LeaveVolatile(leave) => {
                let region = self
                    .regions
                    .get(&leave.node_id)
                    .ok_or(Code::NotFound)?
                    .clone();
                if let Some(group) = self.groups.get_mut(&(leave.group.clone(), region)) {
                    group
                        .members
                        .retain(|m| m.node_id != leave.node_id || m.start_id != leave.start_id);
                }
            }
            Op::RemoveNode(remove) => {
                self.regions.remove(&remove.node_id).ok_or(Code::NotFound)?;
                for group in self.groups.values_mut() {
                    group.members.retain(|m| m.node_id != remove.node_id);
                }
            }
            Op::RegisterNode(register) => {
                let id = register.name[1..].parse::<u64>().unwrap();
                let id = if id == 0 { 1 } else { id + 2 };
                let region = self.regions.get_mut(&id).ok_or(Code::FailedPrecondition)?;
                region.clone_from(&register.node.as_ref().unwrap().region);
            }
            other => unreachable!("{other:?}"),
        }
        Ok(())
    }
}

fn commands() -> impl Strategy<Value = Command> {
    let groups = || prop_oneof![3 => Just("cache"), 1 => Just("other")];
    // Node 2 does not exist.
    let nodes = || prop_oneof![Just(1_u64), Just(2), Just(3), Just(4)];
    prop_oneof![
        6 => (groups(), nodes(), 1..6_u64).prop_map(|(g, n, s)| join(g, n, s)),
        4 => (groups(), nodes(), 1..6_u64, 0..6_u64).prop_map(|(g, n, s, e)| found(g, n, s, e)),
        2 => (groups(), nodes(), 1..6_u64).prop_map(|(g, n, s)| leave(g, n, s)),
        1 => (1..3_u64, 1..3_u64).prop_map(|(n, r)| register(&format!("n{n}"), &format!("i{n}"), &format!("r{r}"))),
        1 => (3..5_u64).prop_map(remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_history_does_what_the_model_does(
        commands in prop::collection::vec(commands(), 1..60),
        cut: prop::sample::Index,
    ) {
        let mut state = three_nodes();
        let regions = [1, 3, 4].into_iter().map(|id| (id, "r1".to_owned())).collect();
        let mut model = Model { regions, ..Model::default() };
        let (mut ids, mut epochs) = (BTreeSet::new(), BTreeMap::new());
        let cut = cut.index(commands.len());
        for (i, command) in commands.iter().enumerate() {
            let expected = model.execute(command.op.as_ref().unwrap());
            prop_assert_eq!(run(&mut state, command.clone()).map(drop), expected);
            if i == cut {
                let expected = snapshot::Expected { cluster_id: Some("c1"), group: "control" };
                let saved = bytes(&state);
                state = snapshot::read_state(&saved[..], expected).unwrap().1;
                prop_assert_eq!(bytes(&state), saved);
            }
            let view = view(&state);
            for ((name, region), group) in &model.groups {
                let known = view.volatile_group(name, region).unwrap();
                prop_assert_eq!(&**known, group);
                // Ids are never given twice, epochs only go up.
                let before = epochs.insert((name.clone(), region.clone()), group.epoch);
                prop_assert!(before.is_none_or(|before| before <= group.epoch));
                for member in &group.members {
                    ids.insert((member.raft_id, member.node_id, member.start_id, name.clone()));
                }
            }
        }
        let distinct: BTreeSet<u64> = ids.iter().map(|id| id.0).collect();
        prop_assert_eq!(distinct.len(), ids.len());
    }
}
