//! One node's part in one pool: its engine, the dispatcher if it is this node, and the messages between them and to peers.

use crate::flow::control::FlowControl;
use crate::flow::share::dispatcher::Dispatcher;
use crate::flow::share::message::{Demand, Grant, Message};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Messages between the engine and a dispatcher on the same node in one step; what is left comes in the next.
const MOST_ROUNDS: usize = 8;

/// See the module's documentation.
pub struct PoolShare {
    me: u64,
    flow: Arc<FlowControl>,
    leader: u64,
    routers: BTreeSet<u64>,
    dispatcher: Option<Dispatcher>,
    sessions: u64,
}

impl PoolShare {
    /// This node's part; alone until it hears of others.
    pub fn new(me: u64, flow: Arc<FlowControl>) -> Self {
        Self {
            me,
            flow,
            leader: me,
            routers: BTreeSet::from([me]),
            dispatcher: None,
            // Not to be mistaken for a session of an earlier process of this node.
            sessions: RandomState::new().hash_one(me) >> 1,
        }
    }

    /// The engine.
    pub fn flow(&self) -> &Arc<FlowControl> {
        &self.flow
    }

    /// The node that gives out the pool's places, as far as this one knows.
    pub fn leader(&self) -> u64 {
        self.leader
    }

    /// Who shares the pool (this node among them), and who of them is the dispatcher.
    pub fn set_routers(&mut self, leader: u64, routers: BTreeSet<u64>) {
        if (self.leader, &self.routers) == (leader, &routers) {
            return;
        }
        let now = self.flow.now();
        let was_alone = self.routers.len() <= 1;
        let before = std::mem::replace(&mut self.routers, routers);
        let moved = std::mem::replace(&mut self.leader, leader) != leader;
        if self.routers.len() <= 1 {
            self.dispatcher = None;
            self.flow.unshare();
            return;
        }
        if leader != self.me {
            self.dispatcher = None;
        } else if let Some(dispatcher) = &mut self.dispatcher {
            for gone in before.difference(&self.routers) {
                dispatcher.lost(*gone, now);
            }
            for new in self.routers.difference(&before) {
                dispatcher.joined(*new, now);
            }
        } else {
            // Whatever was before: what the others have in flight only they know.
            let routers = self.routers.iter().copied();
            let mut dispatcher = Dispatcher::new(self.flow.config(), routers, now);
            dispatcher.set_endpoints(self.flow.endpoints(), now);
            self.dispatcher = Some(dispatcher);
        }
        if moved || was_alone {
            self.renew();
        } else {
            self.flow.set_routers(self.routers.len() as u64);
        }
    }

    fn renew(&mut self) {
        self.sessions += 1;
        self.flow.share(self.sessions, self.routers.len() as u64);
    }

    /// A peer's word.
    pub fn hear(&mut self, from: u64, message: Message) {
        match message {
            Message::Demand(demand) => self.hear_demand(from, demand),
            Message::Grant(grant) if from == self.leader && from != self.me => {
                self.hear_grant(&grant);
            }
            Message::Grant(_) => {}
        }
    }

    fn hear_demand(&mut self, from: u64, demand: Demand) {
        // Who is not believed alive would never be found lost.
        if let Some(dispatcher) = &mut self.dispatcher
            && self.routers.contains(&from)
        {
            dispatcher.demand(from, demand, self.flow.now());
        }
    }

    fn hear_grant(&mut self, grant: &Grant) {
        if self.flow.grant(grant) && grant.renew {
            self.renew();
        }
    }

    /// This node's stream to a peer is a new one: what was sent before may be lost.
    pub fn link_opened(&mut self, peer: u64) {
        if let Some(dispatcher) = &mut self.dispatcher {
            dispatcher.renew(peer);
        } else if peer == self.leader && self.routers.len() > 1 {
            self.renew();
        }
    }

    /// Looks at the engine's configuration and endpoints, and lets time pass. To be called every 50 ms or so.
    pub fn tick(&mut self) {
        self.flow.tick();
        let now = self.flow.now();
        if let Some(dispatcher) = &mut self.dispatcher {
            dispatcher.reconfigure(self.flow.config(), now);
            dispatcher.set_endpoints(self.flow.endpoints(), now);
            dispatcher.tick(now);
        }
    }

    /// Carries messages between the engine and the dispatcher, and gives those for peers.
    pub fn step(&mut self) -> Vec<(u64, Message)> {
        let mut out = Vec::new();
        for _ in 0..MOST_ROUNDS {
            let mut quiet = true;
            if let Some(demand) = self.flow.take_demand() {
                match &mut self.dispatcher {
                    Some(dispatcher) => {
                        quiet = false;
                        dispatcher.demand(self.me, demand, self.flow.now());
                    }
                    None => out.push((self.leader, Message::Demand(demand))),
                }
            }
            let now = self.flow.now();
            let grants = self.dispatcher.as_mut().map(|d| d.grants(now));
            for (router, grant) in grants.into_iter().flatten() {
                if router == self.me {
                    quiet = false;
                    self.hear_grant(&grant);
                } else {
                    out.push((router, Message::Grant(grant)));
                }
            }
            if quiet {
                break;
            }
        }
        out
    }
}
