//! Random histories against a model: ordinary maps and the rules written down once more, without sharing or bounds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use prost_types::Timestamp;
use quorate_proto::{
    store::v1::{Command, DeleteResource, PutResource, RegisterNode, command::Op, rejection::Code},
    v1::{ApplyOutcome, Kind, Metadata, Resource, resource::Spec},
};

use super::fixtures::*;
use crate::{
    snapshot,
    state::{ChangeEvent, ChangeType, ControlState, FOUNDER_ID, KINDS, Reply, ResourceExt as _},
};

type Expected = Result<(Resource, ApplyOutcome, u64), Code>;

#[derive(Default)]
struct Model {
    revision: u64,
    resources: BTreeMap<(Kind, String), Resource>,
    removed: BTreeSet<String>,
    keys: BTreeMap<String, (Op, Expected)>,
    /// Every id ever issued.
    ids: Vec<u64>,
}

impl Model {
    fn get(&self, kind: Kind, name: &str) -> Option<&Resource> {
        self.resources.get(&(kind, name.to_owned()))
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.resources.values().filter(move |r| r.kind() == kind)
    }

    fn execute(&mut self, index: u64, command: &Command) -> Expected {
        let (key, op) = (&command.idempotency_key, command.op.clone().unwrap());
        if let Some((first, answer)) = self.keys.get(key) {
            return if *first == op {
                answer.clone()
            } else {
                Err(Code::KeyReused)
            };
        }
        let done = match &op {
            Op::Put(put) => self.put(put, command),
            Op::Delete(delete) => self.delete(delete),
            Op::RegisterNode(register) => self.register(register, command),
            Op::RemoveNode(remove) => self.remove(remove.node_id),
            Op::InitCluster(init) => self.register(init.founder.as_ref().unwrap(), command),
            Op::JoinVolatile(_) | Op::FoundVolatile(_) | Op::LeaveVolatile(_) => {
                unreachable!("they have a model of their own")
            }
        };
        let answer = done.map(|(resource, outcome)| (resource, outcome, index));
        if !key.is_empty() && answer.is_ok() {
            self.keys.insert(key.clone(), (op, answer.clone()));
        }
        answer
    }

    fn put(
        &mut self,
        put: &PutResource,
        command: &Command,
    ) -> Result<(Resource, ApplyOutcome), Code> {
        let mut next = put.resource.clone().unwrap();
        let existing = self.get(next.kind(), next.name()).cloned();
        match (put.expected_version, &existing) {
            (Some(0), Some(_)) => return Err(Code::AlreadyExists),
            (Some(v), None) if v > 0 => return Err(Code::NotFound),
            (Some(v), Some(r)) if v != r.version() => return Err(Code::VersionConflict),
            _ => {}
        }
        let name = next.name().to_owned();
        match next.spec.as_mut().unwrap() {
            Spec::Endpoint(e) => {
                if !e.pool.is_empty() && self.get(Kind::Pool, &e.pool).is_none() {
                    return Err(Code::FailedPrecondition);
                }
                if e.region.is_empty() {
                    let node = self
                        .of(Kind::Node)
                        .find(|r| r.node().unwrap().node_id == command.origin_node_id);
                    let before = existing
                        .as_ref()
                        .map(|r| r.endpoint().unwrap().region.clone());
                    let own = node.map(|r| r.node().unwrap().region.clone());
                    e.region = before.or(own).ok_or(Code::Invalid)?;
                } else if self.get(Kind::Region, &e.region).is_none() {
                    return Err(Code::FailedPrecondition);
                }
            }
            Spec::Pool(p)
                if p.fallback
                    && self
                        .of(Kind::Pool)
                        .any(|r| r.name() != name && r.pool().unwrap().fallback) =>
            {
                return Err(Code::FailedPrecondition);
            }
            _ => {}
        }
        Ok(self.write(next, command))
    }

    fn write(&mut self, mut next: Resource, command: &Command) -> (Resource, ApplyOutcome) {
        let key = (next.kind(), next.name().to_owned());
        let labels = next.metadata.clone().unwrap().labels;
        let now = Timestamp {
            seconds: command.time_unix_ms / 1000,
            nanos: i32::try_from(command.time_unix_ms % 1000).unwrap() * 1_000_000,
        };
        let fresh = Metadata {
            name: key.1.clone(),
            generation: 1,
            created_at: Some(now),
            ..Metadata::default()
        };
        let (old, outcome) = match self.resources.get(&key) {
            Some(r) if r.spec == next.spec && r.metadata.as_ref().unwrap().labels == labels => {
                return (r.clone(), ApplyOutcome::Unchanged);
            }
            Some(r) => {
                let old = r.metadata.clone().unwrap();
                let generation = if r.spec == next.spec {
                    old.generation
                } else {
                    old.generation + 1
                };
                (Metadata { generation, ..old }, ApplyOutcome::Updated)
            }
            None => (
                Metadata {
                    incarnation: self.revision + 1,
                    ..fresh
                },
                ApplyOutcome::Created,
            ),
        };
        self.revision += 1;
        next.metadata = Some(Metadata {
            resource_version: self.revision,
            updated_at: Some(now),
            labels,
            ..old
        });
        self.resources.insert(key, next.clone());
        (next, outcome)
    }

    fn delete(&mut self, delete: &DeleteResource) -> Result<(Resource, ApplyOutcome), Code> {
        let kind = delete.kind();
        if kind == Kind::Node || delete.expected_version == Some(0) {
            return Err(Code::Invalid);
        }
        let existing = self
            .get(kind, &delete.name)
            .cloned()
            .ok_or(Code::NotFound)?;
        if delete
            .expected_version
            .is_some_and(|v| v != existing.version())
        {
            return Err(Code::VersionConflict);
        }
        let used = self
            .resources
            .values()
            .any(|r| match r.spec.as_ref().unwrap() {
                Spec::Endpoint(e) => {
                    kind == Kind::Pool && e.pool == delete.name
                        || kind == Kind::Region && e.region == delete.name
                }
                Spec::Node(n) => kind == Kind::Region && n.region == delete.name,
                _ => false,
            });
        if used {
            return Err(Code::FailedPrecondition);
        }
        self.resources.remove(&(kind, delete.name.clone()));
        self.revision += 1;
        Ok((existing, ApplyOutcome::Unspecified))
    }

    fn register(
        &mut self,
        register: &RegisterNode,
        command: &Command,
    ) -> Result<(Resource, ApplyOutcome), Code> {
        let mut node = register.node.clone().unwrap();
        let by_name = self
            .get(Kind::Node, &register.name)
            .and_then(|r| r.node())
            .cloned();
        let by_instance = self
            .of(Kind::Node)
            .find(|r| r.node().unwrap().instance == node.instance);
        let id = match (by_name, by_instance) {
            _ if self.removed.contains(&node.instance) => return Err(Code::FailedPrecondition),
            (Some(known), _) if known.instance == node.instance => Some(known.node_id),
            (None, None) => None,
            _ => return Err(Code::FailedPrecondition),
        };
        if self.get(Kind::Region, &node.region).is_none() {
            self.write(region(&node.region), command);
        }
        node.node_id = id.unwrap_or(if self.ids.is_empty() {
            FOUNDER_ID
        } else {
            self.revision + 1
        });
        if id.is_none() {
            assert!(
                !self.ids.contains(&node.node_id),
                "a node id was issued twice"
            );
            self.ids.push(node.node_id);
        }
        Ok(self.write(resource(&register.name, Spec::Node(node)), command))
    }

    fn remove(&mut self, id: u64) -> Result<(Resource, ApplyOutcome), Code> {
        let node = self
            .of(Kind::Node)
            .find(|r| r.node().unwrap().node_id == id)
            .cloned()
            .ok_or(Code::NotFound)?;
        if self.of(Kind::Node).count() == 1 {
            return Err(Code::FailedPrecondition);
        }
        self.resources.remove(&(Kind::Node, node.name().to_owned()));
        self.removed.insert(node.node().unwrap().instance.clone());
        self.revision += 1;
        Ok((node, ApplyOutcome::Unspecified))
    }
}

/// A command before it is known what the state will be when its turn comes.
#[derive(Clone, Debug)]
enum Action {
    Put(Box<Resource>),
    Delete(Kind, String),
    Register(RegisterNode),
    /// Removes one of the nodes that were ever registered.
    Remove(prop::sample::Index),
    /// Sends one of the commands before once more.
    Retry(prop::sample::Index),
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Anything,
    Absent,
    Current,
    Older,
}

#[derive(Clone, Debug)]
struct Step {
    action: Action,
    expect: Expect,
    key: Option<u8>,
    origin: u64,
    /// Ends the log entry.
    ends: bool,
}

fn name(prefix: &'static str) -> impl Strategy<Value = String> {
    (0..4u8).prop_map(move |i| format!("{prefix}{i}"))
}

fn resources() -> impl Strategy<Value = Resource> {
    let settings = (name("s"), 0..3u8).prop_map(|(name, json)| setting(&name, &json.to_string()));
    let pools = (name("p"), any::<bool>()).prop_map(|(name, fallback)| {
        let mut pool = pool(&name);
        if let Some(Spec::Pool(spec)) = &mut pool.spec {
            spec.fallback = fallback;
        }
        pool
    });
    let endpoints = (
        name("e"),
        prop::option::of(name("p")),
        prop::option::of(name("r")),
    )
        .prop_map(|(name, pool, region)| {
            endpoint(
                &name,
                &pool.unwrap_or_default(),
                &region.unwrap_or_default(),
            )
        });
    let labelled = (
        prop_oneof![
            settings,
            pools,
            endpoints,
            name("r").prop_map(|n| region(&n))
        ],
        any::<bool>(),
    );
    labelled.prop_map(|(mut resource, labelled)| {
        if labelled {
            resource
                .metadata
                .as_mut()
                .unwrap()
                .labels
                .insert("l".into(), "1".into());
        }
        resource
    })
}

fn actions() -> impl Strategy<Value = Action> {
    let kinds = prop_oneof![
        (Just(Kind::Setting), name("s")),
        (Just(Kind::Pool), name("p")),
        (Just(Kind::Endpoint), name("e")),
        (Just(Kind::Region), name("r")),
        (Just(Kind::Node), name("n")),
    ];
    let registrations =
        (name("n"), name("i"), name("r"), 1..3u16).prop_map(|(name, instance, region, port)| {
            let mut register = register_node(&name, &instance, &region);
            register.node.as_mut().unwrap().peer_address = format!("10.0.0.1:{port}");
            Action::Register(register)
        });
    prop_oneof![
        6 => resources().prop_map(|resource| Action::Put(Box::new(resource))),
        3 => kinds.prop_map(|(kind, name)| Action::Delete(kind, name)),
        2 => registrations,
        1 => any::<prop::sample::Index>().prop_map(Action::Remove),
        2 => any::<prop::sample::Index>().prop_map(Action::Retry),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let expect = prop_oneof![
        4 => Just(Expect::Anything),
        1 => Just(Expect::Absent),
        2 => Just(Expect::Current),
        1 => Just(Expect::Older),
    ];
    let step = (
        actions(),
        expect,
        prop::option::of(0..30u8),
        0..6u64,
        any::<bool>(),
    )
        .prop_map(|(action, expect, key, origin, ends)| Step {
            action,
            expect,
            key,
            origin,
            ends,
        });
    prop::collection::vec(step, 1..80)
}

/// The command that a step means in the model's present state.
fn resolve(step: &Step, time: i64, model: &Model, before: &[Command]) -> Command {
    let (command, subject) = match &step.action {
        Action::Put(resource) => (
            put(Resource::clone(resource)),
            model.get(resource.kind(), resource.name()),
        ),
        Action::Delete(kind, name) => (delete(*kind, name), model.get(*kind, name)),
        Action::Register(r) => (command(Op::RegisterNode(r.clone())), None),
        Action::Remove(index) => (remove(*index.get(&model.ids)), None),
        Action::Retry(index) => return at(from(index.get(before).clone(), step.origin), time),
    };
    let version = subject.map_or(7, |r| r.version());
    let command = match step.expect {
        Expect::Anything => command,
        Expect::Absent => expecting(command, 0),
        Expect::Current => expecting(command, version),
        Expect::Older => expecting(command, version - 1),
    };
    let key = step.key.map(|key| format!("k{key}")).unwrap_or_default();
    keyed(&key, from(at(command, time), step.origin))
}

fn check_reply(reply: &Reply, expected: &Expected, command: &Command) {
    match (reply, expected) {
        (
            Reply::Applied {
                resource,
                outcome,
                index,
            },
            Ok(expected),
        ) => {
            assert_eq!(
                &(Resource::clone(resource), *outcome, *index),
                expected,
                "{command:?}"
            );
        }
        (Reply::Rejected(rejection), Err(code)) => {
            assert_eq!(rejection.code(), *code, "{command:?}: {rejection:?}")
        }
        (reply, expected) => panic!("{command:?}: {reply:?} instead of {expected:?}"),
    }
}

fn restored(bytes: &[u8]) -> ControlState {
    let expected = snapshot::Expected {
        cluster_id: Some("c1"),
        group: "control",
    };
    snapshot::read_state(bytes, expected).unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_history_does_what_the_model_does(steps in steps(), cut: prop::sample::Index) {
        let (mut state, mut model) = (ControlState::default(), Model::default());
        let (mut before, mut log) = (vec![init("c1", "n0")], vec![]);
        let mut events: Vec<ChangeEvent> = Vec::new();

        let mut pending = before.clone();
        let mut expected = vec![model.execute(1, &before[0])];
        for (i, step) in steps.iter().enumerate() {
            let index = log.len() as u64 + 1;
            let command = resolve(step, 1000 + i as i64 * 7, &model, &before);
            expected.push(model.execute(index, &command));
            before.push(command.clone());
            pending.push(command);
            if step.ends || i + 1 == steps.len() {
                let entry = batch(std::mem::take(&mut pending));
                let applied = state.apply(index, &entry).unwrap();
                prop_assert_eq!(applied.replies.len(), expected.len());
                for ((reply, expected), command) in applied.replies.iter().zip(&expected).zip(&entry.commands) {
                    check_reply(reply, expected, command);
                }
                expected.clear();
                events.extend(applied.events);
                log.push(entry);
            }
        }

        // The tables are the model's, and the changes lead to them one revision at a time.
        let view = state.view(log.len() as u64, 1);
        prop_assert_eq!(view.revision(), model.revision);
        let mut replayed = BTreeMap::new();
        for (i, event) in events.iter().enumerate() {
            prop_assert_eq!(event.revision, i as u64 + 1);
            let key = (event.resource.kind(), event.resource.name().to_owned());
            match event.change {
                ChangeType::Put => {
                    prop_assert_eq!(event.resource.version(), event.revision);
                    let older = replayed.insert(key, Resource::clone(&event.resource));
                    prop_assert!(older.is_none_or(|r| r.version() < event.revision));
                }
                ChangeType::Delete => {
                    let last = replayed.remove(&key);
                    prop_assert_eq!(last.as_ref(), Some(&*event.resource));
                }
            }
        }
        for kind in KINDS {
            let listed: Vec<_> = view.list(kind).map(|r| &**r).collect();
            prop_assert_eq!(&listed, &model.of(kind).collect::<Vec<_>>());
            prop_assert_eq!(&listed, &replayed.values().filter(|r| r.kind() == kind).collect::<Vec<_>>());
        }

        // The same log makes the same bytes, and so does a snapshot at any place with the rest of the log.
        let final_bytes = bytes(&state);
        let cut = cut.index(log.len() + 1);
        let mut again = ControlState::default();
        for (i, entry) in log.iter().enumerate() {
            if i == cut {
                again = if i == 0 { again } else { restored(&bytes(&again)) };
            }
            again.apply(i as u64 + 1, entry).unwrap();
        }
        prop_assert_eq!(&bytes(&again), &final_bytes);
        prop_assert_eq!(&bytes(&restored(&final_bytes)), &final_bytes);
    }
}
