//! Saturation detectors: how full a pool is, as a line through what is in flight, so that released work counts at once.

use crate::config::{ConcurrencyMode, SaturationDetector};
use crate::endpoint::Endpoint;
use std::time::Duration;

/// Metrics pages are read about twice a second; a shorter staleness threshold would make every figure unknown half of the time.
const SHORTEST_STALENESS: Duration = Duration::from_secs(2);
/// An engine that shows no queue takes this share of its running batch more before its page is read again.
const UNSEEN_SHARE: f64 = 0.25;

/// What is in flight: between dispatch and the end of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
}

impl std::ops::Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
        }
    }
}

impl Load {
    /// No bound.
    pub const UNLIMITED: Self = Self {
        requests: u64::MAX,
        tokens: u64::MAX,
    };

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            requests: self.requests.max(other.requests),
            tokens: self.tokens.max(other.tokens),
        }
    }

    /// The smaller of each.
    pub fn min(self, other: Self) -> Self {
        Self {
            requests: self.requests.min(other.requests),
            tokens: self.tokens.min(other.tokens),
        }
    }

    /// What is left of this limit when so much is used; what is unlimited stays so.
    pub fn left_after(self, used: Self) -> Self {
        let left = |limit: u64, used| match limit {
            u64::MAX => u64::MAX,
            limit => limit.saturating_sub(used),
        };
        Self {
            requests: left(self.requests, used.requests),
            tokens: left(self.tokens, used.tokens),
        }
    }

    /// One more may go out under this limit.
    pub fn below(self, limit: Self) -> bool {
        self.requests < limit.requests && self.tokens < limit.tokens
    }
}

/// Saturation as a line: (in flight - base) / span.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    base: f64,
    span: f64,
}

impl Axis {
    const UNLIMITED: Self = Self {
        base: 0.0,
        span: f64::INFINITY,
    };

    fn saturation(&self, used: u64) -> f64 {
        if self.span.is_infinite() {
            0.0
        } else if self.span <= 0.0 {
            1.0
        } else {
            ((used as f64 - self.base) / self.span).max(0.0)
        }
    }

    /// The count at which saturation reaches the ceiling.
    fn limit(&self, ceiling: f64) -> u64 {
        if ceiling <= 0.0 || self.span <= 0.0 || ceiling.is_nan() {
            0
        } else if self.span.is_infinite() {
            u64::MAX
        } else {
            // The subtrahend keeps 0.7 * 10 from becoming 8; the conversion saturates.
            (self.base + ceiling * self.span - 1e-9).ceil().max(0.0) as u64
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Stage {
    requests: Axis,
    tokens: Axis,
}

/// What a pool takes, as of the last look at its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Those that do prefill and those that decode; the same if no endpoint says what it does.
    prefill: Option<Stage>,
    decode: Option<Stage>,
    /// Usable endpoints.
    pub endpoints: usize,
    /// Those of them with figures too old to count.
    pub stale: usize,
}

impl Default for Budget {
    /// A pool without endpoints.
    fn default() -> Self {
        Self {
            prefill: None,
            decode: None,
            endpoints: 0,
            stale: 0,
        }
    }
}

impl Budget {
    /// How full the pool is with this in flight; 1 is full, and so is a pool without endpoints.
    pub fn saturation(&self, load: Load) -> f64 {
        let (prefill, decode) = self.by_stage(load);
        match (prefill, decode) {
            (None, None) => 1.0,
            (p, d) => p.unwrap_or(0.0).max(d.unwrap_or(0.0)),
        }
    }

    /// The same by stage; `None`: no endpoint does that alone or at all.
    pub fn by_stage(&self, load: Load) -> (Option<f64>, Option<f64>) {
        let of = |stage: &Stage| {
            stage
                .requests
                .saturation(load.requests)
                .max(stage.tokens.saturation(load.tokens))
        };
        (self.prefill.as_ref().map(of), self.decode.as_ref().map(of))
    }

    /// The load at which saturation reaches the ceiling.
    pub fn limit(&self, ceiling: f64) -> Load {
        let stages = [&self.prefill, &self.decode];
        if stages.iter().all(|s| s.is_none()) {
            return Load::default();
        }
        stages
            .into_iter()
            .flatten()
            .fold(Load::UNLIMITED, |least, stage| {
                least.min(Load {
                    requests: stage.requests.limit(ceiling),
                    tokens: stage.tokens.limit(ceiling),
                })
            })
    }
}

/// What an endpoint does, by its `llm-d.ai/role` label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Prefill alone.
    Prefill,
    /// Decode alone.
    Decode,
    /// Everything, or it does not say.
    #[default]
    Both,
    /// Neither (an encoder).
    Neither,
}

impl Role {
    /// Reads the label.
    pub fn of(label: Option<&str>) -> Self {
        match label {
            Some("prefill" | "encode-prefill") => Self::Prefill,
            Some("decode") => Self::Decode,
            Some("encode") => Self::Neither,
            _ => Self::Both,
        }
    }
}

/// What the detectors look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EndpointLoad {
    /// What it does.
    pub role: Role,
    /// The part of its concurrency that may be used, from 0 to 1.
    pub part: f64,
    /// Requests of all routers in flight on it.
    pub in_flight: u64,
    /// The engine's queue, if known and fresh.
    pub waiting: Option<u32>,
    /// The engine's batch, if known and fresh.
    pub running: Option<u32>,
    /// Share of its KV cache in use, if known and fresh.
    pub kv_cache_usage: Option<f64>,
}

impl Default for EndpointLoad {
    /// An endpoint that may be used whole, of which nothing is known.
    fn default() -> Self {
        Self {
            role: Role::default(),
            part: 1.0,
            in_flight: 0,
            waiting: None,
            running: None,
            kv_cache_usage: None,
        }
    }
}

impl EndpointLoad {
    /// Reads a usable endpoint; `None`: it takes no requests at `now` (ms).
    pub fn read(endpoint: &Endpoint, detector: &SaturationDetector, now: u64) -> Option<Self> {
        endpoint.tier(now)?;
        let fresh = match detector {
            SaturationDetector::Utilization {
                metrics_staleness_threshold,
                ..
            } => (*metrics_staleness_threshold).max(SHORTEST_STALENESS),
            SaturationDetector::Concurrency { .. } => SHORTEST_STALENESS,
        };
        let figures = endpoint
            .load(now)
            .filter(|(_, age)| u128::from(*age) <= fresh.as_millis())
            .map(|(figures, _)| figures)
            .unwrap_or_default();
        Some(Self {
            role: Role::of(
                endpoint
                    .spec()
                    .labels
                    .get("llm-d.ai/role")
                    .map(String::as_str),
            ),
            part: 1.0,
            in_flight: u64::from(endpoint.total_in_flight()),
            waiting: figures.waiting,
            running: figures.running,
            kv_cache_usage: figures.kv_cache_usage.map(f64::from),
        })
    }
}

/// The budget of a pool with these usable endpoints and this load in flight. Whatever is not known makes nothing full.
pub fn budget(detector: &SaturationDetector, endpoints: &[EndpointLoad], load: Load) -> Budget {
    let divided = endpoints
        .iter()
        .any(|e| matches!(e.role, Role::Prefill | Role::Decode));
    let stage = |alone: Role| {
        let mut members = endpoints
            .iter()
            .filter(move |e| e.role == alone || e.role == Role::Both)
            .peekable();
        members.peek().is_some().then(|| match *detector {
            SaturationDetector::Concurrency {
                max_concurrency,
                max_token_concurrency,
                mode,
                ..
            } => {
                let n: f64 = members.map(|e| e.part).sum();
                let axis = |each: u64| Axis {
                    base: 0.0,
                    span: whole(n, each),
                };
                let (requests, tokens) = (axis(max_concurrency), axis(max_token_concurrency));
                match mode {
                    ConcurrencyMode::Requests => Stage {
                        requests,
                        tokens: Axis::UNLIMITED,
                    },
                    ConcurrencyMode::Tokens => Stage {
                        requests: Axis::UNLIMITED,
                        tokens,
                    },
                    ConcurrencyMode::Hybrid => Stage { requests, tokens },
                }
            }
            SaturationDetector::Utilization {
                queue_depth_threshold,
                kv_cache_util_threshold,
                ..
            } => Stage {
                requests: utilization(
                    queue_depth_threshold,
                    kv_cache_util_threshold,
                    members,
                    load.requests,
                ),
                tokens: Axis::UNLIMITED,
            },
        })
    };
    let known = |e: &&EndpointLoad| e.waiting.is_some() || e.kv_cache_usage.is_some();
    let decode = stage(Role::Decode);
    Budget {
        prefill: if divided {
            stage(Role::Prefill)
        } else {
            decode
        },
        decode,
        endpoints: endpoints.len(),
        stale: endpoints.len() - endpoints.iter().filter(known).count(),
    }
}

/// `n` endpoints that take `each`. Of a part of an endpoint only whole places count, so that the parts do not sum up to more
/// than it has; but at least one.
fn whole(n: f64, each: u64) -> f64 {
    let places = n * each as f64;
    match n > 0.0 && each > 0 {
        true => (places + 1e-6).floor().max(1.0),
        false => places,
    }
}

/// Mean over the known endpoints of max(queue / threshold, KV usage / threshold), where requests that went to an endpoint after
/// its page was read count as queued there, and everything released from now on moves the mean on.
fn utilization<'a>(
    queue_threshold: f64,
    kv_threshold: f64,
    endpoints: impl Iterator<Item = &'a EndpointLoad>,
    in_flight: u64,
) -> Axis {
    let ratio = |value: f64, threshold: f64| match threshold > 0.0 {
        true => value / threshold,
        false => f64::from(u8::from(value > 0.0)),
    };
    let (mut sum, mut known, mut span, mut seen) = (0.0, 0u32, 0.0, 0);
    for e in endpoints {
        seen += e.in_flight;
        let waiting = f64::from(e.waiting.unwrap_or(0));
        let running = f64::from(e.running.unwrap_or(0));
        let unseen = match (e.running, e.waiting) {
            (Some(_), Some(_)) => (e.in_flight as f64 - running - waiting).max(0.0),
            _ => 0.0,
        };
        // No queue so far: a large batch shows that the engine takes more than the threshold says.
        let threshold = match e.waiting {
            Some(0) => queue_threshold.max(running * UNSEEN_SHARE),
            _ => queue_threshold,
        };
        span += threshold;
        if e.waiting.is_some() || e.kv_cache_usage.is_some() {
            known += 1;
            sum += ratio(waiting + unseen, threshold)
                .max(ratio(e.kv_cache_usage.unwrap_or(0.0), kv_threshold));
        }
    }
    if known == 0 || span <= 0.0 {
        return Axis::UNLIMITED;
    }
    // Released, but not on its endpoint yet.
    let on_the_way = in_flight.saturating_sub(seen) as f64;
    let saturation = sum / f64::from(known) + on_the_way / span;
    Axis {
        base: in_flight as f64 - saturation * span,
        span,
    }
}

#[cfg(test)]
mod tests;
