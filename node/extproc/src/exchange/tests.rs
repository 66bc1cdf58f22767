//! Streams without a network: what is said for what comes, in which order, and that no reservation outlives its stream.

mod engines;
mod flow;
mod heads;
mod talk;
mod together;
mod tokens;
mod told;

use super::*;
use crate::config::ExtProcConfig;
use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;
use quorate_proto::envoy::service::ext_proc::v3::CommonResponse;
use quorate_proto::envoy::service::ext_proc::v3::processing_response::Response as Said;
use talk::*;

#[test]
fn a_stream_from_its_head_to_its_last_event() {
    let world = world(1, ExtProcConfig::default());
    let mut talk = world.open();
    talk.send(head("POST", "/v1/chat/completions?a=b", false, &[]));
    talk.send(request_body(&BODY[..10], false));
    assert!(
        talk.said().is_empty(),
        "nothing is said before the whole body is here"
    );
    talk.send(request_body(&BODY[10..], false));
    talk.send(request_body("", true));
    let said = talk.said();
    assert_eq!(said.len(), 2);
    assert!(common(&said[0]).clear_route_cache);
    assert_eq!(
        header(&said[0], "x-gateway-destination-endpoint").as_deref(),
        Some("10.0.0.1:8000")
    );
    assert_eq!(lb(&said[0]), "10.0.0.1:8000");
    assert_eq!(
        header(&said[0], "content-length"),
        Some(BODY.len().to_string())
    );
    let id = header(&said[0], "x-request-id").unwrap();
    assert_eq!(id.len(), 32);
    assert!(header(&said[0], "traceparent").unwrap().starts_with("00-"));
    assert_eq!(piece(&said[1]), (BODY.as_bytes().to_vec(), true));
    assert_eq!(world.in_flight(), [1]);

    talk.send(response_head("200", "text/event-stream", false));
    let said = talk.said();
    assert_eq!(header(&said[0], "x-request-id"), Some(id));
    for event in ["data: {\"choices\":[{}]}\n\n", "data: [DO", "NE]\n\n"] {
        talk.send(response_body(event, false));
        let said = talk.said();
        assert_eq!(said.len(), 1, "each chunk goes on at once");
        assert_eq!(piece(&said[0]), (event.as_bytes().to_vec(), false));
    }
    assert_eq!(world.in_flight(), [1]);
    talk.send(response_body("", true));
    assert_eq!(
        piece(
            &talk
                .exchange
                .next()
                .now_or_never()
                .unwrap()
                .unwrap()
                .unwrap()
        ),
        (vec![], true)
    );
    assert!(talk.ended());
    assert_eq!(world.in_flight(), [0]);
}

#[test]
fn an_aborted_stream_frees_its_place_at_once() {
    let world = world(1, ExtProcConfig::default());
    for stage in 0..3 {
        let mut talk = world.open();
        talk.request(CHAT, BODY);
        if stage > 0 {
            talk.send(response_head("200", "text/event-stream", false));
            talk.said();
        }
        assert_eq!(world.in_flight(), [1]);
        match stage {
            2 => {
                talk.sender.send(Err(Status::cancelled("gone"))).unwrap();
                assert_eq!(talk.error().code(), Code::Cancelled);
            }
            _ => drop(talk),
        }
        assert_eq!(world.in_flight(), [0]);
    }
    let mut talk = world.open();
    talk.request(CHAT, BODY);
    let Talk {
        sender,
        mut exchange,
        ..
    } = talk;
    drop(sender);
    assert!(matches!(exchange.next().now_or_never(), Some(None)));
    assert_eq!(world.in_flight(), [0]);
}

#[test]
fn long_bodies_come_back_in_pieces_and_trailers_end_them() {
    let world = world(1, ExtProcConfig::default());
    let body = format!(r#"{{"model":"m","prompt":"{}"}}"#, "x".repeat(150_000));
    let mut talk = world.open();
    talk.send(head("POST", CHAT, false, &[]));
    for part in body.as_bytes().chunks(16_384) {
        talk.send(request_body(std::str::from_utf8(part).unwrap(), false));
    }
    talk.send(Kinds::RequestTrailers(trailers()));
    let said = talk.said();
    assert!(matches!(said[0].response, Some(Said::RequestHeaders(_))));
    assert!(matches!(
        said.last().unwrap().response,
        Some(Said::RequestTrailers(_))
    ));
    let pieces: Vec<_> = said[1..said.len() - 1].iter().map(piece).collect();
    assert_eq!(pieces.len(), 3);
    assert!(
        pieces
            .iter()
            .all(|(data, end)| data.len() <= 62_000 && !end)
    );
    let joined: Vec<u8> = pieces.into_iter().flat_map(|(data, _)| data).collect();
    assert_eq!(joined, body.as_bytes());

    talk.send(response_head("200", "application/grpc", false));
    talk.send(response_body("abc", false));
    talk.send(Kinds::ResponseTrailers(trailers()));
    let said = talk.said();
    assert_eq!(piece(&said[1]), (b"abc".to_vec(), false));
    assert!(matches!(said[2].response, Some(Said::ResponseTrailers(_))));
    assert!(talk.ended());
    assert_eq!(world.in_flight(), [0]);
}

#[test]
fn refusals_speak_the_clients_dialect() {
    let config = ExtProcConfig {
        max_body_bytes: 1000,
        ..Default::default()
    };
    let world = world(1, config);
    for (path, body, status, kind) in [
        (CHAT, "{", 400, "invalid_request_error"),
        (CHAT, "{}", 400, "invalid_request_error"),
        (CHAT, r#"{"model":"other"}"#, 404, "invalid_request_error"),
    ] {
        let immediate = world.open().refused(path, body);
        assert_eq!(code(&immediate), status);
        assert_eq!(json(&immediate)["error"]["type"], kind);
        let headers = immediate.headers.unwrap();
        assert_eq!(
            set(&headers, "content-type").as_deref(),
            Some("application/json")
        );
        assert!(
            immediate.details.starts_with("quorate_"),
            "{}",
            immediate.details
        );
    }
    let anthropic = world.open().refused("/v1/messages", r#"{"model":"other"}"#);
    assert_eq!(json(&anthropic)["type"], "error");

    let long = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(1000));
    assert_eq!(code(&world.open().refused(CHAT, &long)), 413);
    let mut talk = world.open();
    talk.send(head("POST", CHAT, false, &[("content-length", "1001")]));
    let said = talk.said();
    assert_eq!(code(&talk.immediate(said)), 413);
    let mut talk = world.open();
    talk.send(head("GET", CHAT, true, &[]));
    let said = talk.said();
    assert_eq!(code(&talk.immediate(said)), 405);

    world.endpoints[0].set_draining(true);
    let immediate = world.open().refused(CHAT, BODY);
    assert_eq!(code(&immediate), 503);
    let headers = immediate.headers.clone().unwrap();
    assert_eq!(
        set(&headers, "x-llm-d-request-dropped-reason").as_deref(),
        Some("rejected-no-endpoints")
    );
    assert_eq!(set(&headers, "retry-after").as_deref(), Some("1"));
    assert_eq!(json(&immediate)["error"]["code"], "no_endpoints");
    assert_eq!(world.in_flight(), [0]);
}

#[test]
fn subset_hints_narrow_the_pick() {
    let world = world(3, ExtProcConfig::default());
    let ask = |values: &[&str]| {
        let mut talk = world.open();
        let hint = metadata(
            "envoy.lb.subset_hint",
            "x-gateway-destination-endpoint-subset",
            values,
        );
        talk.send_with(head("POST", CHAT, false, &[]), Some(hint));
        talk.send(request_body(BODY, true));
        talk.said()
    };
    for _ in 0..20 {
        assert_eq!(
            lb(&ask(&["10.0.0.2:8000", "10.9.9.9:1"])[0]),
            "10.0.0.2:8000"
        );
    }
    // The right host with another port is another server.
    for none in [&["10.0.0.2:8001", "x"][..], &[]] {
        let said = ask(none);
        let Some(Said::ImmediateResponse(immediate)) = &said[0].response else {
            panic!("{said:?}");
        };
        assert_eq!(code(immediate), 503);
    }
}

#[test]
fn requests_without_a_body() {
    let world = world(1, ExtProcConfig::default());
    let mut talk = world.open();
    talk.send(head("GET", "/version", true, &[]));
    let said = talk.said();
    assert_eq!((said.len(), lb(&said[0]).as_str()), (1, "10.0.0.1:8000"));
    assert_eq!(header(&said[0], "content-length"), None);
    talk.send(response_head("204", "text/plain", true));
    assert_eq!(talk.said().len(), 1);
    assert!(talk.ended());
    assert_eq!(world.in_flight(), [0]);

    let mut talk = world.open();
    talk.send(head("GET", "/v1/models", true, &[]));
    let said = talk.said();
    let immediate = talk.immediate(said);
    assert_eq!(
        (code(&immediate), &json(&immediate)["data"][0]["id"]),
        (200, &"m".into())
    );
}

#[test]
fn other_body_modes_work_or_say_what_to_set() {
    use BodySendMode::{Buffered, BufferedPartial, FullDuplexStreamed, None, Streamed};
    let world = world(1, ExtProcConfig::default());
    let mut talk = world.open().modes(Buffered, Streamed);
    talk.send(head("POST", CHAT, false, &[]));
    let said = talk.said();
    assert_eq!(said.len(), 1, "Envoy sends the body after this");
    assert_eq!(common(&said[0]), CommonResponse::default());
    talk.send(request_body(BODY, true));
    let said = talk.said();
    assert_eq!((said.len(), lb(&said[0]).as_str()), (1, "10.0.0.1:8000"));
    let answer = common(&said[0]);
    assert!(answer.clear_route_cache && answer.body_mutation.is_none());
    talk.send(Kinds::RequestTrailers(trailers()));
    talk.send(response_head("200", "text/event-stream", false));
    talk.send(response_body("data: x\n\n", false));
    talk.send(response_body("data: [DONE]\n\n", true));
    let said = talk.said();
    assert_eq!(said.len(), 4, "one answer for each message");
    assert_eq!(common(&said[2]), CommonResponse::default());
    assert_eq!(world.in_flight(), [0]);

    // With the response's body unseen, the place is held until Envoy closes the stream.
    let mut talk = world.open().modes(FullDuplexStreamed, None);
    talk.request(CHAT, BODY);
    talk.send(response_head("200", "text/event-stream", false));
    assert_eq!((talk.said().len(), world.in_flight()), (1, vec![1]));
    drop(talk);
    assert_eq!(world.in_flight(), [0]);

    let mut talk = world.open().modes(None, None);
    talk.send(head("POST", "/version", false, &[]));
    assert_eq!(lb(&talk.said()[0]), "10.0.0.1:8000");
    drop(talk);

    for (mode, said_of) in [(None, "NONE"), (Streamed, "STREAMED")] {
        let mut talk = world.open().modes(mode, FullDuplexStreamed);
        talk.send(head("POST", CHAT, false, &[]));
        let said = talk.said();
        let immediate = talk.immediate(said);
        assert_eq!(
            (code(&immediate), &json(&immediate)["error"]["code"]),
            (500, &"proxy_misconfigured".into())
        );
        let message = json(&immediate)["error"]["message"].to_string();
        assert!(
            message.contains(said_of) && message.contains("FULL_DUPLEX_STREAMED"),
            "{message}"
        );
    }
    let mut talk = world.open().modes(BufferedPartial, FullDuplexStreamed);
    talk.send(head("POST", CHAT, false, &[]));
    assert_eq!(talk.said().len(), 1);
    talk.send(request_body(&BODY[..20], false));
    let said = talk.said();
    assert_eq!(code(&talk.immediate(said)), 413);
    assert_eq!(world.in_flight(), [0]);
}

#[test]
fn the_endpoint_that_served_is_the_one_that_counts() {
    let config = ExtProcConfig {
        fallbacks: 2,
        ..Default::default()
    };
    let world = world(3, config);
    let mut talk = world.open();
    let said = talk.request(CHAT, BODY);
    let list = lb(&said[0]);
    let named: Vec<&str> = list.split(',').collect();
    assert_eq!(named.len(), 3);
    let first = world.in_flight();
    let served = metadata(
        "envoy.lb",
        "x-gateway-destination-endpoint-served",
        &[named[1]],
    );
    talk.send_with(
        response_head("200", "application/json", false),
        Some(served),
    );
    talk.said();
    let second = world.in_flight();
    assert_eq!(
        (first.iter().sum::<u32>(), second.iter().sum::<u32>()),
        (1, 1)
    );
    assert_ne!(first, second);
    let counted = second.iter().position(|n| *n == 1).unwrap();
    assert_eq!(named[1], format!("10.0.0.{}:8000", counted + 1));
    talk.send(response_body(
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        true,
    ));
    talk.said();
    assert_eq!(world.in_flight(), [0, 0, 0]);
}

#[test]
fn the_pick_that_cannot_be_reached_loses_its_traffic() {
    let world = world(2, ExtProcConfig::default());
    for _ in 0..40 {
        let mut talk = world.open();
        let said = talk.request(CHAT, BODY);
        // Envoy's own 503 when there is no connection.
        let dead = lb(&said[0]) == "10.0.0.1:8000";
        talk.send(response_head(
            if dead { "503" } else { "200" },
            "text/plain",
            true,
        ));
        talk.said();
    }
    let open = world.endpoints[0].breaker_state(quorate_routing::now_ms());
    assert_eq!(open, quorate_routing::BreakerState::Open);
}

#[test]
fn what_is_no_conversation_ends_with_a_status() {
    let world = world(1, ExtProcConfig::default());
    for kind in [
        request_body(BODY, true),
        response_body("x", true),
        Kinds::RequestTrailers(trailers()),
        Kinds::ResponseTrailers(trailers()),
        Kinds::RequestHeaders(HttpHeaders::default()),
    ] {
        let mut talk = world.open();
        talk.send(kind);
        assert_eq!(talk.error().code(), Code::InvalidArgument);
        assert!(talk.ended());
    }
    let mut talk = world.open();
    talk.request(CHAT, BODY);
    talk.send(head("POST", CHAT, false, &[]));
    assert_eq!(talk.error().code(), Code::InvalidArgument);
    assert_eq!(world.in_flight(), [0]);
    let mut talk = world.open();
    let watching = ProcessingRequest {
        request: Some(head("POST", CHAT, false, &[])),
        observability_mode: true,
        ..Default::default()
    };
    talk.sender.send(Ok(watching)).unwrap();
    assert_eq!(talk.error().code(), Code::FailedPrecondition);
    let mut talk = world.open();
    talk.sender.send(Ok(ProcessingRequest::default())).unwrap();
    assert_eq!(talk.error().code(), Code::InvalidArgument);
}

#[test]
fn envoys_own_reply_before_the_pick_passes() {
    let world = world(1, ExtProcConfig::default());
    let mut talk = world.open();
    talk.send(head("POST", CHAT, false, &[]));
    talk.send(response_head("408", "text/plain", false));
    talk.send(response_body("too slow", true));
    let said = talk.said();
    assert_eq!(piece(&said[1]), (b"too slow".to_vec(), true));
    assert!(talk.ended());
    assert_eq!(world.in_flight(), [0]);
}

proptest! {
    /// Whatever comes in whatever order: no panic, never more than one place taken, and none when it is over.
    #[test]
    fn any_conversation(steps in prop::collection::vec((0u8..9, any::<bool>()), 0..14), modes in (0i32..6, 0i32..6)) {
        let world = world(2, ExtProcConfig { max_body_bytes: 200, ..Default::default() });
        let mode = |m: i32| BodySendMode::try_from(m).unwrap();
        let mut talk = world.open().modes(mode(modes.0), mode(modes.1));
        for (step, end) in steps {
            let kind = match step {
                0 | 1 => head("POST", CHAT, end, &[]),
                2 => request_body(BODY, end),
                3 => request_body("{", end),
                4 => Kinds::RequestTrailers(trailers()),
                5 => response_head("200", "text/event-stream", end),
                6 => response_body("data: {\"a\":1}\n\n", end),
                7 => response_head("503", "text/plain", end),
                _ => Kinds::ResponseTrailers(trailers()),
            };
            talk.send(kind);
            while let Some(Some(_)) = talk.exchange.next().now_or_never() {}
            prop_assert!(world.in_flight().iter().sum::<u32>() <= 1);
        }
        drop(talk);
        prop_assert_eq!(world.in_flight(), vec![0, 0]);
    }
}
