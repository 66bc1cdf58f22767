//! The record of a request in the making: see [`quorate_routing::explain`]. Only requests that are recorded have one; the others pay
//! for a look whether they are.

use crate::error::Refusal;
use crate::usage::Usage;
use crate::worker::GatewayShared;
use http::{HeaderMap, HeaderName, StatusCode};
use quorate_routing::explain::{Attempt, FlowRecord, Recorder, RequestFacts, RequestRecord};
use quorate_routing::flow::Outcome;
use quorate_routing::pipeline::Name;
use quorate_routing::{
    Class, Decision, Endpoint, RequestInfo, Reservation, SchedulingRequest, now_ms,
};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::authenticate::Session;
use crate::headers::REQUEST_ID;

/// With this header a trusted caller has its request recorded, whatever share is.
const ASK: HeaderName = HeaderName::from_static("x-quorate-explain");

/// See the module's documentation.
pub(crate) struct Recording {
    recorder: Arc<Recorder>,
    /// What decided that it is recorded.
    random: u64,
    started: Instant,
    queued: Option<Instant>,
    record: RequestRecord,
}

/// What a record begins with.
pub(crate) struct Beginning<'a> {
    /// `gateway` or `ext-proc`.
    pub door: &'static str,
    pub headers: &'a HeaderMap,
    /// It may ask to be recorded.
    pub trusted: bool,
    pub started: Instant,
    pub info: &'a RequestInfo<'a>,
    pub class: &'a Class,
    pub session: Option<&'a Session>,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn name_of(endpoint: &Endpoint) -> Name {
    Name::from(&endpoint.spec().name)
}

impl Recording {
    /// Begins a record if the request is to have one. `random` gives a fresh random number.
    pub fn begin(
        shared: &GatewayShared,
        random: impl FnOnce() -> u64,
        of: &Beginning<'_>,
    ) -> Option<Box<Self>> {
        let recorder = shared.recorder()?;
        let random = random();
        let asked = of.trusted && of.headers.contains_key(ASK);
        if !recorder.wants(random, now_ms(), asked) {
            return None;
        }
        Some(Box::new(Self {
            recorder: Arc::clone(recorder),
            random,
            started: of.started,
            queued: None,
            record: record(shared, of),
        }))
    }

    /// It has to wait.
    pub fn queued(&mut self) {
        self.queued = Some(Instant::now());
    }

    /// It has left flow control.
    pub fn left_queue(&mut self, outcome: Outcome) {
        // Who is refused at the door has not waited.
        let refused = matches!(
            outcome,
            Outcome::RejectedCapacity
                | Outcome::RejectedNoEndpoints
                | Outcome::RejectedShuttingDown
        );
        let since = self.queued.filter(|_| !refused);
        self.record.flow = Some(FlowRecord {
            queued: since.is_some(),
            queue_ms: since.map_or(0.0, |since| ms(since.elapsed())),
            outcome: outcome.as_str().into(),
        });
    }

    fn attempt(&mut self, decision: Option<Decision>) {
        self.record.attempts.push(Attempt {
            at_ms: ms(self.started.elapsed()),
            decision,
            ..Attempt::default()
        });
    }

    /// A decision is about to be made: where to write it down.
    pub fn decide(&mut self, request: &SchedulingRequest<'_>) -> Option<&mut Decision> {
        if self.record.request.is_none() {
            self.record.request = Some(RequestFacts::of(request));
        }
        self.attempt(Some(Decision::default()));
        self.record.attempts.last_mut()?.decision.as_mut()
    }

    /// The last decision.
    pub fn decision(&self) -> Option<&Decision> {
        self.record.attempts.last()?.decision.as_ref()
    }

    /// A fallback of the decision before is used: no decision is made.
    pub fn fallback(&mut self) {
        self.attempt(None);
    }

    /// Where the request goes.
    pub fn picked(&mut self, reservation: &Reservation, via: Option<&Endpoint>) {
        if let Some(attempt) = self.record.attempts.last_mut() {
            attempt.endpoint = Some(name_of(reservation.endpoint()));
            attempt.via = via.map(name_of);
        }
    }

    /// What came of the last attempt.
    pub fn came_of_it(&mut self, outcome: &str) {
        if let Some(attempt) = self.record.attempts.last_mut() {
            attempt.outcome = outcome.into();
        }
    }

    /// The client's status.
    pub fn status(&mut self, status: StatusCode) {
        self.record.ending.status = status.as_u16();
    }

    /// An engine answered, and its answer is passed on or another one is asked for a better one.
    pub fn answered(&mut self, status: StatusCode, passed_on: bool) {
        if passed_on {
            self.status(status);
            self.came_of_it("answered");
        } else {
            self.came_of_it(&format!("status {}", status.as_u16()));
        }
    }

    /// Who served it, where that is another one than the pick.
    pub fn served_by(&mut self, endpoint: &Endpoint) {
        self.record.ending.endpoint = Some(name_of(endpoint));
    }

    /// The client gets no engine's answer.
    pub fn refused(&mut self, refusal: &Refusal) {
        self.record.ending.status = refusal.status().as_u16();
        self.record.ending.dropped_reason = refusal.dropped_reason().map(Name::from);
    }

    /// The request is over.
    pub fn finish(mut self, end: &str, duration: Duration, first: Option<Instant>, usage: Usage) {
        if self.queued.is_some() && self.record.flow.is_none() {
            // It was dropped while it waited.
            self.left_queue(Outcome::EvictedContextCancelled);
        }
        let last = self.record.attempts.last_mut();
        let answered = last.filter(|attempt| &*attempt.outcome == "answered");
        let ending = &mut self.record.ending;
        if ending.endpoint.is_none() {
            ending.endpoint = answered.and_then(|attempt| attempt.endpoint.clone());
        }
        ending.end = end.into();
        ending.duration_ms = ms(duration);
        ending.ttft_ms = first.map(|first| ms(first.duration_since(self.started)));
        ending.input_tokens = usage.input;
        ending.output_tokens = usage.output;
        ending.cached_tokens = usage.cached;
        self.recorder.finish(self.record, self.random);
    }
}

fn record(shared: &GatewayShared, of: &Beginning<'_>) -> RequestRecord {
    let (info, class) = (of.info, of.class);
    let id = of.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    // When it came, not when it had come as a whole.
    let came = SystemTime::now().checked_sub(of.started.elapsed());
    let since = came.and_then(|came| came.duration_since(SystemTime::UNIX_EPOCH).ok());
    RequestRecord {
        request_id: id.unwrap_or_default().to_owned(),
        node: shared.node().to_string(),
        time_ms: since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0)),
        door: of.door.into(),
        pool: Name::from(&class.pool.spec.name),
        model: info.model.to_string(),
        target_model: class.target.as_deref().unwrap_or(&info.model).to_owned(),
        rewrite: class.rewrite.as_ref().map(Name::from),
        tenant: of.session.map(|s| s.caller.grant().tenant.to_string()),
        fairness_id: class.flow().to_owned(),
        objective: class.objective.as_ref().map(Name::from),
        priority: class.priority,
        ..RequestRecord::default()
    }
}
