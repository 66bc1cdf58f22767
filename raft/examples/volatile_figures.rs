//! Measures a volatile group of three nodes on loopback, all in this process:
//! `cargo run --release -p quorate-raft --example volatile_figures`.
//!
//! Commit latency and CPU at the rate that KV-cache deltas come at (60 entries of 20 KiB a second), the most that goes
//! through, what idle groups cost, and how long a new member takes to get 500 MB.
#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorate_raft::{Cluster, Frozen, Install, Options, Replica, Start, VolatileGroup};
use tokio::runtime::Runtime;

const WAIT: Duration = Duration::from_secs(60);
const ENTRY: usize = 20 << 10;
const CHUNK: usize = 1 << 20;

/// Keeps the number of commands, and a ballast that snapshots carry.
#[derive(Clone, Default)]
struct Ballast {
    applied: Arc<AtomicU64>,
    chunks: Arc<Mutex<Vec<Bytes>>>,
}

struct Chunks(std::vec::IntoIter<Bytes>);
struct Taking(Ballast, Vec<Bytes>);

impl Replica for Ballast {
    fn apply(&self, _: u64, _: &[u8]) -> Bytes {
        self.applied.fetch_add(1, Ordering::Relaxed);
        Bytes::new()
    }
    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Chunks(self.chunks.lock().unwrap().clone().into_iter()))
    }
    fn install(&self) -> Box<dyn Install> {
        Box::new(Taking(self.clone(), Vec::new()))
    }
    fn reset(&self) {
        self.chunks.lock().unwrap().clear();
    }
}

impl Frozen for Chunks {
    fn next_chunk(&mut self) -> Option<Bytes> {
        self.0.next()
    }
}

impl Install for Taking {
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.1.push(Bytes::copy_from_slice(chunk));
        Ok(())
    }
    fn finish(self: Box<Self>) -> Result<(), String> {
        *self.0.chunks.lock().unwrap() = self.1;
        Ok(())
    }
}

struct Node {
    runtime: Runtime,
    cluster: Cluster,
}

fn start(name: &str, start: Start) -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut options = Options::new(name, TcpListener::bind("127.0.0.1:0").unwrap());
    options.start = start;
    let cluster = runtime.block_on(Cluster::start(options)).unwrap();
    runtime.block_on(cluster.ready(WAIT)).unwrap();
    Node { runtime, cluster }
}

fn open(node: &Node, replica: &Ballast) -> VolatileGroup {
    let replica = Arc::new(replica.clone());
    let group = node.cluster.volatile_group("cache", replica);
    node.runtime.block_on(group).unwrap()
}

/// CPU time that this process has used, in seconds (from `/proc/self/stat`, in ticks of 10 ms).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: Vec<f64> = fields
        .skip(11)
        .take(2)
        .map(|f| f.parse().unwrap())
        .collect();
    ticks.iter().sum::<f64>() / 100.0
}

fn cores(what: &str, work: impl FnOnce()) {
    let (cpu, began) = (cpu_seconds(), Instant::now());
    work();
    let used = (cpu_seconds() - cpu) / began.elapsed().as_secs_f64();
    println!("{what}: {used:.3} cores for all three nodes");
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

/// Entries at a steady rate for some seconds, from one node after the other.
fn steady(nodes: &[Node], groups: &[VolatileGroup], rate: u32, seconds: u32) {
    let times = Arc::new(Mutex::new(Vec::new()));
    let interval = Duration::from_secs(1) / rate;
    nodes[0].runtime.block_on(async {
        let mut ticks = tokio::time::interval(interval);
        for n in 0..rate * seconds {
            ticks.tick().await;
            let (group, times) = (groups[n as usize % 3].clone(), Arc::clone(&times));
            nodes[n as usize % 3].runtime.spawn(async move {
                let began = Instant::now();
                group.propose(Bytes::from(vec![7; ENTRY])).await.unwrap();
                times.lock().unwrap().push(began.elapsed());
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
    let times = std::mem::take(&mut *times.lock().unwrap());
    println!("{rate} entries of 20 KiB a second: {}", percentiles(times));
}

/// As many as go through with this many under way at each of the nodes.
fn most(nodes: &[Node], groups: &[VolatileGroup], under_way: usize, seconds: u64) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let cpu = cpu_seconds();
    let mut tasks = Vec::new();
    for (node, group) in nodes.iter().zip(groups) {
        for _ in 0..under_way {
            let group = group.clone();
            tasks.push(node.runtime.spawn(async move {
                let mut times = Vec::new();
                let entry = Bytes::from(vec![7; ENTRY]);
                while Instant::now() < until {
                    let began = Instant::now();
                    group.propose(entry.clone()).await.unwrap();
                    times.push(began.elapsed());
                }
                times
            }));
        }
    }
    let times: Vec<Duration> = nodes[0].runtime.block_on(async {
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all
    });
    let rate = times.len() as f64 / seconds as f64;
    println!(
        "{under_way} under way at each node: {rate:.0} entries/s ({:.0} MiB/s), {}, {:.2} cores in all",
        rate * ENTRY as f64 / 1048576.0,
        percentiles(times),
        (cpu_seconds() - cpu) / seconds as f64
    );
}

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let first = start("n0", Start::Bootstrap);
    let peers = Start::Join(vec![first.cluster.peer_address().to_owned()]);
    let nodes = [
        first,
        start("n1", peers.clone()),
        start("n2", peers.clone()),
    ];
    let rest = || std::thread::sleep(Duration::from_secs(5));
    cores("idle, control group alone", rest);
    let replica = Ballast::default();
    let groups: Vec<VolatileGroup> = nodes.iter().map(|node| open(node, &replica)).collect();
    for (node, group) in nodes.iter().zip(&groups) {
        node.runtime
            .block_on(async { tokio::time::timeout(WAIT, group.warm()).await.unwrap() });
    }
    std::thread::sleep(Duration::from_secs(2));
    cores("idle, with a volatile group", rest);
    steady(&nodes, &groups, 60, 2);
    cores("load", || steady(&nodes, &groups, 60, 15));
    for under_way in [1, 4, 16] {
        most(&nodes, &groups, under_way, 5);
    }
    // All three share one replica here, so the ballast is put into it directly.
    *replica.chunks.lock().unwrap() = vec![Bytes::from(vec![1; CHUNK]); 500];
    let late = start("n3", peers);
    let fresh = Ballast::default();
    let began = Instant::now();
    let group = open(&late, &fresh);
    late.runtime
        .block_on(async { tokio::time::timeout(WAIT, group.warm()).await.unwrap() });
    assert_eq!(fresh.chunks.lock().unwrap().len(), 500);
    println!(
        "a new member is warm with 500 MiB after {:.2} s",
        began.elapsed().as_secs_f64()
    );
    let Node { runtime, cluster } = late;
    runtime.block_on(cluster.shutdown());
    for node in nodes {
        node.runtime.shutdown_background();
    }
    runtime.shutdown_background();
}
