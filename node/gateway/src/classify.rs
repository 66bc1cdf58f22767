//! The stage that says what a parsed request is: its pool, the model to ask for, its priority and flow; and that changes its body
//! where another model is asked for, or usage that the client did not ask for.

use crate::authenticate::Session;
use crate::call::{Call, Parsed};
use crate::change::Changes;
use crate::client::Client;
use crate::deadline::after;
use crate::error::Refusal;
use crate::headers::REQUEST_ID;
use crate::metrics::{Metrics, RequestMetrics, dropped, rewritten};
use crate::observe::{AccessEntry, Observation};
use crate::record::{Beginning, Recording};
use crate::worker::Worker;
use bytes::Bytes;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, request};
use quorate_routing::classify::strip_classifying;
use quorate_routing::request::edit::Edit;
use quorate_routing::{Caller, Class, RequestInfo, RoutingView};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{Layer, Service};

/// Makes [`Classify`].
#[derive(Clone)]
pub(crate) struct ClassifyLayer(pub Arc<Worker>);

impl<S> Layer<S> for ClassifyLayer {
    type Service = Classify<S>;

    fn layer(&self, inner: S) -> Classify<S> {
        Classify {
            worker: Arc::clone(&self.0),
            inner,
        }
    }
}

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Classify<S> {
    worker: Arc<Worker>,
    inner: S,
}

impl<S> Service<Parsed> for Classify<S>
where
    S: Service<Call, Error = Refusal>,
    S::Future: Unpin,
{
    type Response = S::Response;
    type Error = Refusal;
    type Future = Classified<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, parsed: Parsed) -> Self::Future {
        match classify(&self.worker, parsed) {
            Ok(call) => Classified::Inner(self.inner.call(call)),
            Err(refusal) => {
                let metrics = &self.worker.core.metrics;
                metrics.other().requests.increment(1);
                metrics.other().error(refusal.metric_code());
                if let Some(reason) = refusal.dropped_reason() {
                    dropped(reason);
                }
                Classified::Refused(Some(refusal))
            }
        }
    }
}

/// The answer to come.
pub(crate) enum Classified<F> {
    Inner(F),
    Refused(Option<Refusal>),
}

impl<F, R> Future for Classified<F>
where
    F: Future<Output = Result<R, Refusal>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match &mut *self {
            Self::Inner(inner) => Pin::new(inner).poll(cx),
            Self::Refused(refusal) => Poll::Ready(Err(refusal.take().unwrap_or(Refusal::NoRoute))),
        }
    }
}

fn classify(worker: &Worker, parsed: Parsed) -> Result<Call, Refusal> {
    let core = &worker.core;
    let Parsed {
        mut parts,
        mut body,
        mut info,
        client,
        caller,
        started,
    } = parsed;
    let view = core.shared.view().load();
    let (class, metrics) = place(
        &view,
        &core.metrics,
        &info,
        &parts.headers,
        &caller,
        worker.random(),
    )?;
    drop(view);
    if !caller.trusted {
        strip_classifying(&mut parts.headers);
    }
    let access = access_entry(worker, &parts, &client);
    let mut observation = Observation::begin(&core.metrics, metrics, started, body.len(), access);
    observation.session = parts.extensions.remove::<Arc<Session>>();
    observation.record = Recording::begin(
        &core.shared,
        || worker.random(),
        &Beginning {
            door: "gateway",
            headers: &parts.headers,
            trusted: caller.trusted,
            started,
            info: &info,
            class: &class,
            session: observation.session.as_deref(),
        },
    );
    let (edited, changes) = edit(&mut info, &class, core.config.stream_usage, &body);
    if let Some(edited) = edited {
        body = edited;
        // What is compressed cannot be changed back.
        parts.headers.remove(ACCEPT_ENCODING);
    }
    let configured = core.config.total_timeout.limit();
    let total = [configured, class.timeout].into_iter().flatten().min();
    Ok(Call {
        parts,
        body,
        info,
        class,
        permit: None,
        together: None,
        tokens: None,
        hinted: None,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        changes,
        client,
        total_at: total.map(|limit| after(started, limit)),
        observation,
    })
}

/// What a request is to routing, and the metrics that it counts in.
///
/// # Errors
/// [`Refusal`]: it goes nowhere.
pub(crate) fn place(
    view: &RoutingView,
    metrics: &Metrics,
    info: &RequestInfo<'_>,
    headers: &HeaderMap,
    caller: &Caller,
    random: u64,
) -> Result<(Class, Arc<RequestMetrics>), Refusal> {
    let class = quorate_routing::classify(view, info, headers, caller, random)
        .map_err(|why| Refusal::unroutable(why, &info.model))?;
    // The `model` of an API that needs none may be anything: it becomes a label only if a pool serves it.
    let named =
        !info.model.is_empty() && (info.api.needs_model() || view.route(&info.model).is_some());
    let metrics = metrics.request(named.then_some(&*info.model), &class);
    if let Some(rewrite) = &class.rewrite {
        rewritten(rewrite, &metrics.labels);
    }
    Ok((class, metrics))
}

/// The body as it goes to the engine, if that is another than the client's, and what must be undone in the answer.
pub(crate) fn edit(
    info: &mut RequestInfo<'_>,
    class: &Class,
    stream_usage: bool,
    body: &[u8],
) -> (Option<Bytes>, Changes) {
    let strip_usage =
        stream_usage && info.stream && info.api.asks_for_usage() && !info.include_usage;
    let names = class
        .target
        .as_ref()
        .filter(|_| !info.model.is_empty())
        .map(|target| (Arc::from(&*info.model), Arc::clone(target)));
    let changes = Changes { names, strip_usage };
    if class.target.is_none() && !strip_usage {
        return (None, changes);
    }
    let edit = Edit {
        model: class.target.as_deref(),
        include_usage: strip_usage,
    };
    (edit.apply(info, body).map(Bytes::from), changes)
}

/// The beginning of an access-log line, for the share of requests that get one.
fn access_entry(
    worker: &Worker,
    parts: &request::Parts,
    client: &Client,
) -> Option<Box<AccessEntry>> {
    let share = worker.core.config.access_log;
    if share <= 0.0
        || (share < 1.0 && (worker.random() >> 11) as f64 / (1u64 << 53) as f64 >= share)
    {
        return None;
    }
    let id = parts
        .headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default();
    Some(Box::new(AccessEntry {
        request_id: id.to_owned(),
        client: client.ip,
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        status: 0,
        endpoint: String::new(),
        attempts: 0,
    }))
}
