//! The outermost stage: every request has an id and a trace context, in what goes to the engine and in what comes back.
//!
//! `x-request-id` is kept if the client sent a usable one. `traceparent` (W3C Trace Context, version 00) is kept if it is
//! valid; else a trace is started, marked as sampled, since a missing header would leave that to the engine, whose default
//! is to sample.

use crate::headers::{REQUEST_ID, TRACEPARENT};
use crate::worker::Worker;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower::{Layer, Service};

pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Longest request id that is taken from a client, in bytes.
const MAX_ID: usize = 128;

/// Makes [`Trace`].
#[derive(Clone)]
pub(crate) struct TraceLayer(pub Arc<Worker>);

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace {
            worker: Arc::clone(&self.0),
            inner,
        }
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Trace<S> {
    worker: Arc<Worker>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Unpin,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Traced<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = complete(request.headers_mut(), || self.worker.random()).id;
        Traced {
            inner: self.inner.call(request),
            id: Some(id),
        }
    }
}

/// What [`complete`] did.
pub(crate) struct Completed {
    /// The request's id.
    pub id: HeaderValue,
    /// It was made here.
    pub new_id: bool,
    /// The trace begins here.
    pub new_trace: bool,
}

/// Makes sure that there is an id and a trace context.
pub(crate) fn complete(headers: &mut HeaderMap, random: impl Fn() -> u64) -> Completed {
    let sent = headers
        .get(REQUEST_ID)
        .filter(|id| is_usable_id(id))
        .cloned();
    let new_id = sent.is_none();
    let id = sent.unwrap_or_else(|| {
        let id = new_id_from([random(), random()]);
        headers.insert(REQUEST_ID, id.clone());
        id
    });
    let new_trace = !headers
        .get(TRACEPARENT)
        .is_some_and(|value| is_traceparent(value.as_bytes()));
    if new_trace {
        headers.insert(TRACEPARENT, new_traceparent([random(), random(), random()]));
        headers.remove(TRACESTATE);
    }
    Completed {
        id,
        new_id,
        new_trace,
    }
}

/// Puts the request id on the answer.
pub(crate) struct Traced<F> {
    inner: F,
    id: Option<HeaderValue>,
}

impl<F: Future<Output = Result<Response<R>, E>> + Unpin, R, E> Future for Traced<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut result = ready!(Pin::new(&mut self.inner).poll(cx));
        if let (Ok(response), Some(id)) = (&mut result, self.id.take()) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        Poll::Ready(result)
    }
}

fn is_usable_id(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    !bytes.is_empty() && bytes.len() <= MAX_ID && bytes.iter().all(u8::is_ascii_graphic)
}

/// Version 00: `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not all zero. A later version may have more behind it.
fn is_traceparent(value: &[u8]) -> bool {
    let hex = |range: std::ops::Range<usize>| {
        value
            .get(range)
            .is_some_and(|part| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    let some = |range: std::ops::Range<usize>| {
        value
            .get(range)
            .is_some_and(|part| part.iter().any(|b| *b != b'0'))
    };
    let dash = |at: usize| value.get(at) == Some(&b'-');
    let end = match value.get(..2) {
        Some(b"00") => value.len() == 55,
        Some(b"ff") | None => false,
        Some(_) => value.len() == 55 || dash(55),
    };
    end && hex(0..2)
        && dash(2)
        && hex(3..35)
        && some(3..35)
        && dash(35)
        && hex(36..52)
        && some(36..52)
        && dash(52)
        && hex(53..55)
}

fn new_id_from(random: [u64; 2]) -> HeaderValue {
    let mut text = [b'0'; 32];
    for (half, number) in text.chunks_exact_mut(16).zip(random) {
        write_hex(half, number);
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

fn new_traceparent([a, b, c]: [u64; 3]) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    // An id must not be zero; the chance is as good as none, the rule is a rule.
    for (start, number) in [(3, a | 1), (19, b), (36, c | 1)] {
        if let Some(part) = text.get_mut(start..start + 16) {
            write_hex(part, number);
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

/// Sixteen lower-case digits.
fn write_hex(into: &mut [u8], number: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (i, byte) in into.iter_mut().enumerate() {
        let shift = 60 - 4 * (i as u32 % 16);
        *byte = DIGITS[(number >> shift) as usize & 15];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn knows_a_traceparent() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good.as_bytes()));
        assert!(is_traceparent(good.replacen("00", "01", 1).as_bytes()));
        assert!(is_traceparent(
            format!("{}-more", good.replacen("00", "cc", 1)).as_bytes()
        ));
        for bad in [
            String::new(),
            format!("{good}-more"),
            good.replacen("00", "ff", 1),
            good.to_uppercase(),
            good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            good[..54].to_owned(),
            good.replace('-', "_"),
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_is_valid(random in any::<[u64; 3]>()) {
            prop_assert!(is_traceparent(new_traceparent(random).as_bytes()));
            let id = new_id_from([random[0], random[1]]);
            prop_assert_eq!(id.to_str().unwrap(), format!("{:016x}{:016x}", random[0], random[1]));
            prop_assert!(is_usable_id(&id));
        }
    }
}
