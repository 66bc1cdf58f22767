//! An answer on an HTTP/2 stream, which can be taken back from a client that does not read it.
//!
//! HTTP/2 has a window for each stream: a client that leaves one closed stops that stream alone, and nothing at the socket tells.
//! What does tell is that the next frame of the body is not asked for after one has been handed over. The answer is taken
//! back then, which frees the engine at once; the client gets a reset stream when it reads on.

use crate::body::{BrokenOff, UpstreamBody};
use crate::client::InFlight;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use quorate_routing::now_ms;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

/// See the module's documentation.
pub(crate) struct Watched {
    answer: Mutex<Option<(Box<UpstreamBody>, Option<InFlight>)>>,
    /// When a frame was handed over (ms); 0: it is the engine's turn.
    handed: AtomicU64,
}

impl Watched {
    /// Watches over an answer that counts as in flight.
    pub fn new(body: Box<UpstreamBody>, in_flight: InFlight) -> Self {
        Self {
            answer: Mutex::new(Some((body, Some(in_flight)))),
            // The head waits for the client, too.
            handed: AtomicU64::new(now_ms()),
        }
    }

    /// Takes the answer back if the client has taken nothing for `limit`.
    pub fn cut_if_stalled(&self, limit: Duration) {
        let handed = self.handed.load(Relaxed);
        let stalled = Duration::from_millis(now_ms().saturating_sub(handed)) >= limit;
        if handed != 0 && stalled {
            tracing::debug!("a client does not read its HTTP/2 stream: given up");
            drop(self.answer.lock().take());
        }
    }

    pub fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let mut answer = self.answer.lock();
        let Some((body, _)) = answer.as_mut() else {
            return Poll::Ready(Some(Err(BrokenOff)));
        };
        let polled = body.poll_next(cx);
        let handed = matches!(polled, Poll::Ready(Some(_)));
        self.handed
            .store(if handed { now_ms() } else { 0 }, Relaxed);
        polled
    }

    pub fn is_over(&self) -> bool {
        self.answer
            .lock()
            .as_ref()
            .is_some_and(|(body, _)| body.is_over())
    }

    pub fn size_hint(&self) -> SizeHint {
        self.answer
            .lock()
            .as_ref()
            .map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}
