//! The innermost stage: picks and reserves an endpoint, sends the request, and moves on to another endpoint while nothing has
//! gone to the client, within the attempts and the budget.
//!
//! What moves on: no connection, a connection that broke before the answer began, and 502, 503, 504. A first-byte timeout does
//! not: the engine may well be at work on the request. A pool of one endpoint is tried again only if no connection could be
//! made. The fallbacks that the decision named go before another decision. If nothing is left to try, the client gets the last thing that happened.

use crate::body::{GatewayBody, UpstreamBody, fail, is_unavailable};
use crate::call::Call;
use crate::error::Refusal;
use crate::gather::Gathering;
use crate::headers;
use crate::hints::with_hints;
use crate::metrics::{dropped, not_picked, retried};
use crate::observe::End;
use crate::tokenize::tokenize;
use crate::turn::TakingTurn;
use crate::upstream::{self, Answer, Failed};
use crate::worker::Worker;
use http::Response;
use quorate_routing::classify::media_sizes;
use quorate_routing::flow::Outcome;
use quorate_routing::request::PromptIn;
use quorate_routing::{
    BreakerState, Endpoint, Failure, Reservation, SchedulingRequest, Tried, now_ms,
};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tower::Service;

/// Wait before the only endpoint of a pool is tried again; doubled each time.
const SAME_ENDPOINT_WAIT: Duration = Duration::from_millis(50);

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Forward(pub Arc<Worker>);

impl Service<Call> for Forward {
    type Response = Response<GatewayBody>;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Refusal>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let worker = Arc::clone(&self.0);
        Box::pin(async move { forward(&worker, call).await })
    }
}

/// What happened at an endpoint, kept in case nothing better follows.
enum Last {
    /// A 502, 503 or 504 that has not been passed on.
    Answer(Box<Answer>, Reservation),
    /// No answer.
    Failed(Failed),
}

async fn forward(worker: &Worker, mut call: Call) -> Result<Response<GatewayBody>, Refusal> {
    let core = &worker.core;
    core.budget.deposit();
    if let Some(tokenizing) = tokenize(&core.shared, &call.class, &call.info, &call.body) {
        call.tokens = tokenizing.await;
    }
    let gathering = Gathering::join(&call.class, &call.info, &call.body, || {
        let view = core.shared.view().load();
        let route = view.route_of(&call.class, &call.info).ok()?;
        Some(Arc::clone(&route.endpoints))
    });
    if let Some(gathering) = gathering {
        call.together = Some(gathering.await);
    }
    let tokens = call.tokens.as_deref();
    let view = core.shared.view();
    let mut placing = match TakingTurn::ask(view, &call.class, &call.info, &call.body, tokens) {
        Some(turn) => turn.await,
        None => None,
    };
    let mut tried = Tried::default();
    let mut attempts = 0;
    let mut last: Option<Last> = None;
    let mut reason = "";
    let mut fallbacks = Fallbacks::default();
    loop {
        let picked = pick(worker, &mut call, &tried, &mut fallbacks);
        // The next router's turn.
        drop(placing.take());
        let picked = match picked {
            Ok(picked) => picked,
            Err(refusal) => {
                if last.is_some() {
                    core.budget.refund();
                }
                return conclude(worker, call, last, refusal);
            }
        };
        if last.is_some() {
            retried(reason);
        }
        // The connection of an answer that is not passed on can be used again if the rest of it is there.
        if let Some(Last::Answer(mut answer, _)) = last.take() {
            poll_fn(|cx| {
                if answer.source.read_out(cx) {
                    answer.source.release();
                }
                Poll::Ready(())
            })
            .await;
        }
        attempts += 1;
        if let Some(access) = &mut call.observation.access {
            access.attempts = attempts;
            access.endpoint = picked.destination().name().to_owned();
        }
        let destination = picked.destination();
        let answer = upstream::send(core, &worker.upstreams, destination, &call).await;
        if let Some(record) = &mut call.observation.record {
            match &answer {
                Ok(answer) => {
                    let status = answer.head.status;
                    record.answered(status, !is_unavailable(status));
                }
                Err(failed) => record.came_of_it(failed.as_str()),
            }
        }
        let retry_same = match answer {
            Ok(answer) if is_unavailable(answer.head.status) => {
                fail(
                    &picked.reservation,
                    Failure::Status(answer.head.status.as_u16()),
                );
                tried.add(Arc::clone(picked.reservation.endpoint()));
                last = Some(Last::Answer(Box::new(answer), picked.reservation));
                reason = "status";
                false
            }
            Ok(answer) => return Ok(respond(worker, call, answer, picked.reservation)),
            Err(failed) => {
                if let Some(failure) = failed.failure() {
                    fail(&picked.reservation, failure);
                }
                last = Some(Last::Failed(failed));
                if matches!(failed, Failed::FirstByte | Failed::Total | Failed::Revoked) {
                    return conclude(worker, call, last, Refusal::TotalTimeout);
                }
                let connect = failed == Failed::Connect;
                reason = if connect { "connect" } else { "reset" };
                if !(connect && picked.only) {
                    tried.add(Arc::clone(picked.reservation.endpoint()));
                }
                connect && picked.only
            }
        };
        if attempts >= core.config.retry.max_attempts {
            return conclude(worker, call, last, Refusal::Connect);
        }
        if !core.budget.withdraw(now_ms()) {
            core.metrics.retries_denied.increment(1);
            return conclude(worker, call, last, Refusal::Connect);
        }
        if retry_same {
            tokio::time::sleep(SAME_ENDPOINT_WAIT * (1 << (attempts - 1).min(5))).await;
        }
    }
}

/// An endpoint with a place reserved on it.
struct Picked {
    reservation: Reservation,
    /// The endpoint that passes the request on to the picked one.
    via: Option<Arc<Endpoint>>,
    /// There is no other endpoint that the request could go to.
    only: bool,
}

impl Picked {
    fn destination(&self) -> &Arc<Endpoint> {
        self.via.as_ref().unwrap_or(self.reservation.endpoint())
    }
}

/// What the first decision named in case that its pick fails.
#[derive(Default)]
struct Fallbacks {
    /// In the order in which they are tried.
    endpoints: std::vec::IntoIter<Arc<Endpoint>>,
    /// Prompt tokens that the request counts.
    tokens: u64,
}

impl Fallbacks {
    /// The next one that can be used, with a place reserved on it.
    fn next(&mut self, tried: &Tried) -> Option<Reservation> {
        let (now, tokens) = (now_ms(), self.tokens);
        self.endpoints
            .by_ref()
            .filter(|endpoint| !tried.contains(endpoint) && endpoint.tier(now).is_some())
            .find_map(|endpoint| endpoint.reserve_with(now, tokens))
    }
}

/// Takes the next fallback of an earlier decision, else asks the current view and the pool's scheduler.
fn pick(
    worker: &Worker,
    call: &mut Call,
    tried: &Tried,
    fallbacks: &mut Fallbacks,
) -> Result<Picked, Refusal> {
    if let Some(reservation) = fallbacks.next(tried) {
        if let Some(record) = &mut call.observation.record {
            record.fallback();
            record.picked(&reservation, None);
        }
        call.observation.predicted(&reservation, None);
        call.hinted = None;
        return Ok(Picked {
            reservation,
            via: None,
            only: false,
        });
    }
    let core = &worker.core;
    let view = core.shared.view().load();
    let route = view
        .route_of(&call.class, &call.info)
        .map_err(|why| Refusal::unroutable(why, &call.info.model))?;
    let begun = Instant::now();
    let prompt = PromptIn {
        prompt: &call.info.prompt,
        body: &call.body,
    };
    let media = media_sizes(&prompt);
    let request = SchedulingRequest {
        together: call.together.as_ref(),
        ..call
            .class
            .scheduling(&call.info, &call.parts.headers, &prompt, &media)
            .with_tokens(call.tokens.as_deref())
    };
    let picked = route.pool.policy.scheduler.schedule(
        &request,
        &route,
        tried,
        now_ms(),
        worker.random(),
        call.observation
            .record
            .as_mut()
            .and_then(|record| record.decide(&request)),
    );
    core.metrics.scheduling.record(begun.elapsed());
    if let Some(record) = &mut call.observation.record {
        match &picked {
            Ok(picked) => record.picked(&picked.reservation, picked.via.as_deref()),
            Err(_) => record.came_of_it("not-picked"),
        }
    }
    match picked {
        Ok(picked) => {
            call.observation.chosen();
            call.observation
                .predicted(&picked.reservation, picked.cached_tokens);
            call.hinted = picked
                .kv_hints
                .and_then(|hints| with_hints(call.info.api, &call.body, &hints));
            call.request_headers = picked.request_headers;
            call.response_headers = picked.response_headers;
            // A fallback is reached directly; what passes requests on has its own list.
            if picked.via.is_none() {
                *fallbacks = Fallbacks {
                    endpoints: picked.fallbacks.into_iter(),
                    tokens: picked.reservation.tokens(),
                };
            }
            Ok(Picked {
                reservation: picked.reservation,
                via: picked.via,
                only: route.endpoints.len() == 1,
            })
        }
        Err(why) => {
            not_picked(&call.observation.labels().target);
            Err(why.into())
        }
    }
}

/// Nothing more is tried: the client gets the last thing that happened, or `refusal` if nothing did.
fn conclude(
    worker: &Worker,
    call: Call,
    last: Option<Last>,
    refusal: Refusal,
) -> Result<Response<GatewayBody>, Refusal> {
    let refusal = match last {
        Some(Last::Answer(answer, reservation)) => {
            return Ok(respond(worker, call, *answer, reservation));
        }
        Some(Last::Failed(Failed::Connect)) => Refusal::Connect,
        Some(Last::Failed(Failed::Reset)) => Refusal::Reset,
        Some(Last::Failed(Failed::FirstByte)) => Refusal::FirstByteTimeout,
        Some(Last::Failed(Failed::Total)) => Refusal::TotalTimeout,
        Some(Last::Failed(Failed::Revoked)) => Refusal::Flow(Outcome::Revoked),
        None => refusal,
    };
    if let Some(reason) = refusal.dropped_reason() {
        dropped(reason);
    }
    let mut observation = call.observation;
    observation.refused(&refusal);
    observation.end(End::Error(refusal.metric_code()));
    Err(refusal)
}

/// Passes an answer on.
fn respond(
    worker: &Worker,
    mut call: Call,
    answer: Answer,
    reservation: Reservation,
) -> Response<GatewayBody> {
    let Answer {
        mut head,
        source,
        first,
        deadline,
    } = answer;
    headers::to_client(&mut head.headers);
    for (name, value) in call.response_headers.drain(..) {
        head.headers.insert(name, value);
    }
    // A trial has shown that the endpoint works; the end of a long stream would be late for that.
    if reservation.endpoint().breaker_state(now_ms()) != BreakerState::Closed
        && !is_unavailable(head.status)
    {
        reservation.succeeded();
    }
    if let Some(access) = &mut call.observation.access {
        access.status = head.status.as_u16();
    }
    if let Some(record) = &mut call.observation.record {
        record.status(head.status);
        record.served_by(reservation.endpoint());
    }
    let body = UpstreamBody::new(
        &worker.core,
        call,
        &mut head,
        source,
        first,
        deadline,
        reservation,
    );
    let mut response = Response::new(GatewayBody::upstream(body));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}
