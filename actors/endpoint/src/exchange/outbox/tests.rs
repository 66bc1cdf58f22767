//! Only changes are told, everybody ends with the same picture, and nothing leaks.

use super::*;
use crate::exchange::table::{Origin, Table};
use proptest::prelude::*;
use quorate_routing::{Health, LoadFigures};

fn report(running: u32, read_at: u64) -> Report {
    Report {
        health: Health::Ready,
        load: LoadFigures {
            running: Some(running),
            ..Default::default()
        },
        read_at,
        ..Default::default()
    }
}

fn keys(messages: &[LoadUpdate]) -> usize {
    messages
        .iter()
        .map(|m| m.in_flight.len() + m.reports.len())
        .sum()
}

#[test]
fn only_changes_are_told() {
    let mut o = Outbox::default();
    let key = Key::new("e", 1);
    o.count(&key, 0, 0, 1000);
    assert_eq!(o.version(), 0);
    o.count(&key, 2, 100, 1000);
    let seen = o.version();
    o.count(&key, 2, 900, 1000);
    assert!(
        o.since(seen, 950).is_empty(),
        "progress alone is told now and then"
    );
    o.count(&key, 2, 1200, 1000);
    let told = o.since(seen, 1250);
    assert_eq!(
        (told[0].in_flight[0].requests, told[0].in_flight[0].quiet_ms),
        (2, 50)
    );
    o.count(&key, 0, 1200, 1000);
    assert_eq!(o.since(seen, 1300)[0].in_flight[0].requests, 0);
    assert!(
        o.full(1300).is_empty(),
        "a new stream need not hear of zeros"
    );
    assert!(o.since(o.version(), 1300).is_empty());
}

#[test]
fn suspicion_is_told_once_to_each_stream() {
    let mut o = Outbox::default();
    o.suspect(&Key::new("e", 1));
    let told = o.since(0, 5);
    assert!(told[0].in_flight[0].suspect);
    let seen = o.version();
    o.count(&Key::new("e", 1), 1, 5, 1000);
    assert!(!o.since(seen, 6)[0].in_flight[0].suspect);
}

#[test]
fn unchanged_figures_are_refreshed_slowly() {
    let mut o = Outbox::default();
    let key = Key::new("e", 1);
    assert!(o.report(&key, report(1, 1000)));
    assert!(!o.report(&key, report(1, 1500)));
    assert!(o.report(&key, report(1, 3000)));
    assert!(o.report(&key, report(0, 3001)));
    assert!(!o.report(&key, report(0, 9000)));
    assert!(o.report(&key, report(0, 13_001)));
}

#[test]
fn models_are_sent_when_they_change_and_to_new_streams() {
    let mut o = Outbox::default();
    let mut t = Table::default();
    let key = Key::new("e", 1);
    let with_model = |running, id: &str| Report {
        models: vec![quorate_routing::ServedModel {
            id: id.into(),
            ..Default::default()
        }],
        ..report(running, 10)
    };
    let origin = Origin {
        node_id: 1,
        start_id: 1,
        instance: String::new(),
        region: "r".into(),
    };
    let (stream, _) = t.open(origin, 0);
    let mut sent = 0;
    for (running, model, told) in [(1, "a", 1), (2, "a", 0), (3, "b", 1), (4, "b", 0)] {
        o.report(&key, with_model(running, model));
        let messages = o.since(sent, 20);
        sent = o.version();
        assert_eq!(messages[0].reports[0].models.len(), told);
        t.update(stream, &messages[0], 0, 20);
        let known = t.report(&key, 1).unwrap();
        assert_eq!(
            (known.load.running, known.models[0].id.as_str()),
            (Some(running), model)
        );
    }
    assert_eq!(o.full(20)[0].reports[0].models.len(), 1);
}

#[test]
fn lost_ownership_and_deletion_are_told_and_then_forgotten() {
    let mut o = Outbox::default();
    let key = Key::new("e", 1);
    o.report(&key, report(1, 10));
    o.count(&key, 3, 10, 1000);
    let seen = o.version();
    let declared = HashSet::from([key.clone()]);
    o.retain(&declared, &HashSet::new(), 20);
    assert_eq!(o.since(seen, 20)[0].reports[0].state, 0);
    assert_eq!(o.full(20)[0].in_flight[0].requests, 3);
    let seen = o.version();
    o.retain(&HashSet::new(), &HashSet::new(), 30);
    assert_eq!(o.since(seen, 30)[0].in_flight[0].requests, 0);
    o.retain(&HashSet::new(), &HashSet::new(), 30 + KEEP_GONE_MS);
    assert!(o.slots.is_empty());
}

#[test]
fn long_states_go_out_in_several_messages() {
    let mut o = Outbox::default();
    for i in 0..2_500 {
        o.count(&Key::new(&format!("e{i}"), 1), 1, 0, 1000);
    }
    let full = o.full(1);
    assert_eq!((full.len(), keys(&full)), (3, 2_500));
}

proptest! {
    /// However seldom a stream looks, after its last look the receiver has exactly the sender's counts.
    #[test]
    fn receivers_converge(
        steps in prop::collection::vec((0u8..4, 0u32..4, any::<bool>()), 0..60),
    ) {
        let mut outbox = Outbox::default();
        let mut table = Table::default();
        let origin = Origin { node_id: 1, start_id: 1, instance: String::new(), region: "r".into() };
        let (stream, _) = table.open(origin, 0);
        let mut sent = 0;
        let mut truth = [0u32; 4];
        let look = |outbox: &Outbox, table: &mut Table, sent: &mut u64, now| {
            for message in outbox.since(*sent, now) {
                table.update(stream, &message, 500, now);
            }
            *sent = outbox.version();
        };
        for (now, (endpoint, n, looks)) in (0u64..).zip(steps) {
            let key = Key::new(&format!("e{endpoint}"), 1);
            outbox.count(&key, n, now, 10);
            outbox.tokens(&key, u64::from(n) * 10);
            truth[usize::from(endpoint)] = n;
            if looks {
                look(&outbox, &mut table, &mut sent, now);
            }
        }
        look(&outbox, &mut table, &mut sent, 1000);
        for (i, n) in truth.iter().enumerate() {
            let key = Key::new(&format!("e{i}"), 1);
            prop_assert_eq!(table.total(&key), *n);
            prop_assert_eq!(table.tokens(&key), u64::from(*n) * 10);
        }
    }
}
