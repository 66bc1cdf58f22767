//! Who is let in, for what, and how often; in the client's own protocol.

use crate::support::*;
use quorate_routing::identity::{
    Authenticator, IdentityTable, KeyRule, Limits, TenantRule, digest_of,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn tenant(name: &str, limits: Limits) -> TenantRule {
    TenantRule {
        name: name.into(),
        limits,
        ..TenantRule::default()
    }
}

fn key(secret: &str, tenant: &str) -> KeyRule {
    KeyRule {
        name: secret.into(),
        tenant: tenant.into(),
        sha256: digest_of(secret),
        ..KeyRule::default()
    }
}

/// A gateway that asks, in front of one engine that shows the headers that it got.
async fn guarded(tenants: &[TenantRule], keys: &[KeyRule]) -> (Engine, Front, Arc<Authenticator>) {
    let engine = Engine::start(|seen| async move {
        let names: Vec<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        let flow = seen
            .headers
            .get("x-llm-d-inference-fairness-id")
            .and_then(|v| v.to_str().ok());
        let body = serde_json::json!({
            "model": "m", "headers": names, "flow": flow,
            "usage": {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}
        });
        answer(200, "application/json", body.to_string())
    })
    .await;
    let authenticator = Arc::new(Authenticator::default());
    let table = IdentityTable::build(
        tenants,
        keys,
        &IdentityTable::default(),
        quorate_routing::now_ms(),
    );
    authenticator.set_table(Arc::new(table));
    let front = Front::before(config(), &[&engine]);
    front.shared.set_authenticator(Arc::clone(&authenticator));
    (engine, front, authenticator)
}

async fn ask(front: &Front, path: &str, headers: &str, body: &str) -> Reply {
    let mut client = front.connect().await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: front\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    client.send(format!("{head}{body}").as_bytes()).await;
    client.reply().await
}

#[tokio::test]
async fn nobody_gets_in_without_a_key() {
    let (engine, front, _) = guarded(&[tenant("t", Limits::default())], &[key("good", "t")]).await;
    for (headers, code) in [
        ("", "missing_api_key"),
        ("authorization: Basic Z29vZA==\r\n", "missing_api_key"),
        ("authorization: Bearer bad\r\n", "invalid_api_key"),
        ("x-api-key: bad\r\n", "invalid_api_key"),
    ] {
        let reply = ask(&front, CHAT_PATH, headers, CHAT).await;
        assert_eq!(
            (reply.status, reply.header("www-authenticate")),
            (401, Some("Bearer")),
            "{headers}"
        );
        let error = &reply.json()["error"];
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some("authentication_error"), Some(code)),
            "{headers}"
        );
        let anthropic = ask(&front, "/v1/messages", headers, CHAT).await.json();
        assert_eq!(anthropic["error"]["type"], "authentication_error");
    }
    // A body that nobody reads is no reason for a broken connection.
    let large = "x".repeat(1 << 20);
    assert_eq!(ask(&front, CHAT_PATH, "", &large).await.status, 401);
    assert_eq!(front.get("/v1/models").await.status, 401);
    assert_eq!(front.get("/v1/models/m").await.status, 401);
    assert_eq!(front.get("/health").await.status, 200);
    assert_eq!(engine.requests(), 0);
    assert_eq!((front.reserved(), front.handle.in_flight()), (0, 0));
}

#[tokio::test]
async fn a_key_lets_in_and_goes_no_further() {
    let narrow = TenantRule {
        models: vec!["m".into()],
        fairness_id: "flow-7".into(),
        ..tenant("t", Limits::default())
    };
    let elsewhere = TenantRule {
        models: vec!["other*".into()],
        objectives: vec!["slow".into()],
        ..tenant("u", Limits::default())
    };
    let keys = [key("good", "t"), key("else", "u")];
    let (engine, front, _) = guarded(&[narrow, elsewhere], &keys).await;
    for headers in [
        "authorization: Bearer good\r\n",
        "x-api-key: good\r\nx-gateway-inference-fairness-id: cheat\r\n",
    ] {
        let reply = ask(&front, CHAT_PATH, headers, CHAT).await;
        assert_eq!(reply.status, 200, "{headers}");
        let seen = reply.json()["headers"].to_string();
        assert!(
            !seen.contains("authorization") && !seen.contains("x-api-key"),
            "{seen}"
        );
    }
    let objective = "x-api-key: good\r\nx-llm-d-inference-objective: any\r\n";
    assert_eq!(ask(&front, CHAT_PATH, objective, CHAT).await.status, 200);
    let served = engine.requests();
    let refused = ask(&front, CHAT_PATH, "x-api-key: else\r\n", CHAT).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json()["error"]["code"], "model_not_allowed");
    assert_eq!(engine.requests(), served);
    // The list has what the caller may use.
    for (key, models) in [("good", 1), ("else", 0)] {
        let mut client = front.connect().await;
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: front\r\nx-api-key: {key}\r\n\r\n");
        client.send(head.as_bytes()).await;
        let list = client.reply().await.json();
        assert_eq!(list["data"].as_array().unwrap().len(), models, "{key}");
    }
}

#[tokio::test]
async fn limits_are_said_with_the_time_to_wait() {
    let tokens = Limits {
        tokens_per_minute: Some(90),
        ..Limits::default()
    };
    let one = Limits {
        requests_per_second: Some(0.1),
        ..Limits::default()
    };
    let (engine, front, authenticator) = guarded(
        &[tenant("tokens", tokens), tenant("one", one)],
        &[key("a", "tokens"), key("b", "one")],
    )
    .await;
    // 100 tokens are used of 90, so the next has to wait for the 10 and a little more.
    assert_eq!(
        ask(&front, CHAT_PATH, "x-api-key: a\r\n", CHAT)
            .await
            .status,
        200
    );
    let table = authenticator.table();
    let budget = table.budget_of("tenant/tokens").unwrap();
    eventually("the tokens are counted", || budget.totals().tokens == 100).await;
    let limited = ask(&front, CHAT_PATH, "x-api-key: a\r\n", CHAT).await;
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=7).contains(&wait), "{wait}");
    assert_eq!(limited.json()["error"]["code"], "rate_limit_exceeded");

    assert_eq!(
        ask(&front, CHAT_PATH, "x-api-key: b\r\n", CHAT)
            .await
            .status,
        200
    );
    let limited = ask(&front, "/v1/messages", "x-api-key: b\r\n", CHAT).await;
    assert_eq!(limited.status, 429);
    assert_eq!(limited.json()["error"]["type"], "rate_limit_error");
    assert_eq!(engine.requests(), 2);
    assert_eq!(budget.totals().open, 0);
}

#[tokio::test]
async fn a_request_is_open_until_its_answer_has_ended() {
    let count = Arc::new(AtomicUsize::new(0));
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let counted = Arc::clone(&count);
    let engine = Engine::start(move |_| {
        let (sender, counted) = (sender.clone(), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, SeqCst);
            let (events, response) = events();
            sender.send(events).unwrap();
            response
        }
    })
    .await;
    let mut receiver = receiver;
    let limits = Limits {
        concurrent: Some(1),
        ..Limits::default()
    };
    let authenticator = Arc::new(Authenticator::default());
    let table = IdentityTable::build(
        &[tenant("t", limits)],
        &[key("k", "t")],
        &IdentityTable::default(),
        quorate_routing::now_ms(),
    );
    authenticator.set_table(Arc::new(table));
    let front = Front::before(config(), &[&engine]);
    front.shared.set_authenticator(Arc::clone(&authenticator));
    let budget = Arc::clone(authenticator.table().budget_of("tenant/t").unwrap());

    let mut client = front.connect().await;
    let body = r#"{"model":"m","stream":true,"messages":[]}"#;
    let head = format!(
        "POST {CHAT_PATH} HTTP/1.1\r\nhost: front\r\nx-api-key: k\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(head.as_bytes()).await;
    let events = receiver.recv().await.unwrap();
    assert_eq!(
        ask(&front, CHAT_PATH, "x-api-key: k\r\n", CHAT)
            .await
            .status,
        429
    );
    // The client goes away in the middle.
    events.send(Ok("data: {}\n\n".into())).await.unwrap();
    drop(client);
    eventually("the place is free again", || budget.totals().open == 0).await;
    assert_eq!(count.load(SeqCst), 1);
}
