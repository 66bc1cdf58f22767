//! Server-sent events as model servers write them, cut at any byte: counts token events and notices how a stream ends.

use memchr::{
    memchr,
    memmem::{Finder, find, rfind},
};

/// Longest event that is kept; a longer one is no token stream.
const MAX_EVENT: usize = 4 << 20;

const KEYS: usize = 5;

/// A stream of events. Lines end with LF or CRLF.
pub(crate) struct SseParser {
    /// A line whose end has not come yet.
    line: Vec<u8>,
    /// Data lines of the event so far, joined with LF.
    data: Vec<u8>,
    has_data: bool,
    keys: [Finder<'static>; KEYS],
}

/// What one event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Carries text: a token, or a few that the engine sent together.
    Token,
    /// `[DONE]`.
    Done,
    /// An error object: the engine gave up.
    Error(&'a [u8]),
    /// Role, finish reason, usage and the like.
    Other(&'a [u8]),
}

/// Bytes that are no server-sent event with JSON data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadSse(pub(crate) String);

impl SseParser {
    pub(crate) fn new() -> Self {
        // The members that hold generated text in chat, completion and engine-native streams, the most usual one first.
        let keys = [
            "\"content\"",
            "\"text\"",
            "\"reasoning_content\"",
            "\"reasoning\"",
            "\"arguments\"",
        ]
        .map(Finder::new);
        SseParser {
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            keys,
        }
    }

    /// Ready for another stream.
    pub(crate) fn reset(&mut self) {
        self.line.clear();
        self.data.clear();
        self.has_data = false;
    }

    /// Takes the next bytes of the stream and calls `on_event` for each event that they complete.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), BadSse> {
        while let Some(end) = memchr(b'\n', bytes) {
            let (head, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.line.is_empty() {
                Self::take_line(
                    head,
                    &mut self.data,
                    &mut self.has_data,
                    &self.keys,
                    &mut on_event,
                )?;
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(head);
                let done = Self::take_line(
                    &line,
                    &mut self.data,
                    &mut self.has_data,
                    &self.keys,
                    &mut on_event,
                );
                line.clear();
                self.line = line;
                done?;
            }
        }
        if self.line.len() + bytes.len() > MAX_EVENT {
            return Err(BadSse("a line of more than 4 MiB".into()));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line(
        line: &[u8],
        data: &mut Vec<u8>,
        has_data: &mut bool,
        keys: &[Finder<'static>; KEYS],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), BadSse> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if std::mem::take(has_data) {
                let event = classify(data, keys);
                let result = event.map(&mut *on_event);
                data.clear();
                return result;
            }
            return Ok(());
        }
        if let Some(value) = line.strip_prefix(b"data:") {
            if *has_data {
                data.push(b'\n');
            }
            *has_data = true;
            if data.len() + value.len() > MAX_EVENT {
                return Err(BadSse("an event of more than 4 MiB".into()));
            }
            data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            return Ok(());
        }
        let name = &line[..memchr(b':', line).unwrap_or(line.len())];
        match name {
            // A comment, and the fields that say nothing about tokens.
            b"" | b"event" | b"id" | b"retry" | b"data" => Ok(()),
            _ => Err(BadSse(format!("not a field: {}", excerpt(line)))),
        }
    }
}

fn classify<'a>(data: &'a [u8], keys: &[Finder<'static>; KEYS]) -> Result<Event<'a>, BadSse> {
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Ok(Event::Done);
    }
    let Some(inside) = data.strip_prefix(b"{").filter(|_| data.ends_with(b"}")) else {
        return Err(BadSse(format!(
            "data is not a JSON object: {}",
            excerpt(data)
        )));
    };
    if inside.trim_ascii_start().starts_with(b"\"error\"") {
        return Ok(Event::Error(data));
    }
    for key in keys {
        // The quotes keep a match from lying inside a string, where they would be escaped.
        if let Some(at) = key.find(data)
            && let Some(value) = data.get(at + key.needle().len()..).and_then(after_colon)
            && value.first() == Some(&b'"')
            && value.get(1) != Some(&b'"')
        {
            return Ok(Event::Token);
        }
    }
    Ok(Event::Other(data))
}

fn after_colon(rest: &[u8]) -> Option<&[u8]> {
    Some(
        rest.trim_ascii_start()
            .strip_prefix(b":")?
            .trim_ascii_start(),
    )
}

/// Token counts of a usage object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) completion: u64,
}

/// The counts of the last usage object in an answer; none if there is no such object or it is null.
pub(crate) fn usage(json: &[u8]) -> Option<Counts> {
    let usage = &json[rfind(json, b"\"usage\"")?..];
    Some(Counts {
        prompt: number(usage, b"\"prompt_tokens\"")?,
        cached: number(usage, b"\"cached_tokens\"").unwrap_or(0),
        completion: number(usage, b"\"completion_tokens\"").unwrap_or(0),
    })
}

/// The value of the first member with this name (in its quotes), if it is a whole number.
fn number(json: &[u8], name: &[u8]) -> Option<u64> {
    let value = after_colon(&json[find(json, name)? + name.len()..])?;
    let end = value.iter().position(|c| !c.is_ascii_digit());
    std::str::from_utf8(&value[..end.unwrap_or(value.len())])
        .ok()?
        .parse()
        .ok()
}

/// The beginning of some bytes, for an error text.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = concat!(
        ": hello\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\" caf\u{e9}\"}}]}\n\n",
        "event: x\nid: 3\ndata:{\"choices\": [{\"delta\": {\"content\" : \"a\\\"content\\\":\\\"\"}}]}\r\n\r\n",
        "data: {\"choices\":[\ndata: {\"text\":\"b\"}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":null,\"reasoning_content\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"note\":\"\\\"content\\\":\\\"x\"}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":4}}\n\n",
        "data: [DONE]\n\n",
    );

    fn kinds(chunks: &[&[u8]]) -> Result<String, BadSse> {
        let mut parser = SseParser::new();
        let mut out = String::new();
        for chunk in chunks {
            parser.push(chunk, |e| {
                out.push(match e {
                    Event::Token => 'T',
                    Event::Done => 'D',
                    Event::Error(_) => 'E',
                    Event::Other(_) => 'o',
                });
            })?;
        }
        Ok(out)
    }

    #[test]
    fn split_at_every_byte() {
        let all = STREAM.as_bytes();
        for at in 0..=all.len() {
            assert_eq!(
                kinds(&[&all[..at], &all[at..]]).unwrap(),
                "oTTTTooD",
                "split at {at}"
            );
        }
        let single: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(kinds(&single).unwrap(), "oTTTTooD");
    }

    proptest! {
        #[test]
        fn any_cuts_give_the_same_events(cuts in proptest::collection::vec(0usize..STREAM.len(), 0..20)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&STREAM.as_bytes()[from..cut]);
                from = cut;
            }
            chunks.push(&STREAM.as_bytes()[from..]);
            prop_assert_eq!(kinds(&chunks).unwrap(), "oTTTTooD");
        }

        #[test]
        fn noise_never_panics(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let _ = kinds(&chunks);
        }
    }

    #[test]
    fn what_is_not_an_event_stream() {
        assert!(kinds(&[b"<html>\n"]).is_err());
        assert!(kinds(&[b"data: hello\n\n"]).is_err());
        assert!(kinds(&[b"data: {\"a\":1\n\n"]).is_err());
        assert_eq!(
            kinds(&[b"data: {\"error\":{\"message\":\"out of memory\"}}\n\n"]).unwrap(),
            "E"
        );
        let long = vec![b'x'; MAX_EVENT + 1];
        assert!(kinds(&[&long]).is_err());
        let line = [b"data: ", &long[..MAX_EVENT / 2], b"\n"].concat();
        assert!(kinds(&[&line, &line, &line]).is_err());
    }

    #[test]
    fn an_event_without_its_empty_line_is_not_delivered() {
        assert_eq!(kinds(&[b"data: [DONE]\n"]).unwrap(), "");
    }

    #[test]
    fn counts_from_usage() {
        let counts = |prompt, cached, completion| {
            Some(Counts {
                prompt,
                cached,
                completion,
            })
        };
        let answer =
            b"{\"prompt_tokens\":1,\"usage\": {\"prompt_tokens\": 12,\"completion_tokens\":34,\
            \"prompt_tokens_details\":{\"cached_tokens\":8}}}";
        assert_eq!(usage(answer), counts(12, 8, 34));
        assert_eq!(
            usage(b"{\"usage\":{\"prompt_tokens\":12,\"prompt_tokens_details\":null}}"),
            counts(12, 0, 0)
        );
        assert_eq!(usage(b"{\"usage\":null}"), None);
        assert_eq!(usage(b"{\"usage\":{\"prompt_tokens\":null}}"), None);
        assert_eq!(usage(b"{\"usage\":{\"prompt_tokens\""), None);
        assert_eq!(usage(b"{}"), None);
    }
}
