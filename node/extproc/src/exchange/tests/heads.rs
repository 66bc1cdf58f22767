//! What a client may say in its headers, and who it is.

use super::talk::*;
use crate::config::ExtProcConfig;
use quorate_routing::identity::{Authenticator, IdentityTable, KeyRule, TenantRule, digest_of};
use std::sync::Arc;

#[test]
fn headers_that_belong_to_the_system_never_come_from_a_client() {
    let world = world(1, ExtProcConfig::default());
    let mut talk = world.open();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let sent = [
        ("x-gateway-destination-endpoint", "6.6.6.6:66"),
        ("x-prefiller-host-port", "6.6.6.6:66"),
        ("x-gateway-destination-endpoint-subset", "6.6.6.6:66"),
        ("x-request-id", "mine"),
        ("traceparent", trace),
        ("tracestate", "a=b"),
    ];
    talk.send(head("POST", CHAT, false, &sent));
    talk.send(request_body(BODY, true));
    let said = talk.said();
    let changes = common(&said[0]).header_mutation.unwrap();
    let mut removed = changes.remove_headers.clone();
    removed.sort();
    assert_eq!(
        removed,
        [
            "x-gateway-destination-endpoint-subset",
            "x-prefiller-host-port"
        ]
    );
    assert_eq!(
        set(&changes, "x-gateway-destination-endpoint").as_deref(),
        Some("10.0.0.1:8000")
    );
    assert_eq!(
        (set(&changes, "x-request-id"), set(&changes, "traceparent")),
        (None, None)
    );
    talk.send(response_head("200", "text/plain", true));
    assert_eq!(
        header(&talk.said()[0], "x-request-id").as_deref(),
        Some("mine")
    );
}

#[test]
fn clients_are_asked_who_they_are_where_the_gateway_asks() {
    let world = world(1, ExtProcConfig::default());
    let tenant = TenantRule {
        name: "t".into(),
        models: vec!["m".into()],
        ..TenantRule::default()
    };
    let key = KeyRule {
        name: "k".into(),
        tenant: "t".into(),
        sha256: digest_of("secret"),
        ..KeyRule::default()
    };
    let door = Authenticator::default();
    let table = IdentityTable::build(&[tenant], &[key], &IdentityTable::default(), 1);
    door.set_table(Arc::new(table));
    world.shared.set_authenticator(Arc::new(door));

    // Before the body is sent, and for the list of models as well.
    for (method, path) in [("POST", CHAT), ("GET", "/v1/models")] {
        let mut talk = world.open();
        talk.send(head(
            method,
            path,
            method == "GET",
            &[("x-api-key", "wrong")],
        ));
        let said = talk.said();
        assert_eq!(code(&talk.immediate(said)), 401);
    }
    let known = [
        ("authorization", "Bearer secret"),
        ("x-llm-d-inference-fairness-id", "somebody-else"),
    ];
    let mut talk = world.open();
    talk.send(head("POST", CHAT, false, &known));
    talk.send(request_body(BODY, true));
    let said = talk.said();
    let mut removed = common(&said[0]).header_mutation.unwrap().remove_headers;
    removed.sort();
    assert_eq!(removed, ["authorization", "x-llm-d-inference-fairness-id"]);
    assert_eq!(world.in_flight(), [1]);
    drop(talk);
    let mut talk = world.open();
    talk.send(head("POST", CHAT, false, &known));
    talk.send(request_body(r#"{"model":"m2"}"#, true));
    let said = talk.said();
    assert_eq!(code(&talk.immediate(said)), 403);
    assert_eq!(world.in_flight(), [0]);
}

/// Another model is asked for, and usage that the client did not ask for; the client sees neither, however the answer is cut.
#[test]
fn what_is_changed_on_the_way_there_is_changed_back() {
    let config = ExtProcConfig {
        trust_headers: Some(true),
        ..Default::default()
    };
    let world = world(1, config);
    let answer = "data: {\"model\":\"m-two\",\"choices\":[{\"delta\":{\"content\":\"m-two\"}}]}\n\n\
        data: {\"model\":\"m-two\",\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n\
        data: [DONE]\n\n";
    for cut in 1..answer.len() {
        let mut talk = world.open();
        let rewrite = ("x-llm-d-model-name-rewrite", "m-two");
        talk.send(head("POST", CHAT, false, &[rewrite]));
        talk.send(request_body(r#"{"stream":true,"model":"m"}"#, true));
        let said = talk.said();
        let sent = piece(&said[1]).0;
        assert_eq!(
            header(&said[0], "content-length"),
            Some(sent.len().to_string())
        );
        let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
        assert_eq!(sent["model"], "m-two");
        assert_eq!(sent["stream_options"]["include_usage"], true);

        talk.send(response_head("200", "text/event-stream", false));
        talk.send(response_body(&answer[..cut], false));
        talk.send(response_body(&answer[cut..], true));
        let said = talk.said();
        let passed: Vec<u8> = said[1..].iter().flat_map(|m| piece(m).0).collect();
        assert_eq!(
            String::from_utf8(passed).unwrap(),
            "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"m-two\"}}]}\n\ndata: [DONE]\n\n"
        );
        assert!(piece(said.last().unwrap()).1);
        assert_eq!(world.in_flight(), [0]);
    }
}
