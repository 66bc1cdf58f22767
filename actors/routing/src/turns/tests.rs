//! Turns of several routers over a network that delays and loses.

use super::*;
use crate::random::Random;
use proptest::prelude::*;
use std::task::Waker;

#[derive(Default)]
struct Network {
    /// From, to.
    messages: Vec<(u64, u64, Message)>,
    /// Routers that have placed and not yet told the others.
    placed: Vec<u64>,
}

#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Network>>);

struct Wire {
    of: u64,
    wires: Wires,
}

impl Carrier for Wire {
    fn send(&self, to: u64, message: Message) {
        self.wires.0.lock().messages.push((self.of, to, message));
    }

    fn placed(&self) {
        self.wires.0.lock().placed.push(self.of);
    }
}

struct Region {
    wires: Wires,
    routers: Vec<Arc<Turns>>,
    now: u64,
}

impl Region {
    /// Routers 1 to n, used to others that place at the same moment.
    fn new(n: u64) -> Self {
        let wires = Wires::default();
        let routers: Vec<_> = (1..=n)
            .map(|of| {
                let wires = wires.clone();
                Arc::new(Turns::new(of, 100 * of, Arc::new(Wire { of, wires })))
            })
            .collect();
        for router in &routers {
            router.set_routers((1..=n).collect(), 0);
            used_to_others(router);
        }
        Self {
            wires,
            routers,
            now: 10_000,
        }
    }

    fn of(&self, id: u64) -> &Arc<Turns> {
        &self.routers[id as usize - 1]
    }

    fn ask(&self, id: u64) -> Turn {
        self.of(id).ask(self.now).unwrap()
    }

    /// Brings the message that has waited longest, or tells of what was placed. False: there is nothing.
    fn step(&self) -> bool {
        self.step_at(0)
    }

    /// The same with the nth message, but those between the same two routers in order.
    fn step_at(&self, n: usize) -> bool {
        let placed = self.wires.0.lock().placed.pop();
        if let Some(id) = placed {
            self.of(id).finish(self.now);
            return true;
        }
        let Some((from, to, message)) = self.take(n) else {
            return false;
        };
        self.of(to).hear(from, message, self.now);
        true
    }

    fn take(&self, n: usize) -> Option<(u64, u64, Message)> {
        let messages = &mut self.wires.0.lock().messages;
        let (from, to, _) = *messages.get(n % messages.len().max(1))?;
        let first = messages.iter().position(|m| (m.0, m.1) == (from, to))?;
        Some(messages.remove(first))
    }

    fn settle(&self) {
        while self.step() {}
    }
}

fn used_to_others(router: &Turns) {
    for moment in 0..20 {
        router.heavy_placed(moment * 1_000);
        router.heavy_heard(moment * 1_000 + 1);
    }
    assert!(router.is_likely());
}

fn called(turn: &mut Turn) -> Option<Placing> {
    match Pin::new(turn).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(placing) => Some(placing),
        Poll::Pending => None,
    }
}

#[test]
fn routers_place_one_after_the_other_and_all_that_waits_at_once() {
    let region = Region::new(3);
    let mut turns: Vec<(u64, Turn)> = [2, 3, 2, 1, 3, 2]
        .map(|id| (id, region.ask(id)))
        .into_iter()
        .collect();
    // The keeper asked first, since it need not tell anybody.
    let mut order = Vec::new();
    while !turns.is_empty() {
        region.settle();
        let placing: Vec<(u64, Placing)> = turns
            .iter_mut()
            .filter_map(|(id, turn)| Some((*id, called(turn)?)))
            .collect();
        turns.retain(|(_, turn)| !matches!(*turn.seat.0.lock(), Call::Left));
        assert!(!placing.is_empty(), "nobody may place: {order:?}");
        order.push(placing.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    }
    assert_eq!(order, [vec![1], vec![2, 2, 2], vec![3, 3]]);
}

#[test]
fn a_turn_begins_when_what_was_placed_before_is_known() {
    let region = Region::new(3);
    let (mut two, mut three) = (region.ask(2), region.ask(3));
    region.settle();
    let placing = called(&mut two).unwrap();
    assert!(called(&mut three).is_none());
    drop(placing);
    assert_eq!(
        region.wires.0.lock().placed,
        [2],
        "the others are told first"
    );
    assert!(region.wires.0.lock().messages.is_empty());
    region.of(2).finish(region.now);
    // The keeper hears that the turn is over, and gives the next: it comes before the third router has heard of the second's.
    let late = region.wires.0.lock().messages.pop().unwrap();
    assert_eq!((late.0, late.1), (2, 3));
    region.settle();
    assert!(called(&mut three).is_none());
    region.of(3).hear(late.0, late.2, region.now);
    assert!(called(&mut three).is_some());
}

#[test]
fn nobody_asks_without_need() {
    let region = Region::new(2);
    let alone = Arc::clone(region.of(1));
    alone.set_routers([1].into(), 0);
    assert!(alone.ask(1).is_none(), "alone");
    let other = region.of(2);
    for moment in 0..20 {
        other.heavy_placed(1_000_000 + moment * 1_000);
        other.heavy_heard(1_000_500 + moment * 1_000);
    }
    assert!(other.ask(1).is_none(), "others place at other times");
    // Heard of before it placed its own counts as well: so the last in turn learns it, too.
    for moment in 0..20 {
        other.heavy_heard(2_000_000 + moment * 1_000);
        other.heavy_placed(2_000_005 + moment * 1_000);
    }
    assert!(other.ask(1).is_some());
}

#[test]
fn one_that_gives_up_holds_nobody_up() {
    let region = Region::new(3);
    let (two, gone, mut three) = (region.ask(2), region.ask(2), region.ask(3));
    drop(gone);
    // Given up before it is called, and after.
    region.settle();
    drop(two);
    region.settle();
    assert!(called(&mut three).is_some());
}

#[test]
fn a_lost_turn_is_passed_over() {
    let mut region = Region::new(3);
    let mut two = region.ask(2);
    region.settle();
    let _held = called(&mut two).unwrap();
    let mut three = region.ask(3);
    region.settle();
    assert!(called(&mut three).is_none());
    region.now += LATE_MS + 1;
    let mut one = region.ask(1);
    region.settle();
    assert!(called(&mut three).is_some());
    region.settle();
    assert!(called(&mut one).is_some());
}

#[test]
fn another_router_keeps_the_turns_of_a_dead_one() {
    let region = Region::new(3);
    let mut three = region.ask(3);
    region.wires.0.lock().messages.clear();
    region.of(2).set_routers([2, 3].into(), region.now);
    region.of(3).set_routers([2, 3].into(), region.now);
    region.settle();
    assert!(called(&mut three).is_some());
}

#[test]
fn a_turn_of_a_former_process_is_over() {
    let region = Region::new(2);
    region.of(1).hear(2, Message::Ask(7), region.now);
    let mut one = region.ask(1);
    region.settle();
    assert!(called(&mut one).is_some());
}

proptest! {
    /// Requests come, messages of different routers overtake each other, some requests give up: never two routers place at the same
    /// time, and everybody gets a turn. Where messages are lost and routers hang, everybody gets one all the same once it is late.
    #[test]
    fn one_router_at_a_time(seed: u64, n in 2u64..6, lossy: bool) {
        let mut region = Region::new(n);
        let mut random = Random::new(seed);
        let mut waiting: Vec<(u64, Turn)> = Vec::new();
        let mut placing: Vec<(u64, Placing)> = Vec::new();
        for _ in 0..400 {
            match random.below(8) {
                0 => {
                    let id = 1 + random.below(n as usize) as u64;
                    waiting.push((id, region.ask(id)));
                }
                1 if !placing.is_empty() => drop(placing.remove(0)),
                2 if !waiting.is_empty() && random.below(4) == 0 => {
                    drop(waiting.swap_remove(random.below(waiting.len())));
                }
                3 if lossy => drop(region.take(random.below(100))),
                4 if lossy => region.now += random.below(LATE_MS as usize * 2) as u64,
                _ => { region.step_at(random.below(100)); }
            }
            let mut next = Vec::new();
            for (id, mut turn) in waiting.drain(..) {
                match called(&mut turn) {
                    Some(begun) => placing.push((id, begun)),
                    None => next.push((id, turn)),
                }
            }
            waiting = next;
            let who: BTreeSet<u64> = placing.iter().map(|(id, _)| *id).collect();
            prop_assert!(lossy || who.len() <= 1, "{:?} at once", who);
        }
        placing.clear();
        region.settle();
        // Those that are left, and one more of each router; where messages were lost, late enough that nobody waits for them any more.
        for _ in 0..3 {
            region.now += if lossy { LATE_MS + 1 } else { 0 };
            waiting.extend((1..=n).map(|id| (id, region.ask(id))));
            let mut left = usize::MAX;
            while waiting.len() < left {
                left = waiting.len();
                region.settle();
                waiting.retain_mut(|(_, turn)| called(turn).is_none());
            }
        }
        prop_assert!(waiting.is_empty(), "{} never called", waiting.len());
    }
}
