//! The request as routing sees it, and the one parse of its body.
//!
//! The body is read once with borrowed fields: what routing needs is picked out, the rest is checked to be JSON and skipped.
//! The bytes themselves go to the engine as they came.

use serde::Deserialize;
use std::borrow::Cow;

/// The API a request speaks, told by its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI `/v1/chat/completions`.
    Chat,
    /// OpenAI `/v1/completions`.
    Completions,
    /// OpenAI `/v1/responses`.
    Responses,
    /// OpenAI `/v1/embeddings`.
    Embeddings,
    /// Anthropic `/v1/messages` and `/v1/messages/count_tokens`.
    Messages,
    /// Anything else: passed through to an engine as it is.
    #[default]
    Native,
}

impl Api {
    /// The API of a POST to `path`.
    pub fn of(path: &str) -> Self {
        match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/responses" => Self::Responses,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/messages" | "/v1/messages/count_tokens" => Self::Messages,
            _ => Self::Native,
        }
    }

    /// A short name for metric labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Native => "native",
        }
    }
}

/// What routing knows of a request. Borrows from the body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInfo<'a> {
    /// The API it speaks.
    pub api: Api,
    /// The model it names; empty only for native paths.
    pub model: Cow<'a, str>,
    /// The client asked for server-sent events.
    pub stream: bool,
    /// The client asked for usage in the stream.
    pub include_usage: bool,
    /// Upper bound of the answer's length in tokens, if the client set one.
    pub max_tokens: Option<u64>,
    /// Length of the body in bytes.
    pub body_bytes: usize,
}

/// Why a body cannot be routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, or not the JSON the API has; the text says where.
    #[error("the request body is not valid: {0}")]
    Json(String),
    /// No `model`, or an empty one.
    #[error("you must provide a model parameter")]
    NoModel,
}

/// A string that stays borrowed where it has no escapes (an `Option<Cow>` field by itself would always be copied).
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    model: Option<Text<'a>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    max_output_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// What is wrong, with the name of the field where the JSON itself is right: serde's own words have only line and column.
fn explain(error: &serde_json::Error, body: &[u8]) -> String {
    type Check = fn(&serde_json::Value) -> bool;
    let expected: [(&str, Check, &str); 6] = [
        ("model", serde_json::Value::is_string, "a string"),
        ("stream", serde_json::Value::is_boolean, "true or false"),
        ("stream_options", serde_json::Value::is_object, "an object"),
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

impl<'a> RequestInfo<'a> {
    /// Parses the body of a POST to one of the known APIs.
    ///
    /// # Errors
    /// [`ParseError`]: not a JSON object, a field of the wrong type, or no model.
    pub fn parse(api: Api, body: &'a [u8]) -> Result<Self, ParseError> {
        // A derived struct would also take an array of its fields in order.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(ParseError::Json("expected a JSON object".into()));
        }
        let fields: Fields<'a> =
            serde_json::from_slice(body).map_err(|e| ParseError::Json(explain(&e, body)))?;
        let model = fields
            .model
            .map(|m| m.0)
            .filter(|m| !m.is_empty())
            .ok_or(ParseError::NoModel)?;
        Ok(Self {
            api,
            model,
            stream: fields.stream.unwrap_or(false),
            include_usage: fields
                .stream_options
                .and_then(|o| o.include_usage)
                .unwrap_or(false),
            max_tokens: fields
                .max_completion_tokens
                .or(fields.max_output_tokens)
                .or(fields.max_tokens),
            body_bytes: body.len(),
        })
    }

    /// The same without the borrowed body, for passing on together with it.
    pub fn into_owned(self) -> RequestInfo<'static> {
        RequestInfo {
            api: self.api,
            model: Cow::Owned(self.model.into_owned()),
            stream: self.stream,
            include_usage: self.include_usage,
            max_tokens: self.max_tokens,
            body_bytes: self.body_bytes,
        }
    }

    /// A request to a path that routing does not know: it is routed by the `model` in its body if there is one.
    pub fn native(body: &'a [u8]) -> Self {
        #[derive(Deserialize)]
        struct Model<'a> {
            #[serde(borrow, default)]
            model: Option<Text<'a>>,
        }
        let model = serde_json::from_slice::<Model<'a>>(body)
            .ok()
            .and_then(|m| m.model)
            .map(|m| m.0)
            .unwrap_or_default();
        Self {
            model,
            body_bytes: body.len(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_out_what_routing_needs() {
        let body = br#"{"messages":[{"role":"user","content":"hi \u00e9"}],"model":"m\"1","stream":true,
            "stream_options":{"include_usage":true},"max_tokens":5,"max_completion_tokens":7,"x":{"y":[1e9,null]}}"#;
        let info = RequestInfo::parse(Api::Chat, body).unwrap();
        assert_eq!(info.model, "m\"1");
        assert!(info.stream && info.include_usage);
        assert_eq!((info.max_tokens, info.body_bytes), (Some(7), body.len()));
        let plain = RequestInfo::parse(Api::Chat, br#"{"model":"m","stream":null}"#).unwrap();
        assert!(!plain.stream && matches!(plain.model, Cow::Borrowed("m")));
    }

    #[test]
    fn bad_bodies_say_what_is_wrong() {
        for body in [
            "",
            "[]",
            "{",
            r#"{"model":1}"#,
            r#"{"model":"m","stream":"yes"}"#,
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
            (r#"{"model":"m","model":"n"}"#, "duplicate field `model`"),
        ] {
            let error = RequestInfo::parse(Api::Chat, body.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        for body in ["{}", r#"{"model":""}"#, r#"{"model":null}"#] {
            assert_eq!(
                RequestInfo::parse(Api::Chat, body.as_bytes()),
                Err(ParseError::NoModel)
            );
        }
        assert!(RequestInfo::parse(Api::Chat, b"{\"model\":\"\xff\"}").is_err());
    }

    #[test]
    fn native_bodies_may_be_anything() {
        assert_eq!(RequestInfo::native(b"\x00binary").model, "");
        assert_eq!(RequestInfo::native(br#"{"model":"m"}"#).model, "m");
        assert_eq!(Api::of("/v1/chat/completions"), Api::Chat);
        assert_eq!(Api::of("/v1/rerank"), Api::Native);
    }
}
