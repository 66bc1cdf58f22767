//! A request that is held back while its pool is full.

use super::{Asked, Denied, Picker};
use crate::admit::flow_request;
use crate::error::Refusal;
use quorate_routing::flow::{Admission, Outcome, Permit};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A request that may go on, now or later.
pub enum Admitted {
    /// The pool has room, or no flow control.
    Now(Box<Asked>),
    /// It is queued.
    Later(Waiting),
}

/// A request in the queue. Dropped, it leaves the queue.
pub struct Waiting {
    asked: Option<Box<Asked>>,
    admission: Admission,
}

impl Picker {
    /// Asks the pool's flow control, if it has one. A pool that is not full costs a few atomic operations and no wait.
    pub fn admit(&self, asked: Asked) -> Admitted {
        let mut asked = Box::new(asked);
        let Some(flow) = asked.class.pool.policy.flow.clone() else {
            return Admitted::Now(asked);
        };
        let request = flow_request(
            &asked.class,
            &asked.info,
            &asked.body,
            asked.observation.labels(),
            None,
        );
        match flow.try_admit(&request) {
            Some(permit) => {
                asked.permit = Some(permit);
                Admitted::Now(asked)
            }
            None => {
                let admission = flow.admit(request);
                Admitted::Later(Waiting {
                    admission,
                    asked: Some(asked),
                })
            }
        }
    }
}

impl Waiting {
    /// The request, once it may go on, or why it may not.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Asked>, Denied>> {
        let Poll::Ready(admitted) = Pin::new(&mut self.admission).poll(cx) else {
            return Poll::Pending;
        };
        let Some(asked) = self.asked.take() else {
            return Poll::Pending;
        };
        Poll::Ready(settled(asked, admitted))
    }
}

fn settled(mut asked: Box<Asked>, admitted: Result<Permit, Outcome>) -> Result<Box<Asked>, Denied> {
    match admitted {
        Ok(permit) => {
            asked.permit = Some(permit);
            Ok(asked)
        }
        Err(outcome) => Err(asked.refuse(&Refusal::Flow(outcome))),
    }
}
