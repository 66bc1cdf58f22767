//! Tokens against what the Python libraries make of the same requests, incremental against whole, and an engine over a socket.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use quorate_cache::tokens::{
    Engine, Estimate, Local, ModelFiles, Models, Origin, Request, Source, TemplateLimits,
    TextTokenizer, TokenError,
};
use quorate_routing::request::{Api, RequestInfo};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const FAMILIES: [&str; 6] = [
    "chatml", "headers", "brackets", "turns", "legacy", "markers",
];

static MODELS: LazyLock<Models> = LazyLock::new(|| Models::new(1 << 20, TemplateLimits::default()));
static LOADED: LazyLock<Vec<Arc<ModelFiles>>> = LazyLock::new(|| {
    let load = |family: &&str| MODELS.load(&folder(family)).unwrap();
    FAMILIES.iter().map(load).collect()
});

fn folder(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tokens")
        .join(family)
}

fn golden(family: &str) -> Value {
    let text = std::fs::read_to_string(folder(family).join("golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn with<T>(api: Api, body: &str, work: impl FnOnce(Request<'_>) -> T) -> T {
    let info = RequestInfo::parse(api, body.as_bytes()).unwrap();
    work(Request {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    })
}

#[test]
fn texts_as_the_reference_tokenizes_them() {
    for (family, model) in FAMILIES.iter().zip(LOADED.iter()) {
        for case in golden(family)["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            for (name, special) in [("with", true), ("without", false)] {
                // The second time from what is remembered.
                for _ in 0..2 {
                    let got = model.tokenizer.encode(text, special).unwrap();
                    assert_eq!(got, ids(&case[name]), "{family}: {text:?} {name}");
                }
            }
        }
    }
}

/// A case's request without `case`'s order lost: the golden file is read again as text by the parser under test.
#[test]
fn chats_as_the_reference_renders_and_tokenizes_them() {
    #[derive(serde::Deserialize)]
    struct Chat<'a> {
        name: String,
        #[serde(borrow)]
        request: &'a serde_json::value::RawValue,
        text: Option<String>,
        ids: Option<Vec<u32>>,
        error: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Golden<'a> {
        #[serde(borrow)]
        chats: Vec<Chat<'a>>,
    }
    let mut compared = 0;
    for (family, model) in FAMILIES.iter().zip(LOADED.iter()) {
        let text = std::fs::read_to_string(folder(family).join("golden.json")).unwrap();
        let golden: Golden<'_> = serde_json::from_str(&text).unwrap();
        let local = Local::new(Arc::clone(model));
        for chat in golden.chats {
            with(Api::Chat, chat.request.get(), |request| {
                let name = format!("{family}: {}", chat.name);
                match chat.error {
                    None => {
                        assert_eq!(local.render(&request).ok(), chat.text, "{name}");
                        let tokens = local.tokens_now(&request).unwrap();
                        assert_eq!(Some(tokens.ids.to_vec()), chat.ids, "{name}");
                        assert!(tokens.exact && tokens.origin == Origin::Local);
                    }
                    Some(error) => match local.tokens_now(&request) {
                        Err(TokenError::Template(what)) => {
                            let same = error.contains(&what) || what.contains("final message");
                            assert!(same, "{name}: {what} / {error}");
                        }
                        other => panic!("{name}: {other:?}"),
                    },
                }
            });
            compared += 1;
        }
    }
    assert!(compared > 40);
}

#[test]
fn the_same_files_are_one_model() {
    let again = MODELS.load(&folder("chatml")).unwrap();
    assert!(Arc::ptr_eq(&again, &LOADED[0]));
    let missing = MODELS.load(Path::new("/nowhere"));
    assert!(matches!(missing, Err(TokenError::File { .. })));
}

fn pieces() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "<|im_start|>",
        "<|im_end|>",
        "<|im",
        "_start|>",
        "<think>",
        "</think>",
        "[INST]",
        "[/INST]",
        "</s>",
        "<s>",
        "<unk>",
        "<start_of_turn>",
        "<｜User｜>",
        "<｜",
        "<|eot_id|>",
        "\n",
        " ",
        "  ",
        "\t",
        "user",
        "hello",
        "it's",
        "123",
        "é",
        "e\u{301}",
        "你好",
        "😀",
        "▁",
        "<0x41>",
    ]);
    let piece = prop_oneof![3 => known.prop_map(str::to_owned), 1 => ".{0,12}"];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// A family's tokenizer with another normalizer, other special tokens and another way to take whole words.
fn varied(
    family: &str,
    normalizer: &Value,
    special: &[(String, bool)],
    words_first: bool,
) -> TextTokenizer {
    let json = std::fs::read(folder(family).join("tokenizer.json")).unwrap();
    let mut file: Value = serde_json::from_slice(&json).unwrap();
    file["normalizer"] = normalizer.clone();
    file["model"]["ignore_merges"] = json!(words_first);
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    for (content, normalized) in special {
        let id = 5000 + tokens.len();
        if !tokens.iter().any(|token| token["content"] == *content) {
            tokens.push(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": normalized, "special": false}));
        }
    }
    TextTokenizer::new(file.to_string().as_bytes(), 1 << 20).unwrap()
}

#[test]
fn families_that_are_byte_level_are_known_as_such() {
    let known = LOADED.iter().map(|model| model.tokenizer.is_byte_level());
    let known = FAMILIES.iter().zip(known).filter(|(_, is)| *is);
    let known: Vec<&str> = known.map(|(name, _)| *name).collect();
    assert_eq!(known, ["chatml", "headers", "markers"]);
}

/// A long run of anything is as the library has it too, and a very long one comes to an end.
#[test]
fn long_runs() {
    for family in ["chatml", "headers", "markers"] {
        let tokenizer = varied(family, &Value::Null, &[], false);
        for unit in ["a", "ab", "0", "你", "é", "-", "\n", "AbC"] {
            let text = unit.repeat(3000);
            let expected = tokenizer.whole(&text, false).unwrap();
            let got = tokenizer.encode(&text, false).unwrap();
            assert_eq!(got, expected, "{family}: {unit}");
        }
        let far = "x".repeat(1 << 19) + &" ".repeat(1 << 19);
        assert!(!tokenizer.encode(&far, false).unwrap().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Turn after turn through what is remembered, with any special tokens and normalizer: the ids of the whole conversation.
    #[test]
    fn turns_of_varied_tokenizers(
        family in prop::sample::select(vec!["chatml", "headers", "markers", "brackets", "turns"]),
        normalizer in prop::sample::select(vec![
            json!(null), json!({"type": "NFC"}), json!({"type": "NFKC"}), json!({"type": "NFD"}), json!({"type": "Lowercase"}),
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "_"}),
            json!({"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}]}),
        ]),
        special in prop::collection::vec(("<[a-zA-Z é|]{1,6}>|[a-z]{2,3}| hi|e\u{301}", any::<bool>()), 0..5),
        words_first in any::<bool>(),
        turns in prop::collection::vec((pieces(), any::<prop::sample::Index>()), 1..6),
    ) {
        let tokenizer = varied(family, &normalizer, &special, words_first);
        let mut so_far = String::new();
        for (text, which) in &turns {
            so_far.push_str(text);
            if !special.is_empty() {
                so_far.push_str(&which.get(&special).0);
            }
            for _ in 0..2 {
                let ids = tokenizer.encode(&so_far, false).unwrap();
                prop_assert_eq!(ids, tokenizer.whole(&so_far, false).unwrap(), "{:?}", &so_far);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// A long text in parts, of which some came before in another text, is as it is in one.
    #[test]
    fn long_texts_with_the_same_beginning(
        family in prop::sample::select(vec!["chatml", "headers", "markers"]),
        normalizer in prop::sample::select(vec![json!(null), json!({"type": "NFC"}), json!({"type": "NFKD"})]),
        words in prop::collection::vec(prop::sample::select(vec![
            " hello", " the", " A", "it's", "'re", " x", "y", " ", "  ", "\n", " 12", "3", "\t", "é", " e\u{301}", "\u{301}", "你好", "-", " .", "<|im",
        ]), 300..1500),
        behind in prop::collection::vec((any::<prop::sample::Index>(), pieces()), 1..4),
    ) {
        let tokenizer = varied(family, &normalizer, &[], false);
        let text = words.concat();
        for (at, tail) in behind {
            let at = (0..=at.index(text.len())).rev().find(|at| text.is_char_boundary(*at));
            let text = text[..at.unwrap_or_default()].to_owned() + &tail;
            let whole = tokenizer.whole(&text, false).unwrap();
            // New, from its parts, and as a whole.
            for _ in 0..3 {
                prop_assert_eq!(&tokenizer.encode(&text, false).unwrap(), &whole, "{:?}", &text);
            }
            prop_assert_eq!(tokenizer.new_bytes(&text), 0);
        }
    }
}

#[test]
fn of_a_long_text_with_a_known_beginning_only_the_rest_is_new() {
    for (family, model) in FAMILIES.iter().zip(LOADED.iter()) {
        let tokenizer = &model.tokenizer;
        if !tokenizer.is_byte_level() {
            continue;
        }
        let known = "The quick brown fox jumps over the lazy dog. ".repeat(200);
        tokenizer.encode(&known, false).unwrap();
        let new = tokenizer.new_bytes(&(known.clone() + "And then something else."));
        assert!((20..2_100).contains(&new), "{family}: {new}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Remembered pieces or not, the ids are those of the whole text.
    #[test]
    fn incremental_equals_whole(texts in prop::collection::vec(pieces(), 1..4)) {
        for (family, model) in FAMILIES.iter().zip(LOADED.iter()) {
            prop_assert!(model.tokenizer.is_incremental(), "{}", family);
            let mut so_far = String::new();
            for text in &texts {
                so_far.push_str(text);
                for special in [false, true] {
                    let incremental = model.tokenizer.encode(&so_far, special).unwrap();
                    prop_assert_eq!(incremental, model.tokenizer.whole(&so_far, special).unwrap(), "{}: {:?}", family, &so_far);
                }
            }
        }
    }

    /// Nothing that a client sends ends in anything but tokens or an error.
    #[test]
    fn no_body_panics(role in ".{0,8}", content in pieces(), kind in 0..6) {
        let content = match kind {
            0 => json!(content),
            1 => json!([{"type": "text", "text": content}, content]),
            2 => json!([{"type": content, "x": 1}, 7]),
            3 => json!({"a": content}),
            4 => json!(null),
            _ => json!([{"type": "image_url", "image_url": {"url": content}}]),
        };
        let body = json!({"model": "m", "messages": [{"role": role, "content": content, "tool_calls": [{"function": {"name": "x"}}, kind]}]}).to_string();
        for model in LOADED.iter() {
            with(Api::Chat, &body, |request| {
                let _ = Local::new(Arc::clone(model)).tokens_now(&request);
            });
        }
    }
}

#[tokio::test]
async fn long_new_text_and_short_are_the_same() {
    let local = Local::new(Arc::clone(&LOADED[0]));
    for words in [1, 20_000, 200_000] {
        let body =
            json!({"model": "m", "messages": [{"role": "user", "content": "word ".repeat(words)}]})
                .to_string();
        let info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
        let request = Request {
            info: &info,
            body: body.as_bytes(),
            lora: Some("a"),
        };
        let tokens = local.tokens(request).await.unwrap();
        assert_eq!(tokens, local.tokens_now(&request).unwrap());
        assert_eq!(tokens.lora.as_deref(), Some("a"));
    }
}

#[tokio::test]
async fn given_ids_and_estimates() {
    let source = Source::Estimate(Estimate);
    let given = r#"{"model":"m","prompt":[1, 2,70000],"cache_salt":"s"}"#;
    let info = RequestInfo::parse(Api::Completions, given.as_bytes()).unwrap();
    let request = Request {
        info: &info,
        body: given.as_bytes(),
        lora: None,
    };
    let tokens = source.tokens(request).await.unwrap();
    assert_eq!(
        (&tokens.ids[..], tokens.origin, tokens.salt.as_deref()),
        (&[1, 2, 70_000][..], Origin::Given, Some("s"))
    );
    let text = r#"{"model":"m","prompt":"abcdefghi"}"#;
    let info = RequestInfo::parse(Api::Completions, text.as_bytes()).unwrap();
    let request = Request {
        info: &info,
        body: text.as_bytes(),
        lora: None,
    };
    let tokens = source.tokens(request).await.unwrap();
    assert_eq!(
        tokens.ids.len() as u64,
        info.prompt.estimated_tokens(text.as_bytes())
    );
    assert!(!tokens.exact);
}

/// Answers each request on a connection with the next of `answers`, by path.
async fn engine(answers: Vec<(&'static str, u16, Value)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (path, status, answer) in answers {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            assert!(head.starts_with(&format!("post {path} ")), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap();
            let length = length.split("\r\n").next().unwrap().parse().unwrap();
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            let body = answer.to_string();
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    address
}

#[tokio::test]
async fn an_engine_tokenizes_and_when_it_cannot_somebody_else_does() {
    let render = "/v1/chat/completions/render";
    let features = json!({"mm_hashes": {"image": ["h"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 2}]}});
    let answers = vec![
        (
            render,
            200,
            json!({"token_ids": [1, 5, 5, 2], "features": features}),
        ),
        (render, 404, json!({})),
        ("/tokenize", 200, json!({"count": 2, "tokens": [7, 8]})),
        ("/tokenize", 200, json!({"tokens": [9]})),
        ("/tokenize", 500, json!({})),
    ];
    let address = engine(answers).await;
    let source = Source::Engine(Arc::new(Engine::new(address, Duration::from_secs(20))));
    let source = source.or(Source::Estimate(Estimate));
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
    let request = Request {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    };
    let tokens = source.tokens(request).await.unwrap();
    assert_eq!(
        (&tokens.ids[..], tokens.origin),
        (&[1, 5, 5, 2][..], Origin::Engine)
    );
    assert_eq!(
        (
            tokens.media[0].start,
            tokens.media[0].len,
            tokens.media[0].identifier.as_str()
        ),
        (1, 2, "h")
    );
    assert_eq!(source.tokens(request).await.unwrap().ids[..], [7, 8]);
    assert_eq!(source.tokens(request).await.unwrap().ids[..], [9]);
    assert_eq!(
        source.tokens(request).await.unwrap().origin,
        Origin::Estimate
    );
    // One that does not answer at all.
    let silent = engine(vec![]).await;
    let engine = Engine::new(silent, Duration::from_millis(50));
    assert_eq!(engine.tokens(request).await, Err(TokenError::Timeout));
}

#[tokio::test]
async fn other_apis_are_rendered_by_engines_that_have_a_path_for_them() {
    let address = engine(vec![
        ("/v1/messages/render", 200, json!({"token_ids": [4, 2]})),
        ("/v1/responses/render", 200, json!({"token_ids": [5]})),
        ("/v1/messages/render", 404, json!({})),
    ])
    .await;
    let engine = Engine::new(address, Duration::from_secs(20));
    let messages = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    let responses = r#"{"model":"m","input":"hi","previous_response_id":"r"}"#;
    for (api, body, wanted) in [
        (Api::Messages, messages, Some(&[4, 2][..])),
        (Api::Responses, responses, Some(&[5][..])),
        // `/tokenize` is not asked instead: it would read the body as a chat.
        (Api::Messages, messages, None),
    ] {
        let info = RequestInfo::parse(api, body.as_bytes()).unwrap();
        let request = Request {
            info: &info,
            body: body.as_bytes(),
            lora: None,
        };
        match (engine.tokens(request).await, wanted) {
            (Ok(tokens), Some(wanted)) => assert_eq!(&tokens.ids[..], wanted),
            (Err(TokenError::Unsupported(_)), None) => {}
            other => panic!("{other:?}"),
        }
    }
}
