//! One pick, with its reservation made and dropped, by number of endpoints: random, the plain pick, the approximate prefix pick and the
//! precise one, for prompts of 8 KB and 32 KB (128 and 512 blocks of 16 tokens) that half of the endpoints have cached.
//!
//! `cargo bench -p quorate-cache --bench pick`. "known": the prompt came before. "next turn": the last eighth of it is new each time, to the
//! engines too. "new": all of it is, so that all keys are made (SHA-256, as the engines do), nothing is found, and all of it is expected
//! of the picked endpoint. What is expected is let go of every 64 picks, within the time measured.
//!
//! Heap allocations of a pick are counted by an allocator that counts (in the steady state, known prompts), and printed at the end:
//! the same number, 0, at 10 and at 100 endpoints means none for an endpoint.

#[path = "../tests/route/mod.rs"]
mod route;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use quorate_cache::Tier;
use quorate_routing::config::{EndpointPickerConfig, presets};
use quorate_routing::tokens::PromptTokens;
use quorate_routing::{PowerOfTwo, Prompt, Scheduler, SchedulingRequest, Tried, now_ms};
use route::{BLOCK, World, tokens};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const RANDOM: &str = "apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: random-picker
";

/// Name, bytes of text, blocks.
const PROMPTS: [(&str, usize, usize); 2] = [("8KB", 8 << 10, 128), ("32KB", 32 << 10, 512)];

fn scheduler(config: &str) -> Arc<dyn Scheduler> {
    let parsed = EndpointPickerConfig::parse(config).expect("it parses");
    parsed.config.compile().expect("it compiles").scheduler
}

fn preset(name: &str) -> &'static str {
    presets::get(name).expect("a preset's name")
}

/// Endpoints of which every second one has the prompt.
fn world(endpoints: usize, prompt: &PromptTokens) -> World {
    let world = World::of(endpoints, preset("precise-prefix"));
    let keys = world.keys(prompt);
    for endpoint in 0..endpoints {
        let blocks = if endpoint % 2 == 0 { keys.len() } else { 0 };
        world.store(endpoint, 0, Tier::Gpu, &keys[..blocks]);
    }
    world
}

/// A pick of this kind, to be repeated.
fn pick<'a>(
    world: &'a World,
    scheduler: &'a Arc<dyn Scheduler>,
    text: &'a dyn Prompt,
    bytes: usize,
) -> impl FnMut(&PromptTokens) -> bool + 'a {
    let route = world.view.route("m").expect("the fallback pool");
    let tried = Tried::default();
    let mut random = 0u64;
    move |tokens| {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let request = SchedulingRequest {
            model: "m",
            prompt: Some(text),
            prompt_bytes: bytes,
            ..SchedulingRequest::default().with_tokens(Some(tokens))
        };
        let picked = scheduler.schedule(&request, route, &tried, now_ms(), random, None);
        black_box(picked).is_ok()
    }
}

fn bench(c: &mut Criterion) {
    let mut allocations = Vec::new();
    for (size, bytes, blocks) in PROMPTS {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(bytes / 45);
        let text = text.as_str();
        let prompt = tokens(1, blocks * BLOCK + 1);
        for endpoints in [10, 64, 100] {
            let world = world(endpoints, &prompt);
            let plain: Arc<dyn Scheduler> = Arc::new(PowerOfTwo::default());
            let precise: Arc<dyn Scheduler> = world.policy.scheduler.clone();
            let cases = [
                ("random", scheduler(RANDOM)),
                ("power-of-two", plain),
                ("approximate", scheduler(preset("optimized-baseline"))),
                ("precise, known", Arc::clone(&precise)),
                ("precise, next turn", Arc::clone(&precise)),
                ("precise, new", precise),
            ];
            for (name, scheduler) in cases {
                let mut pick = pick(&world, &scheduler, &text, text.len());
                // The first token that is another one in each pick.
                let changed = match name {
                    "precise, next turn" => Some(blocks * 7 / 8 * BLOCK),
                    "precise, new" => Some(0),
                    _ => None,
                };
                let mut picks = 0u32;
                let mut group = c.benchmark_group(format!("{name}/{size}"));
                group
                    .warm_up_time(Duration::from_millis(500))
                    .measurement_time(Duration::from_secs(2))
                    .sample_size(30);
                group.bench_function(BenchmarkId::from_parameter(endpoints), |b| {
                    let Some(from) = changed else {
                        return b.iter(|| assert!(pick(&prompt)));
                    };
                    let mut prompt = prompt.clone();
                    b.iter(|| {
                        picks += 1;
                        let ids = Arc::make_mut(&mut prompt.ids);
                        if let Some(id) = ids.get_mut(from) {
                            *id = 1_000_000 + picks;
                        }
                        assert!(pick(&prompt));
                        if picks.is_multiple_of(64) {
                            // The generations of the next minute are behind this one.
                            world.index.expire(now_ms() / 250 + 240);
                        }
                    });
                });
                group.finish();
                if changed.is_none() {
                    (0..3000).for_each(|_| assert!(pick(&prompt)));
                    let count = allocation_counter::measure(|| {
                        (0..100).for_each(|_| assert!(pick(&prompt)));
                    });
                    allocations.push((name, size, endpoints, count.count_total));
                }
            }
        }
    }
    for (name, size, endpoints, count) in allocations {
        println!("{name}, {size}, {endpoints} endpoints: {count} heap allocations in 100 picks");
    }
    let world = World::of(1, preset("precise-prefix"));
    for (size, _, blocks) in PROMPTS {
        let prompt = tokens(1, blocks * BLOCK + 1);
        c.bench_function(&format!("keys/{size}"), |b| {
            b.iter(|| black_box(world.keys(black_box(&prompt))).len());
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
