//! `inflight-load-producer`: how many tokens of the prompt each endpoint would have to compute. The requests and tokens in flight
//! themselves are counted by reservations, on the endpoints, for every pick; this says how many tokens a reservation counts.

use crate::config::Fields;
use crate::config::registry::{Build, Built, Produces};
use crate::pipeline::{
    Attributes, ColumnId, DataProducer, OutputEstimate, ProducerInput, TokenAccounting,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct InflightLoad {
    /// Where it is written.
    pub uncached: ColumnId,
    /// What is cached; `None`: nothing is known to be.
    pub prefix: Option<ColumnId>,
}

impl DataProducer for InflightLoad {
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes) {
        let tokens = input.request.estimated_prompt_tokens();
        for row in input.rows {
            let cached = self
                .prefix
                .and_then(|id| attributes.prefix(id))
                .map_or(0, |column| column.matched_tokens(*row));
            let uncached = tokens.saturating_sub(cached) as f64;
            attributes.set_number(self.uncached, *row, uncached);
        }
    }
}

pub(crate) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>) -> Built {
    let add_output = fields.flag("addEstimatedOutputTokens", false);
    let ratio = fields.number("outputRatio", 1.5, 0.0..=1e6);
    let max = fields.whole_if("maxEstimatedOutputTokens", 0..=u64::MAX);
    if !fields.flag("syncCrossReplicaState", true) {
        fields.warn(
            "syncCrossReplicaState",
            "has no meaning here: routers always share their counts",
        );
    }
    let prefix = if fields.has("prefixMatchInfoProducerName") {
        Some(build.column(fields, "prefixMatchInfoProducerName", Produces::Prefix))
    } else {
        fields.raw("prefixMatchInfoProducerName");
        build.existing(Produces::Prefix)
    };
    let uncached = build.own(Produces::Uncached);
    Built {
        tokens: Some(TokenAccounting {
            uncached,
            output: add_output.then_some(OutputEstimate { ratio, max }),
        }),
        ..Built::producer(InflightLoad { uncached, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::SchedulingRequest;
    use crate::pipeline::testing::Fixture;

    #[test]
    fn what_is_not_cached_must_be_computed() {
        let mut f = Fixture::new(3).prefix(10, &[10, 4, 0]);
        let request = SchedulingRequest {
            prompt_bytes: 600,
            ..Default::default()
        };
        f.produce(
            &InflightLoad {
                uncached: 0,
                prefix: Some(0),
            },
            &request,
        );
        let got: Vec<f64> = (0..3).map(|row| f.attributes.number(0, row)).collect();
        assert_eq!(got, [0.0, 86.0, 150.0]);
        f.produce(
            &InflightLoad {
                uncached: 0,
                prefix: None,
            },
            &request,
        );
        assert_eq!(f.attributes.number(0, 0), 150.0);
    }

    #[test]
    fn output_estimates_are_bounded_by_config_and_client() {
        let request = |max_tokens| SchedulingRequest {
            prompt_tokens: Some(100),
            max_tokens,
            ..Default::default()
        };
        let estimate = |max| OutputEstimate { ratio: 1.5, max };
        assert_eq!(estimate(None).tokens(&request(None)), 150);
        assert_eq!(estimate(Some(120)).tokens(&request(None)), 120);
        assert_eq!(estimate(Some(120)).tokens(&request(Some(7))), 7);
    }
}
