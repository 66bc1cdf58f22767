// long: one test for each rule of the state machine.
//! The rules of the state machine, one by one. `model.rs` checks them together, against random histories.

pub(crate) mod fixtures;
mod model;
mod scheduling;
mod volatile;

use std::collections::BTreeMap;

use quorate_proto::{
    store::v1::{CommandBatch, Rejection, command::Op, rejection::Code},
    v1::{ApplyOutcome, Kind, PoolSpec, resource::Spec},
};

use super::{remembered::Remembered, *};
use fixtures::*;

/// Applies one command under the next index.
struct Machine {
    state: ControlState,
    index: u64,
}

impl Machine {
    fn new() -> Self {
        let mut machine = Self {
            state: ControlState::default(),
            index: 0,
        };
        machine.ok(init("c1", "n1"));
        machine
    }

    fn apply(&mut self, command: Command) -> (Reply, Vec<ChangeEvent>) {
        self.index += 1;
        let mut applied = self.state.apply(self.index, &batch([command])).unwrap();
        (applied.replies.pop().unwrap(), applied.events)
    }

    fn ok(&mut self, command: Command) -> (Arc<Resource>, ApplyOutcome) {
        match self.apply(command).0 {
            Reply::Applied {
                resource, outcome, ..
            } => (resource, outcome),
            Reply::Rejected(rejection) => panic!("{rejection:?}"),
        }
    }

    /// Checks that a refused command changes nothing.
    fn refused(&mut self, command: Command) -> (Code, Rejection) {
        let before = bytes(&self.state);
        let (reply, events) = self.apply(command);
        assert_eq!(events, []);
        assert_eq!(bytes(&self.state), before);
        match reply {
            Reply::Rejected(rejection) => (rejection.code(), rejection),
            Reply::Applied { resource, .. } => panic!("{resource:?}"),
        }
    }

    fn view(&self) -> ControlView {
        self.state.view(self.index, 1)
    }

    fn node_id(&self, name: &str) -> u64 {
        self.view()
            .get(Kind::Node, name)
            .and_then(|r| Some(r.node()?.node_id))
            .unwrap()
    }
}

#[test]
fn founding_a_cluster_is_safe_to_repeat() {
    let mut m = Machine {
        state: ControlState::default(),
        index: 0,
    };
    assert_eq!(
        m.refused(put(setting("s", "1"))).0,
        Code::FailedPrecondition
    );
    let (founder, outcome) = m.ok(init("c1", "n1"));
    assert_eq!(
        (founder.node().unwrap().node_id, outcome),
        (FOUNDER_ID, ApplyOutcome::Created)
    );
    assert_eq!((m.state.cluster_id(), m.view().timing()), ("c1", "lan"));
    assert!(m.view().get(Kind::Region, "r1").is_some());
    assert_eq!(m.ok(init("c1", "n1")).1, ApplyOutcome::Unchanged);
    assert_eq!(m.refused(init("c2", "n1")).0, Code::FailedPrecondition);
    assert_eq!(m.refused(init("c1", "n2")).0, Code::FailedPrecondition);
}

#[test]
fn metadata_follows_the_changes() {
    let mut m = Machine::new();
    let (first, outcome) = m.ok(at(put(setting("s", "1")), 5_000));
    let first = first.metadata.clone().unwrap();
    assert_eq!(outcome, ApplyOutcome::Created);
    assert_eq!(
        (first.incarnation, first.generation),
        (first.resource_version, 1)
    );
    assert_eq!(first.created_at.unwrap().seconds, 5);

    let (same, outcome) = m.ok(at(put(setting("s", "1")), 6_000));
    assert_eq!(
        (same.metadata.clone().unwrap(), outcome),
        (first.clone(), ApplyOutcome::Unchanged)
    );

    let mut labelled = setting("s", "1");
    labelled
        .metadata
        .as_mut()
        .unwrap()
        .labels
        .insert("a".into(), "b".into());
    let (labelled, outcome) = m.ok(at(put(labelled), 7_000));
    let second = labelled.metadata.clone().unwrap();
    assert_eq!(outcome, ApplyOutcome::Updated);
    assert!(second.resource_version > first.resource_version);
    assert_eq!(
        (second.generation, second.incarnation),
        (1, first.incarnation),
        "labels are no part of the spec"
    );
    assert_eq!(
        (second.created_at, second.updated_at.unwrap().seconds),
        (first.created_at, 7)
    );

    let (third, _) = m.ok(put(setting("s", "2")));
    assert_eq!(third.metadata.clone().unwrap().generation, 2);
    m.ok(delete(Kind::Setting, "s"));
    let (again, _) = m.ok(put(setting("s", "2")));
    assert!(again.incarnation() > third.version());
    assert_eq!(again.metadata.clone().unwrap().generation, 1);
}

#[test]
fn two_changes_in_one_entry_get_two_versions() {
    let mut m = Machine::new();
    let two = batch([put(setting("s", "1")), put(setting("s", "2"))]);
    let applied = m.state.apply(9, &two).unwrap();
    let versions: Vec<_> = applied
        .events
        .iter()
        .map(|e| (e.resource.version(), e.revision))
        .collect();
    assert_eq!(versions, [(3, 3), (4, 4)]);
    assert_eq!(m.view().get(Kind::Setting, "s").unwrap().version(), 4);
}

#[test]
fn expected_versions() {
    let mut m = Machine::new();
    let version = m.ok(expecting(put(setting("s", "1")), 0)).0.version();
    let (code, rejection) = m.refused(expecting(put(setting("s", "2")), 0));
    assert_eq!(
        (code, rejection.current_version),
        (Code::AlreadyExists, version)
    );
    let (code, rejection) = m.refused(expecting(put(setting("s", "2")), version + 1));
    assert_eq!(
        (code, rejection.current_version),
        (Code::VersionConflict, version)
    );
    assert_eq!(
        m.refused(expecting(put(setting("t", "2")), version)).0,
        Code::NotFound
    );
    m.ok(expecting(put(setting("s", "2")), version));
    assert_eq!(
        m.refused(expecting(delete(Kind::Setting, "s"), version)).0,
        Code::VersionConflict
    );
    let version = m.view().get(Kind::Setting, "s").unwrap().version();
    m.ok(expecting(delete(Kind::Setting, "s"), version));
    assert_eq!(m.refused(delete(Kind::Setting, "s")).0, Code::NotFound);
}

#[test]
fn a_retried_key_gets_the_first_answer() {
    let mut m = Machine::new();
    let command = keyed("k", put(setting("s", "1")));
    let (first, _) = m.apply(command.clone());
    m.ok(put(setting("s", "2")));
    let before = bytes(&m.state);
    let mut retry = command.clone();
    (retry.time_unix_ms, retry.origin_node_id) = (99, 7);
    let (again, events) = m.apply(retry);
    assert_eq!(
        (again, events),
        (first, vec![]),
        "also when it comes through another node, later"
    );
    assert_eq!(bytes(&m.state), before);
    assert_eq!(
        m.refused(keyed("k", put(setting("s", "3")))).0,
        Code::KeyReused
    );
    assert_eq!(
        m.refused(keyed("k", delete(Kind::Setting, "s"))).0,
        Code::KeyReused
    );

    let delete_s = keyed("d", delete(Kind::Setting, "s"));
    let (gone, _) = m.apply(delete_s.clone());
    assert_eq!(
        m.apply(delete_s).0,
        gone,
        "a retried delete does not say that there is nothing"
    );
}

#[test]
fn a_refusal_is_not_remembered() {
    let mut m = Machine::new();
    let endpoint = keyed("k", put(endpoint("e", "p", "r1")));
    assert_eq!(m.refused(endpoint.clone()).0, Code::FailedPrecondition);
    m.ok(put(pool("p")));
    m.ok(endpoint);
}

#[test]
fn the_key_table_is_bounded_by_number_and_bytes() {
    let resource = Arc::new(setting("s", "1"));
    let mut table = Remembered::default();
    let count = remembered::MAX_KEYS + 3;
    for i in 0..count {
        assert!(table.insert(
            &i.to_string(),
            0,
            Arc::clone(&resource),
            ApplyOutcome::Created,
            i as u64
        ));
    }
    assert!(table.get("2").is_none() && table.get("3").is_some());
    assert_eq!(table.iter().count(), remembered::MAX_KEYS);
    assert!(!table.insert(
        &(count - 1).to_string(),
        0,
        Arc::clone(&resource),
        ApplyOutcome::Created,
        0
    ));

    let large = Arc::new(setting("s", &format!("\"{}\"", "x".repeat(500 << 10))));
    let mut table = Remembered::default();
    for i in 0..200 {
        table.insert(
            &i.to_string(),
            0,
            Arc::clone(&large),
            ApplyOutcome::Created,
            i,
        );
    }
    let kept = table.iter().count();
    assert!((100..135).contains(&kept), "{kept}");
    assert!(table.get("199").is_some());
}

#[test]
fn pools_and_endpoints_hold_together() {
    let mut m = Machine::new();
    assert_eq!(
        m.refused(put(endpoint("e", "p", "r1"))).0,
        Code::FailedPrecondition
    );
    m.ok(put(pool("p")));
    assert_eq!(
        m.refused(put(endpoint("e", "p", "mars"))).0,
        Code::FailedPrecondition
    );
    m.ok(put(endpoint("e", "p", "r1")));
    let (code, rejection) = m.refused(delete(Kind::Pool, "p"));
    assert_eq!(code, Code::FailedPrecondition);
    assert!(
        rejection.message.contains("endpoint e:"),
        "{}",
        rejection.message
    );
    assert_eq!(
        m.refused(delete(Kind::Region, "r1")).0,
        Code::FailedPrecondition
    );
    m.ok(delete(Kind::Endpoint, "e"));
    m.ok(delete(Kind::Pool, "p"));
    assert_eq!(
        m.refused(delete(Kind::Region, "r1")).0,
        Code::FailedPrecondition,
        "its node is still there"
    );
}

#[test]
fn an_endpoint_without_a_region_gets_its_nodes_and_keeps_it() {
    let mut m = Machine::new();
    m.ok(register("n2", "i2", "r2"));
    let n2 = m.node_id("n2");
    assert_eq!(
        m.refused(put(endpoint("e", "", ""))).1.field,
        "spec.endpoint.region"
    );
    let (e, _) = m.ok(from(put(endpoint("e", "", "")), n2));
    assert_eq!(e.endpoint().unwrap().region, "r2");
    let (e, outcome) = m.ok(from(put(endpoint("e", "", "")), FOUNDER_ID));
    assert_eq!(
        (e.endpoint().unwrap().region.as_str(), outcome),
        ("r2", ApplyOutcome::Unchanged)
    );
}

#[test]
fn there_is_one_fallback_pool() {
    let mut m = Machine::new();
    let fallback = |name| {
        let mut pool = pool(name);
        pool.spec = Some(Spec::Pool(PoolSpec {
            fallback: true,
            ..PoolSpec::default()
        }));
        put(pool)
    };
    m.ok(fallback("a"));
    m.ok(fallback("a"));
    assert_eq!(m.refused(fallback("b")).0, Code::FailedPrecondition);
    m.ok(put(pool("a")));
    m.ok(fallback("b"));
}

#[test]
fn node_ids_are_issued_once() {
    let mut m = Machine::new();
    m.ok(register("n2", "i2", "r2"));
    let id = m.node_id("n2");
    assert!(id > FOUNDER_ID);
    assert_eq!(m.ok(register("n2", "i2", "r2")).1, ApplyOutcome::Unchanged);

    let mut moved = register("n2", "i2", "r3");
    if let Some(Op::RegisterNode(r)) = &mut moved.op {
        let node = r.node.as_mut().unwrap();
        (node.peer_address, node.node_id) = ("[::1]:7".into(), id);
    }
    let (node, outcome) = m.ok(moved);
    assert_eq!(
        (node.node().unwrap().node_id, outcome),
        (id, ApplyOutcome::Updated)
    );
    assert!(m.view().get(Kind::Region, "r3").is_some());

    for (name, instance) in [("n2", "i3"), ("n3", "i2")] {
        assert_eq!(
            m.refused(register(name, instance, "r2")).0,
            Code::FailedPrecondition
        );
    }
    for claimed in [FOUNDER_ID, id, 99] {
        let mut forged = register("n4", "i4", "r2");
        if let Some(Op::RegisterNode(r)) = &mut forged.op {
            r.node.as_mut().unwrap().node_id = claimed;
        }
        assert_eq!(m.refused(forged).0, Code::FailedPrecondition);
    }

    m.ok(remove(id));
    assert_eq!(m.refused(remove(id)).0, Code::NotFound);
    assert_eq!(
        m.refused(register("n2", "i2", "r2")).0,
        Code::FailedPrecondition,
        "a removed data directory"
    );
    assert_eq!(m.view().removed_node("i2").unwrap().node_id, id);
    assert_eq!(m.view().removed_node_by_id(id).unwrap().name, "n2");
    m.ok(register("n2", "i9", "r2"));
    assert!(m.node_id("n2") > id, "the name is free, the id is not");
    m.ok(remove(FOUNDER_ID));
    assert_eq!(
        m.refused(remove(m.node_id("n2"))).0,
        Code::FailedPrecondition,
        "the last node"
    );
}

#[test]
fn clients_do_not_write_nodes() {
    let mut m = Machine::new();
    let node = Resource::clone(m.view().get(Kind::Node, "n1").unwrap());
    assert_eq!(m.refused(put(node)).1.field, "spec.node");
    assert_eq!(m.refused(delete(Kind::Node, "n1")).1.field, "kind");
}

#[test]
fn malformed_commands_are_refused() {
    let mut m = Machine::new();
    assert_eq!(m.refused(Command::default()).0, Code::Invalid);
    assert_eq!(
        m.refused(keyed(&"k".repeat(129), put(setting("s", "1"))))
            .1
            .field,
        "idempotency_key"
    );
    assert_eq!(m.refused(put(setting("S", "1"))).1.field, "metadata.name");
    assert_eq!(
        m.refused(put(setting("s", "{"))).1.field,
        "spec.setting.json"
    );
    let mut unknown_kind = delete(Kind::Setting, "s");
    if let Some(Op::Delete(delete)) = &mut unknown_kind.op {
        delete.kind = 77;
    }
    assert_eq!(m.refused(unknown_kind).0, Code::Invalid);
    assert_eq!(m.refused(register("n2", "", "r1")).1.field, "node.instance");
}

#[test]
fn an_entry_of_a_newer_schema_is_not_applied() {
    let mut m = Machine::new();
    let before = bytes(&m.state);
    for schema in [0, SCHEMA + 1] {
        let entry = CommandBatch {
            schema,
            ..batch([put(setting("s", "1"))])
        };
        assert_eq!(
            m.state.apply(7, &entry),
            Err(UnknownSchema {
                index: 7,
                found: schema
            })
        );
    }
    assert_eq!(bytes(&m.state), before);
}

#[test]
fn a_dry_run_says_what_would_happen() {
    let mut m = Machine::new();
    let view = m.view();
    let planned = view.dry_run(&put(setting("s", "1")));
    assert!(view.get(Kind::Setting, "s").is_none());
    assert_eq!(
        m.apply(put(setting("s", "1"))).0,
        match planned {
            Reply::Applied {
                resource, outcome, ..
            } => Reply::Applied {
                resource,
                outcome,
                index: m.index
            },
            refused => refused,
        }
    );
    assert!(matches!(
        view.dry_run(&put(setting("s", "nope"))),
        Reply::Rejected(_)
    ));
}

#[test]
fn an_older_view_does_not_change() {
    let mut m = Machine::new();
    m.ok(put(setting("s", "1")));
    let old = m.view();
    m.ok(put(setting("s", "2")));
    m.ok(delete(Kind::Setting, "s"));
    assert_eq!(
        old.get(Kind::Setting, "s").unwrap().setting().unwrap().json,
        "1"
    );
    assert_eq!((old.applied_index(), old.applied_term()), (2, 1));
}

#[test]
fn endpoints_of_a_pool_are_named_or_selected() {
    let mut m = Machine::new();
    let mut selecting = pool("p");
    let selector = BTreeMap::from([("gpu".to_owned(), "h100".to_owned())]);
    selecting.spec = Some(Spec::Pool(PoolSpec {
        selector: selector.clone(),
        ..PoolSpec::default()
    }));
    m.ok(put(selecting));
    m.ok(put(pool("q")));
    m.ok(put(endpoint("named", "p", "r1")));
    m.ok(put(endpoint("other", "q", "r1")));
    let mut labelled = endpoint("labelled", "", "r1");
    labelled.metadata.as_mut().unwrap().labels = selector;
    m.ok(put(labelled));
    let view = m.view();
    let of = |pool: &str| {
        view.endpoints_of(pool)
            .map(|r| r.name().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("p"), ["labelled", "named"]);
    assert_eq!(of("q"), ["other"]);
    assert_eq!(of("none"), [""; 0]);
    let filter = ListFilter {
        pool: "p".into(),
        ..ListFilter::default()
    };
    assert_eq!(
        view.page(Kind::Endpoint, &filter, "", 0)
            .unwrap()
            .resources
            .len(),
        2
    );
}

#[test]
fn pages_cover_a_listing_once() {
    let mut m = Machine::new();
    for i in 0..25 {
        let mut s = setting(&format!("s{i:02}"), "1");
        s.metadata
            .as_mut()
            .unwrap()
            .labels
            .insert("odd".into(), (i % 2).to_string());
        m.ok(put(s));
    }
    let all = ListFilter::default();
    let odd = ListFilter {
        labels: BTreeMap::from([("odd".into(), "1".into())]),
        ..ListFilter::default()
    };
    for (filter, size, expected) in [
        (&all, 10, 25),
        (&all, 5, 25),
        (&all, 0, 25),
        (&odd, 4, 12),
        (&odd, 12, 12),
    ] {
        let (mut token, mut names) = (String::new(), Vec::new());
        loop {
            let page = m.view().page(Kind::Setting, filter, &token, size).unwrap();
            assert!(size == 0 || page.resources.len() <= size);
            names.extend(page.resources.iter().map(|r| r.name().to_owned()));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(names.len(), expected);
        assert!(names.is_sorted());
    }
    let token = m
        .view()
        .page(Kind::Setting, &all, "", 3)
        .unwrap()
        .next_page_token;
    assert_eq!(
        m.view().page(Kind::Pool, &all, &token, 3).unwrap_err(),
        BadPageToken
    );
    assert_eq!(
        m.view().page(Kind::Setting, &all, "x", 3).unwrap_err(),
        BadPageToken
    );
}

#[test]
fn a_state_is_not_restored_from_nonsense() {
    let mut m = Machine::new();
    m.ok(keyed("k", put(setting("s", "1"))));
    m.ok(register("n2", "i2", "r1"));
    m.ok(remove(m.node_id("n2")));
    let records: Vec<_> = m.state.records().collect();
    let restore = |records: &[_]| -> Result<ControlState, RestoreError> {
        let mut restore = StateRestore::default();
        records
            .iter()
            .cloned()
            .try_for_each(|record| restore.push(record))?;
        restore.finish()
    };
    assert_eq!(bytes(&restore(&records).unwrap()), bytes(&m.state));
    assert_eq!(restore(&[]).unwrap_err(), RestoreError::Facts);
    assert_eq!(restore(&records[1..]).unwrap_err(), RestoreError::Facts);
    for i in 0..records.len() {
        let mut twice = records.clone();
        twice.insert(i, records[i].clone());
        assert!(restore(&twice).is_err(), "{:?}", records[i]);
    }
    let unknown = [
        records[0].clone(),
        quorate_proto::store::v1::SnapshotRecord::default(),
    ];
    assert_eq!(restore(&unknown).unwrap_err(), RestoreError::Unknown);
}
