//! What is measured of one request, from its arrival to its last byte, and where it is recorded.

use crate::authenticate::Session;
use crate::error::Refusal;
use crate::gaps::Gaps;
use crate::metrics::{Labels, Metrics, Predicted, RequestMetrics};
use crate::record::Recording;
use crate::usage::Usage;
use http::Method;
use quorate_routing::{Reservation, now_ms};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The whole answer went out.
    Complete,
    /// The client went away.
    ClientGone,
    /// The engine or the gateway gave an error; the value is the `error_code` label.
    Error(&'static str),
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::Error(code) => code,
        }
    }
}

/// One line of the access log, gathered while the request runs. Only made for requests that are logged.
#[derive(Debug)]
pub(crate) struct AccessEntry {
    pub request_id: String,
    pub client: IpAddr,
    pub method: Method,
    pub path: String,
    /// The answer's status; 0 until there is one.
    pub status: u16,
    /// The endpoint that answered.
    pub endpoint: String,
    /// Endpoints asked.
    pub attempts: u32,
}

/// Running measurement of one request. Dropped without [`Observation::end`], it counts as given up by the client.
pub(crate) struct Observation {
    metrics: Arc<Metrics>,
    model: Arc<RequestMetrics>,
    started: Instant,
    streaming: bool,
    first: Option<Instant>,
    last_token: Option<Instant>,
    /// Times between token events; there if the answer is a stream.
    gaps: Option<Box<Gaps>>,
    token_events: u64,
    response_bytes: u64,
    usage: Usage,
    /// What the pick believed of the endpoint's cache.
    predicted: Option<Predicted>,
    /// An endpoint has been chosen.
    chosen: bool,
    /// Spent on the answer so far.
    processing: Duration,
    ended: bool,
    /// Who is billed for the tokens; open until this is dropped.
    pub session: Option<Arc<Session>>,
    pub access: Option<Box<AccessEntry>>,
    /// There if the request is recorded.
    pub record: Option<Box<Recording>>,
}

impl Observation {
    /// Begins with a parsed request of `body_bytes` that arrived at `started`.
    pub fn begin(
        metrics: &Arc<Metrics>,
        model: Arc<RequestMetrics>,
        started: Instant,
        body_bytes: usize,
        access: Option<Box<AccessEntry>>,
    ) -> Self {
        model.requests.increment(1);
        model.running.increment(1.0);
        model.request_size.record(body_bytes as f64);
        Self {
            metrics: Arc::clone(metrics),
            model,
            started,
            streaming: false,
            first: None,
            last_token: None,
            gaps: None,
            token_events: 0,
            response_bytes: 0,
            usage: Usage::default(),
            predicted: None,
            chosen: false,
            processing: Duration::ZERO,
            ended: false,
            session: None,
            access,
            record: None,
        }
    }

    /// Flow control let it go at once.
    pub fn not_queued(&self, pool: &Arc<str>) {
        self.model.not_queued(pool);
    }

    /// An endpoint has been chosen, for the first time or again.
    pub fn chosen(&mut self) {
        if !std::mem::replace(&mut self.chosen, true) {
            self.metrics.processing.record(self.started.elapsed());
        }
    }

    /// The pick believes that its endpoint has so many tokens of the prompt cached; `None`: it knows nothing.
    pub fn predicted(&mut self, reservation: &Reservation, cached_tokens: Option<u64>) {
        let predict = |tokens| self.metrics.predicted(reservation.endpoint(), tokens);
        self.predicted = cached_tokens.map(predict);
    }

    /// A piece of the answer has been looked into and changed.
    pub fn processed(&mut self, took: Duration) {
        self.processing += took;
    }

    /// The answer is a stream of events.
    pub fn set_streaming(&mut self) {
        self.streaming = true;
        self.gaps = Some(Box::default());
    }

    /// Body bytes came at `now`, with `tokens` token events in them if the answer is a stream.
    pub fn body(&mut self, now: Instant, bytes: usize, tokens: u32) {
        self.response_bytes += bytes as u64;
        if !self.streaming {
            if self.first.is_none() {
                self.first = Some(now);
                self.model.ttft.record(now.duration_since(self.started));
            }
            return;
        }
        if tokens == 0 {
            return;
        }
        self.token_events += u64::from(tokens);
        match self.last_token {
            // Tokens that came together share the time since the one before.
            Some(last) => {
                let each = now.duration_since(last).as_secs_f64() / f64::from(tokens);
                if let Some(gaps) = &mut self.gaps {
                    gaps.add(each, tokens);
                }
            }
            None => {
                self.first = Some(now);
                self.model
                    .ttft_streaming
                    .record(now.duration_since(self.started));
            }
        }
        self.last_token = Some(now);
    }

    /// The labels it is recorded under.
    pub fn labels(&self) -> &Labels {
        &self.model.labels
    }

    /// What the engine said about tokens.
    pub fn usage(&mut self, usage: Usage) {
        self.usage.merge(usage);
    }

    /// The client gets no engine's answer.
    pub fn refused(&mut self, refusal: &Refusal) {
        if let Some(access) = &mut self.access {
            access.status = refusal.status().as_u16();
        }
        if let Some(record) = &mut self.record {
            record.refused(refusal);
        }
    }

    /// The request is over.
    pub fn end(mut self, end: End) {
        self.finish(end);
    }

    fn finish(&mut self, end: End) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let duration = self.started.elapsed();
        if !self.processing.is_zero() {
            self.metrics.response_processing.record(self.processing);
        }
        let model = &self.model;
        model.running.decrement(1.0);
        let output = self
            .usage
            .output
            .or((self.token_events > 0).then_some(self.token_events));
        if let Some(gaps) = &self.gaps {
            // An event may hold several tokens: where the engine has said how many there were, they share its time. An answer
            // that was cut short has said nothing, or something of what was still to come.
            let tokens = self.usage.output.filter(|_| end == End::Complete);
            gaps.record(tokens.map(|tokens| tokens.saturating_sub(1)), &model.itl);
        }
        match end {
            End::Complete => {
                model.duration.record(duration);
                model.response_size.record(self.response_bytes as f64);
                if let Some(tokens) = self.usage.input {
                    model.input_tokens.record(tokens as f64);
                }
                if let Some(tokens) = self.usage.cached {
                    model.cached_tokens.record(tokens as f64);
                    if let Some(predicted) = &self.predicted {
                        predicted.compare(tokens, self.usage.input);
                    }
                }
                if let Some(tokens) = output {
                    model.output_tokens.record(tokens as f64);
                    self.record_tpot(tokens);
                    if tokens > 0 {
                        model.ntpot.record(duration.as_secs_f64() / tokens as f64);
                    }
                }
            }
            End::ClientGone => self.metrics.aborts.increment(1),
            End::Error(code) => {
                model.duration.record(duration);
                model.error(code);
            }
        }
        if let Some(session) = &self.session {
            session.ongoing.tokens(self.tokens(), now_ms());
        }
        if let Some(access) = &self.access {
            log_access(access, self, end, duration);
        }
        if let Some(record) = self.record.take() {
            let usage = Usage {
                output,
                ..self.usage
            };
            record.finish(end.as_str(), duration, self.first, usage);
        }
    }

    /// Tokens of prompt and answer, as far as they are known; a stream that was cut has at least those that were seen.
    fn tokens(&self) -> u64 {
        let output = self.usage.output.unwrap_or(self.token_events);
        self.usage.input.unwrap_or(0).saturating_add(output)
    }

    fn record_tpot(&self, output: u64) {
        if let (true, Some(first), Some(last)) = (
            output > 1,
            self.first.filter(|_| self.streaming),
            self.last_token,
        ) {
            let span = last.duration_since(first).as_secs_f64();
            self.model.tpot.record(span / (output - 1) as f64);
        }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.finish(End::ClientGone);
    }
}

fn log_access(access: &AccessEntry, seen: &Observation, end: End, duration: Duration) {
    let first_ms = seen
        .first
        .map(|first| first.duration_since(seen.started).as_secs_f64() * 1e3);
    tracing::info!(
        target: "quorate::access",
        request_id = access.request_id,
        client = %access.client,
        method = %access.method,
        path = access.path,
        status = access.status,
        model = &*seen.model.labels.model,
        target_model = &*seen.model.labels.target,
        endpoint = access.endpoint,
        attempts = access.attempts,
        end = end.as_str(),
        duration_ms = duration.as_secs_f64() * 1e3,
        first_ms,
        response_bytes = seen.response_bytes,
        input_tokens = seen.usage.input,
        output_tokens = seen.usage.output,
        "request"
    );
}
