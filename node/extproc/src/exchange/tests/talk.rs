//! A small world of endpoints, and one stream in it with the test as Envoy.

#[path = "../../../tests/envoy/mod.rs"]
mod envoy_says;

use super::super::*;
use crate::config::ExtProcConfig;
use crate::server;
pub(super) use envoy_says::{
    endpoint, head, header_map, request_body, response_body, response_head,
};
use futures_util::{FutureExt, StreamExt};
use prost_types::value::Kind;
use quorate_gateway::GatewayShared;
use quorate_proto::envoy::config::core::v3 as envoy;
use quorate_proto::envoy::service::ext_proc::v3::processing_response::Response as Said;
use quorate_proto::envoy::service::ext_proc::v3::{
    CommonResponse, HeaderMutation, HttpTrailers, ImmediateResponse, ProtocolConfiguration,
    body_mutation::Mutation,
};
use quorate_routing::{Endpoint, PoolPolicy, PoolSpec, RoutingView};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const BODY: &str =
    r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#;

pub(super) struct World {
    pub(super) shared: Arc<GatewayShared>,
    pub(super) worker: Arc<Worker>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
}

pub(super) fn world(count: u8, config: ExtProcConfig) -> World {
    with_policy(count, config, PoolPolicy::default())
}

/// The same with a policy for its pool.
pub(super) fn with_policy(count: u8, config: ExtProcConfig, policy: PoolPolicy) -> World {
    let endpoints: Vec<_> = (1..=count)
        .map(|i| endpoint(&format!("e{i}"), &format!("10.0.0.{i}")))
        .collect();
    if let Some(flow) = &policy.flow {
        flow.observe(&endpoints);
    }
    let view = RoutingView::with_policies([(
        PoolSpec {
            name: "p".into(),
            ..Default::default()
        },
        Arc::new(policy),
        endpoints.clone(),
    )]);
    let view = Arc::new(arc_swap::ArcSwap::from_pointee(view));
    let shared = GatewayShared::new(view, "node");
    World {
        worker: Worker::new(server::core(config, Arc::clone(&shared)), 7),
        shared,
        endpoints,
    }
}

impl World {
    pub(super) fn in_flight(&self) -> Vec<u32> {
        self.endpoints.iter().map(|e| e.local_in_flight()).collect()
    }

    pub(super) fn open(&self) -> Talk {
        let (sender, receiver) = unbounded_channel();
        Talk {
            sender,
            exchange: Exchange::new(
                Arc::clone(&self.worker),
                UnboundedReceiverStream::new(receiver),
            ),
            modes: None,
        }
    }
}

/// One stream, with this test as Envoy.
pub(super) struct Talk {
    pub(super) sender: UnboundedSender<Result<ProcessingRequest, Status>>,
    pub(super) exchange: Exchange<UnboundedReceiverStream<Result<ProcessingRequest, Status>>>,
    pub(super) modes: Option<(BodySendMode, BodySendMode)>,
}

impl Talk {
    pub(super) fn modes(mut self, request: BodySendMode, response: BodySendMode) -> Self {
        self.modes = Some((request, response));
        self
    }

    pub(super) fn send(&mut self, kind: Kinds) {
        self.send_with(kind, None);
    }

    pub(super) fn send_with(&mut self, kind: Kinds, metadata: Option<envoy::Metadata>) {
        let protocol_config = self
            .modes
            .take()
            .map(|(request, response)| ProtocolConfiguration {
                request_body_mode: request.into(),
                response_body_mode: response.into(),
                send_body_without_waiting_for_header_response: false,
            });
        let message = ProcessingRequest {
            request: Some(kind),
            metadata_context: metadata,
            protocol_config,
            ..Default::default()
        };
        self.sender.send(Ok(message)).unwrap();
    }

    /// Everything that is said now.
    pub(super) fn said(&mut self) -> Vec<ProcessingResponse> {
        let mut all = Vec::new();
        while let Some(Some(message)) = self.exchange.next().now_or_never() {
            all.push(message.unwrap());
        }
        all
    }

    /// The stream has ended in order.
    pub(super) fn ended(&mut self) -> bool {
        matches!(self.exchange.next().now_or_never(), Some(None))
    }

    pub(super) fn error(&mut self) -> Status {
        self.exchange
            .next()
            .now_or_never()
            .unwrap()
            .unwrap()
            .unwrap_err()
    }

    /// Sends a whole request in full-duplex mode and takes the answers.
    pub(super) fn request(&mut self, path: &str, body: &str) -> Vec<ProcessingResponse> {
        self.send(head("POST", path, false, &[]));
        self.send(request_body(body, true));
        self.said()
    }

    /// The same where a refusal is expected.
    pub(super) fn refused(&mut self, path: &str, body: &str) -> ImmediateResponse {
        let said = self.request(path, body);
        self.immediate(said)
    }

    pub(super) fn immediate(&mut self, said: Vec<ProcessingResponse>) -> ImmediateResponse {
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(self.ended());
        match said.into_iter().next().unwrap().response {
            Some(Said::ImmediateResponse(immediate)) => immediate,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn trailers() -> HttpTrailers {
    HttpTrailers {
        trailers: header_map(&[("a", "b")]),
    }
}

pub(super) fn common(message: &ProcessingResponse) -> CommonResponse {
    match message.response.clone().unwrap() {
        Said::RequestHeaders(h) | Said::ResponseHeaders(h) => h.response.unwrap_or_default(),
        Said::RequestBody(b) | Said::ResponseBody(b) => b.response.unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn set(mutation: &HeaderMutation, name: &str) -> Option<String> {
    mutation.set_headers.iter().find_map(|option| {
        let header = option.header.as_ref()?;
        (header.key == name).then(|| String::from_utf8(header.raw_value.to_vec()).unwrap())
    })
}

pub(super) fn header(message: &ProcessingResponse, name: &str) -> Option<String> {
    set(&common(message).header_mutation?, name)
}

/// A piece of a body: its bytes and whether it is the last.
pub(super) fn piece(message: &ProcessingResponse) -> (Vec<u8>, bool) {
    match common(message).body_mutation.unwrap().mutation.unwrap() {
        Mutation::StreamedResponse(piece) => (piece.body.to_vec(), piece.end_of_stream),
        other => panic!("{other:?}"),
    }
}

pub(super) fn json(immediate: &ImmediateResponse) -> serde_json::Value {
    serde_json::from_slice(&immediate.body).unwrap()
}

pub(super) fn code(immediate: &ImmediateResponse) -> i32 {
    immediate.status.unwrap().code
}

pub(super) fn lb(message: &ProcessingResponse) -> String {
    match told(message, "envoy.lb", "x-gateway-destination-endpoint") {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// What a message sets in dynamic metadata.
pub(super) fn told(message: &ProcessingResponse, namespace: &str, key: &str) -> Option<Kind> {
    let metadata = message.dynamic_metadata.as_ref()?;
    match &metadata.fields.get(namespace)?.kind {
        Some(Kind::StructValue(inner)) => inner.fields.get(key)?.kind.clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn metadata(namespace: &str, key: &str, values: &[&str]) -> envoy::Metadata {
    let string = |text: &str| prost_types::Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let value = match values {
        [one] => string(one),
        all => prost_types::Value {
            kind: Some(Kind::ListValue(prost_types::ListValue {
                values: all.iter().map(|v| string(v)).collect(),
            })),
        },
    };
    let inner = prost_types::Struct {
        fields: [(key.to_owned(), value)].into(),
    };
    envoy::Metadata {
        filter_metadata: [(namespace.to_owned(), inner)].into(),
    }
}
