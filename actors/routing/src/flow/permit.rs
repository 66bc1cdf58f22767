//! What a caller of flow control holds: a place in the queue, then a permit.

use crate::flow::FlowControl;
use crate::flow::eviction::{Revocation, VictimKey};
use crate::flow::outcome::Outcome;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The right to have one request in flight, from dispatch to the end of its stream. Dropping it, for whatever reason, gives the
/// place to the next in the queue at once.
pub struct Permit {
    pub(super) flow: Arc<FlowControl>,
    pub(super) tokens: u64,
    /// Whose it is, where the fairness policy wants to know what it got.
    pub(super) fairness_id: Option<Arc<str>>,
    pub(super) victim: Option<(VictimKey, Arc<Revocation>)>,
}

impl Permit {
    /// The prompt has been processed: its tokens are no longer in flight.
    pub fn first_token(&mut self) {
        self.flow.release_tokens(std::mem::take(&mut self.tokens));
    }

    /// What the request got, as the engine's usage says. Only fairness policies that look at service need it.
    pub fn served(&self, prompt_tokens: u64, completion_tokens: u64) {
        if let Some(fairness_id) = &self.fairness_id {
            self.flow
                .serve(fairness_id, prompt_tokens, completion_tokens);
        }
    }

    /// Ready once the request has to give way to one of a higher band: end its stream with [`Outcome::Revoked`] and drop this.
    pub fn poll_revoked(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.victim {
            Some((_, revocation)) => revocation.poll(cx),
            None => Poll::Pending,
        }
    }

    /// Whether the request may have to give way at all.
    pub fn is_revocable(&self) -> bool {
        self.victim.is_some()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.flow.release_tokens(self.tokens);
        self.flow.release(self.victim.take().map(|(key, _)| key));
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit")
            .field("pool", &self.flow.pool())
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

enum Wait {
    Waiting(Option<Waker>),
    Done(Result<Permit, Outcome>),
    Taken,
}

/// Where a queued request hears of its fate.
pub(super) struct Waiter(Mutex<Wait>);

impl Waiter {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Wait::Waiting(None))))
    }

    /// Settles it. Called once, by whoever took it out of the queue; gives the waker to call when no lock is held.
    pub(super) fn settle(&self, result: Result<Permit, Outcome>) -> Option<Waker> {
        match std::mem::replace(&mut *self.0.lock(), Wait::Done(result)) {
            Wait::Waiting(waker) => waker,
            _ => None,
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<Permit, Outcome>> {
        let mut wait = self.0.lock();
        match &mut *wait {
            Wait::Waiting(waker) => {
                match waker {
                    Some(known) => known.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            _ => match std::mem::replace(&mut *wait, Wait::Taken) {
                Wait::Done(result) => Poll::Ready(result),
                // Polled again after it was ready.
                _ => Poll::Pending,
            },
        }
    }

    /// What was settled, if it was and nobody took it.
    pub(super) fn take(&self) -> Option<Result<Permit, Outcome>> {
        let mut wait = self.0.lock();
        if matches!(*wait, Wait::Waiting(_)) {
            return None;
        }
        match std::mem::replace(&mut *wait, Wait::Taken) {
            Wait::Done(result) => Some(result),
            _ => None,
        }
    }
}

pub(super) enum State {
    Ready(Result<Permit, Outcome>),
    Queued { waiter: Arc<Waiter>, id: u64 },
    Done,
}

/// A request on its way through flow control. Dropping it before it is ready takes the request out of the queue without a trace;
/// a place that it was given in that moment goes to the next.
#[must_use = "a request that nobody awaits is not admitted"]
pub struct Admission {
    pub(super) flow: Arc<FlowControl>,
    pub(super) state: State,
}

impl Admission {
    /// It did not have to wait (so far).
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }
}

impl Future for Admission {
    type Output = Result<Permit, Outcome>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match &self.state {
            State::Queued { waiter, .. } => match waiter.poll(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => return Poll::Pending,
            },
            State::Done => return Poll::Pending,
            State::Ready(_) => match std::mem::replace(&mut self.state, State::Done) {
                State::Ready(result) => return Poll::Ready(result),
                _ => return Poll::Pending,
            },
        };
        self.state = State::Done;
        Poll::Ready(result)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let State::Queued { waiter, id } = &self.state {
            self.flow.cancel(*id);
            // A permit that it was given meanwhile; its drop passes the place on.
            drop(waiter.take());
        }
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Ready(result) => return f.debug_tuple("Admission").field(result).finish(),
            State::Queued { .. } => "queued",
            State::Done => "done",
        };
        f.debug_tuple("Admission").field(&state).finish()
    }
}
