//! What requests may say: prompts, models, adapters, tokens, and what is refused.

#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_sim::LoraModule;
use serde_json::{Value, json};
use support::{call, get, post, start};

fn hi(stream: bool) -> Value {
    json!({"model": "sim-model", "messages": [{"role": "user", "content": "Say the word."}], "max_tokens": 4, "stream": stream})
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
