//! Bytes that are right, for each target, from which mutations begin.

use super::targets;
use quorate_cache::Tier;
use quorate_cache::feed::encode_outcomes;
use quorate_cache::index::{CacheIndex, DeltaBatch, HolderKey, IndexConfig, Outcome, Section};
use quorate_cache::keys::{KeySpace, Scheme};

#[path = "../../actors/cache/src/events/vectors.rs"]
mod vectors;

use vectors as v;

/// The seeds of each target.
pub fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    vec![
        ("events", events()),
        ("sources", sources()),
        ("frames", frames()),
        ("log", log()),
        ("snapshot", snapshot()),
        ("requests", requests()),
        ("template", template()),
        ("tokenizer", tokenizer()),
    ]
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap_or_default() as u8;
    let pairs = hex.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn events() -> Vec<Vec<u8>> {
    let all = [
        v::A,
        v::B1,
        v::B2,
        v::C,
        v::D,
        v::E,
        v::F,
        v::G,
        v::H,
        v::I,
        v::MAPBATCH,
        v::SGL1,
        v::SGL2,
        v::SGL3,
        v::FS,
        v::SHORT,
        v::UNKNOWN,
        v::SMALLINT,
        v::TWO,
    ];
    let mut seeds: Vec<Vec<u8>> = all.into_iter().map(bytes).collect();
    let polled = r#"[{"event_id":7,"attention_dp_rank":0,"window_size":32768,"data":{"type":"stored","parent_hash":null,"blocks":[{"block_hash":123,"tokens":[{"token_id":5,"token_extra_id":0}],"cache_level":0,"priority":35,"mm_keys":[{"type":"mm_key","hash":"ab","start_offset":0}]}]}},
        {"event_id":8,"data":{"type":"created","num_blocks_per_cache_level":[10,2]}},{"event_id":9,"data":{"type":"removed","block_hashes":[123]}},
        {"event_id":10,"data":{"type":"updated","block_hash":123,"cache_level":{"old_value":0,"new_value":1}}}]"#;
    seeds.push(polled.as_bytes().to_vec());
    seeds
}

fn sources() -> Vec<Vec<u8>> {
    [
        r#"{"0":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://10.0.0.1:5557","replay_endpoint":"tcp://10.0.0.1:6557","topic":"kv"},"1":{"publisher":"zmq","endpoint":"tcp://*:5558"}}"#,
        r#"{"kv_events":{"publisher":"zmq","endpoint_host":"0.0.0.0","endpoint_port_base":5557,"topic":"","block_size":16,"dp_size":4,"replay_endpoint_port_base":6557}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn frames() -> Vec<Vec<u8>> {
    let mut message = vec![
        1, 2, b'k', b'v', 1, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 3, 0x93, 0xc0, 0x90,
    ];
    message.extend([2, 0, 0, 0, 0, 0, 0, 1, 44]);
    message.extend([7; 300]);
    let mut commands = b"\x04\x07\x04PING\0\0\x04\x05\x04PONG".to_vec();
    commands.extend(b"\x04\x0c\x09SUBSCRIBEkv\x04\x07\x06CANCEL\x00\x02\x01k");
    let whole = [targets::greeting(), message.clone(), commands.clone()].concat();
    vec![message, commands, whole]
}

fn space() -> Option<KeySpace> {
    KeySpace::new(
        "model",
        16,
        Scheme::of(
            Some("sha256_cbor"),
            None,
            quorate_cache::hash::ExtraForm::Tagged,
        ),
    )
    .ok()
}

fn batches() -> Vec<DeltaBatch> {
    let key = |endpoint, rank| HolderKey { endpoint, rank };
    let hashes = |seed: u64, count: u64| -> Vec<u64> {
        (0..count)
            .map(|i| (seed + i).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect()
    };
    let mut first = Section::new(key(1, 0), 5, 1, 0, 1);
    first.replace = true;
    first.space = space();
    first.stored(Tier::Gpu, None, &hashes(1, 20));
    let mut second = Section::new(key(2, 3), 6, 1, 0, 1);
    second.replace = true;
    second.space = KeySpace::new("m", 4, Scheme::Own).ok();
    second.stored(Tier::Cpu, Some(7), &hashes(5, 3));
    second.removed(Tier::Cpu, &hashes(6, 1));
    second.cleared(Some(Tier::Disk));
    let mut third = Section::new(key(1, 0), 5, 1, 1, 2);
    third.removed(Tier::Gpu, &hashes(3, 4));
    third.cleared(None);
    let mut gone = Section::new(key(1, 0), 5, 2, 0, 0);
    gone.remove = true;
    [vec![first, second], vec![third], vec![gone]]
        .map(|sections| DeltaBatch { sections })
        .into()
}

fn log() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for batch in batches() {
        let mut out = Vec::new();
        batch.encode(&mut out);
        seeds.push(out);
    }
    seeds.extend(space().map(|space| space.encoded().to_vec()));
    let key = HolderKey {
        endpoint: 9,
        rank: 1,
    };
    let mut out = Vec::new();
    let applied = Outcome::Applied {
        added: 1,
        removed: 300,
        refused: 0,
    };
    encode_outcomes(&[(key, applied), (key, Outcome::Repeated)], &mut out);
    seeds.push(out);
    seeds
}

fn snapshot() -> Vec<Vec<u8>> {
    let index = CacheIndex::new(IndexConfig { max_bytes: 1 << 20 });
    for batch in batches().iter().take(2) {
        index.apply(batch);
    }
    let mut out = Vec::new();
    for chunk in index.snapshot() {
        out.extend((chunk.len() as u16).to_be_bytes());
        out.extend(chunk);
    }
    vec![out]
}

fn requests() -> Vec<Vec<u8>> {
    [
        (0, r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAoAAAAFoCAIAAAA="},"uuid":"u"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\": [1, 2.5, null]}"}}]},{"role":"tool","tool_call_id":"c","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"chat_template_kwargs":{"enable_thinking":false},"reasoning_effort":"low"}"#),
        (0, r#"{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":" b "}],"continue_final_message":true,"add_generation_prompt":false}"#),
        (1, r#"{"model":"m","max_tokens":9,"system":[{"type":"text","text":"s"}],"thinking":{"type":"disabled"},"messages":[{"role":"user","content":"a"},{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"x"},{"type":"tool_use","id":"i","name":"f","input":{"a":1}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"i","content":[{"type":"text","text":"r"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}}]}]},{"role":"system","content":"late"}],"tools":[{"name":"f","input_schema":{"properties":{}}}]}"#),
        (2, r#"{"model":"m","instructions":"i","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]},{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"w"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"o"},{"type":"message","role":"assistant","status":"incomplete","content":[{"type":"output_text","text":"d"}]}],"tools":[{"type":"function","name":"f","parameters":{}},{"type":"mcp"}],"reasoning":{"effort":"high"}}"#),
        (3, r#"{"model":"m","prompt":["hello"],"add_special_tokens":false}"#),
        (3, r#"{"model":"m","prompt":[1,2,300]}"#),
        (4, r#"{"text":"hello","model":"m"}"#),
    ]
    .map(|(api, body)| [&[api], body.as_bytes()].concat())
    .into()
}

fn file(name: &str) -> Vec<Vec<u8>> {
    std::fs::read(targets::model_folder().join(name))
        .into_iter()
        .collect()
}

fn template() -> Vec<Vec<u8>> {
    let mut seeds = file("chat_template.jinja");
    seeds.push(b"{% macro m(x) %}{{ x }}{% endmacro %}{% for a in messages %}{{ m(a.content[:2] | upper) }}{% set n = namespace(k=loop.index) %}{{ n.k }}{{ a | tojson(indent=2) }}{% endfor %}{{ strftime_now('%d %b %Y') }}{% generation %}x{% endgeneration %}".to_vec());
    seeds.push(b"{{ 'a' * 3 }}{{ range(5) | list }}{{ messages | map(attribute='role') | join(',') }}{{ raise_exception('no') }}".to_vec());
    seeds
}

fn tokenizer() -> Vec<Vec<u8>> {
    let byte_level = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":5,"content":"<|im_end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<|im_end|>":{"id":"<|im_end|>","ids":[5],"tokens":["<|im_end|>"]}}},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"a":0,"b":1,"ab":2,"\u0120":3,"\u0120a":4},"merges":[["a","b"],["\u0120","a"]]}}"#;
    let other = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"_"},"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.5],["_b",-2.0]],"byte_fallback":false}}"#;
    let config = r#"{"model_type":"qwen2_5_vl","min_pixels":3136,"max_pixels":12845056,"patch_size":14,"merge_size":2,"bos_token":{"content":"<s>"},"chat_template":[{"name":"default","template":"x"}]}"#;
    [byte_level, other, config]
        .map(|text| text.as_bytes().to_vec())
        .into()
}
