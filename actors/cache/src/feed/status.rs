//! How the holders that this node owns are fed, for people and metrics.

use super::condition::Condition;
use super::holder::{Holder, HolderTotals};
use super::mirror::Counts;
use crate::Tier;
use crate::index::{HolderKey, TIERS};
use crate::keys::KeySpace;
use crate::link::{Counters, SourceStatus, State};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

/// How one holder is fed.
#[derive(Clone, Debug)]
pub struct FeederStatus {
    /// The endpoint's name.
    pub endpoint: Arc<str>,
    /// In a word: `live`, `gap`, `replaying`, `waiting`, `down`, `no-source`.
    pub link: &'static str,
    /// Whether the engine's hashes are computed, or its blocks learnt from their tokens; `None`: not known before its first events.
    pub exact: Option<bool>,
    /// How its keys are made.
    pub space: Option<KeySpace>,
    /// The engine's hashes were not what its settings make them.
    pub hash_mismatch: bool,
    /// Number of the engine's last batch.
    pub last: Option<u64>,
    /// When its engine was last heard.
    pub heard: Option<Instant>,
    /// Totals of the link.
    pub counters: Counters,
    /// Messages of the engine that were no numbered batch.
    pub malformed: u64,
    /// What became of the holder since this node took it over.
    pub totals: HolderTotals,
    /// Whether the group had what it was told when that was last compared; `None`: not compared yet.
    pub agrees: Option<bool>,
    /// What became of events.
    pub events: Counts,
    /// Blocks by tier.
    pub blocks: [u64; TIERS],
    /// Bytes that the group has still to be told, about.
    pub waiting: usize,
    /// The last trouble.
    pub problem: Option<String>,
    /// What is wrong, by name.
    pub conditions: Vec<Condition>,
}

impl FeederStatus {
    pub(super) fn of(
        endpoint: &Arc<str>,
        holder: &Holder,
        source: Option<&SourceStatus>,
        problem: Option<String>,
        conditions: Vec<Condition>,
    ) -> Self {
        let mirror = holder.mirror();
        Self {
            endpoint: Arc::clone(endpoint),
            link: source.map_or("no-source", |source| State::as_str(source.state)),
            exact: mirror.space().map(|space| space.hasher().is_some()),
            space: mirror.space().cloned(),
            hash_mismatch: mirror.mismatch(),
            last: source.and_then(|source| source.last),
            heard: source.and_then(|source| source.heard),
            counters: source.map(|s| s.counters).unwrap_or_default(),
            malformed: source.map_or(0, |source| source.unreadable),
            totals: holder.totals(),
            agrees: holder.agrees(),
            events: *mirror.counts(),
            blocks: *mirror.set().pairs(),
            waiting: holder.waiting(),
            problem,
            conditions,
        }
    }

    pub(super) fn without_blocks(
        endpoint: &Arc<str>,
        source: Option<&SourceStatus>,
        problem: Option<String>,
        conditions: Vec<Condition>,
    ) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            link: source.map_or("no-source", |source| State::as_str(source.state)),
            exact: None,
            space: None,
            hash_mismatch: false,
            last: None,
            heard: None,
            counters: Counters::default(),
            malformed: 0,
            totals: HolderTotals::default(),
            agrees: None,
            events: Counts::default(),
            blocks: [0; TIERS],
            waiting: 0,
            problem,
            conditions,
        }
    }
}

impl FeederStatus {
    fn publish(&self, rank: u32) {
        let labels = |name: &'static str, value: &'static str| {
            [
                ("endpoint", self.endpoint.to_string()),
                ("rank", rank.to_string()),
                (name, value.to_owned()),
            ]
        };
        let c = &self.events;
        for (kind, blocks) in [
            ("stored", c.stored),
            ("removed", c.removed),
            ("cleared", c.cleared),
            ("unknown", c.unknown),
            ("other-group", c.other_group),
            ("unusable", c.unusable),
            ("too-many", c.too_many),
            ("skipped", c.skipped),
        ] {
            counter!("quorate_cache_events_total", &labels("kind", kind)).absolute(blocks);
        }
        let l = &self.counters;
        for (what, times) in [
            ("gaps", l.gaps),
            ("replays", l.replays),
            ("replay-failures", l.replay_failures),
            ("duplicates", l.duplicates),
        ] {
            counter!("quorate_cache_link_total", &labels("what", what)).absolute(times);
        }
        for tier in Tier::ALL {
            gauge!("quorate_cache_owned_blocks", &labels("tier", tier.as_str()))
                .set(self.blocks[tier as usize] as f64);
        }
    }
}

/// By holder.
#[derive(Clone, Default)]
pub(super) struct Statuses(Arc<Mutex<BTreeMap<HolderKey, FeederStatus>>>);

impl Statuses {
    pub(super) fn all(&self) -> BTreeMap<HolderKey, FeederStatus> {
        self.0.lock().clone()
    }

    pub(super) fn conditions(&self, endpoint: &str) -> Vec<Condition> {
        let statuses = self.0.lock();
        let here = statuses
            .values()
            .filter(|s| s.endpoint.as_ref() == endpoint);
        let mut conditions: Vec<Condition> = here.flat_map(|s| s.conditions.clone()).collect();
        // Of the ranks of an engine each has what is the engine's.
        conditions.sort_by(|a, b| (a.name, &a.message).cmp(&(b.name, &b.message)));
        conditions.dedup();
        conditions
    }

    pub(super) fn set(&self, key: HolderKey, status: FeederStatus) {
        status.publish(key.rank);
        self.0.lock().insert(key, status);
    }

    /// Forgets all of an endpoint but these.
    pub(super) fn keep(&self, endpoint: u64, holders: &[HolderKey]) {
        let mut statuses = self.0.lock();
        statuses.retain(|key, _| key.endpoint != endpoint || holders.contains(key));
    }
}
