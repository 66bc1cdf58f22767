//! Changes to a request's body that leave every other byte as it was: another model, and the wish for usage in a stream.

use super::{RequestInfo, Span};
use std::borrow::Cow;

/// Where a body can be changed; noted by the parse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// The opening brace of the whole.
    pub open: usize,
    /// Nothing is between it and the closing one.
    pub empty: bool,
    /// The value of `model`, quotation marks included.
    pub model: Option<Span>,
    pub options: Options,
}

/// How `stream_options` stands in a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Options {
    #[default]
    Absent,
    /// `null`, there.
    Null(Span),
    /// An object without `include_usage`, with its opening brace there.
    Object { open: usize, empty: bool },
    /// The value of `include_usage`.
    Usage(Span),
}

/// What to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The new model.
    pub model: Option<&'a str>,
    /// Ask for usage in the stream.
    pub include_usage: bool,
}

impl Edit<'_> {
    /// The changed body; `None` if there is nothing to change. `info` must have been parsed from `body`, and from JSON; it then
    /// describes where the prompt lies in the changed body, which cannot be changed a second time.
    pub fn apply(&self, info: &mut RequestInfo<'_>, body: &[u8]) -> Option<Vec<u8>> {
        let places = info.places;
        let mut changes: [Option<(Span, Cow<'static, str>)>; 2] = [None, None];
        let [first, second] = &mut changes;
        let asks = self.include_usage && !info.include_usage;
        if let Some(model) = self.model {
            let quoted = serde_json::Value::from(model).to_string();
            *first = Some(match places.model {
                Some(span) => (span, quoted.into()),
                None => {
                    let only = places.empty && !asks;
                    (after(places.open), member("\"model\":", &quoted, only))
                }
            });
        }
        if asks {
            const YES: &str = "{\"include_usage\":true}";
            *second = Some(match places.options {
                Options::Absent => {
                    let member = member("\"stream_options\":", YES, places.empty);
                    (after(places.open), member)
                }
                Options::Null(span) => (span, YES.into()),
                Options::Object { open, empty } => {
                    (after(open), member("\"include_usage\":", "true", empty))
                }
                Options::Usage(span) => (span, "true".into()),
            });
        }
        if changes.iter().all(Option::is_none) {
            return None;
        }
        // Stable: of two insertions at one place the model comes first.
        changes.sort_by_key(|change| change.as_ref().map_or(usize::MAX, |(span, _)| span.start));
        let more: usize = changes.iter().flatten().map(|(_, new)| new.len()).sum();
        let mut edited = Vec::with_capacity(body.len() + more);
        let mut from = 0;
        for (span, new) in changes.iter().flatten() {
            edited.extend_from_slice(body.get(from..span.start).unwrap_or_default());
            edited.extend_from_slice(new.as_bytes());
            from = span.end;
        }
        edited.extend_from_slice(body.get(from..).unwrap_or_default());
        // From the end, so that places already moved are not moved again.
        for (span, new) in changes.iter().flatten().rev() {
            info.prompt.shift(*span, new.len());
        }
        info.body_bytes = edited.len();
        info.places = Places::default();
        Some(edited)
    }
}

/// The empty span behind a brace.
fn after(brace: usize) -> Span {
    Span {
        start: brace + 1,
        end: brace + 1,
    }
}

/// A member put in front of an object's others, if it has any.
fn member(key: &str, value: &str, only: bool) -> Cow<'static, str> {
    let comma = if only { "" } else { "," };
    format!("{key}{value}{comma}").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Api;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn edit(body: &str, model: Option<&str>, include_usage: bool) -> Option<String> {
        let mut info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
        let prompt: Vec<_> = info.prompt.pieces(body.as_bytes()).collect();
        let edit = Edit {
            model,
            include_usage,
        };
        let edited = edit.apply(&mut info, body.as_bytes())?;
        assert_eq!(info.prompt.pieces(&edited).collect::<Vec<_>>(), prompt);
        assert_eq!(info.body_bytes, edited.len());
        Some(String::from_utf8(edited).unwrap())
    }

    #[test]
    fn changes_only_what_it_must() {
        for (body, model, usage, expected) in [
            (
                r#" { "a":1 , "model" : "x" }"#,
                Some("y"),
                false,
                r#" { "a":1 , "model" : "y" }"#,
            ),
            (
                r#"{"model":"x"}"#,
                Some("q\"\\"),
                false,
                r#"{"model":"q\"\\"}"#,
            ),
            (r#"{"a":1}"#, Some("y"), false, r#"{"model":"y","a":1}"#),
            ("{}", Some("y"), false, r#"{"model":"y"}"#),
            (
                "{ }",
                Some("y"),
                true,
                r#"{"model":"y","stream_options":{"include_usage":true} }"#,
            ),
            (r#"{"model":null}"#, Some("y"), false, r#"{"model":"y"}"#),
            (
                r#"{"model":"x"}"#,
                None,
                true,
                r#"{"stream_options":{"include_usage":true},"model":"x"}"#,
            ),
            (
                r#"{"stream_options":null,"model":"x"}"#,
                Some("y"),
                true,
                r#"{"stream_options":{"include_usage":true},"model":"y"}"#,
            ),
            (
                r#"{"model":"x","stream_options":{ }}"#,
                None,
                true,
                r#"{"model":"x","stream_options":{"include_usage":true }}"#,
            ),
            (
                r#"{"stream_options":{"z":1}}"#,
                None,
                true,
                r#"{"stream_options":{"include_usage":true,"z":1}}"#,
            ),
            (
                r#"{"stream_options":{"include_usage": false}}"#,
                None,
                true,
                r#"{"stream_options":{"include_usage": true}}"#,
            ),
            (
                r#"{"a":1}"#,
                Some("y"),
                true,
                r#"{"model":"y","stream_options":{"include_usage":true},"a":1}"#,
            ),
        ] {
            assert_eq!(
                edit(body, model, usage).as_deref(),
                Some(expected),
                "{body}"
            );
        }
        assert_eq!(edit(r#"{"model":"x"}"#, None, false), None);
        assert_eq!(
            edit(r#"{"stream_options":{"include_usage":true}}"#, None, true),
            None
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("model|[a-z]{1,4}|include_usage", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// The edited body is the same JSON with only those two fields changed, and has the bytes of the rest in their order.
        #[test]
        fn the_rest_stays(
            others in prop::collection::btree_map("x[a-z]{0,5}|messages|tools", value(), 0..5),
            model in prop::option::of(prop::option::of(".{0,10}")),
            options in prop::option::of(prop_oneof![
                Just(json!(null)), Just(json!({})), Just(json!({"include_usage": false})),
                Just(json!({"include_usage": null, "y": [1]})), Just(json!({"y": {"include_usage": true}})),
                Just(json!({"include_usage": true})),
            ]),
            new_model in prop::option::of(".{1,10}"),
            usage in any::<bool>(),
            pretty in any::<bool>(),
            place in any::<prop::sample::Index>(),
        ) {
            let mut members: Vec<(String, Value)> = others.into_iter().collect();
            if let Some(model) = &model {
                members.insert(place.index(members.len() + 1), ("model".into(), json!(model)));
            }
            if let Some(options) = &options {
                members.insert(place.index(members.len() + 1), ("stream_options".into(), options.clone()));
            }
            let glue = if pretty { (" { ", " : ", " ,\n ", " } ") } else { ("{", ":", ",", "}") };
            let text: Vec<String> = members.iter().map(|(k, v)| format!("{}{}{v}", json!(k), glue.1)).collect();
            let body = format!("{}{}{}", glue.0, text.join(glue.2), glue.3);
            let before: Value = serde_json::from_str(&body).unwrap();
            let Some(after) = edit(&body, new_model.as_deref(), usage) else {
                prop_assert!(new_model.is_none());
                prop_assert!(!usage || before["stream_options"]["include_usage"] == true);
                return Ok(());
            };
            let mut expected = before.clone();
            if let Some(new) = &new_model {
                expected["model"] = json!(new);
            }
            if usage {
                if !expected["stream_options"].is_object() {
                    expected["stream_options"] = json!({});
                }
                expected["stream_options"]["include_usage"] = json!(true);
            }
            let parsed: Value = serde_json::from_str(&after).unwrap();
            prop_assert_eq!(parsed, expected);
            for (key, value) in members.iter().filter(|(key, _)| key.starts_with('x')) {
                let member = format!("{}{}{value}", json!(key), glue.1);
                prop_assert!(after.contains(&member), "{} lost from {}", member, after);
            }
            let again = RequestInfo::parse(Api::Chat, after.as_bytes()).unwrap();
            prop_assert_eq!(again.include_usage, usage || before["stream_options"]["include_usage"] == true);
        }
    }
}
