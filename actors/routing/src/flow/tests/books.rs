//! The engine's books under every order of events, and between threads.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Admit {
        flow: u8,
        priority: i32,
        deadline: Option<u64>,
    },
    Finish(prop::sample::Index),
    Cancel(prop::sample::Index),
    Pass(u64),
    Endpoints(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..4, -1i32..2, prop::option::of(1u64..40))
            .prop_map(|(flow, priority, deadline)| Step::Admit { flow, priority, deadline }),
        5 => any::<prop::sample::Index>().prop_map(Step::Finish),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => (1u64..20).prop_map(Step::Pass),
        1 => (0usize..3).prop_map(Step::Endpoints),
    ]
}

/// A waiting request of the model: by band, deadline, arrival.
#[derive(Clone, Debug)]
struct Waits {
    id: usize,
    priority: i32,
    ends: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens in whatever order: who goes is who the model says, never more go than may, and in the end nothing is left.
    #[test]
    fn the_books_are_right(steps in prop::collection::vec(step(), 1..150)) {
        const MS: u64 = 1_000;
        let edf = FlowControlConfig {
            default_band: BandConfig { ordering: OrderingPolicy::Edf, ..BandConfig::default() },
            default_negative_band: BandConfig { ordering: OrderingPolicy::Edf, ..BandConfig::default() },
            default_request_ttl: Some(Duration::from_millis(60)),
            no_endpoint_request_ttl: None,
            ..config(2)
        };
        let b = bench(edf, 1);
        let mut endpoints = 1u64;
        let mut switched = b.flow.now();
        let mut open: Vec<(usize, Admission)> = Vec::new();
        let mut running: Vec<(usize, Permit)> = Vec::new();
        // The model.
        let mut waits: Vec<(Waits, u64, Option<u64>)> = Vec::new();
        let mut runs: Vec<usize> = Vec::new();
        for (id, step) in steps.into_iter().enumerate() {
            match step {
                Step::Admit { flow, priority, deadline } => {
                    let name = format!("f{flow}");
                    let asked = FlowRequest {
                        deadline: deadline.map(Duration::from_millis),
                        ..request(&name, priority)
                    };
                    open.push((id, b.flow.admit(asked)));
                    let now = b.flow.now();
                    let client = deadline.map(|d| now + d * MS);
                    let ends = client.unwrap_or(u64::MAX).min(now + 60 * MS);
                    waits.push((Waits { id, priority, ends }, now, client));
                }
                Step::Finish(index) if !running.is_empty() => {
                    let (id, permit) = running.remove(index.index(running.len()));
                    runs.retain(|r| *r != id);
                    drop(permit);
                }
                Step::Cancel(index) if !open.is_empty() => {
                    let (id, admission) = open.remove(index.index(open.len()));
                    waits.retain(|(w, ..)| w.id != id);
                    drop(admission);
                }
                Step::Pass(ms) => {
                    b.pass(ms * MS);
                }
                Step::Endpoints(count) => {
                    if (count == 0) != (endpoints == 0) {
                        switched = b.flow.now();
                    }
                    endpoints = count as u64;
                    b.flow.set_endpoints(vec![EndpointLoad::default(); count]);
                }
                Step::Finish(_) | Step::Cancel(_) => {}
            }
            // The model: whose time is over is out, then the best go while there is room.
            let now = b.flow.now();
            let over = |arrived: u64, client: Option<u64>| {
                let regime = (endpoints > 0).then(|| arrived.max(switched) + 60 * MS);
                [regime, client].into_iter().flatten().min().is_some_and(|at| at <= now)
            };
            let expired: Vec<usize> =
                waits.iter().filter(|(_, a, c)| over(*a, *c)).map(|(w, ..)| w.id).collect();
            waits.retain(|(w, ..)| !expired.contains(&w.id));
            while (runs.len() as u64) < 2 * endpoints && !waits.is_empty() {
                let best = waits
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, (w, ..))| (-w.priority, w.ends, w.id))
                    .map(|(i, _)| i)
                    .unwrap();
                runs.push(waits.remove(best).0.id);
            }
            // The engine.
            let mut still = Vec::new();
            for (id, mut admission) in open {
                match poll(&mut admission) {
                    Poll::Ready(Ok(permit)) => running.push((id, permit)),
                    Poll::Ready(Err(outcome)) => {
                        let said = if endpoints == 0 { Outcome::EvictedNoEndpoints } else { Outcome::EvictedTtl };
                        prop_assert!(expired.contains(&id) && outcome == said, "{} {}", id, outcome);
                    }
                    Poll::Pending => still.push((id, admission)),
                }
            }
            open = still;
            let mut ids: Vec<usize> = running.iter().map(|(id, _)| *id).collect();
            ids.sort_unstable();
            runs.sort_unstable();
            prop_assert_eq!(&ids, &runs);
            prop_assert_eq!(b.in_flight(), runs.len() as u64);
            prop_assert_eq!(b.queued(), open.len() as u64);
        }
        drop(open);
        drop(running);
        prop_assert_eq!((b.in_flight(), b.queued()), (0, 0));
    }
}

/// Threads that admit, run and let go at once: the limit holds at every moment and everybody gets through.
#[test]
fn the_limit_holds_between_threads() {
    const THREADS: usize = 4;
    const EACH: usize = 2_000;
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let flow = FlowControl::new("p", config(3));
    flow.set_endpoints(vec![EndpointLoad::default()]);
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (flow, now, most) = (&flow, &now, &most);
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                for i in 0..EACH {
                    let name = format!("t{t}");
                    let mut admission = flow.admit(request(&name, (i % 3) as i32));
                    if i % 17 == 0 && !admission.is_ready() {
                        continue;
                    }
                    let permit = loop {
                        match Pin::new(&mut admission).poll(&mut Context::from_waker(&waker)) {
                            Poll::Ready(permit) => break permit.unwrap(),
                            Poll::Pending => std::thread::park(),
                        }
                    };
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    if i % 5 == 0 {
                        std::thread::yield_now();
                    }
                    now.fetch_sub(1, SeqCst);
                    drop(permit);
                }
            });
        }
    });
    assert!(most.load(SeqCst) <= 3);
    let status = flow.status();
    assert_eq!(status.in_flight, Load::default());
    assert!(status.queued.iter().all(|q| q.1 == 0));
}
