//! The queue: priority bands of flows of requests. Pure; the engine and the dispatcher of a pool hold one each.
//!
//! A flow is (fairness id, priority) and exists as long as something of it waits. Everything is logarithmic in what is queued,
//! but for the program-aware policy, which looks at all flows of the band.

use crate::config::{BandConfig, FairnessPolicy};
use crate::flow::fairness::{ServiceLedger, least_attained};
use crate::flow::order::OrderKey;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// A queued request.
#[derive(Clone, Debug, PartialEq)]
pub struct Item<T> {
    /// When it came, in microseconds.
    pub arrived: u64,
    /// Size of its body.
    pub bytes: u64,
    /// Whose it is.
    pub value: T,
}

/// Where a request waits; what it takes to remove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its band.
    pub priority: i32,
    /// Its fairness id.
    pub flow: Arc<str>,
    /// Its place in the flow.
    pub order: OrderKey,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Held {
    /// One more request.
    pub fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// One request less.
    pub fn sub(&mut self, bytes: u64) {
        self.requests = self.requests.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The requests of one priority.
#[derive(Debug)]
pub struct Band<T> {
    config: BandConfig,
    /// In fairness-id order; none of them is empty.
    flows: BTreeMap<Arc<str>, BTreeMap<OrderKey, Item<T>>>,
    /// The flows' heads, for the strict policy only.
    heads: BTreeSet<(OrderKey, Arc<str>)>,
    /// The flow that was served last, for the round-robin policy.
    cursor: Option<Arc<str>>,
    held: Held,
}

impl<T> Band<T> {
    fn new(config: BandConfig) -> Self {
        Self {
            config,
            flows: BTreeMap::new(),
            heads: BTreeSet::new(),
            cursor: None,
            held: Held::default(),
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &BandConfig {
        &self.config
    }

    /// Its priority.
    pub fn priority(&self) -> i32 {
        self.config.priority
    }

    /// What waits in it.
    pub fn held(&self) -> Held {
        self.held
    }

    /// All that wait: fairness id, place, request. Flow by flow, each in its order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, OrderKey, &Item<T>)> {
        self.flows
            .iter()
            .flat_map(|(flow, items)| items.iter().map(move |(order, item)| (flow, *order, item)))
    }

    fn strict(&self) -> bool {
        self.config.fairness == FairnessPolicy::GlobalStrict
    }

    fn push(&mut self, flow: &str, order: OrderKey, item: Item<T>) -> Arc<str> {
        self.held.add(item.bytes);
        let strict = self.strict();
        let name = match self.flows.get_key_value(flow) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(flow),
        };
        let items = self.flows.entry(Arc::clone(&name)).or_default();
        if strict {
            let head = items.first_key_value().map(|(k, _)| *k);
            if head.is_none_or(|head| order < head) {
                if let Some(head) = head {
                    self.heads.remove(&(head, Arc::clone(&name)));
                }
                self.heads.insert((order, Arc::clone(&name)));
            }
        }
        items.insert(order, item);
        name
    }

    fn remove(&mut self, flow: &Arc<str>, order: OrderKey) -> Option<Item<T>> {
        let strict = self.strict();
        let items = self.flows.get_mut(flow)?;
        let was_head = items.first_key_value().is_some_and(|(k, _)| *k == order);
        let item = items.remove(&order)?;
        self.held.sub(item.bytes);
        if strict && was_head {
            self.heads.remove(&(order, Arc::clone(flow)));
            if let Some((next, _)) = items.first_key_value() {
                self.heads.insert((*next, Arc::clone(flow)));
            }
        }
        if items.is_empty() {
            self.flows.remove(flow);
        }
        Some(item)
    }

    /// The flow whose head is next.
    fn next_flow(&self, service: &ServiceLedger, now: u64) -> Option<&Arc<str>> {
        match &self.config.fairness {
            FairnessPolicy::GlobalStrict => self.heads.first().map(|(_, flow)| flow),
            FairnessPolicy::RoundRobin => {
                let after = self.cursor.as_ref().and_then(|cursor| {
                    let rest = (Excluded(cursor), Unbounded);
                    self.flows.range::<Arc<str>, _>(rest).next()
                });
                after
                    .or_else(|| self.flows.first_key_value())
                    .map(|(flow, _)| flow)
            }
            FairnessPolicy::ProgramAware(policy) => {
                let half_life = micros(policy.half_life);
                let scores: Vec<(f64, f64)> = self
                    .flows
                    .iter()
                    .map(|(flow, items)| {
                        let waited = items
                            .first_key_value()
                            .map_or(0, |(_, head)| now.saturating_sub(head.arrived));
                        (service.attained(flow, half_life, now), waited as f64)
                    })
                    .collect();
                let best = least_attained(policy, &scores)?;
                self.flows.keys().nth(best)
            }
        }
    }
}

/// Microseconds, saturating.
pub fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Queue<T> {
    /// Highest priority first.
    bands: Vec<Band<T>>,
    held: Held,
    /// What the flows got, for the program-aware policy.
    pub service: ServiceLedger,
}

impl<T> Queue<T> {
    /// An empty queue with these bands.
    pub fn new(bands: &[BandConfig]) -> Self {
        let mut queue = Self {
            bands: Vec::new(),
            held: Held::default(),
            service: ServiceLedger::default(),
        };
        for band in bands {
            queue.add_band(band.clone());
        }
        queue
    }

    /// All bands, highest priority first.
    pub fn bands(&self) -> &[Band<T>] {
        &self.bands
    }

    /// What waits in all bands.
    pub fn held(&self) -> Held {
        self.held
    }

    /// Index of the band of a priority.
    pub fn band(&self, priority: i32) -> Option<usize> {
        self.bands
            .binary_search_by(|b| priority.cmp(&b.priority()))
            .ok()
    }

    /// Adds a band unless there is one of its priority; gives its index.
    pub fn add_band(&mut self, config: BandConfig) -> usize {
        match self
            .bands
            .binary_search_by(|b| config.priority.cmp(&b.priority()))
        {
            Ok(index) => index,
            Err(index) => {
                self.bands.insert(index, Band::new(config));
                index
            }
        }
    }

    /// Removes bands that are empty and of which `keep` says no.
    pub fn prune_bands(&mut self, keep: impl Fn(i32) -> bool) -> bool {
        let before = self.bands.len();
        self.bands
            .retain(|b| b.held.requests > 0 || keep(b.priority()));
        self.bands.len() != before
    }

    /// Queues a request in the band of this index (as [`Self::band`] gave it). `None`: there is no such band.
    pub fn push(
        &mut self,
        band: usize,
        flow: &str,
        order: OrderKey,
        item: Item<T>,
    ) -> Option<Ticket> {
        let band = self.bands.get_mut(band)?;
        self.held.add(item.bytes);
        let flow = band.push(flow, order, item);
        Some(Ticket {
            priority: band.priority(),
            flow,
            order,
        })
    }

    /// Takes a request out from wherever it waits; `None`: it is gone already.
    pub fn remove(&mut self, ticket: &Ticket) -> Option<Item<T>> {
        let band = self.band(ticket.priority)?;
        let item = self
            .bands
            .get_mut(band)?
            .remove(&ticket.flow, ticket.order)?;
        self.held.sub(item.bytes);
        Some(item)
    }

    /// The request that waits there.
    pub fn get(&self, ticket: &Ticket) -> Option<&Item<T>> {
        let band = self.bands.get(self.band(ticket.priority)?)?;
        band.flows.get(&ticket.flow)?.get(&ticket.order)
    }

    /// The highest band in which something waits.
    pub fn first_band(&self) -> Option<usize> {
        self.bands.iter().position(|b| b.held.requests > 0)
    }

    /// Takes the request of the band that is next by its policies.
    pub fn pop(&mut self, band: usize, now: u64) -> Option<(Ticket, Item<T>)> {
        let band = self.bands.get_mut(band)?;
        let flow = Arc::clone(band.next_flow(&self.service, now)?);
        let order = *band.flows.get(&flow)?.first_key_value()?.0;
        let item = band.remove(&flow, order)?;
        if band.config.fairness == FairnessPolicy::RoundRobin {
            band.cursor = Some(Arc::clone(&flow));
        }
        self.held.sub(item.bytes);
        let ticket = Ticket {
            priority: band.priority(),
            flow,
            order,
        };
        Some((ticket, item))
    }
}

#[cfg(test)]
mod tests;
