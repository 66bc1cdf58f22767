//! A pool of endpoints, a compiled configuration and an index, without anything between them but the pick.
#![allow(dead_code, clippy::unwrap_used)]

use quorate_cache::Tier;
use quorate_cache::index::{CacheIndex, DeltaBatch, HolderKey, IndexConfig, Section};
use quorate_cache::keys::{KeySpace, Scheme};
use quorate_cache::route::CachePlugins;
use quorate_routing::config::{CompiledPolicy, EndpointPickerConfig, Registry};
use quorate_routing::tokens::{Origin, PromptTokens};
use quorate_routing::{
    BreakerPolicy, Decision, Endpoint, EndpointSpec, Health, PoolSpec, RoutingView, Scheduler,
    SchedulingRequest, Target, Tried, now_ms,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Tokens in a block.
pub const BLOCK: usize = 16;

pub struct World {
    pub policy: CompiledPolicy,
    pub view: RoutingView,
    pub index: Arc<CacheIndex>,
    pub space: KeySpace,
    next: RefCell<HashMap<HolderKey, u64>>,
    random: std::cell::Cell<u64>,
}

pub fn registry(index: Arc<CacheIndex>) -> Registry {
    CachePlugins::new(index).register(Registry::default().with_secret(1))
}

/// A prompt that begins like no other seed's.
pub fn tokens(seed: u32, length: usize) -> PromptTokens {
    let ids = (0..length as u32).map(|i| i.wrapping_mul(7).wrapping_add(seed * 1000));
    PromptTokens {
        ids: ids.collect(),
        media: Vec::new(),
        lora: None,
        salt: None,
        origin: Origin::Local,
        exact: true,
    }
}

fn endpoint(i: usize, incarnation: u64) -> Arc<Endpoint> {
    let spec = EndpointSpec {
        name: format!("e{i:04}").into(),
        incarnation,
        pool: "p".into(),
        target: Target::new(false, "10.0.0.1", 8000 + i as u16),
        h2c: false,
        region: "r".into(),
        rank: None,
        labels: Default::default(),
        breaker: BreakerPolicy::default(),
        slow_start: Duration::ZERO,
        stall_timeout: Duration::from_secs(60),
    };
    let endpoint = Endpoint::new(spec, None);
    endpoint.set_health(Health::Ready, 1);
    Arc::new(endpoint)
}

fn view(endpoints: Vec<Arc<Endpoint>>) -> RoutingView {
    let pool = PoolSpec {
        name: "p".into(),
        fallback: true,
        ..PoolSpec::default()
    };
    RoutingView::build([(pool, endpoints)])
}

impl World {
    /// `parameters` are the producer's, `more` further plugins.
    pub fn new(endpoints: usize, parameters: &str, more: &str) -> Self {
        let parameters = if parameters.is_empty() {
            "{}"
        } else {
            parameters
        };
        let text = format!(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n\
             - type: precise-prefix-cache-producer\n  parameters: {parameters}\n{more}"
        );
        Self::of(endpoints, &text)
    }

    pub fn of(endpoints: usize, text: &str) -> Self {
        let index = Arc::new(CacheIndex::new(IndexConfig {
            max_bytes: 64 << 20,
        }));
        let parsed = EndpointPickerConfig::parse(text).unwrap();
        let policy = parsed.config.compile_with(&registry(Arc::clone(&index)));
        Self {
            policy: policy.unwrap(),
            view: view(
                (0..endpoints)
                    .map(|i| endpoint(i, 1000 + i as u64))
                    .collect(),
            ),
            index,
            space: space(BLOCK),
            next: RefCell::default(),
            random: Default::default(),
        }
    }

    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.view.pools()[0].endpoints
    }

    /// The same endpoints but for one, which is another one under the same name.
    pub fn replace(&mut self, i: usize) {
        let mut endpoints = self.endpoints().to_vec();
        endpoints[i] = endpoint(i, 5000 + i as u64);
        self.view = view(endpoints);
    }

    pub fn holder(&self, endpoint: usize, rank: u32) -> HolderKey {
        HolderKey {
            endpoint: self.endpoints()[endpoint].spec().incarnation,
            rank,
        }
    }

    pub fn keys(&self, prompt: &PromptTokens) -> Vec<u64> {
        let mut keys = Vec::new();
        let blocks = (prompt.ids.len() - 1) / BLOCK;
        self.space.keys(prompt, None, blocks, &mut keys).unwrap();
        keys
    }

    /// An engine's event: these blocks are on a tier now.
    pub fn store(&self, endpoint: usize, rank: u32, tier: Tier, keys: &[u64]) {
        self.store_in(endpoint, rank, tier, keys, &self.space);
    }

    /// Blocks of another size at an endpoint; how many there are.
    pub fn store_in_other_space(
        &self,
        endpoint: usize,
        block: usize,
        prompt: &PromptTokens,
        blocks: usize,
    ) -> usize {
        let space = space(block);
        let mut keys = Vec::new();
        space.keys(prompt, None, blocks, &mut keys).unwrap();
        self.store_in(endpoint, 0, Tier::Gpu, &keys, &space);
        keys.len()
    }

    fn store_in(&self, endpoint: usize, rank: u32, tier: Tier, keys: &[u64], space: &KeySpace) {
        let key = self.holder(endpoint, rank);
        let mut next = self.next.borrow_mut();
        let from = next.get(&key).copied().unwrap_or(0);
        let mut section = Section::new(key, 1, 1, from, from + 1);
        section.replace = from == 0;
        section.space = section.replace.then(|| space.clone());
        if !keys.is_empty() {
            section.stored(tier, None, keys);
        }
        let applied = self.index.apply(&DeltaBatch {
            sections: vec![section],
        });
        assert_eq!(applied.outcomes.len(), 1);
        next.insert(key, from + 1);
    }

    /// The place of the picked endpoint, and the record.
    pub fn pick(&self, prompt: &PromptTokens) -> (usize, Decision) {
        let route = self.view.route("m").unwrap();
        let request = SchedulingRequest {
            model: "m",
            ..SchedulingRequest::default().with_tokens(Some(prompt))
        };
        self.random.set(self.random.get() + 1);
        let mut decision = Decision::default();
        let picked = self
            .policy
            .scheduler
            .schedule(
                &request,
                route,
                &Tried::default(),
                now_ms(),
                self.random.get(),
                Some(&mut decision),
            )
            .unwrap();
        let at = |e: &Arc<Endpoint>| Arc::ptr_eq(e, picked.reservation.endpoint());
        (route.endpoints.iter().position(at).unwrap(), decision)
    }
}

fn space(block: usize) -> KeySpace {
    let scheme = Scheme::of(
        Some("sha256_cbor"),
        None,
        quorate_cache::hash::ExtraForm::Tagged,
    );
    KeySpace::new("m", block as u32, scheme).unwrap()
}
