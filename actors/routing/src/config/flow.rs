//! Flow control as plain values: what the queueing engine is built from, with every reference resolved and every default filled in.

use std::time::Duration;

/// The whole of flow control.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowControlConfig {
    /// Requests that may be queued in all bands; `None`: no limit.
    pub max_requests: Option<u64>,
    /// Bytes that may be queued in all bands; `None`: no limit.
    pub max_bytes: Option<u64>,
    /// Longest time in the queue; `None`: no limit.
    pub default_request_ttl: Option<Duration>,
    /// Longest time in the queue while the pool has no endpoint; `None`: no limit.
    pub no_endpoint_request_ttl: Option<Duration>,
    /// For priorities of 0 and more without a band of their own. Its `priority` means nothing.
    pub default_band: BandConfig,
    /// For priorities below 0 without a band of their own. Its `priority` means nothing.
    pub default_negative_band: BandConfig,
    /// By priority, highest first.
    pub bands: Vec<BandConfig>,
    /// How full the pool may be for each band.
    pub usage_limit: UsageLimitPolicy,
    /// How full the pool is.
    pub saturation: SaturationDetector,
    /// Sheddable requests that run already may be revoked for higher bands.
    pub eviction: bool,
}

/// Default of `maxRequests` in a band.
pub const BAND_MAX_REQUESTS: u64 = 5_000;
/// Default of `maxBytes` in a band.
pub const BAND_MAX_BYTES: u64 = 1_000_000_000;
/// Default of `defaultRequestTTL`.
pub const REQUEST_TTL: Duration = Duration::from_secs(60);

/// One priority band.
#[derive(Clone, Debug, PartialEq)]
pub struct BandConfig {
    /// Requests of this priority.
    pub priority: i32,
    /// Requests that may be queued.
    pub max_requests: u64,
    /// Bytes that may be queued.
    pub max_bytes: u64,
    /// Which flow is next.
    pub fairness: FairnessPolicy,
    /// Which of a flow's requests is next.
    pub ordering: OrderingPolicy,
    /// Refuses at once what cannot be dispatched at once, instead of queueing it.
    pub shed: bool,
}

impl Default for BandConfig {
    fn default() -> Self {
        Self {
            priority: 0,
            max_requests: BAND_MAX_REQUESTS,
            max_bytes: BAND_MAX_BYTES,
            fairness: FairnessPolicy::GlobalStrict,
            ordering: OrderingPolicy::Fcfs,
            shed: false,
        }
    }
}

impl Default for FlowControlConfig {
    fn default() -> Self {
        Self {
            max_requests: None,
            max_bytes: None,
            default_request_ttl: Some(REQUEST_TTL),
            no_endpoint_request_ttl: Some(REQUEST_TTL),
            default_band: BandConfig::default(),
            default_negative_band: BandConfig {
                priority: -1,
                ..BandConfig::default()
            },
            bands: Vec::new(),
            usage_limit: UsageLimitPolicy::Static { threshold: 1.0 },
            saturation: SaturationDetector::default(),
            eviction: false,
        }
    }
}

/// Which flow of a band is next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FairnessPolicy {
    /// The best head over all flows by the band's ordering.
    GlobalStrict,
    /// One after the other.
    RoundRobin,
    /// Least attained service, with a part for waiting.
    ProgramAware(ProgramAware),
}

/// Parameters of `program-aware-fairness`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProgramAware {
    /// Weight of the attained service.
    pub weight_service: f64,
    /// Weight of the head's waiting time.
    pub weight_head_wait: f64,
    /// Half-life of attained service.
    pub half_life: Duration,
    /// A program is forgotten after this long without a request.
    pub eviction_ttl: Duration,
    /// How often that is looked at.
    pub eviction_sweep: Duration,
}

impl Default for ProgramAware {
    fn default() -> Self {
        Self {
            weight_service: 0.8,
            weight_head_wait: 0.2,
            half_life: Duration::from_secs(60),
            eviction_ttl: Duration::from_secs(3600),
            eviction_sweep: Duration::from_secs(300),
        }
    }
}

/// Which of a flow's requests is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderingPolicy {
    /// First come, first served.
    Fcfs,
    /// Earliest deadline (arrival + TTL) first.
    Edf,
    /// Earliest receive time + TTFT SLO first; without one last.
    SloDeadline,
}

/// The highest saturation at which a band may still dispatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UsageLimitPolicy {
    /// The same for all.
    Static {
        /// The ceiling.
        threshold: f64,
    },
    /// Lower bands get less.
    PriorityHoldback {
        /// Of the lowest band.
        min_ceiling: f64,
        /// Of the highest band.
        max_ceiling: f64,
        /// What the steps follow.
        domain: HoldbackDomain,
    },
    /// Lower bands give way as saturation rises.
    SoftReflective,
}

/// What the steps of [`UsageLimitPolicy::PriorityHoldback`] follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldbackDomain {
    /// The bands' order.
    Rank,
    /// The priorities' values.
    Value,
}

/// How full the pool is; 1 is full.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SaturationDetector {
    /// By the engines' own figures.
    Utilization {
        /// A queue of this length is full.
        queue_depth_threshold: f64,
        /// A KV cache used by this share is full.
        kv_cache_util_threshold: f64,
        /// Older figures count as unknown (which is not full).
        metrics_staleness_threshold: Duration,
        /// As a filter: how far above the thresholds an endpoint may be, as a share of them.
        headroom: f64,
    },
    /// By what the routers have sent.
    Concurrency {
        /// Requests that an endpoint takes.
        max_concurrency: u64,
        /// Tokens that an endpoint takes.
        max_token_concurrency: u64,
        /// What counts.
        mode: ConcurrencyMode,
        /// As a filter: how far above the limit an endpoint may be, as a share of it.
        headroom: f64,
    },
}

impl Default for SaturationDetector {
    fn default() -> Self {
        Self::Utilization {
            queue_depth_threshold: 5.0,
            kv_cache_util_threshold: 0.8,
            metrics_staleness_threshold: Duration::from_millis(200),
            headroom: 0.0,
        }
    }
}

/// What [`SaturationDetector::Concurrency`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConcurrencyMode {
    /// Requests in flight.
    Requests,
    /// Tokens in flight.
    Tokens,
    /// The worse of both, endpoint by endpoint.
    Hybrid,
}
