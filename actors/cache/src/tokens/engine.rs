//! Tokens from an engine: vLLM's render endpoints, or `/tokenize` where an engine has only that.

use super::{MediaSpan, Origin, PromptTokens, Request, TokenError, made};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::StatusCode;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quorate_routing::request::{Api, MediaKind};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

/// The largest answer: ten million tokens.
const MAX_ANSWER: usize = 64 << 20;
/// Connections kept open.
const MAX_IDLE: usize = 8;

/// The tokenizer of an engine.
#[derive(Debug)]
pub struct Engine {
    authority: String,
    timeout: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    /// It has no render endpoint.
    only_tokenize: AtomicBool,
}

#[derive(Deserialize)]
struct Rendered {
    #[serde(alias = "prompt_token_ids", alias = "tokens")]
    token_ids: Vec<u32>,
    #[serde(default)]
    features: Option<Features>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    One(Rendered),
    Many(Vec<Rendered>),
}

#[derive(Deserialize)]
struct Features {
    #[serde(default)]
    mm_hashes: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    mm_placeholders: BTreeMap<String, Vec<Range>>,
}

#[derive(Deserialize)]
struct Range {
    offset: usize,
    length: usize,
}

impl Engine {
    /// The engine at `authority` (`host:port`, plain HTTP). No request to it takes longer than `timeout`.
    pub fn new(authority: impl Into<String>, timeout: Duration) -> Self {
        Self {
            authority: authority.into(),
            timeout,
            idle: Mutex::default(),
            only_tokenize: AtomicBool::new(false),
        }
    }

    /// The tokens of a request.
    ///
    /// # Errors
    /// [`TokenError::Engine`]: it cannot be reached, refuses, or answers something else; [`TokenError::Timeout`];
    /// [`TokenError::Unsupported`] for an API that it has no such endpoint for.
    pub async fn tokens(&self, request: Request<'_>) -> Result<PromptTokens, TokenError> {
        let work = async {
            let (render, body) = match request.info.api {
                Api::Chat | Api::ChatRender => ("/v1/chat/completions/render", request.body),
                Api::Completions | Api::CompletionsRender => {
                    ("/v1/completions/render", request.body)
                }
                Api::Messages => ("/v1/messages/render", request.body),
                Api::Responses => ("/v1/responses/render", request.body),
                _ => return Err(TokenError::Unsupported("this API")),
            };
            let body = Bytes::copy_from_slice(body);
            if matches!(request.info.api, Api::Messages | Api::Responses) {
                // `/tokenize` does not take such a body.
                let (status, answer) = self.post(render, body).await?;
                return match status {
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                        Err(TokenError::Unsupported("this API, by this engine"))
                    }
                    _ => read(&request, status, &answer),
                };
            }
            if !self.only_tokenize.load(Ordering::Relaxed) {
                let (status, answer) = self.post(render, body.clone()).await?;
                if !matches!(
                    status,
                    StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
                ) {
                    return read(&request, status, &answer);
                }
                // Older engines have no such path; they also answer so to a model that is not there, so it is not for ever
                // unless the other path works.
                let (status, answer) = self.post("/tokenize", body).await?;
                let tokens = read(&request, status, &answer)?;
                self.only_tokenize.store(true, Ordering::Relaxed);
                return Ok(tokens);
            }
            let (status, answer) = self.post("/tokenize", body).await?;
            if status == StatusCode::NOT_FOUND {
                // Replaced by one that has it, perhaps.
                self.only_tokenize.store(false, Ordering::Relaxed);
            }
            read(&request, status, &answer)
        };
        match tokio::time::timeout(self.timeout, work).await {
            Ok(done) => done,
            Err(_) => Err(TokenError::Timeout),
        }
    }

    async fn post(&self, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), TokenError> {
        let failed = |e: &dyn std::fmt::Display| TokenError::Engine(e.to_string());
        let request = || {
            hyper::Request::post(path)
                .header("host", &self.authority)
                .header("content-type", "application/json")
                .body(Full::new(body.clone()))
        };
        let kept = {
            let mut idle = self.idle.lock();
            idle.retain(|sender| !sender.is_closed());
            idle.pop()
        };
        let mut sender = match kept {
            Some(sender) if sender.is_ready() => sender,
            _ => self.connect().await?,
        };
        let answer = match sender
            .send_request(request().map_err(|e| failed(&e))?)
            .await
        {
            Ok(answer) => answer,
            // A kept connection that the engine closed in between. Tokenizing twice does no harm.
            Err(_) => {
                sender = self.connect().await?;
                let request = request().map_err(|e| failed(&e))?;
                sender.send_request(request).await.map_err(|e| failed(&e))?
            }
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|e| failed(&e))?.to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
        Ok((status, body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, TokenError> {
        let failed = |e: &dyn std::fmt::Display| TokenError::Engine(e.to_string());
        let stream = TcpStream::connect(&self.authority)
            .await
            .map_err(|e| failed(&e))?;
        stream.set_nodelay(true).map_err(|e| failed(&e))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "tokens: connection to an engine ended");
            }
        });
        Ok(sender)
    }
}

fn read(
    request: &Request<'_>,
    status: StatusCode,
    answer: &[u8],
) -> Result<PromptTokens, TokenError> {
    if !status.is_success() {
        return Err(TokenError::Engine(format!("status {status}")));
    }
    let answer = serde_json::from_slice(answer).map_err(|e| TokenError::Engine(e.to_string()))?;
    let rendered = match answer {
        Answer::One(rendered) => rendered,
        Answer::Many(mut list) if list.len() == 1 => list.swap_remove(0),
        Answer::Many(_) => return Err(TokenError::Unsupported("several prompts in one request")),
    };
    let mut media = Vec::new();
    let len = rendered.token_ids.len();
    for (name, ranges) in rendered.features.iter().flat_map(|f| &f.mm_placeholders) {
        let kind = match name.as_str() {
            "image" => MediaKind::Image,
            "video" => MediaKind::Video,
            "audio" => MediaKind::Audio,
            _ => return Err(TokenError::Unsupported("media of this kind")),
        };
        let hashes = rendered
            .features
            .as_ref()
            .and_then(|f| f.mm_hashes.get(name));
        for (at, range) in ranges.iter().enumerate() {
            let hash = hashes.and_then(|hashes| hashes.get(at));
            let hash = hash.ok_or_else(|| TokenError::Engine("an item has no hash".into()))?;
            if range
                .offset
                .checked_add(range.length)
                .is_none_or(|end| end > len)
            {
                return Err(TokenError::Engine("an item lies behind the prompt".into()));
            }
            media.push(MediaSpan {
                kind,
                start: range.offset,
                len: range.length,
                identifier: hash.clone(),
            });
        }
    }
    media.sort_by_key(|span| span.start);
    Ok(PromptTokens {
        media,
        ..made(request, rendered.token_ids, Origin::Engine)
    })
}
