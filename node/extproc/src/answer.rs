//! The messages that go back to Envoy.

use crate::received::{DESTINATION, LB, SCORES};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use quorate_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use quorate_proto::envoy::config::core::v3::{self as core, HeaderValueOption};
use quorate_proto::envoy::service::ext_proc::v3::processing_response::Response as Kinds;
use quorate_proto::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, GrpcStatus, HeaderMutation, HeadersResponse,
    ImmediateResponse, ProcessingResponse, StreamedBodyResponse, TrailersResponse,
    body_mutation::Mutation,
};
use quorate_proto::envoy::r#type::v3::HttpStatus;
use quorate_routing::plugin::reporter::Reported;
use std::fmt::Write;
use std::net::SocketAddr;

/// Longest piece of a body in one message: Envoy takes 64 KiB, headers of the message included.
pub(crate) const MAX_PIECE: usize = 62_000;

/// Changes to headers.
#[derive(Debug, Default)]
pub(crate) struct Changes(HeaderMutation);

impl Changes {
    /// Sets a header, whatever was there.
    pub fn set(&mut self, name: &str, value: impl Into<Bytes>) {
        self.0.set_headers.push(HeaderValueOption {
            header: Some(core::HeaderValue {
                key: name.to_owned(),
                value: String::new(),
                raw_value: value.into(),
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        });
    }

    /// Sets a header of the usual form.
    pub fn set_value(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.set(name.as_str(), Bytes::copy_from_slice(value.as_bytes()));
    }

    /// Removes a header.
    pub fn remove(&mut self, name: &str) {
        self.0.remove_headers.push(name.to_owned());
    }

    fn into_mutation(self) -> Option<HeaderMutation> {
        let empty = self.0.set_headers.is_empty() && self.0.remove_headers.is_empty();
        (!empty).then_some(self.0)
    }
}

/// `ip:port[,ip:port...]`, as headers and metadata have it.
pub(crate) fn address_list(addresses: &[SocketAddr]) -> String {
    let mut list = String::with_capacity(24 * addresses.len());
    for address in addresses {
        let comma = if list.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(list, "{comma}{address}");
    }
    list
}

/// The metadata that tells the load balancer where to go, and with `scores` how good it and the others are.
pub(crate) fn destination(list: String, scores: &[(SocketAddr, f64)]) -> Struct {
    let mut metadata = Struct::default();
    put(&mut metadata, LB, DESTINATION, Kind::StringValue(list));
    if !scores.is_empty() {
        let mut by_address = Struct::default();
        for (address, score) in scores {
            let score = value(Kind::NumberValue(*score));
            by_address.fields.insert(address.to_string(), score);
        }
        put(&mut metadata, LB, SCORES, Kind::StructValue(by_address));
    }
    metadata
}

/// The metadata that tells what became of a request.
pub(crate) fn reported(reports: &[Reported]) -> Option<Struct> {
    let mut metadata = Struct::default();
    for report in reports {
        let value = Kind::NumberValue(report.value);
        put(&mut metadata, &report.namespace, &report.name, value);
    }
    (!reports.is_empty()).then_some(metadata)
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

/// Sets a key in a namespace.
fn put(metadata: &mut Struct, namespace: &str, key: &str, kind: Kind) {
    let inner = metadata
        .fields
        .entry(namespace.to_owned())
        .or_insert_with(|| value(Kind::StructValue(Struct::default())));
    if let Some(Kind::StructValue(inner)) = &mut inner.kind {
        inner.fields.insert(key.to_owned(), value(kind));
    }
}

fn message(response: Kinds) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        dynamic_metadata: None,
    }
}

fn common(changes: Changes, body: Option<Mutation>) -> CommonResponse {
    CommonResponse {
        header_mutation: changes.into_mutation(),
        body_mutation: body.map(|mutation| BodyMutation {
            mutation: Some(mutation),
        }),
        ..Default::default()
    }
}

/// Go on with the request's head, which is all that is asked for now.
pub(crate) fn request_head_seen() -> ProcessingResponse {
    message(Kinds::RequestHeaders(HeadersResponse { response: None }))
}

/// The decision, in answer to the request's head.
pub(crate) fn request_head(changes: Changes, metadata: Struct) -> ProcessingResponse {
    let response = CommonResponse {
        clear_route_cache: true,
        ..common(changes, None)
    };
    ProcessingResponse {
        response: Some(Kinds::RequestHeaders(HeadersResponse {
            response: Some(response),
        })),
        dynamic_metadata: Some(metadata),
    }
}

/// The decision, in answer to the whole body that Envoy has buffered; `body` takes its place if it differs.
pub(crate) fn buffered_request(
    changes: Changes,
    metadata: Struct,
    body: Option<Bytes>,
) -> ProcessingResponse {
    let response = CommonResponse {
        clear_route_cache: true,
        ..common(changes, body.map(Mutation::Body))
    };
    ProcessingResponse {
        response: Some(Kinds::RequestBody(BodyResponse {
            response: Some(response),
        })),
        dynamic_metadata: Some(metadata),
    }
}

/// The request's trailers pass.
pub(crate) fn request_trailers() -> ProcessingResponse {
    message(Kinds::RequestTrailers(TrailersResponse {
        header_mutation: None,
    }))
}

/// The response's head passes, changed.
pub(crate) fn response_head(changes: Changes) -> ProcessingResponse {
    message(Kinds::ResponseHeaders(HeadersResponse {
        response: Some(common(changes, None)),
    }))
}

/// The response's trailers pass.
pub(crate) fn response_trailers() -> ProcessingResponse {
    message(Kinds::ResponseTrailers(TrailersResponse {
        header_mutation: None,
    }))
}

/// Which body a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Response,
}

fn body(side: Side, mutation: Option<Mutation>) -> ProcessingResponse {
    let response = Some(common(Changes::default(), mutation));
    message(match side {
        Side::Request => Kinds::RequestBody(BodyResponse { response }),
        Side::Response => Kinds::ResponseBody(BodyResponse { response }),
    })
}

/// Pieces of a body in the mode FULL_DUPLEX_STREAMED; `end`: nothing follows, no trailers either.
pub(crate) fn pieces(
    side: Side,
    mut data: Bytes,
    end: bool,
) -> impl Iterator<Item = ProcessingResponse> {
    let mut done = data.is_empty() && !end;
    std::iter::from_fn(move || {
        if done {
            return None;
        }
        let piece = data.split_to(data.len().min(MAX_PIECE));
        done = data.is_empty();
        Some(body(
            side,
            Some(Mutation::StreamedResponse(StreamedBodyResponse {
                body: piece,
                end_of_stream: end && done,
            })),
        ))
    })
}

/// The answer to one message with a piece of the response's body in the other modes: `replacement`, or the body as it was.
pub(crate) fn response_body(replacement: Option<Bytes>) -> ProcessingResponse {
    let mutation = replacement.map(|body| match body.is_empty() {
        true => Mutation::ClearBody(true),
        false => Mutation::Body(body),
    });
    body(Side::Response, mutation)
}

/// Envoy answers the client itself. `details` goes into its log.
pub(crate) fn immediate(response: Response<Bytes>, details: &str) -> ProcessingResponse {
    let (parts, body) = response.into_parts();
    let mut changes = Changes::default();
    for (name, value) in &parts.headers {
        changes.set_value(name, value);
    }
    let grpc_status = parts
        .headers
        .get("grpc-status")
        .and_then(|code| code.to_str().ok()?.parse().ok())
        .map(|status| GrpcStatus { status });
    message(Kinds::ImmediateResponse(ImmediateResponse {
        grpc_status,
        status: Some(HttpStatus {
            code: i32::from(parts.status.as_u16()),
        }),
        headers: changes.into_mutation(),
        body,
        details: format!("quorate_{details}"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sent(messages: impl Iterator<Item = ProcessingResponse>) -> Vec<StreamedBodyResponse> {
        messages
            .map(|message| match message.response {
                Some(Kinds::RequestBody(BodyResponse {
                    response:
                        Some(CommonResponse {
                            body_mutation:
                                Some(BodyMutation {
                                    mutation: Some(Mutation::StreamedResponse(piece)),
                                }),
                            ..
                        }),
                })) => piece,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn lists_have_brackets_around_ipv6() {
        let of = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(address_list(&[of("10.0.0.1:80")]), "10.0.0.1:80");
        assert_eq!(
            address_list(&[of("[fd00::1]:80"), of("10.0.0.1:8000")]),
            "[fd00::1]:80,10.0.0.1:8000"
        );
    }

    #[test]
    fn an_empty_end_is_still_an_end() {
        assert_eq!(sent(pieces(Side::Request, Bytes::new(), false)).len(), 0);
        let end = sent(pieces(Side::Request, Bytes::new(), true));
        assert_eq!(end.len(), 1);
        assert!(end[0].end_of_stream);
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole_and_never_too_long(length in 0usize..200_000, end in any::<bool>()) {
            let data: Bytes = (0..length).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
            let sent = sent(pieces(Side::Request, data.clone(), end));
            let joined: Vec<u8> = sent.iter().flat_map(|p| p.body.clone()).collect();
            prop_assert_eq!(&joined[..], &data[..]);
            prop_assert!(sent.iter().all(|p| p.body.len() <= MAX_PIECE));
            let ends: Vec<bool> = sent.iter().map(|p| p.end_of_stream).collect();
            prop_assert_eq!(ends.iter().filter(|e| **e).count(), usize::from(end));
            prop_assert_eq!(ends.last().copied().unwrap_or(false), end);
        }
    }
}
