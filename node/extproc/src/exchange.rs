//! One stream: one HTTP request from its head to the end of its response, as a value that is polled.
//!
//! ```text
//! New -- request head --> Gathering -- whole body --> Passing -- end of the response --> Over
//!  '-- no body ------------------- decide ---------------^
//! ```
//!
//! A refusal or an answer of the picker's own is an immediate response and the end. When Envoy goes away, the value is dropped,
//! and with it the reservation.

mod gathering;
mod returning;

use crate::answer;
use crate::modes::Modes;
use crate::received::{RequestHead, Subset};
use crate::server::Worker;
use bytes::Bytes;
use futures_util::Stream;
use gathering::{End, Gathering, Undecided};
use http::{Method, Response, StatusCode, header};
use quorate_gateway::{Admitted, Asked, Denied, Waiting};
use quorate_proto::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use quorate_proto::envoy::service::ext_proc::v3::processing_request::Request as Kinds;
use quorate_proto::envoy::service::ext_proc::v3::{
    HttpHeaders, ProcessingRequest, ProcessingResponse,
};
use returning::Returning;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tonic::{Code, Status};

/// See the module's documentation. `S` is what Envoy sends.
pub(crate) struct Exchange<S> {
    worker: Arc<Worker>,
    inbound: S,
    out: VecDeque<ProcessingResponse>,
    state: State,
    modes: Modes,
    /// Ends the stream once what is in `out` has gone.
    failed: Option<Status>,
    opened: Instant,
    /// How it ended; as long as it has not, dropping it means that Envoy gave it up.
    code: Code,
}

enum State {
    /// Nothing has come.
    New,
    /// The request's body is being gathered.
    Gathering(Box<Gathering>),
    /// The request is whole and waits for room in its pool.
    Waiting(Box<(Undecided, Waiting)>),
    /// The request has its endpoint; its response is to come or under way.
    Passing(Box<Returning>),
    /// Nothing more will be said.
    Over,
}

impl<S> Exchange<S> {
    /// A stream that was just opened.
    pub fn new(worker: Arc<Worker>, inbound: S) -> Self {
        Self {
            opened: worker.metrics.opened(),
            worker,
            inbound,
            out: VecDeque::new(),
            state: State::New,
            modes: Modes::default(),
            failed: None,
            code: Code::Cancelled,
        }
    }
}

impl<S> Drop for Exchange<S> {
    fn drop(&mut self) {
        self.worker.metrics.ended(self.opened, self.code);
    }
}

impl<S> Stream for Exchange<S>
where
    S: Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
{
    type Item = Result<ProcessingResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(message) = this.out.pop_front() {
                return Poll::Ready(Some(Ok(message)));
            }
            if let Some(status) = this.failed.take() {
                this.code = status.code();
                this.state = State::Over;
                return Poll::Ready(Some(Err(status)));
            }
            if matches!(this.state, State::Over) {
                if this.code == Code::Cancelled {
                    this.code = Code::Ok;
                }
                return Poll::Ready(None);
            }
            if this.poll_flow(cx) {
                continue;
            }
            match ready!(Pin::new(&mut this.inbound).poll_next(cx)) {
                Some(Ok(message)) => {
                    if let Err(status) = this.take(message) {
                        this.failed = Some(status);
                    }
                }
                // Too long, or not this protocol: tonic's own words.
                Some(Err(status)) => this.failed = Some(status),
                // Envoy needs no more. What it did not show is not known to have gone wrong.
                None => this.state = State::Over,
            }
        }
    }
}

impl<S> Exchange<S> {
    fn take(&mut self, message: ProcessingRequest) -> Result<(), Status> {
        if message.observability_mode {
            return Err(Status::failed_precondition(
                "observability_mode takes no answers: an endpoint cannot be picked",
            ));
        }
        if let Some(config) = &message.protocol_config {
            match Modes::read(config) {
                Ok(modes) => self.modes = modes,
                Err(why) => {
                    tracing::warn!(
                        why,
                        "a request is refused because of the proxy's configuration"
                    );
                    self.misconfigured(why);
                    return Ok(());
                }
            }
        }
        let metadata = message.metadata_context.as_ref();
        match message.request {
            Some(Kinds::RequestHeaders(head)) => {
                let subset = Subset::read(metadata);
                self.request_head(head, subset)
            }
            Some(Kinds::RequestBody(body)) => self.request_body(body.body, body.end_of_stream),
            Some(Kinds::RequestTrailers(_)) => self.request_trailers(),
            Some(Kinds::ResponseHeaders(head)) => {
                let served = crate::received::served(metadata, &message.attributes);
                if !matches!(self.state, State::Passing(_)) {
                    // Envoy's own reply, given before the endpoint was picked (a time limit, a filter before this one).
                    self.state = State::Passing(Box::new(Returning::unpicked()));
                }
                let worker = Arc::clone(&self.worker);
                let (returning, modes) = self.passing("response headers")?;
                let message = returning.head(head, served, &worker.core.addresses, modes);
                self.out.push_back(message);
                self.end_if_over();
                Ok(())
            }
            Some(Kinds::ResponseBody(body)) => {
                let (returning, modes) = self.passing("a response body")?;
                let (data, end) = (body.body, body.end_of_stream);
                let messages = returning.body(data, end, modes);
                self.out.extend(messages);
                self.end_if_over();
                Ok(())
            }
            Some(Kinds::ResponseTrailers(trailers)) => {
                let (returning, modes) = self.passing("response trailers")?;
                let messages = returning.trailers(trailers, modes);
                self.out.extend(messages);
                self.end_if_over();
                Ok(())
            }
            None => Err(Status::invalid_argument("a message without content")),
        }
    }

    /// Flow control: a request that waits may go on, or one that runs must give way. Whether something has changed.
    fn poll_flow(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.state {
            State::Waiting(waiting) => {
                let Poll::Ready(admitted) = waiting.1.poll(cx) else {
                    return false;
                };
                let State::Waiting(waiting) = std::mem::replace(&mut self.state, State::Over)
                else {
                    return false;
                };
                match admitted {
                    Ok(asked) => self.choose(waiting.0, *asked),
                    Err(denied) => self.deny(denied),
                }
                true
            }
            State::Passing(returning) => match returning.poll_revoked(cx) {
                Poll::Ready(Some(denied)) => {
                    self.deny(denied);
                    true
                }
                Poll::Ready(None) => {
                    self.failed = Some(Status::aborted(
                        "the request was revoked in favour of one of higher priority",
                    ));
                    true
                }
                Poll::Pending => false,
            },
            _ => false,
        }
    }

    /// The response under way.
    fn passing(&mut self, what: &str) -> Result<(&mut Returning, Modes), Status> {
        let modes = self.modes;
        match &mut self.state {
            State::Passing(returning) => Ok((returning, modes)),
            _ => Err(out_of_order(what)),
        }
    }

    fn end_if_over(&mut self) {
        if let State::Passing(returning) = &self.state
            && returning.is_over()
        {
            self.state = State::Over;
        }
    }

    fn request_head(&mut self, head: HttpHeaders, subset: Option<Subset>) -> Result<(), Status> {
        if !matches!(self.state, State::New) {
            return Err(out_of_order("request headers"));
        }
        let started = Instant::now();
        let bodyless = head.end_of_stream;
        let mut head = RequestHead::read(head.headers)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let picker = &self.worker.picker;
        if let Some(answer) = picker.own_answer(&head.method, &head.path, &head.headers) {
            self.immediate(answer, "own_answer");
            return Ok(());
        }
        let limit = self.worker.core.config.max_body_bytes;
        if announced(&head).is_some_and(|length| length > limit) {
            let denied = picker.too_large(&head.path, limit);
            self.deny(denied);
            return Ok(());
        }
        let credentials = head.credentials();
        let entered = match picker.enter(&head.path, &mut head.headers) {
            Ok(entered) => entered,
            Err(denied) => {
                self.deny(denied);
                return Ok(());
            }
        };
        let by_model = quorate_routing::Api::of(&head.path) != quorate_routing::Api::Native;
        let gathering = Box::new(Gathering::new(head, entered, credentials, subset, started));
        if bodyless {
            self.decide(gathering, End::Head);
        } else if self.modes.request == BodySendMode::None {
            if by_model && gathering.method() == Method::POST {
                self.misconfigured(
                    "request_body_mode NONE hides the model's name: set FULL_DUPLEX_STREAMED",
                );
            } else {
                self.decide(gathering, End::Head);
            }
        } else {
            if self.modes.request_is_buffered() {
                self.out.push_back(answer::request_head_seen());
            }
            self.state = State::Gathering(gathering);
        }
        Ok(())
    }

    fn request_body(&mut self, data: Bytes, end: bool) -> Result<(), Status> {
        let State::Gathering(mut gathering) = std::mem::replace(&mut self.state, State::Over)
        else {
            return Err(out_of_order("a request body"));
        };
        let limit = self.worker.core.config.max_body_bytes;
        let fits = gathering.push(data, limit);
        let cut = self.modes.request == BodySendMode::BufferedPartial && !end;
        if !fits || cut {
            let denied = self.worker.picker.too_large(gathering.path(), limit);
            self.deny(denied);
        } else if self.modes.request_is_buffered() {
            self.decide(gathering, End::Buffered);
        } else if end {
            self.decide(gathering, End::Body);
        } else {
            self.state = State::Gathering(gathering);
        }
        Ok(())
    }

    fn request_trailers(&mut self) -> Result<(), Status> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Gathering(_) if self.modes.request_is_buffered() => {
                self.misconfigured(
                    "a request with trailers but no body cannot be changed any more: set FULL_DUPLEX_STREAMED",
                );
                Ok(())
            }
            State::Gathering(gathering) => {
                self.decide(gathering, End::Trailers);
                Ok(())
            }
            // The decision was made with the buffered body or without one.
            passing @ State::Passing(_) => {
                self.state = passing;
                self.out.push_back(answer::request_trailers());
                Ok(())
            }
            State::New | State::Waiting(_) | State::Over => Err(out_of_order("request trailers")),
        }
    }

    /// The request is whole: picks its endpoint and says so.
    fn decide(&mut self, gathering: Box<Gathering>, end: End) {
        match gathering.ask(&self.worker, end) {
            Ok((undecided, Admitted::Now(asked))) => self.choose(undecided, *asked),
            Ok((undecided, Admitted::Later(waiting))) => {
                self.state = State::Waiting(Box::new((undecided, waiting)));
            }
            Err(denied) => self.deny(denied),
        }
    }

    fn choose(&mut self, undecided: Undecided, asked: Asked) {
        match undecided.choose(&self.worker, asked) {
            Ok(decided) => {
                self.out.extend(decided.messages);
                self.state = State::Passing(Box::new(decided.returning));
            }
            Err(denied) => self.deny(denied),
        }
    }

    fn deny(&mut self, denied: Denied) {
        self.immediate(*denied.response, denied.code);
    }

    /// The proxy's operator has to change something.
    fn misconfigured(&mut self, why: &str) {
        let error = serde_json::json!({"error": {
            "message": format!("the proxy's external processing filter is not configured for endpoint picking: {why}"),
            "type": "server_error", "param": null, "code": "proxy_misconfigured",
        }});
        let mut response = Response::new(Bytes::from(error.to_string()));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/json"),
        );
        self.immediate(response, "misconfigured");
    }

    fn immediate(&mut self, response: Response<Bytes>, details: &str) {
        self.out.push_back(answer::immediate(response, details));
        self.state = State::Over;
    }
}

/// The length that a request's head announces.
fn announced(head: &RequestHead) -> Option<usize> {
    let length = head.headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

fn out_of_order(what: &str) -> Status {
    Status::invalid_argument(format!("{what} came out of order"))
}

#[cfg(test)]
mod tests;
