//! What routers learn from their picks, told within the region: blocks of prompts, bound sessions, cold uses.
//!
//! The exchange takes what the pools' plugins have learnt when it looks at the counts, so many words a second, and puts it into a
//! satchel for each peer; the links empty those. A node that has just opened a stream gets a copy of what is known, from one of the
//! others. What a peer tells goes to the plugin of the same name; what has no pool, plugin or endpoint here yet waits a moment
//! for it, because a node that starts hears of endpoints and of their blocks at the same time. All of it is bounded, and nothing depends on its coming.

mod message;
mod satchel;

use crate::shared::Shared;
use metrics::counter;
use parking_lot::Mutex;
use quorate_proto::peer::v1 as wire;
use quorate_routing::learnt::{Learner, Learnt, NotLearnt};
use quorate_routing::{Endpoint, Pool, RoutingView, now_ms};
pub use satchel::Satchel;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Words (of eight bytes) that this router tells in a second, and in one message.
const WORDS_A_SECOND: u64 = 262_144;
const WORDS_A_MESSAGE: usize = 8_192;
/// Words that a newcomer gets of all pools together.
const COPY_WORDS: usize = 1 << 20;
/// What is heard of an endpoint that is not there waits so long for it (ms), so many words at most.
const PATIENCE_MS: u64 = 5_000;
const MOST_EARLY: usize = 1 << 20;

/// See the module's documentation.
#[derive(Default)]
pub struct Lessons {
    satchels: Mutex<HashMap<u64, Weak<Satchel>>>,
    newcomers: Mutex<BTreeSet<u64>>,
    newcomer: Notify,
    purse: Mutex<Purse>,
    early: Mutex<Early>,
}

/// What may still be told.
#[derive(Default)]
struct Purse {
    words: u64,
    filled_at: u64,
}

impl Purse {
    fn open(&mut self, now: u64) -> usize {
        let since = now.saturating_sub(self.filled_at).min(1_000);
        let more = since * WORDS_A_SECOND / 1_000;
        if more > 0 {
            self.filled_at = now;
            self.words = (self.words + more).min(WORDS_A_SECOND);
        }
        usize::try_from(self.words).map_or(WORDS_A_MESSAGE, |words| words.min(WORDS_A_MESSAGE))
    }

    fn pay(&mut self, words: usize) {
        self.words = self.words.saturating_sub(words as u64);
    }
}

/// Heard before it means something here: until when, and what.
#[derive(Default)]
struct Early {
    waiting: VecDeque<(u64, wire::Learnt)>,
    words: usize,
}

impl Lessons {
    /// This node's stream to a peer of the region is a new one. Gives what will be told it.
    pub fn link_opened(&self, peer: u64) -> Arc<Satchel> {
        let satchel = Arc::new(Satchel::default());
        let mut satchels = self.satchels.lock();
        satchels.retain(|_, satchel| satchel.strong_count() > 0);
        satchels.insert(peer, Arc::downgrade(&satchel));
        drop(satchels);
        self.newcomers.lock().insert(peer);
        self.newcomer.notify_one();
        satchel
    }

    fn satchel(&self, peer: u64) -> Option<Arc<Satchel>> {
        self.satchels.lock().get(&peer)?.upgrade()
    }

    fn open_satchels(&self) -> Vec<Arc<Satchel>> {
        let satchels = self.satchels.lock();
        satchels.values().filter_map(Weak::upgrade).collect()
    }
}

fn dropped(reason: &'static str, words: u64) {
    if words > 0 {
        counter!("quorate_learnt_dropped_total", "reason" => reason).increment(words);
    }
}

/// Takes what was learnt here since the last time and puts it into the satchels; looks again at what came too early.
pub fn exchange(shared: &Shared) {
    let now = now_ms();
    let view = shared.view.load();
    let satchels = shared.lessons.open_satchels();
    let mut budget = match satchels.is_empty() {
        // Nobody to tell: it is taken all the same, so that a peer that comes later begins with what is new then.
        true => usize::MAX,
        false => shared.lessons.purse.lock().open(now),
    };
    let before = budget;
    let (mut told, mut lost) = (Vec::new(), 0);
    for pool in view.pools() {
        for named in pool.policy.learners.iter() {
            lost += named.plugin.lost();
            for (endpoint, learnt) in named.plugin.take(&pool.endpoints, &mut budget, now) {
                told.push(message::to_proto(
                    &pool.spec.name,
                    &named.name,
                    &endpoint,
                    learnt,
                ));
            }
        }
    }
    if !satchels.is_empty() {
        let words = before - budget;
        shared.lessons.purse.lock().pay(words);
        dropped("not-told", lost);
        if !told.is_empty() {
            counter!("quorate_learnt_told_total").increment(words as u64);
            let told: Arc<[wire::Learnt]> = told.into();
            for satchel in &satchels {
                dropped("slow-peer", satchel.put(Arc::clone(&told), words) as u64);
            }
        }
    }
    look_again(shared, &view, now);
}

/// Tells nodes that come what this one knows, if it is the one to do so: the lowest node id of the region but the newcomer's.
pub async fn copy_for_newcomers(shared: Arc<Shared>) {
    loop {
        shared.lessons.newcomer.notified().await;
        let newcomers = std::mem::take(&mut *shared.lessons.newcomers.lock());
        for peer in newcomers {
            let first = {
                let live = shared.live.borrow();
                let near = live.iter().filter(|(_, r)| **r == shared.origin.region);
                near.map(|(id, _)| id).filter(|id| *id != peer).min()
            };
            if first == Some(shared.node_id()) {
                copy(&shared, peer).await;
            }
        }
    }
}

async fn copy(shared: &Shared, peer: u64) {
    let Some(satchel) = shared.lessons.satchel(peer) else {
        return;
    };
    let view = shared.view.load_full();
    let learners = |pool: &Pool| pool.policy.learners.len() * pool.endpoints.len();
    let parts = view
        .pools()
        .iter()
        .map(|pool| learners(pool))
        .sum::<usize>();
    let share = COPY_WORDS / parts.max(1);
    for pool in view.pools() {
        for named in pool.policy.learners.iter() {
            for endpoint in &pool.endpoints {
                let Some(known) = named.plugin.copy(endpoint, share, now_ms()) else {
                    continue;
                };
                for piece in pieces(known) {
                    let piece = message::to_proto(&pool.spec.name, &named.name, endpoint, piece);
                    satchel.put_copy(piece);
                }
                // It is no work that anything waits for.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The same in messages of at most [`WORDS_A_MESSAGE`].
fn pieces(learnt: Learnt) -> Vec<Learnt> {
    match learnt {
        Learnt::Blocks {
            block_tokens,
            hashes,
        } => {
            let pieces = hashes.chunks(WORDS_A_MESSAGE);
            let piece = |piece: &[u64]| Learnt::Blocks {
                block_tokens,
                hashes: piece.to_vec(),
            };
            pieces.map(piece).collect()
        }
        Learnt::Sessions(all) => {
            let pieces = all.chunks(WORDS_A_MESSAGE / 4);
            pieces.map(|p| Learnt::Sessions(p.to_vec())).collect()
        }
        whole => vec![whole],
    }
}

/// A peer told something.
pub fn receive(shared: &Shared, told: &[wire::Learnt]) {
    if told.is_empty() {
        return;
    }
    let (view, now) = (shared.view.load(), now_ms());
    for told in told {
        if take_in(&view, told, now) == TakenIn::NotYet {
            let words = message::words(told);
            let mut early = shared.lessons.early.lock();
            if early.words + words > MOST_EARLY {
                drop(early);
                dropped("unknown", words as u64);
            } else {
                early.words += words;
                early.waiting.push_back((now + PATIENCE_MS, told.clone()));
            }
        }
    }
}

fn look_again(shared: &Shared, view: &RoutingView, now: u64) {
    let waiting = {
        let mut early = shared.lessons.early.lock();
        early.words = 0;
        std::mem::take(&mut early.waiting)
    };
    for (until, told) in waiting {
        if take_in(view, &told, now) == TakenIn::NotYet {
            let words = message::words(&told);
            if now >= until {
                dropped("unknown", words as u64);
            } else {
                let mut early = shared.lessons.early.lock();
                early.words += words;
                early.waiting.push_back((until, told));
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakenIn {
    Yes,
    No,
    /// Its pool, plugin or endpoint is not there.
    NotYet,
}

fn find<'a>(
    view: &'a RoutingView,
    told: &wire::Learnt,
) -> Option<(&'a Arc<dyn Learner>, &'a Arc<Endpoint>)> {
    let pool = view.pool(&told.pool)?;
    let mut learners = pool.policy.learners.iter();
    let named = learners.find(|named| *named.name == *told.plugin)?;
    let at = pool
        .endpoints
        .binary_search_by(|e| e.name().cmp(&told.endpoint))
        .ok()?;
    let endpoint = pool.endpoints.get(at)?;
    (endpoint.spec().incarnation == told.incarnation).then_some((&named.plugin, endpoint))
}

fn take_in(view: &RoutingView, told: &wire::Learnt, now: u64) -> TakenIn {
    let Some((learner, endpoint)) = find(view, told) else {
        return TakenIn::NotYet;
    };
    let words = message::words(told) as u64;
    let Some(learnt) = message::from_proto(told) else {
        dropped("malformed", words);
        return TakenIn::No;
    };
    match learner.learn(endpoint, &learnt, now) {
        Ok(()) => {
            counter!("quorate_learnt_heard_total").increment(words);
            TakenIn::Yes
        }
        Err(why) => {
            let reason = match why {
                NotLearnt::BlockSize => "block-size",
                NotLearnt::Kind => "malformed",
            };
            dropped(reason, words);
            TakenIn::No
        }
    }
}

#[cfg(test)]
mod tests;
