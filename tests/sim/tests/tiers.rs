//! Tiers below the GPU over real sockets: what is loaded counts as cached and takes its time, events tell of each tier in
//! each engine's way, requests say where to load from; and the oracle beside them.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_cache::events::{Batch, Event, decode};
use quorate_cache::link::{
    Direction, LinkConfig, LinkEvent, ReplayAt, Subscriber, server_info, vllm_event_sources,
};
use quorate_sim::{
    EventFormat, Fleet, KvEventsConfig, Medium, SecondGroup, Sim, SimConfig, TierConfig,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use support::{call, get, post, start};
use tokio::sync::mpsc;

const BOUND: &str =
    r#"{"endpoint":"tcp://127.0.0.1:0","bind":true,"replay_endpoint":"tcp://127.0.0.1:0"}"#;

/// 20 blocks on the GPU, 30 in host memory, 60 on disk.
fn small(config: &mut SimConfig) {
    config.max_model_len = 256;
    config.engine.num_blocks = 20;
    config.engine.tiers = [(Medium::Cpu, 30), (Medium::Disk, 60)]
        .map(|(medium, blocks)| TierConfig {
            medium,
            blocks,
            load_block: 1000,
        })
        .to_vec();
}

fn body(at: u32) -> Value {
    let prompt: Vec<u32> = (0..161).map(|i| 1000 + at * 1000 + i).collect();
    json!({"model": "sim-model", "prompt": prompt, "max_tokens": 4, "ignore_eos": true})
}

async fn cached(sim: &Sim, body: &Value) -> u64 {
    let answer = post(sim.addr(), "/v1/completions", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let usage = &answer.json()["usage"];
    usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap_or(0)
}

#[derive(Default, Debug)]
struct Seen {
    /// Held by medium and group.
    held: BTreeMap<(String, u32), BTreeSet<u64>>,
    placeholders: usize,
    described: usize,
    windows: BTreeSet<(u32, Option<u32>)>,
    sessions: BTreeSet<String>,
}

impl Seen {
    fn take(&mut self, payload: &[u8], batch: &mut Batch) {
        decode(payload, batch).unwrap();
        assert_eq!(batch.skipped, Default::default());
        for event in batch.events() {
            match event {
                Event::Stored(stored) => {
                    let medium = stored.medium.to_owned();
                    if medium != "GPU" && !medium.is_empty() {
                        if stored.tokens.is_empty() {
                            assert_eq!((stored.block_size, stored.parent), (0, None));
                            self.placeholders += 1;
                        } else {
                            self.described += 1;
                        }
                    }
                    if !stored.session.is_empty() {
                        self.sessions.insert(stored.session.to_owned());
                    }
                    self.windows.insert((stored.group, stored.sliding_window));
                    self.held
                        .entry((medium, stored.group))
                        .or_default()
                        .extend(stored.hashes);
                }
                Event::Removed(removed) => {
                    let key = (removed.medium.to_owned(), removed.group);
                    let set = self.held.entry(key).or_default();
                    for hash in removed.hashes {
                        assert!(set.remove(hash), "{hash} was not on {}", removed.medium);
                    }
                }
                Event::Cleared => self.held.clear(),
            }
        }
    }

    fn held(&self, medium: &str, group: u32) -> usize {
        let set = self.held.get(&(medium.to_owned(), group));
        set.map_or(0, BTreeSet::len)
    }
}

/// Blocks that the server says it has: on the GPU, in host memory, on disk.
fn has(sim: &Sim) -> [usize; 3] {
    let load = sim.stats().load;
    let tier = |medium| {
        let tiers = load.tiers.iter().find(|tier| tier.medium == medium);
        tiers.map_or(0, |tier| tier.cached)
    };
    [load.cached_blocks, tier(Medium::Cpu), tier(Medium::Disk)]
}

async fn follow(sim: &Sim, format: EventFormat) -> (Subscriber, mpsc::Receiver<LinkEvent>) {
    let sources = if format >= EventFormat::Sglang055 {
        server_info(&get(sim.addr(), "/server_info").await.body, "127.0.0.1")
    } else {
        vllm_event_sources(
            &get(sim.addr(), "/kv_event_sources").await.body,
            "127.0.0.1",
        )
    };
    let source = sources.unwrap().remove(0);
    let (out, events) = mpsc::channel(64);
    let config = LinkConfig {
        replay: ReplayAt::Address(source.replay.unwrap()),
        ..LinkConfig::new(Direction::Dial(source.events))
    };
    (Subscriber::start(config, out).await.unwrap(), events)
}

async fn events(format: EventFormat, change: impl FnOnce(&mut KvEventsConfig)) -> (Sim, Seen) {
    let mut config = KvEventsConfig::parse(BOUND).unwrap().unwrap();
    config.format = format;
    change(&mut config);
    let sim = start(|sim| {
        small(sim);
        sim.kv_events = Some(config);
    })
    .await;
    let (_link, mut link) = follow(&sim, format).await;
    for at in 0..12 {
        let mut body = body(at % 8);
        body["session_id"] = json!(format!("conv-{at}"));
        cached(&sim, &body).await;
    }
    let mut seen = Seen::default();
    let mut batch = Batch::new();
    let names = [Medium::Gpu, Medium::Cpu, Medium::Disk].map(|medium| format.medium(medium));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let told = names.map(|name| seen.held(name, 0));
        if sim.stats().load.running == 0 && told == has(&sim) {
            return (sim, seen);
        }
        let state = format!("{format:?}: {told:?}, has {:?}", has(&sim));
        assert!(tokio::time::Instant::now() < deadline, "never: {state}");
        let next = tokio::time::timeout(Duration::from_millis(20), link.recv()).await;
        if let Ok(Some(LinkEvent::Batch { payload, .. })) = next {
            seen.take(&payload, &mut batch);
        }
    }
}

#[tokio::test]
async fn each_engine_tells_of_each_tier_in_its_way() {
    use EventFormat::*;
    for format in [Vllm010, Vllm015, Vllm020, Vllm025, Vllm033] {
        let (sim, seen) = events(format, |_| {}).await;
        assert_eq!(has(&sim)[1], 30, "host memory is full: some were removed");
        assert!(seen.placeholders > 0 && seen.described == 0, "{seen:?}");
        assert_eq!(seen.sessions.is_empty(), format != Vllm033);
    }
    for format in [Sglang0518, Sglang0523] {
        let (_, seen) = events(format, |_| {}).await;
        assert!(seen.placeholders == 0 && seen.described > 0, "{seen:?}");
        assert_eq!(seen.sessions.is_empty(), format != Sglang0523);
    }
    let (_, seen) = events(Vllm033, |config| config.self_describing = true).await;
    assert!(seen.placeholders == 0 && seen.described > 0, "{seen:?}");
}

#[tokio::test]
async fn a_second_group_tells_of_its_window() {
    let group = SecondGroup::parse("sliding_window:32").unwrap();
    for format in [EventFormat::Vllm022, EventFormat::Vllm033] {
        let (_, seen) = events(format, |config| config.second_group = Some(group.clone())).await;
        let full = seen.held("GPU", 0);
        let window = seen.held("GPU", 1);
        assert!(window > 0 && window < full, "{window} of {full}");
        assert_eq!((seen.held("CPU", 1), seen.held("STORAGE", 1)), (0, 0));
        let windows: BTreeSet<_> = [(0, None), (1, Some(32))].into();
        assert_eq!(seen.windows, windows);
    }
}

#[tokio::test]
async fn trtllm_moves_blocks_between_its_levels() {
    let mut config = KvEventsConfig::parse("{}").unwrap().unwrap();
    config.format = EventFormat::Trtllm;
    let sim = start(|sim| {
        small(sim);
        sim.kv_events = Some(config);
    })
    .await;
    for at in [0, 1, 2, 0, 3, 4] {
        cached(&sim, &body(at)).await;
    }
    let mut levels = BTreeMap::new();
    let mut moves = [0, 0];
    let events = post(sim.addr(), "/kv_cache_events", &json!({})).await;
    for event in events.json().as_array().unwrap() {
        let data = &event["data"];
        match data["type"].as_str().unwrap() {
            "stored" => {
                for block in data["blocks"].as_array().unwrap() {
                    let level = block["cache_level"].as_u64().unwrap();
                    assert!(
                        levels
                            .insert(block["block_hash"].as_u64().unwrap(), level)
                            .is_none()
                    );
                }
            }
            "updated" => {
                let diff = &data["cache_level"];
                let new = diff["new_value"].as_u64().unwrap();
                let old = levels.insert(data["block_hash"].as_u64().unwrap(), new);
                assert_eq!(old, diff["old_value"].as_u64());
                moves[new as usize] += 1;
            }
            "removed" => {
                for hash in data["block_hashes"].as_array().unwrap() {
                    assert!(levels.remove(&hash.as_u64().unwrap()).is_some());
                }
            }
            other => panic!("{other}"),
        }
    }
    let gpu = levels.values().filter(|level| **level == 0).count();
    assert_eq!(gpu, has(&sim)[0]);
    assert!(moves.iter().all(|moves| *moves >= 10), "{moves:?}");
}

#[tokio::test]
async fn loads_count_as_cached_and_requests_choose_where_from() {
    let sim = start(small).await;
    for at in 0..4 {
        assert_eq!(cached(&sim, &body(at)).await, 0);
    }
    // Only the last is whole on the GPU; host memory has the last three, the disk all of them.
    let only = |at: u32, tiers: Value| {
        let mut body = body(at);
        body["kv_transfer_params"] = json!({"kv_load_tiers": tiers});
        body
    };
    assert_eq!(cached(&sim, &only(1, json!([]))).await, 0);
    let seen = get(sim.addr(), "/sim/requests").await.json();
    assert_eq!(seen[0]["hints"]["load_from"], json!([]));
    assert_eq!(seen[0]["cached_tokens"], 0);
    assert_eq!(cached(&sim, &only(0, json!([{"medium": "CPU"}]))).await, 0);
    assert_eq!(cached(&sim, &body(3)).await, 160);
    let seen = get(sim.addr(), "/sim/requests").await.json();
    assert_eq!(
        (&seen[0]["cached_tokens"], &seen[0]["loaded_tokens"]),
        (&json!(160), &json!(160))
    );
    assert_eq!(seen[0]["on_arrival"]["lower_tokens"], 160);
    assert_eq!(cached(&sim, &body(3)).await, 160);
    let seen = get(sim.addr(), "/sim/requests").await.json();
    assert_eq!(
        (&seen[0]["cached_tokens"], &seen[0]["loaded_tokens"]),
        (&json!(160), &json!(0))
    );
    let page = get(sim.addr(), "/metrics").await.text();
    let value = |name: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    assert_eq!(value("vllm:external_prefix_cache_hits_total"), 160.0);
    assert_eq!(value("vllm:prefix_cache_hits_total"), 160.0);
    let wrong = only(0, json!("CPU"));
    assert_eq!(
        post(sim.addr(), "/v1/completions", &wrong).await.status,
        400
    );
    // What host memory and disk have is kept, unless that is to go too.
    post(sim.addr(), "/reset_prefix_cache", &json!({})).await;
    assert_eq!(cached(&sim, &body(3)).await, 160);
    post(
        sim.addr(),
        "/reset_prefix_cache?reset_external=true",
        &json!({}),
    )
    .await;
    assert_eq!(cached(&sim, &body(3)).await, 0);
}

/// Usage in every API's own words, whole and streamed.
#[tokio::test]
async fn every_api_says_what_was_cached() {
    let sim = start(small).await;
    let text = "the of and to in is that it ".repeat(20);
    let chat = json!([{"role": "user", "content": text}]);
    let cases = [
        (
            "/v1/completions",
            json!({"prompt": text, "max_tokens": 2}),
            "/usage/prompt_tokens_details/cached_tokens",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": chat, "max_tokens": 2}),
            "/usage/prompt_tokens_details/cached_tokens",
        ),
        (
            "/v1/responses",
            json!({"input": text, "max_output_tokens": 2}),
            "/usage/input_tokens_details/cached_tokens",
        ),
        (
            "/v1/messages",
            json!({"messages": chat, "max_tokens": 2}),
            "/usage/cache_read_input_tokens",
        ),
        (
            "/generate",
            json!({"text": text, "sampling_params": {"max_new_tokens": 2}}),
            "/meta_info/cached_tokens",
        ),
    ];
    for (path, mut body, place) in cases {
        post(
            sim.addr(),
            "/reset_prefix_cache?reset_external=true",
            &json!({}),
        )
        .await;
        assert_eq!(post(sim.addr(), path, &body).await.status, 200);
        // From host memory: that counts as well.
        post(sim.addr(), "/reset_prefix_cache", &json!({})).await;
        let whole = post(sim.addr(), path, &body).await.json();
        assert_eq!(whole.pointer(place), Some(&json!(160)), "{path}: {whole}");
        let last = get(sim.addr(), "/sim/requests").await.json();
        assert_eq!(last[0]["loaded_tokens"], 160, "{path}");
        body["stream"] = json!(true);
        if path.starts_with("/v1/c") {
            body["stream_options"] = json!({"include_usage": true});
        }
        let answer = post(sim.addr(), path, &body).await;
        let found = answer.events().iter().any(|event| {
            let event: Value = serde_json::from_str(event).unwrap_or_default();
            let roots = [&event, &event["message"], &event["response"]];
            roots
                .iter()
                .any(|root| root.pointer(place) == Some(&json!(160)))
        });
        assert!(found, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn the_oracle_knows_the_best_of_the_servers() {
    let fleet = Arc::new(Fleet::default());
    let mut sims = Vec::new();
    for _ in 0..3 {
        let mut config = SimConfig::default();
        small(&mut config);
        sims.push(Sim::start_among(config, &fleet).await.unwrap());
    }
    let other = Sim::start_among(
        SimConfig {
            model: "other".into(),
            ..SimConfig::default()
        },
        &fleet,
    )
    .await
    .unwrap();
    let mut strange = body(0);
    strange["model"] = json!("other");
    cached(&other, &strange).await;
    cached(&sims[0], &body(0)).await;
    post(sims[0].addr(), "/sim/oracle", &json!({})).await;
    // Had by the first one: missed once, hit once.
    cached(&sims[1], &body(0)).await;
    cached(&sims[0], &body(0)).await;
    cached(&sims[2], &body(5)).await;
    let oracle = get(sims[2].addr(), "/sim/oracle").await.json();
    for (key, value) in [
        ("prompts", 3),
        ("prompt_tokens", 3 * 161),
        ("cached_tokens", 160),
        ("best_tokens", 320),
    ] {
        assert_eq!(oracle[key], value, "{key} in {oracle}");
    }
    assert_eq!(oracle["of_best"], 0.5);
    let page = get(sims[1].addr(), "/metrics").await.text();
    let line = "quorate_sim_oracle_best_tokens_total{engine=\"0\",model_name=\"sim-model\"} 160.0";
    assert!(page.lines().any(|l| l == line), "{page}");
    let reset = call(sims[0].addr(), "POST", "/sim/oracle", &[], "")
        .await
        .json();
    assert_eq!(
        (&reset["prompts"], &reset["of_best"]),
        (&json!(0), &json!(null))
    );
}

#[tokio::test]
async fn a_server_lends_its_host_memory_to_another_one() {
    let fleet = Arc::new(Fleet::default());
    let mut sims = Vec::new();
    for port in [7777, 7778] {
        let mut config = SimConfig::default();
        small(&mut config);
        config.p2p_port = Some(port);
        sims.push(Sim::start_among(config, &fleet).await.unwrap());
    }
    cached(&sims[0], &body(0)).await;
    let mut from = body(0);
    from["kv_transfer_params"] = json!({"remote_kv_source":
        {"kv_request_id": "r-1", "remote_host": "127.0.0.1", "remote_port": 9}});
    from["max_tokens"] = json!(1);
    let mut nothing = from.clone();
    nothing["prompt"] = body(3)["prompt"].clone();
    assert_eq!(cached(&sims[1], &nothing).await, 0);
    from["kv_transfer_params"]["remote_kv_source"]["remote_port"] = json!(7777);
    assert_eq!(cached(&sims[1], &from).await, 160);
    // Now it has it itself.
    assert_eq!(cached(&sims[1], &body(0)).await, 160);
    let seen = get(sims[1].addr(), "/sim/requests").await.json();
    assert_eq!(seen[1]["loaded_tokens"], 160);
    assert_eq!(seen[1]["hints"]["remote_kv_source"]["remote_port"], 7777);
    assert_eq!(seen[0]["loaded_tokens"], 0);
}
