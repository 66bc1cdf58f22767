//! Response bodies: whole, streamed event by event, cut off, slowed down.

use super::shapes::Shape;
use crate::fault::{Cut, CutAction, RequestFault};
use crate::instance::Conn;
use crate::live::{Live, SeqHandle};
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// The body was closed before its end, on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut off by a simulated fault")]
pub struct CutOff;

/// A response body.
pub struct SimBody(Kind);

enum Kind {
    Full(Bytes),
    Half(Box<HalfBody>),
    Stream(Box<EventStream>),
    Slow(Box<SlowBody>),
}

/// The first half of a body, then silence or the end of the connection.
struct HalfBody {
    half: Bytes,
    whole_len: u64,
    flushed: bool,
    cutter: Cutter,
}

impl HalfBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        if self.half.has_remaining() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.half)))));
        }
        if !self.flushed {
            // Pending once, so that the half is on the wire before the cut.
            self.flushed = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.cutter.cut()
    }
}

/// Carries out a cut.
pub struct Cutter {
    action: CutAction,
    fault: RequestFault,
    conn: Arc<Conn>,
    live: Arc<Live>,
}

impl Cutter {
    /// Prepares the cut of a request.
    pub fn new(cut: Cut, fault: RequestFault, conn: Arc<Conn>, live: Arc<Live>) -> Self {
        Cutter {
            action: cut.action,
            fault,
            conn,
            live,
        }
    }

    fn cut(&self) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match self.action {
            CutAction::Stall => {}
            CutAction::Close => return Poll::Ready(Some(Err(CutOff))),
            CutAction::Reset => self.conn.reset(),
            CutAction::Crash => self.live.shared.crash_for(&self.fault),
        }
        // Nothing wakes this body again: the connection goes, or the client does.
        Poll::Pending
    }
}

impl SimBody {
    /// A whole body.
    pub fn full(body: Vec<u8>) -> Self {
        SimBody(Kind::Full(body.into()))
    }

    /// A body that breaks off in its middle.
    pub fn half(body: Vec<u8>, cutter: Cutter) -> Self {
        let whole_len = body.len() as u64;
        let mut half = Bytes::from(body);
        half.truncate(half.len() / 2);
        SimBody(Kind::Half(Box::new(HalfBody {
            half,
            whole_len,
            flushed: false,
            cutter,
        })))
    }

    /// A stream of events.
    pub fn events(stream: EventStream) -> Self {
        SimBody(Kind::Stream(Box::new(stream)))
    }

    /// The same body at so many bytes a second.
    pub fn slowed(self, bytes_per_s: u32) -> Self {
        SimBody(Kind::Slow(Box::new(SlowBody {
            inner: self,
            bytes_per_s,
            rest: Bytes::new(),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })))
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        match &mut self.0 {
            Kind::Full(bytes) if bytes.has_remaining() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Kind::Full(_) => Poll::Ready(None),
            Kind::Half(half) => half.poll(cx),
            Kind::Stream(stream) => stream.poll(cx),
            Kind::Slow(slow) => slow.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Kind::Full(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Half(half) => SizeHint::with_exact(half.whole_len),
            Kind::Stream(_) => SizeHint::default(),
            Kind::Slow(slow) => slow.inner.size_hint(),
        }
    }
}

/// Server-sent events, one flush each: after every event the body is pending once, which makes hyper write it out.
pub struct EventStream {
    handles: Vec<SeqHandle>,
    sent: Vec<u32>,
    ended: usize,
    shape: Box<dyn Shape>,
    queue: VecDeque<Bytes>,
    flushed: bool,
    closed: bool,
    tokens: u32,
    cut: Option<(u32, Cutter)>,
}

impl EventStream {
    /// A stream of what the sequences say, written in a shape.
    pub fn new(
        handles: Vec<SeqHandle>,
        mut shape: Box<dyn Shape>,
        cut: Option<(u32, Cutter)>,
    ) -> Self {
        let mut queue = VecDeque::new();
        shape.open(&mut queue);
        let sent = vec![0; handles.len()];
        EventStream {
            handles,
            sent,
            ended: 0,
            shape,
            queue,
            flushed: true,
            closed: false,
            tokens: 0,
            cut,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        loop {
            if !self.flushed {
                self.flushed = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(event) = self.queue.pop_front() {
                // The last event may share its write with the end of the body.
                self.flushed = self.closed && self.queue.is_empty();
                return Poll::Ready(Some(Ok(Frame::data(event))));
            }
            if self.closed {
                return Poll::Ready(None);
            }
            if let Some((after, cutter)) = &self.cut
                && self.tokens >= *after
            {
                return cutter.cut();
            }
            if !self.next() {
                self.handles.iter().for_each(|handle| handle.register(cx));
                if !self.next() {
                    return Poll::Pending;
                }
            }
        }
    }

    /// Queues the events of one more token, or of the end. False when nothing has happened.
    fn next(&mut self) -> bool {
        for (at, handle) in self.handles.iter().enumerate() {
            let Some(sent) = self.sent.get_mut(at) else {
                continue;
            };
            if *sent == u32::MAX {
                continue;
            }
            // The reason first: once it is there, the number of tokens is final.
            let finish = handle.progress().finish();
            let emitted = handle.progress().emitted();
            let token = (emitted > *sent).then_some(*sent);
            // The last token goes out together with the reason, which is published right after it.
            let last_token = token.is_some() && *sent as usize + 1 >= handle.plan.tokens.len();
            if finish.is_none() && (token.is_none() || last_token) {
                continue;
            }
            *sent += u32::from(token.is_some());
            let last = finish.filter(|_| emitted == *sent);
            self.shape.token(at, handle, token, last, &mut self.queue);
            self.tokens += u32::from(token.is_some());
            if last.is_some() {
                *sent = u32::MAX;
                self.ended += 1;
            }
            if self.ended == self.handles.len() {
                self.shape.close(&self.handles, &mut self.queue);
                self.closed = true;
            }
            return true;
        }
        false
    }
}

/// A body handed out in small pieces at a steady rate.
struct SlowBody {
    inner: SimBody,
    bytes_per_s: u32,
    rest: Bytes,
    sleep: Pin<Box<Sleep>>,
}

impl SlowBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        ready!(self.sleep.as_mut().poll(cx));
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                other => return Poll::Ready(other),
            }
        }
        // Ten pieces a second, or single bytes where that is too many.
        let piece = (self.bytes_per_s / 10).max(1) as usize;
        let piece = self.rest.split_to(piece.min(self.rest.len()));
        let pause = Duration::from_secs_f64(piece.len() as f64 / f64::from(self.bytes_per_s));
        self.sleep.set(tokio::time::sleep(pause));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}
