//! The parameters of `precise-prefix-cache-producer`, and what they say of the engines' events and hashes.

use super::heat::Heat;
use super::precise::Precise;
use crate::Tier;
use crate::index::{CacheIndex, TierWeights};
use quorate_routing::cache::{CacheNeeds, EventsFrom};
use quorate_routing::config::Fields;
use quorate_routing::config::registry::{Build, Built, Produces};
use quorate_routing::plugin::scorer::prefix::of_own_column;
use std::sync::Arc;
use std::time::Duration;

/// How long something is expected, unless said otherwise.
const EXPECTED_FOR: Duration = Duration::from_secs(2);

const OWN_INDEX: &str =
    "is not read: all routers of a region share one index, sized by the router's own configuration";

fn events(fields: &mut Fields<'_>, needs: &mut CacheNeeds) {
    let address = fields.text("zmqEndpoint").filter(|a| !a.is_empty());
    let discover = fields.flag_if("discoverPods");
    needs.topic = fields.text("topicFilter").unwrap_or_default();
    if fields.whole_if("concurrency", 0..=1 << 20).is_some() {
        fields.warn(
            "concurrency",
            "is not read: each engine has a stream of its own",
        );
    }
    let engines = ["vllm", "sglang", "trtllm"].map(|name| (name, name));
    let engine = fields.one_of("engineType", &engines, "vllm");
    if engine == "sglang" {
        needs.algorithm = Some("sglang".into());
    }
    needs.self_check = fields.flag("selfCheck", true);
    let (port, replay) = fields.object("podDiscoveryConfig", |fields| {
        for key in ["podLabelSelector", "podNamespace"] {
            if fields.raw(key).is_some() {
                fields.warn(key, "is not read: the pool's endpoints are followed");
            }
        }
        (
            fields.whole_if("socketPort", 1..=65_535),
            fields.whole_if("replaySocketPort", 0..=65_535),
        )
    });
    let replay_port = fields.whole_if("replayPort", 0..=65_535).or(replay);
    let port_of = |port: u64| u16::try_from(port).ok().filter(|port| *port > 0);
    needs.replay_port = replay_port.and_then(port_of);
    if engine == "trtllm" {
        if address.is_some() || port.is_some() || replay_port.is_some() {
            fields.warn(
                "engineType",
                "TensorRT-LLM engines are polled over HTTP: addresses and ports are not read",
            );
        }
        needs.events = EventsFrom::Poll;
        return;
    }
    needs.events = match (port.and_then(port_of), address) {
        (Some(port), _) => EventsFrom::Port(port),
        (None, Some(address)) if discover != Some(true) => {
            let binds = ["*", "::", "0.0.0.0"];
            if !address.starts_with("tcp://") || !binds.iter().any(|any| address.contains(any)) {
                fields.error(
                    "zmqEndpoint",
                    "must be an address that engines can dial, such as tcp://*:5557",
                );
            }
            EventsFrom::Bind(address)
        }
        (None, address) => {
            if address.is_some() {
                fields.warn("zmqEndpoint", "is not read with `discoverPods`");
            }
            EventsFrom::Discover
        }
    };
}

fn hashing(fields: &mut Fields<'_>, needs: &mut CacheNeeds) {
    let range = || 1..=65_536;
    let size = fields.whole_if("blockSizeTokens", range());
    let old = fields.whole_if("blockSize", range());
    let size = size.or(old).and_then(|size| u32::try_from(size).ok());
    needs.block_tokens = size.or(needs.block_tokens);
    let seed = fields.text("hashSeed").filter(|seed| !seed.is_empty());
    needs.hash_seed = seed.or(needs.hash_seed.take());
    if fields.text("hashAlgorithm").is_some() {
        fields.warn(
            "hashAlgorithm",
            "is not read: blocks are known by the engines' own hashes; `engineHashAlgorithm` says which",
        );
    }
    const ALGORITHMS: [&str; 5] = ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor", "sglang"];
    let named = ALGORITHMS.map(|name| (name, Some(name)));
    let algorithm = fields.one_of("engineHashAlgorithm", &named, None);
    needs.algorithm = algorithm.map(str::to_owned).or(needs.algorithm.take());
}

fn weight_of(fields: &mut Fields<'_>, weights: TierWeights) -> TierWeights {
    let known = [Tier::Gpu, Tier::Cpu, Tier::Disk, Tier::Storage];
    known.into_iter().fold(weights, |weights, tier| {
        match fields.number_if(tier.as_str(), 0.0..=1.0) {
            Some(weight) => weights.with(tier, weight as f32),
            None => weights,
        }
    })
}

fn indexer(
    fields: &mut Fields<'_>,
    needs: &mut CacheNeeds,
    mut weights: TierWeights,
) -> TierWeights {
    fields.object("tokenProcessorConfig", |fields| hashing(fields, needs));
    for key in [
        "kvBlockIndexConfig",
        "prefixStoreConfig",
        "tokenizersPoolConfig",
        "kvBlockScorerConfig",
    ] {
        if fields.raw(key).is_some() {
            fields.warn(key, OWN_INDEX);
        }
    }
    for (path, item) in fields.items("kvCacheBackendConfigs") {
        let mut fields = Fields::new(&path, Some(item), fields.findings());
        let name = fields.required_text("name");
        let weight = fields.number("weight", 1.0, 0.0..=1.0);
        let tier = Tier::of_medium(&name);
        if tier == Tier::Unknown {
            fields.warn("name", "is no tier that is known here: it weighs nothing");
        }
        weights = weights.with(tier, weight as f32);
        fields.finish();
    }
    weights
}

/// Makes the producer; `scores`: it is the old plugin that scored as well.
pub(super) fn build(
    fields: &mut Fields<'_>,
    build: &mut Build<'_>,
    (index, heat): (&Arc<CacheIndex>, &Arc<Heat>),
    scores: bool,
) -> Built {
    let mut needs = CacheNeeds {
        self_check: true,
        ..CacheNeeds::default()
    };
    let weights = fields.object("indexerConfig", |fields| {
        indexer(fields, &mut needs, TierWeights::default())
    });
    fields.object("tokenProcessorConfig", |fields| {
        hashing(fields, &mut needs);
    });
    fields.object("kvEventsConfig", |fields| events(fields, &mut needs));
    let weights = fields.object("tierWeights", |fields| weight_of(fields, weights));
    let speculative = fields.flag("speculativeIndexing", true);
    let ttl = fields.duration("speculativeTTL").unwrap_or(EXPECTED_FOR);
    if ttl.is_zero() || ttl > Duration::from_secs(600) {
        fields.error("speculativeTTL", "must be more than 0 and at most 10m");
    }
    let column = build.own(Produces::Prefix);
    let plugin = Arc::new(Precise::new(
        Arc::clone(index),
        column,
        build.profile("prefill"),
        weights,
        speculative.then_some(ttl),
        Arc::clone(heat),
    ));
    Built {
        producer: Some(plugin.clone()),
        on_picked: Some(plugin.clone()),
        prefixes: Some(plugin.clone()),
        learner: speculative.then_some(plugin as Arc<_>),
        scorer: scores.then(|| Arc::new(of_own_column(build)) as Arc<_>),
        cache: Some(needs),
        ..Built::default()
    }
}
