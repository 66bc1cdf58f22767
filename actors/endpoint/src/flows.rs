//! Flow control of all pools: shows each engine its endpoints, lets time pass for it, and carries what routers and dispatchers
//! of a pool tell each other. The dispatcher of a pool is the highest rendezvous hash of (pool, node) over the region's live
//! nodes, like the owner of an endpoint.

mod message;
mod regions;

use crate::ownership::LiveNodes;
use crate::shared::Shared;
use parking_lot::Mutex;
use quorate_proto::peer::v1::FlowMessage;
use quorate_routing::flow::FlowControl;
use quorate_routing::flow::share::PoolShare;
use quorate_routing::now_ms;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often engines look at their endpoints and at the clock.
const TICK: Duration = Duration::from_millis(25);
/// The same as long as no pool has flow control.
const IDLE_TICK: Duration = Duration::from_millis(500);
/// A node that was declared no longer ago than this may be alive although it was not heard of.
const SETTLE: Duration = Duration::from_millis(2_000);
/// Messages to a peer that wait to be sent; beyond it the peer does not read, and its stream will end.
const MOST_MAIL: usize = 10_000;
/// Bytes of messages in one update of the stream; a single message may be longer.
const BUNDLE: usize = 1 << 20;

/// What waits to be sent to one peer.
pub struct Mail<M> {
    messages: Mutex<Vec<M>>,
    wake: Notify,
}

impl<M> Default for Mail<M> {
    fn default() -> Self {
        Self {
            messages: Mutex::default(),
            wake: Notify::default(),
        }
    }
}

impl<M: prost::Message> Mail<M> {
    /// Completes when there is something.
    pub async fn written(&self) {
        self.wake.notified().await;
    }

    /// The same for a peer that may have no mail; that is never written.
    pub async fn written_in(mail: Option<&Self>) {
        match mail {
            Some(mail) => mail.written().await,
            None => std::future::pending().await,
        }
    }

    /// Takes all of it, in order, in bundles far below the transport's limit.
    pub fn take(&self) -> Vec<Vec<M>> {
        let all = std::mem::take(&mut *self.messages.lock());
        let (mut bundles, mut size) = (vec![Vec::new()], 0);
        for message in all {
            size += message.encoded_len();
            if size > BUNDLE {
                bundles.push(Vec::new());
                size = message.encoded_len();
            }
            if let Some(last) = bundles.last_mut() {
                last.push(message);
            }
        }
        bundles.retain(|b| !b.is_empty());
        bundles
    }

    /// Adds a message.
    pub fn put(&self, message: M) {
        let mut messages = self.messages.lock();
        if messages.len() < MOST_MAIL {
            messages.push(message);
        }
        drop(messages);
        self.wake.notify_one();
    }
}

#[derive(Default)]
struct Inbox {
    opened: BTreeSet<u64>,
    messages: Vec<(u64, FlowMessage)>,
    /// Figures or health of endpoints changed.
    endpoints: bool,
}

/// Where streams and engines meet the task that does the work.
#[derive(Default)]
pub struct Flows {
    inbox: Mutex<Inbox>,
    mail: Mutex<HashMap<u64, Arc<Mail<FlowMessage>>>>,
    wake: Notify,
}

impl Flows {
    /// This node's stream to a peer is a new one. Gives what will be written to it.
    pub fn link_opened(&self, peer: u64) -> Arc<Mail<FlowMessage>> {
        let mail = Arc::new(Mail::default());
        self.mail.lock().insert(peer, Arc::clone(&mail));
        self.inbox.lock().opened.insert(peer);
        self.wake.notify_one();
        mail
    }

    /// Messages of a peer came.
    pub fn receive(&self, from: u64, messages: &[FlowMessage]) {
        if !messages.is_empty() {
            let of = messages.iter().map(|m| (from, m.clone()));
            self.inbox.lock().messages.extend(of);
            self.wake.notify_one();
        }
    }

    /// Something about endpoints changed that an engine may be waiting for.
    pub fn endpoints_changed(&self) {
        self.inbox.lock().endpoints = true;
        self.wake.notify_one();
    }

    /// Pools may have flow control from now on, or other rules.
    pub fn view_changed(&self) {
        self.wake.notify_one();
    }

    fn post(&self, to: u64, message: FlowMessage) {
        let mail = self.mail.lock().get(&to).cloned();
        // Without a stream there is nobody to tell; a new one begins with everything.
        if let Some(mail) = mail {
            mail.put(message);
        }
    }
}

/// Looks after all pools with flow control, for ever.
pub async fn run(shared: Arc<Shared>) {
    let mut shares: BTreeMap<Arc<str>, PoolShare> = BTreeMap::new();
    let mut newcomers = Newcomers::new();
    let mut live = shared.live.subscribe();
    let mut next_tick = Instant::now();
    loop {
        tokio::select! {
            () = shared.flows.wake.notified() => {}
            () = tokio::time::sleep_until(next_tick) => {}
            Ok(()) = live.changed() => {}
        }
        let inbox = std::mem::take(&mut *shared.flows.inbox.lock());
        let now = Instant::now();
        let due = now >= next_tick;
        if due {
            let idle = shares.is_empty();
            next_tick = now + if idle { IDLE_TICK } else { TICK };
        }
        round(&shared, &mut shares, &mut newcomers, inbox, due);
    }
}

/// Nodes that are new to this one: when each was declared first; `None`: it has been alive since.
type Newcomers = HashMap<u64, Option<Instant>>;

/// Who has a part in the pools' limits. Nodes of a cluster that starts, or that one joins, hear of each other one by one, in any
/// order: a node that is declared counts from then on, and for a while whether it has been heard of or not, so that nobody uses
/// places that another one has already.
fn expected(shared: &Shared, live: &LiveNodes, newcomers: &mut Newcomers) -> LiveNodes {
    let mut all = live.clone();
    let peers = shared.peers.borrow();
    newcomers.retain(|id, _| peers.iter().any(|peer| peer.node_id == *id));
    for peer in peers.iter() {
        let declared = newcomers
            .entry(peer.node_id)
            .or_insert_with(|| Some(Instant::now()));
        if live.contains(peer.node_id) {
            *declared = None;
        } else if declared.is_some_and(|at| at.elapsed() < SETTLE) {
            all.insert(peer.node_id, Arc::clone(&peer.region));
        }
    }
    all
}

/// One look at everything.
fn round(
    shared: &Shared,
    shares: &mut BTreeMap<Arc<str>, PoolShare>,
    newcomers: &mut Newcomers,
    inbox: Inbox,
    due: bool,
) {
    let view = shared.view.load();
    let me = shared.node_id();
    let flow_of = |name: &Arc<str>| -> Option<Arc<FlowControl>> {
        let pool = view.pools().iter().find(|p| p.spec.name == *name)?;
        pool.policy.flow.clone()
    };
    shares.retain(|name, share| {
        let kept = flow_of(name).is_some_and(|f| Arc::ptr_eq(&f, share.flow()));
        if !kept {
            // Whoever still waits there goes as places become free.
            share.flow().unshare();
        }
        kept
    });
    let here = &shared.origin.region;
    let live = Arc::clone(&shared.live.borrow());
    let sharing = expected(shared, &live, newcomers);
    let near = sharing.iter().filter(|(_, region)| *region == here);
    let routers: BTreeSet<u64> = near.map(|(id, _)| id).collect();
    let regions: BTreeSet<&str> = sharing.iter().map(|(_, region)| &**region).collect();
    for pool in view.pools() {
        let Some(flow) = &pool.policy.flow else {
            continue;
        };
        let new = !shares.contains_key(&pool.spec.name);
        let share = shares
            .entry(Arc::clone(&pool.spec.name))
            .or_insert_with(|| {
                let flows = Arc::clone(&shared.flows);
                flow.on_change(move || flows.wake.notify_one());
                PoolShare::new(me, Arc::clone(flow))
            });
        let leader = live.endpoint_owner(&pool.spec.name, here);
        // First: who shares the pool must not be let in by the whole pool's limit for a moment.
        share.set_routers(leader.unwrap_or(me), routers.clone());
        if new || due || inbox.endpoints {
            let parts = regions::parts(&pool.endpoints, &regions, here, now_ms());
            flow.observe_parts(&pool.endpoints, &parts);
        }
        for peer in &inbox.opened {
            share.link_opened(*peer);
        }
        if new || due {
            share.tick();
        }
    }
    for (from, wire) in inbox.messages {
        if let Some(share) = shares.get_mut(wire.pool.as_str())
            && let Some(message) = message::from_proto(wire)
        {
            share.hear(from, message);
        }
    }
    for (name, share) in shares {
        for (to, message) in share.step() {
            shared.flows.post(to, message::to_proto(name, message));
        }
    }
}
