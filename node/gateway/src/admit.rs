//! The stage that holds a request back while its pool is full, where the pool has flow control. A pool that is not full costs a few
//! atomic operations and no wait.

use crate::call::Call;
use crate::error::Refusal;
use crate::metrics::{Labels, dropped};
use crate::observe::End;
use quorate_routing::flow::{Admission, FlowRequest, Outcome};
use quorate_routing::{Class, RequestInfo};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tower::{Layer, Service};

/// Makes [`Admit`].
#[derive(Clone, Copy)]
pub(crate) struct AdmitLayer;

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit(inner)
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Admit<S>(S);

impl<S> Service<Call> for Admit<S>
where
    S: Service<Call, Error = Refusal> + Clone + Unpin,
    S::Future: Unpin,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Admitting<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut call: Call) -> Self::Future {
        let Some(flow) = call.class.pool.policy.flow.clone() else {
            return Admitting::Inner(self.0.call(call));
        };
        let deadline = call
            .total_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let labels = call.observation.labels();
        let request = flow_request(&call.class, &call.info, &call.body, labels, deadline);
        match flow.try_admit(&request) {
            Some(permit) => {
                call.observation.not_queued(&call.class.pool.spec.name);
                call.permit = Some(permit);
                if let Some(record) = &mut call.observation.record {
                    record.left_queue(Outcome::Dispatched);
                }
                Admitting::Inner(self.0.call(call))
            }
            None => {
                let admission = flow.admit(request);
                if let Some(record) = &mut call.observation.record {
                    record.queued();
                }
                Admitting::Waiting {
                    admission,
                    waiting: Some(Box::new((call, self.0.clone()))),
                }
            }
        }
    }
}

/// A request as flow control sees it; `body` is what goes to the engine.
pub(crate) fn flow_request<'a>(
    class: &'a Class,
    info: &RequestInfo<'_>,
    body: &[u8],
    labels: &'a Labels,
    deadline: Option<Duration>,
) -> FlowRequest<'a> {
    let slo = class.slo_ttft_ms.map(|ms| ms / 1e3);
    FlowRequest {
        fairness_id: class.flow(),
        priority: class.priority,
        bytes: body.len() as u64,
        tokens: info.prompt.estimated_tokens(body),
        deadline,
        deadline_hidden: class.timeout.is_some() && class.timeout_of_stranger,
        slo_ttft: slo.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        model: &labels.model,
        target_model: &labels.target,
    }
}

/// The answer to come. Dropped while it waits, the request leaves the queue.
pub(crate) enum Admitting<S: Service<Call>> {
    Inner(S::Future),
    Waiting {
        admission: Admission,
        waiting: Option<Box<(Call, S)>>,
    },
}

impl<S> Future for Admitting<S>
where
    S: Service<Call, Error = Refusal> + Unpin,
    S::Future: Unpin,
{
    type Output = Result<S::Response, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut *self {
                Self::Inner(inner) => return Pin::new(inner).poll(cx),
                Self::Waiting { admission, waiting } => {
                    let admitted = ready!(Pin::new(admission).poll(cx));
                    let Some((mut call, mut inner)) = waiting.take().map(|waiting| *waiting) else {
                        return Poll::Pending;
                    };
                    if let Some(record) = &mut call.observation.record {
                        let outcome = admitted.as_ref().err().copied();
                        record.left_queue(outcome.unwrap_or(Outcome::Dispatched));
                    }
                    match admitted {
                        Ok(permit) => {
                            call.permit = Some(permit);
                            let inner = inner.call(call);
                            self.set(Self::Inner(inner));
                        }
                        Err(outcome) => {
                            let refusal = Refusal::Flow(outcome);
                            if let Some(reason) = refusal.dropped_reason() {
                                dropped(reason);
                            }
                            let mut observation = call.observation;
                            observation.refused(&refusal);
                            observation.end(End::Error(refusal.metric_code()));
                            return Poll::Ready(Err(refusal));
                        }
                    }
                }
            }
        }
    }
}
