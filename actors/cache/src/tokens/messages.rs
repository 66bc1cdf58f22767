//! Anthropic's messages as the conversation that vLLM makes of them before its template sees it (as of vLLM 0.32).

use super::chat::{BILLING_HEADER, ChatBody, Message, member};
use super::{ModelFiles, TokenError};
use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;

/// What of a request enters its prompt.
#[derive(Deserialize)]
pub(super) struct Body {
    messages: Vec<Turn>,
    #[serde(default)]
    system: Option<Value>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    thinking: Option<Value>,
    #[serde(default)]
    output_config: Option<Value>,
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: Value,
}

/// The request as a conversation.
///
/// # Errors
/// [`TokenError::Unsupported`]: it has what vLLM's versions do not all know or not all treat alike.
pub(super) fn conversation(body: Body, files: &ModelFiles) -> Result<ChatBody, TokenError> {
    let inline = body.messages.iter().any(|turn| turn.role == "system");
    let merge = inline && files.probed.system_first(files)?;
    let mut system = match &body.system {
        Some(text) if text.as_str().is_some() => text.as_str().unwrap_or_default().to_owned(),
        Some(blocks) => system_text(blocks),
        None => String::new(),
    };
    let mut messages = Vec::with_capacity(body.messages.len() + 1);
    for turn in body.messages.iter().filter(|turn| turn.role == "system") {
        only_text(&turn.content)?;
        if merge {
            system.push_str(&system_text(&turn.content));
        }
    }
    if !system.is_empty() {
        messages.push(Message::said("system", system.into()));
    }
    for turn in &body.messages {
        if turn.role != "system" {
            speak(turn, &mut messages)?;
        } else if !merge {
            let text = system_text(&turn.content);
            if !text.is_empty() {
                messages.push(Message::said("system", text.into()));
            }
        }
    }
    let effort = body.output_config.map(|config| member(&config, "effort"));
    let effort = effort.filter(|effort| effort.as_str().is_some());
    let thinking = body.thinking.map(|thinking| member(&thinking, "type"));
    let disabled = thinking.is_some_and(|kind| kind.as_str() == Some("disabled"));
    let disabled = disabled.then(|| Value::from(files.probed.disabled_effort(files)));
    let tools = body.tools.map(|tools| tools.iter().map(tool).collect());
    Ok(ChatBody {
        messages,
        tools: tools.transpose()?,
        reasoning_effort: disabled.or(effort),
        chat_template_kwargs: body.chat_template_kwargs,
        ..ChatBody::default()
    })
}

/// A text that is one and has something in it.
fn text_of(block: &Value, name: &str) -> Option<Value> {
    let text = member(block, name);
    text.as_str().is_some_and(|t| !t.is_empty()).then_some(text)
}

fn is(block: &Value, kind: &str) -> bool {
    member(block, "type").as_str() == Some(kind)
}

/// The text blocks one after another, but for those that differ in each request.
fn system_text(content: &Value) -> String {
    let mut out = String::new();
    let mut add = |text: &str| {
        if !text.starts_with(BILLING_HEADER) {
            out.push_str(text);
        }
    };
    match content.as_str() {
        Some(text) => add(text),
        None => {
            let blocks = content.try_iter().into_iter().flatten();
            for text in blocks
                .filter(|b| is(b, "text"))
                .filter_map(|b| text_of(&b, "text"))
            {
                add(text.as_str().unwrap_or_default());
            }
        }
    }
    out
}

/// A system message in between may also change the tools, in vLLM's newest versions.
fn only_text(content: &Value) -> Result<(), TokenError> {
    let mut blocks = content.try_iter().into_iter().flatten();
    match content.kind() == ValueKind::Seq && blocks.any(|block| !is(&block, "text")) {
        true => Err(TokenError::Unsupported("a system message that is no text")),
        false => Ok(()),
    }
}

/// Appends what one turn says: results of tools first, each a message of its own.
fn speak(turn: &Turn, messages: &mut Vec<Message>) -> Result<(), TokenError> {
    let user = turn.role == "user";
    if turn.content.as_str().is_some() {
        messages.push(Message::said(&turn.role, turn.content.clone()));
        return Ok(());
    }
    let (mut parts, mut calls, mut reasoning) = (Vec::new(), Vec::new(), None::<String>);
    let blocks = turn
        .content
        .try_iter()
        .map_err(|e| TokenError::Request(e.to_string()))?;
    for block in blocks {
        let kind = member(&block, "type");
        match kind.as_str() {
            Some("text") => parts.extend(text_of(&block, "text").map(text_part)),
            Some("image") => parts.extend(picture(&block)),
            Some("thinking") => {
                let thought = member(&block, "thinking");
                if let Some(text) = thought.as_str() {
                    reasoning.get_or_insert_default().push_str(text);
                }
            }
            Some("tool_use") => calls.push(call(&block)?),
            Some("tool_result") if user => result(&block, messages)?,
            Some("tool_result") => {
                let content = member(&block, "content");
                let text = match content.as_str() {
                    Some(text) => text.to_owned(),
                    None if !content.is_true() => String::new(),
                    None => {
                        return Err(TokenError::Unsupported("a model's own result of a tool"));
                    }
                };
                parts.push(text_part(format!("Tool result: {text}").into()));
            }
            Some("redacted_thinking" | "tool_reference") => {}
            _ => return Err(TokenError::Unsupported("a content block of this type")),
        }
    }
    let content = match parts.as_slice() {
        [] => None,
        [only] if is(only, "text") => Some(member(only, "text")),
        _ => Some(parts.into_iter().collect()),
    };
    if !user || content.is_some() {
        messages.push(Message {
            content,
            tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
            reasoning: reasoning.map(Value::from),
            ..Message::of(&turn.role)
        });
    }
    Ok(())
}

fn text_part(text: Value) -> Value {
    Value::from_pairs([("type", Value::from("text")), ("text", text)])
}

/// A picture as a part that a chat would have it in, if the block has a source.
fn picture(block: &Value) -> Option<Value> {
    let source = member(block, "source");
    (source.kind() == ValueKind::Map).then(|| {
        let of = |name: &str| member(&source, name);
        let url = match of("type").as_str() {
            Some("url") => of("url"),
            _ => {
                let kind = of("media_type");
                let kind = kind.as_str().unwrap_or("image/jpeg");
                let data = of("data");
                Value::from(format!(
                    "data:{kind};base64,{}",
                    data.as_str().unwrap_or_default()
                ))
            }
        };
        let url = Value::from_pairs([("url", url)]);
        Value::from_pairs([("type", Value::from("image_url")), ("image_url", url)])
    })
}

fn call(block: &Value) -> Result<Value, TokenError> {
    let id = text_of(block, "id").ok_or(TokenError::Unsupported("a tool call without an id"))?;
    let name = member(block, "name");
    let input = Some(member(block, "input")).filter(Value::is_true);
    let input = input.unwrap_or_else(|| Value::from_pairs::<_, &str, Value>([]));
    let function = [
        ("arguments", input),
        ("name", Value::from(name.as_str().unwrap_or_default())),
    ];
    Ok(Value::from_pairs([
        ("id", id),
        ("function", Value::from_pairs(function)),
        ("type", Value::from("function")),
    ]))
}

/// What a tool gave back: its text as a message of the tool, its pictures as one of the user.
fn result(block: &Value, messages: &mut Vec<Message>) -> Result<(), TokenError> {
    let content = member(block, "content");
    let (mut text, mut pictures) = (String::new(), Vec::new());
    if let Some(whole) = content.as_str() {
        text.push_str(whole);
    } else if content.kind() == ValueKind::Seq {
        let mut texts = Vec::new();
        for item in content.try_iter().into_iter().flatten() {
            match member(&item, "type").as_str() {
                Some("text") => texts.push(member(&item, "text")),
                Some("image") => pictures.extend(picture(&item)),
                Some("tool_reference") => {
                    return Err(TokenError::Unsupported("references to tools"));
                }
                _ => {}
            }
        }
        let texts: Vec<&str> = texts
            .iter()
            .map(|t| t.as_str().unwrap_or_default())
            .collect();
        text = texts.join("\n");
    }
    let id = member(block, "tool_use_id");
    messages.push(Message {
        tool_call_id: Some(Value::from(id.as_str().unwrap_or_default())),
        ..Message::said("tool", text.into())
    });
    if !pictures.is_empty() {
        messages.push(Message::said("user", pictures.into_iter().collect()));
    }
    Ok(())
}

/// A tool as a chat would have it.
fn tool(tool: &Value) -> Result<Value, TokenError> {
    let schema = member(tool, "input_schema");
    if schema.kind() != ValueKind::Map {
        // One that Anthropic itself would run; vLLM refuses it.
        return Err(TokenError::Unsupported("a tool without a schema"));
    }
    let mut parameters: Vec<(Value, Value)> = Vec::new();
    for key in schema.try_iter().into_iter().flatten() {
        let value = schema.get_item(&key).unwrap_or_default();
        parameters.push((key, value));
    }
    if member(&schema, "type").is_undefined() {
        parameters.push(("type".into(), "object".into()));
    }
    let description = member(tool, "description");
    let mut function = vec![
        ("name", member(tool, "name")),
        (
            "description",
            match description.is_undefined() {
                true => Value::from(()),
                false => description,
            },
        ),
        ("parameters", Value::from_pairs(parameters)),
    ];
    for name in ["strict", "defer_loading"] {
        let value = member(tool, name);
        if value.kind() == ValueKind::Bool {
            function.push((name, value));
        }
    }
    Ok(Value::from_pairs([
        ("type", Value::from("function")),
        ("function", Value::from_pairs(function)),
    ]))
}
