// long: one test for each rule of the scheduler, on one set of small helpers.
//! Properties of the engine over arbitrary interleavings, and its behaviour as a model of hardware.

use super::latency::{FixedLatency, StepCosts};
use super::sequence::{Prompt, root_hash};
use super::tiers::LoadFrom;
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

const COSTS: StepCosts = StepCosts {
    base: 10_000_000.0,
    prefill_step: 2_000_000.0,
    prefill_token: 50_000.0,
    decode_seq: 40_000.0,
    context_token: 60.0,
};

pub(super) fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 256,
        max_num_batched_tokens: 2048,
        block_size: 16,
        num_blocks: 10_000,
        max_waiting: 1000,
        tiers: Vec::new(),
        offload_generated: false,
        peer_load_block: 0,
        record_changes: false,
        prefix_caching: true,
        max_loras: 2,
        max_cpu_loras: 2,
        lora_load: 0,
        latency: Latency::Batched(COSTS),
        seed: 1,
        max_catch_up: 0,
    }
}

pub(super) fn sequence(prompt: &[u32], output: u32, block_size: u32) -> NewSequence {
    NewSequence {
        prompt: Prompt::new(prompt, block_size, 0),
        output: (0..output)
            .map(|i| 1_000_000 + i)
            .collect::<Vec<_>>()
            .into(),
        finish: FinishReason::Length,
        lora: None,
        naming: None,
        cache_hit_threshold: None,
        load_from: LoadFrom::default(),
        peer_blocks: 0,
    }
}

pub(super) fn unique(n: u32, salt: u32) -> Vec<u32> {
    (0..n).map(|i| i * 7919 + salt).collect()
}

/// Runs until nothing is left, checking on the way; returns the events with their payload and the end time.
pub(super) fn drain(engine: &mut Engine<u64>, mut now: Nanos) -> (Vec<(u64, Event)>, Nanos) {
    let mut events = Vec::new();
    while let Some(next) = engine.advance(now, &mut |id, event| events.push((*id, event))) {
        check(engine);
        now = next;
    }
    (events, now)
}

/// Every block is used by exactly the sequences that list it, and limits hold.
pub(super) fn check<T>(engine: &Engine<T>) {
    let mut uses: HashMap<BlockId, u32> = HashMap::new();
    for seq in engine.seqs.iter().flatten() {
        for block in &seq.blocks {
            *uses.entry(*block).or_default() += 1;
        }
        assert!(seq.sealed <= seq.blocks.len());
        assert!(seq.computed as usize <= seq.blocks.len() * engine.config.block_size as usize);
    }
    engine.pool.check(&uses);
    assert!(engine.running.len() <= engine.config.max_num_seqs);
    assert!(engine.loras().0.len() <= engine.config.max_loras);
    let alive = engine.seqs.iter().flatten().count();
    assert_eq!(alive, engine.running.len() + engine.waiting());
    for slot in &engine.waiting {
        assert!(
            engine.at(*slot).unwrap().blocks.is_empty(),
            "a waiting sequence holds blocks"
        );
    }
}

pub(super) fn time_to_first(events: &[(u64, Event)], id: u64) -> Nanos {
    events
        .iter()
        .find_map(|(who, event)| match event {
            Event::Token { index: 0, at, .. } if *who == id => Some(*at),
            _ => None,
        })
        .unwrap()
}

#[test]
fn one_sequence_takes_the_time_of_its_steps() {
    let mut engine = Engine::new(config());
    engine.add(1, sequence(&unique(100, 0), 3, 16), 0).unwrap();
    let (events, end) = drain(&mut engine, 0);
    let prefill = 10_000_000 + 2_000_000 + 100 * 50_000;
    assert_eq!(time_to_first(&events, 1), prefill);
    // Two decode steps over 101 and 102 tokens of context.
    assert_eq!(end, prefill + 2 * 10_040_000 + 60 * (101 + 102));
    assert!(matches!(
        events.last(),
        Some((
            1,
            Event::Finished {
                reason: FinishReason::Length,
                prompt_tokens: 100,
                generated: 3,
                ..
            }
        ))
    ));
    assert_eq!(engine.kv_usage(), 0.0);
}

#[test]
fn decode_slows_down_with_batch_and_context() {
    let gap = |seqs: u64, prompt: u32| {
        let mut engine = Engine::new(config());
        for id in 0..seqs {
            engine
                .add(
                    id,
                    sequence(&unique(prompt, id as u32 * 1_000_003), 20, 16),
                    0,
                )
                .unwrap();
        }
        let (events, _) = drain(&mut engine, 0);
        let gaps: Vec<_> = events
            .iter()
            .filter_map(|(_, e)| match e {
                Event::Token { gap, index, .. } if *index > 15 => *gap,
                _ => None,
            })
            .collect();
        gaps.iter().sum::<Nanos>() / gaps.len() as u64
    };
    let alone = gap(1, 100);
    assert!(gap(64, 100) > alone + 60 * 40_000);
    assert_eq!(gap(1, 1500), alone + 1400 * 60);
}

#[test]
fn prefix_hit_shortens_prefill() {
    let mut engine = Engine::new(config());
    let prompt = unique(1000, 3);
    engine.add(1, sequence(&prompt, 2, 16), 0).unwrap();
    let (first, end) = drain(&mut engine, 0);
    engine.add(2, sequence(&prompt, 2, 16), end).unwrap();
    let (second, _) = drain(&mut engine, end);
    let cold = time_to_first(&first, 1);
    let warm = time_to_first(&second, 2) - end;
    assert_eq!(
        cold - warm,
        992 * 50_000,
        "62 of 63 blocks come from the cache"
    );
    assert_eq!(engine.counters().prefix_hits, 992);
    assert_eq!(engine.counters().prefix_queries, 2000);

    let mut salted = sequence(&prompt, 2, 16);
    salted.prompt = Prompt::new(&prompt, 16, root_hash(None, Some("tenant")));
    engine.add(3, salted, end).unwrap();
    drain(&mut engine, end);
    assert_eq!(
        engine.counters().prefix_hits,
        992,
        "another salt shares nothing"
    );
}

#[test]
fn a_follow_up_turn_hits_the_generated_blocks_too() {
    let mut engine = Engine::new(config());
    let prompt = unique(20, 3);
    let turn = sequence(&prompt, 45, 16);
    let mut next_prompt = prompt.clone();
    next_prompt.extend(turn.output.iter());
    engine.add(1, turn, 0).unwrap();
    let (_, end) = drain(&mut engine, 0);
    engine.add(2, sequence(&next_prompt, 1, 16), end).unwrap();
    drain(&mut engine, end);
    // 64 of the 65 tokens of the first turn were computed: four blocks.
    assert_eq!(engine.counters().prefix_hits, 64);
}

#[test]
fn long_prefill_is_chunked_and_slows_decodes() {
    let mut engine = Engine::new(EngineConfig {
        max_num_batched_tokens: 256,
        ..config()
    });
    engine.add(1, sequence(&unique(16, 0), 40, 16), 0).unwrap();
    let mut events = Vec::new();
    let mut now = 0;
    for _ in 0..5 {
        now = engine
            .advance(now, &mut |id, e| events.push((*id, e)))
            .unwrap();
    }
    engine
        .add(2, sequence(&unique(2000, 5), 1, 16), now)
        .unwrap();
    let (rest, _) = drain(&mut engine, now);
    events.extend(rest);
    let first_of_2 = time_to_first(&events, 2);
    let slow = events
        .iter()
        .filter(|(id, e)| matches!(e, Event::Token { gap: Some(gap), .. } if *id == 1 && *gap > 20_000_000))
        .count();
    assert_eq!(slow, 8, "2000 tokens beside a decode in steps of 255");
    assert!(first_of_2 > now);
}

#[test]
fn preemption_when_full_and_all_finish() {
    let mut engine = Engine::new(EngineConfig {
        num_blocks: 40,
        max_num_seqs: 8,
        ..config()
    });
    for id in 0..8 {
        engine
            .add(id, sequence(&unique(60, id as u32 * 77_777), 200, 16), 0)
            .unwrap();
    }
    let (events, _) = drain(&mut engine, 0);
    assert!(engine.counters().preemptions > 0);
    for id in 0..8 {
        let tokens: Vec<u32> = events
            .iter()
            .filter_map(|(who, e)| match e {
                Event::Token { index, .. } if *who == id => Some(*index),
                _ => None,
            })
            .collect();
        assert_eq!(
            tokens,
            (0..200).collect::<Vec<_>>(),
            "every token once, in order"
        );
    }
    assert_eq!(engine.pool.free(), 40);
}

#[test]
fn what_can_never_run_is_refused() {
    let mut engine = Engine::new(EngineConfig {
        num_blocks: 4,
        max_waiting: 1,
        max_num_seqs: 1,
        ..config()
    });
    let too_long = engine.add(1, sequence(&unique(60, 0), 10, 16), 0);
    assert_eq!(
        too_long,
        Err(AddError::TooLong {
            needed: 5,
            total: 4
        })
    );
    assert_eq!(
        engine.add(1, sequence(&unique(4, 0), 0, 16), 0),
        Err(AddError::NoOutput)
    );
    engine.add(1, sequence(&unique(4, 0), 4, 16), 0).unwrap();
    engine.add(2, sequence(&unique(4, 0), 4, 16), 0).unwrap();
    assert_eq!(
        engine.add(3, sequence(&unique(4, 0), 4, 16), 0),
        Err(AddError::QueueFull)
    );
}

#[test]
fn cache_threshold_ends_a_cold_request() {
    let mut engine = Engine::new(config());
    let mut cold = sequence(&unique(64, 0), 4, 16);
    cold.cache_hit_threshold = Some(0.5);
    engine.add(1, cold.clone(), 0).unwrap();
    let (events, end) = drain(&mut engine, 0);
    assert!(matches!(
        events[..],
        [(
            1,
            Event::Finished {
                reason: FinishReason::CacheThreshold,
                generated: 0,
                ..
            }
        )]
    ));
    engine.add(2, sequence(&unique(64, 0), 4, 16), end).unwrap();
    let (_, end) = drain(&mut engine, end);
    engine.add(3, cold, end).unwrap();
    let (events, _) = drain(&mut engine, end);
    assert!(matches!(
        events.last(),
        Some((
            3,
            Event::Finished {
                reason: FinishReason::Length,
                ..
            }
        ))
    ));
}

#[test]
fn adapters_beyond_max_loras_wait_without_blocking_others() {
    let mut engine = Engine::new(EngineConfig {
        max_loras: 1,
        max_cpu_loras: 1,
        lora_load: 7,
        ..config()
    });
    for (id, lora) in [(0, Some(0)), (1, Some(1)), (2, None)] {
        let mut new = sequence(&unique(16, id as u32), 2, 16);
        new.lora = lora;
        engine.add(id, new, 0).unwrap();
    }
    engine.advance(0, &mut |_, _| {});
    assert_eq!(engine.loras(), (vec![0], vec![1]));
    assert_eq!((engine.running(), engine.waiting()), (2, 1));
    let (events, _) = drain(&mut engine, 0);
    assert_eq!(
        events
            .iter()
            .filter(|(_, e)| matches!(e, Event::Finished { .. }))
            .count(),
        3
    );
}

#[test]
fn fixed_model_keeps_to_its_times() {
    let fixed = FixedLatency {
        ttft: 50,
        itl: 10,
        ..FixedLatency::default()
    };
    let mut engine = Engine::new(EngineConfig {
        latency: Latency::Fixed(fixed),
        max_num_seqs: 1,
        ..config()
    });
    engine.add(1, sequence(&unique(16, 0), 3, 16), 5).unwrap();
    engine.add(2, sequence(&unique(16, 1), 1, 16), 5).unwrap();
    let (events, _) = drain(&mut engine, 5);
    let at: Vec<(u64, Nanos)> = events
        .iter()
        .filter_map(|(id, e)| match e {
            Event::Token { at, .. } => Some((*id, *at)),
            _ => None,
        })
        .collect();
    assert_eq!(
        at,
        [(1, 55), (1, 65), (1, 75), (2, 125)],
        "the second waits for the only place"
    );
}

#[test]
fn late_driver_catches_up_or_loses_the_time() {
    let run = |max_catch_up| {
        let mut engine = Engine::new(EngineConfig {
            max_catch_up,
            ..config()
        });
        engine.add(1, sequence(&unique(16, 0), 10, 16), 0).unwrap();
        engine.advance(0, &mut |_, _| {});
        let mut tokens = 0;
        engine.advance(60_000_000, &mut |_, e| {
            tokens += u32::from(matches!(e, Event::Token { .. }))
        });
        tokens
    };
    assert_eq!(run(1_000_000_000), 5);
    assert_eq!(run(0), 1);
}

#[derive(Clone, Debug)]
enum Op {
    Arrive {
        prompt: u32,
        output: u32,
        group: u32,
        lora: Option<u32>,
    },
    Abort(usize),
    Step,
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (1u32..80, 1u32..40, 0u32..4, prop::option::of(0u32..4))
            .prop_map(|(prompt, output, group, lora)| Op::Arrive { prompt, output, group, lora }),
        1 => (0usize..64).prop_map(Op::Abort),
        6 => Just(Op::Step),
        1 => (0u64..100_000_000).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..120)
}

/// Plays the operations, then drains; returns every event.
fn play(config: EngineConfig, ops: &[Op]) -> Vec<(u64, Event)> {
    let block_size = config.block_size;
    let mut engine = Engine::new(config);
    let mut ids = Vec::new();
    let mut events = Vec::new();
    let mut now = 0;
    let mut wake = None;
    for op in ops {
        match op {
            Op::Arrive {
                prompt,
                output,
                group,
                lora,
            } => {
                let tokens: Vec<u32> = (0..*prompt).map(|i| i + group * 1000).collect();
                let mut new = sequence(&tokens, *output, block_size);
                new.lora = *lora;
                new.prompt = Prompt::new(&tokens, block_size, u64::from(lora.map_or(0, |l| l + 1)));
                if let Ok(id) = engine.add(ids.len() as u64, new, now) {
                    ids.push(id);
                }
                if engine.wants_advance() {
                    wake = Some(now);
                }
            }
            Op::Abort(at) => {
                if let Some(id) = ids.get(*at) {
                    engine.abort(*id);
                    assert!(!engine.abort(*id));
                }
            }
            Op::Step => {
                now = wake.unwrap_or(now).max(now);
                wake = engine.advance(now, &mut |id, e| events.push((*id, e)));
            }
            Op::Wait(by) => now += by,
        }
        check(&engine);
    }
    let (rest, _) = drain(&mut engine, now);
    events.extend(rest);
    assert_eq!(engine.pool.free(), engine.pool.total(), "a block leaked");
    assert_eq!(engine.running() + engine.waiting(), 0);
    events
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_block_leaks_over_any_interleaving(
        ops in ops(),
        num_blocks in 8u32..40,
        max_num_seqs in 1usize..8,
        batched_tokens in 1u32..100,
        prefix_caching in any::<bool>(),
        fixed in any::<bool>(),
    ) {
        let latency = if fixed {
            Latency::Fixed(FixedLatency {
                ttft: 40_000_000, ttft_std_dev: 9_000_000, itl: 5_000_000, itl_std_dev: 1_000_000, ..FixedLatency::default()
            })
        } else {
            Latency::Batched(COSTS)
        };
        let config = EngineConfig {
            num_blocks, max_num_seqs, max_num_batched_tokens: batched_tokens, max_waiting: 20, prefix_caching, latency,
            ..config()
        };
        let events = play(config.clone(), &ops);
        prop_assert_eq!(&events, &play(config, &ops), "same seed, same input, same events");

        let mut seen: HashMap<u64, u32> = HashMap::new();
        let mut finished: HashMap<u64, u32> = HashMap::new();
        for (id, event) in &events {
            match event {
                Event::Token { index, .. } => {
                    let next = seen.entry(*id).or_default();
                    prop_assert_eq!(*next, *index);
                    *next += 1;
                    prop_assert!(!finished.contains_key(id), "a token after the end");
                }
                Event::Finished { generated, .. } => {
                    prop_assert_eq!(seen.get(id).copied().unwrap_or(0), *generated);
                    prop_assert!(finished.insert(*id, *generated).is_none(), "ended twice");
                }
            }
        }
    }
}

#[test]
fn payload_is_shared_not_copied() {
    let payload = Arc::new(());
    let mut engine = Engine::new(config());
    let id = engine
        .add(payload.clone(), sequence(&unique(4, 0), 1, 16), 0)
        .unwrap();
    assert_eq!(Arc::strong_count(&payload), 2);
    engine.abort(id);
    assert_eq!(Arc::strong_count(&payload), 1);
}
