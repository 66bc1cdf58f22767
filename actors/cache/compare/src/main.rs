//! Times of lookups, this index beside the peer's two, in one process and one run.

use dynamo_kv_router::indexer::SyncIndexer;
use quorate_cache_compare::index::{Columns, TierWeights};
use quorate_cache_compare::{Chain, Ours, Peer, compressed, positional};
use std::hint::black_box;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Median and 99th percentile in nanoseconds.
fn measure(mut call: impl FnMut()) -> (u64, u64) {
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        call();
    }
    let end = Instant::now() + Duration::from_millis(700);
    while Instant::now() < end {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn peer<T: SyncIndexer>(peer: &Peer<T>, request: &Chain) -> (u64, u64) {
    peer.settle();
    measure(|| {
        black_box(
            peer.pool
                .backend()
                .find_matches(black_box(&request.local), false),
        );
    })
}

fn main() {
    println!(
        "| chain | blocks | holders | ours p50 / p99 | compressed tree p50 / p99 | positional p50 / p99 | ours to the best |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (blocks, holders) in [
        (128, 8),
        (128, 64),
        (1024, 8),
        (1024, 64),
        (1024, 1000),
        (8192, 64),
    ] {
        for shape in ["shared by all", "diverging", "turns"] {
            let mut random = fastrand::Rng::with_seed(5);
            let request: Vec<u64> = (0..blocks).map(|_| random.u64(..)).collect();
            let (mut ours, mut tree, mut by_position) =
                (Ours::new(holders), compressed(), positional());
            let mut store = |holder: u64, chain: &Chain, from: usize, to: usize| {
                ours.store(holder, chain, from, to);
                tree.store(holder, chain, from, to);
                by_position.store(holder, chain, from, to);
            };
            let whole = Chain::of(&request);
            for holder in 0..holders {
                match shape {
                    "shared by all" => store(holder, &whole, 0, blocks),
                    "diverging" => {
                        let leave = 1 + (holder as usize * 7919) % (blocks - 1);
                        let mut own = request[..leave].to_vec();
                        own.extend((leave..blocks).map(|_| random.u64(..)));
                        store(holder, &Chain::of(&own), 0, blocks);
                    }
                    _ => {
                        // Turns of 16 blocks, each holder a turn further than the one before.
                        let turns = 1 + (holder as usize * 31) % (blocks / 16);
                        (0..turns).for_each(|t| store(holder, &whole, t * 16, t * 16 + 16));
                    }
                }
            }
            let weights = TierWeights::default();
            let mut columns = Columns::new();
            // Theirs are the blocks of each holder; ours come with the weighted score.
            let a = measure(|| {
                ours.index.lookup(black_box(&whole.sequence), &mut columns);
                black_box(
                    columns
                        .scores(&weights)
                        .map(|(_, score)| score)
                        .fold(0.0, f32::max),
                );
            });
            let (b, c) = (peer(&tree, &whole), peer(&by_position, &whole));
            let show = |(p50, p99): (u64, u64)| {
                format!("{:.2} / {:.2} us", p50 as f64 / 1e3, p99 as f64 / 1e3)
            };
            let ratio = a.0 as f64 / b.0.min(c.0) as f64;
            println!(
                "| {shape} | {blocks} | {holders} | {} | {} | {} | {ratio:.2} |",
                show(a),
                show(b),
                show(c)
            );
        }
    }
}
