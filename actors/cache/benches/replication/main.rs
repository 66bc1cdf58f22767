//! The map under load, from engines' sockets to every router's index: three routers in this process (loopback gRPC, data directories), the
//! engines beside them; then one router is killed and started again.
//!
//! `cargo bench -p quorate-cache --bench replication -- [blocks=10000000] [rate=150000] [engines=100] [seconds=20]`. Blocks in the map, block
//! operations a second of all engines, how long. What is printed of CPU is of each router's own threads.

mod engines;
mod figures;
mod nodes;

use engines::{Fleet, Told};
use nodes::{Node, follow};
use quorate_cache::index::{CacheIndex, Columns};
use quorate_raft::Start;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const ROUTERS: usize = 3;

struct Options {
    blocks: usize,
    rate: f64,
    engines: usize,
    seconds: u64,
}

fn options() -> Options {
    let arguments = std::env::args().skip(1);
    let mut values: BTreeMap<String, f64> = arguments
        .filter_map(|a| {
            let (name, value) = a.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect();
    let mut of = |name: &str, usual: f64| values.remove(name).unwrap_or(usual);
    let options = Options {
        blocks: of("blocks", 1e7) as usize,
        rate: of("rate", 150_000.0),
        engines: of("engines", 100.0).max(3.0) as usize,
        seconds: of("seconds", 20.0).max(1.0) as u64,
    };
    assert!(values.is_empty(), "not known: {values:?}");
    options
}

/// Watches blocks on their way from the engine until all routers of the moment have them.
struct Watch {
    routers: Arc<Mutex<Vec<Arc<CacheIndex>>>>,
    times: Arc<Mutex<Vec<Duration>>>,
}

impl Watch {
    fn start(told: mpsc::Receiver<Told>) -> Self {
        let routers: Arc<Mutex<Vec<Arc<CacheIndex>>>> = Arc::default();
        let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let watch = Self {
            routers: Arc::clone(&routers),
            times: Arc::clone(&times),
        };
        let looking = move || {
            let space = engines::space();
            let mut columns = Columns::new();
            let mut waiting: Vec<Told> = Vec::new();
            loop {
                std::thread::sleep(Duration::from_micros(500));
                waiting.extend(told.try_iter());
                let routers = routers.lock().expect("no panic").clone();
                waiting.retain(|told| {
                    let key = [space.key_of_hash(told.hash)];
                    let seen = routers.iter().all(|index| {
                        index.lookup(&key, &mut columns);
                        columns.longest() > 0
                    });
                    if seen {
                        times.lock().expect("no panic").push(told.at.elapsed());
                    }
                    !seen
                });
            }
        };
        std::thread::Builder::new()
            .name("watch".into())
            .spawn(looking)
            .expect("a thread");
        watch
    }

    fn of(&self, nodes: &[Node]) {
        let indexes = nodes.iter().map(|node| Arc::clone(node.index()));
        *self.routers.lock().expect("no panic") = indexes.collect();
    }

    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut self.times.lock().expect("no panic"))
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(300), "{what}: never");
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

fn operations(node: &Node) -> u64 {
    let stats = node.index().stats();
    stats.added + stats.removed
}

/// Runs the load for some seconds and says what it took.
fn measure(what: &str, nodes: &[Node], seconds: u64, watch: &Watch) {
    watch.take();
    let (cpu, began) = (figures::cpu(), Instant::now());
    let before: Vec<u64> = nodes.iter().map(operations).collect();
    std::thread::sleep(Duration::from_secs(seconds));
    let (used, time) = (figures::cpu(), began.elapsed().as_secs_f64());
    let rates: Vec<String> = nodes
        .iter()
        .zip(before)
        .map(|(node, before)| format!("{:.0}", (operations(node) - before) as f64 / time))
        .collect();
    println!("{what}: {} operations/s applied", rates.join(", "));
    println!(
        "  told until on all routers: {}",
        figures::quantiles(&mut watch.take())
    );
    let cores = used.iter().filter_map(|(name, used)| {
        let cores = (used - cpu.get(name).unwrap_or(&0.0)) / time;
        (cores >= 0.005).then(|| format!("{name} {cores:.2}"))
    });
    println!("  cores: {}", cores.collect::<Vec<_>>().join(", "));
}

/// Whether all replicas have the same digest as of one entry of the log: each notes it when it applies a check.
fn digests_agree(nodes: &[Node]) -> bool {
    let noted = || {
        nodes
            .iter()
            .map(|n| n.replica.next_check())
            .collect::<Vec<_>>()
    };
    let before = noted();
    nodes[0].propose(nodes[0].replica.next_check());
    let mut last = before.clone();
    until("a check", || {
        last = noted();
        last.iter().zip(&before).all(|(now, before)| now != before)
            && last.iter().all(|n| n.get(..9) == last[0].get(..9))
    });
    last.iter().all(|noted| *noted == last[0])
}

fn main() {
    let options = options();
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = vec![Node::start(0, "127.0.0.1:0", dir.path(), Start::Bootstrap)];
    let peer = vec![nodes[0].cluster.peer_address().to_owned()];
    for number in 1..ROUTERS {
        let join = Start::Join(peer.clone());
        nodes.push(Node::start(number, "127.0.0.1:0", dir.path(), join));
    }
    let address = nodes[ROUTERS - 1].cluster.peer_address().to_owned();

    let beside = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("engines")
        .enable_all()
        .build()
        .expect("a runtime");
    let (pace, paced) = watch::channel(0.0);
    let (told, heard) = mpsc::channel();
    let watching = Watch::start(heard);
    let fleet = Arc::new(Fleet {
        pace: paced,
        blocks: options.blocks / options.engines,
        filled: AtomicU64::new(0),
        told,
    });
    let ports: Vec<(u64, u16)> = (0..options.engines as u64)
        .map(|n| (n, beside.block_on(engines::start(n, Arc::clone(&fleet)))))
        .collect();
    let began = Instant::now();
    for (number, node) in nodes.iter().enumerate() {
        let own = ports.iter().skip(number).step_by(ROUTERS).copied();
        follow(node, &own.collect::<Vec<_>>(), options.engines as u64);
    }
    let all = (fleet.blocks * options.engines) as u64;
    until("the maps are full", || {
        let full = |node: &Node| node.index().stats().pairs == all;
        fleet.filled.load(Ordering::Relaxed) == options.engines as u64 && nodes.iter().all(full)
    });
    println!(
        "{} engines, {all} blocks at three routers after {:.1} s; index {} MiB, process {} MiB",
        options.engines,
        began.elapsed().as_secs_f64(),
        nodes[0].index().stats().bytes >> 20,
        figures::resident() >> 20
    );

    watching.of(&nodes);
    pace.send_replace(options.rate / options.engines as f64);
    std::thread::sleep(Duration::from_secs(2));
    measure("three routers", &nodes, options.seconds, &watching);
    println!("  digests equal: {}", digests_agree(&nodes));

    // The last router's engines are not heard meanwhile; the others say as much as all did.
    if let Some(last) = nodes.pop() {
        watching.of(&nodes);
        let heard = options.engines - ports.iter().skip(ROUTERS - 1).step_by(ROUTERS).count();
        pace.send_replace(options.rate / heard as f64);
        last.kill();
    }
    std::thread::sleep(Duration::from_secs(3));
    measure("one of them killed", &nodes, 3, &watching);
    let began = Instant::now();
    let again = Node::start(ROUTERS - 1, &address, dir.path(), Start::Resume);
    let warm = began.elapsed();
    nodes.push(again);
    let agree = digests_agree(&nodes);
    println!(
        "started again under load: warm after {:.2} s with {} blocks, digests compared after {:.2} s and equal: {agree}",
        warm.as_secs_f64(),
        nodes[ROUTERS - 1].index().stats().pairs,
        began.elapsed().as_secs_f64()
    );
    println!(
        "  told until on the others meanwhile: {}",
        figures::quantiles(&mut watching.take())
    );
    println!("process {} MiB", figures::resident() >> 20);
    assert!(agree, "the maps differ");
    for node in nodes {
        node.kill();
    }
    beside.shutdown_background();
}
