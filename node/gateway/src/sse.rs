//! Looks into a stream of server-sent events as it passes, whatever the pieces it comes in: counts token events, notices
//! usage and the end. It never changes a byte.
//!
//! Which event stands for a token: one with a name (`event:` line, OpenAI responses and Anthropic) if the name ends in
//! `delta` and is not `message_delta`; one without a name (OpenAI chat and completions) unless it is `[DONE]` or has an empty
//! `choices` list. An engine may put several tokens into one event; where the usage says how many there were, the usage counts.

use crate::usage::{Key, Usage};
use memchr::{memchr, memmem};
use quorate_routing::Api;
use std::sync::LazyLock;

/// Longest line that is looked into. Longer ones pass all the same and count, but nothing is read out of them.
const MAX_LINE: usize = 256 << 10;

static NO_CHOICES: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(b"\"choices\":[]"));

/// What a piece of the stream held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Token events completed in it.
    pub tokens: u32,
    /// All events with data completed in it.
    pub events: u32,
    /// A line with usage was completed in it.
    pub usage: bool,
}

/// State between the pieces of one stream.
#[derive(Debug)]
pub(crate) struct SseScanner {
    key: &'static Key,
    /// The beginning of a line whose end has not come yet, at most [`MAX_LINE`] bytes of it.
    line: Vec<u8>,
    /// The line is longer than [`MAX_LINE`].
    too_long: bool,
    event: Event,
    usage: Usage,
    ended: bool,
    failed: bool,
}

/// The event whose lines are being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Event {
    name: Name,
    /// A `data` line has come.
    data: bool,
    token: bool,
}

/// What the name of an event says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Name {
    #[default]
    None,
    Token,
    Last,
    Error,
    Other,
}

impl SseScanner {
    /// At the beginning of a stream of `api`.
    pub fn new(api: Api) -> Self {
        Self {
            key: Key::of(api),
            line: Vec::new(),
            too_long: false,
            event: Event::default(),
            usage: Usage::default(),
            ended: false,
            failed: false,
        }
    }

    /// Looks at the next piece.
    pub fn feed(&mut self, mut data: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while let Some(end) = memchr(b'\n', data) {
            let (line, rest) = data.split_at(end);
            data = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() && !self.too_long {
                self.line(line, &mut seen);
            } else {
                self.keep(line);
                let whole = std::mem::take(&mut self.line);
                self.line(&whole, &mut seen);
                // The buffer is kept for the next cut line.
                self.line = whole;
                self.line.clear();
                self.too_long = false;
            }
        }
        self.keep(data);
        seen
    }

    /// Everything up to here is whole events: another one may follow.
    pub fn between_events(&self) -> bool {
        self.line.is_empty() && !self.too_long && self.event == Event::default()
    }

    /// The event that ends the answer has come.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The engine sent an error as an event.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// What the engine said about usage.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        if part.len() > room {
            self.too_long = true;
        }
        self.line
            .extend_from_slice(part.get(..room).unwrap_or(part));
    }

    /// One line without its line feed.
    fn line(&mut self, line: &[u8], seen: &mut Seen) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if self.event.data {
                seen.events += 1;
                seen.tokens += u32::from(self.event.token);
            }
            self.event = Event::default();
        } else if let Some(data) = line.strip_prefix(b"data:") {
            self.data(data.strip_prefix(b" ").unwrap_or(data), seen);
        } else if let Some(name) = line.strip_prefix(b"event:") {
            self.event.name = match name.trim_ascii() {
                b"message_delta" => Name::Other,
                b"message_stop" | b"response.completed" | b"response.incomplete" => Name::Last,
                b"error" | b"response.failed" => Name::Error,
                name if name.ends_with(b"delta") => Name::Token,
                _ => Name::Other,
            };
        }
    }

    fn data(&mut self, data: &[u8], seen: &mut Seen) {
        self.event.data = true;
        self.event.token = match self.event.name {
            Name::None if data == b"[DONE]" => {
                self.ended = true;
                false
            }
            Name::None => {
                self.failed |= data.starts_with(b"{\"error\"");
                // The chunk that carries the usage has no choices; it is short, so this looks at little.
                !(self.notice_usage(data, seen) && NO_CHOICES.find(data).is_some())
            }
            Name::Token => true,
            Name::Last => {
                self.ended = true;
                self.notice_usage(data, seen);
                false
            }
            Name::Error => {
                self.failed = true;
                false
            }
            Name::Other => {
                self.notice_usage(data, seen);
                false
            }
        };
    }

    fn notice_usage(&mut self, data: &[u8], seen: &mut Seen) -> bool {
        let found = Usage::find(data, self.key);
        if let Some(usage) = found {
            self.usage.merge(usage);
            seen.usage = true;
        }
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n\
        : a comment\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n\
        data:{\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":1}\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n\
        data: [DONE]\n\n";
    const MESSAGES: &str = "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":4,\"output_tokens\":1}}}\n\n\
        event: ping\ndata: {}\n\nevent: content_block_delta\ndata: {\"delta\":{\"text\":\"a\"}}\n\n\
        event: content_block_delta\ndata: {\"delta\":{\"text\":\"b\"}}\n\n\
        event: message_delta\ndata: {\"usage\":{\"output_tokens\":9}}\n\nevent: message_stop\ndata: {}\n\n";
    const RESPONSES: &str = "event: response.created\ndata: {\"response\":{\"usage\":null}}\n\n\
        event: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\n\
        event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":6}}}\n\n";

    fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Seen, SseScanner) {
        let mut scanner = SseScanner::new(Api::Chat);
        let mut total = Seen::default();
        for piece in pieces {
            let seen = scanner.feed(piece);
            total.tokens += seen.tokens;
            total.events += seen.events;
            total.usage |= seen.usage;
        }
        (total, scanner)
    }

    #[test]
    fn whole_streams() {
        for (text, tokens, events, usage) in [
            (CHAT, 3, 5, (7, 2, Some(3))),
            (MESSAGES, 2, 6, (4, 9, None)),
            (RESPONSES, 1, 3, (5, 6, None)),
        ] {
            let (seen, scanner) = scan([text.as_bytes()]);
            assert_eq!(
                (seen.tokens, seen.events, seen.usage),
                (tokens, events, true),
                "{text}"
            );
            assert_eq!(
                scanner.usage(),
                Usage {
                    input: Some(usage.0),
                    output: Some(usage.1),
                    cached: usage.2
                }
            );
            assert!(scanner.has_ended() && scanner.between_events() && !scanner.has_failed());
        }
    }

    #[test]
    fn every_split_gives_the_same() {
        for text in [CHAT, MESSAGES, RESPONSES] {
            let bytes = text.as_bytes();
            let (whole, whole_scanner) = scan([bytes]);
            for cut in 0..=bytes.len() {
                let (seen, scanner) = scan([&bytes[..cut], &bytes[cut..]]);
                assert_eq!(
                    (seen, scanner.usage(), scanner.has_ended()),
                    (whole, whole_scanner.usage(), true),
                    "{cut}"
                );
            }
            let (seen, scanner) = scan(bytes.chunks(1));
            assert_eq!((seen, scanner.usage()), (whole, whole_scanner.usage()));
        }
    }

    #[test]
    fn knows_where_another_event_may_follow() {
        let mut scanner = SseScanner::new(Api::Chat);
        assert!(scanner.between_events());
        for (piece, between) in [
            ("data", false),
            (": x\n", false),
            ("\n", true),
            ("\n", true),
            ("event: x\n", false),
        ] {
            scanner.feed(piece.as_bytes());
            assert_eq!(scanner.between_events(), between, "{piece}");
        }
    }

    #[test]
    fn errors_as_events_are_noticed() {
        assert!(
            scan([&b"data: {\"error\": {\"message\":\"x\"}}\n\n"[..]])
                .1
                .has_failed()
        );
        assert!(scan([&b"event: error\ndata: {}\n\n"[..]]).1.has_failed());
    }

    #[test]
    fn an_endless_line_takes_bounded_memory() {
        let mut scanner = SseScanner::new(Api::Chat);
        scanner.feed(b"data: ");
        for _ in 0..64 {
            scanner.feed(&[b'x'; 16 << 10]);
        }
        assert!(scanner.line.capacity() <= 2 * MAX_LINE && !scanner.between_events());
        let seen = scanner.feed(b"\n\ndata: y\n\n");
        assert_eq!(
            seen,
            Seen {
                tokens: 2,
                events: 2,
                usage: false
            }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_any_pieces(
            data in prop::collection::vec(prop::sample::select(b"data: event\r\n{}\"usage[DONE]".to_vec()), 0..400),
            size in 1usize..50,
        ) {
            let (whole, a) = scan([&data[..]]);
            let (pieces, b) = scan(data.chunks(size));
            prop_assert_eq!(whole, pieces);
            prop_assert_eq!((a.usage(), a.has_ended(), a.between_events()), (b.usage(), b.has_ended(), b.between_events()));
        }
    }
}
