//! Measures a three-node cluster on loopback, all nodes in this process:
//! `cargo run --release -p quorate-raft --example figures [writes] [failover] [restart]` (all three by default).
//!
//! Durable write latency of one client, throughput of many, linearizable reads; the time from a leader's death to the next
//! acknowledged write; how long nodes take to restart with 100,000 log entries behind them.
#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use quorate_proto::{
    store::v1::{Command, PutResource, command::Op},
    v1::{Metadata, Resource, SettingSpec, resource::Spec},
};
use quorate_raft::{Cluster, Consistency, Options, Start};
use tokio::runtime::Runtime;

const WAIT: Duration = Duration::from_secs(30);
const KILLS: usize = 10;
const ENTRIES: u64 = 100_000;

struct Node {
    runtime: Runtime,
    cluster: Cluster,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn start(root: &Path, name: &str, address: &str, peers: Start) -> Node {
    let dir = root.join(name);
    let began = Instant::now();
    loop {
        let Ok(listener) = TcpListener::bind(address) else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        let mut options = Options::new(name, listener);
        options.data_dir = Some(dir.clone());
        options.start = peers.clone();
        let runtime = runtime();
        match runtime.block_on(Cluster::start(options)) {
            Ok(cluster) => return Node { runtime, cluster },
            Err(quorate_raft::Error::Locked(_)) if began.elapsed() < WAIT => {
                runtime.shutdown_background();
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn put(name: String, json: String) -> Command {
    let resource = Resource {
        metadata: Some(Metadata {
            name,
            ..Metadata::default()
        }),
        spec: Some(Spec::Setting(SettingSpec { json })),
    };
    Command {
        op: Some(Op::Put(PutResource {
            resource: Some(resource),
            expected_version: None,
        })),
        ..Command::default()
    }
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

fn writes(node: &Node, clients: usize, seconds: u64, what: &str) {
    let (cpu, first) = (cpu_seconds(), node.cluster.status().last_log_index);
    let until = Instant::now() + Duration::from_secs(seconds);
    let times: Vec<Duration> = node.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let cluster = node.cluster.clone();
            tasks.spawn(async move {
                let mut times = Vec::new();
                let mut number = 0;
                while Instant::now() < until {
                    let began = Instant::now();
                    cluster
                        .propose(put(
                            format!("c{client}.{}", number % 100),
                            format!("\"{}\"", "x".repeat(100)),
                        ))
                        .await
                        .unwrap();
                    times.push(began.elapsed());
                    number += 1;
                }
                times
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    });
    let used = (cpu_seconds() - cpu) / times.len() as f64;
    println!(
        "{what}, {clients} clients: {:.0}/s, {:.0} to an entry, {}, {:.0} us of CPU each in all",
        times.len() as f64 / seconds as f64,
        times.len() as f64 / (node.cluster.status().last_log_index - first) as f64,
        percentiles(times),
        used * 1e6
    );
}

fn reads(node: &Node, clients: usize, seconds: u64, what: &str) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let times: Vec<Duration> = node.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let cluster = node.cluster.clone();
            tasks.spawn(async move {
                let mut times = Vec::new();
                while Instant::now() < until {
                    let began = Instant::now();
                    cluster.read(Consistency::Linearizable).await.unwrap();
                    times.push(began.elapsed());
                }
                times
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    });
    println!(
        "{what}, {clients} readers: {:.0}/s, {}",
        times.len() as f64 / seconds as f64,
        percentiles(times)
    );
}

fn leader(nodes: &Nodes) -> usize {
    let began = Instant::now();
    while began.elapsed() < WAIT {
        if let Some(at) = nodes
            .iter()
            .position(|node| node.as_ref().is_some_and(|node| node.cluster.is_leader()))
        {
            return at;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no leader");
}

/// CPU time that this process has used, in seconds (from `/proc/self/stat`, in ticks of 10 ms).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |phase: &str| wanted.is_empty() || wanted.iter().any(|name| name == phase);
    let root = tempfile::tempdir().unwrap();
    let addresses: Vec<String> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener| listener.local_addr().unwrap().to_string())
        .collect();
    let mut nodes: Nodes = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let peers = if index == 0 {
            Start::Bootstrap
        } else {
            Start::Join(vec![addresses[0].clone()])
        };
        let node = start(root.path(), &format!("n{index}"), address, peers);
        node.runtime.block_on(node.cluster.ready(WAIT)).unwrap();
        nodes.push(Some(node));
    }
    if wants("writes") {
        steady(&nodes);
    }
    if wants("failover") {
        failover(&mut nodes, root.path(), &addresses);
    }
    if wants("restart") {
        // One command to an entry, then as many as 64 clients make it.
        for clients in [2, 64] {
            restart(&mut nodes, root.path(), &addresses, clients);
        }
    }
    for node in nodes.into_iter().flatten() {
        node.runtime.shutdown_background();
    }
}

type Nodes = Vec<Option<Node>>;

fn steady(nodes: &Nodes) {
    let at = leader(nodes);
    let lead = nodes[at].as_ref().unwrap();
    let other = nodes[(at + 1) % 3].as_ref().unwrap();
    writes(lead, 1, 2, "warm-up");
    writes(lead, 1, 5, "writes at the leader");
    writes(other, 1, 5, "writes at a follower");
    writes(lead, 64, 5, "writes at the leader");
    writes(other, 64, 5, "writes at a follower");
    writes(lead, 512, 5, "writes at the leader");
    reads(lead, 1, 2, "linearizable reads at the leader");
    reads(other, 1, 2, "linearizable reads at a follower");
    reads(other, 64, 2, "linearizable reads at a follower");
    let before = cpu_seconds();
    std::thread::sleep(Duration::from_secs(5));
    println!(
        "idle: {:.3} cores for all three nodes",
        (cpu_seconds() - before) / 5.0
    );
}

fn failover(nodes: &mut Nodes, root: &Path, addresses: &[String]) {
    let mut gaps = Vec::new();
    for _ in 0..KILLS {
        let at = leader(nodes);
        let survivor = nodes[(at + 1) % 3].as_ref().unwrap().cluster.clone();
        let killed = nodes[at].take().unwrap();
        let began = Instant::now();
        killed.runtime.shutdown_background();
        drop(killed.cluster);
        let asking = runtime();
        asking
            .block_on(survivor.propose_within(put("failover".into(), "1".into()), WAIT))
            .unwrap();
        gaps.push(began.elapsed());
        asking.shutdown_background();
        drop(survivor);
        let node = start(root, &format!("n{at}"), &addresses[at], Start::Resume);
        node.runtime.block_on(node.cluster.ready(WAIT)).unwrap();
        nodes[at] = Some(node);
    }
    println!(
        "leader killed, until a write succeeds, {KILLS} times: {}",
        percentiles(gaps)
    );
}

fn restart(nodes: &mut Nodes, root: &Path, addresses: &[String], clients: u64) {
    let at = leader(nodes);
    let lead = nodes[at].as_ref().unwrap();
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let first = lead.cluster.status().last_log_index;
    lead.runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let (cluster, stop) = (lead.cluster.clone(), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    cluster
                        .propose(put(format!("r{client}.{number}"), "true".into()))
                        .await
                        .unwrap();
                    number = (number + 1) % 1000;
                }
            });
        }
        while lead.cluster.status().last_log_index < first + ENTRIES
            && began.elapsed() < Duration::from_secs(150)
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.store(true, Ordering::Relaxed);
        tasks.join_all().await;
    });
    let status = lead.cluster.status();
    println!(
        "{} entries written by {clients} clients in {:.1} s",
        status.last_log_index - first,
        began.elapsed().as_secs_f64()
    );
    let follower = (at + 1) % 3;
    let killed = nodes[follower].take().unwrap();
    killed.runtime.shutdown_background();
    drop(killed.cluster);
    let began = Instant::now();
    let node = start(
        root,
        &format!("n{follower}"),
        &addresses[follower],
        Start::Resume,
    );
    let started = began.elapsed();
    node.runtime.block_on(node.cluster.ready(WAIT)).unwrap();
    println!(
        "restart of a follower with {} log entries behind it: started {:.2} s, up to date {:.2} s",
        status.last_log_index,
        started.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    nodes[follower] = Some(node);
    for node in nodes.iter_mut() {
        node.take().unwrap().runtime.shutdown_background();
    }
    let began = Instant::now();
    for (index, address) in addresses.iter().enumerate() {
        nodes[index] = Some(start(root, &format!("n{index}"), address, Start::Resume));
    }
    let one = nodes[0].as_ref().unwrap();
    one.runtime
        .block_on(
            one.cluster
                .propose_within(put("cold".into(), "1".into()), WAIT),
        )
        .unwrap();
    println!(
        "cold start of all three, one after the other, to the first write: {:.2} s",
        began.elapsed().as_secs_f64()
    );
}
