//! What the other nodes reported: counts and owners' reports by origin. Pure; one stream is one origin's word, and what it said
//! is gone when it ends. A sum is added up when asked for, so that it cannot drift or fall below zero.

use crate::endpoint::stall::Flight;
use crate::exchange::{Key, Report};
use crate::ownership::LiveNodes;
use quorate_proto::peer::v1::LoadUpdate;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Endpoints that one origin may report; more are ignored.
const MOST_KEYS: usize = 200_000;

/// Who opened a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The node.
    pub node_id: u64,
    /// Its process.
    pub start_id: u64,
    /// Identity of its data directory.
    pub instance: String,
    /// Its region.
    pub region: Arc<str>,
}

/// A stream's handle in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    requests: u32,
    tokens: u64,
    progress_at: u64,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    origin: Origin,
    counts: HashMap<Key, Count>,
    reports: HashMap<Key, Arc<Report>>,
}

/// A stream of a node that another process of the same node id has replaced.
#[derive(Debug)]
struct Replaced {
    origin: Origin,
    at: u64,
    told: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Table {
    streams: BTreeMap<u64, Stream>,
    replaced: BTreeMap<StreamId, Replaced>,
    last_id: u64,
}

/// What a step changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Endpoints whose sum may have changed.
    pub counts: Vec<Key>,
    /// Endpoints that a report came for.
    pub reports: Vec<Key>,
    /// Endpoints that the sender's breaker opened for.
    pub suspects: Vec<Key>,
    /// The live nodes changed.
    pub nodes: bool,
    /// Two processes say that they are this node: the one that had the id, and the one that has it now.
    pub used_twice: Option<(Origin, Origin)>,
}

impl Table {
    /// A stream begins. The newest stream speaks for its node.
    pub fn open(&mut self, origin: Origin, now: u64) -> (StreamId, Changes) {
        self.last_id += 1;
        let id = StreamId(self.last_id);
        let mut changes = Changes::default();
        let stream = Stream {
            id,
            origin: origin.clone(),
            counts: HashMap::new(),
            reports: HashMap::new(),
        };
        changes.nodes = true;
        if let Some(old) = self.streams.insert(origin.node_id, stream) {
            changes.nodes = old.origin.region != origin.region;
            changes.counts = old.counts.into_keys().collect();
            if old.origin.start_id != origin.start_id {
                let replaced = Replaced {
                    origin: old.origin,
                    at: now,
                    told: false,
                };
                self.replaced.insert(old.id, replaced);
            }
        }
        (id, changes)
    }

    /// A message came. Of a replaced stream it changes nothing; but if that stream still speaks `grace_ms` after it was
    /// replaced, its process did not die: the node id is in use twice.
    pub fn update(
        &mut self,
        id: StreamId,
        update: &LoadUpdate,
        grace_ms: u64,
        now: u64,
    ) -> Changes {
        let mut changes = Changes::default();
        let Some(stream) = self.streams.values_mut().find(|s| s.id == id) else {
            changes.used_twice = self.still_speaks(id, grace_ms, now);
            return changes;
        };
        for count in &update.in_flight {
            let key = Key::new(&count.endpoint, count.incarnation);
            if count.suspect {
                changes.suspects.push(key.clone());
            }
            let new = Count {
                requests: count.requests,
                tokens: count.tokens,
                progress_at: now.saturating_sub(u64::from(count.quiet_ms)),
            };
            let old = match count.requests {
                0 => stream.counts.remove(&key),
                _ if stream.counts.len() >= MOST_KEYS && !stream.counts.contains_key(&key) => {
                    continue;
                }
                _ => stream.counts.insert(key.clone(), new),
            };
            if old.map_or((0, 0), |c| (c.requests, c.tokens)) != (count.requests, count.tokens) {
                changes.counts.push(key);
            }
        }
        for report in &update.reports {
            let key = Key::new(&report.endpoint, report.incarnation);
            match Report::from_proto(report, now) {
                None => {
                    stream.reports.remove(&key);
                }
                Some(_)
                    if stream.reports.len() >= MOST_KEYS && !stream.reports.contains_key(&key) => {}
                Some(mut report) => {
                    // Models are sent only when they changed.
                    if let Some(old) = stream.reports.get(&key)
                        && report.models.is_empty()
                    {
                        report.models = old.models.clone();
                    }
                    stream.reports.insert(key.clone(), Arc::new(report));
                    changes.reports.push(key);
                }
            }
        }
        changes
    }

    fn still_speaks(&mut self, id: StreamId, grace_ms: u64, now: u64) -> Option<(Origin, Origin)> {
        let replaced = self.replaced.get_mut(&id)?;
        let current = &self.streams.get(&replaced.origin.node_id)?.origin;
        if replaced.told || now.saturating_sub(replaced.at) < grace_ms {
            return None;
        }
        replaced.told = true;
        Some((replaced.origin.clone(), current.clone()))
    }

    /// A stream ended: all that it said is gone.
    pub fn close(&mut self, id: StreamId) -> Changes {
        self.replaced.remove(&id);
        let node = self
            .streams
            .iter()
            .find(|(_, s)| s.id == id)
            .map(|(node, _)| *node);
        match node.and_then(|node| self.streams.remove(&node)) {
            Some(stream) => Changes {
                counts: stream.counts.into_keys().collect(),
                nodes: true,
                ..Changes::default()
            },
            None => Changes::default(),
        }
    }

    /// Requests of all other nodes in flight on the endpoint.
    pub fn total(&self, key: &Key) -> u32 {
        self.flights(key)
            .fold(0, |sum, f| sum.saturating_add(f.requests))
    }

    /// Prompt tokens of those requests whose answer has not begun.
    pub fn tokens(&self, key: &Key) -> u64 {
        self.streams
            .values()
            .filter_map(|stream| stream.counts.get(key))
            .fold(0, |sum, count| sum.saturating_add(count.tokens))
    }

    /// The requests by node.
    pub fn flights<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = Flight> + 'a {
        self.streams.iter().filter_map(|(node, stream)| {
            let count = stream.counts.get(key)?;
            Some(Flight {
                node_id: *node,
                requests: count.requests,
                progress_at: count.progress_at,
            })
        })
    }

    /// The report that counts: the owner's, else the newest of anybody's.
    pub fn report(&self, key: &Key, owner: u64) -> Option<Arc<Report>> {
        let of_owner = self.streams.get(&owner).and_then(|s| s.reports.get(key));
        let newest = || {
            self.streams
                .values()
                .filter_map(|s| s.reports.get(key))
                .max_by_key(|r| r.read_at)
        };
        of_owner.or_else(newest).cloned()
    }

    /// The nodes with a live stream.
    pub fn live(&self) -> LiveNodes {
        self.streams
            .iter()
            .map(|(node, s)| (*node, Arc::clone(&s.origin.region)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
