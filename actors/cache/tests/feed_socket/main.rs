//! From an engine's sockets to two replicas: the feeder finds the engine's streams, replays what came before it, follows what comes
//! after, and tells a log that both replicas apply; and what it says where something is wrong.
#![allow(clippy::unwrap_used)]

mod engine;
mod world;

use bytes::Bytes;
use engine::Engine;
use quorate_cache::feed::actor::Targets;
use quorate_cache::feed::condition;
use quorate_cache::hash::ExtraForm;
use quorate_cache::index::HolderKey;
use quorate_cache::keys::{KeySpace, Scheme};
use quorate_cache::link::{Address, zmtp};
use quorate_routing::cache::{CacheNeeds, EventsFrom};
use quorate_routing::tokens::{Origin, PromptTokens};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use world::{Pages, World, bound, target};

const BLOCK: u32 = 2;
const SEED: &str = "0";
const KEY: HolderKey = HolderKey {
    endpoint: 7,
    rank: 0,
};
/// Far longer than a busy machine needs: only a failure takes it.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a router asks for a prompt by.
fn keys(scheme: &Scheme, tokens: &[u32]) -> BTreeSet<u64> {
    let space = KeySpace::new("m", BLOCK, scheme.clone()).unwrap();
    let prompt = PromptTokens {
        ids: tokens.into(),
        media: Vec::new(),
        lora: None,
        salt: None,
        origin: Origin::Local,
        exact: true,
    };
    let mut keys = Vec::new();
    space.keys(&prompt, None, usize::MAX, &mut keys).unwrap();
    keys.into_iter().collect()
}

fn exact(seed: &str) -> Scheme {
    Scheme::of(Some("sha256_cbor"), Some(seed), ExtraForm::Tagged)
}

fn needs(seed: &str) -> CacheNeeds {
    CacheNeeds {
        algorithm: Some("sha256_cbor".into()),
        hash_seed: Some(seed.into()),
        ..CacheNeeds::default()
    }
}

/// An engine that has published `before`, and then a feeder.
async fn discovered(
    needs: CacheNeeds,
    before: &[&[u32]],
    version: Option<&str>,
) -> (Arc<Engine>, Arc<Pages>, World) {
    let engine = Engine::new("");
    before.iter().for_each(|tokens| engine.store(tokens));
    let mut pages = BTreeMap::from([("/kv_event_sources", bound(&engine).await)]);
    if let Some(version) = version {
        pages.insert("/version", format!(r#"{{"version":"{version}"}}"#));
    }
    let pages = Arc::new(Pages {
        pages,
        ..Pages::default()
    });
    let owned = vec![target(KEY.endpoint, "e", needs)];
    let world = World::start(owned, Arc::clone(&pages)).await;
    (engine, pages, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engines_blocks_come_to_both_replicas() {
    let (early, late, last) = ([1, 2, 3, 4, 5, 6], [9, 8, 7, 6], [20, 21]);
    let (engine, _, world) = discovered(needs(SEED), &[&early], None).await;
    let scheme = exact(SEED);

    // Published before anybody listened: only the replay has it.
    let mut truth = keys(&scheme, &early);
    world.settles("replayed", KEY, &truth).await;

    engine.store(&late);
    engine.remove_last(&early);
    truth.extend(keys(&scheme, &late));
    truth.retain(|key| {
        keys(&scheme, &early[..4]).contains(key) || !keys(&scheme, &early).contains(key)
    });
    world.settles("live", KEY, &truth).await;

    // What cannot be read may have been anything: only what comes after it counts.
    engine.publish(Bytes::from_static(&[0xc1]));
    engine.store(&last);
    world
        .settles("after an unreadable batch", KEY, &keys(&scheme, &last))
        .await;
    world.is_fine("e").await;

    world.targets.send_replace(Targets {
        owned: Vec::new(),
        declared: Some(BTreeSet::new()),
    });
    world
        .until("the endpoint is gone", |world| {
            (0..2).all(|replica| world.held(replica, KEY).is_none())
        })
        .await;
    world.feeder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_seed_is_found_out_and_the_blocks_are_learnt_until_the_engine_is_another() {
    let (prompt, next) = ([1, 2, 3, 4], [5, 6, 7, 8]);
    let (engine, _, world) = discovered(needs("another"), &[&prompt], None).await;
    world
        .settles("learnt", KEY, &keys(&Scheme::Own, &prompt))
        .await;
    let said = world.condition("e", condition::HASH_MISMATCH).await;
    assert!(
        said.contains("the seed \"0\"") && said.contains("the seed \"another\""),
        "{said}"
    );
    // The stream was begun anew since, and the condition is still there.
    let status = world.feeder.status().remove(&KEY).unwrap();
    assert!(
        status.hash_mismatch && status.exact == Some(false),
        "{status:?}"
    );

    engine.restart("another");
    engine.store(&next);
    world
        .settles("exact", KEY, &keys(&exact("another"), &next))
        .await;
    world.is_fine("e").await;
    world.feeder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_says_how_extra_keys_are_hashed_and_whether_the_seed_is_known() {
    let prompt = [1, 2, 3, 4];
    let (_, _, world) = discovered(needs(SEED), &[&prompt], Some("0.20.1")).await;
    let untagged = Scheme::of(Some("sha256_cbor"), Some(SEED), ExtraForm::Untagged);
    world
        .settles("untagged", KEY, &keys(&untagged, &prompt))
        .await;
    world.is_fine("e").await;
    world.feeder.shutdown().await;

    let unseeded = CacheNeeds {
        hash_seed: None,
        ..needs(SEED)
    };
    let (_, _, world) = discovered(unseeded, &[&prompt], Some("0.20.1")).await;
    world
        .settles("learnt", KEY, &keys(&Scheme::Own, &prompt))
        .await;
    let said = world.condition("e", condition::RANDOM_SEED).await;
    assert!(
        said.contains("0.20") && said.contains("PYTHONHASHSEED"),
        "{said}"
    );
    world.feeder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_of_which_nothing_is_heard_is_asked_and_said_to_be_silent() {
    let asked = CacheNeeds {
        block_tokens: Some(BLOCK),
        self_check: true,
        ..needs(SEED)
    };
    let (engine, pages, world) = discovered(asked, &[], None).await;
    let said = world.condition("e", condition::SILENT).await;
    let prompt = pages.prompts.lock().clone();
    assert_eq!(prompt.len(), 1, "asked once");
    let prompt = prompt.first().unwrap();
    assert!(said.contains(&format!("{} tokens", prompt.len())), "{said}");
    // Its blocks are announced after all.
    let whole = &prompt[..prompt.len() / 2 * 2];
    engine.store(whole);
    world
        .settles("announced", KEY, &keys(&exact(SEED), whole))
        .await;
    world.is_fine("e").await;
    world.feeder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_that_dial_in_are_told_apart_and_those_that_never_came_are_named() {
    let at = free();
    let dials = dials(&at);
    let owned = vec![target(7, "e", dials.clone()), target(8, "f", dials)];
    let world = World::start(owned, Arc::default()).await;
    let other = HolderKey {
        endpoint: 8,
        rank: 0,
    };
    let said = world.condition("f", condition::NEVER_CAME).await;
    assert!(said.contains(&at), "{said}");

    let at = Address::parse(&at).unwrap();
    let engines = [
        Engine::new("kv@127.0.0.1:8007@m"),
        Engine::new("kv@nobody@m"),
    ];
    for engine in &engines {
        tokio::spawn(Arc::clone(engine).dial(at.clone()));
        world
            .until("the engine is connected", |_| engine.listeners() > 0)
            .await;
    }
    let (first, second, third) = ([1, 2, 3, 4], [5, 6], [7, 8]);
    engines[0].store(&first);
    engines[1].store(&second);
    world
        .settles("by its topic", KEY, &keys(&exact(SEED), &first))
        .await;
    world.is_fine("e").await;
    world
        .until("the stream of nobody is named", |world| {
            let conditions = world.feeder.conditions("f");
            conditions.iter().any(|c| c.message.contains("kv@nobody@m"))
        })
        .await;
    assert_eq!(world.held(0, other), None);

    let named = Engine::new("kv@f@m");
    tokio::spawn(Arc::clone(&named).dial(at));
    world
        .until("the engine is connected", |_| named.listeners() > 0)
        .await;
    named.store(&third);
    world
        .settles("by its name", other, &keys(&exact(SEED), &third))
        .await;
    world.is_fine("f").await;
    world.feeder.shutdown().await;
}

/// A free address, as far as one can be had: it is bound again at once.
fn free() -> String {
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("tcp://{}", probe.local_addr().unwrap())
}

fn dials(at: &str) -> CacheNeeds {
    CacheNeeds {
        events: EventsFrom::Bind(at.to_owned()),
        ..needs(SEED)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_dials_another_router_is_that_ones_from_then_on() {
    let at = [free(), free()];
    let world = World::start(vec![target(7, "e", dials(&at[0]))], Arc::default()).await;
    let (_targets, other) = world.second(vec![target(7, "e", dials(&at[1]))]).await;
    let engine = Engine::new("kv@e@m");
    // There, to the other router, and back. Nothing can be replayed: what was said to the router before is forgotten.
    for (turn, tokens) in [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
        .iter()
        .enumerate()
    {
        let at = Address::parse(&at[turn % 2]).unwrap();
        let connection = tokio::spawn(Arc::clone(&engine).dial(at));
        world
            .until("the engine is connected", |_| engine.listeners() > 0)
            .await;
        engine.store(tokens);
        world
            .settles(&format!("turn {turn}"), KEY, &keys(&exact(SEED), tokens))
            .await;
        connection.abort();
        world
            .until("the engine has gone", |_| engine.listeners() == 0)
            .await;
    }
    other.shutdown().await;
    world.feeder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_said_before_it_dialled_in_is_replayed() {
    let engine = Engine::new("kv@e@m");
    let replays = zmtp::listen(&Address::parse("tcp://127.0.0.1:0").unwrap())
        .await
        .unwrap();
    let port = replays.address().unwrap().to_string();
    let port = port.rsplit_once(':').unwrap().1.parse().unwrap();
    tokio::spawn(Arc::clone(&engine).serve_replays(replays));
    let at = free();
    let needs = CacheNeeds {
        replay_port: Some(port),
        ..dials(&at)
    };
    let world = World::start(vec![target(7, "e", needs)], Arc::default()).await;
    let (first, second) = ([1, 2, 3, 4], [5, 6]);
    engine.store(&first);
    tokio::spawn(Arc::clone(&engine).dial(Address::parse(&at).unwrap()));
    world
        .until("the engine is connected", |_| engine.listeners() > 0)
        .await;
    engine.store(&second);
    let scheme = exact(SEED);
    let both = &keys(&scheme, &first) | &keys(&scheme, &second);
    world.settles("with what was before", KEY, &both).await;
    world.feeder.shutdown().await;
}

fn stored(id: u64, hash: u64, tokens: [u32; 2]) -> String {
    let [a, b] = tokens;
    format!(
        r#"{{"event_id":{id},"window_size":64,"data":{{"type":"stored","parent_hash":null,"blocks":[{{"block_hash":{hash},"tokens":[{{"token_id":{a}}},{{"token_id":{b}}}],"cache_level":0}}]}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_sockets_is_polled() {
    let pages = Arc::new(Pages::default());
    let polled = CacheNeeds {
        events: EventsFrom::Poll,
        block_tokens: Some(BLOCK),
        ..CacheNeeds::default()
    };
    let owned = vec![target(KEY.endpoint, "e", polled)];
    let answer = |events: &[String]| Ok(format!("[{}]", events.join(",")));
    pages.polls.lock().push(answer(&[stored(0, 11, [1, 2])]));
    let world = World::start(owned, Arc::clone(&pages)).await;
    let own = |tokens: &[u32]| keys(&Scheme::Own, tokens);
    world.settles("polled", KEY, &own(&[1, 2])).await;
    pages.polls.lock().push(answer(&[stored(1, 12, [3, 4])]));
    let both = own(&[1, 2]).into_iter().chain(own(&[3, 4])).collect();
    world.settles("and again", KEY, &both).await;
    world.is_fine("e").await;

    // Somebody else read some, or the buffer overflowed: what is lost may have been anything.
    pages.polls.lock().push(answer(&[stored(9, 13, [5, 6])]));
    world.settles("after a hole", KEY, &own(&[5, 6])).await;
    pages.polls.lock().push(Err("status 500".into()));
    let said = world.condition("e", condition::NO_STREAM).await;
    assert!(said.contains("status 500"), "{said}");
    world.is_fine("e").await;
    world
        .settles("an error costs nothing", KEY, &own(&[5, 6]))
        .await;
    world.feeder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_endpoint_that_another_node_owns_now_nothing_is_said_any_more() {
    let polled = CacheNeeds {
        events: EventsFrom::Poll,
        block_tokens: None,
        ..CacheNeeds::default()
    };
    let owned = vec![target(KEY.endpoint, "e", polled)];
    let world = World::start(owned, Arc::new(Pages::default())).await;
    let said = world.condition("e", condition::NO_STREAM).await;
    assert!(said.contains("how many tokens a block has"), "{said}");
    world.targets.send_modify(|targets| targets.owned.clear());
    world.is_fine("e").await;
    assert!(world.feeder.status().is_empty());
    world.feeder.shutdown().await;
}
