//! Token usage, read out of answers without parsing them: the `usage` object is found by its key and only that object is
//! parsed.
//!
//! Shapes: OpenAI chat and completions (`prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens`), OpenAI
//! responses (`input_tokens`, `output_tokens`, `input_tokens_details.cached_tokens`), Anthropic (`input_tokens`,
//! `cache_read_input_tokens`, `output_tokens`; a stream sends them in two events that are merged).

use memchr::memmem;
use serde::Deserialize;
use std::sync::LazyLock;

/// How much of the end of an answer is searched. Engines write `usage` last or nearly last.
pub(crate) const TAIL: usize = 4096;

static KEY: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\"usage\""));
static KEY_FROM_END: LazyLock<memmem::FinderRev<'static>> =
    LazyLock::new(|| memmem::FinderRev::new(b"\"usage\""));

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
    pub fn find(data: &[u8]) -> Option<Self> {
        let mut from = 0;
        while let Some(at) = KEY.find(data.get(from..)?) {
            let key = from + at;
            if let Some(usage) = at_key(data, key) {
                return Some(usage);
            }
            from = key + 1;
        }
        None
    }

    /// The last usage object of the end of a JSON answer.
    pub fn find_last(tail: &[u8]) -> Option<Self> {
        let mut end = tail.len();
        while let Some(key) = KEY_FROM_END.rfind(tail.get(..end)?) {
            if let Some(usage) = at_key(tail, key) {
                return Some(usage);
            }
            end = key;
        }
        None
    }
}

/// Parses the object behind the key at `key`; `None` if that is text inside a string, or null.
fn at_key(data: &[u8], key: usize) -> Option<Usage> {
    if key > 0 && data.get(key - 1) == Some(&b'\\') {
        return None;
    }
    let value = data
        .get(key + 7..)?
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
            .or(fields.cache_read_input_tokens),
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
    pub fn usage(&self) -> Option<Usage> {
        Usage::find_last(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        assert_eq!(Usage::find(chat), usage(9, 3, Some(8)));
        assert_eq!(Usage::find_last(chat), usage(9, 3, Some(8)));
        let responses = br#"{"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"cached_tokens":0}}}}"#;
        assert_eq!(Usage::find(responses), usage(5, 7, Some(0)));
        let mut anthropic = Usage::find(br#"{"message":{"usage":{"input_tokens":4,"cache_read_input_tokens":2,"output_tokens":1}}}"#).unwrap();
        anthropic.merge(
            Usage::find(br#"{"type":"message_delta","usage":{"output_tokens":6}}"#).unwrap(),
        );
        assert_eq!(Some(anthropic), usage(4, 6, Some(2)));
        let details = br#"{"usage" : {"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":null}}"#;
        assert_eq!(Usage::find(details), usage(1, 2, None));
    }

    #[test]
    fn text_that_looks_like_usage_is_not() {
        assert_eq!(Usage::find(br#"{"usage":null}"#), None);
        assert_eq!(
            Usage::find(br#"{"content":"\"usage\":{\"prompt_tokens\":1}"}"#),
            None
        );
        assert_eq!(Usage::find(br#"{"usage":{"prompt_tokens":"#), None);
        let after =
            br#"{"content":"\"usage\":{}","usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        assert_eq!(Usage::find(after), usage(1, 2, None));
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
            let _ = (Usage::find(&data), Usage::find_last(&data));
        }
    }
}
