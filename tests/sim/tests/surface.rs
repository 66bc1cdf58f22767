//! The HTTP surface over real sockets.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::{FixedLatency, Latency, LoraModule, Mode};
use serde_json::{Value, json};
use std::time::Duration;
use support::{call, chunks, eventually, get, post, read_until, send, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
async fn completions_take_every_form_of_prompt() {
    let sim = start(|_| {}).await;
    for (prompt, choices, tokens) in [
        (json!("the word"), 1, 3),
        (json!(["the word", "and more"]), 2, 6),
        (json!([5, 6, 7]), 1, 3),
        (json!([[5, 6, 7], [8]]), 2, 4),
    ] {
        let body = post(sim.addr(), "/v1/completions", &json!({"prompt": prompt}))
            .await
            .json();
        assert_eq!(
            body["choices"].as_array().unwrap().len(),
            choices,
            "{prompt}"
        );
        assert_eq!(body["usage"]["prompt_tokens"], tokens, "{prompt}");
        assert_eq!(
            body["usage"]["completion_tokens"],
            16 * choices,
            "the default limit"
        );
        assert_eq!(body["object"], "text_completion");
    }
    let echo = json!({"prompt": "the word", "echo": true, "max_tokens": 2, "stream": true});
    let events = post(sim.addr(), "/v1/completions", &echo).await.events();
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert!(
        first["choices"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("the word")
    );
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn lengths_are_drawn_without_a_limit_and_filled_with_one() {
    let sim = start(|c| c.output_length = quorate_sim::OutputLength::Fixed(30)).await;
    let ask =
        |body: Value| async move { post(sim.addr(), "/v1/chat/completions", &body).await.json() };
    let mut request = hi(false);
    request["max_tokens"] = Value::Null;
    let body = ask(request.clone()).await;
    assert_eq!(
        body["usage"]["completion_tokens"], 31,
        "30 and the end of sequence"
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    request["max_completion_tokens"] = json!(50);
    request["ignore_eos"] = json!(true);
    let sim = start(|_| {}).await;
    let body = post(sim.addr(), "/v1/chat/completions", &request)
        .await
        .json();
    assert_eq!(body["usage"]["completion_tokens"], 50);
    request["max_completion_tokens"] = json!(100_000);
    request["n"] = json!(100);
    let greedy = post(sim.addr(), "/v1/chat/completions", &request).await;
    assert_eq!(greedy.status, 400, "no single request may take all memory");
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

#[tokio::test]
async fn tokenize_embed_render() {
    let sim = start(|_| {}).await;
    let text = "Größe, naïve words and 12345!";
    let tokens = post(sim.addr(), "/tokenize", &json!({"prompt": text}))
        .await
        .json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let back = post(
        sim.addr(),
        "/detokenize",
        &json!({"tokens": tokens["tokens"]}),
    )
    .await
    .json();
    assert_eq!(back["prompt"], text);
    let chat = json!({"messages": hi(false)["messages"]});
    let tokenized = post(sim.addr(), "/tokenize", &chat).await.json();
    let rendered = post(sim.addr(), "/v1/chat/completions/render", &chat)
        .await
        .json();
    assert_eq!(tokenized["tokens"], rendered["token_ids"]);
    let rendered = post(
        sim.addr(),
        "/v1/completions/render",
        &json!({"prompt": [[4, 5]]}),
    )
    .await
    .json();
    assert_eq!(rendered, json!([{"token_ids": [4, 5]}]));

    let request = json!({"input": ["one", "two"], "dimensions": 8});
    let body = post(sim.addr(), "/v1/embeddings", &request).await.json();
    assert_eq!(body["data"][1]["embedding"].as_array().unwrap().len(), 8);
    assert_ne!(body["data"][0]["embedding"], body["data"][1]["embedding"]);
    let coded = json!({"input": "one", "dimensions": 3, "encoding_format": "base64"});
    let body = post(sim.addr(), "/v1/embeddings", &coded).await.json();
    assert_eq!(body["data"][0]["embedding"].as_str().unwrap().len(), 16);
}

#[tokio::test]
async fn models_and_adapters() {
    let sim = start(|c| {
        c.served_model_names = vec!["a".into(), "b".into()];
        c.loras = vec![LoraModule {
            name: "l1".into(),
            path: "/l1".into(),
            base_model: Some("a".into()),
        }];
    })
    .await;
    let ids = |body: Value| -> Vec<String> {
        body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        ids(get(sim.addr(), "/v1/models").await.json()),
        ["a", "b", "l1"]
    );
    let load = json!({"lora_name": "l2", "lora_path": "/l2"});
    assert_eq!(
        post(sim.addr(), "/v1/load_lora_adapter", &load)
            .await
            .status,
        200
    );
    assert_eq!(
        post(sim.addr(), "/v1/load_lora_adapter", &load)
            .await
            .status,
        400
    );
    assert_eq!(
        post(
            sim.addr(),
            "/v1/load_lora_adapter",
            &json!({"lora_name": "l3"})
        )
        .await
        .status,
        400
    );
    let models = get(sim.addr(), "/v1/models").await.json();
    assert_eq!(models["data"][3]["root"], "/l2");
    assert_eq!(models["data"][3]["parent"], "a");
    assert_eq!(models["data"][0]["root"], "sim-model");
    assert_eq!(models["data"][0]["max_model_len"], 131_072);

    let ask = |model: &str| {
        let mut request = hi(false);
        request["model"] = json!(model);
        request
    };
    for model in ["a", "b", "l1", "l2"] {
        let answer = post(sim.addr(), "/v1/chat/completions", &ask(model)).await;
        assert_eq!(
            (answer.status, &answer.json()["model"]),
            (200, &json!(model))
        );
    }
    assert_eq!(
        post(
            sim.addr(),
            "/v1/unload_lora_adapter",
            &json!({"lora_name": "l2"})
        )
        .await
        .status,
        200
    );
    assert_eq!(
        post(
            sim.addr(),
            "/v1/unload_lora_adapter",
            &json!({"lora_name": "l2"})
        )
        .await
        .status,
        404
    );
    let gone = post(sim.addr(), "/v1/chat/completions", &ask("l2")).await;
    assert_eq!(gone.status, 404);
    assert_eq!(gone.json()["error"]["type"], "NotFoundError");
    assert_eq!(
        post(sim.addr(), "/v1/chat/completions", &ask("sim-model"))
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn bad_input_gets_a_clear_error() {
    let sim = start(|c| {
        c.max_model_len = 64;
        c.max_body = 4096;
    })
    .await;
    let message = |content: &str| json!([{"role": "user", "content": content}]);
    for (path, body, status) in [
        ("/v1/chat/completions", "{".to_owned(), 400),
        ("/v1/chat/completions", "[]".into(), 400),
        ("/v1/chat/completions", "{}".into(), 400),
        (
            "/v1/chat/completions",
            json!({"messages": []}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"content": "x"}]}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "max_tokens": 0}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "max_tokens": -5}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "max_tokens": 99999}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "n": 0}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "n": 5000}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "temperature": -1}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "stream_options": {}}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "stop": 5}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message(&"word ".repeat(100))}).to_string(),
            400,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message("x"), "model": "none"}).to_string(),
            404,
        ),
        (
            "/v1/chat/completions",
            json!({"messages": message(&"word ".repeat(2000))}).to_string(),
            413,
        ),
        ("/v1/completions", json!({"prompt": ""}).to_string(), 400),
        ("/v1/completions", json!({"prompt": []}).to_string(), 400),
        ("/v1/completions", json!({"prompt": [[]]}).to_string(), 400),
        (
            "/v1/completions",
            json!({"prompt": ["a", 5]}).to_string(),
            400,
        ),
        ("/v1/completions", json!({"prompt": [-1]}).to_string(), 400),
        ("/v1/completions", json!({"prompt": 5}).to_string(), 400),
        (
            "/v1/messages",
            json!({"messages": message("x")}).to_string(),
            400,
        ),
        ("/v1/responses", json!({"input": 5}).to_string(), 400),
        (
            "/v1/embeddings",
            json!({"input": "x", "encoding_format": "hex"}).to_string(),
            400,
        ),
        (
            "/v1/embeddings",
            json!({"input": "x", "dimensions": 0}).to_string(),
            400,
        ),
        ("/inference/v1/generate", json!({}).to_string(), 400),
        ("/generate", json!({}).to_string(), 400),
        ("/tokenize", json!({}).to_string(), 400),
        ("/detokenize", json!({"tokens": ["x"]}).to_string(), 400),
        ("/sim/fault", json!({"explode": 1}).to_string(), 400),
        ("/admin/config", json!({"max-num-seqs": 1}).to_string(), 400),
        (
            "/admin/config",
            json!({"inter-token-latency": "1ms", "time-factor-under-load": 0.1}).to_string(),
            400,
        ),
    ] {
        let answer = call(sim.addr(), "POST", path, &[], &body).await;
        assert_eq!(
            answer.status,
            status,
            "{path} {}",
            &body[..body.len().min(80)]
        );
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], status);
        assert!(!error["message"].as_str().unwrap().is_empty() && error["type"].is_string());
    }
    assert_eq!(
        get(sim.addr(), "/admin/config").await.json()["inter-token-latency"],
        "0s",
        "nothing was changed"
    );
    assert_eq!(get(sim.addr(), "/v1/nothing").await.status, 404);
    assert_eq!(get(sim.addr(), "/v1/chat/completions").await.status, 405);
    let stats = get(sim.addr(), "/sim/stats").await.json();
    assert_eq!(stats["unknown"], json!({"/v1/nothing": 1}));
    assert_eq!(
        (&stats["running"], &stats["used_blocks"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn sleep_version_and_headers() {
    let sim = start(|c| {
        c.request_id_headers = true;
        c.response_headers = vec![("x-inference-pod".parse().unwrap(), "p1".parse().unwrap())];
        c.port_header = Some("x-inference-port".parse().unwrap());
    })
    .await;
    assert_eq!(get(sim.addr(), "/health").await.status, 200);
    assert_eq!(post(sim.addr(), "/sleep", &json!(null)).await.status, 200);
    assert_eq!(
        get(sim.addr(), "/is_sleeping").await.json()["is_sleeping"],
        true
    );
    assert_eq!(
        post(sim.addr(), "/v1/chat/completions", &hi(false))
            .await
            .status,
        503
    );
    post(sim.addr(), "/wake_up?tags=weights", &json!(null)).await;
    assert_eq!(
        get(sim.addr(), "/is_sleeping").await.json()["is_sleeping"],
        true
    );
    post(sim.addr(), "/wake_up", &json!(null)).await;
    let answer = post(sim.addr(), "/v1/chat/completions", &hi(false)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-inference-pod"), Some("p1"));
    assert_eq!(
        answer.header("x-inference-port"),
        Some(sim.addr().port().to_string().as_str())
    );
    assert_eq!(answer.header("x-request-id").unwrap().len(), 32);
    let answer = call(
        sim.addr(),
        "GET",
        "/version",
        &[("x-request-id", "mine")],
        "",
    )
    .await;
    assert_eq!(answer.header("x-request-id"), Some("mine"));
}

fn slow(c: &mut quorate_sim::SimConfig) {
    c.engine.latency = Latency::Fixed(FixedLatency {
        itl: 50_000_000,
        ..FixedLatency::default()
    });
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks() {
    let sim = start(slow).await;
    for stream in [true, false] {
        let mut request = hi(stream);
        request["max_tokens"] = json!(10_000);
        let connection = send(
            sim.addr(),
            "POST",
            "/v1/chat/completions",
            &[],
            &request.to_string(),
        )
        .await;
        eventually("it runs", || sim.stats().load.running == 1).await;
        assert!(sim.stats().load.used_blocks > 600);
        drop(connection);
        eventually("it is aborted", || sim.stats().load.used_blocks == 0).await;
    }
    assert_eq!(sim.stats().aborted, 2);
    let page = get(sim.addr(), "/metrics").await.text();
    assert!(page.contains("finished_reason=\"abort\",model_name=\"sim-model\"} 2.0"));
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let sim = start(|c| {
        slow(c);
        c.engine.max_num_seqs = 1;
        c.engine.max_waiting = 1;
        c.queue_full_status = 503;
    })
    .await;
    let mut request = hi(true);
    request["max_tokens"] = json!(1000);
    let mut open = Vec::new();
    for waiting in 0..2 {
        open.push(
            send(
                sim.addr(),
                "POST",
                "/v1/chat/completions",
                &[],
                &request.to_string(),
            )
            .await,
        );
        eventually("it is in", || {
            sim.stats().load.running == 1 && sim.stats().load.waiting == waiting
        })
        .await;
    }
    let answer = post(sim.addr(), "/v1/chat/completions", &request).await;
    assert_eq!(answer.status, 503);
    drop(open);
    eventually("all are gone", || {
        sim.stats().load.running + sim.stats().load.waiting == 0
    })
    .await;
}

#[tokio::test]
async fn prefix_hits_show_in_usage() {
    let sim = start(|_| {}).await;
    let text = "the quick fox ".repeat(100);
    let request = json!({"prompt": text, "max_tokens": 2});
    let cold = post(sim.addr(), "/v1/completions", &request).await.json();
    let warm = post(sim.addr(), "/v1/completions", &request).await.json();
    assert_eq!(cold["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let prompt = warm["usage"]["prompt_tokens"].as_u64().unwrap();
    let cached = warm["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(
        cached > prompt - 17 && cached % 16 == 0,
        "{cached} of {prompt}"
    );
    assert_eq!(cold["choices"][0]["text"], warm["choices"][0]["text"]);
    let mut salted = request.clone();
    salted["cache_salt"] = json!("tenant");
    let other = post(sim.addr(), "/v1/completions", &salted).await.json();
    assert_eq!(other["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let mut strict = request.clone();
    strict["cache_hit_threshold"] = json!(1.0);
    let refused = post(sim.addr(), "/v1/completions", &strict).await.json();
    assert_eq!(refused["choices"][0]["finish_reason"], "cache_threshold");
    assert_eq!(refused["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn timing_follows_the_model_and_its_scale() {
    let sim = start(|c| {
        c.engine.latency = Latency::Fixed(FixedLatency {
            ttft: 2_000_000_000,
            itl: 1_000_000_000,
            ..FixedLatency::default()
        });
        c.time_scale = 0.1;
    })
    .await;
    let begin = std::time::Instant::now();
    let answer = post(sim.addr(), "/v1/chat/completions", &hi(true)).await;
    let took = begin.elapsed();
    assert_eq!(answer.status, 200);
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let page = get(sim.addr(), "/metrics").await.text();
    let sum = page
        .lines()
        .find(|l| l.starts_with("vllm:inter_token_latency_seconds_sum"))
        .unwrap();
    let sum: f64 = sum.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((sum - 0.3).abs() < 1e-6, "real seconds on the page: {sum}");
}

#[tokio::test]
async fn batched_profile_serves_over_the_wire() {
    let profile = quorate_sim::find_profile("llama-8b/h100").unwrap();
    let mut config = quorate_sim::SimConfig::with_profile(&profile);
    config.time_scale = 0.01;
    let sim = quorate_sim::Sim::start(config).await.unwrap();
    let request = json!({"prompt": "the word ".repeat(500), "max_tokens": 20});
    let answers = futures_util::future::join_all(
        (0..20).map(|_| post(sim.addr(), "/v1/completions", &request)),
    )
    .await;
    for answer in answers {
        assert_eq!(answer.json()["usage"]["completion_tokens"], 20);
    }
    let load = sim.stats().load;
    assert_eq!((load.running, load.waiting, load.used_blocks), (0, 0, 0));
    assert_eq!(load.generation_tokens, 400);
}

#[tokio::test]
async fn live_settings_change_latency_failures_and_fakes() {
    let sim = start(|_| {}).await;
    let change = json!({"inter-token-latency": "100ms", "failure-injection-rate": 0});
    let shown = post(sim.addr(), "/admin/config", &change).await.json();
    assert_eq!(shown["inter-token-latency"], "100ms");
    let begin = std::time::Instant::now();
    post(sim.addr(), "/v1/chat/completions", &hi(false)).await;
    assert!(begin.elapsed() >= Duration::from_millis(300));

    let change = json!({"failure-injection-rate": 100, "failure-types": ["rate_limit"]});
    post(sim.addr(), "/admin/config", &change).await;
    assert_eq!(
        post(sim.addr(), "/v1/chat/completions", &hi(false))
            .await
            .status,
        429
    );
    post(
        sim.addr(),
        "/admin/config",
        &json!({"failure-injection-rate": 0}),
    )
    .await;
    let forced = [("x-return-error", "418")];
    let forced = call(
        sim.addr(),
        "POST",
        "/v1/chat/completions",
        &forced,
        &hi(false).to_string(),
    )
    .await;
    assert_eq!(forced.status, 418);

    post(
        sim.addr(),
        "/admin/config",
        &json!({"fake-metrics": {"waiting-requests": 7, "kv-cache-usage": 0.5}}),
    )
    .await;
    let page = get(sim.addr(), "/metrics").await.text();
    assert!(page.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"sim-model\"} 7.0"));
    assert!(page.contains("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim-model\"} 0.5"));
    post(sim.addr(), "/admin/config", &json!({"fake-metrics": null})).await;
    let page = get(sim.addr(), "/metrics").await.text();
    assert!(page.contains("vllm:num_requests_waiting{engine=\"0\",model_name=\"sim-model\"} 0.0"));
}

#[tokio::test]
async fn connections_are_kept_and_http2_is_understood() {
    let sim = start(|_| {}).await;
    let mut stream = TcpStream::connect(sim.addr()).await.unwrap();
    for _ in 0..3 {
        let body = hi(false).to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Vec::new();
        while support::answer(&raw).is_err() {
            let mut buffer = [0u8; 4096];
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the connection was closed");
            raw.extend_from_slice(&buffer[..n]);
        }
        assert_eq!(support::answer(&raw).unwrap().status, 200);
    }
    assert_eq!(sim.stats().connections, 1);

    use http_body_util::{BodyExt, Full};
    let stream = TcpStream::connect(sim.addr()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://sim/v1/chat/completions")
        .body(Full::new(bytes::Bytes::from(hi(true).to_string())))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
}
