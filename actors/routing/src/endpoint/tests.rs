//! Endpoints: what is counted, what keeps one from being used.

use super::*;

pub(crate) fn endpoint(name: &str) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(spec(name), None))
}

pub(crate) fn spec(name: &str) -> EndpointSpec {
    EndpointSpec {
        name: name.into(),
        incarnation: 1,
        pool: "p".into(),
        target: Target::new(false, "127.0.0.1", 8000),
        h2c: false,
        region: "r".into(),
        rank: None,
        labels: BTreeMap::new(),
        breaker: BreakerPolicy::default(),
        slow_start: Duration::from_secs(1),
        stall_timeout: Duration::from_secs(60),
    }
}

#[test]
fn a_reservation_counts_as_long_as_it_lives() {
    let e = endpoint("a");
    let first = e.reserve(1).unwrap();
    let second = e.reserve(1).unwrap();
    e.set_remote_in_flight(5);
    assert_eq!((e.local_in_flight(), e.total_in_flight()), (2, 7));
    drop(first);
    drop(second);
    assert_eq!((e.local_in_flight(), e.total_in_flight()), (0, 5));
}

#[test]
fn stale_and_missing_figures_are_not_full() {
    let e = endpoint("a");
    assert_eq!(e.load(10), None);
    let idle = e.busyness(10, 1000);
    e.set_load(
        LoadFigures {
            running: Some(50),
            waiting: Some(20),
            kv_cache_usage: Some(0.9),
        },
        10,
    );
    assert!(e.busyness(20, 1000) > idle);
    assert_eq!(e.busyness(5000, 1000), idle);
    e.set_load(
        LoadFigures {
            kv_cache_usage: Some(f32::NAN),
            ..Default::default()
        },
        10,
    );
    assert_eq!(e.load(12), Some((LoadFigures::default(), 2)));
}

#[test]
fn a_reading_is_carried_on_by_what_ended_and_began_since() {
    let (e, idle) = (endpoint("a"), endpoint("b"));
    let figures = |running, waiting| LoadFigures {
        running: Some(running),
        waiting: Some(waiting),
        kv_cache_usage: None,
    };
    let held: Vec<_> = (0..12).map(|_| e.reserve(1).unwrap()).collect();
    e.set_load(figures(10, 2), 10);
    assert_eq!(e.busyness(20, 1000), 12 + 2 + 1);
    let more = [e.reserve(20).unwrap(), e.reserve(20).unwrap()];
    assert_eq!(e.busyness(20, 1000), 14 + 4 + 1);
    drop((held, more));
    assert_eq!(e.busyness(20, 1000), idle.busyness(20, 1000));
    // Three of these are somebody else's.
    let held: Vec<_> = (0..2).map(|_| e.reserve(21).unwrap()).collect();
    e.set_load(figures(5, 0), 30);
    assert_eq!(e.busyness(40, 1000), 5 + 1);
    drop(held);
    assert_eq!(e.busyness(40, 1000), 3 + 1);
}

#[test]
fn recovery_ramps_up_and_the_first_start_does_not() {
    let e = endpoint("a");
    e.set_health(Health::Ready, 100);
    assert!(e.reasons(100).is_empty());
    e.set_health(Health::Unhealthy, 200);
    assert_eq!(e.tier(200), None);
    assert_eq!(e.reasons(200), [NotUsed::Unhealthy]);
    e.set_health(Health::Ready, 1000);
    assert_eq!(e.tier(1000), Some(0));
    assert_eq!(e.reasons(1500), [NotUsed::SlowStart(55)]);
    assert!(e.busyness(1000, 1) > e.busyness(1500, 1));
    assert!(e.reasons(2000).is_empty());
}

#[test]
fn failures_open_the_breaker_and_a_good_probe_allows_a_trial() {
    let e = endpoint("a");
    e.set_health(Health::Ready, 1);
    for _ in 0..3 {
        e.reserve(1).unwrap().failed(Failure::Connect, 1);
    }
    assert_eq!(e.tier(2), None);
    assert!(e.reserve(2).is_none());
    e.set_health(Health::Ready, 3);
    assert_eq!(e.tier(3), Some(0));
    let trial = e.reserve(3).unwrap();
    assert!(e.reserve(3).is_none());
    trial.succeeded();
    assert!(e.reserve(3).is_some());
}
