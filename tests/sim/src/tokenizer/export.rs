//! The simulator's words as a tokenizer that others can load: `tokenizer.json`, its config and a chat template.
//!
//! Byte-level BPE. Its merges only ever lengthen a word from its beginning, so a known word is one token, and so are a space and
//! any three small letters; anything else falls apart into bytes after the longest known beginning. So text is about as many
//! tokens as with the simulator's own rule, and generated text tokenizes back to what it was generated from.

use super::words::WORDS;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::{fs, io};

const BEGIN: &str = "<|im_start|>";
const END: &str = "<|im_end|>";
const TEMPLATE: &str = "{%- if tools %}{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}\
{{- '<|im_end|>\n' }}{%- endif %}\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}\
{%- if message.content %}{{- message.content }}{%- endif %}\
{%- if message.tool_calls %}{{- message.tool_calls | tojson }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

/// The character that stands for a byte in a byte-level vocabulary (GPT-2's rule).
fn letter(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if plain(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !plain(*other)).count();
    char::from_u32(256 + before as u32).unwrap_or_default()
}

/// The vocabulary and its merges, from the words that are to be one token each.
struct Tokens {
    vocabulary: Map<String, Value>,
    merges: Vec<[String; 2]>,
}

impl Tokens {
    fn add(&mut self, word: &str) {
        let mut sofar = String::new();
        for byte in word.bytes() {
            let next = letter(byte);
            let before = sofar.clone();
            sofar.push(next);
            if !self.vocabulary.contains_key(&sofar) {
                self.merges.push([before, next.to_string()]);
                let id = self.vocabulary.len();
                self.vocabulary.insert(sofar.clone(), json!(id));
            }
        }
    }
}

fn tokenizer() -> Value {
    let mut tokens = Tokens {
        vocabulary: Map::new(),
        merges: Vec::new(),
    };
    for byte in 0..=u8::MAX {
        tokens
            .vocabulary
            .insert(letter(byte).to_string(), json!(byte));
    }
    let capital = |word: &str| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    };
    // Spaced words first: a merge of theirs counts more than one inside a word.
    for word in WORDS {
        tokens.add(&format!(" {word}"));
        tokens.add(&format!(" {}", capital(word)));
    }
    for first in 'a'..='z' {
        for second in 'a'..='z' {
            for third in 'a'..='z' {
                tokens.add(&format!(" {first}{second}{third}"));
            }
        }
    }
    for word in WORDS {
        tokens.add(&capital(word));
    }
    let added: Vec<Value> = [BEGIN, END]
        .iter()
        .enumerate()
        .map(|(at, content)| {
            json!({"id": tokens.vocabulary.len() + at, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": tokens.vocabulary, "merges": tokens.merges,
        },
    })
}

/// Writes the files of a model's tokenizer into a directory, which is made.
pub fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let config =
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END});
    fs::write(directory.join("tokenizer.json"), tokenizer().to_string())?;
    fs::write(directory.join("tokenizer_config.json"), config.to_string())?;
    fs::write(directory.join("chat_template.jinja"), TEMPLATE)
}
