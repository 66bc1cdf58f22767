//! The text that a request's tokens are made of, whatever its API; and prompts that are token ids already.

use super::chat::{self, ChatBody};
use super::{
    Media, ModelFiles, Origin, PromptTokens, Request, TokenError, made, messages, responses,
};
use quorate_routing::request::{Api, PromptKind};
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
        Api::Chat | Api::ChatRender => chat::render(read::<ChatBody>(request.body)?, files),
        Api::Messages => chat::render(messages::conversation(read(request.body)?, files)?, files),
        Api::Responses => chat::render(responses::conversation(read(request.body)?, files)?, files),
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
