//! One function for each kind of bytes that come from outside.

use quorate_cache::events::{Batch, Event, decode, trtllm};
use quorate_cache::feed::{Replicated, decode_outcomes, encode_outcomes};
use quorate_cache::index::{CacheIndex, DeltaBatch, IndexConfig, SnapshotLoader};
use quorate_cache::keys::KeySpace;
use quorate_cache::link::zmtp::{Limits, Received, SocketType, open};
use quorate_cache::link::{server_info, vllm_event_sources};
use quorate_cache::tokens::{
    ChatTemplate, Local, ModelFiles, Models, Raw, Request, TemplateLimits,
};
use quorate_routing::request::{Api, RequestInfo};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::runtime::{Builder, Runtime};

/// A target's name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 8] = [
    ("events", events),
    ("sources", sources),
    ("frames", frames),
    ("log", log),
    ("snapshot", snapshot),
    ("requests", requests),
    ("template", template),
    ("tokenizer", tokenizer),
];

/// Payloads of vLLM's and SGLang's event messages, and bodies of TensorRT-LLM's.
pub fn events(data: &[u8]) {
    let mut batch = Batch::new();
    let decoded = decode(data, &mut batch);
    assert!(batch.capacity_bytes() <= 256 * data.len() + 4096);
    assert!(decoded.is_ok() || batch.is_empty());
    for event in batch.events() {
        if let Event::Stored(stored) = event {
            // What was there to be read: no value comes from nothing.
            let values = stored.hashes.len() + stored.tokens.len() + stored.extra_keys().count();
            assert!(values <= data.len());
        }
    }
    let _ = trtllm::Poller::new(NonZeroU32::MIN).decode(data);
}

/// What engines say of where their events are.
pub fn sources(data: &[u8]) {
    for found in [vllm_event_sources(data, "host"), server_info(data, "host")] {
        assert!(
            found
                .is_ok_and(|sources| sources.len() > data.len())
                .eq(&false)
        );
    }
}

fn runtime() -> Runtime {
    let built = Builder::new_current_thread().enable_time().build();
    built.unwrap_or_else(|error| panic!("no runtime: {error}"))
}

thread_local! {
    static RUNTIME: Runtime = runtime();
}

/// The greeting and READY of a publisher that speaks ZMTP 3.0.
pub fn greeting() -> Vec<u8> {
    let mut out = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
    out.extend(b"NULL");
    out.resize(64, 0);
    let ready = b"\x05READY\x0bSocket-Type\0\0\0\x03PUB";
    out.extend([4, ready.len() as u8]);
    out.extend(ready);
    out
}

/// What a peer sends over ZeroMQ: from the first byte on, and once more behind a right greeting.
pub fn frames(data: &[u8]) {
    let limits = Limits {
        message: 1 << 16,
        frames: 4,
    };
    let receive = async |bytes: Vec<u8>| {
        let there = bytes.len();
        let stream = tokio::io::join(Cursor::new(bytes), tokio::io::sink());
        let Ok((mut reader, _writer)) = open(Box::new(stream), SocketType::Sub, limits).await
        else {
            return;
        };
        let mut came = 0;
        // It ends with an error when the bytes do.
        while let Ok(received) = reader.receive().await {
            came += match received {
                Received::Message(parts) => {
                    assert!(parts.len() <= limits.frames);
                    parts.iter().map(|part| part.len()).sum()
                }
                Received::Subscribe(bytes) | Received::Cancel(bytes) | Received::Ping(bytes) => {
                    bytes.len()
                }
                Received::Pong | Received::Command => 0,
            };
            assert!(came <= there);
        }
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            receive(data.to_vec()).await;
            receive([&greeting(), data].concat()).await;
        });
    });
}

const SMALL: IndexConfig = IndexConfig { max_bytes: 1 << 20 };

/// Entries of the region's log, what a batch is made of, and what the group answers.
pub fn log(data: &[u8]) {
    if let Ok(batch) = DeltaBatch::decode(data) {
        let mut again = Vec::new();
        batch.encode(&mut again);
        assert_eq!(DeltaBatch::decode(&again).as_ref(), Ok(&batch));
        for section in &batch.sections {
            assert!(section.operations().count() <= data.len());
        }
    }
    if let Ok(space) = KeySpace::decode(data) {
        // Numbers may have come in more bytes than they need.
        assert_eq!(KeySpace::decode(space.encoded()).as_ref(), Ok(&space));
    }
    if let Ok(outcomes) = decode_outcomes(data) {
        let mut again = Vec::new();
        encode_outcomes(&outcomes, &mut again);
        assert_eq!(decode_outcomes(&again), Ok(outcomes));
    }
    let index = Arc::new(CacheIndex::new(SMALL));
    let replica = Replicated::new(Arc::clone(&index), SMALL);
    replica.apply(1, data);
    // A second time: it must be the same on a map that is not empty.
    replica.apply(2, data);
    let stats = index.stats();
    assert!(stats.pairs <= stats.max_pairs);
}

/// Chunks of a snapshot, one after another, each with its length in two bytes before it. Their checksums are put right, since a
/// damaged chunk goes no further.
pub fn snapshot(data: &[u8]) {
    let mut loader = SnapshotLoader::new(SMALL);
    let mut rest = data;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let (chunk, more) = more.split_at(usize::from(u16::from_be_bytes(*length)).min(more.len()));
        rest = more;
        let mut chunk = chunk.to_vec();
        if let Some((body, sum)) = chunk.split_last_chunk_mut::<4>() {
            *sum = crc32fast::hash(body).to_le_bytes();
        }
        if loader.push(&chunk).is_err() {
            break;
        }
    }
    if let Ok(loaded) = loader.finish() {
        let stats = loaded.stats();
        assert!(stats.pairs <= stats.max_pairs);
    }
}

/// The folder of a small model that the tests have.
pub fn model_folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here
        .ancestors()
        .map(|folder| folder.join("actors/cache/tests/tokens/chatml"))
        .find(|folder| folder.is_dir());
    found.unwrap_or_else(|| panic!("the test model is not there"))
}

const TIGHT: TemplateLimits = TemplateLimits {
    fuel: 20_000,
    recursion: 20,
    output: 64 << 10,
};

fn models() -> Models {
    Models::new(1 << 16, TIGHT)
}

fn model() -> Arc<ModelFiles> {
    static MODEL: OnceLock<Arc<ModelFiles>> = OnceLock::new();
    let load = || {
        let loaded = models().load(&model_folder());
        loaded.unwrap_or_else(|error| panic!("{error}"))
    };
    Arc::clone(MODEL.get_or_init(load))
}

/// Bodies of requests: the first byte says of which API.
pub fn requests(data: &[u8]) {
    let Some((which, body)) = data.split_first() else {
        return;
    };
    const APIS: [Api; 6] = [
        Api::Chat,
        Api::Messages,
        Api::Responses,
        Api::Completions,
        Api::SglangGenerate,
        Api::Native,
    ];
    let api = APIS[usize::from(*which) % APIS.len()];
    let Ok(info) = RequestInfo::parse(api, body) else {
        return;
    };
    let request = Request {
        info: &info,
        body,
        lora: None,
    };
    if let Ok(tokens) = Local::new(model()).tokens_now(&request) {
        for span in &tokens.media {
            assert!(span.start + span.len <= tokens.ids.len());
        }
    }
}

/// Chat templates.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    if ChatTemplate::new(source, TIGHT).is_err() {
        return;
    }
    let files = [
        ("tokenizer.json", tokenizer_json().to_vec()),
        ("chat_template.jinja", data.to_vec()),
    ];
    use_model(BTreeMap::from(files));
}

fn tokenizer_json() -> &'static [u8] {
    br#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#
}

/// A tokenizer's own file, as a host may serve it.
pub fn tokenizer(data: &[u8]) {
    let template = b"{% for m in messages %}{{ m.content }}{% endfor %}";
    let files = [
        ("tokenizer.json", data.to_vec()),
        ("tokenizer_config.json", data.to_vec()),
        ("config.json", data.to_vec()),
        ("preprocessor_config.json", data.to_vec()),
        ("chat_template.jinja", template.to_vec()),
    ];
    use_model(BTreeMap::from(files));
}

fn use_model(files: BTreeMap<&'static str, Vec<u8>>) {
    // The library panics over some files; the router builds models where a panic is an error like others.
    let build = || models().of(&Raw::new("here".to_owned(), files));
    let Ok(Ok(files)) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)) else {
        return;
    };
    let body =
        br#"{"model":"m","messages":[{"role":"user","content":"ab a b <|im_end|> \u00e9\n"}]}"#;
    let Ok(info) = RequestInfo::parse(Api::Chat, body) else {
        return;
    };
    let request = Request {
        info: &info,
        body,
        lora: None,
    };
    let _ = Local::new(files).tokens_now(&request);
}
