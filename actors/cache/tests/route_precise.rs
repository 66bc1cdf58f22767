//! `precise-prefix-cache-producer` in a scheduling configuration: picks by what the index knows, by what was just picked, and by what
//! other routers picked.
#![allow(clippy::unwrap_used)]

mod route;

use quorate_cache::Tier;
use quorate_cache::index::{CacheIndex, Expected};
use quorate_routing::cache::{CacheNeeds, EventsFrom, NotLookedUp};
use quorate_routing::config::EndpointPickerConfig;
use quorate_routing::pipeline::Column;
use quorate_routing::tokens::{Origin, PromptTokens};
use quorate_routing::{Decision, Scheduler, SchedulingRequest, ServedModel, Tried, now_ms};
use route::{BLOCK, World, registry, tokens};

const SCORED: &str = "- type: prefix-cache-scorer\n";

#[test]
fn the_endpoint_that_has_most_gets_it_and_tiers_count() {
    let world = World::new(4, "", SCORED);
    let prompt = tokens(1, 20 * BLOCK + 1);
    let keys = world.keys(&prompt);
    assert_eq!(keys.len(), 20);
    world.store(1, 0, Tier::Gpu, &keys[..15]);
    // All of it, but far away: 20 * 0.5 is less than 15.
    world.store(2, 0, Tier::Disk, &keys);
    world.store(3, 0, Tier::Unknown, &keys);
    let (picked, decision) = world.pick(&prompt);
    assert_eq!(picked, 1);
    let Column::Prefix {
        block_tokens,
        total_blocks,
        matched,
        worth,
        tiers,
    } = &decision.produced[0].column
    else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!((*block_tokens as usize, *total_blocks), (BLOCK, 20));
    assert_eq!(*matched, [0, 15, 20, 20]);
    assert_eq!(*worth, [0.0, 15.0, 10.0, 0.0]);
    assert_eq!(tiers[1].gpu, 15);
    assert_eq!((tiers[2].disk, tiers[3].unknown), (20, 20));
}

#[test]
fn weights_are_parameters() {
    let weights = "{tierWeights: {disk: 1}}";
    let world = World::new(4, weights, SCORED);
    let prompt = tokens(1, 20 * BLOCK + 1);
    let keys = world.keys(&prompt);
    world.store(1, 0, Tier::Gpu, &keys[..15]);
    world.store(2, 0, Tier::Disk, &keys);
    assert_eq!(world.pick(&prompt).0, 2);
}

#[test]
fn the_best_rank_of_an_endpoint_counts() {
    let world = World::new(3, "{speculativeIndexing: false}", SCORED);
    let prompt = tokens(1, 20 * BLOCK + 1);
    let keys = world.keys(&prompt);
    world.store(0, 0, Tier::Gpu, &keys[..6]);
    world.store(2, 0, Tier::Gpu, &keys[..2]);
    world.store(2, 3, Tier::Gpu, &keys[..7]);
    world.store(2, 1, Tier::Gpu, &keys[..5]);
    let (picked, decision) = world.pick(&prompt);
    assert_eq!(picked, 2);
    let Column::Prefix { matched, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!(*matched, [6, 0, 7]);
    // What was believed is counted, and can be seen without a pick. Neither makes anything expected.
    let totals = world.endpoints()[2].cache_use().totals();
    let counted = (totals.picks, totals.prompt_tokens, totals.predicted_tokens);
    assert_eq!(counted, (1, 321, 7 * 16));
    let prefixes = world.policy.prefixes.as_ref().unwrap();
    let found = prefixes.look_up(&prompt, world.endpoints()).unwrap();
    let ranks: Vec<_> = found
        .ranks
        .iter()
        .map(|of| (of.row, of.rank, of.cached, of.worth))
        .collect();
    let expected = [
        (0, 0, 6, 96.0),
        (2, 0, 2, 32.0),
        (2, 1, 5, 80.0),
        (2, 3, 7, 112.0),
    ];
    assert_eq!(ranks, expected);
    assert!(
        found
            .ranks
            .iter()
            .all(|of| (of.blocks, of.block_tokens) == (20, 16))
    );
    let lengths: Vec<_> = found.prefixes.iter().map(|of| of.tokens).collect();
    assert_eq!(lengths, [16, 32, 64, 128, 256]);
    assert_eq!(world.index.stats().expected, 0);
    let estimate = PromptTokens {
        origin: Origin::Estimate,
        ..prompt
    };
    let refused = prefixes.look_up(&estimate, world.endpoints());
    assert_eq!(refused, Err(NotLookedUp::Estimate));
}

#[test]
fn what_was_picked_is_expected_until_it_is_announced_or_its_time_has_passed() {
    let world = World::new(8, "{speculativeTTL: 1s}", SCORED);
    for endpoint in 0..8 {
        world.store(endpoint, 0, Tier::Gpu, &[]);
    }
    let prompt = tokens(7, 12 * BLOCK + 1);
    let (first, _) = world.pick(&prompt);
    for _ in 0..20 {
        let (again, decision) = world.pick(&prompt);
        assert_eq!(again, first);
        let Column::Prefix { tiers, .. } = &decision.produced[0].column else {
            panic!("{:?}", decision.produced);
        };
        assert_eq!(tiers[first].expected, 12);
    }
    // The engine says that it has the first half; then the time of the rest passes.
    let keys = world.keys(&prompt);
    world.store(first, 0, Tier::Gpu, &keys[..6]);
    world.index.expire((now_ms() + 60_000) / 250);
    let (again, decision) = world.pick(&prompt);
    assert_eq!(again, first);
    let Column::Prefix { tiers, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!((tiers[first].gpu, tiers[first].expected), (6, 0));
}

#[test]
fn other_routers_are_told_at_once() {
    let (here, there) = (World::new(8, "", SCORED), World::new(8, "", SCORED));
    for world in [&here, &there] {
        for endpoint in 0..8 {
            world.store(endpoint, 0, Tier::Gpu, &[]);
        }
    }
    let prompt = tokens(7, 12 * BLOCK + 1);
    let (first, _) = here.pick(&prompt);
    let mut budget = 10_000;
    let learner = &here.policy.learners[0].plugin;
    let told = learner.take(here.endpoints(), &mut budget, now_ms());
    assert_eq!((told.len(), budget), (1, 10_000 - 13));
    assert!(
        learner
            .take(here.endpoints(), &mut budget, now_ms())
            .is_empty()
    );
    for (endpoint, learnt) in told {
        let at = there.endpoints().iter();
        let same = at.clone().find(|e| e.name() == endpoint.name()).unwrap();
        let hearer = &there.policy.learners[0].plugin;
        hearer.learn(same, &learnt, now_ms()).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(there.pick(&prompt).0, first);
    }
    // What is known already is not told again.
    here.pick(&prompt);
    assert!(
        learner
            .take(here.endpoints(), &mut budget, now_ms())
            .is_empty()
    );
}

#[test]
fn endpoints_come_and_go() {
    let mut world = World::new(3, "", SCORED);
    let prompt = tokens(1, 20 * BLOCK + 1);
    let keys = world.keys(&prompt);
    world.store(1, 0, Tier::Gpu, &keys);
    assert_eq!(world.pick(&prompt).0, 1);
    // The same name with another engine behind it, which has nothing.
    world.replace(1);
    let (_, decision) = world.pick(&prompt);
    let Column::Prefix { matched, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert!(matched.iter().all(|blocks| *blocks == 0), "{matched:?}");
    world.store(1, 0, Tier::Gpu, &keys[..3]);
    assert_eq!(world.pick(&prompt).0, 1);
}

#[test]
fn without_tokens_or_holders_nothing_is_known_and_nothing_fails() {
    let world = World::new(3, "", SCORED);
    let unknown = |decision: &Decision| {
        let Column::Prefix { total_blocks, .. } = &decision.produced[0].column else {
            panic!("{:?}", decision.produced);
        };
        *total_blocks == 0
    };
    let prompt = tokens(1, 20 * BLOCK + 1);
    assert!(unknown(&world.pick(&prompt).1), "no holder is there");
    let keys = world.keys(&prompt);
    world.store(1, 0, Tier::Gpu, &keys);
    let mut estimate = prompt.clone();
    estimate.origin = Origin::Estimate;
    assert!(unknown(&world.pick(&estimate).1));
    assert!(unknown(&world.pick(&tokens(1, BLOCK)).1), "no whole block");
    let mut decision = Decision::default();
    let view = world.view.route("m").unwrap();
    let request = SchedulingRequest::default();
    let scheduler = &world.policy.scheduler;
    let picked = scheduler.schedule(&request, view, &Tried::default(), 2, 1, Some(&mut decision));
    assert!(picked.is_ok() && unknown(&decision));
}

#[test]
fn the_pick_says_how_much_it_believes_to_be_cached() {
    let world = World::new(2, "", SCORED);
    let prompt = tokens(1, 20 * BLOCK);
    let keys = world.keys(&prompt);
    assert_eq!(keys.len(), 19, "the last token is always computed");
    world.store(1, 0, Tier::Cpu, &keys[..10]);
    let route = world.view.route("m").unwrap();
    let request = SchedulingRequest::default().with_tokens(Some(&prompt));
    let tried = Tried::default();
    let picked = world
        .policy
        .scheduler
        .schedule(&request, route, &tried, 2, 1, None)
        .unwrap();
    assert_eq!(picked.cached_tokens, Some(10 * BLOCK as u64));
}

#[test]
fn the_old_plugin_is_producer_and_scorer_in_one() {
    let text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: precise-prefix-cache-scorer\n";
    let world = World::of(3, text);
    let prompt = tokens(1, 20 * BLOCK + 1);
    let keys = world.keys(&prompt);
    world.store(2, 0, Tier::Gpu, &keys[..15]);
    assert_eq!(world.pick(&prompt).0, 2);
    assert!(world.policy.tokens.is_some() && world.policy.cache.is_some());
}

#[test]
fn the_preset_works() {
    let world = World::of(
        4,
        quorate_routing::config::presets::get("precise-prefix").unwrap(),
    );
    let prompt = tokens(1, 20 * BLOCK + 1);
    let keys = world.keys(&prompt);
    world.store(3, 0, Tier::Gpu, &keys);
    assert_eq!(world.pick(&prompt).0, 3);
    assert!(world.policy.tokens.is_some());
}

#[test]
fn parameters_say_what_engines_must_be_asked() {
    let needs = |parameters: &str| {
        let text = format!(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n\
             - type: precise-prefix-cache-producer\n  parameters: {parameters}\n{SCORED}"
        );
        let parsed = EndpointPickerConfig::parse(&text).map_err(|e| e.to_string())?;
        let index = CacheIndex::new(quorate_cache::index::IndexConfig { max_bytes: 1 << 20 });
        let compiled = parsed.config.compile_with(&registry(index.into()));
        let compiled = compiled.map_err(|e| e.to_string())?;
        let warnings: Vec<String> = compiled.warnings.iter().map(|w| w.to_string()).collect();
        Ok::<_, String>((compiled.cache.unwrap(), warnings.join("\n")))
    };
    let (plain, warnings) = needs("{}").unwrap();
    assert!(plain.self_check);
    let rest = CacheNeeds {
        self_check: false,
        ..CacheNeeds::clone(&plain)
    };
    assert_eq!((rest, warnings), (Default::default(), String::new()));
    let (polled, warnings) = needs(
        "{kvEventsConfig: {zmqEndpoint: 'tcp://*:5557', engineType: trtllm, selfCheck: false}}",
    )
    .unwrap();
    assert_eq!(polled.events, EventsFrom::Poll);
    assert!(!polled.self_check);
    assert!(warnings.contains("polled"), "{warnings}");
    let (guide, warnings) = needs(
        "{tokenProcessorConfig: {blockSize: 64, hashSeed: '42'}, speculativeIndexing: true, speculativeTTL: 2s, \
         kvEventsConfig: {topicFilter: 'kv@', concurrency: 4, discoverPods: true, podDiscoveryConfig: {socketPort: 5556, \
         replaySocketPort: 5558, podLabelSelector: 'a=b'}}, indexerConfig: {kvBlockIndexConfig: {enableMetrics: true}}}",
    )
    .unwrap();
    assert_eq!(guide.events, EventsFrom::Port(5556));
    assert_eq!(
        (guide.replay_port, guide.topic.as_str()),
        (Some(5558), "kv@")
    );
    assert_eq!(
        (guide.block_tokens, guide.hash_seed.as_deref()),
        (Some(64), Some("42"))
    );
    for named in ["concurrency", "podLabelSelector", "kvBlockIndexConfig"] {
        assert!(warnings.contains(named), "{named}: {warnings}");
    }
    let (central, _) =
        needs("{kvEventsConfig: {zmqEndpoint: 'tcp://*:5557', engineType: sglang}}").unwrap();
    assert_eq!(central.events, EventsFrom::Bind("tcp://*:5557".into()));
    assert_eq!(central.algorithm.as_deref(), Some("sglang"));
    for (wrong, what) in [
        (
            "{kvEventsConfig: {zmqEndpoint: 'tcp://10.0.0.1:5557'}}",
            "engines can dial",
        ),
        ("{speculativeTTL: 0s}", "more than 0"),
        ("{tierWeights: {cpu: 2}}", "0 to 1"),
        (
            "{tokenProcessorConfig: {engineHashAlgorithm: md5}}",
            "none of",
        ),
        (
            "{kvEventsConfig: {podDiscoveryConfig: {socketPort: 0}}}",
            "1 to 65535",
        ),
    ] {
        let error = needs(wrong).unwrap_err();
        assert!(error.contains(what), "{wrong}: {error}");
    }
}

#[test]
fn what_others_expect_of_a_process_that_is_gone_is_not_believed() {
    let world = World::new(2, "", SCORED);
    world.store(1, 0, Tier::Gpu, &[]);
    let keys = world.keys(&tokens(7, 12 * BLOCK + 1));
    let endpoint = &world.endpoints()[1];
    let key = world.holder(1, 0);
    assert_eq!(world.index.expect(key, 99, &keys, 1), Expected::NotThere);
    let learner = &world.policy.learners[0].plugin;
    let told = |incarnation| quorate_routing::learnt::Learnt::Expected {
        rank: 0,
        incarnation,
        keys: keys.clone(),
    };
    learner.learn(endpoint, &told(99), now_ms()).unwrap();
    assert_eq!(world.index.stats().expected_now, 0);
    learner.learn(endpoint, &told(1), now_ms()).unwrap();
    assert_eq!(world.index.stats().expected_now, 12);
    let other = quorate_routing::learnt::Learnt::Cold { ago_ms: 1 };
    assert!(learner.learn(endpoint, &other, now_ms()).is_err());
}

/// Two ways of naming blocks among the candidates: each endpoint is asked in its own.
#[test]
fn endpoints_that_name_blocks_differently_are_compared() {
    let world = World::new(3, "{speculativeIndexing: false}", SCORED);
    let prompt = tokens(1, 40 * BLOCK + 1);
    let keys = world.keys(&prompt);
    world.store(0, 0, Tier::Gpu, &keys[..9]);
    let other = world.store_in_other_space(1, 2 * BLOCK, &prompt, 5);
    assert_eq!(other, 5);
    let (picked, decision) = world.pick(&prompt);
    let Column::Prefix { matched, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!(
        (picked, matched.iter().max()),
        (1, Some(&10)),
        "{matched:?}"
    );
}

/// The pick allocates nothing once every endpoint has had its turn.
#[test]
fn a_precise_pick_over_100_endpoints_allocates_nothing() {
    let world = World::of(
        100,
        quorate_routing::config::presets::get("precise-prefix").unwrap(),
    );
    let prompts: Vec<_> = (0..8).map(|seed| tokens(seed, 128 * BLOCK + 1)).collect();
    for endpoint in 0..100 {
        let keys = world.keys(&prompts[endpoint % 8]);
        world.store(endpoint, 0, Tier::Gpu, &keys);
    }
    let route = world.view.route("m").unwrap();
    let tried = Tried::default();
    let pick = |i: u64| {
        let prompt = &prompts[i as usize % 8];
        let request = SchedulingRequest {
            model: "m",
            ..SchedulingRequest::default().with_tokens(Some(prompt))
        };
        let picked = world
            .policy
            .scheduler
            .schedule(&request, route, &tried, 2, i, None);
        assert!(picked.is_ok_and(|p| p.cached_tokens == Some(128 * BLOCK as u64)));
    };
    (0..3000).for_each(pick);
    let counted = allocation_counter::measure(|| (3000..3100).for_each(pick));
    assert_eq!(counted.count_total, 0);
}

/// vLLM's newer hashes cover where an adapter was loaded from. Each endpoint says that in its list of models.
#[test]
fn an_adapters_blocks_are_named_by_where_each_endpoint_loaded_it_from() {
    let world = World::new(4, "{speculativeTTL: 60s}", SCORED);
    let adapter = |root: Option<&str>| {
        let model = |id: &str, parent: Option<&str>, root: Option<&str>| ServedModel {
            id: id.into(),
            parent: parent.map(str::to_owned),
            root: root.map(str::to_owned),
            ..ServedModel::default()
        };
        vec![model("m", None, Some("/base")), model("a", Some("m"), root)]
    };
    let roots = [Some("/one"), Some("/two"), None, Some("/two")];
    for (endpoint, root) in world.endpoints().iter().zip(roots) {
        endpoint.set_models(adapter(root));
    }
    let mut prompt = tokens(3, 20 * BLOCK + 1);
    prompt.lora = Some("a".into());
    let keys = |path| {
        let mut keys = Vec::new();
        world
            .space
            .keys(&prompt, Some(path), 20, &mut keys)
            .unwrap();
        keys
    };
    let (one, two) = (keys("/one"), keys("/two"));
    assert_ne!(one, two);
    world.store(0, 0, Tier::Gpu, &one[..5]);
    world.store(1, 0, Tier::Gpu, &two[..7]);
    // Not this endpoint's: it loaded the adapter from elsewhere, and says nothing of it.
    world.store(2, 0, Tier::Gpu, &two);
    world.store(3, 0, Tier::Gpu, &one);
    let (picked, decision) = world.pick(&prompt);
    let Column::Prefix { matched, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!((picked, matched.as_slice()), (1, &[5, 7, 0, 0][..]));
    // What was picked is expected under the endpoint's own names.
    let (_, decision) = world.pick(&prompt);
    let Column::Prefix { tiers, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!((tiers[1].gpu, tiers[1].expected), (7, 13));
    // The same prompt without the adapter is another one.
    prompt.lora = None;
    let (_, decision) = world.pick(&prompt);
    let Column::Prefix { matched, .. } = &decision.produced[0].column else {
        panic!("{:?}", decision.produced);
    };
    assert_eq!(*matched, [0, 0, 0, 0]);
}
