//! Takes the chunk with nothing but usage out of a stream of events.
//!
//! Events are handed on whole: what has come of an unfinished one is held back until its end, which a client could not use anyway.
//! Engines write whole events, so that nearly always nothing is held and nothing is copied.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest unfinished event that is held back. A longer one passes as it comes.
const MAX_HELD: usize = 256 << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Strip {
    /// The beginning of an event.
    held: BytesMut,
    /// An event too long to be held is passing.
    passing: bool,
}

impl Strip {
    /// What of the held bytes and `piece` goes on. `usage` is whether a usage object ended in this piece.
    pub fn push(&mut self, piece: Bytes, usage: bool) -> Bytes {
        if !usage && !self.passing && self.held.is_empty() && ends_event(&piece) {
            return piece;
        }
        let all = if self.held.is_empty() {
            piece
        } else {
            self.held.extend_from_slice(&piece);
            std::mem::take(&mut self.held).freeze()
        };
        let mut out = BytesMut::new();
        let mut at = 0;
        while let Some(end) = all.get(at..).and_then(event_end) {
            let event = all.slice(at..at + end);
            at += end;
            // The end of an event that passed in pieces is no event of its own.
            if std::mem::take(&mut self.passing) || !is_usage_only(&event) {
                out.extend_from_slice(&event);
            }
        }
        let rest = all.get(at..).unwrap_or_default();
        if self.passing || rest.len() > MAX_HELD {
            self.passing = !rest.is_empty() || self.passing;
            out.extend_from_slice(rest);
        } else {
            self.held.extend_from_slice(rest);
        }
        out.freeze()
    }

    /// The unfinished event at the end of the stream.
    pub fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held).freeze();
        if !self.passing && is_usage_only(&held) {
            return Bytes::new();
        }
        held
    }

    /// Only whole events have been handed on.
    pub fn between_events(&self) -> bool {
        !self.passing
    }
}

/// Whether the last bytes end an event. A line break is LF or CR LF.
fn ends_event(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n")
}

/// Where the first event ends, blank line included.
fn event_end(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes).find_map(|at| match bytes.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// A chunk without choices that has the usage, as `stream_options.include_usage` brings it.
fn is_usage_only(event: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk {
        choices: Vec<IgnoredAny>,
        #[serde(rename = "usage")]
        _usage: Usage,
    }
    #[derive(Deserialize)]
    struct Usage {
        #[serde(rename = "prompt_tokens")]
        _prompt_tokens: IgnoredAny,
    }
    if memmem::find(event, b"\"usage\"").is_none() {
        return false;
    }
    let mut lines = event
        .split(|b| *b == b'\n')
        .filter(|line| !line.trim_ascii().is_empty());
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return false;
    };
    line.strip_prefix(b"data:")
        .and_then(|data| serde_json::from_slice::<Chunk>(data).ok())
        .is_some_and(|chunk| chunk.choices.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USAGE: &str = "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n";
    const STREAM: &[&str] = &[
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n",
        ": a comment\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{}\"}}]}\r\n\r\n",
        "event: x\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7}}\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
    ];

    fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut strip = Strip::default();
        let mut out = Vec::new();
        for piece in pieces {
            // Told pessimistically: the flag is only there to save the look.
            let usage = memmem::find(piece, b"usage").is_some();
            out.extend_from_slice(&strip.push(Bytes::copy_from_slice(piece), usage));
        }
        out.extend_from_slice(&strip.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_extra_chunk_goes_however_the_stream_is_cut() {
        let whole = format!("{}{USAGE}data: [DONE]\n\n", STREAM.concat());
        let expected = format!("{}data: [DONE]\n\n", STREAM.concat());
        let bytes = whole.as_bytes();
        assert_eq!(run([bytes]), expected);
        for cut in 0..=bytes.len() {
            assert_eq!(run([&bytes[..cut], &bytes[cut..]]), expected, "{cut}");
        }
        assert_eq!(run(bytes.chunks(1)), expected);
        let crlf = USAGE.replace('\n', "\r\n");
        assert_eq!(
            run([crlf.as_bytes(), b"data: [DONE]\r\n\r\n"]),
            "data: [DONE]\r\n\r\n"
        );
    }

    #[test]
    fn whole_events_pass_without_a_copy() {
        let mut strip = Strip::default();
        let piece = Bytes::from_static(STREAM[0].as_bytes());
        let out = strip.push(piece.clone(), false);
        assert_eq!(out.as_ptr(), piece.as_ptr());
        assert!(strip.between_events());
    }

    #[test]
    fn an_endless_event_takes_bounded_memory() {
        let mut strip = Strip::default();
        let mut passed = strip.push(Bytes::from_static(b"data: "), false).len();
        for _ in 0..64 {
            passed += strip.push(Bytes::from(vec![b'x'; 16 << 10]), false).len();
            assert!(strip.held.len() <= MAX_HELD);
        }
        assert!(!strip.between_events());
        passed += strip.push(Bytes::from_static(b"\n\n"), false).len();
        assert_eq!(passed, (1 << 20) + 8);
        assert!(strip.between_events());
        assert!(
            strip
                .push(Bytes::from_static(USAGE.as_bytes()), true)
                .is_empty()
        );
    }

    proptest! {
        /// Without a usage chunk in it, every byte goes on, in whatever pieces it comes.
        #[test]
        fn nothing_else_is_lost(
            data in prop::collection::vec(prop::sample::select(b"data: \r\n{}x".to_vec()), 0..300), size in 1usize..40,
        ) {
            let out = run(data.chunks(size));
            prop_assert_eq!(out.as_bytes(), &data[..]);
        }
    }
}
