//! How long it takes from the end of a request to the wake-up of the one that waits for its place: each waiting request is a
//! sleeping thread, as a gateway's worker is when nothing else is to be done.
//!
//! `cargo run --release -p quorate-routing --example dispatch_latency`

use quorate_routing::config::{BandConfig, ConcurrencyMode, FlowControlConfig, SaturationDetector};
use quorate_routing::flow::saturation::EndpointLoad;
use quorate_routing::flow::{Admission, FlowControl, FlowRequest, Permit};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

const DISPATCHES: usize = 20_000;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for the permit; when it was there.
fn wait(mut admission: Admission) -> Option<(Permit, Instant)> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let cx = &mut Context::from_waker(&waker);
    loop {
        match Pin::new(&mut admission).poll(cx) {
            Poll::Ready(result) => return result.ok().map(|permit| (permit, Instant::now())),
            Poll::Pending => std::thread::park(),
        }
    }
}

fn measure(waiting: usize) -> Option<Vec<Duration>> {
    let flow = FlowControl::new(
        "bench",
        FlowControlConfig {
            saturation: SaturationDetector::Concurrency {
                max_concurrency: 1,
                max_token_concurrency: 0,
                mode: ConcurrencyMode::Requests,
                headroom: 0.0,
            },
            default_band: BandConfig {
                max_requests: u64::MAX,
                ..BandConfig::default()
            },
            ..FlowControlConfig::default()
        },
    );
    flow.set_endpoints(vec![EndpointLoad::default()]);
    let (mut held, _) = wait(flow.admit(FlowRequest::default()))?;
    let stop = AtomicBool::new(false);
    let (woken, wakes) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..waiting {
            let (woken, flow, stop) = (woken.clone(), &flow, &stop);
            scope.spawn(move || {
                while !stop.load(SeqCst)
                    && let Some(permit) = wait(flow.admit(FlowRequest::default()))
                    && woken.send(permit).is_ok()
                {}
            });
        }
        drop(woken);
        let mut latencies = Vec::with_capacity(DISPATCHES);
        for _ in 0..DISPATCHES {
            // Everybody waits and sleeps again.
            while flow.status().queued.iter().map(|(_, n, _)| n).sum::<u64>() < waiting as u64 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(100));
            let freed = Instant::now();
            drop(held);
            let (permit, at) = wakes.recv().ok()?;
            latencies.push(at.saturating_duration_since(freed));
            held = permit;
        }
        stop.store(true, SeqCst);
        drop(held);
        while wakes.recv().is_ok() {}
        latencies.sort_unstable();
        Some(latencies)
    })
}

fn main() {
    for waiting in [1, 8, 64] {
        let Some(latencies) = measure(waiting) else {
            println!("{waiting:>3} waiting: broke off");
            continue;
        };
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index).copied().unwrap_or_default()
        };
        println!(
            "{waiting:>3} waiting: p50 {:?}, p99 {:?}, p99.9 {:?}",
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
}
