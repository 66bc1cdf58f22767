//! Requests that wait a moment for others with the same prompt, where the pool's scheduling asks for that, so that all of them are
//! placed at once.

use bytes::Bytes;
use http::HeaderMap;
use quorate_routing::plugin::producer::burst_prefix::{Seat, Together};
use quorate_routing::request::PromptIn;
use quorate_routing::{Class, Endpoint, RequestInfo};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::time::Sleep;

/// A request that waits for its window to close. Dropped, it is no longer part of it.
pub(crate) struct Gathering {
    seat: Option<Seat>,
    closes: Pin<Box<Sleep>>,
}

impl Gathering {
    /// Takes a request into the window that is open; `None`: the pool has none, or the request has nothing to wait for.
    pub fn join(
        class: &Class,
        info: &RequestInfo<'_>,
        body: &Bytes,
        endpoints: impl FnOnce() -> Option<Arc<[Arc<Endpoint>]>>,
    ) -> Option<Self> {
        let burst = class.pool.policy.burst.as_ref()?;
        let prompt = PromptIn {
            prompt: &info.prompt,
            body,
        };
        // Of the request's head nothing is asked for.
        let headers = HeaderMap::new();
        let request = class.scheduling(info, &headers, &prompt, &[]);
        let seat = burst.join(&request, &endpoints()?, Instant::now())?;
        Some(Self {
            closes: Box::pin(tokio::time::sleep_until(seat.closes().into())),
            seat: Some(seat),
        })
    }
}

impl Future for Gathering {
    type Output = Together;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Together> {
        ready!(self.closes.as_mut().poll(cx));
        Poll::Ready(self.seat.take().map(Seat::take).unwrap_or_default())
    }
}
