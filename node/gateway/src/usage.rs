//! Token usage, read out of answers without parsing them: the `usage` object is found by its key and only that object is
//! parsed.
//!
//! Shapes: OpenAI chat and completions (`prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens`), OpenAI
//! responses (`input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens`), Anthropic (`input_tokens` without those of the cache,
//! `cache_read_input_tokens`, `cache_creation_input_tokens`, `output_tokens`; a stream sends them in two events that are merged), SGLang
//! (`meta_info` with `prompt_tokens`, `completion_tokens`, `cached_tokens`).

use memchr::memmem;
use quorate_routing::Api;
use serde::Deserialize;
use std::sync::LazyLock;

/// The longest usage object that is found where it comes in several pieces; and how much of an answer's end is looked at first, since
/// engines mostly write `usage` last. Behind it vLLM's chat writes what was asked for of the prompt (token ids, log probabilities).
pub(crate) const TAIL: usize = 4096;

/// The member that holds the usage, quotation marks included.
#[derive(Debug)]
pub(crate) struct Key {
    length: usize,
    first: memmem::Finder<'static>,
    last: memmem::FinderRev<'static>,
}

impl Key {
    fn new(key: &'static str) -> Self {
        Self {
            length: key.len(),
            first: memmem::Finder::new(key),
            last: memmem::FinderRev::new(key),
        }
    }

    /// The one that answers of `api` have.
    pub fn of(api: Api) -> &'static Self {
        static USAGE: LazyLock<Key> = LazyLock::new(|| Key::new("\"usage\""));
        static META_INFO: LazyLock<Key> = LazyLock::new(|| Key::new("\"meta_info\""));
        match api {
            Api::SglangGenerate => &META_INFO,
            _ => &USAGE,
        }
    }
}

/// Tokens of one request, as far as the engine said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of the prompt.
    pub input: Option<u64>,
    /// Generated tokens.
    pub output: Option<u64>,
    /// Prompt tokens that were found in a cache.
    pub cached: Option<u64>,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: Option<u64>,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: Option<u64>,
    #[serde(default, alias = "input_tokens_details")]
    prompt_tokens_details: Option<Details>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Takes what `newer` knows, keeps the rest.
    pub fn merge(&mut self, newer: Self) {
        self.input = newer.input.or(self.input);
        self.output = newer.output.or(self.output);
        self.cached = newer.cached.or(self.cached);
    }

    /// The first usage object of an event's data.
    pub fn find(data: &[u8], key: &Key) -> Option<Self> {
        let mut from = 0;
        while let Some(at) = key.first.find(data.get(from..)?) {
            let begin = from + at;
            if let Some(usage) = at_key(data, begin, key.length) {
                return Some(usage);
            }
            from = begin + 1;
        }
        None
    }

    /// The last usage object of a JSON answer, or of a part of it.
    pub fn find_last(data: &[u8], key: &Key) -> Option<Self> {
        let end = data.get(data.len().saturating_sub(TAIL)..)?;
        Self::backwards(end, key).or_else(|| Self::forwards(data, key))
    }

    fn backwards(data: &[u8], key: &Key) -> Option<Self> {
        let mut end = data.len();
        while let Some(begin) = key.last.rfind(data.get(..end)?) {
            if let Some(usage) = at_key(data, begin, key.length) {
                return Some(usage);
            }
            end = begin;
        }
        None
    }

    /// Over much, many times as fast as backwards.
    fn forwards(data: &[u8], key: &Key) -> Option<Self> {
        let begins = key.first.find_iter(data);
        begins
            .filter_map(|begin| at_key(data, begin, key.length))
            .last()
    }
}

/// Parses the object behind the key at `key`; `None` if that is text inside a string, or null.
fn at_key(data: &[u8], key: usize, length: usize) -> Option<Usage> {
    if key > 0 && data.get(key - 1) == Some(&b'\\') {
        return None;
    }
    let value = data
        .get(key + length..)?
        .trim_ascii_start()
        .strip_prefix(b":")?
        .trim_ascii_start();
    if value.first() != Some(&b'{') {
        return None;
    }
    let fields = serde_json::Deserializer::from_slice(value)
        .into_iter::<Fields>()
        .next()?
        .ok()?;
    let beside = [
        fields.cache_read_input_tokens,
        fields.cache_creation_input_tokens,
    ];
    let beside = beside.into_iter().flatten().fold(0, u64::saturating_add);
    Some(Usage {
        input: fields.prompt_tokens.map(|n| n.saturating_add(beside)),
        output: fields.completion_tokens,
        cached: fields
            .prompt_tokens_details
            .and_then(|d| d.cached_tokens)
            .or(fields.cache_read_input_tokens)
            .or(fields.cached_tokens),
    })
}

/// The usage in an answer that comes in several pieces.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// The last [`TAIL`] bytes that came: an object may have begun in them.
    tail: Vec<u8>,
    found: Option<Usage>,
}

impl Pieces {
    /// The next piece.
    pub fn push(&mut self, data: &[u8], key: &Key) {
        let (head, rest) = data.split_at(data.len().min(TAIL));
        self.tail.extend_from_slice(head);
        self.found = Usage::find_last(&self.tail, key).or(self.found);
        if !rest.is_empty() {
            self.found = Usage::find_last(data, key).or(self.found);
            self.tail
                .extend_from_slice(rest.get(rest.len().saturating_sub(TAIL)..).unwrap_or(rest));
        }
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
    }

    /// The last one that has come.
    pub const fn usage(&self) -> Option<Usage> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(data: &[u8]) -> Option<Usage> {
        Usage::find(data, Key::of(Api::Chat))
    }

    fn find_last(data: &[u8]) -> Option<Usage> {
        Usage::find_last(data, Key::of(Api::Chat))
    }

    fn usage(input: u64, output: u64, cached: Option<u64>) -> Option<Usage> {
        Some(Usage {
            input: Some(input),
            output: Some(output),
            cached,
        })
    }

    #[test]
    fn reads_each_dialect() {
        let chat =
            br#"{"choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,
            "prompt_tokens_details":{"cached_tokens":8}},"prompt_logprobs":null}"#;
        assert_eq!(find(chat), usage(9, 3, Some(8)));
        assert_eq!(find_last(chat), usage(9, 3, Some(8)));
        let responses = br#"{"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"cached_tokens":0}}}}"#;
        assert_eq!(find(responses), usage(5, 7, Some(0)));
        let mut anthropic = find(br#"{"message":{"usage":{"input_tokens":4,"cache_creation_input_tokens":3,"cache_read_input_tokens":2,"output_tokens":1}}}"#).unwrap();
        anthropic.merge(find(br#"{"type":"message_delta","usage":{"output_tokens":6}}"#).unwrap());
        assert_eq!(Some(anthropic), usage(9, 6, Some(2)));
        let details = br#"{"usage" : {"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":null}}"#;
        assert_eq!(find(details), usage(1, 2, None));
        let sglang = br#"{"text":"\"usage\"","meta_info":{"id":"x","prompt_tokens":5,"completion_tokens":6,"cached_tokens":4}}"#;
        let key = Key::of(Api::SglangGenerate);
        assert_eq!(Usage::find(sglang, key), usage(5, 6, Some(4)));
        assert_eq!(Usage::find_last(sglang, key), usage(5, 6, Some(4)));
    }

    #[test]
    fn text_that_looks_like_usage_is_not() {
        assert_eq!(find(br#"{"usage":null}"#), None);
        assert_eq!(
            find(br#"{"content":"\"usage\":{\"prompt_tokens\":1}"}"#),
            None
        );
        assert_eq!(find(br#"{"usage":{"prompt_tokens":"#), None);
        let after =
            br#"{"content":"\"usage\":{}","usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        assert_eq!(find(after), usage(1, 2, None));
    }

    proptest! {
        #[test]
        fn it_is_found_wherever_it_stands_and_however_it_was_cut(
            before in 0usize..9_000, after in 0usize..9_000, cuts in prop::collection::vec(0usize..18_000, 0..6),
        ) {
            let data = format!(
                r#"{{"usage":null,"choices":"\"usage\":{{}} {}","usage":{{"prompt_tokens":9,"completion_tokens":3}},"prompt_token_ids":[{}7]}}"#,
                "x".repeat(before),
                "1,".repeat(after / 2),
            );
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(data.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Pieces::default();
            let mut from = 0;
            for cut in cuts.into_iter().chain([data.len()]) {
                pieces.push(&data.as_bytes()[from..cut], Key::of(Api::Chat));
                prop_assert!(pieces.tail.len() <= TAIL);
                from = cut;
            }
            prop_assert_eq!(pieces.usage(), usage(9, 3, None));
            prop_assert_eq!(find_last(data.as_bytes()), usage(9, 3, None));
        }

        #[test]
        fn no_bytes_panic(before in ".{0,30}", after in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut data = before.into_bytes();
            data.extend_from_slice(b"\"usage\"");
            data.extend_from_slice(&after);
            let _ = (find(&data), find_last(&data));
        }
    }
}
