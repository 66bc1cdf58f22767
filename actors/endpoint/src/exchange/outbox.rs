//! What this node tells the others: its own counts, and reports of the endpoints that it owns. Pure.
//!
//! Each entry carries the version of its last change; a stream asks for what changed since the version that it sent last, so
//! that any number of streams share one state, and a slow stream gets only the latest values.

use crate::exchange::{Key, Report};
use quorate_proto::peer::v1::{InFlight, LoadUpdate};
use std::collections::{HashMap, HashSet};

/// Entries that are gone are kept so long (ms), for streams that have not told their end yet.
const KEEP_GONE_MS: u64 = 60_000;
/// Figures that did not change are sent again after this (ms) while the engine works, so that they do not age at the peers.
const REFRESH_BUSY_MS: u64 = 2_000;
/// And after this while it idles.
const REFRESH_IDLE_MS: u64 = 10_000;
/// Entries in one message: keeps messages far below the transport's limit.
const CHUNK: usize = 1_000;

#[derive(Debug, Default)]
struct Slot {
    requests: u32,
    tokens: u64,
    progress_at: u64,
    count_version: u64,
    suspect_version: u64,
    report: Option<Report>,
    report_version: u64,
    /// Of the report's models: lists are long and seldom change, so that they are not sent with every figure.
    models_version: u64,
    /// Not declared any more, since then.
    gone_at: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Outbox {
    version: u64,
    slots: HashMap<Key, Slot>,
}

impl Outbox {
    /// Version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// This node has `requests` in flight on the endpoint, and saw the last byte at `progress_at`. Progress alone is told when
    /// what the peers know of it is `progress_ms` old.
    pub fn count(&mut self, key: &Key, requests: u32, progress_at: u64, progress_ms: u64) {
        let Some(slot) = self.slots.get_mut(key) else {
            if requests > 0 {
                let slot = self.slots.entry(key.clone()).or_default();
                self.version += 1;
                slot.count_version = self.version;
                (slot.requests, slot.progress_at) = (requests, progress_at);
            }
            return;
        };
        let moved = requests > 0 && progress_at > slot.progress_at.saturating_add(progress_ms);
        if slot.requests != requests || moved {
            self.version += 1;
            slot.count_version = self.version;
            (slot.requests, slot.progress_at) = (requests, progress_at);
        }
    }

    /// Of the requests that were counted last, this many prompt tokens are still to be computed.
    pub fn tokens(&mut self, key: &Key, tokens: u64) {
        if let Some(slot) = self.slots.get_mut(key)
            && slot.tokens != tokens
        {
            self.version += 1;
            slot.count_version = self.version;
            slot.tokens = tokens;
        }
    }

    /// This node's breaker opened for the endpoint.
    pub fn suspect(&mut self, key: &Key) {
        self.version += 1;
        self.slots.entry(key.clone()).or_default().suspect_version = self.version;
    }

    /// A report of an endpoint that this node owns. True if there is something to tell.
    pub fn report(&mut self, key: &Key, report: Report) -> bool {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot
            .report
            .as_ref()
            .is_some_and(|old| !worth_telling(old, &report))
        {
            return false;
        }
        self.version += 1;
        slot.report_version = self.version;
        if slot
            .report
            .as_ref()
            .is_none_or(|old| old.models != report.models)
        {
            slot.models_version = self.version;
        }
        slot.report = Some(report);
        slot.gone_at = None;
        true
    }

    /// Withdraws reports of endpoints that this node owns no longer, and forgets what is no longer declared.
    pub fn retain(&mut self, declared: &HashSet<Key>, owned: &HashSet<Key>, now: u64) {
        for (key, slot) in &mut self.slots {
            if slot.report.is_some() && !owned.contains(key) {
                slot.report = None;
                self.version += 1;
                slot.report_version = self.version;
            }
            if declared.contains(key) {
                slot.gone_at = None;
            } else if slot.gone_at.is_none() {
                slot.gone_at = Some(now);
                if slot.requests > 0 {
                    slot.requests = 0;
                    self.version += 1;
                    slot.count_version = self.version;
                }
            }
        }
        self.slots.retain(|_, slot| {
            slot.gone_at
                .is_none_or(|at| at.saturating_add(KEEP_GONE_MS) > now)
        });
    }

    /// Everything a new stream has to say, in one or more messages.
    pub fn full(&self, now: u64) -> Vec<LoadUpdate> {
        self.messages(now, |slot| (slot.requests > 0, slot.report.is_some()))
    }

    /// What changed since `version`; nothing: no messages.
    pub fn since(&self, version: u64, now: u64) -> Vec<LoadUpdate> {
        if version == self.version {
            return Vec::new();
        }
        self.messages(now, |slot| {
            let count = slot.count_version > version || slot.suspect_version > version;
            (count, slot.report_version > version)
        })
        .into_iter()
        .map(|mut message| {
            let newer = |name: &str, incarnation, of: fn(&Slot) -> u64| {
                let slot = self.slots.get(&Key::new(name, incarnation));
                slot.is_some_and(|s| of(s) > version)
            };
            for count in &mut message.in_flight {
                count.suspect = newer(&count.endpoint, count.incarnation, |s| s.suspect_version);
            }
            for report in &mut message.reports {
                if !newer(&report.endpoint, report.incarnation, |s| s.models_version) {
                    report.models.clear();
                }
            }
            message
        })
        .collect()
    }

    fn messages(&self, now: u64, wanted: impl Fn(&Slot) -> (bool, bool)) -> Vec<LoadUpdate> {
        let mut messages = Vec::new();
        let mut message = LoadUpdate::default();
        for (key, slot) in &self.slots {
            let (count, report) = wanted(slot);
            if count {
                message.in_flight.push(InFlight {
                    endpoint: key.name.to_string(),
                    incarnation: key.incarnation,
                    requests: slot.requests,
                    tokens: slot.tokens,
                    quiet_ms: u32::try_from(now.saturating_sub(slot.progress_at))
                        .unwrap_or(u32::MAX),
                    suspect: false,
                });
            }
            if report {
                message
                    .reports
                    .push(Report::to_proto(slot.report.as_ref(), key, now));
            }
            if message.in_flight.len() + message.reports.len() >= CHUNK {
                messages.push(std::mem::take(&mut message));
            }
        }
        if message != LoadUpdate::default() {
            messages.push(message);
        }
        messages
    }
}

fn worth_telling(old: &Report, new: &Report) -> bool {
    let same = Report {
        read_at: old.read_at,
        ..new.clone()
    } == *old;
    let busy = new.load.running.unwrap_or(0) + new.load.waiting.unwrap_or(0) > 0;
    let refresh = if busy {
        REFRESH_BUSY_MS
    } else {
        REFRESH_IDLE_MS
    };
    !same || new.read_at.saturating_sub(old.read_at) >= refresh
}

#[cfg(test)]
mod tests;
