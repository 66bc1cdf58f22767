//! The engine as one of several routers of a pool: says what waits here, and acts upon what the dispatcher grants.

use crate::flow::control::FlowControl;
use crate::flow::core::{Core, Queued};
use crate::flow::queue::Item;
use crate::flow::saturation::Load;
use crate::flow::share::member::{Member, ORPHAN_AFTER};
use crate::flow::share::message::{Demand, Grant, Waiting};
use std::sync::Arc;

/// A router that has nothing to say says so this often (µs).
const REMIND: u64 = 200_000;
/// Waiting requests in one message take about this many bytes at most, each of them this many and its fairness id.
const MOST_BYTES: usize = 256 << 10;
const ENTRY: usize = 48;

impl FlowControl {
    /// From now on this router shares the pool's limit with others: a conversation with the dispatcher begins anew.
    pub fn share(self: &Arc<Self>, session: u64, routers: u64) {
        let now = self.now();
        let mut core = self.lock();
        let before = core.member.take();
        core.member = Some(Member::new(session, routers, before, now));
        self.publish_gates(&mut core);
        drop(core);
        self.mark_dirty();
    }

    /// How many routers share the pool now.
    pub fn set_routers(&self, routers: u64) {
        if let Some(member) = &mut self.lock().member {
            member.routers = routers;
        }
    }

    /// This router is the only one: it decides alone.
    pub fn unshare(self: &Arc<Self>) {
        let mut wakers = Vec::new();
        let mut core = self.lock();
        if core.member.take().is_some() {
            self.publish_gates(&mut core);
            self.pump(&mut core, &mut wakers);
        }
        drop(core);
        self.wake(wakers);
    }

    /// What the dispatcher has not heard yet. `None`: nothing, and it was told so a short time ago.
    pub fn take_demand(&self) -> Option<Demand> {
        let dirty = self.take_dirty();
        let now = self.now();
        let mut core = self.lock();
        let core = &mut *core;
        let member = core.member.as_mut()?;
        let due = now.saturating_sub(member.told) >= REMIND;
        if !(dirty || member.first || due) {
            return None;
        }
        member.told = now;
        if member.first {
            let all = core.queue.bands().iter().flat_map(|band| band.iter());
            member.unsaid = all.map(|(_, _, item)| item.value.id).collect();
        }
        let mut said = Vec::new();
        let mut size = 0;
        // A long queue takes several messages.
        while size < MOST_BYTES
            && let Some(id) = member.unsaid.pop_first()
        {
            let known = core.places.get(id);
            if let Some((ticket, item)) = known.and_then(|t| Some((t, core.queue.get(t)?))) {
                size += ENTRY + ticket.flow.len();
                said.push(waiting(ticket.priority, &ticket.flow, item, now));
            }
        }
        let more = !member.unsaid.is_empty();
        let in_flight = self.ledger.load();
        let (revocable, revoking) = {
            let victims = self.victims.lock();
            (victims.available(), victims.pending())
        };
        let demand = Demand {
            session: member.session,
            first: std::mem::take(&mut member.first),
            acked: member.acked,
            in_flight,
            held: in_flight.max(member.standing.unwrap_or_default()),
            waiting: said,
            gone: std::mem::take(&mut member.gone),
            served: std::mem::take(&mut member.served).into_iter().collect(),
            revocable,
            revoking,
        };
        if more {
            self.mark_dirty();
        }
        Some(demand)
    }

    /// The dispatcher's word. False: it is not of this router's session.
    pub fn grant(self: &Arc<Self>, grant: &Grant) -> bool {
        let now = self.now();
        let mut wakers = Vec::new();
        let mut core = self.lock();
        let Some(member) = &mut core.member else {
            return false;
        };
        let before = (member.standing, member.elsewhere);
        if !member.take(grant, now) {
            return false;
        }
        let changed = before != (member.standing, member.elsewhere);
        for id in &grant.dispatch {
            // Gone meanwhile: the place stays unused, and the next demand tells so.
            if let Some((flow, priority, item)) = core.remove(*id) {
                wakers.extend(self.release_queued(&mut core, &flow, priority, item, now));
            }
        }
        if changed {
            self.publish_gates(&mut core);
        }
        for order in &grant.revoke {
            self.revoke(&mut core, order.below, order.requests);
        }
        self.pump(&mut core, &mut wakers);
        drop(core);
        self.mark_dirty();
        self.wake(wakers);
        true
    }

    /// Goes on with an even share when the dispatcher is silent.
    pub(in crate::flow) fn time_out_orphan(&self, core: &mut Core, now: u64) {
        let limit = core.budget.limit(1.0);
        let Some(member) = &mut core.member else {
            return;
        };
        if member.orphan || now.saturating_sub(member.heard) < ORPHAN_AFTER {
            return;
        }
        let share = |limit: u64| match limit {
            0 | u64::MAX => limit,
            limit => (limit / member.routers.max(1)).max(1),
        };
        let even = Load {
            requests: share(limit.requests),
            tokens: share(limit.tokens),
        };
        member.orphan = true;
        member.standing = Some(even);
        member.elsewhere = Load::default();
        self.publish_gates(core);
        self.mark_dirty();
    }
}

fn waiting(priority: i32, flow: &Arc<str>, item: &Item<Queued>, now: u64) -> Waiting {
    let until = |at: Option<u64>| at.map(|at| signed(at).saturating_sub(signed(now)));
    let queued = &item.value;
    Waiting {
        id: queued.id,
        priority,
        flow: Arc::clone(flow),
        age: now.saturating_sub(item.arrived),
        deadline_in: until(queued.times.deadline),
        first_token_in: until(queued.times.first_token_due),
        bytes: item.bytes,
        tokens: queued.tokens,
    }
}

fn signed(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}
