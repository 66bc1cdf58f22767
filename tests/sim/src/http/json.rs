//! Writes JSON by hand where the order of fields is the engine's and speed counts.

use bytes::Bytes;
use std::collections::VecDeque;

/// Appends a JSON string.
pub fn string(text: &str, out: &mut Vec<u8>) {
    if serde_json::to_writer(&mut *out, text).is_err() {
        // Writing to memory does not fail; an empty string keeps the JSON whole if it ever did.
        out.extend_from_slice(b"\"\"");
    }
}

/// Appends plain text.
pub fn push(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(text.as_bytes());
}

/// Appends a number.
pub fn number(value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Tokens of a request and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens.
    pub prompt: u32,
    /// Generated tokens.
    pub completion: u32,
    /// Prompt tokens that came from the cache.
    pub cached: u32,
}

impl Usage {
    /// Appends vLLM's usage object.
    pub fn openai(&self, out: &mut Vec<u8>) {
        push("{\"prompt_tokens\":", out);
        number(self.prompt.into(), out);
        push(",\"total_tokens\":", out);
        number(u64::from(self.prompt) + u64::from(self.completion), out);
        push(",\"completion_tokens\":", out);
        number(self.completion.into(), out);
        push(",\"prompt_tokens_details\":{\"cached_tokens\":", out);
        number(self.cached.into(), out);
        push("}}", out);
    }
}

/// Events waiting to be sent, each ready for the wire.
pub type Events = VecDeque<Bytes>;

/// The end of an OpenAI stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings() {
        let mut out = Vec::new();
        for value in [0, 7, 10, u64::MAX] {
            number(value, &mut out);
            out.push(b' ');
        }
        string("a\"\n", &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "0 7 10 18446744073709551615 \"a\\\"\\n\""
        );
    }
}
