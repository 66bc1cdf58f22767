//! The response on its way back to the client.

use crate::addresses::Addresses;
use crate::answer::{self, Changes, Side};
use crate::modes::Modes;
use crate::received::{all_headers, response_head};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use prost_types::Struct;
use quorate_gateway::{Denied, Passing};
use quorate_proto::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use quorate_proto::envoy::service::ext_proc::v3::{HttpHeaders, HttpTrailers, ProcessingResponse};
use std::net::SocketAddr;
use std::task::{Context, Poll};

/// Follows the response of one request; until its head comes, waits for it.
pub(super) struct Returning {
    /// `None`: no endpoint was picked, and the response is Envoy's own.
    passing: Option<Passing>,
    id: Option<HeaderValue>,
    /// Set on the response's head.
    set: Vec<(HeaderName, HeaderValue)>,
    /// Its head has come.
    begun: bool,
    over: bool,
}

impl Returning {
    /// Of a request that went to an endpoint.
    pub fn new(passing: Passing, set: Vec<(HeaderName, HeaderValue)>, id: HeaderValue) -> Self {
        Self {
            passing: Some(passing),
            id: Some(id),
            set,
            begun: false,
            over: false,
        }
    }

    /// Of a request that Envoy answered by itself.
    pub fn unpicked() -> Self {
        Self {
            passing: None,
            id: None,
            set: Vec::new(),
            begun: false,
            over: false,
        }
    }

    /// Ready when the request has to give way: what the client gets. `None`: its response is under way, and only ends.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Option<Denied>> {
        let Some(passing) = &mut self.passing else {
            return Poll::Pending;
        };
        let denied = std::task::ready!(passing.poll_revoked(cx));
        self.passing = None;
        Poll::Ready((!self.begun).then_some(denied))
    }

    /// The whole response has passed.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The head. `served` is where the request really went, if Envoy says so.
    pub fn head(
        &mut self,
        head: HttpHeaders,
        served: Option<SocketAddr>,
        addresses: &Addresses,
        modes: Modes,
    ) -> ProcessingResponse {
        self.begun = true;
        let (status, headers) = response_head(head.headers);
        let mut changes = Changes::default();
        if let Some(passing) = &mut self.passing {
            if let Some(served) = served {
                passing.served_by(|e| addresses.of(&e.spec().target) == Some(served));
            }
            let shown = modes.response != BodySendMode::None;
            let changes_length = passing.head(status, &headers, !shown);
            if changes_length && modes.response != BodySendMode::FullDuplexStreamed {
                changes.remove("content-length");
            }
        }
        if let Some(id) = &self.id {
            changes.set("x-request-id", Bytes::copy_from_slice(id.as_bytes()));
        }
        for (name, value) in &self.set {
            changes.set_value(name, value);
        }
        let metadata = if head.end_of_stream { self.end() } else { None };
        ProcessingResponse {
            dynamic_metadata: metadata,
            ..answer::response_head(changes)
        }
    }

    /// A piece of the body.
    pub fn body(&mut self, data: Bytes, end: bool, modes: Modes) -> Vec<ProcessingResponse> {
        let came = (data.as_ptr(), data.len());
        let after = match &mut self.passing {
            Some(passing) if !data.is_empty() || end => passing.data(data, end),
            _ => data,
        };
        let metadata = if end { self.end() } else { None };
        let mut messages = if modes.response == BodySendMode::FullDuplexStreamed {
            answer::pieces(Side::Response, after, end).collect()
        } else {
            // One message is answered by one.
            let changed = came != (after.as_ptr(), after.len());
            vec![answer::response_body(changed.then_some(after))]
        };
        if let Some(last) = messages.last_mut() {
            last.dynamic_metadata = metadata;
        }
        messages
    }

    /// Trailers, which end the response.
    pub fn trailers(&mut self, trailers: HttpTrailers, modes: Modes) -> Vec<ProcessingResponse> {
        let held = match &mut self.passing {
            Some(passing) => passing.trailers(&all_headers(trailers.trailers)),
            None => Bytes::new(),
        };
        let dynamic_metadata = self.end();
        let mut messages = Vec::new();
        // In the other modes the last piece has been answered already.
        if modes.response == BodySendMode::FullDuplexStreamed {
            messages.extend(answer::pieces(Side::Response, held, false));
        }
        messages.push(ProcessingResponse {
            dynamic_metadata,
            ..answer::response_trailers()
        });
        messages
    }

    /// What Envoy is told with the last message.
    fn end(&mut self) -> Option<Struct> {
        self.over = true;
        let mut passing = self.passing.take()?;
        answer::reported(&passing.end())
    }
}
