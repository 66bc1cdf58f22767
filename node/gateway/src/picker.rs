//! The request path for a proxy that moves the bytes itself and only asks where they go (Envoy with external processing): the same
//! parse, route, pick, refusals, usage and metrics as for the gateway's own requests, without its sockets.
//!
//! ```text
//! Picker::enter -> Picker::ask (parse, classify) -> Picker::admit (flow control) -> Picker::choose (pick, reserve) -> Passing
//! ```

mod passing;
mod waiting;

pub use passing::Passing;
pub use waiting::{Admitted, Waiting};

use crate::answer;
use crate::authenticate::{Session, enter};
use crate::authorize::settle;
use crate::change::Changes;
use crate::classify::{edit, place};
use crate::error::{Refusal, dialect};
use crate::headers::{REQUEST_ID, TRACEPARENT};
use crate::hints::with_hints;
use crate::metrics::{Metrics, dropped, not_picked};
use crate::observe::{End, Observation};
use crate::parse::{check, understand};
use crate::record::{Beginning, Recording};
use crate::trace;
use crate::worker::GatewayShared;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use quorate_routing::classify::media_sizes;
use quorate_routing::flow::Permit;
use quorate_routing::plugin::producer::burst_prefix::Together;
use quorate_routing::request::PromptIn;
use quorate_routing::tokens::PromptTokens;
use quorate_routing::turns::Placing;
use quorate_routing::{
    Api, Caller, Class, Decision, Dialect, Endpoint, Picked, RequestInfo, Route, SchedulingRequest,
    Target, Tried, now_ms,
};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Asked for each request; one for each worker thread.
pub struct Picker {
    shared: Arc<GatewayShared>,
    metrics: Arc<Metrics>,
    options: PickerOptions,
    random: AtomicU64,
}

/// What a proxy's operator may choose.
#[derive(Clone, Copy, Debug)]
pub struct PickerOptions {
    /// Headers of clients that nobody knows may say what their request is (objective, flow, model).
    pub trust_headers: bool,
    /// Engines are asked for the usage of streams whose clients did not ask.
    pub stream_usage: bool,
}

/// The proxy's own answer in place of an engine's.
#[derive(Debug)]
pub struct Denied {
    /// What the client gets, in its own dialect.
    pub response: Box<Response<Bytes>>,
    /// The `error_code` label, for the proxy's log.
    pub code: &'static str,
}

/// A client that was let in.
pub struct Entered(Option<Arc<Session>>);

/// A request that was understood.
pub struct Asked {
    info: RequestInfo<'static>,
    class: Class,
    /// As it came, or as it goes to the engine.
    body: Bytes,
    changed: bool,
    changes: Changes,
    dialect: Dialect,
    /// Its place in the pool's flow control.
    permit: Option<Permit>,
    /// Where it should go together with others that came at the same time.
    together: Option<Together>,
    /// This router's turn to place it, where several have heavy requests to place.
    placing: Option<Placing>,
    /// Its prompt as tokens, where its pool has a use for them.
    tokens: Option<Box<PromptTokens>>,
    started: Instant,
    observation: Observation,
}

/// What the proxy knows beside the request itself.
pub struct Wanted<'a> {
    /// Only endpoints at such an address may be picked.
    pub subset: Option<&'a dyn Fn(SocketAddr) -> bool>,
    /// Where an endpoint is reached; one without an address cannot be picked.
    pub address: &'a dyn Fn(&Target) -> Option<SocketAddr>,
    /// How many further endpoints to name, for the case that the first cannot be reached.
    pub fallbacks: usize,
    /// The scores are wanted too. They cost a record of the whole decision.
    pub scores: bool,
}

impl Asked {
    /// It goes nowhere.
    fn refuse(mut self, refusal: &Refusal) -> Denied {
        if let Some(reason) = refusal.dropped_reason() {
            dropped(reason);
        }
        self.observation.refused(refusal);
        self.observation.end(End::Error(refusal.metric_code()));
        denied(refusal, self.dialect)
    }
}

fn denied(refusal: &Refusal, dialect: Dialect) -> Denied {
    Denied {
        response: Box::new(refusal.answer(dialect)),
        code: refusal.metric_code(),
    }
}

/// Where a request goes.
pub struct Choice {
    /// The pick, then the others in the order in which they are to be tried.
    pub addresses: Vec<SocketAddr>,
    /// The body that goes to the engine, where that is another than the client's. Its answer must not be compressed then.
    pub body: Option<Bytes>,
    /// What each scored endpoint got in sum in the profile that gave the pick, if that is wanted.
    pub scores: Vec<(SocketAddr, f64)>,
    /// For the request to the engine; they replace those of the same name.
    pub request_headers: Vec<(HeaderName, HeaderValue)>,
    /// For the answer to the client.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Follows the answer; holds the reservation.
    pub passing: Passing,
}

/// Headers that a request must carry on its way to the engine.
pub struct Traced {
    /// The request's id.
    pub id: HeaderValue,
    /// To be set, because the client sent none that can be used.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// The client's trace state belongs to no trace and must go.
    pub drop_state: bool,
}

/// A pick with all that belongs to it.
struct Placed {
    /// Where it and its alternatives are.
    addresses: Vec<SocketAddr>,
    scores: Vec<(SocketAddr, f64)>,
    picked: Picked,
    /// What it was picked from.
    among: Arc<[Arc<Endpoint>]>,
}

impl Picker {
    /// Shares the gateway's view and its policies. `seed` fixes every random choice.
    pub fn new(shared: Arc<GatewayShared>, options: PickerOptions, seed: u64) -> Self {
        Self {
            shared,
            metrics: Arc::new(Metrics::new()),
            options,
            random: AtomicU64::new(seed),
        }
    }

    /// The answer to a path that no engine is asked for: the union of models.
    pub fn own_answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response<Bytes>> {
        answer::models(&self.shared, method, path, headers)
    }

    /// Asks who the client is, if anybody is asked, and takes the credential out of the headers.
    ///
    /// # Errors
    /// [`Denied`]: unknown, or beyond its limits.
    pub fn enter(&self, path: &str, headers: &mut HeaderMap) -> Result<Entered, Denied> {
        let session = match self.shared.authenticator() {
            Some(door) => {
                let session = enter(door, headers).map_err(|access| {
                    self.refuse(&access.into(), dialect(Api::of(path), headers))
                })?;
                Some(Arc::new(session))
            }
            None => None,
        };
        Ok(Entered(session))
    }

    /// Makes sure that the request has an id and a trace context.
    pub fn trace(&self, headers: &mut HeaderMap) -> Traced {
        let had_state = headers.contains_key(trace::TRACESTATE);
        let completed = trace::complete(headers, || self.random());
        let mut set = Vec::new();
        if completed.new_id {
            set.push((REQUEST_ID, completed.id.clone()));
        }
        if completed.new_trace
            && let Some(parent) = headers.get(TRACEPARENT)
        {
            set.push((TRACEPARENT, parent.clone()));
        }
        Traced {
            id: completed.id,
            set,
            drop_state: completed.new_trace && had_state,
        }
    }

    /// Reads what routing needs out of a request whose body has come as a whole, asks whether the client may have it, and
    /// classifies it. `started` is when its head came.
    ///
    /// # Errors
    /// [`Denied`]: not a request that can be routed.
    pub fn ask(
        &self,
        entered: Entered,
        (method, path): (&Method, &str),
        headers: &HeaderMap,
        body: Bytes,
        started: Instant,
    ) -> Result<Asked, Denied> {
        let placed = || -> Result<_, Refusal> {
            let info = understand(check(true, method, path)?, &body)?;
            let caller = match &entered.0 {
                Some(session) => settle(&session.caller, &info.model, headers)?,
                None => Caller {
                    trusted: self.options.trust_headers,
                    ..Caller::default()
                },
            };
            let view = self.shared.view().load();
            let random = self.random();
            let (class, metrics) = place(&view, &self.metrics, &info, headers, &caller, random)?;
            Ok((info, class, metrics, caller.trusted))
        };
        let dialect = dialect(Api::of(path), headers);
        let (mut info, class, metrics, trusted) =
            placed().map_err(|refusal| self.refuse(&refusal, dialect))?;
        let mut observation = Observation::begin(&self.metrics, metrics, started, body.len(), None);
        observation.session = entered.0;
        observation.record = Recording::begin(
            &self.shared,
            || self.random(),
            &Beginning {
                door: "ext-proc",
                headers,
                trusted,
                started,
                info: &info,
                class: &class,
                session: observation.session.as_deref(),
            },
        );
        let (edited, changes) = edit(&mut info, &class, self.options.stream_usage, &body);
        Ok(Asked {
            info,
            class,
            changed: edited.is_some(),
            body: edited.unwrap_or(body),
            changes,
            dialect,
            permit: None,
            together: None,
            placing: None,
            tokens: None,
            started,
            observation,
        })
    }

    /// Refuses a request that cannot even be read, because its body is longer than `limit` bytes.
    pub fn too_large(&self, path: &str, limit: usize) -> Denied {
        self.refuse(&Refusal::BodyTooLarge(limit), Api::of(path).dialect())
    }

    /// Picks an endpoint and reserves a place on it.
    ///
    /// # Errors
    /// [`Denied`]: there is none.
    pub fn choose(
        &self,
        mut asked: Asked,
        headers: &HeaderMap,
        wanted: &Wanted<'_>,
    ) -> Result<Choice, Denied> {
        let placed = self.pick(&mut asked, headers, wanted);
        // The next router's turn.
        drop(asked.placing.take());
        match placed {
            Ok(Placed {
                addresses,
                scores,
                picked,
                among,
            }) => {
                asked.observation.chosen();
                asked
                    .observation
                    .predicted(&picked.reservation, picked.cached_tokens);
                let hinted = picked
                    .kv_hints
                    .and_then(|hints| with_hints(asked.info.api, &asked.body, &hints));
                let changed = || asked.changed.then(|| asked.body.clone());
                Ok(Choice {
                    addresses,
                    scores,
                    request_headers: picked.request_headers,
                    response_headers: picked.response_headers,
                    body: hinted.or_else(changed),
                    passing: Passing::new(asked, picked.reservation, picked.via, among),
                })
            }
            Err(refusal) => Err(asked.refuse(&refusal)),
        }
    }

    fn pick(
        &self,
        asked: &mut Asked,
        headers: &HeaderMap,
        wanted: &Wanted<'_>,
    ) -> Result<Placed, Refusal> {
        let Asked {
            info,
            class,
            body,
            observation,
            ..
        } = asked;
        let view = self.shared.view().load();
        let whole = view
            .route_of(class, info)
            .map_err(|why| Refusal::unroutable(why, &info.model))?;
        let narrowed;
        let route: &Route = match wanted.subset {
            None => &whole,
            Some(subset) => {
                let inside =
                    |e: &&Arc<Endpoint>| (wanted.address)(&e.spec().target).is_some_and(subset);
                narrowed = Route {
                    pool: Arc::clone(&whole.pool),
                    endpoints: whole.endpoints.iter().filter(inside).cloned().collect(),
                };
                &narrowed
            }
        };
        let begun = Instant::now();
        let prompt = PromptIn {
            prompt: &info.prompt,
            body,
        };
        let media = media_sizes(&prompt);
        let request = SchedulingRequest {
            together: asked.together.as_ref(),
            ..class
                .scheduling(info, headers, &prompt, &media)
                .with_tokens(asked.tokens.as_deref())
        };
        let mut tried = Tried::default();
        loop {
            let mut record = wanted.scores.then(Decision::default);
            let recording = observation.record.as_mut();
            let recorded = recording.and_then(|recording| recording.decide(&request));
            let picked = route.pool.policy.scheduler.schedule(
                &request,
                route,
                &tried,
                now_ms(),
                self.random(),
                recorded.or(record.as_mut()),
            );
            if let Some(recording) = &mut observation.record {
                if let (Some(record), Some(recorded)) = (&mut record, recording.decision()) {
                    record.clone_from(recorded);
                }
                match &picked {
                    Ok(picked) => recording.picked(&picked.reservation, picked.via.as_deref()),
                    Err(_) => recording.came_of_it("not-picked"),
                }
            }
            let picked = picked.inspect_err(|_| not_picked(&observation.labels().target))?;
            match (wanted.address)(&picked.destination().spec().target) {
                Some(address) => {
                    self.metrics.scheduling.record(begun.elapsed());
                    let mut addresses = vec![address];
                    if wanted.fallbacks > 0 {
                        add_fallbacks(&mut addresses, route, &picked, wanted);
                    }
                    let scores = record.map(|record| scores(&record, route, wanted));
                    return Ok(Placed {
                        addresses,
                        scores: scores.unwrap_or_default(),
                        picked,
                        among: Arc::clone(&route.endpoints),
                    });
                }
                // Its name is not known yet: as good as unreachable.
                None => {
                    if let Some(recording) = &mut observation.record {
                        recording.came_of_it("no-address");
                    }
                    tried.add(Arc::clone(picked.reservation.endpoint()));
                }
            }
        }
    }

    fn refuse(&self, refusal: &Refusal, dialect: Dialect) -> Denied {
        self.metrics.other().requests.increment(1);
        self.metrics.other().error(refusal.metric_code());
        if let Some(reason) = refusal.dropped_reason() {
            dropped(reason);
        }
        denied(refusal, dialect)
    }

    /// The next number of the generator (splitmix64, as in Steele, Lea and Flood 2014).
    fn random(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(GAMMA, Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The totals of the profile that gave the pick, by address.
fn scores(record: &Decision, route: &Route, wanted: &Wanted<'_>) -> Vec<(SocketAddr, f64)> {
    let best = record.picked.first();
    // The last one: before a profile of the same outcome there may have been a round that the breaker refused.
    let profile = record
        .profiles
        .iter()
        .rfind(|profile| profile.picked.first() == best);
    let Some(profile) = profile else {
        return Vec::new();
    };
    let scored = profile.endpoints.iter().zip(&profile.totals);
    let totals: HashMap<&str, f64> = scored.map(|(name, total)| (&**name, *total)).collect();
    let endpoints = route.endpoints.iter();
    endpoints
        .filter_map(|endpoint| {
            let total = totals.get(endpoint.name())?;
            Some(((wanted.address)(&endpoint.spec().target)?, *total))
        })
        .collect()
}

/// Adds what the scheduler named as next best, then the other usable endpoints, the least busy first.
fn add_fallbacks(
    addresses: &mut Vec<SocketAddr>,
    route: &Route,
    picked: &Picked,
    wanted: &Wanted<'_>,
) {
    /// Figures of engines older than this (ms) count for nothing.
    const FRESH: u64 = 5_000;
    let now = now_ms();
    let mut others: Vec<_> = route
        .endpoints
        .iter()
        .filter_map(|e| Some((e.tier(now)?, e.busyness(now, FRESH), e)))
        .collect();
    others.sort_by_key(|(tier, busyness, _)| (*tier, *busyness));
    let named = picked.fallbacks.iter();
    for endpoint in named.chain(others.into_iter().map(|(_, _, e)| e)) {
        if addresses.len() > wanted.fallbacks {
            return;
        }
        if let Some(address) = (wanted.address)(&endpoint.spec().target)
            && !addresses.contains(&address)
            && !Arc::ptr_eq(endpoint, picked.reservation.endpoint())
        {
            addresses.push(address);
        }
    }
}
