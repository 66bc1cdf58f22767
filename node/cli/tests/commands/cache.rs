//! What lies in the engines' caches, as the command line shows it.

use super::*;
use quorate_proto::v1::{
    CacheHolder, CacheLink, CacheLookupRequest, CacheLookupResponse, CacheMember, CachePool,
    CachePrefixKey, CacheRegion, CacheReplica, CacheStatusRequest, CacheStatusResponse, CacheTiers,
    CacheTopPool, CacheTopRequest, CacheTopResponse, CacheUsage, CachedPrefix, HotPrefix,
    SilentNode, cache_lookup_request::What, cache_server::Cache,
};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Cache for Fake {
    async fn status(
        &self,
        request: Request<CacheStatusRequest>,
    ) -> Result<Response<CacheStatusResponse>, Status> {
        match request.into_inner().pool.as_str() {
            "" | "chat" => Ok(Response::new(self.lock().cache_status.clone())),
            "plain" => Err(Status::failed_precondition(
                "pool \"plain\" does not follow its engines' caches",
            )),
            other => Err(Status::not_found(format!("there is no pool {other:?}"))),
        }
    }

    async fn lookup(
        &self,
        request: Request<CacheLookupRequest>,
    ) -> Result<Response<CacheLookupResponse>, Status> {
        self.lock().looked_up.push(request.into_inner());
        Ok(Response::new(self.lock().cache_lookup.clone()))
    }

    async fn top(
        &self,
        request: Request<CacheTopRequest>,
    ) -> Result<Response<CacheTopResponse>, Status> {
        let limit = usize::try_from(request.into_inner().limit).unwrap();
        let mut top = self.lock().cache_top.clone();
        for pool in &mut top.pools {
            pool.prefixes.truncate(limit);
        }
        Ok(Response::new(top))
    }
}

fn tiers(gpu: u64, cpu: u64) -> Option<CacheTiers> {
    Some(CacheTiers {
        gpu,
        cpu,
        ..CacheTiers::default()
    })
}

fn time(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds,
        nanos: 250_000_000,
    })
}

fn usage() -> Option<CacheUsage> {
    Some(CacheUsage {
        picks: 20,
        prompt_tokens: 1000,
        predicted_tokens: 625,
        answers: 19,
        answered_tokens: 990,
        found_tokens: 495,
        window: time(300),
    })
}

fn status() -> CacheStatusResponse {
    let holder = |endpoint: &str, rank| CacheHolder {
        pool: "chat".to_owned(),
        endpoint: endpoint.to_owned(),
        rank,
        region: "eu".to_owned(),
        owner: "router-2".to_owned(),
        map: tiers(1190, 3),
        ..CacheHolder::default()
    };
    let link = CacheLink {
        state: "live".to_owned(),
        last_batch: Some(77),
        heard: time(0),
        batches: 78,
        gaps: 2,
        losses: 1,
        malformed: 4,
        keys: "exact".to_owned(),
        scheme: "sha256_cbor".to_owned(),
        model: "llama".to_owned(),
        block_tokens: 16,
        blocks: tiers(1200, 3),
        proposed: 31,
        digest: "agrees".to_owned(),
        ..CacheLink::default()
    };
    let learnt = CacheLink {
        keys: "learnt".to_owned(),
        scheme: "own".to_owned(),
        conditions: vec!["KvEventsHashMismatch: not by sha256".to_owned()],
        ..link.clone()
    };
    let replica = |node: &str, role: &str, lag| CacheReplica {
        region: "eu".to_owned(),
        node: node.to_owned(),
        role: role.to_owned(),
        leader: "router-1".to_owned(),
        quorate: true,
        warm: true,
        epoch: 2,
        applied_index: 40,
        commit_index: 41,
        blocks: 2386,
        bytes: 114_528,
        shards: 64,
        holders: 2,
        digest: "0123456789abcdef0123456789abcdef".to_owned(),
        mismatches: 1,
        members: vec![
            CacheMember {
                node: "router-1".to_owned(),
                voter: true,
                lag: None,
            },
            CacheMember {
                node: "router-2".to_owned(),
                voter: true,
                lag,
            },
        ],
        ..CacheReplica::default()
    };
    CacheStatusResponse {
        node: "router-1".to_owned(),
        region: "eu".to_owned(),
        holders: vec![
            CacheHolder {
                link: Some(link),
                ..holder("gpu-1", 0)
            },
            CacheHolder {
                link: Some(learnt),
                ..holder("gpu-1", 1)
            },
            CacheHolder {
                owner: "router-3".to_owned(),
                problem: "its owner could not be asked: no answer in time".to_owned(),
                ..holder("gpu-2", 0)
            },
        ],
        replicas: vec![
            replica("router-1", "leader", Some(9)),
            replica("router-2", "follower", None),
        ],
        regions: vec![CacheRegion {
            region: "us".to_owned(),
            node: "router-9".to_owned(),
            age: time(7),
            pools: vec![CachePool {
                pool: "chat".to_owned(),
                holders: 4,
                blocks: tiers(900, 0),
                usage: usage(),
            }],
        }],
        silent: vec![SilentNode {
            node_id: 3,
            name: "router-3".to_owned(),
            why: "no answer in time".to_owned(),
        }],
    }
}

#[tokio::test]
async fn status_shows_links_copies_and_regions() {
    let server = Fake::default().start().await;
    let empty = run(&server, "cache status").await.ok();
    assert!(empty.contains("No endpoint"), "{empty}");
    server.state().cache_status = status();
    let said = run(&server, "cache status chat").await;
    assert!(
        said.err
            .contains("warning: node 3 (router-3) could not be asked: no answer in time"),
        "{said:?}"
    );
    let expected = "\
POOL   ENDPOINT   RANK   OWNER      LINK   HEARD   BATCHES   GAPS   LOST   KEYS                    BLOCKS            IN MAP            PROPOSED   DIGEST   CONDITION
chat   gpu-1      0      router-2   live   0.2s    78        2      1      exact sha256_cbor x16   1200 gpu, 3 cpu   1190 gpu, 3 cpu   31         agrees   -
chat   gpu-1      1      router-2   live   0.2s    78        2      1      learnt own x16          1200 gpu, 3 cpu   1190 gpu, 3 cpu   31         agrees   KvEventsHashMismatch
chat   gpu-2      0      router-3   -      -       -         -      -      -                       -                 1190 gpu, 3 cpu   -          -        Unreachable
gpu-1 rank 1: KvEventsHashMismatch: not by sha256
gpu-2 rank 0: its owner could not be asked: no answer in time

The map, as each router has it:
REGION   NODE       ROLE       EPOCH   APPLIED   LAG   BLOCKS   ENGINES   BYTES    DIGEST     MISMATCHES   BEGUN ANEW
eu       router-1   leader     2       40        1     2386     2         114528   01234567   1            0
eu       router-2   follower   2       40        9     2386     2         114528   01234567   1            0

Other regions, as they told every 10s:
REGION   POOL   ENGINES   BLOCKS    PREDICTED   FOUND   TOLD BY    AGE
us       chat   4         900 gpu   62.5%       50.0%   router-9   7s
";
    assert_eq!(said.ok(), expected);
    let wide = run(&server, "cache status -o wide").await.ok();
    for word in ["MALFORMED", "SHARDS", "router-1,router-2", "llama"] {
        assert!(wide.contains(word), "{word}: {wide}");
    }
    let json = run(&server, "cache status -o json").await.ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let at = |path: &str| json.pointer(path).cloned().unwrap_or_default();
    assert_eq!(at("/holders/0/link/malformed"), 4);
    assert_eq!(at("/holders/0/link/blocks/gpu"), 1200);
    assert_eq!(
        at("/holders/1/link/conditions/0"),
        "KvEventsHashMismatch: not by sha256"
    );
    assert_eq!(at("/holders/2/link"), serde_json::Value::Null);
    assert_eq!(at("/replicas/1/lag"), 9);
    assert_eq!(at("/otherRegions/0/ageSeconds"), 7.25);
    assert_eq!(at("/otherRegions/0/pools/0/usage/predictedRatio"), 0.625);
    assert_eq!(at("/silent/0/name"), "router-3");

    let err = run(&server, "cache status nobody").await;
    assert!(
        err.failed(Exit::NotFound)
            .contains("there is no pool \"nobody\"")
    );
    let err = run(&server, "cache status plain").await;
    assert!(err.failed(Exit::Conflict).contains("does not follow"));
}

#[tokio::test]
async fn lookup_asks_for_a_prompt_a_request_or_tokens() {
    let server = Fake::default().start().await;
    let of = |endpoint: &str, cached: u32, first| CachedPrefix {
        endpoint: endpoint.to_owned(),
        block_tokens: 16,
        blocks: 4,
        cached_blocks: cached,
        cached_tokens: u64::from(cached) * 16,
        tiers: tiers(cached.into(), 0),
        worth: f64::from(cached) * 16.0,
        first,
        ..CachedPrefix::default()
    };
    server.state().cache_lookup = CacheLookupResponse {
        node: "router-1".to_owned(),
        pool: "chat".to_owned(),
        model: "llama".to_owned(),
        token_ids: (100..180).collect(),
        origin: "local".to_owned(),
        exact: true,
        cached: vec![
            of("gpu-1", 3, true),
            of("gpu-2", 0, false),
            CachedPrefix {
                endpoint: "gpu-3".to_owned(),
                ..CachedPrefix::default()
            },
        ],
        prefixes: [16, 32, 64, 128]
            .map(|tokens| CachePrefixKey {
                tokens,
                key: format!("{tokens:016x}"),
            })
            .into(),
    };
    let address = server.address.to_string();
    let words = [
        "cache",
        "lookup",
        "chat",
        "--prompt",
        "Why? Because.",
        "--server",
        &address,
    ];
    let text = run_with_input(&words, b"").await.ok();
    let expected = "\
Model:    llama
Tokens:   80 (local): 100 101 102 103 104 105 106 107 108 109 110 111 112 113 114 115 ...
Blocks:   4 of 16 tokens
Prefix:   32 tokens 0000000000000020
Prefix:   64 tokens 0000000000000040
Prefix:   128 tokens 0000000000000080

ENDPOINT   RANK   CACHED TOKENS   BLOCKS   SHARE   TIERS                           WORTH   FIRST
gpu-1      0      48              3        60.0%   3 gpu                           48      yes
gpu-2      0      0               0        0.0%    0                               0       -
gpu-3      0      -               -        -       nothing is known of its cache   -       -
";
    assert_eq!(text, expected);
    run(&server, "cache lookup chat --tokens 1,2,3 --model other")
        .await
        .ok();
    let body = r#"{"messages": [{"role": "user", "content": "x"}]}"#;
    let json = run_input(
        &server,
        "cache lookup chat --file - --path /v1/messages -o json",
        body,
    )
    .await
    .ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["cached"][0]["share"], 0.6);
    assert_eq!(json["cached"][2]["known"], false);
    assert_eq!(
        (&json["tokens"], &json["tokenIds"][1]),
        (&80.into(), &101.into())
    );
    let asked = server.state().looked_up.clone();
    assert_eq!(
        asked[0].what,
        Some(What::Prompt("Why? Because.".to_owned()))
    );
    assert!(matches!(&asked[1].what, Some(What::Tokens(of)) if of.ids == [1, 2, 3]));
    assert_eq!(asked[1].model, "other");
    assert!(
        matches!(&asked[2].what, Some(What::Body(of)) if of.path == "/v1/messages" && of.json == body.as_bytes())
    );

    for (words, exit) in [
        ("cache lookup chat", Exit::Usage),
        ("cache lookup chat --tokens 1,x", Exit::Usage),
        ("cache lookup chat --tokens 1 --prompt a", Exit::Usage),
        ("cache lookup --prompt a", Exit::Usage),
        (
            "cache lookup chat --path /v1/messages --prompt a",
            Exit::Usage,
        ),
        ("cache top --limit 0", Exit::Usage),
    ] {
        assert_eq!(run(&server, words).await.exit, exit, "{words}");
    }
    let bad = run_input(&server, "cache lookup chat --file -", "[1]").await;
    assert!(
        bad.failed(Exit::Invalid)
            .contains("stdin: not a request in JSON")
    );
    let none = run(&server, "cache lookup chat --file /nowhere/x.json").await;
    assert!(none.failed(Exit::NotFound).contains("/nowhere/x.json"));
    assert_eq!(server.state().looked_up.len(), 3);
}

#[tokio::test]
async fn top_shows_ratios_and_prefixes() {
    let server = Fake::default().start().await;
    let nothing = run(&server, "cache top").await.ok();
    assert!(nothing.contains("No pool"), "{nothing}");
    let prefix = |key: &str, tokens, requests, hits| HotPrefix {
        key: key.to_owned(),
        tokens,
        requests,
        hits,
        holders: 2,
        ..HotPrefix::default()
    };
    server.state().cache_top = CacheTopResponse {
        pools: vec![
            CacheTopPool {
                pool: "chat".to_owned(),
                usage: usage(),
                picks: 20,
                counted: 18,
                window: time(420),
                prefixes: vec![
                    prefix("00000000000000aa", 512, 12, 9),
                    prefix("00000000000000bb", 64, 3, 0),
                ],
            },
            CacheTopPool {
                pool: "idle".to_owned(),
                usage: Some(CacheUsage {
                    window: time(60),
                    ..CacheUsage::default()
                }),
                ..CacheTopPool::default()
            },
        ],
        answered: vec!["router-1".to_owned()],
        silent: Vec::new(),
    };
    let expected = "\
Pool chat: of 1000 prompt tokens in 20 picks, 62.5% were predicted to be cached; of 990 in 19 answers, engines found 50.0% (last 5m)
Hottest prefixes of 18 of 20 prompts (last 7m):
PREFIX             TOKENS   REQUESTS   HITS   HIT RATIO   ENGINES
00000000000000aa   512      12         9      75.0%       2
00000000000000bb   64       3          0      0.0%        2

Pool idle: no prompt was routed by caches in the last 60s
";
    assert_eq!(run(&server, "cache top").await.ok(), expected);
    let json = run(&server, "cache top chat --limit 1 -o json").await.ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pools"][0]["prefixes"].as_array().unwrap().len(), 1);
    assert_eq!(json["pools"][0]["prefixes"][0]["hitRatio"], 0.75);
    assert_eq!(json["pools"][0]["usage"]["foundRatio"], 0.5);
    let yaml = run(&server, "cache top -o yaml").await.ok();
    assert!(yaml.contains("predictedRatio: 0.625"), "{yaml}");
}
