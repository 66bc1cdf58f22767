//! What one thread has counted; threads are added up at the end.

use super::failure::{Class, Failure};
use crate::{
    quantiles::Durations,
    report::{UrlReport, Usage},
};
use std::{collections::BTreeMap, time::Instant};

/// Counters of one thread.
pub(crate) struct Stats {
    pub(crate) urls: Vec<UrlStats>,
    /// Good answers that ended within the window, whenever they began: the numerator of rates.
    pub(crate) completed_in_window: u64,
    /// Token events that came within the window: likewise.
    pub(crate) tokens_in_window: u64,
    /// Body bytes received for measured requests.
    pub(crate) bytes_in: u64,
    pub(crate) connections_opened: u64,
    /// Open loop: starts that had to wait because `--max-in-flight` were in flight.
    pub(crate) delayed: u64,
    /// Open loop: how late this program itself was, from the intended start to the moment it turned to the request.
    pub(crate) generator_lag: Durations,
    pub(crate) in_flight: u64,
    pub(crate) max_in_flight: u64,
    pub(crate) usage: Usage,
    /// The earliest failure.
    pub(crate) first_error: Option<(Instant, String)>,
    /// When the last measured request ended.
    pub(crate) last_end: Option<Instant>,
}

/// Measured requests to one URL.
pub(crate) struct UrlStats {
    pub(crate) ok: u64,
    pub(crate) disconnected: u64,
    pub(crate) tokens: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) failures: BTreeMap<Class, u64>,
    /// From the intended start.
    pub(crate) latency: Durations,
    /// From the moment it was sent.
    pub(crate) service: Durations,
    /// From the intended start.
    pub(crate) ttft: Durations,
    pub(crate) itl: Durations,
}

impl Stats {
    pub(crate) fn new(urls: usize) -> anyhow::Result<Self> {
        Ok(Stats {
            urls: (0..urls)
                .map(|_| UrlStats::new())
                .collect::<anyhow::Result<_>>()?,
            completed_in_window: 0,
            tokens_in_window: 0,
            bytes_in: 0,
            connections_opened: 0,
            delayed: 0,
            generator_lag: Durations::new()?,
            in_flight: 0,
            max_in_flight: 0,
            usage: Usage::default(),
            first_error: None,
            last_end: None,
        })
    }

    pub(crate) fn enter(&mut self) {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
    }

    /// Counts a measured request that failed.
    pub(crate) fn fail(&mut self, url: usize, failure: &Failure, now: Instant) {
        *self.urls[url].failures.entry(failure.class).or_default() += 1;
        if self.first_error.is_none() {
            self.first_error = Some((now, format!("{}: {}", failure.class, failure.text)));
        }
        self.last_end = Some(now);
    }

    pub(crate) fn add(&mut self, other: &Stats) -> anyhow::Result<()> {
        for (a, b) in self.urls.iter_mut().zip(&other.urls) {
            a.add(b)?;
        }
        self.completed_in_window += other.completed_in_window;
        self.tokens_in_window += other.tokens_in_window;
        self.bytes_in += other.bytes_in;
        self.connections_opened += other.connections_opened;
        self.delayed += other.delayed;
        self.generator_lag.add(&other.generator_lag)?;
        // Threads do not peak at the same moment: an upper bound.
        self.max_in_flight += other.max_in_flight;
        self.usage.add(&other.usage);
        let earlier = |a: &(Instant, String), b: &(Instant, String)| {
            if b.0 < a.0 { b.clone() } else { a.clone() }
        };
        self.first_error = match (&self.first_error, &other.first_error) {
            (Some(a), Some(b)) => Some(earlier(a, b)),
            (a, b) => a.clone().or_else(|| b.clone()),
        };
        self.last_end = self.last_end.max(other.last_end);
        Ok(())
    }
}

impl UrlStats {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(UrlStats {
            ok: 0,
            disconnected: 0,
            tokens: 0,
            statuses: BTreeMap::new(),
            failures: BTreeMap::new(),
            latency: Durations::new()?,
            service: Durations::new()?,
            ttft: Durations::new()?,
            itl: Durations::new()?,
        })
    }

    pub(crate) fn add(&mut self, other: &UrlStats) -> anyhow::Result<()> {
        self.ok += other.ok;
        self.disconnected += other.disconnected;
        self.tokens += other.tokens;
        for (code, n) in &other.statuses {
            *self.statuses.entry(*code).or_default() += n;
        }
        for (class, n) in &other.failures {
            *self.failures.entry(*class).or_default() += n;
        }
        self.latency.add(&other.latency)?;
        self.service.add(&other.service)?;
        self.ttft.add(&other.ttft)?;
        self.itl.add(&other.itl)
    }

    pub(crate) fn report(&self, url: String) -> UrlReport {
        UrlReport {
            url,
            requests: self.ok,
            errors: self.failures.values().sum(),
            error_classes: self
                .failures
                .iter()
                .map(|(class, n)| (class.to_string(), *n))
                .collect(),
            statuses: self.statuses.clone(),
            disconnected: self.disconnected,
            tokens: self.tokens,
            latency_us: self.latency.quantiles(),
            service_us: self.service.quantiles(),
            ttft_us: self.ttft.quantiles(),
            itl_us: self.itl.quantiles(),
        }
    }
}
