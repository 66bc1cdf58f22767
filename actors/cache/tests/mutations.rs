//! Right bytes, spoilt in thousands of ways: nothing ends the process, and nothing takes memory out of proportion. What the targets for
//! cargo-fuzz do (`fuzz/`), without its search and on any toolchain; the same bytes each time.

#[path = "../../../fuzz/src/seeds.rs"]
mod seeds;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use fastrand::Rng;
use serde_json::{Value, json};

/// Numbers at which lengths and bounds go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Words that mean something to the parsers.
const WORDS: [&[u8]; 16] = [
    b"null",
    b"true",
    b"-1",
    b"1e309",
    b"99999999999999999999",
    b"\"\"",
    b"{}",
    b"[]",
    b"{\"type\":\"text\"}",
    b"\\ud800",
    b"{% for a in range(99999) %}",
    b"{% endfor %}",
    b"{{ ",
    b" }}",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"\xde\xff\xff\xdd\xff\xff\xff\xff",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut bytes = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..8) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..24)).min(bytes.len());
        match random.u8(..8) {
            0 => bytes[at..end]
                .iter_mut()
                .for_each(|byte| *byte = random.u8(..)),
            1 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= 1 << random.u8(..8)),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let number = NUMBERS[random.usize(..NUMBERS.len())].to_be_bytes();
                let number = &number[8 - [1, 2, 4, 8][random.usize(..4)]..];
                let end = (at + number.len()).min(bytes.len());
                bytes.splice(at..end, number.iter().copied());
            }
            5 => drop(bytes.splice(at..end, WORDS[random.usize(..WORDS.len())].iter().copied())),
            6 => {
                let other = &seeds[random.usize(..seeds.len())];
                let from = random.usize(..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Values within a document.
fn count(value: &Value) -> usize {
    let inside: usize = match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    };
    1 + inside
}

/// Does something to the value that has `at` others before it.
fn at(value: &mut Value, at: &mut usize, change: &mut dyn FnMut(&mut Value)) {
    if *at == 0 {
        *at = usize::MAX;
        return change(value);
    }
    *at = at.saturating_sub(1);
    let inside: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(map) => map.values_mut().collect(),
        _ => Vec::new(),
    };
    for value in inside {
        if *at == usize::MAX {
            return;
        }
        self::at(value, at, change);
    }
}

/// Another value: one of the document's own in another place, or one that should not be there.
fn other(document: &Value, random: &mut Rng) -> Value {
    let mut document = document.clone();
    let mut which = random.usize(..count(&document));
    let mut own = Value::Null;
    at(&mut document, &mut which, &mut |value| own = value.take());
    match random.u8(..12) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(1e300),
        4 => json!(u64::MAX),
        5 => json!(""),
        6 => json!([]),
        7 => json!({}),
        8 => json!("{% x %}<|im_end|>\u{0}é😀".repeat(random.usize(1..9))),
        9 => (0..random.usize(1..90)).fold(own, |inside, _| json!([inside])),
        _ => own,
    }
}

/// A document that is still one, with other values, fewer members or more elements. `None`: it was none.
fn change_json(bytes: &[u8], random: &mut Rng) -> Option<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(bytes).ok()?;
    for _ in 0..random.usize(1..4) {
        let new = other(&document, random);
        let mut which = random.usize(..count(&document));
        at(&mut document, &mut which, &mut |value| match value {
            Value::Array(list) if random.bool() => {
                let place = random.usize(..=list.len());
                list.insert(place, new.clone());
            }
            Value::Object(map) if !map.is_empty() && random.bool() => {
                let name = map.keys().nth(random.usize(..map.len())).cloned();
                let name = name.unwrap_or_default();
                match random.bool() {
                    true => drop(map.remove(&name)),
                    false => drop(map.insert(name, new.clone())),
                }
            }
            value => *value = new.clone(),
        });
    }
    serde_json::to_vec(&document).ok()
}

/// One of the seeds, spoilt. Of documents, more than half stay documents; `head` bytes stand before them.
fn spoil(seeds: &[Vec<u8>], head: usize, random: &mut Rng) -> Vec<u8> {
    if random.u8(..10) < 6 {
        let seed = &seeds[random.usize(..seeds.len())];
        let (before, document) = seed.split_at(head.min(seed.len()));
        if let Some(changed) = change_json(document, random) {
            return [before, &changed].concat();
        }
    }
    mutate(seeds, random)
}

/// Bytes that one case may hold at once, whatever it was given: small pieces take much more than they are long, up to a limit.
const MOST: u64 = 4 << 20;

fn run(name: &str, cases: usize) {
    let seeds = seeds::all();
    let (_, seeds) = seeds.iter().find(|(of, _)| *of == name).expect("seeds");
    let (_, target) = targets::ALL
        .iter()
        .find(|(of, _)| *of == name)
        .expect("a target");
    assert!(!seeds.is_empty());
    // What is made once is not the first case's.
    seeds.iter().for_each(|seed| target(seed));
    let mut random = Rng::with_seed(0x5eed ^ name.len() as u64);
    let mut most = 0;
    for case in 0..cases {
        let bytes = spoil(seeds, usize::from(name == "requests"), &mut random);
        let used = allocation_counter::measure(|| {
            let done = std::panic::catch_unwind(|| target(&bytes));
            assert!(
                done.is_ok(),
                "{name}, case {case}: {:?}",
                String::from_utf8_lossy(&bytes)
            );
        });
        assert!(
            used.bytes_max <= MOST,
            "{name}, case {case}: {used:?} for {} bytes",
            bytes.len()
        );
        most = most.max(used.bytes_max);
    }
    println!("{name}: {cases} cases, at most {most} bytes at once");
}

#[test]
fn events() {
    run("events", 15_000);
}

#[test]
fn sources() {
    run("sources", 8000);
}

#[test]
fn frames() {
    run("frames", 8000);
}

#[test]
fn log() {
    run("log", 4000);
}

#[test]
fn snapshots() {
    run("snapshot", 4000);
}

#[test]
fn requests() {
    run("requests", 5000);
}

#[test]
fn templates() {
    run("template", 1000);
}

#[test]
fn tokenizers() {
    run("tokenizer", 1500);
}
