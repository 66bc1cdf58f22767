//! Readers beside writers: what does not change is always found whole, and what changes is never more than what is there.

use quorate_cache::Tier;
use quorate_cache::index::{
    CacheIndex, Columns, DeltaBatch, Digest, Expected, HolderKey, IndexConfig, Outcome, Section,
    SnapshotLoader,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const fn key(holder: u64) -> HolderKey {
    HolderKey {
        endpoint: holder,
        rank: 0,
    }
}

fn apply(index: &CacheIndex, section: Section) {
    index.apply(&DeltaBatch {
        sections: vec![section],
    });
}

#[test]
fn readers_see_the_constant_part_whole_while_everything_around_it_moves() {
    const LEN: usize = 3000;
    const KEPT: usize = 700;
    let index = Arc::new(CacheIndex::new(IndexConfig {
        max_bytes: 64 << 20,
    }));
    let chain: Vec<u64> = (1..=LEN as u64)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    // A branch that leaves the chain within the constant part.
    let branch: Vec<u64> = chain[..400]
        .iter()
        .copied()
        .chain((1..=500u64).map(|n| n.wrapping_mul(0xd6e8_feb8_6659_fd93)))
        .collect();
    for holder in 0..5 {
        let mut section = Section::new(key(holder), 1, 1, 0, 1);
        section.replace = true;
        apply(&index, section);
    }
    // The constant part goes in with the whole chain and the rest goes at once: its segments get tidied later, under the readers.
    let mut section = Section::new(key(0), 1, 1, 1, 2);
    section.stored(Tier::Gpu, None, &chain);
    section.removed(Tier::Gpu, &chain[KEPT..]);
    apply(&index, section);

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (index, chain, branch, done) = (&index, &chain, &branch, &done);
            scope.spawn(move || {
                let mut columns = Columns::new();
                let mut rounds = 0u64;
                while !done.load(Ordering::Relaxed) || rounds < 100 {
                    index.lookup(chain, &mut columns);
                    assert_eq!(
                        columns.get(key(0)).blocks as usize,
                        KEPT,
                        "reader {reader}, round {rounds}"
                    );
                    assert_eq!(columns.get(key(0)).on(Tier::Gpu) as usize, KEPT);
                    for holder in 1..5 {
                        let found = columns.get(key(holder));
                        assert!(found.blocks as usize <= LEN);
                        assert_eq!(found.by_tier.iter().sum::<u32>(), found.blocks);
                    }
                    index.lookup(branch, &mut columns);
                    assert_eq!(
                        columns.get(key(0)).blocks,
                        400,
                        "reader {reader}, round {rounds}"
                    );
                    rounds += 1;
                }
            });
        }
        let (index, chain, branch, finished) = (&index, &chain, &branch, &done);
        let picker = scope.spawn(move || {
            let mut random = fastrand::Rng::with_seed(7);
            for generation in 0..4000u64 {
                let chain = if random.bool() { chain } else { branch };
                let len = random.usize(1..chain.len());
                index.expect(key(random.u64(1..5)), 1, &chain[..len], generation);
                if generation % 3 == 0 {
                    index.expire(generation.saturating_sub(2));
                }
            }
        });
        scope.spawn(move || {
            let mut random = fastrand::Rng::with_seed(3);
            let mut sequence = [1u64; 5];
            let mut rounds = 0;
            while rounds < 4000 || !picker.is_finished() {
                rounds += 1;
                let holder = random.usize(1..5);
                let chain = if random.bool() { chain } else { branch };
                let (from, to) = (random.usize(0..chain.len()), random.usize(1..=chain.len()));
                let (from, to) = (from.min(to - 1), to);
                let mut section = Section::new(
                    key(holder as u64),
                    1,
                    1,
                    sequence[holder],
                    sequence[holder] + 1,
                );
                sequence[holder] += 1;
                match random.u8(0..8) {
                    0..4 => section.stored(
                        Tier::Gpu,
                        from.checked_sub(1).map(|f| chain[f]),
                        &chain[from..to],
                    ),
                    4..7 => section.removed(Tier::Gpu, &chain[from..to.min(from + 300)]),
                    _ => section.cleared(None),
                }
                apply(index, section);
            }
            finished.store(true, Ordering::Relaxed);
        });
    });

    // Nothing was lost and nothing is left over.
    index.expire(1 << 14);
    for holder in 0..5 {
        apply(&index, Section::removal(key(holder), 1));
    }
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.pairs, stats.expected_now), (0, 0, 0));
    assert_eq!(stats.expected, stats.confirmed + stats.dropped);
    assert_eq!(index.digests().whole(), Digest::default());
}

#[test]
fn places_that_are_used_again_never_lend_their_holders() {
    const SHARED: usize = 10;
    let index = CacheIndex::new(IndexConfig { max_bytes: 1 << 20 });
    let block = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let shared: Vec<u64> = (1..=SHARED as u64).map(block).collect();
    let tails = [
        (100..164).map(block).collect::<Vec<u64>>(),
        (200..264).map(block).collect(),
    ];
    let chains = tails.clone().map(|tail| [shared.clone(), tail].concat());
    for holder in 0..2 {
        let mut section = Section::new(key(holder), 1, 1, 0, 1);
        section.replace = true;
        section.stored(Tier::Gpu, None, &shared);
        apply(&index, section);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (which, chain) in chains.iter().enumerate() {
            let (index, done) = (&index, &done);
            scope.spawn(move || {
                let mut columns = Columns::new();
                while !done.load(Ordering::Relaxed) {
                    index.lookup(chain, &mut columns);
                    // The other holder's tail takes the same places in turn with this one.
                    assert_eq!(columns.get(key(1 - which as u64)).blocks as usize, SHARED);
                    assert!(columns.get(key(which as u64)).blocks as usize >= SHARED);
                }
            });
        }
        let (index, tails, shared, done) = (&index, &tails, &shared, &done);
        scope.spawn(move || {
            for round in 0..30_000u64 {
                let holder = round % 2;
                let from = 1 + round / 2;
                let tail = &tails[holder as usize];
                let mut section = Section::new(key(holder), 1, 1, from, from + 1);
                section.stored(Tier::Gpu, shared.last().copied(), tail);
                section.removed(Tier::Gpu, tail);
                apply(index, section);
            }
            done.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(index.stats().blocks, SHARED);
}

#[test]
fn readers_beside_an_install_see_the_old_map_or_the_new() {
    let config = IndexConfig {
        max_bytes: 64 << 20,
    };
    let chain: Vec<u64> = (1..=5000u64)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    // Two maps in which every holder has another part of the chain, in pieces that came one by one.
    let parts = [[700usize, 5000, 1300], [4100, 900, 2600]];
    let maps = parts.map(|lengths| {
        let index = CacheIndex::new(config);
        for (holder, length) in (0u64..).zip(lengths) {
            for (n, piece) in (0u64..).zip(chain[..length].chunks(100)) {
                let mut section = Section::new(key(holder), 1, 1, n, n + 1);
                section.replace = n == 0;
                let before = (n as usize * 100).checked_sub(1).map(|at| chain[at]);
                section.stored(Tier::Gpu, before, piece);
                apply(&index, section);
            }
        }
        index
    });
    let chunks = [0, 1].map(|map: usize| maps[map].snapshot().collect::<Vec<_>>());
    let load = |map: usize| {
        let mut loader = SnapshotLoader::new(config);
        for chunk in &chunks[map] {
            loader.push(chunk).unwrap();
        }
        loader.finish().unwrap()
    };
    let index = load(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut columns = Columns::new();
                while !done.load(Ordering::Relaxed) {
                    index.lookup(&chain, &mut columns);
                    let found = [0, 1, 2].map(|h| columns.get(key(h)).blocks as usize);
                    assert!(parts.contains(&found), "{found:?}");
                }
            });
        }
        // What picks expect beside it goes to one of the maps, and is gone with it.
        scope.spawn(|| {
            let mut generation = 0;
            while !done.load(Ordering::Relaxed) {
                generation += 1;
                let added = index.expect(key(0), 1, &[generation, generation + 1], 7);
                assert_ne!(added, Expected::NotThere);
            }
        });
        scope.spawn(|| {
            for round in 1..100usize {
                index.assume(load(round % 2));
                assert_eq!(index.digests(), maps[round % 2].digests());
                // The log goes on at once, with what it began with.
                let next = parts[round % 2][0].div_ceil(100) as u64;
                let section = Section::new(key(0), 1, 1, next, next + 1);
                let sections = vec![section];
                let outcomes = index.apply(&DeltaBatch { sections }).outcomes;
                let applied = Outcome::Applied {
                    added: 0,
                    removed: 0,
                    refused: 0,
                };
                assert_eq!(outcomes[0].1, applied);
            }
            done.store(true, Ordering::Relaxed);
        });
    });
    index.expire(7);
    let stats = index.stats();
    assert_eq!(stats.expected_now, 0);
    assert_eq!(stats.pairs, parts[1].iter().sum::<usize>() as u64);
}

#[test]
fn snapshots_that_are_read_while_the_log_goes_on_are_each_of_one_moment() {
    const ROUNDS: u64 = 3000;
    let config = IndexConfig {
        max_bytes: 64 << 20,
    };
    let index = CacheIndex::new(config);
    let block = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut section = Section::new(key(0), 1, 1, 0, 1);
    section.replace = true;
    apply(&index, section);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut taken = 0;
                while taken < 3 || !done.load(Ordering::Relaxed) {
                    let mut loader = SnapshotLoader::new(config);
                    for chunk in index.snapshot() {
                        loader.push(&chunk).unwrap();
                    }
                    // Of each round all or nothing, and of rounds a beginning.
                    let loaded = loader.finish().unwrap();
                    let rounds = loaded.holders()[0].sequence - 1;
                    assert_eq!(loaded.stats().pairs, rounds * 2);
                    taken += 1;
                }
            });
        }
        for round in 1..=ROUNDS {
            let mut section = Section::new(key(0), 1, 1, round, round + 1);
            section.stored(Tier::Gpu, None, &[block(2 * round), block(2 * round + 1)]);
            apply(&index, section);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(index.stats().pairs, ROUNDS * 2);
}
