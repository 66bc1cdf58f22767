//! What decides without flow control: a sheddable request is turned away while the pool is full.

use super::saturated;
use crate::config::SaturationDetector;
use crate::pick::Denied;
use crate::pipeline::{Admitter, Context, Row};
use crate::plugin::filter::saturation::pool_saturation;
use crate::random::Random;

/// See the module's documentation.
#[derive(Debug)]
pub struct Sheddable(pub SaturationDetector);

impl Admitter for Sheddable {
    fn admit(&self, context: &Context<'_>, rows: &[Row], _: &mut Random) -> Result<(), Denied> {
        if context.request.priority < 0 && pool_saturation(&self.0, context.loads, rows) >= 1.0 {
            return Err(saturated(
                "the pool is saturated and the request is sheddable",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn only_sheddable_requests_and_only_while_full() {
        let plugin = Sheddable(SaturationDetector::default());
        let admit = |f: &mut Fixture, priority| {
            let request = SchedulingRequest {
                priority,
                ..Default::default()
            };
            f.with(&request, |context, tools| {
                plugin
                    .admit(context, &[0, 1], &mut tools.random)
                    .map_err(|d| (d.status, d.reason))
            })
        };
        let mut full = Fixture::new(2).load(0, 0, 5, 0.1).load(1, 0, 5, 0.1);
        let denied = Err((
            http::StatusCode::TOO_MANY_REQUESTS,
            Some("rejected-saturated"),
        ));
        assert_eq!(admit(&mut full, -1), denied);
        assert_eq!(admit(&mut full, 0), Ok(()));
        let mut free = Fixture::new(2).load(0, 0, 5, 0.1).load(1, 0, 4, 0.1);
        assert_eq!(admit(&mut free, -1), Ok(()));
        let mut unknown = Fixture::new(2);
        assert_eq!(admit(&mut unknown, -1), Ok(()));
    }
}
