//! A heavy request's wait for its router's turn, where several routers are likely to be placing heavy requests at the same moment.

use crate::metrics::{TURN_WAIT, TURNS};
use bytes::Bytes;
use metrics::{counter, histogram};
use quorate_routing::tokens::PromptTokens;
use quorate_routing::turns::{HEAVY_TOKENS, LATE_MS, Placing, Turn};
use quorate_routing::{Class, RequestInfo, SharedView};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// A request that waits for its turn. Dropped, it waits no longer.
pub(crate) struct TakingTurn {
    turn: Turn,
    since: Instant,
    late: Pin<Box<Sleep>>,
}

impl TakingTurn {
    /// Asks for a turn; `None`: the request is not heavy, there is only one endpoint for it, or nobody is likely to place beside this router. `body`
    /// is what goes to the engine.
    pub fn ask(
        view: &SharedView,
        class: &Class,
        info: &RequestInfo<'_>,
        body: &Bytes,
        tokens: Option<&PromptTokens>,
    ) -> Option<Self> {
        let tokens = match tokens {
            Some(tokens) => tokens.ids.len() as u64,
            None => info.prompt.estimated_tokens(body),
        };
        if tokens < HEAVY_TOKENS {
            return None;
        }
        let route = view.load().route_of(class, info).ok()?;
        let [first, _, ..] = &*route.endpoints else {
            return None;
        };
        Some(Self {
            turn: first.turn()?,
            since: Instant::now(),
            late: Box::pin(tokio::time::sleep(Duration::from_millis(LATE_MS))),
        })
    }
}

impl Future for TakingTurn {
    /// To be dropped when the request has its place; `None`: the turn did not come in time.
    type Output = Option<Placing>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let placing = match Pin::new(&mut self.turn).poll(cx) {
            Poll::Ready(placing) => Some(placing),
            Poll::Pending => match self.late.as_mut().poll(cx) {
                Poll::Ready(()) => None,
                Poll::Pending => return Poll::Pending,
            },
        };
        let result = if placing.is_some() { "begun" } else { "late" };
        counter!(TURNS, "result" => result).increment(1);
        histogram!(TURN_WAIT).record(self.since.elapsed());
        Poll::Ready(placing)
    }
}
