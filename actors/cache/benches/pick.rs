//! One pick with precise prefixes, with its reservation made and dropped, by number of endpoints: a prompt of 8 KB (128 blocks of 16
//! tokens) that came before, and that half of the endpoints have; the plain pick and the approximate one beside it; and the keys of a
//! prompt that never came before.

#[path = "../tests/route/mod.rs"]
mod route;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use quorate_cache::Tier;
use quorate_routing::config::{EndpointPickerConfig, presets};
use quorate_routing::{PowerOfTwo, Scheduler, SchedulingRequest, Tried};
use route::{BLOCK, World, tokens};
use std::hint::black_box;
use std::sync::Arc;

fn bench(c: &mut Criterion) {
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(182);
    let text = text.as_str();
    for n in [10, 100, 1000] {
        let world = World::of(n, presets::get("precise-prefix").expect("a preset's name"));
        let prompt = tokens(1, 128 * BLOCK + 1);
        let keys = world.keys(&prompt);
        for endpoint in 0..n {
            let blocks = if endpoint % 2 == 0 { 128 } else { 0 };
            world.store(endpoint, 0, Tier::Gpu, &keys[..blocks]);
        }
        let approximate = EndpointPickerConfig::parse(
            presets::get("optimized-baseline").expect("a preset's name"),
        );
        let approximate = approximate.expect("presets parse").config.compile();
        let plain: Arc<dyn Scheduler> = Arc::new(PowerOfTwo::default());
        let precise = Arc::clone(&world.policy.scheduler) as Arc<dyn Scheduler>;
        let approximate = approximate.expect("presets compile").scheduler as Arc<dyn Scheduler>;
        let route = world.view.route("m").expect("the fallback pool");
        let request = SchedulingRequest {
            model: "m",
            prompt: Some(&text),
            prompt_bytes: text.len(),
            ..SchedulingRequest::default().with_tokens(Some(&prompt))
        };
        let tried = Tried::default();
        let cases = [
            ("power-of-two", plain),
            ("approximate/8KB-prompt", approximate),
            ("precise/8KB-prompt", precise),
        ];
        for (name, scheduler) in cases {
            let mut random = 0u64;
            c.benchmark_group(name)
                .bench_function(BenchmarkId::from_parameter(n), |b| {
                    b.iter(|| {
                        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                        black_box(scheduler.schedule(&request, route, &tried, 2, random, None))
                            .is_ok()
                    });
                });
        }
    }
    let world = World::of(1, presets::get("precise-prefix").expect("a preset's name"));
    let prompt = tokens(1, 128 * BLOCK + 1);
    c.bench_function("keys/128-blocks", |b| {
        b.iter(|| black_box(world.keys(black_box(&prompt))).len());
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
