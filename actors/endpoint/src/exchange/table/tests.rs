//! Sums over any interleaving, restarts, and a node id used twice.

use super::*;
use proptest::prelude::*;
use quorate_proto::peer::v1::{InFlight, LoadReport};

fn origin(node_id: u64, start_id: u64) -> Origin {
    Origin {
        node_id,
        start_id,
        instance: format!("i{start_id}"),
        region: "r".into(),
    }
}

fn counts(of: &[(&str, u64, u32)]) -> LoadUpdate {
    LoadUpdate {
        in_flight: of
            .iter()
            .map(|(name, incarnation, requests)| InFlight {
                endpoint: (*name).into(),
                incarnation: *incarnation,
                requests: *requests,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn report(name: &str, state: u32, age_ms: u32) -> LoadUpdate {
    LoadUpdate {
        reports: vec![LoadReport {
            endpoint: name.into(),
            incarnation: 1,
            state,
            age_ms,
            running: Some(1),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn a_dead_origin_takes_its_counts_with_it() {
    let mut t = Table::default();
    let key = Key::new("e", 1);
    let (a, opened) = t.open(origin(1, 10), 0);
    assert!(opened.nodes);
    let (b, _) = t.open(origin(2, 20), 0);
    t.update(a, &counts(&[("e", 1, 3), ("e", 2, 9)]), 500, 5);
    t.update(b, &counts(&[("e", 1, 4)]), 500, 5);
    assert_eq!(t.total(&key), 7);
    let closed = t.close(a);
    assert!(closed.nodes && closed.counts.contains(&key));
    assert_eq!(t.total(&key), 4);
    assert!(!t.live().contains(1) && t.live().contains(2));
    assert_eq!(t.close(a), Changes::default());
    assert_eq!(
        t.update(a, &counts(&[("e", 1, 3)]), 500, 6),
        Changes::default()
    );
    assert_eq!(t.total(&key), 4);
}

#[test]
fn a_restarted_node_is_a_new_origin_and_its_dead_stream_says_nothing() {
    let mut t = Table::default();
    let key = Key::new("e", 1);
    let (old, _) = t.open(origin(1, 10), 0);
    t.update(old, &counts(&[("e", 1, 3)]), 500, 5);
    let (new, opened) = t.open(origin(1, 11), 100);
    assert_eq!((opened.nodes, opened.counts), (false, vec![key.clone()]));
    assert_eq!(t.total(&key), 0);
    // What was on the wire when the process died is no proof of life.
    assert_eq!(
        t.update(old, &counts(&[("e", 1, 5)]), 500, 150),
        Changes::default()
    );
    t.update(new, &counts(&[("e", 1, 1)]), 500, 150);
    assert_eq!(t.close(old), Changes::default());
    assert_eq!(t.total(&key), 1);
    assert!(t.live().contains(1));
}

#[test]
fn a_node_id_used_twice_is_told_once() {
    let mut t = Table::default();
    let (old, _) = t.open(origin(1, 10), 0);
    let (_, _) = t.open(origin(1, 11), 100);
    let alive = LoadUpdate::default();
    assert_eq!(t.update(old, &alive, 500, 599).used_twice, None);
    assert_eq!(
        t.update(old, &alive, 500, 600).used_twice,
        Some((origin(1, 10), origin(1, 11)))
    );
    assert_eq!(t.update(old, &alive, 500, 900).used_twice, None);
    // A process that only connects anew is the same one.
    let (third, _) = t.open(origin(2, 20), 0);
    t.open(origin(2, 20), 10);
    assert_eq!(t.update(third, &alive, 500, 9_999).used_twice, None);
}

#[test]
fn the_owners_report_counts_then_the_newest() {
    let mut t = Table::default();
    let key = Key::new("e", 1);
    let (a, _) = t.open(origin(1, 10), 0);
    let (b, _) = t.open(origin(2, 20), 0);
    t.update(a, &report("e", 1, 100), 500, 1000);
    t.update(b, &report("e", 3, 50), 500, 1000);
    assert_eq!(t.report(&key, 1).unwrap().read_at, 900);
    assert_eq!(t.report(&key, 9).unwrap().read_at, 950);
    let withdrawn = t.update(b, &report("e", 0, 0), 500, 1001);
    assert!(withdrawn.reports.is_empty());
    assert_eq!(t.report(&key, 2).unwrap().read_at, 900);
    t.close(a);
    assert!(t.report(&key, 1).is_none());
}

#[test]
fn suspicion_is_passed_on() {
    let mut t = Table::default();
    let (a, _) = t.open(origin(1, 10), 0);
    let mut update = counts(&[("e", 1, 0)]);
    update.in_flight[0].suspect = true;
    let changes = t.update(a, &update, 500, 1);
    assert_eq!((changes.suspects.len(), changes.counts.len()), (1, 0));
    assert!(t.streams.values().all(|s| s.counts.is_empty()));
}

/// Requests by endpoint and incarnation.
type Said = BTreeMap<(u8, u64), u32>;

#[derive(Clone, Debug)]
enum Step {
    Open(u64, u64),
    Close(usize),
    Report(usize, u8, u64, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..4, 0u64..3).prop_map(|(n, s)| Step::Open(n, s)),
        (0usize..30).prop_map(Step::Close),
        (0usize..30, 0u8..3, 0u64..2, 0u32..5).prop_map(|(s, e, i, n)| Step::Report(s, e, i, n)),
    ]
}

proptest! {
    /// For any interleaving: the sum is that of the last reports on each node's newest stream, and ended streams leave nothing.
    #[test]
    fn sums_are_those_of_live_origins(steps in prop::collection::vec(step(), 0..120)) {
        let mut table = Table::default();
        let mut opened: Vec<(StreamId, u64)> = Vec::new();
        // Node -> (its newest stream, what that said).
        let mut model: BTreeMap<u64, (StreamId, Said)> = BTreeMap::new();
        for (now, step) in (0u64..).zip(steps) {
            match step {
                Step::Open(node, start) => {
                    let (id, _) = table.open(origin(node, start), now);
                    opened.push((id, node));
                    model.insert(node, (id, BTreeMap::new()));
                }
                Step::Close(i) => {
                    if let Some((id, node)) = opened.get(i) {
                        table.close(*id);
                        if model.get(node).is_some_and(|(current, _)| current == id) {
                            model.remove(node);
                        }
                    }
                }
                Step::Report(i, endpoint, incarnation, n) => {
                    if let Some((id, node)) = opened.get(i) {
                        table.update(*id, &counts(&[(&format!("e{endpoint}"), incarnation, n)]), 5, now);
                        if let Some((current, said)) = model.get_mut(node) && current == id {
                            said.insert((endpoint, incarnation), n);
                        }
                    }
                }
            }
            for endpoint in 0..3u8 {
                for incarnation in 0..2 {
                    let key = Key::new(&format!("e{endpoint}"), incarnation);
                    let expected: u32 =
                        model.values().filter_map(|(_, said)| said.get(&(endpoint, incarnation))).sum();
                    prop_assert_eq!(table.total(&key), expected);
                }
            }
            prop_assert_eq!(table.live().len(), model.len());
        }
        for (id, _) in &opened {
            table.close(*id);
        }
        prop_assert!(table.streams.is_empty() && table.replaced.is_empty());
    }
}
