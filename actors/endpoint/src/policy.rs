//! Health and breaker policies with their defaults filled in. Where the pool says nothing, or a number that cannot be meant,
//! the defaults of `resource.proto` hold.

use quorate_proto::v1;
use quorate_routing::BreakerPolicy;
use std::time::Duration;

/// No timer is set finer than this, whatever a pool says.
const SHORTEST: Duration = Duration::from_millis(10);

/// How the owner decides whether an endpoint is alive.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthPolicy {
    /// Path of the health probe; `None`: the engine's usual one.
    pub path: Option<String>,
    /// Time between probes of a healthy endpoint.
    pub interval: Duration,
    /// Time between probes of an unhealthy or suspected one.
    pub unhealthy_interval: Duration,
    /// Longest time that a probe or a read of the metrics page may take.
    pub timeout: Duration,
    /// Failed probes in a row that make it unhealthy.
    pub unhealthy_threshold: u32,
    /// Good probes in a row that make it healthy again.
    pub healthy_threshold: u32,
    /// Ramp after recovery; zero: none.
    pub slow_start: Duration,
    /// Requests in flight and no byte for this long: stalled.
    pub stall_timeout: Duration,
    /// Time between reads of the metrics page.
    pub metrics_interval: Duration,
}

impl HealthPolicy {
    /// The pool's policy over the defaults.
    pub fn from_proto(policy: Option<&v1::HealthPolicy>) -> Self {
        let unset = v1::HealthPolicy::default();
        let p = policy.unwrap_or(&unset);
        let count = |n: u32, default: u32| if n == 0 { default } else { n };
        Self {
            path: Some(p.path.clone()).filter(|path| path.starts_with('/')),
            interval: timer(p.interval.as_ref(), 2_000),
            unhealthy_interval: timer(p.unhealthy_interval.as_ref(), 250),
            timeout: timer(p.timeout.as_ref(), 1_000),
            unhealthy_threshold: count(p.unhealthy_threshold, 2),
            healthy_threshold: count(p.healthy_threshold, 1),
            slow_start: duration(p.slow_start.as_ref()).unwrap_or(Duration::from_secs(1)),
            stall_timeout: timer(p.stall_timeout.as_ref(), 60_000),
            metrics_interval: timer(p.metrics_interval.as_ref(), 500),
        }
    }
}

/// The pool's breaker policy over the defaults.
pub fn breaker(policy: Option<&v1::BreakerPolicy>) -> BreakerPolicy {
    let default = BreakerPolicy::default();
    let Some(p) = policy else { return default };
    BreakerPolicy {
        consecutive_failures: match p.consecutive_failures {
            0 => default.consecutive_failures,
            n => n,
        },
        open: positive(p.open.as_ref()).unwrap_or(default.open),
        max_open: positive(p.max_open.as_ref()).unwrap_or(default.max_open),
    }
}

/// A duration of the API, if it is set and not negative.
pub fn duration(d: Option<&prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(*d?).ok()
}

fn positive(d: Option<&prost_types::Duration>) -> Option<Duration> {
    duration(d).filter(|d| !d.is_zero())
}

fn timer(d: Option<&prost_types::Duration>, default_ms: u64) -> Duration {
    positive(d)
        .unwrap_or(Duration::from_millis(default_ms))
        .max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: ms * 1_000_000,
        })
    }

    #[test]
    fn unset_fields_take_the_documented_defaults() {
        let p = HealthPolicy::from_proto(None);
        assert_eq!(p, HealthPolicy::from_proto(Some(&Default::default())));
        assert_eq!(p.path, None);
        assert_eq!(p.interval, Duration::from_secs(2));
        assert_eq!(p.unhealthy_interval, Duration::from_millis(250));
        assert_eq!(p.timeout, Duration::from_secs(1));
        assert_eq!((p.unhealthy_threshold, p.healthy_threshold), (2, 1));
        assert_eq!(p.slow_start, Duration::from_secs(1));
        assert_eq!(p.stall_timeout, Duration::from_secs(60));
        assert_eq!(p.metrics_interval, Duration::from_millis(500));
        assert_eq!(breaker(None), BreakerPolicy::default());
    }

    #[test]
    fn zero_turns_only_the_slow_start_off_and_nonsense_is_ignored() {
        let p = HealthPolicy::from_proto(Some(&v1::HealthPolicy {
            path: "ready".into(),
            interval: ms(0),
            unhealthy_interval: ms(1),
            timeout: ms(-5),
            slow_start: ms(0),
            unhealthy_threshold: 7,
            ..Default::default()
        }));
        assert_eq!(p.path, None);
        assert_eq!(p.interval, Duration::from_secs(2));
        assert_eq!(p.unhealthy_interval, SHORTEST);
        assert_eq!(p.timeout, Duration::from_secs(1));
        assert_eq!(p.slow_start, Duration::ZERO);
        assert_eq!(p.unhealthy_threshold, 7);
        let b = breaker(Some(&v1::BreakerPolicy {
            consecutive_failures: 1,
            open: ms(100),
            max_open: None,
        }));
        assert_eq!(
            (b.consecutive_failures, b.open),
            (1, Duration::from_millis(100))
        );
        assert_eq!(b.max_open, Duration::from_secs(10));
    }
}
