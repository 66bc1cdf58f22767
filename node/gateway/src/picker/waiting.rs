//! A request that is held back while its pool is full, until its prompt has been tokenized, until those that come with it are there, or until
//! it is this router's turn.

use super::{Asked, Denied, Picker};
use crate::admit::flow_request;
use crate::error::Refusal;
use crate::gather::Gathering;
use crate::tokenize::{Tokenizing, tokenize};
use crate::turn::TakingTurn;
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
    Tokens(Tokenizing),
    Others(Gathering),
    Turn(TakingTurn),
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
        match after_room(&self.shared, &asked) {
            None => Admitted::Now(asked),
            Some(what_for) => later(asked, what_for),
        }
    }
}

/// What a request that has its place waits for, if anything.
fn after_room(shared: &GatewayShared, asked: &Asked) -> Option<WaitsFor> {
    match tokenize(shared, &asked.class, &asked.info, &asked.body) {
        Some(tokenizing) => Some(WaitsFor::Tokens(tokenizing)),
        None => after_tokens(shared, asked),
    }
}

/// What a request that has its tokens waits for.
fn after_tokens(shared: &GatewayShared, asked: &Asked) -> Option<WaitsFor> {
    match gather(shared, asked) {
        Some(gathering) => Some(WaitsFor::Others(gathering)),
        None => take_turn(shared, asked),
    }
}

/// What a request waits for at last.
fn take_turn(shared: &GatewayShared, asked: &Asked) -> Option<WaitsFor> {
    let tokens = asked.tokens.as_deref();
    TakingTurn::ask(
        shared.view(),
        &asked.class,
        &asked.info,
        &asked.body,
        tokens,
    )
    .map(WaitsFor::Turn)
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
        loop {
            let next = match &mut self.what_for {
                WaitsFor::Room(admission) => {
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
                        Err(outcome) => {
                            return Poll::Ready(Err(asked.refuse(&Refusal::Flow(outcome))));
                        }
                    }
                    let next = after_room(&self.shared, &asked);
                    self.asked = Some(asked);
                    next
                }
                WaitsFor::Tokens(tokenizing) => {
                    let tokens = ready!(tokenizing.as_mut().poll(cx));
                    let Some(asked) = &mut self.asked else {
                        return Poll::Pending;
                    };
                    asked.tokens = tokens;
                    after_tokens(&self.shared, asked)
                }
                WaitsFor::Others(gathering) => {
                    let together = ready!(Pin::new(gathering).poll(cx));
                    let Some(asked) = &mut self.asked else {
                        return Poll::Pending;
                    };
                    asked.together = Some(together);
                    take_turn(&self.shared, asked)
                }
                WaitsFor::Turn(turn) => {
                    let placing = ready!(Pin::new(turn).poll(cx));
                    if let Some(asked) = &mut self.asked {
                        asked.placing = placing;
                    }
                    None
                }
            };
            match next {
                Some(next) => self.what_for = next,
                None => {
                    return match self.asked.take() {
                        Some(asked) => Poll::Ready(Ok(asked)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }
}
