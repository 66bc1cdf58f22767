//! Requests that are sent under another model, and answers that are changed back.

use crate::support::*;
use quorate_gateway::GatewayConfig;
use quorate_routing::{
    ModelRewrite, ModelRewrites, PoolPolicy, RewriteRule, RewriteTarget, ServedModel,
};
use std::sync::{Arc, Mutex};

/// `alias` goes to `m`.
fn policy(targets: &[(&str, Option<u32>)], sticky: bool) -> PoolPolicy {
    let targets = targets
        .iter()
        .map(|(model, weight)| RewriteTarget {
            model: (*model).into(),
            weight: *weight,
        })
        .collect();
    PoolPolicy {
        rewrites: Arc::new(ModelRewrites::new(vec![ModelRewrite {
            name: "canary".into(),
            sticky,
            rules: vec![RewriteRule {
                models: vec!["alias".into()],
                targets,
            }],
        }])),
        ..PoolPolicy::default()
    }
}

type Bodies = Arc<Mutex<Vec<String>>>;

/// An engine that remembers bodies and answers with its model in every place.
async fn engine() -> (Engine, Bodies) {
    let bodies = Bodies::default();
    let remember = Arc::clone(&bodies);
    let engine = Engine::start(move |seen| {
        let body = String::from_utf8(seen.body.to_vec()).unwrap();
        remember.lock().unwrap().push(body);
        async {
            answer(
                200,
                "application/json",
                r#"{"id":"x","model":"m","choices":[{"message":{"content":"\"model\":\"m\"","model":"m"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
            )
        }
    })
    .await;
    (engine, bodies)
}

fn front(engine: &Engine, policy: PoolPolicy) -> Front {
    Front::with(config(), policy, endpoints(&[engine]))
}

#[tokio::test]
async fn the_engine_sees_the_target_and_the_client_its_own_name() {
    let (engine, bodies) = engine().await;
    let front = front(&engine, policy(&[("m", None)], false));
    let reply = front
        .post(CHAT_PATH, r#"{ "a": 1.50, "model":"alias","messages":[]}"#)
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.text(),
        r#"{"id":"x","model":"alias","choices":[{"message":{"content":"\"model\":\"m\"","model":"m"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#
    );
    let length = reply.body.len().to_string();
    assert_eq!(reply.header("content-length"), Some(length.as_str()));
    assert_eq!(
        bodies.lock().unwrap()[..],
        [r#"{ "a": 1.50, "model":"m","messages":[]}"#]
    );
    // The alias is on the list of models, and the model itself is served as it was.
    let models = front.get("/v1/models").await.json();
    let ids: Vec<_> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].clone())
        .collect();
    assert_eq!(ids, ["alias", "m"]);
    assert_eq!(front.post(CHAT_PATH, CHAT).await.json()["model"], "m");
    let page = crate::metrics::recorder().render();
    assert!(page.contains(
        r#"llm_d_epp_model_rewrite_decisions_total{model_rewrite_name="canary",model_name="alias",target_model="m"}"#
    ), "{page}");
}

#[tokio::test]
async fn an_answer_in_pieces_is_restored_across_them() {
    let engine = Engine::start(|_| async {
        let (sender, mut response) = events();
        response
            .headers_mut()
            .insert("content-type", "application/json".parse().unwrap());
        tokio::spawn(async move {
            for piece in ["{\"mod", "el\": \"", "m", "\",\"n\":", "1}"] {
                sender.send(Ok(piece.into())).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        response
    })
    .await;
    let front = front(&engine, policy(&[("m", None)], false));
    let reply = front.post(CHAT_PATH, r#"{"model":"alias"}"#).await;
    assert_eq!(
        (reply.text().as_str(), reply.whole),
        (r#"{"model": "alias","n":1}"#, true)
    );
    assert_eq!(reply.header("content-length"), None);
    eventually("the place is given back", || front.reserved() == 0).await;
}

#[tokio::test]
async fn a_stream_is_restored_and_has_no_usage_that_was_not_asked_for() {
    let bodies = Bodies::default();
    let remember = Arc::clone(&bodies);
    let engine = Engine::start(move |seen| {
        let body = String::from_utf8(seen.body.to_vec()).unwrap();
        remember.lock().unwrap().push(body);
        async {
            let (sender, response) = events();
            tokio::spawn(async move {
                for piece in [
                    "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\nda",
                    "ta: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"m\\\"\"}}]}\n\n",
                    "data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,",
                    "\"completion_tokens\":40}}\n\ndata: [DONE]\n\n",
                ] {
                    sender.send(Ok(piece.into())).await.unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            });
            response
        }
    })
    .await;
    let front = front(&engine, policy(&[("m", None)], false));
    let chunks = "data: {\"model\":\"alias\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
        data: {\"model\":\"alias\",\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"m\\\"\"}}]}\n\n";
    let usage = "data: {\"model\":\"alias\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":40}}\n\n";
    let plain = front
        .post(CHAT_PATH, r#"{"model":"alias","stream":true}"#)
        .await;
    assert_eq!(plain.text(), format!("{chunks}data: [DONE]\n\n"));
    let asked = r#"{"model":"alias","stream":true,"stream_options":{"include_usage":true}}"#;
    let asked = front.post(CHAT_PATH, asked).await;
    assert_eq!(asked.text(), format!("{chunks}{usage}data: [DONE]\n\n"));
    assert_eq!(
        bodies.lock().unwrap()[..],
        [
            r#"{"stream_options":{"include_usage":true},"model":"m","stream":true}"#,
            r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
        ]
    );
    // What the client does not see is still measured.
    eventually("both are recorded", || front.handle.in_flight() == 0).await;
    let page = crate::metrics::recorder().render();
    let of = |name: &str| {
        page.lines()
            .find(|line| {
                line.starts_with(name)
                    && line.contains("model_name=\"alias\",target_model_name=\"m\"")
            })
            .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert!(
        of("llm_d_epp_request_output_tokens_sum") >= Some(80.0),
        "{page}"
    );
    // 39 gaps between 40 tokens, though they came in two events.
    assert!(
        of("llm_d_epp_request_streaming_itl_seconds_count") >= Some(78.0),
        "{page}"
    );
}

#[tokio::test]
async fn usage_is_not_asked_for_if_that_is_turned_off_or_makes_no_sense() {
    let (engine, bodies) = engine().await;
    let off = Front::with(
        GatewayConfig {
            stream_usage: false,
            ..config()
        },
        PoolPolicy::default(),
        endpoints(&[&engine]),
    );
    assert_eq!(off.post(CHAT_PATH, CHAT_STREAM).await.status, 200);
    let on = front(&engine, PoolPolicy::default());
    let message = r#"{"model":"m","stream":true,"max_tokens":1}"#;
    on.post("/v1/messages", message).await;
    on.post(CHAT_PATH, CHAT).await;
    assert_eq!(bodies.lock().unwrap()[..], [CHAT_STREAM, message, CHAT]);
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_of_an_event_ends_with_an_error() {
    let engine = Engine::start(|_| async {
        let (sender, response) = events();
        tokio::spawn(async move {
            sender
                .send(Ok("data: {\"choices\":[{}]}\n\ndata: {\"cho".into()))
                .await
                .unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let _ = sender.send(Err(std::io::Error::other("gone"))).await;
        });
        response
    })
    .await;
    let front = front(&engine, PoolPolicy::default());
    let reply = front.post(CHAT_PATH, CHAT_STREAM).await;
    let text = reply.text();
    let rest = text.strip_prefix("data: {\"choices\":[{}]}\n\n").unwrap();
    assert!(
        reply.whole && rest.starts_with("data: {\"error\"") && rest.ends_with("\n\n"),
        "{rest}"
    );
}

#[tokio::test]
async fn headers_name_a_model_only_for_trusted_callers() {
    let (engine, bodies) = engine().await;
    let header = "x-gateway-model-name-rewrite: lora\r\naccept-encoding: gzip\r\n";
    for (trust_headers, body) in [
        (None, r#"{"model":"lora"}"#),
        (Some(true), r#"{"model":"lora"}"#),
        (Some(false), r#"{"model":"m"}"#),
    ] {
        let config = GatewayConfig {
            trust_headers,
            ..config()
        };
        let front = Front::with(config, PoolPolicy::default(), endpoints(&[&engine]));
        let reply = front.post_with(CHAT_PATH, header, r#"{"model":"m"}"#).await;
        assert_eq!(reply.status, 200);
        assert_eq!(bodies.lock().unwrap().pop().as_deref(), Some(body));
    }
}

#[tokio::test]
async fn a_target_that_only_some_serve_goes_only_there() {
    let (with, bodies) = engine().await;
    let (without, none) = engine().await;
    let all = endpoints(&[&with, &without]);
    all[0].set_models(
        ["m", "lora"]
            .map(|id| ServedModel {
                id: id.into(),
                ..ServedModel::default()
            })
            .to_vec(),
    );
    let front = Front::with(config(), policy(&[("lora", None)], false), all);
    for _ in 0..10 {
        assert_eq!(
            front.post(CHAT_PATH, r#"{"model":"alias"}"#).await.status,
            200
        );
    }
    assert_eq!(
        (bodies.lock().unwrap().len(), none.lock().unwrap().len()),
        (10, 0)
    );
}

#[tokio::test]
async fn a_sticky_rewrite_keeps_a_session_on_its_target() {
    let (engine, bodies) = engine().await;
    let front = front(&engine, policy(&[("m", Some(1)), ("n", Some(1))], true));
    let mut targets = Vec::new();
    for session in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        for _ in 0..4 {
            let header = format!("x-session-id: {session}\r\n");
            front
                .post_with(CHAT_PATH, &header, r#"{"model":"alias"}"#)
                .await;
        }
        let mut seen = std::mem::take(&mut *bodies.lock().unwrap());
        seen.dedup();
        assert_eq!(seen.len(), 1, "{seen:?}");
        targets.append(&mut seen);
    }
    targets.sort_unstable();
    targets.dedup();
    assert_eq!(targets, [r#"{"model":"m"}"#, r#"{"model":"n"}"#]);
}

#[tokio::test]
async fn a_rule_for_everything_gives_a_model_to_requests_without_one() {
    let (engine, bodies) = engine().await;
    let generic = PoolPolicy {
        rewrites: Arc::new(ModelRewrites::new(vec![ModelRewrite {
            name: "all".into(),
            sticky: false,
            rules: vec![RewriteRule {
                models: Vec::new(),
                targets: vec![RewriteTarget {
                    model: "m".into(),
                    weight: None,
                }],
            }],
        }])),
        ..PoolPolicy::default()
    };
    let front = front(&engine, generic);
    for body in [r#"{"messages":[]}"#, "{}", r#"{"model":"anything"}"#] {
        assert_eq!(front.post(CHAT_PATH, body).await.status, 200, "{body}");
    }
    assert_eq!(
        bodies.lock().unwrap()[..],
        [
            r#"{"model":"m","messages":[]}"#,
            r#"{"model":"m"}"#,
            r#"{"model":"m"}"#
        ]
    );
}
