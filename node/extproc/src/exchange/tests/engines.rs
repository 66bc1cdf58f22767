//! vLLM's gRPC engine service behind Envoy: requests by token ids, streamed answers, status in trailers.

use super::super::*;
use super::talk::*;
use crate::config::ExtProcConfig;
use quorate_proto::envoy::service::ext_proc::v3::HttpTrailers;
use quorate_routing::request::protobuf::write;

const GENERATE: &str = "/vllm.grpc.engine.VllmEngine/Generate";
const GRPC: &str = "application/grpc";

/// A `GenerateRequest` in its frame.
fn generate(ids: u8, stream: bool) -> Vec<u8> {
    let (mut tokenized, mut message) = (Vec::new(), Vec::new());
    write::bytes(
        &mut tokenized,
        2,
        &(0..ids).map(|i| i % 100).collect::<Vec<_>>(),
    );
    write::bytes(&mut message, 1, b"request-1");
    write::bytes(&mut message, 2, &tokenized);
    write::number(&mut message, 5, u64::from(stream));
    write::frame(&message)
}

/// A `GenerateResponse` with a chunk of tokens, in its frame.
fn chunk(tokens: &[u8]) -> Vec<u8> {
    let (mut chunk, mut message) = (Vec::new(), Vec::new());
    write::bytes(&mut chunk, 1, tokens);
    for (field, count) in [(2, 21), (3, tokens.len() as u64), (4, 9)] {
        write::number(&mut chunk, field, count);
    }
    write::bytes(&mut message, 1, &chunk);
    write::frame(&message)
}

fn status(code: &str) -> Kinds {
    Kinds::ResponseTrailers(HttpTrailers {
        trailers: header_map(&[("grpc-status", code)]),
    })
}

fn grpc_head(more: &[(&str, &str)]) -> Kinds {
    let all = [&[("content-type", GRPC), ("te", "trailers")], more].concat();
    head("POST", GENERATE, false, &all)
}

#[test]
fn a_generate_call_from_its_frame_to_its_status() {
    let world = world(1, ExtProcConfig::default());
    let body = generate(90, true);
    let mut talk = world.open();
    talk.send(grpc_head(&[]));
    // Cut inside the frame's header and inside the message.
    talk.send(request_body(&body[..3], false));
    talk.send(request_body(&body[3..20], false));
    talk.send(request_body(&body[20..], true));
    let said = talk.said();
    assert_eq!(lb(&said[0]), "10.0.0.1:8000");
    assert_eq!(piece(&said[1]), (body, true), "not a byte differs");
    assert_eq!(world.in_flight(), [1]);

    talk.send(response_head("200", GRPC, false));
    talk.said();
    let answer = [chunk(&[1, 2, 3]), chunk(&[4])].concat();
    for part in answer.chunks(7) {
        talk.send(response_body(part, false));
        let said = talk.said();
        assert_eq!(said.len(), 1, "each piece goes on at once");
        assert_eq!(piece(&said[0]), (part.to_vec(), false));
    }
    assert_eq!(world.in_flight(), [1]);
    talk.send(status("0"));
    assert!(matches!(
        talk.said()[0].response,
        Some(quorate_proto::envoy::service::ext_proc::v3::processing_response::Response::ResponseTrailers(_))
    ));
    assert!(talk.ended());
    assert_eq!(world.in_flight(), [0]);
}

/// What the engine says in its frames is what a reporter counts, so it was read.
#[test]
fn tokens_are_read_out_of_the_frames() {
    use quorate_routing::PoolPolicy;
    use quorate_routing::config::EndpointPickerConfig;
    let config = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: request-attribute-reporter\n  \
                  parameters: {attributes: [{key: {name: cost}, expression: usage.total_tokens}]}\n";
    let config = EndpointPickerConfig::parse(config).unwrap().config;
    let policy = PoolPolicy {
        reports: config.compile().unwrap().reports,
        ..PoolPolicy::default()
    };
    let world = with_policy(1, ExtProcConfig::default(), policy);
    for (code, stream) in [("0", true), ("0", false), ("13", true)] {
        let mut talk = world.open();
        talk.send(grpc_head(&[]));
        talk.send(request_body(generate(21, stream), true));
        talk.send(response_head("200", GRPC, false));
        talk.send(response_body(chunk(&[1, 2, 3]), false));
        talk.send(status(code));
        let said = talk.said();
        assert_eq!(
            told(said.last().unwrap(), "envoy.lb", "cost"),
            Some(prost_types::value::Kind::NumberValue(24.0))
        );
    }
}

/// Refusals are gRPC's own: status 200, no body, the reason in headers, and for an Envoy that makes the reply itself in its field.
#[test]
fn refusals_are_grpc_statuses() {
    let world = world(1, ExtProcConfig::default());
    let refused = |body: Vec<u8>, more: &[(&str, &str)]| {
        let mut talk = world.open();
        talk.send(grpc_head(more));
        talk.send(request_body(body, true));
        let said = talk.said();
        let immediate = talk.immediate(said);
        let headers = immediate.headers.clone().unwrap();
        assert_eq!((code(&immediate), immediate.body.len()), (200, 0));
        assert_eq!(set(&headers, "content-type").as_deref(), Some(GRPC));
        let status = set(&headers, "grpc-status").unwrap();
        assert_eq!(
            immediate.grpc_status.map(|s| s.status.to_string()),
            Some(status.clone())
        );
        let reason = set(&headers, "x-llm-d-request-dropped-reason");
        (status, reason)
    };
    assert_eq!(
        refused(write::frame(b"\xff\xff"), &[]),
        ("3".to_owned(), None)
    );
    let mut compressed = generate(5, false);
    compressed[0] = 1;
    assert_ne!(refused(compressed, &[]).0, "0");
    world.endpoints[0].set_draining(true);
    assert_eq!(
        refused(generate(5, false), &[]),
        ("14".to_owned(), Some("rejected-no-endpoints".to_owned()))
    );
    assert_eq!(world.in_flight(), [0]);
}
