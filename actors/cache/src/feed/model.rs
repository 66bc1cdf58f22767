//! The owner's side against a model engine and log: batches get lost, owners crash and change, engines restart, answers and proposals get
//! lost, replicas lag and take snapshots.
//!
//! Whatever happens, every replica's map is a subset of what the engine holds once all has calmed down, and equal to it where a
//! replay reaches back to the engine's start.

mod engine;

use super::*;
use crate::events::{Batch, decode};
use crate::hash::ExtraForm;
use crate::index::{CacheIndex, DeltaBatch, HolderKey, IndexConfig, Snapshot, SnapshotLoader};
use crate::keys::Scheme;
use crate::link::{Output, Reset};
use crate::link::{Policy, Sequencer};
use bytes::Bytes;
use engine::{Chain, Engine, cleared};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const KEY: HolderKey = HolderKey {
    endpoint: 7,
    rank: 0,
};
const CONFIG: IndexConfig = IndexConfig { max_bytes: 1 << 20 };

/// One node that owns the endpoint.
struct Owner {
    node: usize,
    sequencer: Sequencer,
    proposals: Proposals,
    asked: Option<(u64, u64)>,
    batch: Batch,
}

struct Node {
    index: Arc<CacheIndex>,
    /// Entries of the log that it has applied.
    applied: usize,
}

/// A snapshot on its way: the entries of the log that it has, and how far it was read.
struct Frozen {
    applied: usize,
    snapshot: Snapshot,
    loader: SnapshotLoader,
}

struct World {
    engine: Engine,
    owner: Option<Owner>,
    nodes: Vec<Node>,
    frozen: Vec<Frozen>,
    log: Vec<Bytes>,
    /// Proposed, and not yet in the log: who proposed it and its number.
    travelling: Vec<(u64, u64, Bytes)>,
    /// Answers that come when the entry is applied: by its place in the log.
    answers: BTreeMap<usize, (u64, u64)>,
    reign: u64,
    now: u64,
    replay: bool,
}

impl World {
    fn new(scheme: Scheme, steps: usize, replay: bool) -> Self {
        let node = || Node {
            index: Arc::new(CacheIndex::new(CONFIG)),
            applied: 0,
        };
        Self {
            engine: Engine {
                scheme,
                process: 1,
                next: 0,
                held: BTreeSet::new(),
                buffer: VecDeque::new(),
                steps,
            },
            owner: None,
            nodes: vec![node(), node(), node()],
            frozen: Vec::new(),
            log: Vec::new(),
            travelling: Vec::new(),
            answers: BTreeMap::new(),
            reign: 0,
            now: 0,
            replay,
        }
    }

    fn take_over(&mut self, node: usize) {
        self.reign += 1;
        let naming = Naming {
            model: "m".into(),
            block_tokens: None,
            scheme: self.engine.scheme.clone(),
        };
        let known = self.nodes[node].index.copy(KEY);
        let (holder, resume) = Holder::take_over(
            KEY,
            naming,
            ((self.reign as u32 * 37 % 11) << 8) | self.reign as u32,
            known.as_ref(),
            self.replay,
        );
        let mut sequencer = Sequencer::new(Policy {
            replay: self.replay,
            ..Policy::default()
        });
        if let Some((seq, mark)) = resume {
            sequencer.resume(seq, mark);
        }
        let mut proposals = Proposals::default();
        proposals.holders.insert(KEY, holder);
        sequencer.connected(self.now);
        self.owner = Some(Owner {
            node,
            sequencer,
            proposals,
            asked: None,
            batch: Batch::new(),
        });
        self.carry_out();
    }

    fn carry_out(&mut self) {
        let Some(owner) = &mut self.owner else {
            return;
        };
        let holder = owner.proposals.holders.get_mut(&KEY).unwrap();
        while let Some(output) = owner.sequencer.poll() {
            match output {
                Output::Reset(why) => holder.reset(why == Reset::Restarted),
                Output::Deliver { seq, payload } => {
                    decode(&payload, &mut owner.batch).unwrap();
                    assert_eq!(owner.batch.skipped, Default::default());
                    assert!(!holder.apply(Some(seq), xxh3_64(&payload), &owner.batch));
                }
                Output::Replay { id, from } => owner.asked = Some((id, from)),
                Output::CancelReplay => owner.asked = None,
            }
        }
    }

    fn live(&mut self, message: &(u64, Bytes)) {
        if let Some(owner) = &mut self.owner {
            owner.sequencer.live(message.0, message.1.clone(), self.now);
        }
        self.carry_out();
    }

    fn serve(&mut self) {
        let Some((owner, (id, from))) = self
            .owner
            .as_mut()
            .and_then(|o| o.asked.take().map(|a| (o, a)))
        else {
            return;
        };
        for (seq, payload) in self.engine.buffer.iter().filter(|(seq, _)| *seq >= from) {
            owner
                .sequencer
                .replayed(id, *seq, payload.clone(), self.now);
        }
        owner.sequencer.replay_ended(id, true, self.now);
        self.carry_out();
    }

    fn propose(&mut self) {
        if let Some(owner) = &mut self.owner
            && let Some((id, bytes)) = owner.proposals.next(true)
        {
            self.travelling.push((self.reign, id, bytes));
        }
    }

    /// A proposal arrives: it is in the log from now on. Its answer may get lost.
    fn arrive(&mut self, pick: usize, lost: bool) {
        if self.travelling.is_empty() {
            return;
        }
        let (reign, id, bytes) = self.travelling.remove(pick % self.travelling.len());
        if lost {
            self.unknown(reign, id);
        } else {
            self.answers.insert(self.log.len(), (reign, id));
        }
        self.log.push(bytes);
    }

    /// Whether a proposal arrived is not known: the owner proposes it again, and the first one may still come.
    fn unknown(&mut self, reign: u64, id: u64) {
        if reign == self.reign
            && let Some(owner) = &mut self.owner
            && let (_, Some(bytes)) = owner.proposals.answered(id, Answer::Unknown)
        {
            self.travelling.push((reign, id, bytes));
        }
    }

    fn catch_up(&mut self, node: usize, most: usize) {
        for _ in 0..most {
            let at = self.nodes[node].applied;
            let Some(entry) = self.log.get(at) else {
                return;
            };
            let batch = DeltaBatch::decode(entry).unwrap();
            let outcomes = self.nodes[node].index.apply(&batch).outcomes;
            self.nodes[node].applied += 1;
            // Whichever replica is first answers, as a leader does.
            if let Some((reign, id)) = self.answers.remove(&at)
                && reign == self.reign
                && let Some(owner) = &mut self.owner
            {
                let (verdicts, again) = owner.proposals.answered(id, Answer::Outcomes(outcomes));
                assert!(again.is_none());
                for (key, verdict) in verdicts {
                    let holder = owner.proposals.holders.get_mut(&key).unwrap();
                    match verdict {
                        Verdict::Outbid(epoch) => holder.outbid(epoch, self.reign as u32),
                        Verdict::NoRoom => holder.untell(),
                        Verdict::Fine | Verdict::Again => {}
                    }
                }
            }
        }
    }

    fn freeze(&mut self, from: usize) {
        if self.frozen.len() < 4 {
            let node = &self.nodes[from];
            self.frozen.push(Frozen {
                applied: node.applied,
                snapshot: node.index.snapshot(),
                loader: SnapshotLoader::new(CONFIG),
            });
        }
    }

    fn read(&mut self, pick: usize, chunks: usize) {
        let most = self.frozen.len().max(1);
        if let Some(frozen) = self.frozen.get_mut(pick % most) {
            for chunk in frozen.snapshot.by_ref().take(chunks) {
                frozen.loader.push(&chunk).unwrap();
            }
        }
    }

    /// The rest of a snapshot arrives, and replaces what a node has that is behind it.
    fn install(&mut self, pick: usize, to: usize) {
        if self.frozen.is_empty() {
            return;
        }
        self.read(pick, usize::MAX);
        let frozen = self.frozen.remove(pick % self.frozen.len());
        let loaded = frozen.loader.finish().unwrap();
        let node = &mut self.nodes[to];
        if frozen.applied > node.applied {
            node.index.assume(loaded);
            node.applied = frozen.applied;
        }
    }

    fn calm(&mut self) {
        if self.owner.is_none() {
            self.take_over(0);
        }
        let owner = self.owner.as_mut().unwrap();
        owner.sequencer.disconnected();
        owner.sequencer.connected(self.now);
        for _ in 0..60 {
            self.carry_out();
            self.serve();
            self.now += 40_000;
            if let Some(owner) = &mut self.owner {
                owner.sequencer.tick(self.now);
            }
            self.carry_out();
            self.serve();
            if let Some(owner) = &mut self.owner {
                owner
                    .proposals
                    .audit(&self.nodes[owner.node].index.holders());
            }
            self.propose();
            while !self.travelling.is_empty() {
                self.arrive(0, false);
            }
            for node in 0..self.nodes.len() {
                self.catch_up(node, usize::MAX);
            }
        }
        let owner = self.owner.as_ref().unwrap();
        assert_eq!(
            (
                owner.proposals.under_way(),
                owner.proposals.holders[&KEY].waiting()
            ),
            (0, 0)
        );
    }

    fn check(&self) {
        let mut digests = BTreeSet::new();
        for node in &self.nodes {
            let digest = node.index.digests().whole();
            digests.insert(digest.0);
            let copy = node.index.copy(KEY).unwrap();
            let has: BTreeSet<u64> = copy
                .runs
                .iter()
                .flat_map(|(_, run)| run.iter().copied())
                .collect();
            let Some(space) = copy.space else {
                assert!(has.is_empty());
                continue;
            };
            let truth = self.engine.truth(&space);
            assert!(
                has.is_subset(&truth),
                "a map has what the engine has not: {has:?} of {truth:?}"
            );
            if self.replay && self.engine.steps == usize::MAX {
                assert_eq!(has, truth);
            }
        }
        assert_eq!(digests.len(), 1);
        assert_eq!(self.nodes[0].index.stats().digest_mismatches, 0);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store(Chain, bool),
    Drop(usize, bool),
    Clear(bool),
    Restart,
    TakeOver(usize),
    Crash,
    Serve,
    Propose,
    Arrive(usize, bool),
    CatchUp(usize, usize),
    Freeze(usize),
    Read(usize, usize),
    Install(usize, usize),
    Retry(usize),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let came = || prop::bool::weighted(0.85);
    prop_oneof![
        8 => (prop::collection::vec(0u8..2, 1..4), came()).prop_map(|(c, b)| Step::Store(c, b)),
        4 => (any::<usize>(), came()).prop_map(|(n, b)| Step::Drop(n, b)),
        1 => came().prop_map(Step::Clear),
        1 => Just(Step::Restart),
        2 => (0usize..3).prop_map(Step::TakeOver),
        1 => Just(Step::Crash),
        4 => Just(Step::Serve),
        6 => Just(Step::Propose),
        6 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(n, b)| Step::Arrive(n, b)),
        8 => (0usize..3, 1usize..4).prop_map(|(n, m)| Step::CatchUp(n, m)),
        2 => (0usize..3).prop_map(Step::Freeze),
        2 => (any::<usize>(), 1usize..30).prop_map(|(a, b)| Step::Read(a, b)),
        2 => (any::<usize>(), 0usize..3).prop_map(|(a, b)| Step::Install(a, b)),
        1 => any::<usize>().prop_map(Step::Retry),
        2 => Just(Step::Reconnect),
    ]
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        Just(Scheme::Own),
        Just(Scheme::Sglang),
        Just(Scheme::of(Some("sha256_cbor"), None, ExtraForm::Tagged)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn never_wrong_once_calm(
        scheme in any_scheme(),
        steps in prop_oneof![Just(usize::MAX), 1usize..6],
        replay in prop::bool::weighted(0.8),
        history in prop::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(scheme, steps, replay);
        world.take_over(0);
        for step in history {
            world.now += 5;
            match step {
                Step::Store(chain, came) => {
                    let message = world.engine.store(&chain);
                    if came { world.live(&message); }
                }
                Step::Drop(pick, came) => {
                    let message = world.engine.drop_one(pick);
                    if came { world.live(&message); }
                }
                Step::Clear(came) => {
                    world.engine.held.clear();
                    let message = world.engine.publish(&[cleared()]);
                    if came { world.live(&message); }
                }
                Step::Restart => {
                    world.engine.restart();
                    if let Some(owner) = &mut world.owner {
                        owner.sequencer.disconnected();
                        owner.sequencer.connected(world.now);
                    }
                    world.carry_out();
                }
                Step::TakeOver(node) => world.take_over(node),
                Step::Crash => world.owner = None,
                Step::Serve => world.serve(),
                Step::Propose => world.propose(),
                Step::Arrive(pick, lost) => world.arrive(pick, lost),
                Step::CatchUp(node, most) => world.catch_up(node, most),
                Step::Freeze(from) => world.freeze(from),
                Step::Read(pick, chunks) => world.read(pick, chunks),
                Step::Install(pick, to) => world.install(pick, to),
                Step::Retry(pick) => {
                    if let Some((reign, id, _)) = world.travelling.get(pick % world.travelling.len().max(1)).cloned() {
                        world.unknown(reign, id);
                    }
                }
                Step::Reconnect => {
                    if let Some(owner) = &mut world.owner {
                        owner.sequencer.disconnected();
                        owner.sequencer.connected(world.now);
                    }
                    world.carry_out();
                }
            }
        }
        world.calm();
        world.check();
    }
}
