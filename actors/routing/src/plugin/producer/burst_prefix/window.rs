//! Windows in time, and the requests that come in one.
//!
//! Whoever waits has a [`Seat`] and takes its place once the window has closed; the first that does so places all of them. Nobody
//! depends on another request's being still there.

use super::placing::{Replica, Rules, place};
use crate::{Endpoint, now_ms};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The windows of one configuration, one after the other.
pub struct Windows {
    rules: Rules,
    length: Duration,
    max_batch: usize,
    /// The one that was opened last.
    last: Mutex<Option<Arc<Window>>>,
}

struct Window {
    rules: Rules,
    closes: Instant,
    state: Mutex<State>,
}

enum State {
    Open {
        /// The blocks of each prompt; empty: its client has gone away.
        members: Vec<Vec<u64>>,
        /// Where the first one could go.
        endpoints: Arc<[Arc<Endpoint>]>,
    },
    Placed(Vec<Option<Arc<Endpoint>>>),
}

/// A place in a window. Dropped before the window has closed, the request counts for nothing.
pub struct Seat {
    window: Arc<Window>,
    index: usize,
    blocks: u32,
}

/// What the window gave a request.
#[derive(Clone, Debug, Default)]
pub struct Together {
    /// Where it should go; `None`: it shares nothing with the others.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Length of its prompt.
    pub blocks: u32,
}

impl Windows {
    pub(super) fn new(rules: Rules, length: Duration, max_batch: usize) -> Self {
        Self {
            rules,
            length,
            max_batch,
            last: Mutex::default(),
        }
    }

    pub(super) fn join(
        &self,
        blocks: Vec<u64>,
        endpoints: &Arc<[Arc<Endpoint>]>,
        now: Instant,
    ) -> Option<Seat> {
        let count = u32::try_from(blocks.len()).unwrap_or(u32::MAX);
        let mut last = self.last.lock();
        if let Some(window) = last.as_ref().filter(|window| now < window.closes)
            && let State::Open { members, .. } = &mut *window.state.lock()
        {
            if members.len() >= self.max_batch {
                return None;
            }
            members.push(blocks);
            return Some(Seat {
                window: Arc::clone(window),
                index: members.len() - 1,
                blocks: count,
            });
        }
        let window = Arc::new(Window {
            rules: self.rules,
            closes: now.checked_add(self.length)?,
            state: Mutex::new(State::Open {
                members: vec![blocks],
                endpoints: Arc::clone(endpoints),
            }),
        });
        *last = Some(Arc::clone(&window));
        Some(Seat {
            window,
            index: 0,
            blocks: count,
        })
    }
}

impl Seat {
    /// When the window closes.
    pub fn closes(&self) -> Instant {
        self.window.closes
    }

    /// The request's place. To be called when the window has closed; before, it closes it.
    pub fn take(self) -> Together {
        let mut state = self.window.state.lock();
        if let State::Open { members, endpoints } = &*state {
            *state = State::Placed(placed(members, endpoints, &self.window.rules));
        }
        let endpoint = match &*state {
            State::Placed(places) => places.get(self.index).cloned().flatten(),
            State::Open { .. } => None,
        };
        drop(state);
        Together {
            endpoint,
            blocks: self.blocks,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let State::Open { members, .. } = &mut *self.window.state.lock()
            && let Some(blocks) = members.get_mut(self.index)
        {
            blocks.clear();
        }
    }
}

/// Places over the endpoints of the best tier.
fn placed(
    members: &[Vec<u64>],
    endpoints: &[Arc<Endpoint>],
    rules: &Rules,
) -> Vec<Option<Arc<Endpoint>>> {
    let now = now_ms();
    let tiers = || endpoints.iter().filter_map(|e| Some((e.tier(now)?, e)));
    let best = tiers().map(|(tier, _)| tier).min();
    let usable: Vec<&Arc<Endpoint>> = tiers()
        .filter(|(tier, _)| Some(*tier) == best)
        .map(|(_, endpoint)| endpoint)
        .collect();
    let replicas: Vec<Replica<'_>> = usable
        .iter()
        .map(|endpoint| Replica {
            name: endpoint.name(),
            running: endpoint
                .load(now)
                .and_then(|(load, _)| load.running)
                .unwrap_or(0),
        })
        .collect();
    place(members, &replicas, rules)
        .into_iter()
        .map(|place| usable.get(place?).map(|endpoint| Arc::clone(endpoint)))
        .collect()
}
