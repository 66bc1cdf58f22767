//! A request's body as the variables of a chat template, made as vLLM makes them before the template sees them.

use super::media::Media;
use super::{ContentFormat, ModelFiles, Origin, PromptTokens, Request, TokenError, made};
use minijinja::Value;
use minijinja::value::ValueKind;
use quorate_routing::request::{Api, MediaKind, PromptKind};
use serde::Deserialize;

/// The prompt that a request's tokens are made of.
#[derive(Debug)]
pub(super) struct Prompt {
    pub text: String,
    /// The tokenizer adds its own special tokens.
    pub special: bool,
    pub media: Vec<Media>,
}

/// The tokens of a request that has them already.
pub(super) fn given(request: &Request<'_>) -> Option<PromptTokens> {
    let prompt = &request.info.prompt;
    let ids = match prompt.kind {
        PromptKind::TokenIds => {
            let piece = prompt.pieces(request.body).next()?;
            // The closing bracket is not part of it.
            serde_json::from_slice(&[piece, b"]"].concat()).ok()?
        }
        PromptKind::PackedTokenIds => {
            let mut ids = Vec::new();
            for piece in prompt.pieces(request.body) {
                let (mut id, mut shift) = (0u64, 0);
                for byte in piece {
                    id |= u64::from(byte & 0x7f).checked_shl(shift)?;
                    shift += 7;
                    if byte & 0x80 == 0 {
                        ids.push(u32::try_from(id).ok()?);
                        (id, shift) = (0, 0);
                    }
                }
            }
            ids
        }
        _ => return None,
    };
    Some(made(request, ids, Origin::Given))
}

#[derive(Deserialize)]
struct ChatBody {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    documents: Option<Value>,
    #[serde(default)]
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    continue_final_message: Option<bool>,
    #[serde(default)]
    add_special_tokens: Option<bool>,
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    reasoning_effort: Option<Value>,
    #[serde(default)]
    chat_template: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    truncate_prompt_tokens: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    mm_processor_kwargs: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Value>,
    #[serde(default)]
    name: Option<Value>,
    #[serde(default)]
    tool_calls: Option<Vec<Value>>,
    #[serde(default)]
    tool_call_id: Option<Value>,
    #[serde(default)]
    reasoning: Option<Value>,
    #[serde(default)]
    task: Option<Value>,
    #[serde(default)]
    tools: Option<Value>,
}

#[derive(Deserialize)]
struct CompletionBody {
    prompt: serde_json::Value,
    #[serde(default)]
    add_special_tokens: Option<bool>,
    #[serde(default)]
    truncate_prompt_tokens: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    suffix: Option<String>,
}

/// The text that will be tokenized for a request.
pub(super) fn prompt(request: &Request<'_>, files: &ModelFiles) -> Result<Prompt, TokenError> {
    match request.info.api {
        Api::Chat | Api::ChatRender => chat(request.body, files),
        Api::Completions | Api::CompletionsRender => completion(request.body),
        Api::SglangGenerate => {
            #[derive(Deserialize)]
            struct Body {
                text: String,
            }
            let body: Body = read(request.body)?;
            Ok(plain(body.text, true))
        }
        _ => Err(TokenError::Unsupported("this API")),
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, TokenError> {
    serde_json::from_slice(body).map_err(|e| TokenError::Request(e.to_string()))
}

fn plain(text: String, special: bool) -> Prompt {
    Prompt {
        text,
        special,
        media: Vec::new(),
    }
}

fn completion(body: &[u8]) -> Result<Prompt, TokenError> {
    let body: CompletionBody = read(body)?;
    if body.truncate_prompt_tokens.is_some() || body.suffix.is_some_and(|s| !s.is_empty()) {
        return Err(TokenError::Unsupported(
            "a prompt that is cut or has a suffix",
        ));
    }
    let text = match body.prompt {
        serde_json::Value::String(text) => text,
        serde_json::Value::Array(mut list) if list.len() == 1 => match list.pop() {
            Some(serde_json::Value::String(text)) => text,
            _ => return Err(TokenError::Unsupported("a prompt that is no text")),
        },
        _ => return Err(TokenError::Unsupported("several prompts in one request")),
    };
    Ok(plain(text, body.add_special_tokens.unwrap_or(true)))
}

fn chat(body: &[u8], files: &ModelFiles) -> Result<Prompt, TokenError> {
    let body: ChatBody = read(body)?;
    if body.chat_template.is_some() || body.truncate_prompt_tokens.is_some() {
        return Err(TokenError::Unsupported(
            "a template or a truncation of the request's own",
        ));
    }
    let continued = body.continue_final_message.unwrap_or(false);
    let generation = body.add_generation_prompt.unwrap_or(true);
    if continued && generation {
        return Err(TokenError::Request(
            "`continue_final_message` and `add_generation_prompt` exclude each other".into(),
        ));
    }
    let template = files
        .template(body.tools.is_some())
        .ok_or(TokenError::Unsupported("a model without a chat template"))?;
    let format = template.content_format();
    let mut media = Vec::new();
    let mut messages = Vec::with_capacity(body.messages.len());
    for message in &body.messages {
        messages.push(normalised(message, format, files, &mut media)?);
    }
    if body.mm_processor_kwargs.is_some() && !media.is_empty() {
        return Err(TokenError::Unsupported("media with settings of their own"));
    }
    let ending = continued.then(|| final_text(&messages)).flatten();
    let tools = body.tools.map(|tools| tools.iter().map(tool).collect());
    let mut variables: Vec<(String, Value)> = files
        .special
        .iter()
        .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
        .collect();
    let mut set = |name: &str, value: Value| variables.push((name.to_owned(), value));
    set("messages", messages.into_iter().collect());
    set("tools", tools.unwrap_or(Value::from(())));
    set("documents", body.documents.unwrap_or(Value::from(())));
    set("add_generation_prompt", generation.into());
    if let Some(effort) = body.reasoning_effort {
        set("reasoning_effort", effort);
    }
    if let Some(more) = body.chat_template_kwargs {
        if more.kind() != ValueKind::Map {
            return Err(TokenError::Request(
                "`chat_template_kwargs` is no object".into(),
            ));
        }
        for key in more.try_iter().map_err(request_error)? {
            let value = more.get_item(&key).map_err(request_error)?;
            match key.as_str() {
                Some("chat_template" | "tokenize") | None => {
                    return Err(TokenError::Request(format!(
                        "`chat_template_kwargs`: {key}"
                    )));
                }
                Some(name) => set(name, value),
            }
        }
    }
    let mut text = template.render(Value::from_pairs(variables))?;
    if continued {
        let ending = ending.ok_or(TokenError::Unsupported("a final message without text"))?;
        cut_after(&mut text, &ending)?;
    }
    Ok(Prompt {
        text,
        special: body.add_special_tokens.unwrap_or(false),
        media,
    })
}

fn request_error(error: minijinja::Error) -> TokenError {
    TokenError::Request(error.to_string())
}

/// A tool with the members that the API names in their order, absent ones as null, others behind them.
fn tool(tool: &Value) -> Value {
    let function = tool.get_attr("function").unwrap_or_default();
    if function.kind() != ValueKind::Map {
        return tool.clone();
    }
    let function = ordered(&function, &["name", "description", "parameters"]);
    let mut outer = vec![
        (Value::from("type"), Value::from("function")),
        (Value::from("function"), function),
    ];
    if let Ok(keys) = tool.try_iter() {
        for key in keys.filter(|key| !matches!(key.as_str(), Some("type" | "function"))) {
            let value = tool.get_item(&key).unwrap_or_default();
            outer.push((key, value));
        }
    }
    Value::from_pairs(outer)
}

fn ordered(map: &Value, names: &[&str]) -> Value {
    let mut out = Vec::new();
    for name in names {
        let value = map.get_attr(name).ok().filter(|v| !v.is_undefined());
        out.push((Value::from(*name), value.unwrap_or(Value::from(()))));
    }
    for key in map.try_iter().into_iter().flatten() {
        if !key.as_str().is_some_and(|key| names.contains(&key)) {
            let value = map.get_item(&key).unwrap_or_default();
            out.push((key, value));
        }
    }
    Value::from_pairs(out)
}

fn normalised(
    message: &Message,
    format: ContentFormat,
    files: &ModelFiles,
    media: &mut Vec<Media>,
) -> Result<Value, TokenError> {
    let mut content = content(message.content.as_ref(), format, files, media)?;
    if message.role == "tool" && format == ContentFormat::OpenAi {
        content = joined(content)?;
    }
    let mut out = vec![
        ("role", Value::from(message.role.as_str())),
        ("content", content),
    ];
    match message.role.as_str() {
        "assistant" => {
            if let Some(calls) = message
                .tool_calls
                .as_ref()
                .filter(|calls| !calls.is_empty())
            {
                let calls: Result<Vec<_>, _> = calls.iter().map(call).collect();
                out.push(("tool_calls", calls?.into_iter().collect()));
            }
            if let Some(reasoning) = &message.reasoning {
                out.push(("reasoning", reasoning.clone()));
                out.push(("reasoning_content", reasoning.clone()));
            }
        }
        "tool" => out.extend(message.tool_call_id.clone().map(|id| ("tool_call_id", id))),
        "developer" => {
            let tools = message.tools.clone();
            out.push(("tools", tools.unwrap_or(Value::from(()))));
        }
        _ => {}
    }
    for (name, value) in [("name", &message.name), ("task", &message.task)] {
        if let Some(value) = value.as_ref().filter(|value| value.as_str().is_some()) {
            out.push((name, value.clone()));
        }
    }
    Ok(Value::from_pairs(out))
}

/// The content in the form that the template wants.
fn content(
    content: Option<&Value>,
    format: ContentFormat,
    files: &ModelFiles,
    media: &mut Vec<Media>,
) -> Result<Value, TokenError> {
    let mut texts = Vec::new();
    let mut parts = Vec::new();
    let mut markers = Vec::new();
    let part_of = |name: &str| vec![("type", Value::from(name))];
    let mut push = |text: Value, parts: &mut Vec<Value>| {
        let mut part = part_of("text");
        part.push(("text", text.clone()));
        parts.push(Value::from_pairs(part));
        texts.push(text);
    };
    match content {
        None => {}
        Some(text) if text.as_str().is_some() => push(text.clone(), &mut parts),
        Some(list) if list.kind() == ValueKind::Seq => {
            for part in list.try_iter().map_err(request_error)? {
                if part.as_str().is_some() {
                    push(part, &mut parts);
                    continue;
                }
                let kind = part.get_attr("type").unwrap_or_default();
                let member = |name: &str| part.get_attr(name).unwrap_or_default();
                let text = match kind.as_str() {
                    Some("text" | "input_text" | "output_text") => member("text"),
                    Some("refusal") => member("refusal"),
                    Some("thinking") => member("thinking"),
                    _ => {
                        let item = Media::of(&part)?;
                        markers.push(item.kind);
                        let name = match item.kind {
                            MediaKind::Image => "image",
                            MediaKind::Video => "video",
                            MediaKind::Audio => "audio",
                        };
                        media.push(item);
                        parts.push(Value::from_pairs(part_of(name)));
                        continue;
                    }
                };
                if text.as_str().is_some() {
                    push(text, &mut parts);
                }
            }
        }
        Some(_) => {
            return Err(TokenError::Request(
                "`content` is neither text nor a list".into(),
            ));
        }
    }
    if format == ContentFormat::OpenAi {
        return Ok(parts.into_iter().collect());
    }
    // One text needs no copy.
    if let ([text], []) = (texts.as_slice(), markers.as_slice()) {
        return Ok(text.clone());
    }
    let mut lines = Vec::new();
    for kind in markers {
        let marker = files.placeholders.marker(kind);
        lines.push(marker.ok_or(TokenError::Unsupported("media of this model"))?);
    }
    let text: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
    let text = text.join("\n");
    if !text.is_empty() {
        lines.push(&text);
    }
    Ok(Value::from(lines.join("\n")))
}

/// A tool's answer is text for every template, unless it has something that is none.
fn joined(content: Value) -> Result<Value, TokenError> {
    let mut texts = Vec::new();
    for part in content.try_iter().map_err(request_error)? {
        match part.get_attr("text").unwrap_or_default().as_str() {
            Some(text) => texts.push(text.to_owned()),
            None => return Ok(content),
        }
    }
    Ok(Value::from(texts.join("\n")))
}

/// A tool call with its arguments parsed; what is not JSON becomes an empty object.
fn call(call: &Value) -> Result<Value, TokenError> {
    let function = call.get_attr("function").unwrap_or_default();
    if function.kind() != ValueKind::Map {
        return Err(TokenError::Request("a tool call without `function`".into()));
    }
    let empty = || Value::from_pairs::<_, &str, Value>([]);
    let arguments = function.get_attr("arguments").unwrap_or_default();
    let arguments = match (arguments.as_str(), arguments.kind()) {
        (Some(text), _) => serde_json::from_str(text).unwrap_or_else(|_| empty()),
        (None, ValueKind::Map | ValueKind::Seq) => arguments,
        _ => empty(),
    };
    Ok(replaced(
        call,
        "function",
        replaced(&function, "arguments", arguments),
    ))
}

/// `map` with one member changed or added.
fn replaced(map: &Value, name: &str, value: Value) -> Value {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    for key in map.try_iter().into_iter().flatten() {
        if key.as_str() != Some(name) {
            let value = map.get_item(&key).unwrap_or_default();
            pairs.push((key, value));
        }
    }
    pairs.push((Value::from(name), value));
    Value::from_pairs(pairs)
}

/// The text of the last message, from the last part that has one.
fn final_text(messages: &[Value]) -> Option<String> {
    let content = messages.last()?.get_attr("content").ok()?;
    if let Some(text) = content.as_str() {
        return Some(text.to_owned());
    }
    let parts: Vec<Value> = content.try_iter().ok()?.collect();
    let texts = parts
        .iter()
        .rev()
        .filter_map(|part| part.get_attr("text").ok());
    let mut texts = texts.filter_map(|text| text.as_str().map(str::to_owned));
    texts.next()
}

/// Cuts a rendered prompt off behind its final message, with the white space that the message has at its end if that was rendered.
fn cut_after(prompt: &mut String, message: &str) -> Result<(), TokenError> {
    let bare = message.trim();
    let at = prompt.rfind(bare).ok_or_else(|| {
        TokenError::Template("the final message does not appear in the rendered chat".into())
    })?;
    let with_space = message.trim_start();
    let kept = match prompt
        .get(at..)
        .is_some_and(|rest| rest.starts_with(with_space))
    {
        true => with_space,
        false => bare,
    };
    prompt.truncate(at + kept.len());
    Ok(())
}
