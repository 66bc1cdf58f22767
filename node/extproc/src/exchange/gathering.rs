//! A request whose body is being gathered, and the decision at its end.

use super::returning::Returning;
use crate::answer::{self, Changes, Side};
use crate::received::{DESTINATION, RequestHead, Subset};
use crate::server::Worker;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method};
use quorate_gateway::{Admitted, Asked, Denied, Entered, Traced, Wanted};
use quorate_proto::envoy::service::ext_proc::v3::ProcessingResponse;
use quorate_routing::Target;
use std::net::SocketAddr;
use std::time::Instant;

/// llm-d's picker sets this on each response that it has seen; conformance tests look for it.
const WENT_IN: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-went-into-resp-headers"),
    HeaderValue::from_static("true"),
);

/// What made the request whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its head: there is no body, or it is not shown.
    Head,
    /// The last piece of its body.
    Body,
    /// Its body in one message, whose head has been answered before.
    Buffered,
    /// Trailers behind its body.
    Trailers,
}

/// See the module's documentation.
pub(super) struct Gathering {
    head: RequestHead,
    entered: Entered,
    /// Headers with credentials that the client sent.
    credentials: Vec<&'static str>,
    subset: Option<Subset>,
    started: Instant,
    first: Bytes,
    /// All pieces, once there are several.
    whole: Option<BytesMut>,
}

/// What is said to Envoy, and what follows.
pub(super) struct Decided {
    pub messages: Vec<ProcessingResponse>,
    pub returning: Returning,
}

impl Gathering {
    pub fn new(
        head: RequestHead,
        entered: Entered,
        credentials: Vec<&'static str>,
        subset: Option<Subset>,
        started: Instant,
    ) -> Self {
        Self {
            head,
            entered,
            credentials,
            subset,
            started,
            first: Bytes::new(),
            whole: None,
        }
    }

    pub fn method(&self) -> &Method {
        &self.head.method
    }

    pub fn path(&self) -> &str {
        &self.head.path
    }

    /// The next piece; false if the body becomes longer than `limit`.
    pub fn push(&mut self, data: Bytes, limit: usize) -> bool {
        let have = self.whole.as_ref().map_or(self.first.len(), BytesMut::len);
        if data.len() > limit.saturating_sub(have) {
            return false;
        }
        match &mut self.whole {
            // Most bodies are one piece and are not copied; the last message may be empty.
            _ if data.is_empty() => {}
            None if have == 0 => self.first = data,
            None => {
                let mut whole = BytesMut::with_capacity(2 * (have + data.len()));
                whole.put_slice(&self.first);
                whole.put_slice(&data);
                self.whole = Some(whole);
            }
            Some(whole) => whole.put_slice(&data),
        }
        true
    }

    /// The request is whole.
    ///
    /// # Errors
    /// [`Denied`]: what the client gets instead.
    pub fn ask(self, worker: &Worker, end: End) -> Result<(Undecided, Admitted), Denied> {
        let Self {
            mut head,
            entered,
            credentials,
            subset,
            started,
            first,
            whole,
        } = self;
        let body = whole.map_or(first, BytesMut::freeze);
        let picker = &worker.picker;
        let traced = picker.trace(&mut head.headers);
        let system_owned: Vec<_> = head.system_owned().collect();
        let asked = picker.ask(
            entered,
            (&head.method, &head.path),
            &head.headers,
            body.clone(),
            started,
        )?;
        let undecided = Undecided {
            head,
            credentials,
            system_owned,
            traced,
            subset,
            body,
            end,
        };
        Ok((undecided, picker.admit(asked)))
    }
}

/// A whole request that has no endpoint yet.
pub(super) struct Undecided {
    head: RequestHead,
    credentials: Vec<&'static str>,
    system_owned: Vec<&'static str>,
    traced: Traced,
    subset: Option<Subset>,
    body: Bytes,
    end: End,
}

impl Undecided {
    /// Picks the endpoint.
    ///
    /// # Errors
    /// [`Denied`]: what the client gets instead.
    pub fn choose(self, worker: &Worker, asked: Asked) -> Result<Decided, Denied> {
        let Self {
            head,
            credentials,
            system_owned,
            traced,
            subset,
            body,
            end,
        } = self;
        let inside = subset.map(|subset| move |address| subset.contains(address));
        let choice = worker.picker.choose(
            asked,
            &head.headers,
            &Wanted {
                subset: inside
                    .as_ref()
                    .map(|inside| inside as &dyn Fn(SocketAddr) -> bool),
                address: &|target: &Target| worker.core.addresses.of(target),
                fallbacks: worker.core.config.fallbacks,
                scores: worker.core.config.emit_endpoint_scores,
            },
        )?;

        let mut changes = Changes::default();
        let list = answer::address_list(&choice.addresses);
        for name in system_owned {
            changes.remove(name);
        }
        // A credential that was taken here is of no use to an engine; one that was not is the engine's own.
        for name in credentials {
            if !head.headers.contains_key(name) {
                changes.remove(name);
            }
        }
        if traced.drop_state {
            changes.remove("tracestate");
        }
        changes.set(DESTINATION, list.clone());
        for (name, value) in traced.set.iter().chain(&choice.request_headers) {
            changes.set_value(name, value);
        }
        let changed = choice.body.is_some();
        let body = choice.body.unwrap_or(body);
        if changed {
            // What is compressed cannot be changed back.
            changes.remove("accept-encoding");
        }
        if changed || matches!(end, End::Body | End::Trailers) {
            changes.set("content-length", body.len().to_string());
        }
        let metadata = answer::destination(list, &choice.scores);
        let mut messages = Vec::with_capacity(2);
        match end {
            End::Head => messages.push(answer::request_head(changes, metadata)),
            End::Buffered => messages.push(answer::buffered_request(
                changes,
                metadata,
                changed.then_some(body),
            )),
            End::Body => {
                messages.push(answer::request_head(changes, metadata));
                messages.extend(answer::pieces(Side::Request, body, true));
            }
            End::Trailers => {
                messages.push(answer::request_head(changes, metadata));
                messages.extend(answer::pieces(Side::Request, body, false));
                messages.push(answer::request_trailers());
            }
        }
        let mut response_headers = choice.response_headers;
        if worker.core.config.mark_responses {
            response_headers.push(WENT_IN);
        }
        Ok(Decided {
            messages,
            returning: Returning::new(choice.passing, response_headers, traced.id),
        })
    }
}
