//! A feeder, a log of two replicas, and what the engines' HTTP servers answer.

use super::{DEADLINE, engine::Engine};
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_cache::feed::actor::{
    CacheFeeder, FeederHandle, FeederOptions, Log, Proposing, Target, Targets,
};
use quorate_cache::feed::{Asking, Engines, Replicated};
use quorate_cache::index::{CacheIndex, HolderKey, IndexConfig};
use quorate_cache::link::Address;
use quorate_cache::link::zmtp;
use quorate_routing::cache::CacheNeeds;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What engines answer: pages, the answers to polls one after the other, and what they were asked to complete.
#[derive(Default)]
pub struct Pages {
    pub pages: BTreeMap<&'static str, String>,
    pub polls: Mutex<Vec<Result<String, String>>>,
    pub prompts: Mutex<Vec<Vec<u32>>>,
}

impl Engines for Pages {
    fn get<'a>(&'a self, _: &'a Target, path: &'a str) -> Asking<'a> {
        let page = self.pages.get(path).cloned();
        Box::pin(async move { Ok(page.map(|page| Bytes::from(page.into_bytes()))) })
    }

    fn post<'a>(&'a self, _: &'a Target, path: &'a str, json: Bytes, _: Duration) -> Asking<'a> {
        let answer = match path {
            "/kv_cache_events" => {
                let mut polls = self.polls.lock();
                match polls.is_empty() {
                    true => Ok("[]".to_owned()),
                    false => polls.remove(0),
                }
            }
            "/v1/completions" => {
                let body: serde_json::Value = serde_json::from_slice(&json).unwrap();
                let prompt = serde_json::from_value(body["prompt"].clone()).unwrap();
                self.prompts.lock().push(prompt);
                Ok("{}".to_owned())
            }
            _ => Err(format!("{path}?")),
        };
        Box::pin(async move { answer.map(|text| Some(Bytes::from(text.into_bytes()))) })
    }
}

/// A log of two replicas. Every third entry is applied and its answer lost.
struct TwoReplicas {
    replicas: [Arc<Replicated>; 2],
    index: Mutex<u64>,
}

impl Log for TwoReplicas {
    fn propose(&self, entry: Bytes) -> Proposing<'_> {
        Box::pin(async move {
            let mut index = self.index.lock();
            *index += 1;
            let [first, second] = &self.replicas;
            let answer = first.apply(*index, &entry);
            assert_eq!(second.apply(*index, &entry), answer);
            if index.is_multiple_of(3) {
                return Err("the answer got lost".into());
            }
            Ok(answer)
        })
    }
}

pub struct World {
    pub replicas: [Arc<Replicated>; 2],
    log: Arc<TwoReplicas>,
    pub targets: watch::Sender<Targets>,
    pub feeder: FeederHandle,
}

pub fn target(endpoint: u64, name: &str, needs: CacheNeeds) -> Target {
    Target {
        endpoint,
        name: name.into(),
        target: quorate_routing::Target::new(false, "127.0.0.1", 8000 + endpoint as u16),
        model: "m".into(),
        rank: None,
        needs: Arc::new(needs),
    }
}

/// The two sockets of an engine that is bound, and the page on which it says so.
pub async fn bound(engine: &Arc<Engine>) -> String {
    let free = Address::parse("tcp://127.0.0.1:0").unwrap();
    let events = zmtp::listen(&free).await.unwrap();
    let replays = zmtp::listen(&free).await.unwrap();
    let page = format!(
        r#"{{"0":{{"publisher":"zmq","endpoint":"{}","replay_endpoint":"{}","topic":""}}}}"#,
        events.address().unwrap(),
        replays.address().unwrap()
    );
    tokio::spawn(Arc::clone(engine).serve_events(events));
    tokio::spawn(Arc::clone(engine).serve_replays(replays));
    page
}

async fn feeder(
    log: &Arc<TwoReplicas>,
    node: usize,
    owned: Vec<Target>,
    pages: Arc<Pages>,
) -> (watch::Sender<Targets>, FeederHandle) {
    let declared = owned.iter().map(|target| target.endpoint).collect();
    let (targets, watched) = watch::channel(Targets {
        owned,
        declared: Some(declared),
    });
    let feeder = CacheFeeder::start(FeederOptions {
        part: 1 + node as u32,
        replica: Arc::clone(&log.replicas[node]),
        log: Arc::clone(log) as Arc<dyn Log>,
        engines: pages,
        targets: watched,
    })
    .await
    .unwrap();
    (targets, feeder)
}

impl World {
    pub async fn start(owned: Vec<Target>, pages: Arc<Pages>) -> Self {
        let config = IndexConfig { max_bytes: 1 << 20 };
        let replica = || Arc::new(Replicated::new(Arc::new(CacheIndex::new(config)), config));
        let replicas = [replica(), replica()];
        let log = Arc::new(TwoReplicas {
            replicas: replicas.clone(),
            index: Mutex::default(),
        });
        let (targets, feeder) = feeder(&log, 0, owned, pages).await;
        Self {
            replicas,
            log,
            targets,
            feeder,
        }
    }

    /// The feeder of the other replica's node.
    pub async fn second(&self, owned: Vec<Target>) -> (watch::Sender<Targets>, FeederHandle) {
        feeder(&self.log, 1, owned, Arc::default()).await
    }

    pub fn held(&self, replica: usize, key: HolderKey) -> Option<BTreeSet<u64>> {
        let copy = self.replicas[replica].index().copy(key)?;
        Some(copy.runs.into_iter().flat_map(|(_, keys)| keys).collect())
    }

    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(DEADLINE, async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {:#?}", self.feeder.status());
    }

    /// Both replicas come to have exactly these keys of the holder, and the same digests.
    pub async fn settles(&self, what: &str, key: HolderKey, keys: &BTreeSet<u64>) {
        self.until(what, |world| {
            (0..2).all(|replica| world.held(replica, key).as_ref() == Some(keys))
        })
        .await;
        let digests = self
            .replicas
            .each_ref()
            .map(|r| r.index().digests().whole());
        assert_eq!(digests[0], digests[1]);
    }

    /// The endpoint has this condition. Answers what it says.
    pub async fn condition(&self, endpoint: &str, name: &str) -> String {
        let find = |world: &Self| {
            let conditions = world.feeder.conditions(endpoint);
            conditions.into_iter().find(|c| c.name == name)
        };
        self.until(name, |world| find(world).is_some()).await;
        find(self).map(|c| c.message).unwrap_or_default()
    }

    /// The endpoint has no condition any more.
    pub async fn is_fine(&self, endpoint: &str) {
        self.until("no condition", |world| {
            world.feeder.conditions(endpoint).is_empty()
        })
        .await;
    }
}
