//! Equal answers on random histories: chains that branch, are stored in steps, lose their ends, and come back.

use quorate_cache_compare::index::Columns;
use quorate_cache_compare::{Chain, Ours, compressed, positional};

const HOLDERS: u64 = 12;

#[test]
fn all_three_say_the_same() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut blocks: Vec<Vec<u64>> = vec![];
        for _ in 0..12 {
            let mut chain = if blocks.is_empty() || random.u8(..4) == 0 {
                vec![]
            } else {
                let from = &blocks[random.usize(..blocks.len())];
                from[..random.usize(..=from.len())].to_vec()
            };
            chain.extend((0..random.usize(1..200)).map(|_| random.u64(..)));
            blocks.push(chain);
        }
        let chains: Vec<Chain> = blocks.iter().map(|b| Chain::of(b)).collect();
        // What each holder has of each chain; an engine has whole prefixes and evicts from their ends.
        let mut has = vec![vec![0usize; chains.len()]; HOLDERS as usize];
        let (mut ours, mut tree, mut by_position) =
            (Ours::new(HOLDERS), compressed(), positional());
        let mut columns = Columns::new();
        for step in 0..150 {
            let (holder, which) = (random.u64(..HOLDERS), random.usize(..chains.len()));
            let chain = &chains[which];
            let had = has[holder as usize][which];
            if random.u8(..3) > 0 {
                let to = random.usize(1..=chain.len());
                if to <= had {
                    continue;
                }
                ours.store(holder, chain, had, to);
                tree.store(holder, chain, had, to);
                by_position.store(holder, chain, had, to);
                for (i, other) in blocks.iter().enumerate() {
                    let shared = other
                        .iter()
                        .zip(&blocks[which][..to])
                        .take_while(|(a, b)| a == b)
                        .count();
                    has[holder as usize][i] = has[holder as usize][i].max(shared);
                }
            } else {
                // Only blocks that no other chain of the holder goes on from are evicted, and only those that are there.
                let needed = blocks
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| *i != which)
                    .map(|(i, other)| {
                        let shared = other
                            .iter()
                            .zip(&blocks[which])
                            .take_while(|(a, b)| a == b)
                            .count();
                        if has[holder as usize][i] > shared {
                            shared
                        } else {
                            0
                        }
                    })
                    .max()
                    .unwrap_or(0);
                if had <= needed {
                    continue;
                }
                let from = random.usize(needed..had);
                let part = Chain {
                    local: chain.local[..had].to_vec(),
                    sequence: chain.sequence[..had].to_vec(),
                };
                ours.remove(holder, &part, from);
                tree.remove(holder, &part, from);
                by_position.remove(holder, &part, from);
                for (i, other) in blocks.iter().enumerate() {
                    let shared = other
                        .iter()
                        .zip(&blocks[which])
                        .take_while(|(a, b)| a == b)
                        .count();
                    let held = &mut has[holder as usize][i];
                    if *held > from && shared > from {
                        *held = from;
                    }
                }
            }
            if step % 10 == 9 {
                tree.settle();
                by_position.settle();
                for (i, chain) in chains.iter().enumerate() {
                    let wanted: std::collections::BTreeMap<u64, u32> = (0..HOLDERS)
                        .map(|h| (h, has[h as usize][i] as u32))
                        .filter(|(_, n)| *n > 0)
                        .collect();
                    assert_eq!(
                        ours.scores(chain, &mut columns),
                        wanted,
                        "ours, seed {seed}, step {step}, chain {i}"
                    );
                    assert_eq!(
                        tree.scores(chain),
                        wanted,
                        "tree, seed {seed}, step {step}, chain {i}"
                    );
                    assert_eq!(
                        by_position.scores(chain),
                        wanted,
                        "positional, seed {seed}, step {step}, chain {i}"
                    );
                }
            }
        }
    }
}
