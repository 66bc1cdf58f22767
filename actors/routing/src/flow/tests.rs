//! The engine: fast path, queue, wake-ups, ends of waiting, and its books under every order of events.

use super::saturation::{EndpointLoad, Load};
use super::*;
use crate::config::{
    BandConfig, ConcurrencyMode, FairnessPolicy, FlowControlConfig, OrderingPolicy,
    SaturationDetector, UsageLimitPolicy,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

const SECOND: u64 = 1_000_000;

/// An engine with a clock that the test moves.
struct Bench {
    flow: Arc<FlowControl>,
    clock: Arc<AtomicU64>,
}

fn concurrency(max_concurrency: u64) -> SaturationDetector {
    SaturationDetector::Concurrency {
        max_concurrency,
        max_token_concurrency: 1_000,
        mode: ConcurrencyMode::Requests,
        headroom: 0.0,
    }
}

fn config(limit: u64) -> FlowControlConfig {
    FlowControlConfig {
        saturation: concurrency(limit),
        ..FlowControlConfig::default()
    }
}

fn bench(config: FlowControlConfig, endpoints: usize) -> Bench {
    let clock = Arc::new(AtomicU64::new(SECOND));
    let read = Arc::clone(&clock);
    let flow = FlowControl::with_clock("p", config, Arc::new(move || read.load(SeqCst)));
    flow.set_endpoints(vec![EndpointLoad::default(); endpoints]);
    Bench { flow, clock }
}

fn request(fairness_id: &str, priority: i32) -> FlowRequest<'_> {
    FlowRequest {
        fairness_id,
        priority,
        bytes: 10,
        ..FlowRequest::default()
    }
}

fn poll(admission: &mut Admission) -> Poll<Result<Permit, Outcome>> {
    Pin::new(admission).poll(&mut Context::from_waker(Waker::noop()))
}

/// The permit of an admission that must be ready.
fn permit(mut admission: Admission) -> Permit {
    match poll(&mut admission) {
        Poll::Ready(Ok(permit)) => permit,
        other => panic!("{other:?}"),
    }
}

fn refused(mut admission: Admission) -> Outcome {
    match poll(&mut admission) {
        Poll::Ready(Err(outcome)) => outcome,
        other => panic!("{other:?}"),
    }
}

impl Bench {
    fn admit(&self, fairness_id: &str, priority: i32) -> Admission {
        self.flow.admit(request(fairness_id, priority))
    }

    fn pass(&self, micros: u64) {
        self.clock.fetch_add(micros, SeqCst);
        self.flow.tick();
    }

    fn in_flight(&self) -> u64 {
        self.flow.status().in_flight.requests
    }

    fn queued(&self) -> u64 {
        self.flow.status().queued.iter().map(|q| q.1).sum()
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_freed_place_wakes_the_head_at_once_and_nobody_else() {
    let b = bench(config(2), 1);
    assert!(b.flow.try_admit(&request("a", 0)).is_some());
    let held = [permit(b.admit("a", 0)), permit(b.admit("a", 0))];
    let (mut first, mut second) = (b.admit("a", 0), b.admit("a", 0));
    let woken = [Arc::new(Woken::default()), Arc::new(Woken::default())];
    for (admission, woken) in [&mut first, &mut second].into_iter().zip(&woken) {
        let waker = Waker::from(Arc::clone(woken));
        assert!(
            Pin::new(admission)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
    }
    assert!(b.flow.try_admit(&request("a", 0)).is_none());
    assert_eq!((b.in_flight(), b.queued()), (2, 2));
    drop(held);
    assert_eq!(woken[0].0.load(SeqCst), 1);
    assert_eq!(woken[1].0.load(SeqCst), 1);
    let (first, second) = (permit(first), permit(second));
    assert_eq!((b.in_flight(), b.queued()), (2, 0));
    drop((first, second));
    assert_eq!(b.in_flight(), 0);
}

#[test]
fn a_waiter_that_goes_away_leaves_no_trace_even_with_a_place_in_hand() {
    let b = bench(config(1), 1);
    let held = permit(b.admit("a", 0));
    let (gone, lucky, mut last) = (b.admit("a", 0), b.admit("b", 0), b.admit("c", 0));
    drop(gone);
    assert_eq!(b.queued(), 2);
    drop(held);
    // `lucky` has the place now, but nobody asks for it any more.
    assert!(poll(&mut last).is_pending());
    drop(lucky);
    let last = permit(last);
    assert_eq!((b.in_flight(), b.queued()), (1, 0));
    drop(last);
    assert_eq!((b.in_flight(), b.queued()), (0, 0));
}

#[test]
fn higher_bands_first_and_lower_ones_never_overtake() {
    let holdback = FlowControlConfig {
        bands: [10, -10]
            .map(|priority| BandConfig {
                priority,
                ..BandConfig::default()
            })
            .to_vec(),
        usage_limit: UsageLimitPolicy::Static { threshold: 0.5 },
        ..config(4)
    };
    let b = bench(holdback, 1);
    let held = [permit(b.admit("a", 0)), permit(b.admit("a", 0))];
    let (mut low, mut mid, high) = (b.admit("a", -10), b.admit("a", 0), b.admit("a", 10));
    let [one, two] = held;
    drop(one);
    assert!(poll(&mut low).is_pending() && poll(&mut mid).is_pending());
    let high = permit(high);
    drop((high, two));
    let (mid, low) = (permit(mid), permit(low));
    assert_eq!(b.in_flight(), 2);
    drop((mid, low));
}

#[test]
fn an_empty_pool_is_a_waiting_room_with_its_own_ttl() {
    let waiting_room = FlowControlConfig {
        default_request_ttl: Some(Duration::from_secs(5)),
        no_endpoint_request_ttl: Some(Duration::from_secs(20)),
        ..config(1)
    };
    let b = bench(waiting_room, 0);
    let (mut early, late) = (b.admit("a", 0), b.admit("a", 0));
    b.pass(10 * SECOND);
    assert!(poll(&mut early).is_pending());
    b.flow.set_endpoints(vec![EndpointLoad::default()]);
    let early = permit(early);
    b.pass(4 * SECOND);
    assert_eq!(b.queued(), 1);
    b.pass(2 * SECOND);
    assert_eq!(refused(late), Outcome::EvictedTtl);
    drop(early);
    b.flow.set_endpoints(Vec::new());
    let never = b.admit("a", 0);
    b.pass(19 * SECOND);
    assert_eq!(b.queued(), 1);
    b.pass(2 * SECOND);
    assert_eq!(refused(never), Outcome::EvictedNoEndpoints);
}

#[test]
fn the_clients_deadline_ends_the_wait_and_a_late_place_does_not_revive_it() {
    let b = bench(config(1), 1);
    let held = permit(b.admit("a", 0));
    let hasty = b.flow.admit(FlowRequest {
        deadline: Some(Duration::from_millis(10)),
        ..request("a", 0)
    });
    let patient = b.admit("a", 0);
    b.clock.fetch_add(20_000, SeqCst);
    // No tick in between: the head is found out when its turn comes.
    drop(held);
    assert_eq!(refused(hasty), Outcome::EvictedTtl);
    assert_eq!(b.in_flight(), 1);
    drop(permit(patient));
    assert_eq!((b.in_flight(), b.queued()), (0, 0));
}

#[test]
fn full_queues_shedding_bands_and_shutdown_refuse() {
    let limits = FlowControlConfig {
        bands: vec![
            BandConfig {
                max_requests: 1,
                ..BandConfig::default()
            },
            BandConfig {
                priority: -1,
                shed: true,
                ..BandConfig::default()
            },
        ],
        ..config(1)
    };
    let b = bench(limits, 1);
    let shed_first = permit(b.admit("a", -1));
    let waits = b.admit("a", 0);
    assert_eq!(refused(b.admit("a", 0)), Outcome::RejectedCapacity);
    assert_eq!(refused(b.admit("a", -1)), Outcome::RejectedCapacity);
    b.flow.close();
    assert_eq!(refused(waits), Outcome::EvictedShuttingDown);
    assert_eq!(refused(b.admit("a", 0)), Outcome::RejectedShuttingDown);
    drop(shed_first);
    assert_eq!(refused(b.admit("a", 0)), Outcome::RejectedShuttingDown);
    let empty = bench(
        FlowControlConfig {
            max_requests: Some(1),
            ..config(1)
        },
        0,
    );
    let _waits = empty.admit("a", 0);
    assert_eq!(refused(empty.admit("a", 0)), Outcome::RejectedNoEndpoints);
}

#[test]
fn tokens_are_in_flight_until_the_first_one_comes_back() {
    let tokens = FlowControlConfig {
        saturation: SaturationDetector::Concurrency {
            max_concurrency: 1,
            max_token_concurrency: 100,
            mode: ConcurrencyMode::Tokens,
            headroom: 0.0,
        },
        ..config(1)
    };
    let b = bench(tokens, 1);
    let ask = |tokens| {
        b.flow.admit(FlowRequest {
            tokens,
            ..request("a", 0)
        })
    };
    let mut first = permit(ask(60));
    let second = permit(ask(60));
    let mut third = ask(10);
    assert!(poll(&mut third).is_pending());
    first.first_token();
    let third = permit(third);
    assert_eq!(
        b.flow.status().in_flight,
        Load {
            requests: 3,
            tokens: 70
        }
    );
    drop((first, second, third));
    assert_eq!(b.flow.status().in_flight, Load::default());
}

#[test]
fn a_new_configuration_takes_the_queue_along() {
    let b = bench(config(1), 1);
    let held = permit(b.admit("a", 0));
    let mut all: Vec<Admission> = ["a", "a", "b"].map(|id| b.admit(id, 0)).into();
    let high = b.admit("a", 7);
    let round_robin = FlowControlConfig {
        default_band: BandConfig {
            fairness: FairnessPolicy::RoundRobin,
            ordering: OrderingPolicy::Edf,
            ..BandConfig::default()
        },
        ..config(2)
    };
    b.flow.reconfigure(round_robin);
    let high = permit(high);
    assert_eq!(b.queued(), 3);
    drop(high);
    assert!(poll(&mut all[1]).is_pending() && poll(&mut all[2]).is_pending());
    let a = permit(all.remove(0));
    drop(a);
    assert!(poll(&mut all[0]).is_pending(), "the other flow's turn");
    drop(permit(all.remove(1)));
    drop(permit(all.remove(0)));
    drop(held);
    assert_eq!((b.in_flight(), b.queued()), (0, 0));
}

#[test]
fn sheddable_requests_give_way_to_higher_bands_only() {
    let evicting = FlowControlConfig {
        eviction: true,
        ..config(3)
    };
    let b = bench(evicting, 1);
    let noble = permit(b.admit("a", 0));
    let (older, newer) = (permit(b.admit("a", -1)), permit(b.admit("a", -1)));
    assert!(older.is_revocable() && !noble.is_revocable());
    let equal = b.admit("a", -1);
    let revoked = |p: &Permit| {
        p.poll_revoked(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    };
    assert!(!revoked(&older) && !revoked(&newer));
    drop(equal);
    let high = b.admit("a", 5);
    assert!(revoked(&newer) && !revoked(&older) && !revoked(&noble));
    b.pass(SECOND);
    assert!(!revoked(&older), "one is on its way");
    drop(newer);
    let high = permit(high);
    drop((older, noble, high));
    assert_eq!((b.in_flight(), b.queued()), (0, 0));
}

mod books;
