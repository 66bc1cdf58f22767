//! What is known of caches, over the control API of a node that is alone.

use super::*;
use quorate_cache::Tier;
use quorate_cache::hash::ExtraForm;
use quorate_cache::index::{DeltaBatch, HolderKey, Section};
use quorate_cache::keys::{KeySpace, Scheme};
use quorate_proto::v1::{
    CacheLookupBody, CacheLookupRequest, CacheLookupTokens, CacheStatusRequest, CacheTopRequest,
    cache_client::CacheClient, cache_lookup_request::What,
};
use quorate_routing::tokens::{Origin, PromptTokens};
use quorate_routing::{Health, SchedulingRequest, Tried, now_ms};

/// Nothing is followed before an engine says what it serves, and nothing listens at these endpoints.
const PRECISE: &str = "\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: token-producer
  parameters: {local: {directory: /nowhere}}
- type: precise-prefix-cache-producer
  parameters: {tokenProcessorConfig: {blockSize: 16, engineHashAlgorithm: sha256_cbor}}
- type: prefix-cache-scorer
- type: max-score-picker
";

/// Of `length` tokens, the first `shared` of which are everybody's.
fn prompt(seed: u32, shared: u32, length: u32) -> PromptTokens {
    let id = |at| if at < shared { at } else { at + seed * 10_000 };
    PromptTokens {
        ids: (0..length).map(id).collect(),
        media: Vec::new(),
        lora: None,
        salt: None,
        origin: Origin::Given,
        exact: true,
    }
}

async fn precise() -> Node {
    let node = Node::start().await;
    node.apply(pool("chat")).await.unwrap();
    node.apply(pool("plain")).await.unwrap();
    for name in ["gpu-1", "gpu-2"] {
        node.apply(endpoint(name, "chat")).await.unwrap();
    }
    let config = v1::SchedulingConfigSpec {
        pool: "chat".to_owned(),
        config: PRECISE.to_owned(),
    };
    node.apply(resource("chat", Spec::SchedulingConfig(config)))
        .await
        .unwrap();
    for _ in 0..1000 {
        let view = node.cache.desk().view.load_full();
        let ready = view
            .pool("chat")
            .is_some_and(|pool| pool.policy.prefixes.is_some() && pool.endpoints.len() == 2);
        if ready {
            return node;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the pool does not get into effect");
}

/// What an endpoint's owner would have told of it.
fn tell(node: &Node, name: &str, tokens: &PromptTokens, blocks: usize) {
    let scheme = Scheme::of(Some("sha256_cbor"), None, ExtraForm::Tagged);
    let space = KeySpace::new("m", 16, scheme).unwrap();
    let mut keys = Vec::new();
    space.keys(tokens, None, blocks, &mut keys).unwrap();
    let view = node.cache.desk().view.load_full();
    let mut endpoints = view.pool("chat").unwrap().endpoints.iter();
    let endpoint = endpoints.find(|e| e.name() == name).unwrap();
    let key = HolderKey {
        endpoint: endpoint.spec().incarnation,
        rank: 0,
    };
    let mut section = Section::new(key, 1, 1, 0, 1);
    (section.replace, section.space) = (true, Some(space));
    section.stored(Tier::Gpu, None, &keys);
    let sections = vec![section];
    node.index.apply(&DeltaBatch { sections });
}

fn pick(node: &Node, tokens: &PromptTokens, seed: u64) -> String {
    let view = node.cache.desk().view.load_full();
    let pool = view.pool("chat").unwrap();
    for endpoint in &pool.endpoints {
        endpoint.set_health(Health::Ready, 1);
    }
    let route = view.route_in(pool, &"m".into());
    let request = SchedulingRequest {
        model: "m",
        ..SchedulingRequest::default().with_tokens(Some(tokens))
    };
    let picked = pool
        .policy
        .scheduler
        .schedule(&request, &route, &Tried::default(), now_ms(), seed, None)
        .unwrap();
    picked.reservation.endpoint().name().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_says_who_follows_what_and_why_not() {
    let node = precise().await;
    let mut client = CacheClient::new(node.channel.clone());
    let of = |pool: &str| CacheStatusRequest {
        pool: pool.to_owned(),
    };
    let none = client.status(of("nobody")).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let plain = client.status(of("plain")).await.unwrap_err();
    assert_eq!(plain.code(), Code::FailedPrecondition);
    assert!(
        plain.message().contains("no precise-prefix-cache-producer"),
        "{plain}"
    );

    tell(&node, "gpu-2", &prompt(1, 0, 64), 4);
    let status = client.status(of("")).await.unwrap().into_inner();
    assert_eq!(
        (status.node.as_str(), status.region.as_str()),
        ("node-1", "eu")
    );
    let rows: Vec<_> = status
        .holders
        .iter()
        .map(|row| {
            let gpu = row.map.as_ref().map(|map| map.gpu);
            (
                row.endpoint.as_str(),
                row.owner.as_str(),
                gpu,
                row.problem.as_str(),
            )
        })
        .collect();
    let not_yet = "its owner does not follow it yet";
    assert_eq!(
        rows,
        [
            ("gpu-1", "node-1", None, not_yet),
            ("gpu-2", "node-1", Some(4), not_yet)
        ]
    );
    let [replica] = status.replicas.as_slice() else {
        panic!("{status:?}")
    };
    assert_eq!(
        (replica.blocks, replica.holders, replica.shards),
        (4, 1, 64)
    );
    assert_eq!(replica.digest.len(), 32);
    assert!(status.regions.is_empty() && status.silent.is_empty());
    for _ in 0..500 {
        let status = client.status(of("chat")).await.unwrap().into_inner();
        if status
            .replicas
            .iter()
            .all(|r| r.role == "leader" && r.leader == "node-1" && r.warm)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the group of one has no leader");
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_finds_what_each_engine_has() {
    let node = precise().await;
    let mut client = CacheClient::new(node.channel.clone());
    let tokens = |ids: &[u32]| What::Tokens(CacheLookupTokens { ids: ids.to_vec() });
    let of = |pool: &str, what: Option<What>| CacheLookupRequest {
        pool: pool.to_owned(),
        model: "m".to_owned(),
        what,
    };
    let known = prompt(1, 0, 100);
    let unheard = client.lookup(of("chat", Some(tokens(&known.ids)))).await;
    assert!(
        unheard
            .unwrap_err()
            .message()
            .contains("no engine of the pool")
    );
    tell(&node, "gpu-2", &known, 4);
    let found = client.lookup(of("chat", Some(tokens(&known.ids)))).await;
    let found = found.unwrap().into_inner();
    assert_eq!(
        (found.token_ids.as_slice(), found.origin.as_str()),
        (&*known.ids, "given")
    );
    let rows: Vec<_> = found
        .cached
        .iter()
        .map(|of| {
            (
                of.endpoint.as_str(),
                of.block_tokens,
                of.blocks,
                of.cached_tokens,
                of.first,
            )
        })
        .collect();
    // 99 tokens before the last one: six blocks.
    assert_eq!(
        rows,
        [("gpu-1", 0, 0, 0, false), ("gpu-2", 16, 6, 64, true)]
    );
    let lengths: Vec<u32> = found.prefixes.iter().map(|of| of.tokens).collect();
    assert_eq!(lengths, [16, 32, 64]);
    let other = client.lookup(of("chat", Some(tokens(&[7; 40])))).await;
    let other = other.unwrap().into_inner();
    assert!(
        other
            .cached
            .iter()
            .all(|of| of.cached_blocks == 0 && !of.first)
    );

    let body = |path: &str, json: &str| {
        let (path, json) = (path.to_owned(), json.as_bytes().to_vec());
        Some(What::Body(CacheLookupBody { path, json }))
    };
    let chat = r#"{"messages": [{"role": "user", "content": "x"}]}"#;
    let prompt_text = Some(What::Prompt("x".to_owned()));
    for (request, code, word) in [
        (of("", Some(tokens(&[1]))), Code::InvalidArgument, "pool"),
        (of("nobody", Some(tokens(&[1]))), Code::NotFound, "nobody"),
        (
            of("plain", Some(tokens(&[1]))),
            Code::FailedPrecondition,
            "precise-prefix",
        ),
        (of("chat", None), Code::InvalidArgument, "must be given"),
        (
            of("chat", Some(tokens(&[]))),
            Code::InvalidArgument,
            "empty",
        ),
        (
            of("chat", body("", "[1]")),
            Code::InvalidArgument,
            "no JSON object",
        ),
        (
            of("chat", body("", "{}")),
            Code::InvalidArgument,
            "messages",
        ),
        (
            of("chat", body("/metrics", chat)),
            Code::InvalidArgument,
            "/metrics",
        ),
        (
            of("chat", body("", r#"{"messages": 7}"#)),
            Code::FailedPrecondition,
            "no tokens",
        ),
        // Its tokenizer is not there.
        (
            of("chat", body("", chat)),
            Code::FailedPrecondition,
            "no tokenizer",
        ),
        (
            of("chat", prompt_text),
            Code::FailedPrecondition,
            "no tokenizer",
        ),
    ] {
        let status = client.lookup(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}: {status}");
        assert!(status.message().contains(word), "{request:?}: {status}");
    }
    // Looking changes nothing.
    assert_eq!(node.index.stats().expected, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn top_counts_what_was_picked() {
    let node = precise().await;
    let mut client = CacheClient::new(node.channel.clone());
    let of = |pool: &str| CacheTopRequest {
        pool: pool.to_owned(),
        limit: 0,
    };
    let empty = client.top(of("")).await.unwrap().into_inner();
    assert_eq!(empty.answered, ["node-1"]);
    assert_eq!((empty.pools.len(), empty.pools[0].picks), (1, 0));
    assert_eq!(
        client.top(of("plain")).await.unwrap_err().code(),
        Code::FailedPrecondition
    );

    // Everybody's first four blocks; then each goes its own way.
    tell(&node, "gpu-2", &prompt(1, 64, 64), 4);
    for seed in 1..=5 {
        assert_eq!(pick(&node, &prompt(seed, 64, 100), seed.into()), "gpu-2");
    }
    let top = client.top(of("chat")).await.unwrap().into_inner();
    let [pool] = top.pools.as_slice() else {
        panic!("{top:?}")
    };
    let usage = pool.usage.as_ref().unwrap();
    assert_eq!(
        (usage.picks, usage.prompt_tokens, usage.predicted_tokens),
        (5, 500, 5 * 64)
    );
    assert_eq!((pool.picks, pool.counted), (5, 5));
    let [hot] = pool.prefixes.as_slice() else {
        panic!("{pool:?}")
    };
    assert_eq!(
        (hot.tokens, hot.requests, hot.hits, hot.holders),
        (64, 5, 5, 1)
    );
    // The same key as a lookup shows.
    let request = CacheLookupRequest {
        pool: "chat".to_owned(),
        model: "m".to_owned(),
        what: Some(What::Tokens(CacheLookupTokens {
            ids: prompt(9, 64, 100).ids.to_vec(),
        })),
    };
    let found = client.lookup(request).await.unwrap().into_inner();
    assert!(
        found
            .prefixes
            .iter()
            .any(|of| of.key == hot.key && of.tokens == 64),
        "{found:?}"
    );
}
