//! Several routers of one pool, simulated: skewed arrivals, delayed messages, deaths. One clock, one seeded generator.

use super::PoolShare;
use super::message::Message;
use crate::config::{
    BandConfig, ConcurrencyMode, FairnessPolicy, FlowControlConfig, SaturationDetector,
};
use crate::flow::saturation::EndpointLoad;
use crate::flow::{Admission, FlowControl, FlowRequest, Permit};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// Places of the pool: two endpoints of 20.
const LIMIT: u64 = 40;

struct Random(u64);

impl Random {
    /// Below `n` (xorshift64*).
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

struct Waits {
    tenant: usize,
    priority: i32,
    since: u64,
    admission: Admission,
}

struct Node {
    share: PoolShare,
    waiting: Vec<Waits>,
    running: Vec<(u64, Permit)>,
}

struct Sim {
    clock: Arc<AtomicU64>,
    nodes: BTreeMap<u64, Node>,
    wires: BTreeMap<(u64, u64), VecDeque<(u64, Message)>>,
    random: Random,
    most: u64,
    /// Dispatched by tenant since the last reset.
    served: BTreeMap<usize, u64>,
    /// Longest wait by priority since the last reset.
    longest: BTreeMap<i32, u64>,
    in_flight_sum: u64,
    steps: u64,
    /// Running requests that gave way, by router.
    revoked: BTreeMap<u64, u64>,
    /// The shortest answer takes this long.
    shortest: u64,
}

fn config() -> FlowControlConfig {
    FlowControlConfig {
        saturation: SaturationDetector::Concurrency {
            max_concurrency: LIMIT / 2,
            max_token_concurrency: 0,
            mode: ConcurrencyMode::Requests,
            headroom: 0.0,
        },
        default_band: BandConfig {
            fairness: FairnessPolicy::RoundRobin,
            max_requests: u64::MAX,
            ..BandConfig::default()
        },
        default_negative_band: BandConfig {
            max_requests: u64::MAX,
            ..BandConfig::default()
        },
        default_request_ttl: None,
        ..FlowControlConfig::default()
    }
}

impl Sim {
    fn new(nodes: u64, seed: u64) -> Self {
        Self::with(nodes, seed, &config())
    }

    fn with(nodes: u64, seed: u64, config: &FlowControlConfig) -> Self {
        let clock = Arc::new(AtomicU64::new(SECOND));
        let mut sim = Self {
            clock: Arc::clone(&clock),
            nodes: BTreeMap::new(),
            wires: BTreeMap::new(),
            random: Random(seed),
            most: 0,
            served: BTreeMap::new(),
            longest: BTreeMap::new(),
            in_flight_sum: 0,
            steps: 0,
            revoked: BTreeMap::new(),
            shortest: 50 * MS,
        };
        for id in 1..=nodes {
            let read = Arc::clone(&clock);
            let flow =
                FlowControl::with_clock("p", config.clone(), Arc::new(move || read.load(SeqCst)));
            flow.set_endpoints(vec![EndpointLoad::default(); 2]);
            let node = Node {
                share: PoolShare::new(id, flow),
                waiting: Vec::new(),
                running: Vec::new(),
            };
            sim.nodes.insert(id, node);
        }
        sim.elect();
        sim
    }

    /// Everybody sees who lives; the lowest id leads.
    fn elect(&mut self) {
        let live: BTreeSet<u64> = self.nodes.keys().copied().collect();
        let leader = live.first().copied().unwrap_or(0);
        for node in self.nodes.values_mut() {
            node.share.set_routers(leader, live.clone());
        }
    }

    fn kill(&mut self, id: u64) {
        self.nodes.remove(&id);
        self.wires.retain(|(from, to), _| *from != id && *to != id);
        self.elect();
    }

    fn now(&self) -> u64 {
        self.clock.load(SeqCst)
    }

    /// A client asks a router; where that is dead, another one.
    fn ask(&mut self, node: u64, tenant: usize, priority: i32) {
        let live = self.nodes.keys().copied().find(|id| *id >= node);
        let Some(node) = live.or_else(|| self.nodes.keys().copied().next()) else {
            return;
        };
        let name = format!("tenant-{tenant}");
        let since = self.now();
        if let Some(node) = self.nodes.get_mut(&node) {
            let admission = node.share.flow().admit(FlowRequest {
                fairness_id: &name,
                priority,
                bytes: 100,
                ..FlowRequest::default()
            });
            node.waiting.push(Waits {
                tenant,
                priority,
                since,
                admission,
            });
        }
    }

    fn in_flight(&self) -> u64 {
        let of = |n: &Node| n.share.flow().status().in_flight.requests;
        self.nodes.values().map(of).sum()
    }

    /// One millisecond: messages arrive, streams end, requests go.
    fn step(&mut self) {
        let now = self.clock.fetch_add(MS, SeqCst) + MS;
        for ((from, to), wire) in &mut self.wires {
            while wire.front().is_some_and(|(at, _)| *at <= now) {
                let Some((_, message)) = wire.pop_front() else {
                    break;
                };
                if let Some(node) = self.nodes.get_mut(to) {
                    node.share.hear(*from, message);
                }
            }
        }
        for (id, node) in &mut self.nodes {
            node.running.retain(|(until, permit)| {
                let cx = &mut Context::from_waker(Waker::noop());
                let revoked = permit.poll_revoked(cx).is_ready();
                if revoked {
                    *self.revoked.entry(*id).or_default() += 1;
                }
                *until > now && !revoked
            });
            if now.is_multiple_of(50 * MS) {
                node.share.tick();
            }
            for (to, message) in node.share.step() {
                let wire = self.wires.entry((*id, to)).or_default();
                let at = now + self.random.below(4) * MS;
                // Streams keep their order.
                let at = wire.back().map_or(at, |(last, _)| at.max(*last));
                wire.push_back((at, message));
            }
            let mut still = Vec::new();
            for mut w in std::mem::take(&mut node.waiting) {
                let cx = &mut Context::from_waker(Waker::noop());
                match Pin::new(&mut w.admission).poll(cx) {
                    Poll::Ready(Ok(permit)) => {
                        let takes = self.shortest + self.random.below(100) * MS;
                        node.running.push((now + takes, permit));
                        *self.served.entry(w.tenant).or_default() += 1;
                        let longest = self.longest.entry(w.priority).or_default();
                        *longest = (*longest).max(now - w.since);
                    }
                    Poll::Ready(Err(outcome)) => panic!("refused: {outcome}"),
                    Poll::Pending => still.push(w),
                }
            }
            node.waiting = still;
        }
        let in_flight = self.in_flight();
        self.most = self.most.max(in_flight);
        self.in_flight_sum += in_flight;
        self.steps += 1;
    }

    fn reset(&mut self) {
        self.served.clear();
        self.longest.clear();
        (self.most, self.in_flight_sum, self.steps) = (0, 0, 0);
    }

    fn mean_in_flight(&self) -> f64 {
        self.in_flight_sum as f64 / self.steps as f64
    }
}

fn jain(served: &BTreeMap<usize, u64>) -> f64 {
    let sum: f64 = served.values().map(|n| *n as f64).sum();
    let squares: f64 = served.values().map(|n| (*n as f64).powi(2)).sum();
    sum * sum / (served.len() as f64 * squares)
}

/// Three tenants that want the same, each through another router and one of them through all; twice what the pool can do.
fn skewed(sim: &mut Sim, milliseconds: u64) {
    for ms in 0..milliseconds {
        // 0.4 requests per ms and place-time of 100 ms fill the pool; each tenant alone asks for two thirds of that.
        if ms.is_multiple_of(4) {
            let through = [1, 2, 1 + sim.random.below(3)];
            for (tenant, node) in through.into_iter().enumerate() {
                sim.ask(node, tenant, 0);
            }
        }
        sim.step();
    }
}

#[test]
fn the_limit_and_fairness_hold_for_the_pool_as_a_whole() {
    for seed in 1..=3 {
        let mut sim = Sim::new(3, seed);
        skewed(&mut sim, 1_000);
        sim.reset();
        skewed(&mut sim, 6_000);
        assert!(sim.most <= LIMIT, "seed {seed}: {} in flight", sim.most);
        assert!(jain(&sim.served) > 0.95, "seed {seed}: {:?}", sim.served);
        let mean = sim.mean_in_flight();
        assert!(
            mean > 0.93 * LIMIT as f64,
            "seed {seed}: {mean} in flight on average"
        );
    }
}

#[test]
fn a_pool_with_places_to_spare_costs_no_wait() {
    let mut sim = Sim::new(3, 7);
    for _ in 0..100 {
        sim.step();
    }
    sim.reset();
    for ms in 0..5_000u64 {
        // About five at a time, of the thirteen that this router may have without asking.
        if ms.is_multiple_of(20) {
            sim.ask(2, 0, 0);
        }
        sim.step();
    }
    assert_eq!(
        sim.longest.get(&0),
        Some(&MS),
        "each goes in the step in which it came"
    );
    assert!(sim.nodes.values().all(|n| n.waiting.is_empty()));
}

#[test]
fn a_high_band_does_not_wait_for_a_low_one_that_is_queued_elsewhere() {
    let mut sim = Sim::new(3, 11);
    for ms in 0..5_000u64 {
        // The low band alone asks for twice the pool, on routers 1 and 2.
        sim.ask(1 + ms % 2, 0, -1);
        if ms > 2_000 && ms.is_multiple_of(20) {
            sim.ask(3, 1, 10);
        }
        sim.step();
    }
    let high = sim.longest.get(&10).copied().unwrap_or(u64::MAX);
    // A place becomes free every 2.5 ms; the rest is the way there and back.
    assert!(high < 40 * MS, "{high} µs");
    assert!(sim.most <= LIMIT);
}

/// Tells a router who shares the pool, as it sees it, and who of them is the dispatcher.
fn sees(sim: &mut Sim, node: u64, leader: u64, routers: &[u64]) {
    if let Some(node) = sim.nodes.get_mut(&node) {
        let routers = routers.iter().copied().collect();
        node.share.set_routers(leader, routers);
    }
}

#[test]
fn routers_that_find_each_other_one_by_one_do_not_add_up() {
    for seed in 1..=5 {
        let mut sim = Sim::new(3, seed);
        sim.shortest = 10 * SECOND;
        // Streams open one by one: 1 is alone with its clients, 2 follows it, 3 follows itself.
        sees(&mut sim, 1, 1, &[1]);
        sees(&mut sim, 2, 1, &[1, 2]);
        sees(&mut sim, 3, 3, &[1, 3]);
        for _ in 0..LIMIT / 2 {
            sim.ask(1, 0, 0);
        }
        let steps = |sim: &mut Sim, count| (0..count).for_each(|_| sim.step());
        steps(&mut sim, 20);
        sees(&mut sim, 1, 1, &[1, 2]);
        steps(&mut sim, 20);
        for _ in 0..2 * LIMIT {
            sim.ask(2, 1, 0);
            sim.ask(3, 2, 0);
        }
        steps(&mut sim, 40);
        assert_eq!(sim.in_flight(), LIMIT, "seed {seed}: 1 and 2 fill the pool");
        // 3 hears of 2 only now, and what 1 has some time before what 2 has.
        sees(&mut sim, 3, 3, &[1, 2, 3]);
        steps(&mut sim, 20);
        sees(&mut sim, 1, 3, &[1, 2, 3]);
        steps(&mut sim, 20);
        sees(&mut sim, 2, 3, &[1, 2, 3]);
        steps(&mut sim, 200);
        assert_eq!(sim.most, LIMIT, "seed {seed}");
    }
}

#[test]
fn the_lowest_band_gives_way_on_whichever_router_it_runs() {
    let evicting = FlowControlConfig {
        eviction: true,
        ..config()
    };
    for seed in 1..=3 {
        let mut sim = Sim::with(3, seed, &evicting);
        sim.shortest = 10 * SECOND;
        for _ in 0..100 {
            sim.step();
        }
        // The pool is full of what may be dropped: half of it on router 1, the lower half on router 2.
        for _ in 0..LIMIT / 2 {
            sim.ask(1, 0, -1);
            sim.ask(2, 0, -2);
        }
        for _ in 0..30 {
            sim.step();
        }
        assert_eq!(sim.in_flight(), LIMIT, "seed {seed}");
        sim.reset();
        for _ in 0..5 {
            sim.ask(3, 1, 10);
        }
        // One place at a time, each the way there and back twice.
        for _ in 0..100 {
            sim.step();
        }
        let served = sim.served.get(&1).copied();
        assert_eq!(served, Some(5), "seed {seed}");
        assert!(sim.most <= LIMIT, "seed {seed}: {} in flight", sim.most);
        let only_the_lowest: BTreeMap<_, _> = [(2, 5)].into();
        assert_eq!(sim.revoked, only_the_lowest, "seed {seed}");
        // A band never revokes its equals or betters.
        for _ in 0..3 * LIMIT {
            sim.ask(3, 1, -2);
        }
        for _ in 0..100 {
            sim.step();
        }
        assert_eq!(sim.revoked, only_the_lowest, "seed {seed}");
    }
}

#[test]
fn shares_of_the_dead_are_taken_over_within_a_second() {
    for (seed, victims) in [(1, [3, 1]), (2, [1, 2]), (3, [2, 3])] {
        let mut sim = Sim::new(3, seed);
        skewed(&mut sim, 2_000);
        for victim in victims {
            sim.kill(victim);
            skewed(&mut sim, 600);
            sim.reset();
            skewed(&mut sim, 1_000);
            let mean = sim.mean_in_flight();
            assert!(
                mean > 0.9 * LIMIT as f64,
                "seed {seed}, {victim} dead: {mean}"
            );
            assert!(
                sim.most <= LIMIT,
                "seed {seed}, {victim} dead: {}",
                sim.most
            );
        }
    }
}

#[test]
fn everything_ends_when_everybody_is_served() {
    let mut sim = Sim::new(3, 5);
    skewed(&mut sim, 1_000);
    for _ in 0..5_000 {
        sim.step();
    }
    assert_eq!(sim.in_flight(), 0);
    assert!(sim.nodes.values().all(|n| n.waiting.is_empty()));
}

#[test]
fn a_router_that_the_dispatcher_does_not_answer_goes_on_with_its_even_share() {
    let mut sim = Sim::new(3, 9);
    for _ in 0..100 {
        sim.step();
    }
    let live: BTreeSet<u64> = [1, 2, 3].into();
    // Router 3 follows 2, which does not see itself as the dispatcher.
    if let Some(node) = sim.nodes.get_mut(&3) {
        node.share.set_routers(2, live);
    }
    for _ in 0..2_000 {
        sim.ask(3, 0, 0);
        sim.step();
    }
    let alone = sim.nodes[&3].share.flow().status().in_flight.requests;
    assert_eq!(alone, LIMIT / 3);
}

#[test]
fn a_long_queue_is_told_in_several_messages_and_completely() {
    let mut sim = Sim::new(2, 3);
    let flow = Arc::clone(sim.nodes[&2].share.flow());
    for i in 0..20_000 {
        sim.ask(2, i % 7, 0);
    }
    let (mut told, mut messages) = (BTreeSet::new(), 0);
    while told.len() < 20_000 {
        let demand = flow.take_demand().unwrap();
        assert_eq!(demand.first, messages == 0);
        messages += 1;
        let before = told.len();
        told.extend(demand.waiting.iter().map(|w| w.id));
        assert_eq!(told.len(), before + demand.waiting.len(), "each once");
        assert!(demand.waiting.len() < 10_000);
    }
    assert!(messages > 2);
    assert!(flow.take_demand().is_none());
}
