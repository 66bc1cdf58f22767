//! The servers of one process, which know of each other what no router can: what each of them has cached this moment.
//!
//! So every request is measured against the best choice there was when it arrived, and a server may fetch a prefix from
//! another one as engines do over their own network.

use crate::engine::sequence::Prompt;
use crate::engine::tiers::LoadFrom;
use crate::shared::Shared;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The servers of one process.
#[derive(Default)]
pub struct Fleet {
    members: Mutex<Vec<Weak<Shared>>>,
}

/// One server's part of the oracle: sums over the prompts that arrived at it.
#[derive(Debug, Default)]
pub struct OracleCounts {
    prompts: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    best_tokens: AtomicU64,
}

/// A reading of [`OracleCounts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oracle {
    /// Prompts.
    pub prompts: u64,
    /// Their tokens.
    pub prompt_tokens: u64,
    /// Of these, cached on arrival where the prompt arrived.
    pub cached_tokens: u64,
    /// Of these, cached on arrival at the server of the same model that had most.
    pub best_tokens: u64,
}

impl OracleCounts {
    /// Counts a prompt that was taken.
    pub fn add(&self, prompt_tokens: u32, arrival: Arrival) {
        let cached = arrival.gpu + arrival.below;
        for (sum, by) in [
            (&self.prompts, 1),
            (&self.prompt_tokens, prompt_tokens),
            (&self.cached_tokens, cached),
            (&self.best_tokens, arrival.best),
        ] {
            sum.fetch_add(u64::from(by), Ordering::Relaxed);
        }
    }

    fn reset(&self) {
        for sum in [
            &self.prompts,
            &self.prompt_tokens,
            &self.cached_tokens,
            &self.best_tokens,
        ] {
            sum.store(0, Ordering::Relaxed);
        }
    }

    /// The sums now.
    pub fn read(&self) -> Oracle {
        let get = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Oracle {
            prompts: get(&self.prompts),
            prompt_tokens: get(&self.prompt_tokens),
            cached_tokens: get(&self.cached_tokens),
            best_tokens: get(&self.best_tokens),
        }
    }
}

impl Oracle {
    /// As JSON; ratios are null without anything to compare.
    pub fn to_json(self) -> Value {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        json!({
            "prompts": self.prompts,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "best_tokens": self.best_tokens,
            "hit_ratio": share(self.cached_tokens, self.prompt_tokens),
            "best_ratio": share(self.best_tokens, self.prompt_tokens),
            "of_best": share(self.cached_tokens, self.best_tokens),
        })
    }
}

/// What was cached of a prompt when it arrived, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// On the GPU of the server that it arrived at.
    pub gpu: u32,
    /// Further ones below it.
    pub below: u32,
    /// At the server that had most.
    pub best: u32,
}

impl Fleet {
    /// One more server.
    pub fn join(&self, shared: &Arc<Shared>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(shared));
    }

    fn members(&self) -> Vec<Arc<Shared>> {
        self.members
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Compares the servers for a prompt that has just arrived at `own`.
    pub fn look(&self, own: &Shared, prompt: &Prompt, from: LoadFrom) -> Arrival {
        let size = own.config.engine.block_size;
        let cached = |server: &Shared| {
            let live = server.live.lock().clone();
            live.map_or((0, 0), |live| live.cached_blocks(prompt, from))
        };
        let here = cached(own);
        let mut best = here.0 + here.1;
        for member in self.members() {
            let same = member.config.engine.block_size == size
                && member.config.display_name() == own.config.display_name();
            if same && member.addr != own.addr {
                let there = cached(&member);
                best = best.max(there.0 + there.1);
            }
        }
        let tokens = |blocks: usize| blocks as u32 * size;
        Arrival {
            gpu: tokens(here.0),
            below: tokens(here.1),
            best: tokens(best),
        }
    }

    /// Blocks at the start of a prompt that the server with this port for such transfers has in host memory.
    pub fn offered(&self, host: &str, port: u16, prompt: &Prompt) -> usize {
        let hosts = |server: &Shared| {
            let ip = server.addr.ip();
            ip.to_string() == host || host == "localhost" && ip.is_loopback()
        };
        let source = self
            .members()
            .into_iter()
            .find(|member| member.config.p2p_port == Some(port) && hosts(member));
        let live = source.and_then(|source| source.live.lock().clone());
        live.map_or(0, |live| live.offered_blocks(prompt))
    }

    /// `GET /sim/oracle`: the sums of all servers, and those of each by its address.
    pub fn oracle(&self) -> Value {
        let members = self.members();
        let mut sum = Oracle::default();
        let mut each = serde_json::Map::new();
        for member in &members {
            let own = member.oracle.read();
            sum.prompts += own.prompts;
            sum.prompt_tokens += own.prompt_tokens;
            sum.cached_tokens += own.cached_tokens;
            sum.best_tokens += own.best_tokens;
            each.insert(member.addr.to_string(), own.to_json());
        }
        let mut out = sum.to_json();
        out["servers"] = Value::Object(each);
        out
    }

    /// Sums start anew.
    pub fn reset_oracle(&self) {
        self.members()
            .iter()
            .for_each(|member| member.oracle.reset());
    }
}
