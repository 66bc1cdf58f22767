//! The stage that turns an HTTP request into a [`Parsed`] one: checks the method, reads the whole body within its limits, and
//! parses what routing needs out of it. The body itself stays as it came.

use crate::call::Parsed;
use crate::client::Client;
use crate::deadline::{Deadline, after};
use crate::error::Refusal;
use crate::worker::{Core, Worker};
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request};
use http_body::Body;
use quorate_routing::{Api, Caller, RequestInfo};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tower::{Layer, Service};

/// Makes [`Parse`] for one client connection.
#[derive(Clone)]
pub(crate) struct ParseLayer {
    pub worker: Arc<Worker>,
    pub client: Arc<Client>,
}

impl<S> Layer<S> for ParseLayer {
    type Service = Parse<S>;

    fn layer(&self, inner: S) -> Parse<S> {
        Parse {
            worker: Arc::clone(&self.worker),
            client: Arc::clone(&self.client),
            inner,
        }
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Parse<S> {
    worker: Arc<Worker>,
    client: Arc<Client>,
    inner: S,
}

impl<S, B> Service<Request<B>> for Parse<S>
where
    S: Service<Parsed, Error = Refusal> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Refusal>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let started = Instant::now();
        let Self {
            worker,
            client,
            mut inner,
        } = self.clone();
        Box::pin(async move {
            let core = &worker.core;
            match parse(core, client, request, started).await {
                Ok(parsed) => inner.call(parsed).await,
                Err(refusal) => {
                    core.metrics.other().requests.increment(1);
                    core.metrics.other().error(refusal.metric_code());
                    Err(refusal)
                }
            }
        })
    }
}

async fn parse<B>(
    core: &Core,
    client: Arc<Client>,
    request: Request<B>,
    started: Instant,
) -> Result<Parsed, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let api = check(core.config.passthrough, &parts.method, parts.uri.path())?;
    let body = read(core, body, started).await?;
    let info = understand(api, &body)?;
    let caller = Caller {
        trusted: client.trusted,
        ..Caller::default()
    };
    Ok(Parsed {
        parts,
        body,
        info,
        client,
        caller,
        started,
    })
}

/// The API of a request, if it is taken at all.
///
/// # Errors
/// [`Refusal`]: the path or the method is not served.
pub(crate) fn check(passthrough: bool, method: &Method, path: &str) -> Result<Api, Refusal> {
    let api = Api::of(path);
    if api == Api::Native {
        if !passthrough || *method == Method::CONNECT {
            return Err(Refusal::NoRoute);
        }
    } else if *method != Method::POST {
        return Err(Refusal::MethodNotAllowed("POST"));
    }
    Ok(api)
}

/// What routing needs out of a whole body.
///
/// # Errors
/// [`Refusal`]: not a body of this API.
pub(crate) fn understand(api: Api, body: &[u8]) -> Result<RequestInfo<'static>, Refusal> {
    RequestInfo::parse(api, body)
        .map(RequestInfo::into_owned)
        .map_err(|error| Refusal::BadBody(error.to_string()))
}

/// Reads a body within its length and its time: a fixed time, and more for each byte that came.
async fn read<B>(core: &Core, body: B, started: Instant) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let max = core.config.max_body_bytes;
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let announced = body
        .size_hint()
        .exact()
        .map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
    if announced > max {
        return Err(Refusal::BodyTooLarge(max));
    }
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut whole: Option<BytesMut> = None;
    let mut deadline = Deadline::default();
    poll_fn(|cx| {
        loop {
            let received = whole.as_ref().map_or(first.len(), BytesMut::len);
            match body.as_mut().poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(Refusal::BodyBroken(error.to_string())));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    if received + data.len() > max {
                        return Poll::Ready(Err(Refusal::BodyTooLarge(max)));
                    }
                    // Nearly always the body is one piece and is not copied.
                    if received == 0 {
                        first = data;
                    } else {
                        whole
                            .get_or_insert_with(|| {
                                let mut whole = BytesMut::with_capacity(
                                    announced.max(2 * (received + data.len())),
                                );
                                whole.put_slice(&first);
                                whole
                            })
                            .put_slice(&data);
                    }
                    if body.is_end_stream() {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Pending => {
                    let granted = Duration::from_millis(
                        (received as u64).saturating_mul(1000) / core.config.body_min_rate,
                    );
                    let limit = core.config.body_timeout.0.saturating_add(granted);
                    return if deadline.has_passed(cx, after(started, limit)) {
                        Poll::Ready(Err(Refusal::BodyTimeout))
                    } else {
                        Poll::Pending
                    };
                }
            }
        }
    })
    .await?;
    Ok(whole.map_or(first, BytesMut::freeze))
}
