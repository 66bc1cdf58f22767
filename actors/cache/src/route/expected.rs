//! What picks of this router made it expect, until the other routers of the region have been told.

use parking_lot::Mutex;
use quorate_routing::Endpoint;
use quorate_routing::learnt::Learnt;
use std::collections::VecDeque;
use std::sync::Arc;

/// Words that wait at most; beyond that the oldest are lost.
const MOST_WORDS: usize = 1 << 16;

#[derive(Clone, Copy)]
struct Head {
    /// The endpoint's own incarnation.
    endpoint: u64,
    rank: u32,
    /// Of the engine's process.
    incarnation: u64,
    keys: usize,
}

#[derive(Default)]
struct Waiting {
    heads: VecDeque<Head>,
    keys: VecDeque<u64>,
    lost: u64,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Untold(Mutex<Waiting>);

impl Untold {
    /// One rank of an endpoint will soon have the blocks of these keys.
    pub fn add(&self, endpoint: u64, rank: u32, incarnation: u64, keys: &[u64]) {
        let mut waiting = self.0.lock();
        if keys.len() > MOST_WORDS {
            waiting.lost += keys.len() as u64;
            return;
        }
        while waiting.keys.len() + keys.len() > MOST_WORDS {
            let Some(oldest) = waiting.heads.pop_front() else {
                break;
            };
            waiting.keys.drain(..oldest.keys);
            waiting.lost += oldest.keys as u64;
        }
        waiting.heads.push_back(Head {
            endpoint,
            rank,
            incarnation,
            keys: keys.len(),
        });
        waiting.keys.extend(keys);
    }

    /// What of it is about these endpoints, the newest first, as far as the budget goes. The rest is too old by the next time, but for
    /// what is about other endpoints.
    pub fn take(
        &self,
        endpoints: &[Arc<Endpoint>],
        budget: &mut usize,
    ) -> Vec<(Arc<Endpoint>, Learnt)> {
        let mut told = Vec::new();
        let mut waiting = self.0.lock();
        while let Some(head) = waiting.heads.back().copied() {
            if head.keys + 1 > *budget {
                break;
            }
            waiting.heads.pop_back();
            let from = waiting.keys.len().saturating_sub(head.keys);
            let keys: Vec<u64> = waiting.keys.drain(from..).collect();
            let mut of = endpoints.iter();
            if let Some(endpoint) = of.find(|e| e.spec().incarnation == head.endpoint) {
                *budget -= head.keys + 1;
                let expected = Learnt::Expected {
                    rank: head.rank,
                    incarnation: head.incarnation,
                    keys,
                };
                told.push((Arc::clone(endpoint), expected));
            }
        }
        told
    }

    /// Keys that were lost since the last call.
    pub fn lost(&self) -> u64 {
        std::mem::take(&mut self.0.lock().lost)
    }
}
