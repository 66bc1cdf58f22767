//! What the dispatcher knows of one router: what it may have in flight at most, counting everything that is on its way.

use crate::flow::queue::Held;
use crate::flow::saturation::Load;
use crate::flow::share::message::{Demand, Grant, Revoke};
use std::collections::{BTreeMap, VecDeque};

/// A grant that the router has not acted upon as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    seq: u64,
    dispatched: Load,
    standing: Option<Load>,
    revoke: Vec<Revoke>,
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
    /// What may be revoked there and what is on its way out, as last said; and what it is going to be told to revoke.
    revocable: BTreeMap<i32, u64>,
    revoking: u64,
    revoke: Vec<Revoke>,
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
            revocable: demand.revocable.iter().copied().collect(),
            revoking: demand.revoking,
            revoke: Vec::new(),
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
        self.revocable = demand.revocable.iter().copied().collect();
        self.revoking = demand.revoking;
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

    /// In flight there at most, without what it may have and does not use.
    pub fn busy(&self) -> Load {
        self.sent
            .iter()
            .fold(self.in_flight + self.dispatched, |sum, s| {
                sum + s.dispatched
            })
    }

    fn orders(&self) -> impl Iterator<Item = &Revoke> {
        self.sent.iter().flat_map(|s| &s.revoke).chain(&self.revoke)
    }

    /// Requests that are on their way out, or are going to be told so.
    pub fn revoking(&self) -> u64 {
        self.orders()
            .fold(self.revoking, |sum, order| sum + order.requests)
    }

    /// The lowest priority of a running request that may still be revoked, and how many there are of it.
    pub fn lowest_revocable(&self) -> Option<(i32, u64)> {
        // Orders that it has not acted upon take the lowest first.
        let mut ordered: u64 = self.orders().map(|order| order.requests).sum();
        self.revocable.iter().find_map(|(priority, count)| {
            let left = count.saturating_sub(ordered);
            ordered = ordered.saturating_sub(*count);
            (left > 0).then_some((*priority, left))
        })
    }

    /// A running request of this priority there has to give way.
    pub fn revoke(&mut self, priority: i32) {
        let below = priority.saturating_add(1);
        match self.revoke.last_mut() {
            Some(last) if last.below == below => last.requests += 1,
            _ => self.revoke.push(Revoke { requests: 1, below }),
        }
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
            revoke: self.revoke.clone(),
        });
        Some(Grant {
            session: self.session,
            seq: self.seq,
            dispatch: std::mem::take(&mut self.dispatch),
            standing: self.standing,
            elsewhere,
            queued_elsewhere: queued,
            renew: std::mem::take(&mut self.renew),
            revoke: std::mem::take(&mut self.revoke),
        })
    }
}
