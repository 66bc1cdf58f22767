//! `latency-slo-admitter`: a sheddable request with an SLO is turned away if no prediction keeps it, no endpoint is idle (nothing running)
//! and none is cold (KV cache below 2 %). Without any prediction it is admitted.

use super::saturated;
use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pick::Denied;
use crate::pipeline::{Admitter, ColumnId, Context, Row};
use crate::random::Random;

const COLD: f64 = 0.02;

/// See the module's documentation.
#[derive(Debug)]
pub struct LatencySlo {
    /// Where the predictions are.
    pub predictions: ColumnId,
}

impl Admitter for LatencySlo {
    fn admit(&self, context: &Context<'_>, rows: &[Row], _: &mut Random) -> Result<(), Denied> {
        let request = context.request;
        let has_slo = request.slo_ttft_ms.is_some() || request.slo_tpot_ms.is_some();
        if request.priority >= 0 || !has_slo {
            return Ok(());
        }
        let loads = context.loads;
        let mut predicted = false;
        for row in rows {
            if let Some(prediction) = context.attributes.prediction(self.predictions, *row) {
                predicted = true;
                if prediction.keeps_slo() {
                    return Ok(());
                }
            }
            let idle = loads.running(*row) == 0.0 && loads.in_flight(*row) == 0;
            if idle || loads.kv_usage(*row) < COLD {
                return Ok(());
            }
        }
        if predicted {
            Err(saturated(
                "no endpoint is expected to keep the request's SLO",
            ))
        } else {
            Ok(())
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    Built::admitter(LatencySlo {
        predictions: build.column(
            fields,
            "latencyPredictionProducerName",
            Produces::Prediction,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;

    fn admitted(f: &mut Fixture, priority: i32, slo_ttft_ms: Option<f64>) -> bool {
        let request = SchedulingRequest {
            priority,
            slo_ttft_ms,
            ..Default::default()
        };
        let rows = f.rows();
        f.with(&request, |context, tools| {
            LatencySlo { predictions: 0 }
                .admit(context, &rows, &mut tools.random)
                .is_ok()
        })
    }

    #[test]
    fn only_hopeless_requests_are_turned_away() {
        let busy = || Fixture::new(2).load(0, 5, 0, 0.5).load(1, 5, 0, 0.5);
        let slo = Some(100.0);
        let mut hopeless = busy().predict(0, 500.0, -400.0, 1.0);
        assert!(!admitted(&mut hopeless, -1, slo));
        assert!(admitted(&mut hopeless, 0, slo) && admitted(&mut hopeless, -1, None));
        assert!(admitted(&mut busy(), -1, slo), "nothing predicted");
        assert!(
            admitted(&mut busy().predict(1, 50.0, 50.0, 1.0), -1, slo),
            "kept"
        );
        let mut idle = busy().predict(0, 500.0, -400.0, 1.0).load(1, 0, 0, 0.5);
        assert!(admitted(&mut idle, -1, slo), "one is idle");
        let mut cold = busy().predict(0, 500.0, -400.0, 1.0).load(1, 3, 0, 0.01);
        assert!(admitted(&mut cold, -1, slo), "one is cold");
    }
}
