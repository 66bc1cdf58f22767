//! Random kills and restarts of the members of a volatile group under load: no member ever holds anything but a part of the
//! group's history, and what an epoch acknowledged is there as long as the epoch is.

#![allow(clippy::unwrap_used)]

#[path = "support/history.rs"]
mod history;
mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use history::*;
use support::*;

const ROUNDS: usize = 8;
const SEED: u64 = 20_261_123;

/// What a writer was told: the number, and the epoch if that was the same before and after.
type Told = Vec<(u64, Option<u64>)>;

struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Told>,
}

/// Writes one number after the other, each through another member that is alive.
fn writer(parts: Arc<Mutex<Vec<Part>>>) -> Writer {
    let (stop, written) = (
        Arc::new(AtomicBool::new(false)),
        Arc::<AtomicU64>::default(),
    );
    let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
    let thread = std::thread::spawn(move || {
        let runtime = runtime();
        let mut told = Vec::new();
        let mut number = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            let part = {
                let parts = parts.lock().unwrap();
                parts[number as usize % parts.len()].clone()
            };
            let before = part.status().epoch;
            // A killed node's runtime answers nobody.
            let proposed = part.group.propose(command(number, 2000));
            let answer = runtime.block_on(async {
                tokio::time::timeout(Duration::from_millis(1500), proposed).await
            });
            if let Ok(Ok(_)) = answer {
                let after = part.status().epoch;
                told.push((number, (before == after).then_some(after)));
                count.fetch_add(1, Ordering::Relaxed);
            }
            number += 1;
        }
        told
    });
    Writer {
        stop,
        written,
        thread,
    }
}

/// The numbers of each part beside the epoch they belong to, if that did not change meanwhile.
fn sample(parts: &[Part]) -> Vec<(u64, Vec<u64>)> {
    let held = |part: &Part| {
        let before = part.status();
        let numbers = part.history.numbers();
        let after = part.status();
        (before.contents_epoch == after.contents_epoch && before.epoch == after.epoch)
            .then_some((after.contents_epoch, numbers))
    };
    parts.iter().filter_map(held).collect()
}

/// Within an epoch all members hold the same history, as far as they have come.
fn check_prefixes(parts: &[Part]) {
    let mut longest: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (epoch, numbers) in sample(parts) {
        let known = longest.entry(epoch).or_default();
        let common = known.len().min(numbers.len());
        assert_eq!(known[..common], numbers[..common], "histories differ");
        if numbers.len() > known.len() {
            *known = numbers;
        }
    }
}

#[test]
fn histories_are_one_whatever_is_killed() {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut fleet = Fleet::new(3);
    let mut parts = all_warm(&fleet);
    let alive = Arc::new(Mutex::new(parts.clone()));
    let writer = writer(Arc::clone(&alive));
    let mut last_epoch = 1;
    for round in 0..ROUNDS {
        let before = writer.written.load(Ordering::Relaxed);
        until("writes go on", || {
            check_prefixes(&parts);
            (writer.written.load(Ordering::Relaxed) > before + 30).then_some(())
        });
        // Every third time two at once, which costs the epoch.
        let victims = if round % 3 == 2 { 2 } else { 1 };
        let killed: Vec<_> = (0..victims)
            .map(|_| {
                let victim = random.usize(..parts.len());
                parts.remove(victim);
                alive.lock().unwrap().clone_from(&parts);
                fleet.nodes.remove(victim).kill()
            })
            .collect();
        std::thread::sleep(Duration::from_millis(random.u64(..300)));
        check_prefixes(&parts);
        let left = parts[0].history.numbers();
        for node in killed {
            let node = fleet.restart(node);
            parts.push(Part::open(node));
        }
        for part in &parts {
            part.wait_warm();
        }
        alive.lock().unwrap().clone_from(&parts);
        settled(&parts, 3);
        if victims == 2 {
            let kept = parts[0].history.numbers();
            assert!(kept.starts_with(&left), "the survivor's contents are gone");
        }
        let epoch = parts[0].status().epoch;
        assert!(epoch >= last_epoch);
        last_epoch = epoch;
    }
    writer.stop.store(true, Ordering::Relaxed);
    let told = writer.thread.join().unwrap();
    let held = equal(&parts);
    let mut once = held.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), held.len(), "a command was applied twice");
    assert!(last_epoch > 1, "two at once cost the epoch");
    // Nothing that the last epoch acknowledged is missing; of the epochs before only the end may be.
    for (number, epoch) in told {
        if epoch == Some(last_epoch) {
            assert!(
                once.binary_search(&number).is_ok(),
                "{number} was acknowledged and is gone"
            );
        }
    }
}
