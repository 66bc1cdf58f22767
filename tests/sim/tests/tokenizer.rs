//! A model's own tokenizer in the simulator: prompts become the tokens that a router computes from the same files, and the
//! published blocks are named as a router names them.
#![allow(
    clippy::unwrap_used,
    reason = "a failed unwrap in a test is a failed test"
)]

mod support;

use quorate_cache::events::{Batch, Event, decode};
use quorate_cache::hash::{Algorithm, ExtraForm, Hasher, PromptExtras, VLLM_SEED};
use quorate_cache::keys::{KeySpace, Scheme};
use quorate_cache::link::{
    Direction, LinkConfig, LinkEvent, ReplayAt, Subscriber, vllm_event_sources,
};
use quorate_cache::tokens::{
    FileServer, Local, Models, Origin, PromptTokens, Request, TemplateLimits,
};
use quorate_routing::request::{Api, RequestInfo};
use quorate_sim::{KvEventsConfig, Mode, ModelTokenizer, Sim, write_tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use support::{get, post, start};
use tokio::sync::mpsc;

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../actors/cache/tests/tokens")
        .join(family)
}

async fn engine(directory: &Path, mode: Mode) -> Sim {
    let tokenizer = Arc::new(ModelTokenizer::load(directory).unwrap());
    let events =
        r#"{"endpoint":"tcp://127.0.0.1:0","bind":true,"replay_endpoint":"tcp://127.0.0.1:0"}"#;
    start(|config| {
        config.tokenizer = Some(tokenizer);
        config.mode = mode;
        config.kv_events = KvEventsConfig::parse(events).unwrap();
    })
    .await
}

/// What a router makes of a chat with the same files.
fn router_tokens(directory: &Path, body: &Value) -> Vec<u32> {
    tokens_of(Api::Chat, directory, body)
}

fn tokens_of(api: Api, directory: &Path, body: &Value) -> Vec<u32> {
    let files = Models::new(1 << 20, TemplateLimits::default()).load(directory);
    let body = body.to_string();
    let info = RequestInfo::parse(api, body.as_bytes()).unwrap();
    let request = Request {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    };
    let tokens = Local::new(files.unwrap()).tokens_now(&request).unwrap();
    tokens.ids.to_vec()
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let messages: Vec<Value> = turns
        .iter()
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect();
    json!({"model": "sim-model", "messages": messages, "max_tokens": 60})
}

const QUESTION: &str = "Please tell me how the water came down from the house, and why it was so cold that day. \
    What did the people do about it, and who asked them to?";

async fn published(sim: &Sim) -> BTreeSet<u64> {
    let sources = get(sim.addr(), "/kv_event_sources").await.body;
    let source = vllm_event_sources(&sources, "127.0.0.1").unwrap().remove(0);
    let (out, mut events) = mpsc::channel(64);
    let config = LinkConfig {
        replay: ReplayAt::Address(source.replay.unwrap()),
        ..LinkConfig::new(Direction::Dial(source.events))
    };
    let _link = Subscriber::start(config, out).await.unwrap();
    let mut held = BTreeSet::new();
    let mut batch = Batch::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while held.len() < sim.stats().load.cached_blocks {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{} held",
            held.len()
        );
        let next = tokio::time::timeout(Duration::from_millis(20), events.recv()).await;
        if let Ok(Some(LinkEvent::Batch { payload, .. })) = next {
            decode(&payload, &mut batch).unwrap();
            for event in batch.events() {
                if let Event::Stored(stored) = event {
                    held.extend(stored.hashes);
                }
            }
        }
    }
    held
}

#[tokio::test]
async fn blocks_are_named_as_a_router_with_the_same_files_names_them() {
    let own = tempfile::tempdir().unwrap();
    write_tokenizer(own.path()).unwrap();
    for directory in [folder("chatml"), folder("headers"), own.path().to_owned()] {
        let sim = engine(&directory, Mode::Random).await;
        let first = chat(&[("system", "You are brief."), ("user", QUESTION)]);
        let answer = post(sim.addr(), "/v1/chat/completions", &first)
            .await
            .json();
        let tokens = router_tokens(&directory, &first);
        assert_eq!(answer["usage"]["prompt_tokens"], tokens.len());
        assert_eq!(answer["usage"]["completion_tokens"], 60);
        let said = answer["choices"][0]["message"]["content"].as_str().unwrap();
        // The next turn finds the answer's blocks, too, where the template writes it back as it was said.
        let next = chat(&[
            ("system", "You are brief."),
            ("user", QUESTION),
            ("assistant", said),
            ("user", "And then?"),
        ]);
        let again = router_tokens(&directory, &next);
        let hasher = Hasher::vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged, Some(VLLM_SEED));
        let mut keys = Vec::new();
        hasher
            .unwrap()
            .prompt(&again, 16, &PromptExtras::default(), &mut keys)
            .unwrap();
        let held = published(&sim).await;
        let known = keys.iter().take_while(|key| held.contains(key)).count();
        assert!(known >= tokens.len() / 16, "{known} of {}", keys.len());
        let answer = post(sim.addr(), "/v1/chat/completions", &next).await.json();
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(cached, known * 16, "{}", directory.display());
        if directory == own.path() {
            assert!(known > tokens.len() / 16 + 2, "{known}");
        }
    }
}

#[tokio::test]
async fn every_api_speaks_the_model_s_tokens() {
    let directory = folder("chatml");
    let sim = engine(&directory, Mode::Echo).await;
    let body = chat(&[("user", "Say this again.")]);
    let tokens = router_tokens(&directory, &body);
    let rendered = post(sim.addr(), "/v1/chat/completions/render", &body)
        .await
        .json();
    assert_eq!(rendered["token_ids"], json!(tokens));
    let tokenized = post(sim.addr(), "/tokenize", &body).await.json();
    assert_eq!(tokenized["tokens"], json!(tokens));
    let back = json!({"tokens": tokens});
    let back = post(sim.addr(), "/detokenize", &back).await.json();
    assert!(back["prompt"].as_str().unwrap().contains("Say this again."));
    let mut logged = body.clone();
    logged["logprobs"] = json!(true);
    let answer = post(sim.addr(), "/v1/chat/completions", &logged)
        .await
        .json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "Say this again.");
    let spelled: String = choice["logprobs"]["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(spelled, "Say this again.</s>");
    let messages = json!({"model": "sim-model", "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Say this again."}]}]});
    let answer = post(sim.addr(), "/v1/messages", &messages).await.json();
    let usage = &answer["usage"];
    let input = usage["input_tokens"].as_u64().unwrap();
    let cached = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(input + cached, tokens.len() as u64);
    let responses =
        json!({"model": "sim-model", "input": "Say this again.", "max_output_tokens": 9});
    let answer = post(sim.addr(), "/v1/responses", &responses).await.json();
    assert_eq!(answer["usage"]["input_tokens"], tokens.len());
    let prompt =
        json!({"model": "sim-model", "prompt": "Say this again.", "max_tokens": 30, "echo": true});
    let answer = post(sim.addr(), "/v1/completions", &prompt).await.json();
    assert_eq!(
        answer["choices"][0]["text"],
        "Say this again.Say this again."
    );
    let ids = json!({"model": "sim-model", "prompt": tokens, "max_tokens": 1});
    let answer = post(sim.addr(), "/v1/completions", &ids).await.json();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens.len());
}

/// Requests of other APIs become the conversation that a router makes of them, tool calls and all.
#[tokio::test]
async fn other_apis_have_the_tokens_that_a_router_makes() {
    let directory = folder("chatml");
    let sim = engine(&directory, Mode::Random).await;
    let messages = json!({
        "model": "sim-model", "max_tokens": 1, "system": [{"type": "text", "text": "You are brief."}],
        "tools": [{"name": "look", "input_schema": {"properties": {"where": {"type": "string"}}}}],
        "messages": [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {"where": "up"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "nothing"}, {"type": "text", "text": "And?"}]},
        ],
    });
    let responses = json!({
        "model": "sim-model", "max_output_tokens": 1, "instructions": "You are brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
            {"type": "function_call", "call_id": "t", "name": "look", "arguments": "{\"where\": \"up\"}"},
            {"type": "function_call_output", "call_id": "t", "output": "nothing"},
        ],
    });
    for (api, path, body) in [
        (Api::Messages, "/v1/messages", messages),
        (Api::Responses, "/v1/responses", responses),
    ] {
        let answer = post(sim.addr(), path, &body).await.json();
        let tokens = tokens_of(api, &directory, &body);
        assert_eq!(answer["usage"]["input_tokens"], tokens.len(), "{answer}");
    }
}

#[tokio::test]
async fn its_files_can_be_fetched() {
    let directory = folder("chatml");
    let sim = engine(&directory, Mode::Random).await;
    let models = Models::new(1 << 20, TemplateLimits::default());
    let url = format!("http://{}/sim/tokenizer", sim.addr());
    let server = FileServer::parse(&url).unwrap();
    let fetched = models.fetch(&server, None, None).await.unwrap();
    let fetched = models.of(&fetched).unwrap();
    assert!(Arc::ptr_eq(&fetched, &models.load(&directory).unwrap()));
    let info = get(sim.addr(), "/tokenizer_info").await.json();
    assert_eq!(info["eos_token"], "<|im_end|>");
    let template = std::fs::read_to_string(directory.join("chat_template.jinja"));
    assert_eq!(info["chat_template"], template.unwrap());
    let without = start(|_| {}).await;
    for path in ["/tokenizer_info", "/sim/tokenizer/tokenizer.json"] {
        assert_eq!(get(without.addr(), path).await.status, 404);
    }
}

/// The newer hashes cover where an adapter was loaded from, and the list of models says where that was.
#[tokio::test]
async fn an_adapters_blocks_are_named_with_what_the_list_of_models_says() {
    let directory = folder("chatml");
    let sim = engine(&directory, Mode::Random).await;
    let load = json!({"lora_name": "a", "lora_path": "/adapters/a"});
    let loaded = post(sim.addr(), "/v1/load_lora_adapter", &load).await;
    assert_eq!(loaded.status, 200);
    let mut body = chat(&[("user", QUESTION)]);
    body["model"] = json!("a");
    body["max_tokens"] = json!(1);
    let answer = post(sim.addr(), "/v1/chat/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let models = get(sim.addr(), "/v1/models").await.json();
    let listed = models["data"].as_array().unwrap();
    let adapter = listed.iter().find(|model| model["id"] == "a").unwrap();
    let space = KeySpace::new(
        "m",
        16,
        Scheme::of(Some("sha256_cbor"), None, ExtraForm::Tagged),
    );
    let prompt = PromptTokens {
        ids: router_tokens(&directory, &body).into(),
        media: Vec::new(),
        lora: Some("a".into()),
        salt: None,
        origin: Origin::Local,
        exact: true,
    };
    let mut keys = Vec::new();
    let space = space.unwrap();
    space
        .keys(&prompt, adapter["root"].as_str(), 100, &mut keys)
        .unwrap();
    let held = published(&sim).await;
    let held: BTreeSet<u64> = held.iter().map(|hash| space.key_of_hash(*hash)).collect();
    assert!(keys.len() > 1);
    assert!(
        keys.iter().all(|key| held.contains(key)),
        "{keys:?} {held:?}"
    );
}
