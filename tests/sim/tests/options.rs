//! What chats and completions take beyond prompts: tools and log probabilities.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::Mode;
use serde_json::{Value, json};
use support::{post, start};

fn with_tools(choice: Value) -> Value {
    json!({
        "messages": [{"role": "user", "content": "How warm is it?"}],
        "tool_choice": choice,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "required": ["city", "days"], "properties": {
                "city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 5},
                "unit": {"enum": ["C", "F"]},
            }}}}, {"type": "function", "function": {"name": "now"}}],
    })
}

fn chunks(events: &[String]) -> Vec<Value> {
    let data = events.iter().filter(|event| *event != "[DONE]");
    data.map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

/// What a client puts together from the deltas of a stream.
fn assembled(chunks: &[Value]) -> Vec<Value> {
    let mut calls: Vec<Value> = Vec::new();
    for delta in chunks.iter().filter_map(|chunk| {
        chunk["choices"][0]["delta"]["tool_calls"]
            .as_array()
            .map(|calls| calls[0].clone())
    }) {
        let at = delta["index"].as_u64().unwrap() as usize;
        if delta.get("id").is_some() {
            assert_eq!(at, calls.len(), "calls are announced in order");
            calls.push(
                json!({"id": delta["id"], "type": delta["type"], "function": delta["function"]}),
            );
        } else {
            assert_eq!(at + 1, calls.len(), "arguments follow their announcement");
            let more = delta["function"]["arguments"].as_str().unwrap();
            let so_far = calls[at]["function"]["arguments"].as_str().unwrap();
            calls[at]["function"]["arguments"] = json!(format!("{so_far}{more}"));
        }
    }
    calls
}

#[tokio::test]
async fn tool_calls_streamed_and_whole_are_the_same() {
    let sim = start(|_| {}).await;
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [named, json!("required")] {
        for seed in 0..8 {
            let mut request = with_tools(choice.clone());
            request["seed"] = json!(seed);
            let body = post(sim.addr(), "/v1/chat/completions", &request)
                .await
                .json();
            let answer = &body["choices"][0];
            assert_eq!(answer["finish_reason"], "tool_calls");
            assert_eq!(answer["message"]["content"], Value::Null);
            let calls = answer["message"]["tool_calls"].as_array().unwrap();
            assert!((1..=2).contains(&calls.len()));
            for call in calls {
                assert_eq!(call["type"], "function");
                assert!(call["id"].as_str().unwrap().starts_with("chatcmpl-tool-"));
                let arguments: Value =
                    serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
                if call["function"]["name"] == "get_weather" {
                    assert!(arguments["city"].is_string());
                    assert!((1..=5).contains(&arguments["days"].as_i64().unwrap()));
                } else {
                    assert_eq!(arguments, json!({}));
                }
            }
            request["stream"] = json!(true);
            let events = post(sim.addr(), "/v1/chat/completions", &request)
                .await
                .events();
            let chunks = chunks(&events);
            assert_eq!(&assembled(&chunks), calls, "reproducible, and the same");
            let last = &chunks[chunks.len() - 1]["choices"][0];
            assert_eq!(last["finish_reason"], "tool_calls");
        }
    }
}

#[tokio::test]
async fn a_model_may_choose_text_and_a_limit_cuts_calls() {
    let sim = start(|c| c.tool_calls.extra_call = 0).await;
    for choice in ["auto", "none"] {
        let body = post(
            sim.addr(),
            "/v1/chat/completions",
            &with_tools(json!(choice)),
        )
        .await
        .json();
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        assert_eq!(body["choices"][0]["message"]["tool_calls"], json!([]));
        assert!(body["choices"][0]["message"]["content"].is_string());
    }
    let mut request = with_tools(json!("required"));
    request["max_tokens"] = json!(1);
    let body = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .json();
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 1);

    let always = start(|c| {
        c.tool_calls.extra_call = 100;
        c.mode = Mode::Echo;
    })
    .await;
    let calls = |body: Value| {
        let calls = &body["choices"][0]["message"]["tool_calls"];
        calls.as_array().unwrap().len()
    };
    let request = with_tools(json!("required"));
    let body = post(always.addr(), "/v1/chat/completions", &request).await;
    assert_eq!(calls(body.json()), 2, "as many as there are tools");
    let request = with_tools(json!("auto"));
    let body = post(always.addr(), "/v1/chat/completions", &request).await;
    assert_eq!(
        calls(body.json()),
        0,
        "echo mode repeats unless it must call"
    );
}

#[tokio::test]
async fn wrong_tools_and_logprobs_are_refused() {
    let sim = start(|_| {}).await;
    let mut cases = Vec::new();
    for (field, value, param) in [
        ("tools", json!("x"), "tools"),
        ("tools", json!([{"type": "function"}]), "tools"),
        ("tools", json!(null), "tool_choice"),
        ("tool_choice", json!("perhaps"), "tool_choice"),
        ("top_logprobs", json!(2), "top_logprobs"),
        ("top_logprobs", json!(-1), "top_logprobs"),
        ("logprobs", json!(5), "logprobs"),
    ] {
        let mut request = with_tools(json!("required"));
        request[field] = value;
        cases.push(("/v1/chat/completions", request, param));
    }
    let mut broken = with_tools(json!("auto"));
    broken["tools"][0]["function"]["parameters"]["properties"]["days"]["minimum"] = json!(9);
    cases.push(("/v1/chat/completions", broken.clone(), "tools"));
    for logprobs in [json!(21), json!(-1), json!(true)] {
        let request = json!({"prompt": "x", "logprobs": logprobs});
        cases.push(("/v1/completions", request, "logprobs"));
    }
    for (path, request, param) in cases {
        let answer = post(sim.addr(), path, &request).await;
        assert_eq!(answer.status, 400, "{request}");
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["param"], &error["type"]),
            (&json!(param), &json!("BadRequestError")),
            "{request}"
        );
    }
    let lax = start(|c| c.tool_calls.skip_tool_validation = true).await;
    let answer = post(lax.addr(), "/v1/chat/completions", &broken).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn chat_logprobs() {
    let sim = start(|c| c.mode = Mode::Echo).await;
    let mut request = json!({
        "messages": [{"role": "user", "content": "Say the naïve word."}], "logprobs": true, "top_logprobs": 3,
    });
    let body = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .json();
    let content = body["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(body["usage"]["completion_tokens"], content.len());
    let mut bytes = Vec::new();
    for token in &content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["token"], token["token"]);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        bytes.extend(
            token["bytes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|byte| byte.as_u64().unwrap() as u8),
        );
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), "Say the naïve word.</s>");

    request["stream"] = json!(true);
    let events = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .events();
    let streamed: Vec<Value> = chunks(&events)
        .iter()
        .filter_map(|chunk| {
            chunk["choices"][0]["logprobs"]["content"]
                .as_array()
                .cloned()
        })
        .flatten()
        .collect();
    assert_eq!(streamed, content);

    let mut request = with_tools(json!("required"));
    request["logprobs"] = json!(true);
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let events = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .events();
    let chunks = chunks(&events);
    let tokens: usize = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
        .map(Vec::len)
        .sum();
    let usage = &chunks[chunks.len() - 1]["usage"];
    assert_eq!(
        usage["completion_tokens"], tokens,
        "calls have them as well"
    );
}

#[tokio::test]
async fn completion_logprobs() {
    let sim = start(|_| {}).await;
    let mut request =
        json!({"prompt": "Größe of the word", "logprobs": 2, "max_tokens": 6, "echo": true});
    let body = post(sim.addr(), "/v1/completions", &request).await.json();
    let choice = &body["choices"][0];
    let logprobs = &choice["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let count = body["usage"]["total_tokens"].as_u64().unwrap() as usize;
    for name in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
        assert_eq!(list(name).len(), count, "{name}");
    }
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    for at in 1..count {
        let (own, top) = (&list("tokens")[at], &list("top_logprobs")[at]);
        let own = own.as_str().unwrap();
        assert_eq!(top[own], list("token_logprobs")[at]);
        assert_eq!(top.as_object().unwrap().len(), 3, "itself and two others");
        let offset = list("text_offset")[at].as_u64().unwrap() as usize;
        if !own.contains('\u{fffd}') {
            let there: String = text[offset..].iter().take(own.chars().count()).collect();
            assert_eq!(there, own);
        }
    }
    request["stream"] = json!(true);
    let events = post(sim.addr(), "/v1/completions", &request).await.events();
    let chunks = chunks(&events);
    for name in ["text_offset", "token_logprobs", "tokens", "top_logprobs"] {
        let streamed: Vec<Value> = chunks
            .iter()
            .flat_map(|chunk| {
                chunk["choices"][0]["logprobs"][name]
                    .as_array()
                    .unwrap()
                    .clone()
            })
            .collect();
        assert_eq!(streamed, list(name), "{name}");
    }
}
