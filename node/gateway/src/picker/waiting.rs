//! A request that is held back while its pool is full, or until those that come with it are there.

use super::{Asked, Denied, Picker};
use crate::admit::flow_request;
use crate::error::Refusal;
use crate::gather::Gathering;
use crate::worker::GatewayShared;
use quorate_routing::flow::{Admission, Outcome};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A request that may go on, now or later.
pub enum Admitted {
    /// The pool has room, or no flow control.
    Now(Box<Asked>),
    /// It is held back.
    Later(Waiting),
}

/// A request that is held back. Dropped, it leaves the queue.
pub struct Waiting {
    shared: Arc<GatewayShared>,
    asked: Option<Box<Asked>>,
    what_for: WaitsFor,
}

enum WaitsFor {
    Room(Admission),
    Others(Gathering),
}

impl Picker {
    /// Asks the pool's flow control, if it has one. A pool that is not full costs a few atomic operations and no wait.
    pub fn admit(&self, asked: Asked) -> Admitted {
        let mut asked = Box::new(asked);
        let later = |asked, what_for| {
            Admitted::Later(Waiting {
                shared: Arc::clone(&self.shared),
                asked: Some(asked),
                what_for,
            })
        };
        if let Some(flow) = asked.class.pool.policy.flow.clone() {
            let elapsed = asked.started.elapsed();
            let deadline = asked.class.timeout.map(|all| all.saturating_sub(elapsed));
            let request = flow_request(
                &asked.class,
                &asked.info,
                &asked.body,
                asked.observation.labels(),
                deadline,
            );
            match flow.try_admit(&request) {
                Some(permit) => {
                    asked.observation.not_queued(&asked.class.pool.spec.name);
                    asked.permit = Some(permit);
                    if let Some(record) = &mut asked.observation.record {
                        record.left_queue(Outcome::Dispatched);
                    }
                }
                None => {
                    let admission = flow.admit(request);
                    if let Some(record) = &mut asked.observation.record {
                        record.queued();
                    }
                    return later(asked, WaitsFor::Room(admission));
                }
            }
        }
        match gather(&self.shared, &asked) {
            None => Admitted::Now(asked),
            Some(gathering) => later(asked, WaitsFor::Others(gathering)),
        }
    }
}

fn gather(shared: &GatewayShared, asked: &Asked) -> Option<Gathering> {
    Gathering::join(&asked.class, &asked.info, &asked.body, || {
        let view = shared.view().load();
        let route = view.route_of(&asked.class, &asked.info).ok()?;
        Some(Arc::clone(&route.endpoints))
    })
}

impl Waiting {
    /// The request, once it may go on, or why it may not.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Asked>, Denied>> {
        if let WaitsFor::Room(admission) = &mut self.what_for {
            let admitted = ready!(Pin::new(admission).poll(cx));
            let Some(mut asked) = self.asked.take() else {
                return Poll::Pending;
            };
            if let Some(record) = &mut asked.observation.record {
                let outcome = admitted.as_ref().err().copied();
                record.left_queue(outcome.unwrap_or(Outcome::Dispatched));
            }
            match admitted {
                Ok(permit) => asked.permit = Some(permit),
                Err(outcome) => return Poll::Ready(Err(asked.refuse(&Refusal::Flow(outcome)))),
            }
            let Some(gathering) = gather(&self.shared, &asked) else {
                return Poll::Ready(Ok(asked));
            };
            self.what_for = WaitsFor::Others(gathering);
            self.asked = Some(asked);
        }
        let WaitsFor::Others(gathering) = &mut self.what_for else {
            return Poll::Pending;
        };
        let together = ready!(Pin::new(gathering).poll(cx));
        let Some(mut asked) = self.asked.take() else {
            return Poll::Pending;
        };
        asked.together = Some(together);
        Poll::Ready(Ok(asked))
    }
}
