//! Tiers below the GPU: what is kept where, what a load takes, what is told of it.

use super::latency::{FixedLatency, LatencyCalculator};
use super::naming::{Identity, Naming, Scheme};
use super::record::BlockChange;
use super::tests::{check, config, drain, sequence, time_to_first, unique};
use super::tiers::{LoadFrom, Medium, TierConfig, TierCount};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn tier(medium: Medium, blocks: u32, load_block: Nanos) -> TierConfig {
    TierConfig {
        medium,
        blocks,
        load_block,
    }
}

/// 20 blocks on the GPU, and tiers below.
fn small(tiers: &[TierConfig]) -> EngineConfig {
    EngineConfig {
        num_blocks: 20,
        tiers: tiers.to_vec(),
        ..config()
    }
}

/// A prompt of ten blocks and one token.
fn prompt(salt: u32) -> Vec<u32> {
    unique(161, salt * 1_000_000)
}

/// One sequence from begin to end: time to its first token, cached and loaded prompt tokens.
fn serve(engine: &mut Engine<u64>, new: NewSequence, now: &mut Nanos) -> (Nanos, u32, u32) {
    let arrival = *now;
    engine.add(1, new, arrival).unwrap();
    let (events, end) = drain(engine, arrival);
    *now = end;
    let first = time_to_first(&events, 1) - arrival;
    let found = events.iter().find_map(|(_, event)| match event {
        Event::Token { cached, loaded, .. } => Some((*cached, *loaded)),
        Event::Finished { .. } => None,
    });
    let (cached, loaded) = found.unwrap();
    (first, cached, loaded)
}

fn count(engine: &Engine<u64>, medium: Medium) -> TierCount {
    let counts = engine.tiers();
    *counts.iter().find(|tier| tier.medium == medium).unwrap()
}

#[test]
fn what_the_gpu_lost_is_loaded_from_host_memory_and_then_on_the_gpu() {
    let load = 3_000_000;
    let mut engine = Engine::new(small(&[tier(Medium::Cpu, 100, load)]));
    let mut now = 0;
    let (cold, cached, _) = serve(&mut engine, sequence(&prompt(0), 1, 16), &mut now);
    assert_eq!(cached, 0);
    assert_eq!(count(&engine, Medium::Cpu).cached, 10);
    // The others push it out of the GPU.
    for salt in 1..4 {
        serve(&mut engine, sequence(&prompt(salt), 1, 16), &mut now);
    }
    assert_eq!(
        engine.cached_blocks(
            &sequence(&prompt(0), 1, 16).prompt.hashes,
            161,
            LoadFrom::default()
        ),
        (0, 10)
    );
    let (warm, cached, loaded) = serve(&mut engine, sequence(&prompt(0), 1, 16), &mut now);
    assert_eq!((cached, loaded), (160, 160));
    // Ten loads, then a step with one token to compute.
    assert_eq!(warm, 10 * load + 10_000_000 + 2_000_000 + 50_000);
    assert_eq!(cold, 10_000_000 + 2_000_000 + 161 * 50_000);
    let (hot, cached, loaded) = serve(&mut engine, sequence(&prompt(0), 1, 16), &mut now);
    assert_eq!((hot, cached, loaded), (12_050_000, 160, 0));
    let counters = engine.counters();
    assert_eq!((counters.prefix_hits, counters.loaded_hits), (160, 160));
    assert_eq!(count(&engine, Medium::Cpu).loaded, 10);
    assert_eq!(count(&engine, Medium::Cpu).load_time, 10 * load);
}

#[test]
fn the_fixed_time_model_waits_for_loads_too() {
    let fixed = FixedLatency {
        calculator: LatencyCalculator::PerToken,
        prefill_time_per_token: 1000,
        ..FixedLatency::default()
    };
    let mut engine = Engine::new(EngineConfig {
        latency: Latency::Fixed(fixed),
        ..small(&[tier(Medium::Cpu, 100, 70)])
    });
    let mut now = 0;
    for salt in 0..4 {
        serve(&mut engine, sequence(&prompt(salt), 1, 16), &mut now);
    }
    let (warm, cached, loaded) = serve(&mut engine, sequence(&prompt(0), 1, 16), &mut now);
    assert_eq!((warm, cached, loaded), (10 * 70 + 1000, 160, 160));
}

#[test]
fn a_small_host_memory_spills_to_the_disk_and_comes_back_from_it() {
    let tiers = [
        tier(Medium::Cpu, 12, 1_000_000),
        tier(Medium::Disk, 1000, 5_000_000),
    ];
    let mut engine = Engine::new(small(&tiers));
    let mut now = 0;
    for salt in 0..4 {
        serve(&mut engine, sequence(&prompt(salt), 1, 16), &mut now);
    }
    let first = sequence(&prompt(0), 1, 16);
    let cpu_only = LoadFrom {
        disk: false,
        ..LoadFrom::default()
    };
    let find = |engine: &Engine<u64>, from| engine.cached_blocks(&first.prompt.hashes, 161, from);
    assert_eq!(find(&engine, LoadFrom::default()), (0, 10));
    assert_eq!(find(&engine, cpu_only), (0, 0));
    let (time, _, loaded) = serve(&mut engine, first.clone(), &mut now);
    assert_eq!((time, loaded), (50_000_000 + 12_050_000, 160));
    // It went to host memory on the way.
    for salt in [5, 6] {
        let mut other = sequence(&prompt(salt), 1, 16);
        other.load_from = LoadFrom::NOWHERE;
        serve(&mut engine, other, &mut now);
        if salt == 5 {
            assert!(find(&engine, cpu_only).0 + find(&engine, cpu_only).1 >= 2);
        }
    }
    assert_eq!(count(&engine, Medium::Cpu).cached, 12);
}

#[test]
fn a_request_may_forbid_loading() {
    let mut engine = Engine::new(small(&[tier(Medium::Cpu, 100, 1000)]));
    let mut now = 0;
    for salt in 0..4 {
        serve(&mut engine, sequence(&prompt(salt), 1, 16), &mut now);
    }
    let mut new = sequence(&prompt(0), 1, 16);
    new.load_from = LoadFrom::NOWHERE;
    assert_eq!(serve(&mut engine, new, &mut now).1, 0);
}

#[test]
fn another_engine_lends_what_is_not_here() {
    let mut engine = Engine::new(EngineConfig {
        peer_load_block: 2_000_000,
        ..small(&[])
    });
    let mut now = 0;
    let mut new = sequence(&prompt(0), 1, 16);
    new.peer_blocks = 4;
    let (time, cached, loaded) = serve(&mut engine, new, &mut now);
    assert_eq!((cached, loaded), (64, 64));
    assert_eq!(time, 8_000_000 + 12_000_000 + 97 * 50_000);
    assert_eq!(count(&engine, Medium::Peer).loaded, 4);
}

#[test]
fn loads_of_one_tier_follow_each_other_and_decoding_goes_on() {
    let load = 50_000_000;
    let mut engine = Engine::new(EngineConfig {
        num_blocks: 60,
        ..small(&[tier(Medium::Cpu, 100, load)])
    });
    let mut now = 0;
    for salt in 0..8 {
        serve(&mut engine, sequence(&prompt(salt), 1, 16), &mut now);
    }
    let begin = now;
    engine.add(1, sequence(&prompt(9), 40, 16), now).unwrap();
    engine.add(2, sequence(&prompt(0), 1, 16), now).unwrap();
    engine.add(3, sequence(&prompt(1), 1, 16), now).unwrap();
    let mut events = Vec::new();
    while let Some(next) = engine.advance(now, &mut |id, event| events.push((*id, event))) {
        check(&engine);
        now = next;
    }
    let second = time_to_first(&events, 2) - begin;
    let third = time_to_first(&events, 3) - begin;
    assert!((10 * load..11 * load).contains(&second), "{second}");
    assert!((20 * load..21 * load).contains(&third), "{third}");
    let before = events.iter().position(|(id, _)| *id == 2).unwrap();
    assert!(events[..before].iter().filter(|(id, _)| *id == 1).count() > 20);
}

#[test]
fn giving_up_while_loading_leaves_nothing_behind() {
    let mut engine = Engine::new(small(&[tier(Medium::Cpu, 100, 1_000_000_000)]));
    let mut now = 0;
    for salt in 0..4 {
        serve(&mut engine, sequence(&prompt(salt), 1, 16), &mut now);
    }
    let id = engine.add(1, sequence(&prompt(0), 1, 16), now).unwrap();
    assert!(engine.advance(now, &mut |_, _| {}).is_some());
    assert_eq!((engine.waiting(), engine.running()), (1, 0));
    assert!(engine.kv_usage() > 0.0);
    assert!(engine.abort(id));
    check(&engine);
    assert_eq!((engine.waiting(), engine.kv_usage()), (0, 0.0));
    assert_eq!(engine.advance(now, &mut |_, _| {}), None);
}

/// Follows changes as a reader of events does.
#[derive(Default)]
struct Follower(BTreeMap<Medium, BTreeSet<u64>>);

impl Follower {
    fn take(&mut self, changes: Vec<BlockChange>) {
        for change in changes {
            match change {
                BlockChange::Stored { names, medium, .. } => {
                    for name in names {
                        let new = self.0.entry(medium).or_default().insert(name);
                        assert!(new, "{name} is told twice on {medium:?}");
                    }
                }
                BlockChange::Removed { name, medium } => {
                    let had = self.0.entry(medium).or_default().remove(&name);
                    assert!(had, "{name} was not on {medium:?}");
                }
                BlockChange::Cleared(names) => {
                    let gpu = self.0.entry(Medium::Gpu).or_default();
                    assert_eq!(std::mem::take(gpu), names.into_iter().collect());
                }
            }
        }
    }

    fn held(&self, medium: Medium) -> usize {
        self.0.get(&medium).map_or(0, BTreeSet::len)
    }
}

proptest! {
    /// Whatever is asked, given up and forgotten: no block is lost, everything ends, and whoever follows the changes
    /// knows what each tier holds.
    #[test]
    fn changes_tell_what_each_tier_holds(
        steps in prop::collection::vec((0u32..6, 1u32..40, 0u8..12, any::<bool>()), 1..60),
        cpu in 0u32..40,
        disk in 0u32..60,
        generated in any::<bool>(),
    ) {
        let tiers: Vec<TierConfig> = [tier(Medium::Cpu, cpu, 900_000), tier(Medium::Disk, disk, 3_000_000)]
            .into_iter()
            .filter(|tier| tier.blocks > 0)
            .collect();
        let mut engine: Engine<u64> = Engine::new(EngineConfig {
            num_blocks: 32,
            record_changes: true,
            offload_generated: generated,
            ..small(&tiers)
        });
        let mut follower = Follower::default();
        let mut ids = Vec::new();
        let mut now = 0;
        for (salt, output, action, load) in steps {
            let tokens = prompt(salt);
            let mut new = sequence(&tokens, output, 16);
            new.naming = Some(Naming::new(Scheme::Opaque, 16, Identity::default(), &tokens));
            if !load {
                new.load_from = LoadFrom::NOWHERE;
            }
            ids.push(engine.add(u64::from(salt), new, now).unwrap());
            match action {
                0 => engine.reset_prefix_cache(load),
                1 => {
                    let id = ids.swap_remove(ids.len() / 2);
                    engine.abort(id);
                }
                _ => {}
            }
            now += u64::from(output) * 1_000_000;
            engine.advance(now, &mut |_, _| {});
            check(&engine);
            follower.take(engine.take_changes());
        }
        let (_, _) = drain(&mut engine, now);
        follower.take(engine.take_changes());
        prop_assert_eq!((engine.running(), engine.waiting()), (0, 0));
        prop_assert_eq!(follower.held(Medium::Gpu), engine.pool().cached());
        for counted in engine.tiers() {
            prop_assert_eq!(follower.held(counted.medium), counted.cached);
            prop_assert!(counted.cached <= counted.blocks as usize);
        }
    }
}
