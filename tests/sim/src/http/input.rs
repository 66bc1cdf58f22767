//! Reads the parts of request bodies that come in several forms: prompts, messages, stop strings.

use super::Call;
use super::error::ApiError;
use crate::tokenizer::{self, model::ModelTokenizer};
use quorate_cache::tokens::TokenError;
use quorate_routing::request::Api;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::ops::Range;

/// A message of a chat.
#[derive(Deserialize)]
pub struct Message<'a> {
    /// Who says it.
    #[serde(borrow, default)]
    pub role: Cow<'a, str>,
    /// A text, or an array of parts.
    #[serde(borrow, default)]
    pub content: Option<&'a RawValue>,
    /// Calls that an assistant made.
    #[serde(borrow, default)]
    pub tool_calls: Option<&'a RawValue>,
}

/// Parses a whole body.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad(format!("The request body is not valid: {error}")))
}

/// Parses one field of a body.
pub fn field<T: DeserializeOwned>(raw: &RawValue, name: &str) -> Result<T, ApiError> {
    serde_json::from_str(raw.get())
        .map_err(|error| ApiError::bad(format!("`{name}` is not valid: {error}")).param(name))
}

/// The first two characters that are not white space: enough to tell the forms apart.
fn opening(raw: &RawValue) -> (u8, u8) {
    let mut chars = raw.get().bytes().filter(|b| !b.is_ascii_whitespace());
    (chars.next().unwrap_or(0), chars.next().unwrap_or(0))
}

/// The prompts of a completion or an embedding: a text, texts, tokens, or lists of tokens.
pub fn prompts(
    raw: Option<&RawValue>,
    name: &str,
    model: Option<&ModelTokenizer>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let missing = || ApiError::bad(format!("`{name}` is missing")).param(name);
    let raw = raw.ok_or_else(missing)?;
    let encode = |text: &str| {
        if let Some(model) = model {
            return model.encode(text, true).map_err(refused);
        }
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        tokens.push(tokenizer::BOS);
        tokenizer::encode(text, &mut tokens);
        Ok(tokens)
    };
    let prompts = match opening(raw) {
        (b'"', _) => {
            let text: String = field(raw, name)?;
            if text.is_empty() {
                Vec::new()
            } else {
                vec![encode(&text)?]
            }
        }
        (b'[', b'"') => {
            let texts: Vec<String> = field(raw, name)?;
            texts
                .iter()
                .map(|text| {
                    if text.is_empty() {
                        Ok(Vec::new())
                    } else {
                        encode(text)
                    }
                })
                .collect::<Result<_, ApiError>>()?
        }
        (b'[', b'[') => field(raw, name)?,
        (b'[', b']') => Vec::new(),
        (b'[', _) => vec![field(raw, name)?],
        (b'n', _) => return Err(missing()),
        _ => {
            return Err(ApiError::bad(format!(
                "`{name}` must be a text, tokens, or an array of these"
            ))
            .param(name));
        }
    };
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(ApiError::bad(format!("`{name}` is empty")).param(name));
    }
    Ok(prompts)
}

/// A text or an array of texts; nothing when absent.
pub fn texts(raw: Option<&RawValue>, name: &str) -> Result<Vec<String>, ApiError> {
    match raw {
        None => Ok(Vec::new()),
        Some(raw) => match opening(raw).0 {
            b'n' => Ok(Vec::new()),
            b'"' => Ok(vec![field(raw, name)?]),
            _ => field(raw, name),
        },
    }
}

/// Appends what a message says: its text, its media as placeholder tokens, anything else as JSON.
pub fn content(raw: &RawValue, name: &str, out: &mut Vec<u32>) -> Result<(), ApiError> {
    match opening(raw).0 {
        b'"' => {
            // Most texts have no escapes and can be read where they are.
            let text: Cow<'_, str> = match serde_json::from_str::<&str>(raw.get()) {
                Ok(text) => Cow::Borrowed(text),
                Err(_) => Cow::Owned(field(raw, name)?),
            };
            tokenizer::encode(&text, out);
        }
        b'[' => {
            for part in field::<Vec<Value>>(raw, name)? {
                part_tokens(&part, name, out)?;
            }
        }
        b'n' => {}
        _ => {
            return Err(
                ApiError::bad(format!("`{name}` must be a text or an array of parts")).param(name),
            );
        }
    }
    Ok(())
}

fn part_tokens(part: &Value, name: &str, out: &mut Vec<u32>) -> Result<(), ApiError> {
    if let Some(text) = part.as_str() {
        tokenizer::encode(text, out);
        return Ok(());
    }
    let kind = part.get("type").and_then(Value::as_str);
    let kind =
        kind.ok_or_else(|| ApiError::bad(format!("a part of `{name}` has no type")).param(name))?;
    match kind {
        "text" | "input_text" | "output_text" => {
            let text = part.get("text").and_then(Value::as_str);
            let text = text.ok_or_else(|| {
                ApiError::bad(format!("a text part of `{name}` has no text")).param(name)
            })?;
            tokenizer::encode(text, out);
        }
        "image_url" | "input_image" | "image" | "input_audio" | "audio_url" | "video_url" => {
            tokenizer::encode_media(&part.to_string(), out);
        }
        _ => tokenizer::encode(&part.to_string(), out),
    }
    Ok(())
}

/// A chat as tokens.
pub struct Chat {
    /// The whole prompt.
    pub tokens: Vec<u32>,
    /// The last user message, in the simulator's own tokens.
    pub echo: Vec<u32>,
    /// What a chat template sees of it, as far as it is not in the body itself.
    messages: Vec<Value>,
}

impl Chat {
    /// The prompt in the tokens of the server's model, if it has one, as that model's template renders an OpenAI chat.
    pub fn of_model(mut self, call: &Call, api: Api) -> Result<Chat, ApiError> {
        let Some(model) = &call.live.config().tokenizer else {
            return Ok(self);
        };
        let tokens = match model.prompt(api, &call.body, None) {
            // Another API's messages that only an engine can turn into a chat: this one takes their texts.
            Err(TokenError::Unsupported(_)) if api != Api::Chat => {
                let body = json!({"messages": self.messages}).to_string();
                model.prompt(Api::Chat, body.as_bytes(), None)
            }
            tokens => tokens,
        };
        self.tokens = tokens.map_err(refused)?;
        Ok(self)
    }
}

/// 400 for what a model's tokenizer or template cannot take.
pub fn refused(error: TokenError) -> ApiError {
    ApiError::bad(error.to_string())
}

/// Builds a chat prompt message by message.
pub struct ChatBuilder {
    chat: Chat,
    echo: Range<usize>,
}

impl ChatBuilder {
    /// An empty chat; the definitions of tools come before its first message.
    pub fn new(tools: Option<&RawValue>) -> Self {
        let mut tokens = Vec::with_capacity(512);
        tokens.push(tokenizer::BOS);
        if let Some(tools) =
            tools.filter(|tools| opening(tools).0 == b'[' && opening(tools).1 != b']')
        {
            tokenizer::encode(tools.get(), &mut tokens);
        }
        ChatBuilder {
            chat: Chat {
                tokens,
                echo: Vec::new(),
                messages: Vec::new(),
            },
            echo: 0..0,
        }
    }

    /// Appends a message.
    pub fn message(
        &mut self,
        role: &str,
        raw: Option<&RawValue>,
        calls: Option<&RawValue>,
    ) -> Result<(), ApiError> {
        let tokens = &mut self.chat.tokens;
        tokenizer::open_message(role, tokens);
        let start = tokens.len();
        if let Some(raw) = raw {
            content(raw, "messages", tokens)?;
        }
        if let Some(calls) = calls.filter(|calls| opening(calls).0 == b'[') {
            tokenizer::encode(calls.get(), tokens);
        }
        if role == "user" {
            self.echo = start..tokens.len();
        }
        tokenizer::close_message(tokens);
        let content: Value = match raw {
            Some(raw) => field(raw, "messages")?,
            None => Value::Null,
        };
        self.chat
            .messages
            .push(json!({"role": role, "content": plain(content)}));
        Ok(())
    }

    /// Appends a message that is a plain text.
    pub fn text(&mut self, role: &str, text: &str) {
        let tokens = &mut self.chat.tokens;
        tokenizer::open_message(role, tokens);
        let start = tokens.len();
        tokenizer::encode(text, tokens);
        if role == "user" {
            self.echo = start..tokens.len();
        }
        tokenizer::close_message(tokens);
        self.chat
            .messages
            .push(json!({"role": role, "content": text}));
    }

    /// The chat, open for the assistant's answer.
    pub fn build(mut self) -> Chat {
        let echo = self.chat.tokens.get(self.echo);
        self.chat.echo = echo.map(<[u32]>::to_vec).unwrap_or_default();
        tokenizer::open_message("assistant", &mut self.chat.tokens);
        self.chat
    }
}

/// The texts of another API's parts, as the one text that a template takes.
fn plain(content: Value) -> Value {
    let Value::Array(parts) = content else {
        return content;
    };
    let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
    Value::String(parts.iter().filter_map(text).collect())
}

/// The chat of OpenAI messages.
pub fn chat(
    messages: Option<Vec<Message<'_>>>,
    tools: Option<&RawValue>,
) -> Result<Chat, ApiError> {
    let messages =
        messages.ok_or_else(|| ApiError::bad("`messages` is missing").param("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::bad("`messages` is empty").param("messages"));
    }
    let mut builder = ChatBuilder::new(tools);
    for message in &messages {
        if message.role.is_empty() {
            return Err(ApiError::bad("a message has no role").param("messages"));
        }
        builder.message(&message.role, message.content, message.tool_calls)?;
    }
    Ok(builder.build())
}
