//! Answers of each API over real sockets, streamed and whole.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::Mode;
use serde_json::{Value, json};
use std::time::Duration;
use support::{call, chunks, get, post, read_until, send, start};

fn hi(stream: bool) -> Value {
    json!({"model": "sim-model", "messages": [{"role": "user", "content": "Say the word."}], "max_tokens": 4, "stream": stream})
}

#[tokio::test]
async fn chat_whole() {
    let sim = start(|_| {}).await;
    let answer = post(sim.addr(), "/v1/chat/completions", &hi(false)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "sim-model");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["message"]["role"], "assistant");
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.ends_with('.') && text.len() > 6, "{text}");
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 4);
    let (prompt, total) = (
        usage["prompt_tokens"].as_u64().unwrap(),
        usage["total_tokens"].as_u64().unwrap(),
    );
    assert_eq!(total, prompt + 4);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);

    let other = start(|_| {}).await;
    let again = post(other.addr(), "/v1/chat/completions", &hi(false))
        .await
        .json();
    assert_eq!(
        again["choices"], body["choices"],
        "two servers with one seed say the same"
    );
}

/// What vLLM writes, byte for byte, ids and times aside.
#[tokio::test]
async fn chat_stream_is_golden() {
    let sim = start(|c| c.mode = Mode::Echo).await;
    let mut request = hi(true);
    request["stream_options"] = json!({"include_usage": true});
    request["max_tokens"] = json!(20);
    let answer = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[("x-request-id", "r1")],
        &request.to_string(),
    )
    .await;
    assert_eq!(
        answer.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let created = answer.events()[0]
        .split("\"created\":")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .to_owned();
    let chunk = |rest: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-r1\",\"object\":\"chat.completion.chunk\",\"created\":{created},\
             \"model\":\"sim-model\",{rest}}}\n\n"
        )
    };
    let delta = |delta: &str, end: &str| {
        chunk(&format!(
            "\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{end}}}]"
        ))
    };
    let expected = [
        delta(r#"{"role":"assistant","content":""}"#, "null"),
        delta(r#"{"content":"Say"}"#, "null"),
        delta(r#"{"content":" the"}"#, "null"),
        delta(r#"{"content":" word"}"#, "null"),
        delta(r#"{"content":"."}"#, "null"),
        delta(r#"{"content":""}"#, r#""stop","stop_reason":null"#),
        chunk(
            "\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"total_tokens\":13,\"completion_tokens\":5,\
             \"prompt_tokens_details\":{\"cached_tokens\":0}}",
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(answer.text(), expected.concat());
}

#[tokio::test]
async fn every_event_is_a_chunk_of_its_own() {
    let sim = start(|_| {}).await;
    let mut stream = send(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &[],
        &hi(true).to_string(),
    )
    .await;
    let (raw, _) = read_until(&mut stream, Duration::from_secs(10)).await;
    let head = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let (chunks, ended) = chunks(&raw[head + 4..]);
    assert!(ended);
    assert_eq!(chunks.len(), 6, "role, four tokens, [DONE]");
    assert!(
        chunks
            .iter()
            .all(|c| c.starts_with(b"data: ") && c.ends_with(b"\n\n"))
    );
}

#[tokio::test]
async fn n_choices_stop_and_continuous_usage() {
    let sim = start(|_| {}).await;
    let mut request = hi(false);
    request["n"] = json!(3);
    let body = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .json();
    let texts: Vec<&Value> = body["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["message"]["content"])
        .collect();
    assert_eq!(texts.len(), 3);
    assert_ne!(texts[0], texts[1]);
    assert_eq!(body["usage"]["completion_tokens"], 12);
    assert_eq!(body["usage"]["prompt_tokens"], 8);

    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let answer = post(sim.addr(), "/v1/chat/completions", &request).await;
    let events = answer.events();
    assert_eq!(
        events
            .iter()
            .filter(|e| e.contains("\"role\":\"assistant\""))
            .count(),
        3
    );
    assert_eq!(
        events
            .iter()
            .filter(|e| e.contains("\"finish_reason\":\"length\""))
            .count(),
        3
    );
    assert!(
        events[..events.len() - 1]
            .iter()
            .all(|e| e.contains("\"usage\":{"))
    );
    for (choice, text) in texts.iter().enumerate() {
        let streamed: String = events
            .iter()
            .filter_map(|e| serde_json::from_str::<Value>(e).ok())
            .flat_map(|e| e["choices"].as_array().unwrap().clone())
            .filter(|c| c["index"] == choice)
            .filter_map(|c| c["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(&json!(streamed), *text);
    }

    let first_word = texts[0]
        .as_str()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned();
    let mut request = hi(false);
    request["stop"] = json!([first_word]);
    let body = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .json();
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][0]["stop_reason"], json!(first_word));
    assert!(
        !body["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .contains(&first_word)
    );
}

#[tokio::test]
async fn responses_and_messages() {
    let sim = start(|_| {}).await;
    let request = json!({"input": "Say it", "instructions": "Be brief", "max_output_tokens": 5});
    let body = post(sim.addr(), "/v1/responses", &request).await.json();
    assert_eq!(
        (&body["object"], &body["status"]),
        (&json!("response"), &json!("incomplete"))
    );
    assert_eq!(body["usage"]["output_tokens"], 5);
    let text = body["output"][0]["content"][0]["text"].clone();
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let answer = post(sim.addr(), "/v1/responses", &streamed).await;
    let kinds: Vec<String> = answer
        .text()
        .lines()
        .filter_map(|l| l.strip_prefix("event: "))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    let last: Value = serde_json::from_str(answer.events().last().unwrap()).unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
    let items =
        json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "Say it"}]}]});
    assert_eq!(post(sim.addr(), "/v1/responses", &items).await.status, 200);

    let request = json!({
        "model": "sim-model", "max_tokens": 3, "system": "Be brief",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Say it"}]}],
    });
    let body = post(sim.addr(), "/v1/messages", &request).await.json();
    assert_eq!(
        (&body["type"], &body["stop_reason"]),
        (&json!("message"), &json!("max_tokens"))
    );
    assert_eq!(body["usage"]["output_tokens"], 3);
    let text = body["content"][0]["text"].as_str().unwrap().to_owned();
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let events = post(sim.addr(), "/v1/messages", &streamed).await.events();
    let events: Vec<Value> = events
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    let joined: String = events
        .iter()
        .filter_map(|e| e["delta"]["text"].as_str())
        .collect();
    assert_eq!(joined, text);
    assert_eq!(events[0]["type"], "message_start");
    assert_eq!(events[events.len() - 2]["usage"]["output_tokens"], 3);
    assert_eq!(events[events.len() - 1]["type"], "message_stop");
    let count = post(sim.addr(), "/v1/messages/count_tokens", &request)
        .await
        .json();
    assert_eq!(count["input_tokens"], body["usage"]["input_tokens"]);
}

#[tokio::test]
async fn engine_apis_speak_tokens() {
    let sim = start(|_| {}).await;
    let request = json!({"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 4}});
    let body = post(sim.addr(), "/inference/v1/generate", &request)
        .await
        .json();
    let ids = body["choices"][0]["token_ids"].as_array().unwrap().clone();
    assert_eq!(ids.len(), 4);
    let text = post(sim.addr(), "/detokenize", &json!({"tokens": ids}))
        .await
        .json()["prompt"]
        .clone();

    let request = json!({"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4}});
    let body = post(sim.addr(), "/generate", &request).await.json();
    assert_eq!(
        body["text"], text,
        "the same prompt gets the same answer from every API"
    );
    assert_eq!(
        body["meta_info"]["finish_reason"],
        json!({"type": "length", "length": 4})
    );
    assert_eq!(body["meta_info"]["prompt_tokens"], 3);
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let events = post(sim.addr(), "/generate", &streamed).await.events();
    assert_eq!(events.len(), 5);
    let last: Value = serde_json::from_str(&events[3]).unwrap();
    assert_eq!((&last["text"], &last["output_ids"]), (&text, &json!(ids)));
    let several = post(sim.addr(), "/generate", &json!({"text": ["a", "b"]}))
        .await
        .json();
    assert_eq!(several.as_array().unwrap().len(), 2);
    let info = get(sim.addr(), "/server_info").await.json();
    assert_eq!(info["max_total_num_tokens"], 131_072 * 16);
    assert_eq!(
        get(sim.addr(), "/get_model_info").await.json()["model_path"],
        "sim-model"
    );
}
