//! What vLLM finds out about a model's template by trying it, before it makes a conversation of an Anthropic request.

use super::chat::{self, ChatBody, Message};
use super::{ChatTemplate, ModelFiles, TokenError};
use minijinja::Value;
use std::sync::OnceLock;

/// Answers, once they were asked for.
#[derive(Debug, Default)]
pub(super) struct Probed {
    system_first: OnceLock<Result<bool, TokenError>>,
    disabled_effort: OnceLock<&'static str>,
}

/// The levels of `effort` that the API has.
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

impl Probed {
    /// A template refuses system messages other than the first: those in between are moved to the beginning.
    ///
    /// # Errors
    /// [`TokenError::Unsupported`]: vLLM tries it without the date, and whether the template does without it is not known.
    pub fn system_first(&self, files: &ModelFiles) -> Result<bool, TokenError> {
        let find = || {
            let templates = [files.template(false), files.template(true)];
            let mut first = templates.iter().all(Option::is_none);
            for template in templates.into_iter().flatten() {
                if template.uses_clock() {
                    return Err(TokenError::Unsupported(
                        "system messages in between, with this template",
                    ));
                }
                first |= refuses(template);
            }
            Ok(first)
        };
        self.system_first.get_or_init(find).clone()
    }

    /// The effort that stands for thinking switched off: `none`, or `low` where the template refuses or does not know that.
    pub fn disabled_effort(&self, files: &ModelFiles) -> &'static str {
        self.disabled_effort.get_or_init(|| {
            let with = |effort: &str| {
                let body = ChatBody {
                    messages: vec![Message {
                        content: Some("Hi".into()),
                        ..Message::of("user")
                    }],
                    reasoning_effort: Some(effort.into()),
                    ..ChatBody::default()
                };
                chat::render(body, files).ok().map(|prompt| prompt.text)
            };
            match with("none") {
                None => "low",
                none if EFFORTS.iter().any(|effort| with(effort) == none) => "low",
                Some(_) => "none",
            }
        })
    }
}

fn refuses(template: &ChatTemplate) -> bool {
    let message = |role: &str| Value::from_pairs([("role", role), ("content", "t")]);
    let messages: Value = ["system", "user", "system", "user"]
        .into_iter()
        .map(message)
        .collect();
    let variables = [
        ("messages", messages),
        ("add_generation_prompt", Value::from(false)),
    ];
    template.render(Value::from_pairs(variables)).is_err()
}
