//! What the dispatcher knows of one router: what it may have in flight at most, counting everything that is on its way.

use crate::flow::queue::Held;
use crate::flow::saturation::Load;
use crate::flow::share::message::{Demand, Grant};
use std::collections::{BTreeMap, VecDeque};

/// A grant that the router has not acted upon as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    seq: u64,
    dispatched: Load,
    standing: Option<Load>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Account {
    session: u64,
    in_flight: Load,
    /// What it said that it may have in flight, with all grants acted upon that it knew then.
    held: Load,
    sent: VecDeque<Sent>,
    seq: u64,
    /// As of the next grant.
    standing: Option<Load>,
    dispatch: Vec<u64>,
    dispatched: Load,
    changed: bool,
    renew: bool,
    told_elsewhere: Load,
    told_queued: Vec<(i32, Held)>,
    told_at: Option<u64>,
    /// What waits there.
    queued: BTreeMap<i32, Held>,
    lost: Option<u64>,
}

impl Account {
    /// A session begins.
    pub fn open(demand: &Demand) -> Self {
        Self {
            session: demand.session,
            in_flight: demand.in_flight,
            held: demand.held,
            sent: VecDeque::new(),
            seq: 0,
            standing: None,
            dispatch: Vec::new(),
            dispatched: Load::default(),
            // The router shall know at once that it has been heard.
            changed: true,
            renew: false,
            told_elsewhere: Load::default(),
            told_queued: Vec::new(),
            told_at: None,
            queued: BTreeMap::new(),
            lost: None,
        }
    }

    /// A router speaks of a session that is not known here: what it has is counted, and it shall begin anew.
    pub fn adopt(demand: &Demand) -> Self {
        Self {
            seq: demand.acked,
            renew: true,
            ..Self::open(demand)
        }
    }

    /// Whether it is this conversation that a message belongs to.
    pub fn is(&self, demand: &Demand) -> bool {
        demand.session == self.session && self.lost.is_none()
    }

    /// Takes what the router says of itself.
    pub fn hear(&mut self, demand: &Demand) {
        self.in_flight = demand.in_flight;
        self.held = demand.held;
        while self.sent.front().is_some_and(|s| s.seq <= demand.acked) {
            self.sent.pop_front();
        }
    }

    /// Requests in flight there, as last said.
    pub fn in_flight(&self) -> Load {
        self.in_flight
    }

    /// What may be in flight there at most: what it said, what it was allowed since, and each request that it was told to
    /// dispatch.
    pub fn holds(&self) -> Load {
        let allowed = self
            .sent
            .iter()
            .filter_map(|s| s.standing)
            .chain(self.standing)
            .fold(self.held, Load::max);
        self.sent
            .iter()
            .fold(allowed + self.dispatched, |sum, s| sum + s.dispatched)
    }

    /// What it may have in flight without asking, as of the next grant.
    pub fn standing(&self) -> Option<Load> {
        self.standing
    }

    /// Changes that.
    pub fn stand(&mut self, standing: Option<Load>) {
        self.changed |= self.standing != standing;
        self.standing = standing;
    }

    /// A request there may go.
    pub fn dispatch(&mut self, id: u64, tokens: u64) {
        self.dispatch.push(id);
        self.dispatched = self.dispatched
            + Load {
                requests: 1,
                tokens,
            };
        self.changed = true;
    }

    /// Its stream ended.
    pub fn lost(&mut self, now: u64) {
        self.lost.get_or_insert(now);
    }

    /// Since when its stream is gone.
    pub fn lost_since(&self) -> Option<u64> {
        self.lost
    }

    /// It shall begin a new session.
    pub fn renew(&mut self) {
        self.renew = true;
        self.changed = true;
    }

    /// A request began to wait there.
    pub fn waits(&mut self, priority: i32, bytes: u64) {
        self.queued.entry(priority).or_default().add(bytes);
    }

    /// A request no longer waits there.
    pub fn left(&mut self, priority: i32, bytes: u64) {
        self.queued.entry(priority).or_default().sub(bytes);
    }

    /// What waits on the other routers, of what waits on all.
    pub fn queued_elsewhere(&self, all: &BTreeMap<i32, Held>) -> Vec<(i32, Held)> {
        all.iter()
            .map(|(priority, held)| {
                let own = self.queued.get(priority).copied().unwrap_or_default();
                let rest = Held {
                    requests: held.requests.saturating_sub(own.requests),
                    bytes: held.bytes.saturating_sub(own.bytes),
                };
                (*priority, rest)
            })
            .filter(|(_, held)| held.requests > 0)
            .collect()
    }

    /// The next grant, if there is something to say or nothing was said for `remind`. What the others have changes all the time;
    /// it is told with something else, or every tenth of `remind`.
    pub fn grant(
        &mut self,
        elsewhere: Load,
        queued: Vec<(i32, Held)>,
        remind: u64,
        now: u64,
    ) -> Option<Grant> {
        if self.lost.is_some() {
            return None;
        }
        let age = self.told_at.map(|at| now.saturating_sub(at));
        let news = self.told_elsewhere != elsewhere || self.told_queued != queued;
        let due = age.is_none_or(|age| age >= remind || news && age >= remind / 10);
        if !(self.changed || due) {
            return None;
        }
        self.changed = false;
        self.told_at = Some(now);
        self.told_elsewhere = elsewhere;
        self.told_queued.clone_from(&queued);
        self.seq += 1;
        self.sent.push_back(Sent {
            seq: self.seq,
            dispatched: std::mem::take(&mut self.dispatched),
            standing: self.standing,
        });
        Some(Grant {
            session: self.session,
            seq: self.seq,
            dispatch: std::mem::take(&mut self.dispatch),
            standing: self.standing,
            elsewhere,
            queued_elsewhere: queued,
            renew: std::mem::take(&mut self.renew),
        })
    }
}
