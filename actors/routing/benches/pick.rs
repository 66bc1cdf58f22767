//! One pick, with its reservation made and dropped, by number of endpoints: the weighted and the token-aware baseline, with a prompt of which
//! the beginning is shared, and the plain pick for comparison; the same with everything written down, up to the record in the ring; and the look
//! whether a request is to be recorded at all; and a pick for a prompt that was not seen before, with an index that is full.

#[path = "../tests/fleet/mod.rs"]
mod fleet;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use quorate_routing::config::{EndpointPickerConfig, presets};
use quorate_routing::explain::{Attempt, Recorder, RecorderOptions, RequestFacts, RequestRecord};
use quorate_routing::{Decision, PowerOfTwo, Scheduler, SchedulingRequest, Tried};
use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;

const SIZES: [u16; 3] = [10, 100, 1000];

fn bench(c: &mut Criterion) {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(90);
    let text = text.as_str();
    let known = SchedulingRequest {
        model: "m",
        prompt: Some(&text),
        prompt_bytes: text.len(),
        ..Default::default()
    };
    let unknown = SchedulingRequest {
        prompt: None,
        ..known
    };
    let preset = |name: &str| -> Arc<dyn Scheduler> {
        let config = presets::get(name).expect("a preset's name");
        let parsed = EndpointPickerConfig::parse(config).expect("presets parse");
        parsed.config.compile().expect("presets compile").scheduler
    };
    for n in SIZES {
        let view = fleet::view(n);
        let route = view.route("m").expect("the fallback pool");
        let cases: [(&str, Arc<dyn Scheduler>, &SchedulingRequest<'_>); 5] = [
            ("power-of-two", Arc::new(PowerOfTwo::default()), &unknown),
            (
                "baseline-v1/no-prompt",
                preset("optimized-baseline-v1"),
                &unknown,
            ),
            (
                "baseline-v1/4KB-prompt",
                preset("optimized-baseline-v1"),
                &known,
            ),
            ("baseline/no-prompt", preset("optimized-baseline"), &unknown),
            ("baseline/4KB-prompt", preset("optimized-baseline"), &known),
        ];
        let tried = Tried::default();
        for (name, scheduler, request) in cases {
            let mut random = 0u64;
            c.benchmark_group(name)
                .bench_function(BenchmarkId::from_parameter(n), |b| {
                    b.iter(|| {
                        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                        black_box(scheduler.schedule(request, route, &tried, 2, random, None))
                            .is_ok()
                    });
                });
        }
        let scheduler = preset("optimized-baseline");
        let recorder = recorder(u32::MAX);
        let mut random = 0u64;
        c.benchmark_group("baseline/4KB-prompt/recorded")
            .bench_function(BenchmarkId::from_parameter(n), |b| {
                b.iter(|| {
                    random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    let mut decision = Decision::default();
                    let record = Some(&mut decision);
                    drop(scheduler.schedule(&known, route, &tried, 2, random, record));
                    let attempt = Attempt {
                        decision: Some(decision),
                        ..Attempt::default()
                    };
                    let record = RequestRecord {
                        request: Some(RequestFacts::of(&known)),
                        attempts: vec![attempt],
                        ..RequestRecord::default()
                    };
                    recorder.finish(record, random);
                });
            });
    }
    full_index(c, &preset("optimized-baseline"));
    for (name, recorder) in [("off", recorder(0)), ("beyond-the-rate", recorder(1))] {
        c.benchmark_group("wants").bench_function(name, |b| {
            b.iter(|| recorder.wants(black_box(7), black_box(1_000), false));
        });
    }
}

/// A pick for 8 KB of which three quarters are one of 16 beginnings, on four endpoints that have as many blocks as they have room for: each
/// pick stores eight blocks and gives up eight.
fn full_index(c: &mut Criterion, scheduler: &Arc<dyn Scheduler>) {
    let view = fleet::view(4);
    let route = view.route("m").expect("the fallback pool");
    let tried = Tried::default();
    let mut prompts: Vec<String> = (0..16).map(|i| format!("{i:08}").repeat(1_024)).collect();
    let (mut random, mut tail) = (0u64, String::new());
    let mut pick = || {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let prompt = &mut prompts[(random >> 60) as usize];
        prompt.truncate(6_144);
        tail.clear();
        let _ = write!(tail, "{random:016x}");
        for _ in 0..128 {
            prompt.push_str(&tail);
        }
        let request = SchedulingRequest {
            model: "m",
            prompt: Some(&prompt.as_str()),
            prompt_bytes: prompt.len(),
            ..Default::default()
        };
        black_box(scheduler.schedule(&request, route, &tried, 2, random, None)).is_ok()
    };
    for _ in 0..40_000 {
        pick();
    }
    c.benchmark_group("baseline/new-8KB-prompt")
        .bench_function(BenchmarkId::from_parameter(4), |b| b.iter(&mut pick));
}

fn recorder(max_per_second: u32) -> Recorder {
    Recorder::new(RecorderOptions {
        capacity: 4096,
        max_bytes: 64 << 20,
        share: if max_per_second > 0 { 1.0 } else { 0.0 },
        max_per_second,
    })
}

criterion_group!(benches, bench);
criterion_main!(benches);
