//! What Envoy is told beside where to go: scores, marks, and numbers made of usage.

use super::super::*;
use super::talk::*;
use crate::config::ExtProcConfig;
use prost_types::value::Kind;
use quorate_routing::config::EndpointPickerConfig;
use quorate_routing::{LoadFigures, PoolPolicy, now_ms};

/// A pool's policy as a configuration with these plugins has it.
fn policy(plugins: &str) -> PoolPolicy {
    let text =
        format!("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n{plugins}");
    let config = EndpointPickerConfig::parse(&text).unwrap().config;
    let compiled = config.compile().unwrap();
    PoolPolicy {
        scheduler: compiled.scheduler,
        reports: compiled.reports,
        ..PoolPolicy::default()
    }
}

#[test]
fn scores_and_marks_are_told_where_that_is_configured() {
    for on in [false, true] {
        let config = ExtProcConfig {
            emit_endpoint_scores: on,
            mark_responses: on,
            ..ExtProcConfig::default()
        };
        let world = with_policy(3, config, policy("- type: queue-scorer\n"));
        for (endpoint, waiting) in world.endpoints.iter().zip([4, 0, 1]) {
            let load = LoadFigures {
                waiting: Some(waiting),
                ..LoadFigures::default()
            };
            endpoint.set_load(load, now_ms());
        }
        let mut talk = world.open();
        let said = talk.request(CHAT, BODY);
        assert_eq!(lb(&said[0]), "10.0.0.2:8000");
        let scores = told(
            &said[0],
            "envoy.lb",
            "x-gateway-destination-endpoint-scores",
        );
        // (max - queue) / (max - min)
        let expected = [
            ("10.0.0.1:8000", 0.0),
            ("10.0.0.2:8000", 1.0),
            ("10.0.0.3:8000", 0.75),
        ];
        match scores {
            Some(Kind::StructValue(scores)) if on => {
                assert_eq!(scores.fields.len(), 3);
                for (address, score) in expected {
                    let kind = scores.fields[address].kind.clone();
                    assert_eq!(kind, Some(Kind::NumberValue(score)), "{address}");
                }
            }
            None if !on => {}
            other => panic!("{on}: {other:?}"),
        }
        talk.send(response_head("200", "text/event-stream", false));
        let mark = header(&talk.said()[0], "x-went-into-resp-headers");
        assert_eq!(mark.as_deref(), on.then_some("true"));
    }
}

/// Without a scheduler that scores, there is nothing to tell; the pick is told all the same.
#[test]
fn a_plain_pick_has_no_scores() {
    let config = ExtProcConfig {
        emit_endpoint_scores: true,
        ..ExtProcConfig::default()
    };
    let world = world(2, config);
    let said = world.open().request(CHAT, BODY);
    assert!(lb(&said[0]).ends_with(":8000"));
    let key = "x-gateway-destination-endpoint-scores";
    assert_eq!(told(&said[0], "envoy.lb", key), None);
}

const REPORTERS: &str = r#"- type: request-attribute-reporter
  parameters:
    attributes:
    - key: {name: x-gateway-inference-request-cost}
      expression: usage.prompt_tokens + 2 * usage.completion_tokens
      condition: has(usage.completion_tokens)
- type: request-attribute-reporter
  name: cached
  parameters:
    attributes:
    - key: {namespace: bills, name: cached}
      expression: usage.prompt_tokens_details.cached_tokens
"#;
const USAGE: &str =
    r#"{"prompt_tokens":10,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}"#;

fn cost(message: &ProcessingResponse) -> [Option<Kind>; 2] {
    [
        told(message, "envoy.lb", "x-gateway-inference-request-cost"),
        told(message, "bills", "cached"),
    ]
}

fn both() -> [Option<Kind>; 2] {
    [16.0, 8.0].map(|number| Some(Kind::NumberValue(number)))
}

/// With the last message of a response, whatever that is, and with no other.
#[test]
fn numbers_made_of_usage_come_with_the_end() {
    use BodySendMode::{Buffered, FullDuplexStreamed, Streamed};
    let world = with_policy(1, ExtProcConfig::default(), policy(REPORTERS));
    for response in [FullDuplexStreamed, Streamed] {
        let mut talk = world.open().modes(FullDuplexStreamed, response);
        talk.request(CHAT, BODY);
        talk.send(response_head("200", "text/event-stream", false));
        talk.send(response_body("data: {\"choices\":[{}]}\n\n", false));
        let last = format!("data: {{\"choices\":[],\"usage\":{USAGE}}}\n\ndata: [DONE]\n\n");
        talk.send(response_body(last, false));
        let said = talk.said();
        assert!(
            said.iter().all(|m| m.dynamic_metadata.is_none()),
            "{said:?}"
        );
        talk.send(response_body("", true));
        assert_eq!(cost(&talk.said()[0]), both(), "{response:?}");
    }

    let json = format!(r#"{{"choices":[],"usage":{USAGE}}}"#);
    let mut talk = world.open().modes(Buffered, Buffered);
    talk.send(head("POST", CHAT, false, &[]));
    talk.send(request_body(BODY, true));
    talk.send(response_head("200", "application/json", false));
    talk.send(response_body(json.as_str(), true));
    assert_eq!(cost(talk.said().last().unwrap()), both());

    let mut talk = world.open();
    talk.request(CHAT, BODY);
    talk.send(response_head("200", "application/json", false));
    talk.send(response_body(json, false));
    talk.send(Kinds::ResponseTrailers(trailers()));
    let said = talk.said();
    assert_eq!(cost(said.last().unwrap()), both());
    assert_eq!(cost(&said[said.len() - 2]), [None, None]);
}

#[test]
fn without_usage_nothing_is_told() {
    let world = with_policy(1, ExtProcConfig::default(), policy(REPORTERS));
    for body in [
        "{}",
        r#"{"usage":null}"#,
        r#"{"usage":{"prompt_tokens":10}}"#,
    ] {
        let mut talk = world.open();
        talk.request(CHAT, BODY);
        talk.send(response_head("200", "application/json", false));
        talk.send(response_body(body, true));
        let said = talk.said();
        assert!(said.iter().all(|m| m.dynamic_metadata.is_none()), "{body}");
    }
}
