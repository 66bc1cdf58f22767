//! The cache index: lookups at all holders, applied operations, snapshots, and memory for each (holder, block).
//!
//! `cargo bench -p quorate-cache --bench index`; the memory table at ten million blocks: `-- memory`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use quorate_cache::Tier;
use quorate_cache::index::{
    CacheIndex, Columns, DeltaBatch, HolderKey, IndexConfig, Section, SnapshotLoader, TierWeights,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

const fn key(holder: u64) -> HolderKey {
    HolderKey {
        endpoint: holder,
        rank: 0,
    }
}

/// A chain of its own for each number.
fn chain(number: u64, len: usize) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(number);
    (0..len).map(|_| random.u64(..)).collect()
}

/// The section that continues the holder's last one.
fn next_section(sequences: &mut [u64], holder: u64) -> Section {
    let sequence = &mut sequences[holder as usize];
    *sequence += 1;
    Section::new(key(holder), 1, 1, *sequence - 1, *sequence)
}

struct Fleet {
    index: CacheIndex,
    sequence: Vec<u64>,
}

impl Fleet {
    fn new(holders: u64) -> Self {
        let index = CacheIndex::new(IndexConfig { max_bytes: 4 << 30 });
        for holder in 0..holders {
            let mut section = Section::new(key(holder), 1, 1, 0, 1);
            section.replace = true;
            index.apply(&DeltaBatch {
                sections: vec![section],
            });
        }
        Self {
            index,
            sequence: vec![1; holders as usize],
        }
    }

    fn stored(&mut self, holder: u64, tier: Tier, parent: Option<u64>, hashes: &[u64]) {
        let mut section = next_section(&mut self.sequence, holder);
        section.stored(tier, parent, hashes);
        self.index.apply(&DeltaBatch {
            sections: vec![section],
        });
    }

    /// Other chains, so that tables are as large and as cold as in service.
    fn with_others(mut self, blocks: usize) -> Self {
        let holders = self.sequence.len() as u64;
        for number in 0..(blocks / 512) as u64 {
            self.stored(
                number % holders,
                Tier::Gpu,
                None,
                &chain(1_000_000 + number, 512),
            );
        }
        self
    }
}

fn lookup_and_score(fleet: &Fleet, chain: &[u64], columns: &mut Columns) -> f32 {
    let weights = TierWeights::default();
    fleet.index.lookup(black_box(chain), columns);
    columns
        .scores(&weights)
        .map(|(_, score)| score)
        .fold(0.0, f32::max)
}

fn shapes(holders: u64, blocks: usize) -> Vec<(&'static str, Fleet, Vec<u64>)> {
    let request = chain(1, blocks);
    let mut whole = Fleet::new(holders).with_others(1 << 20);
    let mut tiers = Fleet::new(holders).with_others(1 << 20);
    let mut diverging = Fleet::new(holders).with_others(1 << 20);
    let mut pieces = Fleet::new(holders).with_others(1 << 20);
    for holder in 0..holders {
        whole.stored(holder, Tier::Gpu, None, &request);
        // The accelerator has the end evicted, the host has a copy of the middle and end.
        tiers.stored(holder, Tier::Gpu, None, &request[..blocks * 2 / 3]);
        tiers.stored(
            holder,
            Tier::Cpu,
            request.get(blocks / 3).copied(),
            &request[blocks / 3 + 1..],
        );
        // Each leaves the request somewhere and goes on by itself.
        let leave = 1 + (holder as usize * 7919) % (blocks - 1);
        let mut own = request[..leave].to_vec();
        own.extend(chain(100 + holder, blocks - leave));
        diverging.stored(holder, Tier::Gpu, None, &own);
    }
    // A conversation that grew by 16 blocks a turn at one holder after another.
    for turn in 0..blocks / 16 {
        for holder in 0..holders {
            if (turn as u64) < holder + (blocks / 16) as u64 / 2 {
                let (from, to) = (turn * 16, turn * 16 + 16);
                pieces.stored(
                    holder,
                    Tier::Gpu,
                    from.checked_sub(1).map(|f| request[f]),
                    &request[from..to],
                );
            }
        }
    }
    vec![
        ("whole", whole, request.clone()),
        ("two_tiers", tiers, request.clone()),
        ("diverging", diverging, request.clone()),
        ("turns", pieces, request),
    ]
}

fn lookups(c: &mut Criterion) {
    for (holders, blocks) in [(64, 128), (64, 1024), (64, 8192), (1000, 1024)] {
        let mut group = c.benchmark_group(format!("lookup+score/{blocks}_blocks_x_{holders}"));
        group
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(1))
            .sample_size(20);
        for (name, fleet, request) in shapes(holders, blocks) {
            let mut columns = Columns::new();
            group.bench_function(name, |b| {
                b.iter(|| lookup_and_score(&fleet, &request, &mut columns))
            });
            let mut times: Vec<Duration> = (0..20_000)
                .map(|_| {
                    let start = Instant::now();
                    black_box(lookup_and_score(&fleet, &request, &mut columns));
                    start.elapsed()
                })
                .collect();
            times.sort_unstable();
            println!(
                "{blocks} x {holders} {name}: p50 {:?} p99 {:?} p99.9 {:?}",
                times[10_000], times[19_800], times[19_980]
            );
        }
        group.finish();
    }
}

/// What engines at work send: chains stored in steps of a few blocks, evictions one block at a time from the end of old chains.
fn steady_state(sequences: &mut [u64], first: u64, old: u64, batches: usize) -> Vec<DeltaBatch> {
    let holders = sequences.len() as u64;
    (0..batches as u64)
        .map(|n| {
            let sections = (0..8)
                .map(|i| {
                    let number = first + n * 8 + i;
                    let holder = number % holders;
                    let mut section = next_section(sequences, holder);
                    let new = chain(1_000_000 + number, 512);
                    // A prefill in two steps, then decoding block by block.
                    section.stored(Tier::Gpu, None, &new[..200]);
                    section.stored(Tier::Gpu, Some(new[199]), &new[200..480]);
                    for at in 480..512 {
                        section.stored(Tier::Gpu, Some(new[at - 1]), &new[at..=at]);
                    }
                    let old = chain(1_000_000 + number - first + old, 512);
                    for hash in old.iter().rev() {
                        section.removed(Tier::Gpu, &[*hash]);
                    }
                    section
                })
                .collect();
            DeltaBatch { sections }
        })
        .collect()
}

fn applying(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(3))
        .sample_size(10);
    let blocks = 10_000_000;
    let Fleet {
        index,
        mut sequence,
    } = Fleet::new(128).with_others(blocks);
    let base = (blocks / 512) as u64 / 128 * 128 + 128;
    let mut done = 0;
    group.throughput(Throughput::Elements(32 * 8 * 1024));
    group.bench_function("steady_state_at_10M_blocks", |b| {
        b.iter_batched(
            || {
                let batches = steady_state(&mut sequence, base + done, done, 32);
                done += 32 * 8;
                batches
            },
            |batches| {
                batches
                    .iter()
                    .for_each(|batch| drop(black_box(index.apply(batch))))
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Name, blocks in a chain, holders of each chain.
const FILLINGS: [(&str, usize, u64); 5] = [
    ("chains of 512", 512, 1),
    ("chains of 40", 40, 1),
    ("chains of 8", 8, 1),
    ("single blocks", 1, 1),
    ("chains of 64 at four holders", 64, 4),
];

/// Each filling in a process of its own, so that none uses what another has freed.
fn memory() {
    let program = std::env::current_exe().expect("this program");
    for (name, ..) in FILLINGS {
        let status = std::process::Command::new(&program)
            .args(["fill", name])
            .status();
        assert!(status.expect("it starts").success());
    }
}

fn fill(name: &str, len: usize, holders_each: u64) {
    let mut fleet = Fleet::new(128);
    let before = resident();
    let start = Instant::now();
    let mut pairs = 0;
    let mut number = 0;
    while pairs < 10_000_000 {
        let hashes = chain(number, len);
        for i in 0..holders_each {
            fleet.stored((number * 7 + i * 31) % 128, Tier::Gpu, None, &hashes);
            pairs += len;
        }
        number += 1;
    }
    let stats = fleet.index.stats();
    let bytes = |b: usize| b as f64 / stats.pairs as f64;
    println!(
        "{name}: {} pairs, {} blocks, {:.1} bytes a pair resident, {:.1} by its own count, filled in {:.2?}",
        stats.pairs,
        stats.blocks,
        bytes(resident().saturating_sub(before)),
        bytes(stats.bytes),
        start.elapsed()
    );
    snapshot(&fleet.index);
}

/// All that a router does with a snapshot, without the network: taken, loaded, and put in the place of what it had.
fn snapshot(index: &CacheIndex) {
    let start = Instant::now();
    let chunks: Vec<Vec<u8>> = index.snapshot().collect();
    let taken = start.elapsed();
    let before = resident();
    let start = Instant::now();
    let mut loader = SnapshotLoader::new(IndexConfig { max_bytes: 4 << 30 });
    chunks
        .iter()
        .for_each(|chunk| loader.push(chunk).expect("whole"));
    let loaded = loader.finish().expect("complete");
    let loading = start.elapsed();
    let more = resident().saturating_sub(before);
    let other = CacheIndex::new(IndexConfig { max_bytes: 4 << 30 });
    let start = Instant::now();
    other.assume(loaded);
    println!(
        "  snapshot: {} MB taken in {taken:.2?}, loaded in {loading:.2?} into {} MB, installed in {:.2?}, digests equal: {}",
        chunks.iter().map(Vec::len).sum::<usize>() >> 20,
        more >> 20,
        start.elapsed(),
        other.digests() == index.digests()
    );
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .unwrap_or(0)
        * 4096
}

criterion_group!(benches, lookups, applying);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [fill_one, name, ..] = args.as_slice()
        && fill_one == "fill"
    {
        let filling = FILLINGS.iter().find(|f| f.0 == name).expect("a filling");
        return fill(filling.0, filling.1, filling.2);
    }
    if args.iter().any(|a| a == "memory") {
        return memory();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
