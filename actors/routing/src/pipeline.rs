//! The scheduling pipeline: screen -> produce -> admit -> profiles of filters, weighted scorers and a picker -> reserve.
//!
//! A [`Pipeline`] is what a configuration compiles to. All memory that a pick needs lies in a scratch of its thread and is used
//! again, so that in the steady state a pick allocates nothing for an endpoint. Endpoints are rows of the route's list; what is known
//! of them are columns.

pub mod attributes;
mod decision;
mod loads;
mod name;
pub(crate) mod noting;
mod plugin;
mod prefer;
mod profile;
mod request;
mod stages;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use attributes::{Attributes, ColumnId, Prediction, PrefixColumn, Shape, TierBlocks};
pub use decision::{
    Candidate, Column, Decision, Produced, ProfileRecord, Reading, Removal, ScoreColumn,
};
pub use loads::Loads;
pub use name::Name;
pub use plugin::{
    Admitter, Context, DataProducer, Decider, Filter, OnPicked, OutputEstimate, Picker,
    ProducerInput, ProfileHandler, Scorer, Screener, TokenAccounting, Tools,
};
pub use profile::{Named, Profile, Weighted};
pub use request::{BYTES_PER_TOKEN, Prompt, SchedulingRequest};
pub use stages::{Extras, Stages, Step};

use crate::config::registry::Produces;
use crate::endpoint::{Endpoint, LoadSnapshot};
use crate::pick::{NotPicked, Picked, Scheduler, Tried, Unavailable};
use crate::random::Random;
use crate::view::Route;
use profile::Work;
use std::cell::RefCell;
use std::sync::Arc;

/// An endpoint's place in its route.
pub type Row = usize;

/// How often another endpoint is chosen because the breaker of the chosen one refuses.
const ROUNDS: usize = 4;

/// Who fills which column.
#[derive(Clone, Debug)]
pub struct Filled {
    /// Name of the plugin.
    pub producer: Arc<str>,
    /// What is in it.
    pub what: Produces,
    /// Number of the column among those of its kind.
    pub id: ColumnId,
}

/// See the module's documentation.
pub struct Pipeline {
    /// For records: the name of the configuration.
    pub name: Arc<str>,
    /// Number of columns.
    pub shape: Shape,
    /// Who fills them; for records.
    pub filled: Vec<Filled>,
    /// Hard constraints.
    pub screeners: Vec<Named<dyn Screener>>,
    /// In the order of their dependencies.
    pub producers: Vec<Named<dyn DataProducer>>,
    /// May turn the request away.
    pub admitters: Vec<Named<dyn Admitter>>,
    /// What the handler chooses from.
    pub profiles: Vec<Profile>,
    /// Which profiles run.
    pub handler: Named<dyn ProfileHandler>,
    /// Told about each pick.
    pub on_picked: Vec<Named<dyn OnPicked>>,
    /// What a reservation counts in tokens; `None`: the prompt's estimated length.
    pub tokens: Option<TokenAccounting>,
}

#[derive(Default)]
struct Scratch {
    rows: Vec<Row>,
    before: Vec<Row>,
    loads: Loads,
    attributes: Attributes,
    work: Work,
    stages: Stages,
    tools: Tools,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scheduler for Pipeline {
    fn schedule(
        &self,
        request: &SchedulingRequest<'_>,
        route: &Route,
        tried: &Tried,
        now: u64,
        random: u64,
        mut record: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked> {
        let ask = Ask {
            request,
            endpoints: &route.endpoints,
            tried,
            now,
            random,
        };
        if let Some(record) = &mut record {
            record.scheduler = (&self.name).into();
        }
        let result = SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
            Ok(mut scratch) => self.run(&ask, &mut scratch, record.as_deref_mut()),
            Err(_) => self.run(&ask, &mut Scratch::default(), record.as_deref_mut()),
        });
        if let Some(record) = record {
            noting::result(record, &result);
        }
        result
    }
}

/// One call.
struct Ask<'a> {
    request: &'a SchedulingRequest<'a>,
    endpoints: &'a [Arc<Endpoint>],
    tried: &'a Tried,
    now: u64,
    random: u64,
}

impl Pipeline {
    fn run(
        &self,
        ask: &Ask<'_>,
        scratch: &mut Scratch,
        mut record: Option<&mut Decision>,
    ) -> Result<Picked, NotPicked> {
        let Scratch {
            rows,
            before,
            loads,
            attributes,
            work,
            stages,
            tools,
        } = scratch;
        let Ask {
            request,
            endpoints,
            now,
            ..
        } = *ask;
        tools.random = Random::new(ask.random);
        usable(ask, rows, &mut tools.random);
        if let Some(record) = &mut record {
            record.random = tools.random.state();
            record.unusable = noting::others(endpoints, rows);
        }
        if endpoints.is_empty() {
            return Err(Unavailable::Empty.into());
        }
        if rows.is_empty() {
            return Err(Unavailable::none_left(ask.tried).into());
        }
        if let Some(record) = &mut record {
            let mut snapshots: Vec<LoadSnapshot> = Vec::with_capacity(rows.len());
            loads.read_with(endpoints, rows, now, |seen| snapshots.push(*seen));
            record.candidates = noting::candidates(endpoints, rows, loads, &snapshots);
        } else {
            loads.read(endpoints, rows, now);
        }
        attributes.reset(self.shape, endpoints.len());
        let candidates: Vec<Row> = record.as_ref().map_or(Vec::new(), |_| rows.clone());

        {
            let context = Context {
                request,
                endpoints,
                loads,
                attributes,
                now,
                peer: None,
            };
            for screener in &self.screeners {
                if let Some(record) = &mut record {
                    before.clear();
                    before.extend_from_slice(rows);
                    screener.plugin.screen(&context, rows);
                    let removal = noting::removal(&context, &screener.name, before, rows);
                    record.screened.push(removal);
                } else {
                    screener.plugin.screen(&context, rows);
                }
            }
        }
        if rows.is_empty() {
            return Err(Unavailable::Screened.into());
        }

        let input = ProducerInput {
            request,
            endpoints,
            rows,
            loads,
            now,
        };
        for producer in &self.producers {
            producer.plugin.produce(&input, attributes);
        }
        if let Some(record) = &mut record {
            record.produced = noting::produced(&self.filled, attributes, &candidates);
        }

        let mut context = Context {
            request,
            endpoints,
            loads,
            attributes,
            now,
            peer: None,
        };
        for admitter in &self.admitters {
            let admitted = admitter.plugin.admit(&context, rows, &mut tools.random);
            if let Err(denied) = admitted {
                if let Some(record) = &mut record {
                    record.refused_by = Some((&admitter.name).into());
                }
                return Err(denied.into());
            }
        }

        // A breaker can refuse between the look and the reservation; then look again without it.
        for _ in 0..ROUNDS {
            self.run_profiles(
                &mut context,
                rows,
                stages,
                work,
                tools,
                record.as_deref_mut(),
            )?;
            let mut extras = Extras::default();
            let stage = self.handler.plugin.finish(&context, stages, &mut extras)?;
            let Some((&primary, others)) = stages.picked(stage).split_first() else {
                return Err(Unavailable::Filtered.into());
            };
            let Some(endpoint) = endpoints.get(primary) else {
                return Err(Unavailable::NoneAvailable.into());
            };
            prefer::check(&context, self.shape, primary)?;
            let Some(mut reservation) =
                endpoint.reserve_with(now, self.tokens_of(&context, primary))
            else {
                rows.retain(|row| *row != primary);
                if let Some(record) = &mut record {
                    // What counts is the round that places the request.
                    record.breaker_refused.push((&endpoint.spec().name).into());
                    record.random = tools.random.state();
                    record.profiles.clear();
                }
                if rows.is_empty() {
                    break;
                }
                continue;
            };
            for hook in &self.on_picked {
                hook.plugin
                    .on_picked(&context, stages, primary, &mut extras);
            }
            let matched = self.matched(&context);
            // The first byte of an answer that comes as a whole tells nothing of its prompt, nor does that of an engine which is
            // told what to load from where.
            if request.stream
                && extras.companions.is_empty()
                && extras.kv_hints.is_empty()
                && let Some(work) = matched.and_then(|column| column.work(primary, request))
            {
                reservation.measure(now, work);
            }
            for row in extras.companions.drain(..) {
                let place = endpoints
                    .get(row)
                    .and_then(|e| e.reserve_with(now, self.tokens_of(&context, row)));
                if let Some(place) = place {
                    reservation.accompany(place);
                }
            }
            let endpoint_of = |row: &Row| endpoints.get(*row).cloned();
            return Ok(Picked {
                reservation,
                via: extras.via.as_ref().and_then(endpoint_of),
                fallbacks: others.iter().filter_map(endpoint_of).collect(),
                request_headers: extras.request_headers,
                response_headers: extras.response_headers,
                kv_hints: (!extras.kv_hints.is_empty()).then(|| extras.kv_hints.join(",")),
                cached_tokens: matched.map(|column| column.matched_tokens(primary)),
            });
        }
        Err(Unavailable::none_left(ask.tried).into())
    }

    fn run_profiles(
        &self,
        context: &mut Context<'_>,
        rows: &[Row],
        stages: &mut Stages,
        work: &mut Work,
        tools: &mut Tools,
        mut record: Option<&mut Decision>,
    ) -> Result<(), NotPicked> {
        stages.clear();
        context.peer = None;
        // A handler that never ends would hang the request.
        for _ in 0..=self.profiles.len() {
            match self.handler.plugin.next(context, stages) {
                Step::Done => return Ok(()),
                Step::Fail(refused) => return Err(refused),
                Step::Run(number) => {
                    stages.run(number, |picked| {
                        if let Some(profile) = self.profiles.get(number) {
                            let record = record.as_deref_mut();
                            profile.run(context, rows, work, tools, picked, record);
                        }
                    });
                    if let Some(row) = stages.picked(stages.len() - 1).first() {
                        context.peer = Some(*row);
                    }
                }
            }
        }
        Ok(())
    }

    /// Who has how much of the prompt cached, as the first producer that knows of the prompt says.
    fn matched<'a>(&self, context: &Context<'a>) -> Option<&'a PrefixColumn> {
        self.filled
            .iter()
            .filter(|filled| filled.what == Produces::Prefix)
            .filter_map(|filled| context.attributes.prefix(filled.id))
            .find(|column| column.total_blocks > 0)
    }

    /// Prompt tokens that the endpoint still has to compute for the request.
    fn tokens_of(&self, context: &Context<'_>, row: Row) -> u64 {
        match &self.tokens {
            Some(accounting) => {
                let uncached = context.attributes.number(accounting.uncached, row) as u64;
                let output = accounting.output.map_or(0, |o| o.tokens(context.request));
                uncached.saturating_add(output)
            }
            None => context.request.estimated_prompt_tokens(),
        }
    }
}

/// The rows of the best tier that were not tried. An endpoint in its slow start takes part in only its share of the picks, unless
/// there is no other.
fn usable(ask: &Ask<'_>, rows: &mut Vec<Row>, random: &mut Random) {
    rows.clear();
    let mut best = u8::MAX;
    let mut ramping = false;
    for (row, endpoint) in ask.endpoints.iter().enumerate() {
        let Some(tier) = endpoint.tier(ask.now) else {
            continue;
        };
        if tier > best || (!ask.tried.is_empty() && ask.tried.contains(endpoint)) {
            continue;
        }
        if tier < best {
            best = tier;
            rows.clear();
        }
        ramping |= endpoint.share_percent(ask.now) < 100;
        rows.push(row);
    }
    if ramping && rows.len() > 1 {
        let joins = |row: &Row, random: &mut Random| {
            ask.endpoints.get(*row).is_some_and(|e| {
                let share = e.share_percent(ask.now);
                share >= 100 || random.below(100) < share as usize
            })
        };
        let full = |row: &Row| {
            ask.endpoints
                .get(*row)
                .is_some_and(|e| e.share_percent(ask.now) >= 100)
        };
        // If all ramp up, all take part: they recover together.
        if rows.iter().any(full) {
            rows.retain(|row| joins(row, random));
        }
    }
}
