//! Making a recorded decision again, under the same or another configuration, on the candidates as they were.
//!
//! A replay runs the very pipeline that a configuration compiles to. What the world would give it comes from the record: the endpoints
//! with their load and labels, the request without its prompt, what the producers had found, the state of the random numbers, whose
//! turn it was, which endpoint a session was bound to. What is not in the record and the configuration needs is said ([`Lacks`]); it
//! is never guessed. Flow control is not replayed: the decision begins with a request that may go on.

mod inputs;
mod past;

use super::{RequestFacts, RequestRecord};
use crate::config::{CompiledPolicy, ConfigErrors, EndpointPickerConfig, Problem};
use crate::pick::{Scheduler, Tried};
use crate::pipeline::{
    Decision, Named, Picker, Pipeline, Profile, Row, SchedulingRequest, Tools, Weighted,
};
use crate::view::{Pool, PoolPolicy, PoolSpec, Route};
use std::sync::Arc;

/// A configuration to replay under.
pub struct Replay {
    policy: CompiledPolicy,
    config: EndpointPickerConfig,
}

/// What a record does not say and the configuration needs, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Lacks(pub Vec<String>);

impl Replay {
    /// Compiles the configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(config: EndpointPickerConfig) -> Result<Self, ConfigErrors> {
        let policy = config.compile()?;
        Ok(Self { policy, config })
    }

    /// What has no effect in the configuration.
    pub fn warnings(&self) -> &[Problem] {
        &self.policy.warnings
    }

    /// Makes a decision of a request again.
    ///
    /// # Errors
    /// [`Lacks`].
    pub fn decide(&self, of: &RequestRecord, then: &Decision) -> Result<Decision, Lacks> {
        let Some(facts) = &of.request else {
            return Err(Lacks(vec!["what the request was to the scheduler".into()]));
        };
        let headers = facts.header_map();
        let request = scheduling(of, facts, &headers);
        let (endpoints, now) = inputs::endpoints(then);
        let mut lacks = inputs::missing_headers(&self.config, facts);
        let pipeline = self.pipeline(then, &mut lacks);
        if !lacks.is_empty() {
            return Err(Lacks(lacks));
        }
        let past = past::Past {
            config: &self.config,
            pipeline: &pipeline,
            request: &request,
            endpoints: &endpoints,
            then,
            now,
        };
        past.restore();
        let mut tried = Tried::default();
        for refused in &then.breaker_refused {
            tried_add(&mut tried, &endpoints, refused);
        }
        let route = Route {
            pool: Arc::new(Pool {
                spec: PoolSpec {
                    name: (&*of.pool).into(),
                    ..PoolSpec::default()
                },
                policy: Arc::new(PoolPolicy::default()),
                endpoints: Vec::new(),
            }),
            endpoints: endpoints.as_slice().into(),
        };
        let mut decision = Decision::default();
        // What it gives is in the record; the reservation ends here.
        drop(pipeline.schedule(
            &request,
            &route,
            &tried,
            now,
            then.random,
            Some(&mut decision),
        ));
        let lacks = past.lacks(&decision, facts);
        if lacks.is_empty() {
            Ok(decision)
        } else {
            Err(Lacks(lacks))
        }
    }

    /// The compiled pipeline with recorded columns in place of what fills them, and recorded turns.
    fn pipeline(&self, then: &Decision, lacks: &mut Vec<String>) -> Pipeline {
        let compiled = &*self.policy.scheduler;
        let profile = |profile: &Profile| {
            let recorded = then.profiles.iter().find(|p| *p.profile == *profile.name);
            let turn = recorded.and_then(|p| p.turn);
            let inner = Arc::clone(&profile.picker.plugin);
            let turned = Turned {
                inner,
                turn: turn.unwrap_or((then.random >> 32) as usize),
            };
            Profile {
                name: Arc::clone(&profile.name),
                filters: profile.filters.iter().map(same).collect(),
                scorers: profile
                    .scorers
                    .iter()
                    .map(|weighted| Weighted {
                        scorer: same(&weighted.scorer),
                        weight: weighted.weight,
                    })
                    .collect(),
                picker: Named::new(Arc::clone(&profile.picker.name), Arc::new(turned) as Arc<_>),
            }
        };
        Pipeline {
            name: Arc::clone(&compiled.name),
            shape: compiled.shape,
            filled: compiled.filled.clone(),
            screeners: compiled.screeners.iter().map(same).collect(),
            producers: inputs::producers(compiled, then, lacks),
            admitters: compiled.admitters.iter().map(same).collect(),
            profiles: compiled.profiles.iter().map(profile).collect(),
            handler: same(&compiled.handler),
            on_picked: compiled.on_picked.iter().map(same).collect(),
            tokens: compiled.tokens,
        }
    }
}

fn same<T: ?Sized>(named: &Named<T>) -> Named<T> {
    Named::new(Arc::clone(&named.name), Arc::clone(&named.plugin))
}

fn tried_add(tried: &mut Tried, endpoints: &[Arc<crate::Endpoint>], name: &str) {
    if let Some(endpoint) = endpoints.iter().find(|e| e.name() == name) {
        tried.add(Arc::clone(endpoint));
    }
}

fn scheduling<'a>(
    of: &'a RequestRecord,
    facts: &'a RequestFacts,
    headers: &'a http::HeaderMap,
) -> SchedulingRequest<'a> {
    SchedulingRequest {
        request_id: &of.request_id,
        incoming_model: &of.model,
        model: &of.target_model,
        headers,
        priority: of.priority,
        fairness_id: &of.fairness_id,
        objective: of.objective.as_deref(),
        prompt: None,
        prompt_bytes: facts.prompt_bytes,
        prompt_tokens: facts.prompt_tokens,
        cache_salt: None,
        max_tokens: facts.max_tokens,
        stream: facts.stream,
        session: facts.session.as_deref(),
        slo_ttft_ms: facts.slo_ttft_ms,
        slo_tpot_ms: facts.slo_tpot_ms,
        subset: None,
        multimodal: &facts.multimodal,
        ..SchedulingRequest::default()
    }
}

/// A picker whose turn is fixed.
struct Turned {
    inner: Arc<dyn Picker>,
    turn: usize,
}

impl Picker for Turned {
    fn pick(&self, rows: &[Row], totals: &[f64], tools: &mut Tools, picked: &mut Vec<Row>) {
        tools.turn = Some(self.turn);
        self.inner.pick(rows, totals, tools, picked);
    }
}

#[cfg(test)]
mod tests;
