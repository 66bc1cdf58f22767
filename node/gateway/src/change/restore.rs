//! Puts the client's name for the model back into an answer, byte by byte and without parsing it.
//!
//! Changed is only the value of a member `model` of the outermost object, and of an object that is its member `response` or
//! `message` (events of OpenAI's responses and Anthropic's messages), and only where it is the name that the engine was asked for.
//! Text that looks like it inside strings or further down stays. Of the answer nothing is held back but the beginning of
//! such a value whose end has not come.

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memchr3};

/// Longest key that is told from others.
const KEY: usize = 8;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Restore {
    /// The engine's name.
    engine: Box<str>,
    /// The client's name as a JSON string.
    client: Bytes,
    /// Server-sent events: `data` lines hold the JSON, and a blank line ends it.
    events: bool,
    place: Place,
    json: Json,
    /// The value of a `model` member from its quotation mark on, as far as it came in earlier pieces.
    held: BytesMut,
}

/// Where in a stream of events the next byte stands. An answer of JSON is always in `Data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// So many bytes of `data:` have been seen at the beginning of a line.
    LineStart(usize),
    Data,
    /// A line that holds no data.
    OtherLine,
}

const DATA: &[u8] = b"data:";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Text {
    /// Not in a string.
    #[default]
    None,
    Key,
    /// The value of a `model` member.
    Model,
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Name {
    Model,
    /// `response` or `message`.
    Parent,
    #[default]
    Other,
}

/// Where in a JSON text the next byte stands.
#[derive(Clone, Copy, Debug, Default)]
struct Json {
    depth: u32,
    /// Whether the containers at depth 1 and 2 are objects that are looked into.
    open: [bool; 2],
    text: Text,
    escaped: bool,
    /// A string would be a key.
    expects_key: bool,
    /// The last key.
    name: Name,
    key: [u8; KEY],
    key_len: usize,
}

impl Json {
    /// The object around the next byte is one whose members are looked at.
    fn is_looked_into(&self) -> bool {
        match self.depth {
            1 => self.open[0],
            2 => self.open[1],
            _ => false,
        }
    }

    fn structure(&mut self, byte: u8) {
        match byte {
            b'{' | b'[' => {
                let looked_into = byte == b'{'
                    && (self.depth == 0
                        || self.depth == 1 && self.open[0] && self.name == Name::Parent);
                if let Some(open) = self.open.get_mut(self.depth as usize) {
                    *open = looked_into;
                }
                self.depth = self.depth.saturating_add(1);
                self.expects_key = byte == b'{';
                self.name = Name::Other;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.expects_key = false;
                self.name = Name::Other;
            }
            b',' => {
                self.expects_key = true;
                self.name = Name::Other;
            }
            b':' => self.expects_key = false,
            b'"' => {
                self.text = match (self.is_looked_into(), self.expects_key, self.name) {
                    (true, true, _) => Text::Key,
                    (true, false, Name::Model) => Text::Model,
                    _ => Text::Other,
                };
                self.key_len = 0;
            }
            _ => {}
        }
    }

    fn key_byte(&mut self, byte: u8) {
        if let Some(slot) = self.key.get_mut(self.key_len) {
            *slot = byte;
        }
        self.key_len = self.key_len.saturating_add(1);
    }

    /// The string has ended.
    fn text_end(&mut self) {
        if self.text == Text::Key {
            self.name = match self.key.get(..self.key_len) {
                Some(b"model") => Name::Model,
                Some(b"response" | b"message") => Name::Parent,
                _ => Name::Other,
            };
        }
        self.text = Text::None;
    }
}

impl Restore {
    pub fn new(client: &str, engine: &str, events: bool) -> Self {
        Self {
            engine: engine.into(),
            client: serde_json::Value::from(client).to_string().into(),
            events,
            place: if events {
                Place::LineStart(0)
            } else {
                Place::Data
            },
            json: Json::default(),
            held: BytesMut::new(),
        }
    }

    /// What goes on of what was held and of `piece`.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        // What has changed or was held, followed by the piece from `from` on.
        let mut out = BytesMut::new();
        let mut from = 0;
        // Where in the piece the value begins that is being read; meaningless if it began earlier.
        let mut value = 0;
        let mut at = 0;
        while let Some(byte) = piece.get(at).copied() {
            if self.place != Place::Data {
                at = self.line(&piece, at);
                continue;
            }
            match self.json.text {
                _ if self.events && byte == b'\n' => {
                    // A string does not go on over lines: this is not the JSON it should be.
                    if self.json.text != Text::None {
                        out.extend_from_slice(&std::mem::take(&mut self.held));
                        self.json = Json::default();
                    }
                    self.place = Place::LineStart(0);
                }
                Text::None => {
                    self.json.structure(byte);
                    value = at;
                }
                _ if self.json.escaped => self.json.escaped = false,
                _ if byte == b'\\' => {
                    self.json.escaped = true;
                    self.json.key_byte(byte);
                }
                Text::Model if byte == b'"' => {
                    let whole = piece.get(value..=at).unwrap_or_default();
                    let is_engines = if self.held.is_empty() {
                        self.is_engines(whole)
                    } else {
                        self.held
                            .extend_from_slice(piece.get(..=at).unwrap_or_default());
                        self.is_engines(&self.held)
                    };
                    if is_engines {
                        let before = if self.held.is_empty() { value } else { 0 };
                        out.extend_from_slice(piece.get(from..before).unwrap_or_default());
                        out.extend_from_slice(&self.client);
                        from = at + 1;
                    } else if !self.held.is_empty() {
                        out.extend_from_slice(&self.held);
                        from = at + 1;
                    }
                    self.held.clear();
                    self.json.text_end();
                }
                _ if byte == b'"' => self.json.text_end(),
                Text::Key => self.json.key_byte(byte),
                Text::Model => {}
                Text::Other => {
                    let rest = piece.get(at..).unwrap_or_default();
                    let skip = if self.events {
                        memchr3(b'"', b'\\', b'\n', rest)
                    } else {
                        memchr2(b'"', b'\\', rest)
                    };
                    at += skip.unwrap_or(rest.len());
                    continue;
                }
            }
            at += 1;
        }
        if self.json.text == Text::Model {
            if self.held.is_empty() {
                out.extend_from_slice(piece.get(from..value).unwrap_or_default());
                from = value;
            }
            self.held
                .extend_from_slice(piece.get(from..).unwrap_or_default());
            from = piece.len();
            // Longer than the name in its longest spelling: it is another.
            if self.held.len() > 6 * self.engine.len() + 2 {
                out.extend_from_slice(&std::mem::take(&mut self.held));
                self.json.text = Text::Other;
            }
        }
        if from == 0 && out.is_empty() {
            return piece;
        }
        out.extend_from_slice(piece.get(from..).unwrap_or_default());
        out.freeze()
    }

    /// What was held when the answer ended.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }

    /// Goes on in a line that is not known to hold data; returns where.
    fn line(&mut self, piece: &[u8], at: usize) -> usize {
        let byte = piece.get(at).copied().unwrap_or(b'\n');
        match self.place {
            Place::LineStart(seen) => {
                if byte == b'\n' {
                    // A blank line ends the event and its data.
                    if seen == 0 {
                        self.json = Json::default();
                    }
                    self.place = Place::LineStart(0);
                } else if DATA.get(seen) == Some(&byte) {
                    self.place = if seen + 1 == DATA.len() {
                        Place::Data
                    } else {
                        Place::LineStart(seen + 1)
                    };
                } else if byte != b'\r' || seen != 0 {
                    self.place = Place::OtherLine;
                }
                at + 1
            }
            Place::OtherLine => {
                let rest = piece.get(at..).unwrap_or_default();
                match memchr::memchr(b'\n', rest) {
                    Some(end) => {
                        self.place = Place::LineStart(0);
                        at + end + 1
                    }
                    None => piece.len(),
                }
            }
            Place::Data => at,
        }
    }

    /// Whether a JSON string is the engine's name, however it is escaped.
    fn is_engines(&self, quoted: &[u8]) -> bool {
        let plain = quoted.get(1..quoted.len().saturating_sub(1));
        plain == Some(self.engine.as_bytes())
            || memchr::memchr(b'\\', quoted).is_some()
                && serde_json::from_slice::<String>(quoted).is_ok_and(|name| *name == *self.engine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn run<'a>(events: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut restore = Restore::new("al\"ias", "org/m", events);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&restore.push(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&restore.finish());
        String::from_utf8(out).unwrap()
    }

    const ANSWERS: &[(bool, &str, &str)] = &[
        (
            false,
            r#"{"id":"x","model":"org/m","n":1}"#,
            r#"{"id":"x","model":"al\"ias","n":1}"#,
        ),
        (
            false,
            r#" { "model" : "org\/m" } "#,
            r#" { "model" : "al\"ias" } "#,
        ),
        (false, r#"{"model":"\u006frg/m"}"#, r#"{"model":"al\"ias"}"#),
        // Another name, another type, another place, text that only looks like it.
        (false, r#"{"model":"org/m2"}"#, r#"{"model":"org/m2"}"#),
        (false, r#"{"model":"org/m\\"}"#, r#"{"model":"org/m\\"}"#),
        (
            false,
            r#"{"model":["org/m"],"x":"model","y":"org/m"}"#,
            r#"{"model":["org/m"],"x":"model","y":"org/m"}"#,
        ),
        (
            false,
            r#"{"choices":[{"model":"org/m","message":{"model":"org/m"}}]}"#,
            r#"{"choices":[{"model":"org/m","message":{"model":"org/m"}}]}"#,
        ),
        (
            false,
            r#"{"a":"\"model\":\"org/m\"","b\"model":"org/m"}"#,
            r#"{"a":"\"model\":\"org/m\"","b\"model":"org/m"}"#,
        ),
        (false, r#"[{"model":"org/m"}]"#, r#"[{"model":"org/m"}]"#),
        (
            false,
            r#"{"tool":{"model":"org/m"},"model":"org/m"}"#,
            r#"{"tool":{"model":"org/m"},"model":"al\"ias"}"#,
        ),
        (
            false,
            r#"{"response":{"model":"org/m","x":{"model":"org/m"}}}"#,
            r#"{"response":{"model":"al\"ias","x":{"model":"org/m"}}}"#,
        ),
        (
            true,
            "data: {\"model\":\"org/m\"}\n\ndata:{\"model\":\"org/m\",\"c\":[{\"model\":\"org/m\"}]}\r\n\r\ndata: [DONE]\n\n",
            "data: {\"model\":\"al\\\"ias\"}\n\ndata:{\"model\":\"al\\\"ias\",\"c\":[{\"model\":\"org/m\"}]}\r\n\r\ndata: [DONE]\n\n",
        ),
        (
            true,
            ": {\"model\":\"org/m\"}\nevent: message_start\ndata: {\"message\":{\"model\":\"org/m\"}}\n\n",
            ": {\"model\":\"org/m\"}\nevent: message_start\ndata: {\"message\":{\"model\":\"al\\\"ias\"}}\n\n",
        ),
        // JSON over several data lines, and a broken event that must not disturb the next.
        (
            true,
            "data: {\"model\":\ndata: \"org/m\"}\n\ndata: {\"a\":\"x\n\ndata: {\"model\":\"org/m\"}\n\ndata: {\"model\":\"org\n\n",
            "data: {\"model\":\ndata: \"al\\\"ias\"}\n\ndata: {\"a\":\"x\n\ndata: {\"model\":\"al\\\"ias\"}\n\ndata: {\"model\":\"org\n\n",
        ),
    ];

    #[test]
    fn the_name_is_restored_in_its_place_over_every_split() {
        for (events, engine, client) in ANSWERS {
            let bytes = engine.as_bytes();
            assert_eq!(run(*events, [bytes]), *client);
            for a in 0..=bytes.len() {
                assert_eq!(run(*events, [&bytes[..a], &bytes[a..]]), *client, "{a}");
                for b in a..=bytes.len() {
                    let three = run(*events, [&bytes[..a], &bytes[a..b], &bytes[b..]]);
                    assert_eq!(three, *client, "{a} {b}");
                }
            }
            assert_eq!(run(*events, bytes.chunks(1)), *client);
        }
    }

    #[test]
    fn what_stays_is_not_copied_and_an_endless_value_not_held() {
        let mut restore = Restore::new("a", "b", false);
        let piece = Bytes::from_static(b"{\"x\":\"y\"");
        assert_eq!(restore.push(piece.clone()).as_ptr(), piece.as_ptr());
        restore.push(Bytes::from_static(b",\"model\":\""));
        let mut passed = 0;
        for _ in 0..100 {
            passed += restore.push(Bytes::from(vec![b'x'; 1000])).len();
            assert!(restore.held.len() < 1100);
        }
        assert_eq!(passed, 100_001);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!("org/m")),
            Just(json!(null)),
            Just(json!("\"model\":\"org/m\"")),
            any::<u8>().prop_map(Value::from),
            ".{0,5}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("model|message|response|[a-z]{1,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Against the obvious way: parse, replace, write.
        #[test]
        fn same_as_parsing(value in value(), events in any::<bool>(), pretty in any::<bool>(), size in 1usize..30) {
            let write = |value: &Value| {
                let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }.unwrap();
                if events {
                    format!("event: x\ndata: {}\n\n", text.replace('\n', "\ndata: "))
                } else {
                    text
                }
            };
            let before = write(&value);
            let mut expected = value;
            let alias = |object: &mut Value| {
                if let Some(model) = object.get_mut("model").filter(|model| **model == "org/m") {
                    *model = json!("al\"ias");
                }
            };
            if expected.is_object() {
                alias(&mut expected);
                for parent in ["response", "message"] {
                    if let Some(object) = expected.get_mut(parent).filter(|v| v.is_object()) {
                        alias(object);
                    }
                }
            }
            prop_assert_eq!(run(events, before.as_bytes().chunks(size)), write(&expected));
        }

        #[test]
        fn other_bytes_pass(
            data in prop::collection::vec(prop::sample::select(b"{}[]\":,\\ndatmoel \n\r".to_vec()), 0..300), size in 1usize..30,
            events in any::<bool>(),
        ) {
            let out = run(events, data.chunks(size));
            prop_assert_eq!(out.as_bytes(), &data[..]);
        }
    }
}
