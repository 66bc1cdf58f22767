//! Token usage, read out of answers without parsing them: the `usage` object is found by its key and only that object is
//! parsed.
//!
//! Shapes: OpenAI chat and completions (`prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens`), OpenAI
//! responses (`input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens`), Anthropic (`input_tokens`,
//! `cache_read_input_tokens`, `output_tokens`; a stream sends them in two events that are merged), SGLang (`meta_info` with
//! `prompt_tokens`, `completion_tokens`, `cached_tokens`).

use memchr::memmem;
use quorate_routing::Api;
use serde::Deserialize;
use std::sync::LazyLock;

/// How much of the end of an answer is searched. Engines write `usage` last or nearly last.
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

    /// The last usage object of the end of a JSON answer.
    pub fn find_last(tail: &[u8], key: &Key) -> Option<Self> {
        let mut end = tail.len();
        while let Some(begin) = key.last.rfind(tail.get(..end)?) {
            if let Some(usage) = at_key(tail, begin, key.length) {
                return Some(usage);
            }
            end = begin;
        }
        None
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
    Some(Usage {
        input: fields.prompt_tokens,
        output: fields.completion_tokens,
        cached: fields
            .prompt_tokens_details
            .and_then(|d| d.cached_tokens)
            .or(fields.cache_read_input_tokens)
            .or(fields.cached_tokens),
    })
}

/// The end of an answer that comes in several pieces.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    /// Remembers the last [`TAIL`] bytes.
    pub fn push(&mut self, data: &[u8]) {
        let keep = data.get(data.len().saturating_sub(TAIL)..).unwrap_or(data);
        let room = TAIL.saturating_sub(keep.len());
        if self.0.len() > room {
            self.0.drain(..self.0.len() - room);
        }
        self.0.extend_from_slice(keep);
    }

    /// The usage in it.
    pub fn usage(&self, key: &Key) -> Option<Usage> {
        Usage::find_last(&self.0, key)
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
        let mut anthropic = find(br#"{"message":{"usage":{"input_tokens":4,"cache_read_input_tokens":2,"output_tokens":1}}}"#).unwrap();
        anthropic.merge(find(br#"{"type":"message_delta","usage":{"output_tokens":6}}"#).unwrap());
        assert_eq!(Some(anthropic), usage(4, 6, Some(2)));
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
        fn the_tail_is_the_end_however_it_was_cut(
            data in prop::collection::vec(any::<u8>(), 0..12_000), cuts in prop::collection::vec(0usize..12_000, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(data.len())).collect();
            cuts.sort_unstable();
            let mut tail = Tail::default();
            let mut from = 0;
            for cut in cuts.into_iter().chain([data.len()]) {
                tail.push(&data[from..cut]);
                from = cut;
            }
            prop_assert_eq!(&tail.0[..], &data[data.len().saturating_sub(TAIL)..]);
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
