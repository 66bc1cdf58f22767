//! A few endpoints and what a pick knows of them, for the plugins' tests.

use super::attributes::Shape;
use super::{
    Attributes, Context, DataProducer, Filter, Loads, Prediction, ProducerInput, Row,
    SchedulingRequest, Scorer, Tools,
};
use crate::endpoint::tests::spec;
use crate::endpoint::{Endpoint, Health, LoadFigures};
use std::sync::Arc;

/// One column of each kind, and endpoints `e0`, `e1`, ...
pub(crate) struct Fixture {
    pub endpoints: Vec<Arc<Endpoint>>,
    pub attributes: Attributes,
    pub tools: Tools,
    pub peer: Option<Row>,
    pub now: u64,
}

pub(crate) const SHAPE: Shape = Shape {
    prefix: 1,
    predictions: 1,
    numbers: 1,
    texts: 1,
};

impl Fixture {
    pub fn new(n: usize) -> Self {
        Self::labelled(&vec![&[][..]; n])
    }

    /// An endpoint for each list of labels.
    pub fn labelled(labels: &[&[(&str, &str)]]) -> Self {
        let endpoints: Vec<Arc<Endpoint>> = labels
            .iter()
            .enumerate()
            .map(|(i, labels)| {
                let mut spec = spec(&format!("e{i}"));
                spec.target = crate::Target::new(false, &format!("10.0.0.{i}"), 8000);
                spec.labels = labels
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect();
                let endpoint = Arc::new(Endpoint::new(spec, None));
                endpoint.set_health(Health::Ready, 1);
                endpoint
            })
            .collect();
        let mut attributes = Attributes::default();
        attributes.reset(SHAPE, endpoints.len());
        Self {
            endpoints,
            attributes,
            tools: Tools::default(),
            peer: None,
            now: 1000,
        }
    }

    pub fn load(self, row: Row, running: u32, waiting: u32, usage: f32) -> Self {
        self.endpoints[row].set_load(
            LoadFigures {
                running: Some(running),
                waiting: Some(waiting),
                kv_cache_usage: Some(usage),
            },
            self.now,
        );
        self
    }

    /// Blocks of 16 tokens.
    pub fn prefix(mut self, total: u32, matched: &[u32]) -> Self {
        let column = self.attributes.prefix_mut(0).unwrap();
        (column.block_tokens, column.total_blocks) = (16, total);
        for (row, blocks) in matched.iter().enumerate() {
            column.set(row, *blocks);
        }
        self
    }

    /// TTFT and its headroom, TPOT headroom.
    pub fn predict(mut self, row: Row, ttft: f64, ttft_headroom: f64, tpot_headroom: f64) -> Self {
        let prediction = Prediction {
            ttft_ms: ttft,
            tpot_ms: 10.0,
            ttft_headroom_ms: ttft_headroom,
            tpot_headroom_ms: tpot_headroom,
        };
        self.attributes.set_prediction(0, row, prediction);
        self
    }

    pub fn rows(&self) -> Vec<Row> {
        (0..self.endpoints.len()).collect()
    }

    fn loads(&self) -> Loads {
        let mut loads = Loads::default();
        loads.read(&self.endpoints, &self.rows(), self.now);
        loads
    }

    pub fn with<T>(
        &mut self,
        request: &SchedulingRequest<'_>,
        run: impl FnOnce(&Context<'_>, &mut Tools) -> T,
    ) -> T {
        let loads = self.loads();
        let context = Context {
            request,
            endpoints: &self.endpoints,
            loads: &loads,
            attributes: &self.attributes,
            now: self.now,
            peer: self.peer,
        };
        run(&context, &mut self.tools)
    }

    pub fn score(&mut self, scorer: &dyn Scorer) -> Vec<f64> {
        self.score_for(scorer, &SchedulingRequest::default())
    }

    pub fn score_for(&mut self, scorer: &dyn Scorer, request: &SchedulingRequest<'_>) -> Vec<f64> {
        let rows = self.rows();
        let mut scores = vec![0.0; rows.len()];
        self.with(request, |context, tools| {
            scorer.score(context, &rows, tools, &mut scores);
        });
        scores
    }

    pub fn filter(&mut self, filter: &dyn Filter) -> Vec<Row> {
        self.filter_for(filter, &SchedulingRequest::default())
    }

    pub fn filter_for(&mut self, filter: &dyn Filter, request: &SchedulingRequest<'_>) -> Vec<Row> {
        let mut rows = self.rows();
        self.with(request, |context, tools| {
            filter.filter(context, &mut rows, tools);
        });
        rows
    }

    pub fn produce(&mut self, producer: &dyn DataProducer, request: &SchedulingRequest<'_>) {
        let loads = self.loads();
        let rows = self.rows();
        let input = ProducerInput {
            request,
            endpoints: &self.endpoints,
            rows: &rows,
            loads: &loads,
            now: self.now,
        };
        producer.produce(&input, &mut self.attributes);
    }
}

/// Equal up to rounding.
pub(crate) fn assert_near(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{got:?} {expected:?}");
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() < 1e-9, "{got:?} is not {expected:?}");
    }
}
