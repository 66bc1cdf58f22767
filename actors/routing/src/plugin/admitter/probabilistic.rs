//! `probabilistic-admitter`: sheddable requests are turned away with probability min(k * saturation^power, 1), where saturation is the mean
//! over endpoints of max(queue / T, KV usage / U). Endpoints that did not tell their figures are left out: unknown is not full.

use super::saturated;
use crate::config::registry::{Build, Built};
use crate::config::{Fields, SaturationDetector};
use crate::pick::Denied;
use crate::pipeline::{Admitter, Context, Row};
use crate::plugin::filter::saturation::pool_saturation;
use crate::random::Random;
use std::time::Duration;

/// See the module's documentation.
#[derive(Debug)]
pub struct Probabilistic {
    /// T and U.
    pub detector: SaturationDetector,
    /// power
    pub power: f64,
    /// k
    pub k: f64,
}

impl Admitter for Probabilistic {
    fn admit(
        &self,
        context: &Context<'_>,
        rows: &[Row],
        random: &mut Random,
    ) -> Result<(), Denied> {
        if context.request.priority >= 0 {
            return Ok(());
        }
        let saturation = pool_saturation(&self.detector, context.loads, rows);
        let probability = (self.k * saturation.powf(self.power)).min(1.0);
        if random.unit() < probability {
            return Err(saturated("the pool is busy and the request is sheddable"));
        }
        Ok(())
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, _: &mut Build<'_>) -> Built {
    Built::admitter(Probabilistic {
        detector: SaturationDetector::Utilization {
            queue_depth_threshold: fields.number("queueDepthThreshold", 5.0, 1e-6..=1e12),
            kv_cache_util_threshold: fields.number("kvCacheUtilThreshold", 0.8, 1e-6..=1.0),
            metrics_staleness_threshold: Duration::from_secs(2),
            headroom: 0.0,
        },
        power: fields.number("power", 5.0, 0.0..=1e3),
        k: fields.number("k", 300.0, 0.0..=1e12),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn the_probability_follows_the_saturation() {
        let plugin = Probabilistic {
            detector: SaturationDetector::Utilization {
                queue_depth_threshold: 5.0,
                kv_cache_util_threshold: 0.8,
                metrics_staleness_threshold: Duration::from_secs(2),
                headroom: 0.0,
            },
            power: 5.0,
            k: 300.0,
        };
        let denied = |f: &mut Fixture, priority| {
            let request = SchedulingRequest {
                priority,
                ..Default::default()
            };
            f.with(&request, |context, tools| {
                (0..2000)
                    .filter(|_| plugin.admit(context, &[0], &mut tools.random).is_err())
                    .count()
            })
        };
        // Saturation 0.25: 300 / 1024 = 0.293. Saturation 0.4: more than 1.
        let mut quarter = Fixture::new(1).load(0, 0, 0, 0.2);
        assert!((500..680).contains(&denied(&mut quarter, -1)));
        assert_eq!(denied(&mut quarter, 0), 0);
        let mut busy = Fixture::new(1).load(0, 0, 2, 0.0);
        assert_eq!(denied(&mut busy, -1), 2000);
        assert_eq!(denied(&mut Fixture::new(1), -1), 0);
    }
}
