//! The queue against a naive model: a list that is searched from the start for every step.

use super::*;
use crate::config::{OrderingPolicy, ProgramAware};
use crate::flow::order::{Times, key};
use proptest::prelude::*;

const FAIRNESS: [FairnessPolicy; 3] = [
    FairnessPolicy::GlobalStrict,
    FairnessPolicy::RoundRobin,
    FairnessPolicy::ProgramAware(ProgramAware {
        weight_service: 0.8,
        weight_head_wait: 0.2,
        half_life: std::time::Duration::from_secs(60),
        eviction_ttl: std::time::Duration::from_secs(3600),
        eviction_sweep: std::time::Duration::from_secs(300),
    }),
];
const ORDERING: [OrderingPolicy; 3] = [
    OrderingPolicy::Fcfs,
    OrderingPolicy::Edf,
    OrderingPolicy::SloDeadline,
];
const PRIORITIES: [i32; 3] = [10, 0, -5];

#[derive(Clone, Debug)]
enum Step {
    Push {
        band: usize,
        flow: u8,
        deadline: Option<u64>,
        due: Option<u64>,
        bytes: u64,
    },
    Pop,
    Remove(prop::sample::Index),
    Serve {
        flow: u8,
        tokens: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let time = prop::option::of(0u64..50);
    prop_oneof![
        5 => (0usize..3, 0u8..5, time.clone(), time, 0u64..9).prop_map(
            |(band, flow, deadline, due, bytes)| Step::Push { band, flow, deadline, due, bytes }
        ),
        4 => Just(Step::Pop),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (0u8..5, 1u64..1000).prop_map(|(flow, tokens)| Step::Serve { flow, tokens }),
    ]
}

#[derive(Clone, Debug)]
struct Waiting {
    id: u64,
    priority: i32,
    flow: String,
    times: Times,
    bytes: u64,
}

/// The rules, as plainly as they can be said.
#[derive(Default)]
struct Model {
    waiting: Vec<Waiting>,
    cursors: BTreeMap<i32, String>,
}

impl Model {
    fn order(bands: &[BandConfig], w: &Waiting) -> OrderKey {
        let policy = bands
            .iter()
            .find(|b| b.priority == w.priority)
            .unwrap()
            .ordering;
        key(policy, w.times, w.id)
    }

    fn pop(&mut self, bands: &[BandConfig], service: &ServiceLedger, now: u64) -> Option<u64> {
        let band = bands
            .iter()
            .filter(|b| self.waiting.iter().any(|w| w.priority == b.priority))
            .max_by_key(|b| b.priority)?;
        let mut heads: BTreeMap<String, &Waiting> = BTreeMap::new();
        for w in self.waiting.iter().filter(|w| w.priority == band.priority) {
            let head = heads.entry(w.flow.clone()).or_insert(w);
            if Self::order(bands, w) < Self::order(bands, head) {
                *head = w;
            }
        }
        let flow = match &band.fairness {
            FairnessPolicy::GlobalStrict => {
                heads.iter().min_by_key(|(_, w)| Self::order(bands, w))?.0
            }
            FairnessPolicy::RoundRobin => {
                let cursor = self.cursors.get(&band.priority);
                heads
                    .keys()
                    .find(|f| cursor.is_some_and(|c| *f > c))
                    .or_else(|| heads.keys().next())?
            }
            FairnessPolicy::ProgramAware(policy) => {
                let scores: Vec<_> = heads
                    .iter()
                    .map(|(flow, w)| {
                        let attained = service.attained(flow, micros(policy.half_life), now);
                        (attained, (now - w.times.arrived) as f64)
                    })
                    .collect();
                heads.keys().nth(least_attained(policy, &scores)?)?
            }
        };
        let id = heads[flow].id;
        self.cursors.insert(band.priority, flow.clone());
        self.waiting.retain(|w| w.id != id);
        Some(id)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Under every pair of policies the queue gives out exactly what the model gives out, loses nothing, and its counts are right.
    #[test]
    fn order_is_exact(
        steps in prop::collection::vec(step(), 1..120),
        policies in prop::array::uniform3((0usize..3, 0usize..3)),
    ) {
        let bands: Vec<BandConfig> = PRIORITIES
            .iter()
            .zip(policies)
            .map(|(priority, (f, o))| BandConfig {
                priority: *priority,
                fairness: FAIRNESS[f],
                ordering: ORDERING[o],
                ..BandConfig::default()
            })
            .collect();
        let mut queue = Queue::new(&bands);
        let mut model = Model::default();
        let mut tickets: BTreeMap<u64, Ticket> = BTreeMap::new();
        let mut now = 0;
        for (id, step) in steps.into_iter().enumerate() {
            let id = id as u64;
            now += 3;
            match step {
                Step::Push { band, flow, deadline, due, bytes } => {
                    let times = Times { arrived: now, deadline, first_token_due: due };
                    let order = key(bands[band].ordering, times, id);
                    let flow = format!("f{flow}");
                    let index = queue.band(PRIORITIES[band]).unwrap();
                    let item = Item { arrived: now, bytes, value: id };
                    tickets.insert(id, queue.push(index, &flow, order, item).unwrap());
                    model.waiting.push(Waiting { id, priority: PRIORITIES[band], flow, times, bytes });
                }
                Step::Pop => {
                    let got = queue.first_band().and_then(|b| queue.pop(b, now));
                    let expected = model.pop(&bands, &queue.service, now);
                    prop_assert_eq!(got.as_ref().map(|(_, item)| item.value), expected);
                    if let Some((ticket, item)) = got {
                        prop_assert_eq!(tickets.remove(&item.value), Some(ticket));
                    }
                }
                Step::Remove(index) if !tickets.is_empty() => {
                    let ids: Vec<u64> = tickets.keys().copied().collect();
                    let id = *index.get(&ids);
                    let ticket = tickets.remove(&id).unwrap();
                    prop_assert_eq!(queue.remove(&ticket).map(|i| i.value), Some(id));
                    prop_assert_eq!(queue.remove(&ticket), None);
                    model.waiting.retain(|w| w.id != id);
                }
                Step::Remove(_) => {}
                Step::Serve { flow, tokens } => {
                    let half_life = micros(ProgramAware::default().half_life);
                    queue.service.add(&format!("f{flow}"), tokens, 0, half_life, now);
                }
            }
            let bytes: u64 = model.waiting.iter().map(|w| w.bytes).sum();
            let held = Held { requests: model.waiting.len() as u64, bytes };
            prop_assert_eq!(queue.held(), held);
            for band in queue.bands() {
                prop_assert_eq!(band.held().requests, band.iter().count() as u64);
            }
        }
        while let Some(band) = queue.first_band() {
            let got = queue.pop(band, now).map(|(_, item)| item.value);
            prop_assert_eq!(got, model.pop(&bands, &queue.service, now));
        }
        prop_assert!(model.waiting.is_empty());
    }
}

#[test]
fn bands_come_and_go_in_order_of_priority() {
    let mut queue: Queue<()> = Queue::new(&[BandConfig::default()]);
    for priority in [5, -3, 9, 5] {
        queue.add_band(BandConfig {
            priority,
            ..BandConfig::default()
        });
    }
    let priorities = |q: &Queue<()>| q.bands().iter().map(Band::priority).collect::<Vec<_>>();
    assert_eq!(priorities(&queue), [9, 5, 0, -3]);
    let order = OrderKey { at: 1, seq: 1 };
    let item = Item {
        arrived: 0,
        bytes: 1,
        value: (),
    };
    let ticket = queue.push(3, "f", order, item).unwrap();
    assert!(queue.prune_bands(|p| p == 0));
    assert_eq!(priorities(&queue), [0, -3]);
    assert!(queue.remove(&ticket).is_some() && queue.first_band().is_none());
}
