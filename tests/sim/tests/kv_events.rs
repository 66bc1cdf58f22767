//! KV events from the block model over real sockets to a link: whatever happens on the way, the reader's map becomes what
//! the engine holds.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_cache::events::{Batch, Event, decode, trtllm};
use quorate_cache::hash::{Algorithm, ExtraForm, Hasher, PromptExtras, VLLM_SEED};
use quorate_cache::link::{
    Address, Direction, EventSource, LinkConfig, LinkEvent, Policy, ReplayAt, Subscriber,
    server_info, vllm_event_sources,
};
use quorate_sim::{EventFormat, Faults, KvEventsConfig, Sim};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use support::{get, post, start};
use tokio::sync::mpsc;

const BOUND: &str = r#"{"endpoint":"tcp://127.0.0.1:0","bind":true,"replay_endpoint":"tcp://127.0.0.1:0","topic":"kv@sim@m"}"#;

async fn engine(format: EventFormat, json: &str) -> Sim {
    let mut events = KvEventsConfig::parse(json).unwrap().unwrap();
    events.format = format;
    start(|config| {
        config.kv_events = Some(events);
        // So few blocks that prompts evict each other.
        config.max_model_len = 256;
        config.engine.num_blocks = 40;
    })
    .await
}

async fn source(sim: &Sim, format: EventFormat) -> EventSource {
    let sources = if format >= EventFormat::Sglang055 {
        server_info(&get(sim.addr(), "/server_info").await.body, "127.0.0.1")
    } else {
        vllm_event_sources(
            &get(sim.addr(), "/kv_event_sources").await.body,
            "127.0.0.1",
        )
    };
    sources.unwrap().remove(0)
}

/// What a reader makes of a link.
struct Reader {
    events: mpsc::Receiver<LinkEvent>,
    link: Subscriber,
    map: BTreeMap<Arc<str>, BTreeSet<u64>>,
    batch: Batch,
    resets: usize,
    cleared: usize,
    tokens: usize,
}

impl Reader {
    async fn new(config: LinkConfig) -> Reader {
        let (out, events) = mpsc::channel(64);
        let link = Subscriber::start(config, out).await.unwrap();
        Reader {
            events,
            link,
            map: BTreeMap::new(),
            batch: Batch::new(),
            resets: 0,
            cleared: 0,
            tokens: 0,
        }
    }

    async fn of(sim: &Sim, format: EventFormat) -> Reader {
        let source = source(sim, format).await;
        Reader::new(LinkConfig {
            replay: ReplayAt::Address(source.replay.unwrap()),
            policy: Policy {
                silence: 200,
                backoff: 20,
                ..Policy::default()
            },
            redial: Duration::from_millis(20),
            ..LinkConfig::new(Direction::Dial(source.events))
        })
        .await
    }

    fn take(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Reset { source, .. } => {
                self.resets += 1;
                self.map.remove(&source);
            }
            LinkEvent::Batch {
                source, payload, ..
            } => {
                decode(&payload, &mut self.batch).unwrap();
                assert_eq!(self.batch.skipped, Default::default());
                let set = self.map.entry(source).or_default();
                for event in self.batch.events() {
                    match event {
                        Event::Stored(stored) => {
                            set.extend(stored.hashes);
                            let size = stored.block_size as usize;
                            assert_eq!(stored.tokens.len(), stored.hashes.len() * size);
                            self.tokens += stored.tokens.len();
                        }
                        Event::Removed(removed) => {
                            set.retain(|hash| !removed.hashes.contains(hash))
                        }
                        Event::Cleared => {
                            set.clear();
                            self.cleared += 1;
                        }
                    }
                }
            }
        }
    }

    fn held(&self) -> usize {
        self.map.values().map(BTreeSet::len).sum()
    }

    /// Until a condition holds, however long the machine takes.
    async fn until(&mut self, what: &str, mut condition: impl FnMut(&Reader) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !condition(self) {
            let state = format!("{what}: {} held, {:?}", self.held(), self.link.status());
            assert!(tokio::time::Instant::now() < deadline, "never: {state}");
            let next = tokio::time::timeout(Duration::from_millis(20), self.events.recv());
            if let Ok(event) = next.await {
                self.take(event.expect("the link ended"));
            }
        }
    }

    async fn caught_up(&mut self, sim: &Sim) {
        self.until("as many blocks as the engine", |reader| {
            sim.stats().load.running == 0 && reader.held() == sim.stats().load.cached_blocks
        })
        .await;
    }
}

/// A prompt that shares its first half with its neighbours.
fn prompt(at: u32) -> Vec<u32> {
    (0..32).chain((0..64).map(|i| 1000 + at * 64 + i)).collect()
}

async fn ask(sim: &Sim, at: u32) {
    let body =
        json!({"model": "sim-model", "prompt": prompt(at), "max_tokens": 40, "ignore_eos": true});
    let answer = post(sim.addr(), "/v1/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn every_format_tells_what_the_engine_holds() {
    use EventFormat::*;
    for format in [
        Vllm09, Vllm010, Vllm015, Vllm017, Vllm020, Vllm022, Vllm025, Vllm027, Vllm033, Sglang055,
        Sglang0518, Sglang0523,
    ] {
        let sim = engine(format, BOUND).await;
        // Asked before anybody listens: the replay brings it.
        ask(&sim, 0).await;
        let mut reader = Reader::of(&sim, format).await;
        for at in 1..6 {
            ask(&sim, at).await;
        }
        reader.caught_up(&sim).await;
        assert!(
            reader.held() > 8 && reader.tokens > reader.held() * 16,
            "{format:?}"
        );
        assert_eq!(reader.resets, 0, "{format:?}");
        assert_eq!(
            post(sim.addr(), "/reset_prefix_cache", &json!({}))
                .await
                .status,
            200
        );
        reader.until("cleared", |reader| reader.cleared == 1).await;
        assert_eq!(reader.held(), 0);
    }
}

#[tokio::test]
async fn published_hashes_are_those_that_can_be_computed() {
    let vllm = |algorithm, form| Hasher::vllm(algorithm, form, Some(VLLM_SEED)).unwrap();
    for (format, hasher) in [
        (
            EventFormat::Vllm033,
            vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged),
        ),
        (EventFormat::Sglang0523, Hasher::Sglang),
    ] {
        let sim = engine(format, BOUND).await;
        ask(&sim, 0).await;
        let mut reader = Reader::of(&sim, format).await;
        reader.caught_up(&sim).await;
        let mut keys = Vec::new();
        hasher
            .prompt(&prompt(0), 16, &PromptExtras::default(), &mut keys)
            .unwrap();
        let held: BTreeSet<u64> = reader.map.values().flatten().copied().collect();
        assert!(keys.len() == 6 && keys.iter().all(|key| held.contains(key)));
        assert!(held.len() > keys.len(), "generated blocks are told too");
    }
}

#[tokio::test]
async fn lost_doubled_and_swapped_batches_do_no_harm() {
    let sim = engine(EventFormat::Vllm033, BOUND).await;
    let mut reader = Reader::of(&sim, EventFormat::Vllm033).await;
    let faults = json!({"faults": {"loss": 0.3, "duplicate": 0.2, "reorder": 0.2}});
    assert_eq!(
        post(sim.addr(), "/sim/kv-events", &faults).await.status,
        200
    );
    for at in 0..12 {
        ask(&sim, at).await;
    }
    reader.caught_up(&sim).await;
    let shown = get(sim.addr(), "/sim/kv-events").await.json();
    assert!(shown["lost"].as_u64() > Some(0) && shown["duplicated"].as_u64() > Some(0));
    assert_eq!(reader.resets, 0, "everything was to be had again");
    // The very last ones are lost, and nothing follows: the silence is looked into.
    let faults = json!({"faults": {"drop-next": 1000}});
    post(sim.addr(), "/sim/kv-events", &faults).await;
    ask(&sim, 20).await;
    reader.caught_up(&sim).await;
    let wrong = json!({"faults": {"loss": 3}});
    assert_eq!(post(sim.addr(), "/sim/kv-events", &wrong).await.status, 400);
}

#[tokio::test]
async fn without_replays_the_map_gets_colder_and_not_wrong() {
    let sim = engine(EventFormat::Vllm025, BOUND).await;
    let source = source(&sim, EventFormat::Vllm025).await;
    let mut reader = Reader::new(LinkConfig::new(Direction::Dial(source.events))).await;
    // The subscription takes a moment to arrive.
    for at in 100..200 {
        ask(&sim, at).await;
        let event = tokio::time::timeout(Duration::from_millis(50), reader.events.recv());
        if let Ok(event) = event.await {
            reader.take(event.unwrap());
            break;
        }
    }
    assert!(reader.held() > 0);
    post(
        sim.addr(),
        "/sim/kv-events",
        &json!({"faults": {"drop-next": 1}}),
    )
    .await;
    ask(&sim, 1).await;
    // Its successor shows the loss.
    ask(&sim, 2).await;
    reader
        .until("the loss and later blocks", |reader| {
            reader.resets > 0 && reader.held() > 0
        })
        .await;
    assert!(reader.held() < sim.stats().load.cached_blocks);
}

#[tokio::test]
async fn a_crash_and_a_sequence_begun_anew_are_new_incarnations() {
    let sim = engine(EventFormat::Vllm033, BOUND).await;
    let mut reader = Reader::of(&sim, EventFormat::Vllm033).await;
    for at in 0..3 {
        ask(&sim, at).await;
    }
    reader.caught_up(&sim).await;
    sim.set_fault(Faults::parse("crash-after=0,restart-after=10ms").unwrap());
    reader
        .until("the crash", |_| sim.stats().crashes == 1)
        .await;
    reader.until("the reset", |reader| reader.resets == 1).await;
    ask(&sim, 7).await;
    reader.caught_up(&sim).await;
    assert_eq!(
        reader
            .link
            .status()
            .values()
            .next()
            .unwrap()
            .counters
            .restarts,
        1
    );

    post(
        sim.addr(),
        "/sim/kv-events",
        &json!({"reset-sequence": true}),
    )
    .await;
    ask(&sim, 8).await;
    reader
        .until("the second reset", |reader| reader.resets == 2)
        .await;
}

#[tokio::test]
async fn engines_dial_in_and_are_told_apart_by_topic() {
    let any = Address::parse("tcp://127.0.0.1:0").unwrap();
    let mut reader = Reader::new(LinkConfig {
        topic: "kv@".into(),
        ..LinkConfig::new(Direction::Bind(any))
    })
    .await;
    let bound = reader.link.bound().unwrap().to_string();
    let json = |topic: &str| format!(r#"{{"endpoint":"{bound}","topic":"{topic}"}}"#);
    let a = engine(EventFormat::Vllm022, &json("kv@a@m")).await;
    let b = engine(EventFormat::Vllm033, &json("kv@b@m")).await;
    let c = engine(EventFormat::Vllm033, &json("other")).await;
    for sim in [&a, &b, &c] {
        let connected = || async {
            let shown = get(sim.addr(), "/sim/kv-events").await.json();
            shown["subscribers"] == 1
        };
        while !connected().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The subscription itself is on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(sim, 1).await;
    }
    reader
        .until("both", |reader| {
            let held = |name: &str| reader.map.get(name).map_or(0, BTreeSet::len);
            held("kv@a@m") == a.stats().load.cached_blocks
                && held("kv@b@m") == b.stats().load.cached_blocks
        })
        .await;
    assert_eq!(reader.map.len(), 2, "the third has another topic");
}

#[tokio::test]
async fn tensorrt_events_wait_for_a_poll() {
    let sim = engine(EventFormat::Trtllm, "{}").await;
    let mut poller = trtllm::Poller::new(NonZeroU32::new(16).unwrap());
    let mut held = BTreeSet::new();
    for at in 0..6 {
        ask(&sim, at).await;
        let body = post(sim.addr(), "/kv_cache_events", &json!({})).await.body;
        for rank in poller.decode(&body).unwrap() {
            assert_eq!(rank.continuity, trtllm::Continuity::Continuous);
            for event in rank.batch.events() {
                match event {
                    Event::Stored(stored) => held.extend(stored.hashes.iter().copied()),
                    Event::Removed(gone) => held.retain(|hash| !gone.hashes.contains(hash)),
                    Event::Cleared => held.clear(),
                }
            }
        }
    }
    assert_eq!(held.len(), sim.stats().load.cached_blocks);
}
