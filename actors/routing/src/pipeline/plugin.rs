//! What a plugin can be. All of it runs within the pick: no waiting, no I/O, no allocation for each endpoint.

use super::Row;
use super::attributes::{Attributes, ColumnId};
use super::loads::Loads;
use super::request::SchedulingRequest;
use super::stages::{Extras, Stages, Step};
use crate::endpoint::Endpoint;
use crate::pick::{Denied, NotPicked};
use crate::random::Random;
use std::sync::Arc;

/// What every plugin may read.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The request.
    pub request: &'a SchedulingRequest<'a>,
    /// The route's endpoints; a [`Row`] is a place in this list.
    pub endpoints: &'a [Arc<Endpoint>],
    /// Their load.
    pub loads: &'a Loads,
    /// What the producers found out.
    pub attributes: &'a Attributes,
    /// [`crate::now_ms`].
    pub now: u64,
    /// The endpoint that an earlier stage of the same request picked.
    pub peer: Option<Row>,
}

impl<'a> Context<'a> {
    /// The endpoint of a row.
    pub fn endpoint(&self, row: Row) -> Option<&'a Arc<Endpoint>> {
        self.endpoints.get(row)
    }

    /// A label of the endpoint of a row.
    pub fn label(&self, row: Row, key: &str) -> Option<&'a str> {
        self.endpoint(row)?
            .spec()
            .labels
            .get(key)
            .map(String::as_str)
    }
}

/// Random numbers, and memory that is reused from pick to pick.
#[derive(Debug)]
pub struct Tools {
    /// This pick's random numbers.
    pub random: Random,
    /// For sorting rows.
    pub keys: Vec<(f64, Row)>,
    /// For sorting rows by whole numbers.
    pub stamps: Vec<(u64, Row)>,
    /// Whose turn it was among equals: set by pickers that take turns. One that is set beforehand is used in place of their own.
    pub turn: Option<usize>,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            random: Random::new(0),
            keys: Vec::new(),
            stamps: Vec::new(),
            turn: None,
        }
    }
}

/// A hard constraint of the request: no profile ever sees the endpoints that it removes.
pub trait Screener: Send + Sync {
    /// Removes rows.
    fn screen(&self, context: &Context<'_>, rows: &mut Vec<Row>);
}

/// Finds out something about the request, or about each candidate, and writes it into its columns.
pub trait DataProducer: Send + Sync {
    /// Fills its columns. `attributes` already has the columns of the producers that this one declared to consume.
    fn produce(&self, input: &ProducerInput<'_>, attributes: &mut Attributes);
}

/// What a producer may read besides the columns.
#[derive(Clone, Copy)]
pub struct ProducerInput<'a> {
    /// The request.
    pub request: &'a SchedulingRequest<'a>,
    /// The route's endpoints.
    pub endpoints: &'a [Arc<Endpoint>],
    /// The rows to say something about.
    pub rows: &'a [Row],
    /// Their load.
    pub loads: &'a Loads,
    /// [`crate::now_ms`].
    pub now: u64,
}

/// Turns requests away.
pub trait Admitter: Send + Sync {
    /// Looks at the request and all candidates.
    ///
    /// # Errors
    /// [`Denied`], with the status that the client gets.
    fn admit(&self, context: &Context<'_>, rows: &[Row], random: &mut Random)
    -> Result<(), Denied>;
}

/// Removes endpoints from a profile's candidates.
pub trait Filter: Send + Sync {
    /// Removes rows.
    fn filter(&self, context: &Context<'_>, rows: &mut Vec<Row>, tools: &mut Tools);
}

/// Says how good each candidate is.
pub trait Scorer: Send + Sync {
    /// Sets a score for each row, 0 to 1, higher is better. `scores` is as long as `rows` and all 0.
    fn score(&self, context: &Context<'_>, rows: &[Row], tools: &mut Tools, scores: &mut [f64]);
}

/// Chooses by the weighted sums.
pub trait Picker: Send + Sync {
    /// Appends the chosen rows to `picked`, best first. `rows` is not empty; `totals` is as long.
    fn pick(&self, rows: &[Row], totals: &[f64], tools: &mut Tools, picked: &mut Vec<Row>);
}

/// Says which profiles run, in which order, and what comes of them.
pub trait ProfileHandler: Send + Sync {
    /// The next profile to run, given those that ran.
    fn next(&self, context: &Context<'_>, stages: &Stages) -> Step;

    /// The stage whose pick gets the request; adds headers and the other stages' places.
    ///
    /// # Errors
    /// [`NotPicked`] if a stage failed that the request cannot do without.
    fn finish(
        &self,
        context: &Context<'_>,
        stages: &Stages,
        extras: &mut Extras,
    ) -> Result<usize, NotPicked>;
}

/// Says whether a stage of a disaggregated request runs.
pub trait Decider: Send + Sync {
    /// `decode` is the endpoint that was picked to decode, if that stage ran already.
    fn wants(&self, context: &Context<'_>, decode: Option<Row>) -> bool;
}

/// Told about every pick after its place is reserved: where plugins remember what they did.
pub trait OnPicked: Send + Sync {
    /// Remembers the pick, or adds headers to the request or the answer.
    fn on_picked(&self, context: &Context<'_>, stages: &Stages, primary: Row, extras: &mut Extras);
}

/// Where the number of prompt tokens comes from that a pick reserves on its endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenAccounting {
    /// Column with each endpoint's uncached prompt tokens.
    pub uncached: ColumnId,
    /// Adds an estimate of the answer's length.
    pub output: Option<OutputEstimate>,
}

/// An estimate of the answer's length in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutputEstimate {
    /// Output tokens for each prompt token.
    pub ratio: f64,
    /// Upper bound.
    pub max: Option<u64>,
}

impl OutputEstimate {
    /// Never more than the client asked for.
    pub fn tokens(&self, request: &SchedulingRequest<'_>) -> u64 {
        let guess = (request.estimated_prompt_tokens() as f64 * self.ratio) as u64;
        let bound = |tokens: u64, max: Option<u64>| max.map_or(tokens, |max| tokens.min(max));
        bound(bound(guess, self.max), request.max_tokens)
    }
}
