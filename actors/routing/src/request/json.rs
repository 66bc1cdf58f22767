//! The one parse of JSON bodies, for all JSON APIs.

use super::edit::{Options, Places};
use super::{Api, ParseError, Prompt, RequestInfo, Span};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A string that stays borrowed where it has no escapes (an `Option<Cow>` field by itself would always be copied).
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A value where it lies, `null` included (which an `Option` would take for absent).
#[derive(Clone, Copy, Default)]
struct Raw<'a>(Option<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw)))
    }
}

impl<'a> Raw<'a> {
    fn span(self, body: &[u8]) -> Option<Span> {
        self.0.map(|raw| Span::of(raw.get().as_bytes(), body))
    }

    /// The value unless it is absent or null.
    fn some(self) -> Option<&'a RawValue> {
        self.0.filter(|raw| raw.get() != "null")
    }
}

/// All that is picked out of any API's body; which names mean something depends on the API.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    model: Raw<'a>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(borrow, default)]
    stream_options: Raw<'a>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    max_output_tokens: Option<u64>,
    #[serde(borrow, default)]
    sampling_params: Raw<'a>,
    #[serde(borrow, default)]
    messages: Raw<'a>,
    #[serde(borrow, default)]
    prompt: Raw<'a>,
    #[serde(borrow, default)]
    input: Raw<'a>,
    #[serde(borrow, default)]
    items: Raw<'a>,
    #[serde(borrow, default)]
    system: Raw<'a>,
    #[serde(borrow, default)]
    instructions: Raw<'a>,
    #[serde(borrow, default)]
    tools: Raw<'a>,
    #[serde(borrow, default)]
    token_ids: Raw<'a>,
    #[serde(borrow, default)]
    input_ids: Raw<'a>,
    #[serde(borrow, default)]
    text: Raw<'a>,
    #[serde(borrow, default)]
    prompt_cache_key: Raw<'a>,
    #[serde(borrow, default)]
    cache_salt: Raw<'a>,
    #[serde(borrow, default)]
    extra_key: Raw<'a>,
}

#[derive(Deserialize)]
struct StreamOptions<'a> {
    #[serde(borrow, default)]
    include_usage: Raw<'a>,
}

#[derive(Default, Deserialize)]
struct SamplingParams {
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_new_tokens: Option<u64>,
}

/// See [`RequestInfo::parse`].
pub(super) fn parse(api: Api, body: &[u8]) -> Result<RequestInfo<'_>, ParseError> {
    // A derived struct would also take an array of its fields in order.
    let start = body.iter().position(|b| !b.is_ascii_whitespace());
    let Some(open) = start.filter(|at| body.get(*at) == Some(&b'{')) else {
        return Err(ParseError::Json("expected a JSON object".into()));
    };
    read(api, body, open).map_err(|e| ParseError::Json(explain(&e, body)))
}

fn read(api: Api, body: &[u8], open: usize) -> Result<RequestInfo<'_>, serde_json::Error> {
    let fields: Fields<'_> = serde_json::from_slice(body)?;
    let model = match fields.model.some() {
        Some(raw) => serde_json::from_str::<Text<'_>>(raw.get())?.0,
        None => Cow::Borrowed(""),
    };
    let options = match fields.stream_options.0 {
        None => Options::Absent,
        Some(raw) if raw.get() == "null" => Options::Null(Span::of(raw.get().as_bytes(), body)),
        Some(raw) => {
            let span = Span::of(raw.get().as_bytes(), body);
            let options: StreamOptions<'_> = serde_json::from_str(raw.get())?;
            match options.include_usage.0 {
                // An array of options would parse as well; nobody means that.
                _ if !raw.get().starts_with('{') => {
                    return Err(serde::de::Error::custom("stream_options is no object"));
                }
                Some(value) => Options::Usage(Span::of(value.get().as_bytes(), body)),
                None => Options::Object {
                    open: span.start,
                    empty: raw.get()[1..].trim_ascii_start() == "}",
                },
            }
        }
    };
    let include_usage = match options {
        Options::Usage(span) => {
            serde_json::from_slice::<Option<bool>>(span.get(body))?.unwrap_or(false)
        }
        _ => false,
    };
    // A list of parameters, one for each of several prompts, bounds nothing that is needed here.
    let sampling: SamplingParams = fields
        .sampling_params
        .some()
        .filter(|raw| raw.get().starts_with('{'))
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default();
    let prompt = match api {
        Api::Responses => [fields.tools, fields.instructions, fields.input],
        Api::Conversations => [Raw(None), Raw(None), fields.items],
        Api::Messages | Api::CountTokens => [fields.tools, fields.system, fields.messages],
        Api::VllmGenerate => [Raw(None), Raw(None), fields.token_ids],
        Api::SglangGenerate if fields.input_ids.some().is_some() => {
            [Raw(None), Raw(None), fields.input_ids]
        }
        Api::SglangGenerate => [Raw(None), Raw(None), fields.text],
        Api::Completions | Api::CompletionsRender | Api::Images => {
            [Raw(None), Raw(None), fields.prompt]
        }
        Api::Embeddings if fields.input.some().is_some() => [Raw(None), Raw(None), fields.input],
        _ => [fields.tools, Raw(None), fields.messages],
    };
    let salt = if api == Api::SglangGenerate {
        fields.extra_key
    } else {
        fields.cache_salt
    };
    Ok(RequestInfo {
        api,
        model,
        stream: fields.stream.unwrap_or(false),
        include_usage,
        max_tokens: fields
            .max_completion_tokens
            .or(fields.max_output_tokens)
            .or(fields.max_tokens)
            .or(sampling.max_tokens)
            .or(sampling.max_new_tokens),
        session: text(fields.prompt_cache_key),
        cache_salt: text(salt),
        prompt: Prompt::of_json(body, prompt.map(Raw::some)),
        body_bytes: body.len(),
        places: Places {
            open,
            empty: body
                .get(open + 1..)
                .is_some_and(|rest| rest.trim_ascii_start().starts_with(b"}")),
            model: fields.model.span(body),
            options,
        },
    })
}

/// A string that is there and not empty. Another type is for the engine to complain about.
fn text(raw: Raw<'_>) -> Option<Cow<'_, str>> {
    let text: Text<'_> = serde_json::from_str(raw.some()?.get()).ok()?;
    Some(text.0).filter(|text| !text.is_empty())
}

/// The `model` of a body that may be anything; empty if there is none.
pub(super) fn model(body: &[u8]) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Model<'a> {
        #[serde(borrow, default)]
        model: Option<Text<'a>>,
    }
    serde_json::from_slice::<Model<'_>>(body)
        .ok()
        .and_then(|m| m.model)
        .map(|m| m.0)
        .unwrap_or_default()
}

/// What is wrong, with the name of the field where the JSON itself is right: serde's own words have only line and column.
fn explain(error: &serde_json::Error, body: &[u8]) -> String {
    type Check = fn(&serde_json::Value) -> bool;
    let expected: [(&str, Check, &str); 6] = [
        ("model", serde_json::Value::is_string, "a string"),
        ("stream", serde_json::Value::is_boolean, "true or false"),
        (
            "stream_options",
            |value| {
                let usage = value.get("include_usage");
                value.is_object() && usage.is_none_or(|u| u.is_boolean() || u.is_null())
            },
            "an object whose `include_usage` is true or false",
        ),
        ("max_tokens", serde_json::Value::is_u64, "a whole number"),
        (
            "max_completion_tokens",
            serde_json::Value::is_u64,
            "a whole number",
        ),
        (
            "max_output_tokens",
            serde_json::Value::is_u64,
            "a whole number",
        ),
    ];
    let fields = serde_json::from_slice::<serde_json::Map<_, _>>(body).unwrap_or_default();
    let wrong = expected.iter().find(|(name, right, _)| {
        fields
            .get(*name)
            .is_some_and(|value| !value.is_null() && !right(value))
    });
    match wrong {
        Some((name, _, must_be)) => format!("`{name}` must be {must_be}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_out_what_routing_needs() {
        let body = br#"{"messages":[{"role":"user","content":"hi \u00e9"}],"model":"m\"1","stream":true,
            "stream_options":{"include_usage":true},"max_tokens":5,"max_completion_tokens":7,"x":{"y":[1e9,null]},
            "prompt_cache_key":"k","cache_salt":"s"}"#;
        let info = RequestInfo::parse(Api::Chat, body).unwrap();
        assert_eq!(info.model, "m\"1");
        assert!(info.stream && info.include_usage);
        assert_eq!((info.max_tokens, info.body_bytes), (Some(7), body.len()));
        assert_eq!(
            (info.session.as_deref(), info.cache_salt.as_deref()),
            (Some("k"), Some("s"))
        );
        let plain = RequestInfo::parse(Api::Chat, br#"{"model":"m","stream":null}"#).unwrap();
        assert!(!plain.stream && matches!(plain.model, Cow::Borrowed("m")));
        assert_eq!(plain.clone().into_owned(), plain);
    }

    #[test]
    fn engine_native_bodies_have_their_own_names() {
        let vllm = br#"{"token_ids":[1,2],"sampling_params":{"max_tokens":9},"cache_salt":"x","stream":true}"#;
        let info = RequestInfo::parse(Api::VllmGenerate, vllm).unwrap();
        assert_eq!(
            (info.max_tokens, info.cache_salt.as_deref()),
            (Some(9), Some("x"))
        );
        assert!(info.model.is_empty() && info.stream);
        let sglang =
            br#"{"input_ids":[1,2],"sampling_params":{"max_new_tokens":4},"extra_key":"y"}"#;
        let info = RequestInfo::parse(Api::SglangGenerate, sglang).unwrap();
        assert_eq!(
            (info.max_tokens, info.cache_salt.as_deref()),
            (Some(4), Some("y"))
        );
        let many = br#"{"input_ids":[[1],[2]],"sampling_params":[{"max_new_tokens":4}]}"#;
        assert_eq!(
            RequestInfo::parse(Api::SglangGenerate, many)
                .unwrap()
                .max_tokens,
            None
        );
    }

    #[test]
    fn bad_bodies_say_what_is_wrong() {
        for body in [
            "",
            "[]",
            "{",
            r#"{"model":1}"#,
            r#"{"model":"m","stream":"yes"}"#,
            r#"{"model":"m","stream_options":[true]}"#,
            "{\"model\":\"m\"}}",
        ] {
            let got = RequestInfo::parse(Api::Chat, body.as_bytes());
            assert!(matches!(got, Err(ParseError::Json(_))), "{body}: {got:?}");
        }
        for (body, said) in [
            (r#"{"model":1}"#, "`model` must be a string"),
            (
                r#"{"model":"m","max_tokens":-1}"#,
                "`max_tokens` must be a whole number",
            ),
            (
                r#"{"model":"m","stream_options":{"include_usage":"x"}}"#,
                "`stream_options` must be an object",
            ),
            (r#"{"model":"m","model":"n"}"#, "duplicate field `model`"),
        ] {
            let error = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        for body in ["{}", r#"{"model":""}"#, r#"{"model":null}"#] {
            let info = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap();
            assert!(info.model.is_empty());
        }
        assert!(RequestInfo::parse(Api::Chat, b"{\"model\":\"\xff\"}").is_err());
    }

    #[test]
    fn native_bodies_may_be_anything() {
        assert_eq!(RequestInfo::native(b"\x00binary").model, "");
        assert_eq!(RequestInfo::native(br#"{"model":"m"}"#).model, "m");
        let parsed = RequestInfo::parse(Api::Native, b"\xff").unwrap();
        assert_eq!((parsed.api, parsed.body_bytes), (Api::Native, 1));
    }
}
