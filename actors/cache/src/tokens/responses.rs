//! The items of OpenAI's Responses as the conversation that vLLM makes of them before its template sees it (as of vLLM 0.32).

use super::chat::{ChatBody, Message, member};
use super::{ModelFiles, TokenError};
use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// What of a request enters its prompt.
#[derive(Deserialize)]
pub(super) struct Body {
    input: Value,
    #[serde(default)]
    instructions: Option<String>,
    #[serde(default)]
    previous_response_id: Option<IgnoredAny>,
    #[serde(default)]
    previous_input_messages: Option<IgnoredAny>,
    #[serde(default)]
    prompt: Option<IgnoredAny>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    reasoning: Option<Value>,
    #[serde(default)]
    truncation: Option<String>,
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    mm_processor_kwargs: Option<IgnoredAny>,
}

/// Tools that run at the engine's side; templates do not see them.
const HOSTED: [&str; 12] = [
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "file_search",
    "computer_use_preview",
    "code_interpreter",
    "image_generation",
    "mcp",
    "local_shell",
    "shell",
    "apply_patch",
];

/// The request as a conversation.
///
/// # Errors
/// [`TokenError::Unsupported`]: part of it lies at the engine, or it has what vLLM's versions do not all know or not all treat alike.
pub(super) fn conversation(body: Body, files: &ModelFiles) -> Result<ChatBody, TokenError> {
    if body.previous_response_id.is_some() || body.previous_input_messages.is_some() {
        return Err(TokenError::Unsupported(
            "a conversation that the engine keeps",
        ));
    }
    if body.prompt.is_some() || body.truncation.is_some_and(|how| how != "disabled") {
        return Err(TokenError::Unsupported("a stored or cut prompt"));
    }
    if !files.tokenizer.encode("", true)?.is_empty() {
        // Older versions leave these out behind a template, newer ones do not.
        return Err(TokenError::Unsupported(
            "Responses with a tokenizer that adds tokens of its own",
        ));
    }
    let mut messages = Vec::new();
    if let Some(instructions) = body.instructions.filter(|text| !text.is_empty()) {
        messages.push(Message::said("system", instructions.into()));
    }
    let mut continued = false;
    if body.input.as_str().is_some() {
        messages.push(Message::said("user", body.input));
    } else {
        // Assistant items are put together only among the request's own.
        let from = messages.len();
        let mut last = None;
        let items = body
            .input
            .try_iter()
            .map_err(|e| TokenError::Request(e.to_string()))?;
        for item in items {
            add(&item, from, &mut messages)?;
            last = Some(item);
        }
        continued = last.is_some_and(|item| is_unfinished(&item));
    }
    let tools = body.tools.filter(|tools| !tools.is_empty());
    let tools = tools.map(|tools| tools.iter().filter_map(|t| tool(t).transpose()).collect());
    let effort = body.reasoning.map(|reasoning| member(&reasoning, "effort"));
    Ok(ChatBody {
        messages,
        tools: tools.transpose()?,
        add_generation_prompt: Some(!continued),
        continue_final_message: Some(continued),
        reasoning_effort: effort.filter(|effort| effort.as_str().is_some()),
        chat_template_kwargs: body.chat_template_kwargs,
        mm_processor_kwargs: body.mm_processor_kwargs,
        ..ChatBody::default()
    })
}

/// The answer goes on with a message that is not finished.
fn is_unfinished(item: &Value) -> bool {
    let kind = member(item, "type");
    let status = member(item, "status");
    (kind.is_undefined() || matches!(kind.as_str(), Some("message" | "reasoning")))
        && matches!(status.as_str(), Some("in_progress" | "incomplete"))
}

/// The assistant's message at the end of the request's own, if it is one.
fn latest(from: usize, messages: &mut [Message]) -> Option<&mut Message> {
    let last = messages.get_mut(from..)?.last_mut()?;
    (last.role == "assistant").then_some(last)
}

/// Appends an item, or adds it to the assistant's message before it.
fn add(item: &Value, from: usize, messages: &mut Vec<Message>) -> Result<(), TokenError> {
    let of = |name: &str| member(item, name);
    let kind = of("type");
    let role = of("role");
    match (kind.as_str(), role.as_str()) {
        (Some("function_call" | "custom_tool_call"), _) => {
            let call = call(item, kind.as_str() == Some("custom_tool_call"))?;
            match latest(from, messages) {
                Some(before) => {
                    before.tool_calls.get_or_insert_default().push(call);
                    before.calls_in_order = true;
                }
                None => messages.push(Message {
                    tool_calls: Some(vec![call]),
                    calls_in_order: true,
                    ..Message::of("assistant")
                }),
            }
        }
        (Some("reasoning"), _) => {
            let thought = Value::from(reasoning(item)?);
            match latest(from, messages).filter(|before| before.reasoning.is_none()) {
                Some(before) => before.reasoning = Some(thought),
                None => messages.push(Message {
                    reasoning: Some(thought),
                    ..Message::of("assistant")
                }),
            }
        }
        (Some("function_call_output" | "custom_tool_call_output"), _) => {
            messages.push(Message {
                tool_call_id: Some(of("call_id")),
                ..Message::said("tool", of("output"))
            });
        }
        (None | Some("message"), Some("assistant")) => {
            let content = of("content");
            let text = match content.kind() {
                ValueKind::String => Some(content.clone()),
                ValueKind::Seq => first_text(&content)?,
                _ => None,
            };
            match (text, latest(from, messages)) {
                (Some(text), Some(before)) if before.content.is_none() => {
                    before.content = Some(text);
                }
                (Some(text), _) => messages.push(Message::said("assistant", text)),
                (None, _) => messages.push(Message::of("assistant")),
            }
        }
        (None | Some("message"), Some(role)) => messages.push(Message::said(role, of("content"))),
        _ => return Err(TokenError::Unsupported("an input item of this type")),
    }
    Ok(())
}

/// The text of the first part; that is all that vLLM takes of an assistant's message.
fn first_text(parts: &Value) -> Result<Option<Value>, TokenError> {
    let first = parts.try_iter().into_iter().flatten().next();
    let Some(first) = first else { return Ok(None) };
    let text = member(&first, "text");
    match text.as_str() {
        Some(_) => Ok(Some(text)),
        None => Err(TokenError::Unsupported(
            "an assistant's message that is no text",
        )),
    }
}

fn reasoning(item: &Value) -> Result<String, TokenError> {
    if member(item, "encrypted_content").is_true() {
        return Err(TokenError::Unsupported("reasoning that is encrypted"));
    }
    for name in ["content", "summary"] {
        let parts = member(item, name);
        let first = parts.try_iter().into_iter().flatten().next();
        if let Some(first) = first {
            let text = member(&first, "text");
            return Ok(text.as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(String::new())
}

fn call(item: &Value, custom: bool) -> Result<Value, TokenError> {
    let of = |name: &str| member(item, name);
    let name = of("name");
    let mut name = name.as_str().unwrap_or_default().to_owned();
    let arguments = if custom {
        let input = of("input");
        Value::from_pairs([("input", input.as_str().unwrap_or_default())])
    } else {
        if let Some(space) = of("namespace").as_str().filter(|space| !space.is_empty()) {
            name = format!("{space}__{name}");
        }
        of("arguments")
    };
    let id = of("call_id");
    if id.as_str().is_none() {
        return Err(TokenError::Unsupported("a tool call without an id"));
    }
    let function = [("name", Value::from(name)), ("arguments", arguments)];
    Ok(Value::from_pairs([
        ("id", id),
        ("function", Value::from_pairs(function)),
        ("type", Value::from("function")),
    ]))
}

/// A tool as a chat would have it; `None` for one that templates do not see.
fn tool(tool: &Value) -> Result<Option<Value>, TokenError> {
    let kind = member(tool, "type");
    match kind.as_str() {
        Some("function") => {}
        Some(kind) if HOSTED.contains(&kind) => return Ok(None),
        _ => return Err(TokenError::Unsupported("a tool of this type")),
    }
    let mut function = Vec::new();
    for name in ["name", "description", "parameters"] {
        let value = member(tool, name);
        let value = match value.is_undefined() {
            true => Value::from(()),
            false => value,
        };
        function.push((name, value));
    }
    for name in ["strict", "defer_loading"] {
        let value = member(tool, name);
        if value.kind() == ValueKind::Bool {
            function.push((name, value));
        }
    }
    Ok(Some(Value::from_pairs([
        ("type", Value::from("function")),
        ("function", Value::from_pairs(function)),
    ])))
}
