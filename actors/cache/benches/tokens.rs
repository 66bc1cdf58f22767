//! Tokens of chat prompts: new text, here and by the general library, and the next turn of a long conversation.
//!
//! The tokenizer is trained on this repository's own sources (32k tokens, a Llama 3 and a Qwen 2 pre-tokenizer) and kept below the target folder;
//! the prompts are of its documents, which it was not trained on. `QUORATE_BENCH_MODEL` names a folder with a model's own files instead.
#![allow(clippy::unwrap_used)]

use criterion::{Criterion, Throughput};
use quorate_cache::tokens::{Local, ModelFiles, Models, Request, TemplateLimits};
use quorate_routing::request::{Api, RequestInfo};
use serde_json::{Value, json};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const LLAMA: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files below `folder` with this ending, in order of their names.
fn texts(folder: &Path, ending: &str, out: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            texts(&path, ending, out);
        } else if path.extension().is_some_and(|e| e == ending) {
            out.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

fn trained() -> Value {
    let mut corpus = Vec::new();
    for folder in ["actors", "node", "raft", "tests"] {
        texts(&root().join(folder), "rs", &mut corpus);
    }
    let trainer = BpeTrainer::builder()
        .vocab_size(32_000)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    let mut trainer = TrainerWrapper::from(trainer);
    tokenizer.train(&mut trainer, corpus.into_iter()).unwrap();
    let special = ["<|im_start|>", "<|im_end|>"].map(|text| AddedToken::from(text, true));
    tokenizer.add_special_tokens(special).unwrap();
    serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap()
}

/// The folder with the model's files, made when they are not there.
fn folder(name: &str, pattern: &str, normalizer: &Value) -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokens");
    let folder = home.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let kept = home.join("trained.json");
    if !kept.exists() {
        std::fs::write(&kept, trained().to_string()).unwrap();
    }
    let mut file: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
    file["normalizer"] = normalizer.clone();
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

/// Messages of about `size` bytes each, the repository's documents one after the other.
fn messages(size: usize) -> Vec<String> {
    let mut documents = Vec::new();
    texts(&root().join("docs"), "md", &mut documents);
    let text: Vec<char> = documents.concat().chars().collect();
    text.chunks(size)
        .map(|chunk| chunk.iter().collect())
        .collect()
}

fn body(messages: &[String]) -> String {
    let messages = messages.iter().enumerate().map(
        |(n, text)| json!({"role": if n % 2 == 0 { "user" } else { "assistant" }, "content": text}),
    );
    json!({"model": "m", "messages": messages.collect::<Vec<_>>()}).to_string()
}

fn tokens(local: &Local, body: &str) -> usize {
    let info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
    let request = Request {
        info: &info,
        body: body.as_bytes(),
        lora: None,
    };
    local.tokens_now(&request).unwrap().ids.len()
}

fn load(folder: &Path, cache_bytes: usize) -> Arc<ModelFiles> {
    let models = Models::new(cache_bytes, TemplateLimits::default());
    models.load(folder).unwrap()
}

fn cold(c: &mut Criterion, name: &str, folder: &Path, messages: &[String]) {
    // Nothing is remembered.
    let files = load(folder, 0);
    assert!(files.tokenizer.is_byte_level());
    let text = messages.concat();
    let count = files.tokenizer.whole(&text, false).unwrap();
    assert_eq!(files.tokenizer.encode(&text, false).unwrap(), count);
    println!(
        "{name}: {:.2} bytes a token",
        text.len() as f64 / count.len() as f64
    );
    let mut group = c.benchmark_group(format!("cold/{name}"));
    group.throughput(Throughput::Elements(count.len() as u64));
    group.sample_size(20);
    group.bench_function("text/library", |b| {
        b.iter(|| {
            messages
                .iter()
                .map(|m| files.tokenizer.whole(black_box(m), false).unwrap().len())
                .sum::<usize>()
        });
    });
    group.bench_function("text/here", |b| {
        b.iter(|| {
            messages
                .iter()
                .map(|m| files.tokenizer.encode(black_box(m), false).unwrap().len())
                .sum::<usize>()
        });
    });
    // Prompts of four messages, from their bytes: parsed, rendered, tokenized.
    let local = Local::new(files);
    let bodies: Vec<String> = messages.chunks(4).map(body).collect();
    let count: usize = bodies.iter().map(|body| tokens(&local, body)).sum();
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function("requests", |b| {
        b.iter(|| {
            bodies
                .iter()
                .map(|body| tokens(&local, black_box(body)))
                .sum::<usize>()
        });
    });
}

/// Each time another new message behind 32k tokens that were seen before.
fn next_turn(c: &mut Criterion, name: &str, folder: &Path, messages: &[String]) {
    let local = Local::new(load(folder, 64 << 20));
    let mut so_far = Vec::new();
    for message in messages.iter().cycle() {
        so_far.push(message.clone());
        if tokens(&local, &body(&so_far)) >= 32_768 {
            break;
        }
    }
    println!(
        "{name}: {} messages, {} bytes",
        so_far.len(),
        body(&so_far).len()
    );
    so_far.push(String::new());
    let mut turn = 0u64;
    c.bench_function(&format!("next_turn/32k/{name}"), |b| {
        b.iter_batched(
            || {
                turn += 1;
                let last = so_far.last_mut().unwrap();
                *last = format!(
                    "Question {turn}: {}",
                    messages[turn as usize % messages.len()]
                        .chars()
                        .take(400)
                        .collect::<String>()
                );
                body(&so_far)
            },
            |body| tokens(&local, &body),
            criterion::BatchSize::SmallInput,
        );
    });
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let models = match std::env::var_os("QUORATE_BENCH_MODEL") {
        Some(folder) => vec![("given", PathBuf::from(folder))],
        None => vec![
            ("llama", folder("llama", LLAMA, &Value::Null)),
            ("qwen", folder("qwen", QWEN, &json!({"type": "NFC"}))),
        ],
    };
    let messages = messages(2000);
    for (name, folder) in &models {
        cold(&mut c, name, folder, &messages);
        next_turn(&mut c, name, folder, &messages);
    }
    c.final_summary();
}
