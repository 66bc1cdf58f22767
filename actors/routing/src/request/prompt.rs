//! Where the prompt lies in a request's body, and what can be said of it without a copy.

use crate::pipeline;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::LazyLock;

/// A part of a body: bytes `start` to before `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

impl Span {
    /// The span of `part`, which must be a slice of `body`; empty if it is not.
    pub fn of(part: &[u8], body: &[u8]) -> Self {
        let start = part.as_ptr().addr().wrapping_sub(body.as_ptr().addr());
        match start.checked_add(part.len()) {
            Some(end) if end <= body.len() => Self { start, end },
            _ => Self::default(),
        }
    }

    /// Its bytes.
    pub fn get(self, body: &[u8]) -> &[u8] {
        body.get(self.start..self.end).unwrap_or_default()
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Nothing is there.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// What the bytes of a prompt are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptKind {
    /// The request has no prompt that routing can see.
    #[default]
    None,
    /// JSON: text, messages, tools, as the client wrote them.
    Json,
    /// Plain text (gRPC).
    Text,
    /// A JSON list of token ids.
    TokenIds,
    /// Token ids as packed varints (gRPC).
    PackedTokenIds,
}

/// The prompt of a request: parts of its body in the order in which a chat template puts them: tools, system text, messages.
///
/// The parts are the JSON as it was sent, without the outermost bracket or quotation mark at the end, so that the bytes of a
/// conversation are a prefix of the bytes of its continuation. Two clients that format or escape the same prompt
/// differently have different bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// What the bytes are.
    pub kind: PromptKind,
    parts: [Span; 3],
}

/// Bytes of text that make a token, for estimates.
pub const BYTES_PER_TOKEN: usize = 4;

impl Prompt {
    /// A prompt made of one part.
    pub fn new(kind: PromptKind, part: Span) -> Self {
        Self {
            kind,
            parts: [Span::default(), Span::default(), part],
        }
    }

    /// A prompt of JSON values: tools, system text, the rest. Any may be missing.
    pub(super) fn of_json(body: &[u8], values: [Option<&RawValue>; 3]) -> Self {
        let parts = values.map(|value| value.map_or(Span::default(), |value| inside(value, body)));
        let kind = match values {
            _ if parts.iter().all(|part| part.is_empty()) => PromptKind::None,
            [None, None, Some(value)] if is_token_ids(value.get()) => PromptKind::TokenIds,
            _ => PromptKind::Json,
        };
        Self { kind, parts }
    }

    /// The body has changed: what lay at `span`, in front of a part or behind it, is now `length` bytes long.
    pub(super) fn shift(&mut self, span: Span, length: usize) {
        for part in &mut self.parts {
            if !part.is_empty() && part.start >= span.end {
                let to = part.start + length - span.len();
                part.end = to + part.len();
                part.start = to;
            }
        }
    }

    /// The parts that are there, in order; `body` is the body it was read from.
    pub fn pieces<'b>(&self, body: &'b [u8]) -> impl Iterator<Item = &'b [u8]> + use<'b> {
        self.parts
            .into_iter()
            .map(|part| part.get(body))
            .filter(|piece| !piece.is_empty())
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Tokens: counted where the prompt is token ids, else a quarter of its bytes, rounded up. Encoded media count as text: see
    /// [`Prompt::media`].
    pub fn estimated_tokens(&self, body: &[u8]) -> u64 {
        match self.kind {
            PromptKind::None => 0,
            PromptKind::Json | PromptKind::Text => self.bytes().div_ceil(BYTES_PER_TOKEN) as u64,
            PromptKind::TokenIds => self
                .pieces(body)
                .map(|piece| memchr::memchr_iter(b',', piece).count() as u64 + 1)
                .sum(),
            PromptKind::PackedTokenIds => self.pieces(body).map(super::protobuf::packed_len).sum(),
        }
    }

    /// Tokens, where the prompt is token ids.
    pub fn counted_tokens(&self, body: &[u8]) -> Option<u64> {
        matches!(self.kind, PromptKind::TokenIds | PromptKind::PackedTokenIds)
            .then(|| self.estimated_tokens(body))
    }

    /// The images, videos and sounds in it. Costs one fast search where there are none.
    pub fn media(&self, body: &[u8]) -> Vec<Media> {
        // Every type of such a part ends with one of these.
        static MARKS: LazyLock<[memmem::Finder<'static>; 3]> =
            LazyLock::new(|| ["_url\"", "audio\"", "image\""].map(memmem::Finder::new));
        let part = self.parts[2];
        let messages = part.get(body);
        if self.kind != PromptKind::Json || MARKS.iter().all(|mark| mark.find(messages).is_none()) {
            return Vec::new();
        }
        // The closing bracket is behind the part.
        let list = body.get(part.start..part.end + 1).unwrap_or_default();
        let mut found = Vec::new();
        if let Ok(messages) = serde_json::from_slice::<Vec<Message<'_>>>(list) {
            for content in messages.iter().filter_map(|message| message.content) {
                let parts: Vec<Part<'_>> = serde_json::from_str(content.get()).unwrap_or_default();
                found.extend(parts.iter().filter_map(|part| part.media(body)));
            }
        }
        found
    }
}

/// A prompt together with the body that it lies in.
#[derive(Clone, Copy, Debug)]
pub struct PromptIn<'a> {
    /// Where it lies.
    pub prompt: &'a Prompt,
    /// What it was read from.
    pub body: &'a [u8],
}

impl pipeline::Prompt for PromptIn<'_> {
    fn pieces(&self, take: &mut dyn FnMut(&[u8])) {
        self.prompt.pieces(self.body).for_each(take);
    }

    fn media(&self, take: &mut dyn FnMut(&[u8])) {
        for item in self.prompt.media(self.body) {
            take(item.span.get(self.body));
        }
    }
}

/// What kind of medium an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A picture.
    Image,
    /// A film.
    Video,
    /// A sound.
    Audio,
}

/// One item that is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Media {
    /// What it is.
    pub kind: MediaKind,
    /// Its JSON value in the body (a URL, data, or an object with them): the same value is the same item.
    pub span: Span,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

/// A content part of OpenAI's chat (`image_url`, `video_url`, `audio_url`, `input_audio`) and responses (`input_image` with an
/// `image_url`), and of Anthropic's messages (`image` with a `source`).
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(rename = "type", default)]
    kind: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    image_url: Option<&'a RawValue>,
    #[serde(borrow, default)]
    video_url: Option<&'a RawValue>,
    #[serde(borrow, default)]
    audio_url: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input_audio: Option<&'a RawValue>,
    #[serde(borrow, default)]
    source: Option<&'a RawValue>,
}

impl Part<'_> {
    fn media(&self, body: &[u8]) -> Option<Media> {
        let (kind, value) = match self.kind.as_deref()? {
            "image_url" | "input_image" => (MediaKind::Image, self.image_url),
            "image" => (MediaKind::Image, self.source),
            "video_url" => (MediaKind::Video, self.video_url),
            "audio_url" => (MediaKind::Audio, self.audio_url),
            "input_audio" => (MediaKind::Audio, self.input_audio),
            _ => return None,
        };
        let span = Span::of(value?.get().as_bytes(), body);
        Some(Media { kind, span })
    }
}

/// A value without its last byte if that closes it, and without an opening quotation mark.
fn inside(value: &RawValue, body: &[u8]) -> Span {
    let mut span = Span::of(value.get().as_bytes(), body);
    match span.get(body) {
        [b'"', .., b'"'] => {
            span.start += 1;
            span.end -= 1;
        }
        [b'[' | b'{', ..] => span.end -= 1,
        // A number, true, false: no prompt.
        _ => return Span::default(),
    }
    span
}

/// A list whose first item is a number.
fn is_token_ids(value: &str) -> bool {
    value.strip_prefix('[').is_some_and(|rest| {
        rest.trim_ascii_start()
            .starts_with(|c: char| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Api, RequestInfo};

    fn parse(api: Api, body: &str) -> RequestInfo<'_> {
        RequestInfo::parse(api, body.as_bytes()).unwrap()
    }

    #[test]
    fn a_continued_conversation_keeps_its_prefix() {
        let short =
            r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[{"a":1}]}"#;
        let long = r#"{"model":"m","tools":[{"a":1}],"messages":[{"role":"user","content":"hi"},{"role":"assistant"}]}"#;
        let pieces = |body: &str| {
            parse(Api::Chat, body)
                .prompt
                .pieces(body.as_bytes())
                .collect::<Vec<_>>()
                .concat()
        };
        let (short, long) = (pieces(short), pieces(long));
        assert_eq!(short, br#"[{"a":1}[{"role":"user","content":"hi"}"#);
        assert!(long.starts_with(&short));
    }

    #[test]
    fn each_api_has_its_prompt() {
        for (api, body, kind, tokens) in [
            (
                Api::Completions,
                r#"{"model":"m","prompt":"12345678"}"#,
                PromptKind::Json,
                2,
            ),
            (
                Api::Completions,
                r#"{"model":"m","prompt":[1, 22,333]}"#,
                PromptKind::TokenIds,
                3,
            ),
            (
                Api::Completions,
                r#"{"model":"m","prompt":null}"#,
                PromptKind::None,
                0,
            ),
            (
                Api::Completions,
                r#"{"model":"m","prompt":7}"#,
                PromptKind::None,
                0,
            ),
            (
                Api::Embeddings,
                r#"{"model":"m","input":["abc","d"]}"#,
                PromptKind::Json,
                3,
            ),
            (
                Api::Responses,
                r#"{"model":"m","input":"abcd","instructions":"efgh"}"#,
                PromptKind::Json,
                2,
            ),
            (
                Api::Messages,
                r#"{"model":"m","system":"abcd","messages":[]}"#,
                PromptKind::Json,
                2,
            ),
            (
                Api::VllmGenerate,
                r#"{"token_ids":[5,6]}"#,
                PromptKind::TokenIds,
                2,
            ),
            (
                Api::SglangGenerate,
                r#"{"input_ids":[5,6,7]}"#,
                PromptKind::TokenIds,
                3,
            ),
            (
                Api::SglangGenerate,
                r#"{"text":"abcd"}"#,
                PromptKind::Json,
                1,
            ),
            (
                Api::Images,
                r#"{"model":"m","prompt":"abcd"}"#,
                PromptKind::Json,
                1,
            ),
        ] {
            let prompt = parse(api, body).prompt;
            assert_eq!(
                (prompt.kind, prompt.estimated_tokens(body.as_bytes())),
                (kind, tokens),
                "{body}"
            );
        }
    }

    #[test]
    fn media_are_found_where_they_are_and_only_there() {
        let body = r#"{"model":"m","messages":[{"role":"system","content":"\"image_url\""},{"role":"user","content":[
            {"type":"text","text":"what is \"image_url\"?"},{"type":"image_url","image_url":{"url":"data:x"}},
            {"type":"input_audio","input_audio":{"data":"y"}},{"type":"video_url","video_url":{"url":"z"}}]}]}"#;
        let media = parse(Api::Chat, body).prompt.media(body.as_bytes());
        let kinds: Vec<_> = media.iter().map(|m| m.kind).collect();
        assert_eq!(
            kinds,
            [MediaKind::Image, MediaKind::Audio, MediaKind::Video]
        );
        assert_eq!(media[0].span.get(body.as_bytes()), br#"{"url":"data:x"}"#);
        let anthropic = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image","source":{"data":"q"}}]}]}"#;
        assert_eq!(
            parse(Api::Messages, anthropic)
                .prompt
                .media(anthropic.as_bytes())
                .len(),
            1
        );
        let responses = r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_image","image_url":"u"}]}]}"#;
        assert_eq!(
            parse(Api::Responses, responses)
                .prompt
                .media(responses.as_bytes())
                .len(),
            1
        );
        for none in [
            r#"{"model":"m","messages":[{"role":"user","content":"\"image_url\""}]}"#,
            r#"{"model":"m","messages":"\"image\""}"#,
        ] {
            assert!(
                parse(Api::Chat, none)
                    .prompt
                    .media(none.as_bytes())
                    .is_empty()
            );
        }
    }
}
