//! Requests of Anthropic's and OpenAI's newer API: the prompt is that of the chat request into which vLLM itself turns them.
#![allow(clippy::unwrap_used)]

use quorate_cache::tokens::{
    Local, ModelFiles, Models, PromptTokens, Request, TemplateLimits, TokenError,
};
use quorate_routing::request::{Api, RequestInfo};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use std::path::Path;
use std::sync::Arc;

/// The test family's files with those of a model that sees pictures, and another template where one is given.
fn model(family: &str, template: Option<&str>, config: &str) -> Arc<ModelFiles> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tokens")
        .join(family);
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    if let Some(template) = template {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let sizes = r#"{"min_pixels":3136,"max_pixels":12845056,"patch_size":14,"merge_size":2}"#;
    std::fs::write(folder.path().join("preprocessor_config.json"), sizes).unwrap();
    let models = Models::new(1 << 20, TemplateLimits::default());
    models.load(folder.path()).unwrap()
}

const SEES: &str = r#"{"model_type":"qwen2_5_vl"}"#;

fn with<T>(api: Api, body: &str, work: impl FnOnce(&Request<'_>) -> T) -> T {
    let info = RequestInfo::parse(api, body.as_bytes()).unwrap();
    work(&Request {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    })
}

fn rendered(files: &Arc<ModelFiles>, api: Api, body: &str) -> Result<String, TokenError> {
    with(api, body, |request| {
        Local::new(Arc::clone(files)).render(request)
    })
}

fn tokens(files: &Arc<ModelFiles>, api: Api, body: &str) -> PromptTokens {
    with(api, body, |request| {
        Local::new(Arc::clone(files)).tokens_now(request).unwrap()
    })
}

#[derive(Deserialize)]
struct Case<'a> {
    name: String,
    #[serde(borrow)]
    request: &'a RawValue,
    #[serde(borrow)]
    chat: &'a RawValue,
}

#[derive(Deserialize)]
struct Golden<'a> {
    #[serde(borrow)]
    messages: Vec<Case<'a>>,
    #[serde(borrow)]
    responses: Vec<Case<'a>>,
}

const GOLDEN: &str = include_str!("tokens/converted.json");

#[test]
fn as_vllm_converts_them() {
    let files = model("chatml", None, SEES);
    let golden: Golden<'_> = serde_json::from_str(GOLDEN).unwrap();
    for (api, cases) in [
        (Api::Messages, golden.messages),
        (Api::Responses, golden.responses),
    ] {
        assert!(cases.len() > 12);
        for case in cases {
            let (ours, chat) = (case.request.get(), case.chat.get());
            let text = rendered(&files, api, ours);
            let wanted = rendered(&files, Api::Chat, chat);
            assert_eq!(text, wanted, "{api:?} {}", case.name);
            assert!(wanted.is_ok(), "{api:?} {}", case.name);
            let (got, wanted) = (tokens(&files, api, ours), tokens(&files, Api::Chat, chat));
            assert_eq!((got.ids, got.media), (wanted.ids, wanted.media));
        }
    }
}

/// What a request's conversation is does not depend on the template, but for system messages in between.
#[test]
fn each_message_as_vllm_has_it() {
    let dump = "{% for m in messages %}{{ m.role }}|{{ m.content }}|{{ m.reasoning }}|{{ (m.tool_calls or none) | tojson }}|{{ m.tool_call_id }}\n{% endfor %}{% if tools is defined %}{{ tools | tojson }}{% endif %}|{{ enable_thinking }}|{{ reasoning_effort }}";
    let files = model("chatml", Some(dump), SEES);
    let golden: Golden<'_> = serde_json::from_str(GOLDEN).unwrap();
    for case in &golden.messages {
        if case.name == "disabled" {
            continue;
        }
        let got = rendered(&files, Api::Messages, case.request.get()).unwrap();
        let wanted = rendered(&files, Api::Chat, case.chat.get()).unwrap();
        assert_eq!(got, wanted, "{}", case.name);
    }
    let agent = |cases: &[Case<'_>], api| {
        let case = cases.iter().find(|case| case.name == "agent").unwrap();
        rendered(&files, api, case.request.get()).unwrap()
    };
    // The members of calls in the order that vLLM's own check leaves, and in which it puts them down itself.
    let messages = agent(&golden.messages, Api::Messages);
    let call = r#"{"id": "toolu_1", "function": {"arguments": {"city": "#;
    assert!(messages.contains(call), "{messages}");
    let responses = agent(&golden.responses, Api::Responses);
    let call = r#"{"id": "call_1", "function": {"name": "get_weather", "arguments": {"#;
    assert!(responses.contains(call), "{responses}");
}

/// What vLLM 0.32's check of a chat request leaves of a call with members that the API does not name.
#[test]
fn calls_have_the_order_that_the_engine_gives_them() {
    let files = model(
        "chatml",
        Some("{{ messages[0].tool_calls[0] | tojson }}"),
        SEES,
    );
    let body = r#"{"model":"m","messages":[{"role":"assistant","tool_calls":[
        {"index":0,"type":"function","id":"c","x":1,"function":{"name":"n","y":2,"arguments":"{}"}}]}]}"#;
    assert_eq!(
        rendered(&files, Api::Chat, body).unwrap(),
        r#"{"id": "c", "function": {"arguments": {}, "name": "n", "y": 2}, "type": "function", "index": 0, "x": 1}"#
    );
}

#[test]
fn fields_of_the_api_count_more_than_variables_of_the_same_name() {
    let template = "{{ reasoning_effort }}|{{ enable_thinking }}|{{ add_generation_prompt }}";
    let files = model("chatml", Some(template), SEES);
    let body = |more: &str| {
        let variables =
            r#"{"reasoning_effort":"high","enable_thinking":false,"add_generation_prompt":false}"#;
        format!(r#"{{"model":"m","messages":[],"chat_template_kwargs":{variables}{more}}}"#)
    };
    for (more, wanted) in [
        ("", "high|False|True"),
        (r#","reasoning_effort":"low""#, "low|False|True"),
        (r#","reasoning_effort":null"#, "high|False|True"),
    ] {
        assert_eq!(
            rendered(&files, Api::Chat, &body(more)).as_deref(),
            Ok(wanted)
        );
    }
}

#[test]
fn system_messages_move_where_the_template_wants_them_first() {
    let body = r#"{"model":"m","max_tokens":1,"system":"One.","messages":[
        {"role":"user","content":"a"},{"role":"system","content":"Two."},{"role":"user","content":"b"}]}"#;
    let strict = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let files = model("chatml", Some(strict), SEES);
    assert_eq!(
        rendered(&files, Api::Messages, body).unwrap(),
        "<system>One.Two.<user>a<user>b"
    );
    let free = strict.replace("raise_exception('first')", "''");
    let files = model("chatml", Some(&free), SEES);
    assert_eq!(
        rendered(&files, Api::Messages, body).unwrap(),
        "<system>One.<user>a<system>Two.<user>b"
    );
    // Whether vLLM's trial of it fails cannot be known here.
    let dated = format!("{free}{{{{ strftime_now('%Y') }}}}");
    let files = model("chatml", Some(&dated), SEES);
    let found = rendered(&files, Api::Messages, body);
    assert!(
        matches!(found, Err(TokenError::Unsupported(_))),
        "{found:?}"
    );
}

#[test]
fn thinking_switched_off_is_an_effort_that_the_template_knows() {
    let body = r#"{"model":"m","max_tokens":1,"thinking":{"type":"disabled"},"messages":[{"role":"user","content":"a"}]}"#;
    for (template, wanted) in [
        ("{{ reasoning_effort }}", "none"),
        ("{{ enable_thinking }}", "False"),
        // It does not know `none`, or refuses it.
        (
            "{{ reasoning_effort if reasoning_effort in ['low', 'medium'] else 'max' }}",
            "low",
        ),
        (
            "{% if reasoning_effort == 'none' %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}",
            "low",
        ),
    ] {
        let files = model("chatml", Some(template), SEES);
        assert_eq!(
            rendered(&files, Api::Messages, body).as_deref(),
            Ok(wanted),
            "{template}"
        );
    }
}

#[test]
fn what_cannot_be_known_is_left_to_engines() {
    let files = model("chatml", None, SEES);
    let user = json!({"role": "user", "content": "a"});
    let messages = |more: serde_json::Value, last: serde_json::Value| {
        let mut body = json!({"model": "m", "max_tokens": 1, "messages": [user, last]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        (Api::Messages, body)
    };
    let block = |block| messages(json!({}), json!({"role": "user", "content": [block]}));
    let responses = |more: serde_json::Value| {
        let mut body = json!({"model": "m", "input": "a"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        (Api::Responses, body)
    };
    let item = |item: serde_json::Value| responses(json!({"input": [user, item]}));
    for (api, body) in [
        block(json!({"type": "document", "source": {}})),
        block(json!({"type": "tool_addition"})),
        block(json!({"type": "tool_use", "name": "n", "input": {}})),
        block(
            json!({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "n"}]}),
        ),
        messages(
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            user.clone(),
        ),
        messages(
            json!({}),
            json!({"role": "system", "content": [{"type": "tool_removal"}]}),
        ),
        responses(json!({"previous_response_id": "resp_1"})),
        responses(json!({"previous_input_messages": []})),
        responses(json!({"prompt": {"id": "p"}})),
        responses(json!({"truncation": "auto"})),
        responses(json!({"tools": [{"type": "custom", "name": "x"}]})),
        responses(json!({"tools": [{"type": "namespace", "name": "x", "tools": []}]})),
        item(json!({"type": "item_reference", "id": "x"})),
        item(json!({"type": "reasoning", "summary": [], "encrypted_content": "x"})),
        item(json!({"type": "web_search_call", "id": "x"})),
        item(
            json!({"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
        ),
        item(json!({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]})),
    ] {
        let found = rendered(&files, api, &body.to_string());
        assert!(
            matches!(found, Err(TokenError::Unsupported(_))),
            "{body}: {found:?}"
        );
    }
    // Versions differ in whether such a tokenizer's own tokens come before the template's.
    let adds = model("headers", None, "{}");
    let (api, body) = responses(json!({}));
    let found = rendered(&adds, api, &body.to_string());
    assert!(
        matches!(found, Err(TokenError::Unsupported(_))),
        "{found:?}"
    );
    // A model whose conversations do not go through its template.
    let harmony = model("chatml", None, r#"{"model_type":"gpt_oss"}"#);
    for (api, body) in [
        (Api::Chat, json!({"model": "m", "messages": [user]})),
        messages(json!({}), user.clone()),
        responses(json!({})),
    ] {
        let found = rendered(&harmony, api, &body.to_string());
        assert!(
            matches!(found, Err(TokenError::Unsupported(_))),
            "{found:?}"
        );
    }
}
