//! A request's body as the variables of a chat template, made as vLLM makes them before the template sees them.

use super::media::Media;
use super::prompt::Prompt;
use super::{ContentFormat, ModelFiles, TokenError};
use minijinja::Value;
use minijinja::value::{Object, ValueKind};
use quorate_routing::request::MediaKind;
use serde::Deserialize;
use std::sync::Arc;

/// With it Claude Code begins a system text whose first line is another one in each request. vLLM leaves that line out.
pub(super) const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// A conversation, as a chat request has it or as one of another API becomes it.
#[derive(Default, Deserialize)]
pub(super) struct ChatBody {
    pub messages: Vec<Message>,
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    #[serde(default)]
    pub documents: Option<Value>,
    #[serde(default)]
    pub add_generation_prompt: Option<bool>,
    #[serde(default)]
    pub continue_final_message: Option<bool>,
    #[serde(default)]
    pub add_special_tokens: Option<bool>,
    #[serde(default)]
    pub chat_template_kwargs: Option<Value>,
    #[serde(default)]
    pub reasoning_effort: Option<Value>,
    #[serde(default)]
    pub chat_template: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    pub truncate_prompt_tokens: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    pub mm_processor_kwargs: Option<serde::de::IgnoredAny>,
}

/// One message of it.
#[derive(Default, Deserialize)]
pub(super) struct Message {
    pub role: String,
    #[serde(default)]
    pub content: Option<Value>,
    #[serde(default)]
    pub name: Option<Value>,
    #[serde(default)]
    pub tool_calls: Option<Vec<Value>>,
    /// Their members stand as they are to be written.
    #[serde(skip)]
    pub calls_in_order: bool,
    #[serde(default)]
    pub tool_call_id: Option<Value>,
    #[serde(default)]
    pub reasoning: Option<Value>,
    #[serde(default)]
    pub task: Option<Value>,
    #[serde(default)]
    pub tools: Option<Value>,
}

impl Message {
    /// Said by `role`, nothing in it yet.
    pub fn of(role: &str) -> Self {
        Self {
            role: role.to_owned(),
            ..Self::default()
        }
    }

    /// Said by `role`.
    pub fn said(role: &str, content: Value) -> Self {
        Self {
            content: Some(content),
            ..Self::of(role)
        }
    }
}

/// A member of a map; undefined where there is none.
pub(super) fn member(map: &Value, name: &str) -> Value {
    map.get_attr(name).unwrap_or_default()
}

/// What the model's template makes of a conversation.
pub(super) fn render(body: ChatBody, files: &ModelFiles) -> Result<Prompt, TokenError> {
    if files.is_harmony {
        return Err(TokenError::Unsupported(
            "a model whose conversations engines write without its template",
        ));
    }
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
    let mut variables: Vec<(Value, Value)> = files
        .special
        .iter()
        .map(|(name, token)| (Value::from(name.as_str()), Value::from(token.as_str())))
        .collect();
    let mut set = |name: &str, value: Value| variables.push((Value::from(name), value));
    set("messages", messages.into_iter().collect());
    set("tools", tools.unwrap_or(Value::from(())));
    set("documents", Value::from(()));
    if let Some(effort) = &body.reasoning_effort {
        // For templates that think only when told to.
        let thinks = effort.as_str() != Some("none");
        set("enable_thinking", Value::from(thinks));
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
    // What the API has a field for counts more than a variable of the same name.
    set("add_generation_prompt", generation.into());
    for (name, value) in [
        ("documents", body.documents),
        ("reasoning_effort", body.reasoning_effort),
    ] {
        if let Some(value) = value {
            set(name, value);
        }
    }
    let variables = match variables.len() {
        0..=FEW => Value::from_object(Variables(variables)),
        _ => Value::from_pairs(variables),
    };
    let mut text = template.render(variables)?;
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

/// As many variables are looked through one by one; of more, which only a request that sends its own can have, a table is made.
const FEW: usize = 32;

/// What a template has by name; of a name that comes twice, the last one.
#[derive(Debug)]
struct Variables(Vec<(Value, Value)>);

impl Object for Variables {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let found = self.0.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone())
    }
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
    let system = message.role == "system";
    let mut content = content(message.content.as_ref(), system, format, files, media)?;
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
                let calls: Result<Vec<_>, _> = calls
                    .iter()
                    .map(|c| call(c, message.calls_in_order))
                    .collect();
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

/// The content in the form that the template wants. Of a system text, [`BILLING_HEADER`] is left out with its line.
fn content(
    content: Option<&Value>,
    system: bool,
    format: ContentFormat,
    files: &ModelFiles,
    media: &mut Vec<Media>,
) -> Result<Value, TokenError> {
    if let Some(text) = content.filter(|_| format == ContentFormat::String)
        && text
            .as_str()
            .is_some_and(|t| !system || !t.starts_with(BILLING_HEADER))
    {
        return Ok(text.clone());
    }
    let mut texts = Vec::new();
    let mut parts = Vec::new();
    let mut markers = Vec::new();
    let part_of = |name: &str| vec![("type", Value::from(name))];
    let mut push = |text: Value, parts: &mut Vec<Value>| {
        let header = text
            .as_str()
            .filter(|t| system && t.starts_with(BILLING_HEADER));
        let text = match header.map(|text| text.split_once('\n')) {
            None => text,
            Some(None | Some((_, ""))) => return,
            Some(Some((_, rest))) => Value::from(rest),
        };
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

/// A tool call with its arguments parsed; what is not JSON becomes an empty object. The members are in the order in which the engine's own
/// check of the request leaves them, those that the API does not name behind the others, unless they are in order already.
fn call(call: &Value, in_order: bool) -> Result<Value, TokenError> {
    let function = call.get_attr("function").unwrap_or_default();
    if function.kind() != ValueKind::Map {
        return Err(TokenError::Request("a tool call without `function`".into()));
    }
    let empty = || Value::from_pairs::<_, &str, Value>([]);
    let arguments = function.get_attr("arguments").unwrap_or_default();
    let whole = arguments.as_str().is_some()
        && ["id", "type"].iter().all(|name| is_text(call, name))
        && is_text(&function, "name");
    let arguments = match (arguments.as_str(), arguments.kind()) {
        (Some(text), _) => serde_json::from_str(text).unwrap_or_else(|_| empty()),
        (None, ValueKind::Map | ValueKind::Seq) => arguments,
        _ => empty(),
    };
    let function = replaced(&function, "arguments", arguments);
    let call = replaced(call, "function", function.clone());
    if !whole || in_order {
        return Ok(call);
    }
    let function = ordered(&function, &["arguments", "name"]);
    let call = replaced(&call, "function", function);
    Ok(ordered(&call, &["id", "function", "type"]))
}

fn is_text(map: &Value, name: &str) -> bool {
    map.get_attr(name)
        .is_ok_and(|value| value.as_str().is_some())
}

/// `map` with one member changed where it stands, or added at the end.
fn replaced(map: &Value, name: &str, value: Value) -> Value {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    let mut value = Some(value);
    for key in map.try_iter().into_iter().flatten() {
        let is_it = key.as_str() == Some(name);
        match value.take_if(|_| is_it) {
            Some(value) => pairs.push((key, value)),
            None => {
                let value = map.get_item(&key).unwrap_or_default();
                pairs.push((key, value));
            }
        }
    }
    pairs.extend(value.map(|value| (Value::from(name), value)));
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
