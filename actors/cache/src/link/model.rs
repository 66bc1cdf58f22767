//! The sequencer against a model engine: batches get lost, doubled and reordered, engines restart, replays fail.
//!
//! Whatever happens, once all has calmed down the reader's map is a subset of what the engine holds, and equal to it where
//! a replay that reaches back to the start was to be had.

use super::sequencer::Sequencer;
use super::stream::{Output, Policy, Reset, State};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};

/// What a payload says, with an incarnation so that no two streams have equal payloads (real ones have timestamps).
fn payload(incarnation: u64, seq: u64, op: u8, block: u8) -> Bytes {
    let mut bytes = vec![op, block];
    bytes.extend(incarnation.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.into()
}

fn apply(set: &mut BTreeSet<u8>, payload: &[u8]) {
    match payload[0] {
        0 => set.clear(),
        1 => {
            set.remove(&payload[1]);
        }
        _ => {
            set.insert(payload[1]);
        }
    }
}

struct Engine {
    incarnation: u64,
    next: u64,
    set: BTreeSet<u8>,
    buffer: VecDeque<(u64, Bytes)>,
    steps: usize,
}

impl Engine {
    fn publish(&mut self, op: u8, block: u8) -> (u64, Bytes) {
        let payload = payload(self.incarnation, self.next, op, block);
        apply(&mut self.set, &payload);
        let message = (self.next, payload);
        self.next += 1;
        self.buffer.push_back(message.clone());
        while self.buffer.len() > self.steps {
            self.buffer.pop_front();
        }
        message
    }

    fn restart(&mut self) {
        self.incarnation += 1;
        self.next = 0;
        self.set.clear();
        self.buffer.clear();
    }
}

struct World {
    engine: Engine,
    sequencer: Sequencer,
    map: BTreeSet<u8>,
    now: u64,
    /// A replay asked for and not yet served.
    asked: Option<(u64, u64)>,
    /// The previous number delivered since the last reset.
    delivered: Option<u64>,
}

impl World {
    fn carry_out(&mut self) {
        while let Some(output) = self.sequencer.poll() {
            match output {
                Output::Reset(_) => {
                    self.map.clear();
                    self.delivered = None;
                }
                Output::Deliver { seq, payload } => {
                    assert!(self.delivered.is_none_or(|last| seq == last + 1), "a hole");
                    self.delivered = Some(seq);
                    apply(&mut self.map, &payload);
                }
                Output::Replay { id, from } => self.asked = Some((id, from)),
                Output::CancelReplay => self.asked = None,
            }
        }
    }

    fn live(&mut self, message: &(u64, Bytes)) {
        self.sequencer.live(message.0, message.1.clone(), self.now);
        self.carry_out();
    }

    /// Serves the replay at hand: all of it, or `cut` replies and then a failure.
    fn serve(&mut self, cut: Option<usize>) {
        let Some((id, from)) = self.asked.take() else {
            return;
        };
        let replies: Vec<_> = self
            .engine
            .buffer
            .iter()
            .filter(|(seq, _)| *seq >= from)
            .cloned()
            .collect();
        for (seq, payload) in replies.into_iter().take(cut.unwrap_or(usize::MAX)) {
            self.sequencer.replayed(id, seq, payload, self.now);
            self.carry_out();
        }
        self.sequencer.replay_ended(id, cut.is_none(), self.now);
        self.carry_out();
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.sequencer.tick(self.now);
        self.carry_out();
    }

    fn reconnect(&mut self) {
        self.sequencer.disconnected();
        self.carry_out();
        self.sequencer.connected(self.now);
        self.carry_out();
    }

    /// Nothing goes wrong any more.
    fn calm_down(&mut self, replay: bool) {
        for _ in 0..40 {
            self.serve(None);
            self.wait(1000);
        }
        // Without a replay socket the loss of the very last batches shows with the next one.
        for block in [250, 251] {
            let message = self.engine.publish(2, block);
            self.live(&message);
            for _ in 0..40 {
                self.serve(None);
                self.wait(1000);
            }
        }
        if replay {
            self.wait(100_000);
            for _ in 0..10 {
                self.serve(None);
                self.wait(10);
            }
        }
        assert_eq!(self.sequencer.state(), State::Live);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish { op: u8, block: u8, fate: u8 },
    Restart { noticed: bool },
    Reconnect,
    Serve { cut: Option<usize> },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..20u8, 0..30u8, 0..12u8).prop_map(|(op, block, fate)| Step::Publish { op, block, fate }),
        1 => any::<bool>().prop_map(|noticed| Step::Restart { noticed }),
        1 => Just(Step::Reconnect),
        4 => proptest::option::weighted(0.3, 0..5usize).prop_map(|cut| Step::Serve { cut }),
        3 => (0..3000u64).prop_map(Step::Wait),
    ]
}

fn world(replay: bool, buffer: usize, max_held: usize) -> World {
    let policy = Policy {
        replay,
        max_held,
        cool_down: 5_000,
        silence: 60_000,
        memory: 64,
        ..Policy::default()
    };
    World {
        engine: Engine {
            incarnation: 0,
            next: 0,
            set: BTreeSet::new(),
            buffer: VecDeque::new(),
            steps: buffer,
        },
        sequencer: Sequencer::new(policy),
        map: BTreeSet::new(),
        now: 0,
        asked: None,
        delivered: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn never_wrong_once_calm(
        replay in any::<bool>(),
        buffer in prop_oneof![Just(4usize), Just(1000)],
        max_held in prop_oneof![Just(3usize), Just(1000)],
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = world(replay, buffer, max_held);
        world.sequencer.connected(0);
        world.carry_out();
        let mut late: VecDeque<(u64, Bytes)> = VecDeque::new();
        let mut failures = false;
        for step in steps {
            match step {
                Step::Publish { op, block, fate } => {
                    let message = world.engine.publish(op, block);
                    match fate {
                        0 => {}
                        1 => late.push_back(message),
                        2 => {
                            world.live(&message);
                            world.live(&message);
                        }
                        _ => {
                            world.live(&message);
                            if let Some(message) = late.pop_front() {
                                world.live(&message);
                            }
                        }
                    }
                }
                Step::Restart { noticed } => {
                    world.engine.restart();
                    late.clear();
                    if noticed {
                        world.reconnect();
                    } else {
                        // The number going back is all that shows it.
                        let message = world.engine.publish(2, 200);
                        world.live(&message);
                    }
                }
                Step::Reconnect => {
                    late.clear();
                    world.reconnect();
                }
                Step::Serve { cut } => {
                    failures |= cut.is_some();
                    world.serve(cut);
                }
                Step::Wait(ms) => {
                    failures |= world.asked.is_some();
                    world.wait(ms);
                }
            }
        }
        world.calm_down(replay);
        prop_assert!(world.map.is_subset(&world.engine.set), "{:?} holds more than {:?}", world.map, world.engine.set);
        if replay && buffer == 1000 && !failures {
            prop_assert_eq!(&world.map, &world.engine.set);
        }
    }
}

fn told(world: &mut World) -> Vec<Output> {
    std::iter::from_fn(|| world.sequencer.poll()).collect()
}

#[test]
fn a_late_batch_is_waited_for() {
    let mut world = world(true, 100, 100);
    world.sequencer.connected(0);
    world.carry_out();
    world.serve(None);
    let [a, b, c] = [1, 2, 3].map(|block| world.engine.publish(2, block));
    world.live(&a);
    world.live(&c);
    assert_eq!(world.sequencer.state(), State::Gap);
    world.live(&b);
    assert_eq!((world.sequencer.state(), world.map.len()), (State::Live, 3));
    assert_eq!(world.sequencer.counters().replays, 1);
}

#[test]
fn a_restart_that_caught_up_while_nobody_looked_is_found_out() {
    let mut world = world(true, 100, 100);
    world.sequencer.connected(0);
    world.carry_out();
    world.serve(None);
    for block in 0..5 {
        let message = world.engine.publish(2, block);
        world.live(&message);
    }
    world.engine.restart();
    for block in 10..20 {
        world.engine.publish(2, block);
    }
    world.reconnect();
    world.serve(None);
    world.serve(None);
    assert_eq!(world.map, (10..20).collect());
    assert_eq!(world.sequencer.counters().restarts, 1);
}

#[test]
fn silence_is_looked_into() {
    let mut world = world(true, 100, 100);
    world.sequencer.connected(0);
    world.carry_out();
    world.serve(None);
    let message = world.engine.publish(2, 1);
    world.live(&message);
    // The last batches are lost, and none follows that would show the gap.
    world.engine.publish(2, 2);
    world.wait(60_001);
    assert_eq!(world.sequencer.counters().probes, 1);
    world.serve(None);
    assert_eq!(world.map, [1, 2].into());
    // A question that nobody answers voids nothing.
    world.wait(60_001);
    for _ in 0..10 {
        world.wait(10_000);
    }
    assert_eq!((world.map.len(), world.sequencer.state()), (2, State::Live));
    assert_eq!(world.sequencer.counters().losses, 0);
}

#[test]
fn without_replay_a_break_voids_the_map() {
    let mut world = world(false, 0, 100);
    world.sequencer.connected(0);
    let message = world.engine.publish(2, 1);
    world.live(&message);
    world.sequencer.disconnected();
    world.sequencer.connected(1);
    assert_eq!(told(&mut world), [Output::Reset(Reset::Unproved)]);
    world.map.clear();
    world.delivered = None;
    let [_, c] = [2, 3].map(|block| world.engine.publish(2, block));
    let d = world.engine.publish(2, 4);
    let e = world.engine.publish(2, 5);
    world.live(&c);
    world.live(&e);
    world.wait(19);
    assert_eq!(world.sequencer.state(), State::Gap);
    world.wait(1);
    assert_eq!(
        (world.sequencer.counters().losses, &world.map),
        (1, &[5].into())
    );
    world.live(&d);
    assert_eq!(world.sequencer.state(), State::Live);
}
