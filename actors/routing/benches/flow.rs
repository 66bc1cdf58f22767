//! Flow control: the fast path, and enqueue and dispatch with 100,000 requests in the queue.

use criterion::{Criterion, criterion_group, criterion_main};
use quorate_routing::config::{
    BandConfig, ConcurrencyMode, FairnessPolicy, FlowControlConfig, SaturationDetector,
};
use quorate_routing::flow::saturation::EndpointLoad;
use quorate_routing::flow::{Admission, FlowControl, FlowRequest, Permit};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

const QUEUED: usize = 100_000;
const FLOWS: usize = 100;

fn engine(limit: u64, fairness: FairnessPolicy) -> Arc<FlowControl> {
    let flow = FlowControl::new(
        "bench",
        FlowControlConfig {
            saturation: SaturationDetector::Concurrency {
                max_concurrency: limit,
                max_token_concurrency: 0,
                mode: ConcurrencyMode::Requests,
                headroom: 0.0,
            },
            default_band: BandConfig {
                max_requests: u64::MAX,
                max_bytes: u64::MAX,
                fairness,
                ..BandConfig::default()
            },
            ..FlowControlConfig::default()
        },
    );
    flow.set_endpoints(vec![EndpointLoad::default()]);
    flow
}

fn request(fairness_id: &str) -> FlowRequest<'_> {
    FlowRequest {
        fairness_id,
        bytes: 1_000,
        model: "m",
        target_model: "m",
        ..FlowRequest::default()
    }
}

fn permit(mut admission: Admission) -> Permit {
    match Pin::new(&mut admission).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(permit)) => permit,
        other => panic!("not admitted: {other:?}"),
    }
}

fn flow(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow");
    let open = engine(u64::from(u32::MAX), FairnessPolicy::GlobalStrict);
    group.bench_function("unsaturated admit and release", |b| {
        b.iter(|| drop(open.try_admit(&request("t1"))));
    });
    let names: Vec<String> = (0..FLOWS).map(|i| format!("tenant-{i:03}")).collect();
    for (name, fairness) in [
        ("strict", FairnessPolicy::GlobalStrict),
        ("round-robin", FairnessPolicy::RoundRobin),
    ] {
        let full = engine(1, fairness);
        let mut held = Some(permit(full.admit(request("a-first"))));
        // Tenant after tenant in name order: under both policies the order of arrival is the order of dispatch.
        let mut waiting: VecDeque<Admission> = (0..QUEUED)
            .map(|i| full.admit(request(&names[i % FLOWS])))
            .collect();
        let mut next = QUEUED;
        group.bench_function(format!("enqueue and leave, {name}, 100000 queued"), |b| {
            b.iter(|| drop(full.admit(request(&names[next % FLOWS]))));
        });
        group.bench_function(
            format!("dispatch one and enqueue one, {name}, 100000 queued"),
            |b| {
                b.iter(|| {
                    drop(held.take());
                    held = waiting.pop_front().map(permit);
                    waiting.push_back(full.admit(request(&names[next % FLOWS])));
                    next += 1;
                });
            },
        );
        drop((held, waiting));
    }
    group.finish();
}

criterion_group!(benches, flow);
criterion_main!(benches);
