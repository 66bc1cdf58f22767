//! `utilization-detector` and `concurrency-detector`, as filters (endpoints below (1 + headroom) x limit) and as what flow control and
//! admission ask how full the pool is.
//!
//! What is not known is not full: an endpoint without fresh figures passes the filter. The utilization filter keeps all where it would
//! keep none; the concurrency filter does not.

use super::keep;
use crate::config::registry::{Build, Built};
use crate::config::{ConcurrencyMode, Fields, SaturationDetector};
use crate::pipeline::{Context, Filter, Loads, Row, Tools};
use std::sync::Arc;
use std::time::Duration;

/// How full one endpoint is: 1 is full. `None`: not known.
pub fn endpoint_saturation(detector: &SaturationDetector, loads: &Loads, row: Row) -> Option<f64> {
    match detector {
        SaturationDetector::Utilization {
            queue_depth_threshold,
            kv_cache_util_threshold,
            metrics_staleness_threshold,
            ..
        } => {
            let age = Duration::from_millis(u64::from(loads.age_ms(row)?));
            // Figures come as often as the pool's probes; between two of them they are carried on by what was placed.
            let fresh = age <= *metrics_staleness_threshold + PROBE_GAP;
            fresh.then(|| {
                (loads.queue(row) / queue_depth_threshold)
                    .max(loads.kv_usage(row) / kv_cache_util_threshold)
            })
        }
        SaturationDetector::Concurrency {
            max_concurrency,
            max_token_concurrency,
            mode,
            ..
        } => {
            let requests = f64::from(loads.in_flight(row)) / *max_concurrency as f64;
            let tokens = loads.tokens(row) as f64 / *max_token_concurrency as f64;
            Some(match mode {
                ConcurrencyMode::Requests => requests,
                ConcurrencyMode::Tokens => tokens,
                ConcurrencyMode::Hybrid => requests.max(tokens),
            })
        }
    }
}

/// Added to the staleness threshold: figures are pushed to the routers by the endpoints' owners, not polled every 50 ms by each.
const PROBE_GAP: Duration = Duration::from_secs(5);

/// The mean over those that are known; 0 if none is.
pub fn pool_saturation(detector: &SaturationDetector, loads: &Loads, rows: &[Row]) -> f64 {
    let (sum, known) = rows
        .iter()
        .filter_map(|row| endpoint_saturation(detector, loads, *row))
        .fold((0.0, 0u32), |(sum, n), value| (sum + value, n + 1));
    if known == 0 {
        0.0
    } else {
        sum / f64::from(known)
    }
}

/// A detector as a filter.
#[derive(Debug)]
pub struct Unsaturated(pub SaturationDetector);

impl Filter for Unsaturated {
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, _: &mut Tools) {
        let (headroom, or_all) = match self.0 {
            SaturationDetector::Utilization { headroom, .. } => (headroom, true),
            SaturationDetector::Concurrency { headroom, .. } => (headroom, false),
        };
        keep(rows, or_all, |row| {
            endpoint_saturation(&self.0, context.loads, row).is_none_or(|s| s < 1.0 + headroom)
        });
    }
}

fn built(detector: SaturationDetector) -> Built {
    Built {
        filter: Some(Arc::new(Unsaturated(detector))),
        saturation: Some(detector),
        ..Built::default()
    }
}

pub(crate) fn build_utilization(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    built(SaturationDetector::Utilization {
        queue_depth_threshold: fields.whole("queueDepthThreshold", 5, 1..=u64::MAX) as f64,
        kv_cache_util_threshold: fields.number("kvCacheUtilThreshold", 0.8, 1e-6..=1.0),
        metrics_staleness_threshold: fields
            .duration("metricsStalenessThreshold")
            .unwrap_or(Duration::from_millis(200)),
        headroom: fields.number("headroom", 0.0, 0.0..=1e6),
    })
}

pub(crate) fn build_concurrency(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    fields.text("inFlightLoadProducerName");
    built(SaturationDetector::Concurrency {
        max_concurrency: fields.whole("maxConcurrency", 100, 1..=u64::MAX),
        max_token_concurrency: fields.whole("maxTokenConcurrency", 1_000_000, 1..=u64::MAX),
        mode: fields.one_of(
            "concurrencyMode",
            &[
                ("requests", ConcurrencyMode::Requests),
                ("tokens", ConcurrencyMode::Tokens),
                ("hybrid", ConcurrencyMode::Hybrid),
            ],
            ConcurrencyMode::Requests,
        ),
        headroom: fields.number("headroom", 0.0, 0.0..=1e6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::{Fixture, assert_near};

    fn utilization(headroom: f64) -> SaturationDetector {
        SaturationDetector::Utilization {
            queue_depth_threshold: 5.0,
            kv_cache_util_threshold: 0.8,
            metrics_staleness_threshold: Duration::from_millis(200),
            headroom,
        }
    }

    #[test]
    fn full_endpoints_go_unless_all_are_and_unknown_is_not_full() {
        let mut f = Fixture::new(4)
            .load(0, 0, 4, 0.1)
            .load(1, 0, 5, 0.1)
            .load(2, 0, 0, 0.9);
        assert_eq!(f.filter(&Unsaturated(utilization(0.0))), [0, 3]);
        assert_eq!(f.filter(&Unsaturated(utilization(0.2))), [0, 1, 2, 3]);
        let mut full = Fixture::new(2).load(0, 0, 9, 0.1).load(1, 0, 9, 0.1);
        assert_eq!(full.filter(&Unsaturated(utilization(0.0))), [0, 1]);
        // An hour later nothing is known of anybody.
        full.now += 3_600_000;
        let saturation = full.with(&SchedulingRequest::default(), |context, _| {
            pool_saturation(&utilization(0.0), context.loads, &[0, 1])
        });
        assert_near(&[saturation], &[0.0]);
    }

    #[test]
    fn concurrency_counts_what_was_sent() {
        let concurrency = |mode| SaturationDetector::Concurrency {
            max_concurrency: 4,
            max_token_concurrency: 100,
            mode,
            headroom: 0.0,
        };
        let mut f = Fixture::new(2);
        f.endpoints[0].set_remote_in_flight(4);
        f.endpoints[1].set_remote_in_flight(1);
        f.endpoints[1].set_remote_tokens(100);
        let both = |f: &mut Fixture, mode| {
            let detector = concurrency(mode);
            let saturation = f.with(&SchedulingRequest::default(), |context, _| {
                pool_saturation(&detector, context.loads, &[0, 1])
            });
            (f.filter(&Unsaturated(detector)), saturation)
        };
        assert_eq!(both(&mut f, ConcurrencyMode::Requests), (vec![1], 0.625));
        assert_eq!(both(&mut f, ConcurrencyMode::Tokens), (vec![0], 0.5));
        assert_eq!(both(&mut f, ConcurrencyMode::Hybrid), (vec![], 1.0));
    }
}
