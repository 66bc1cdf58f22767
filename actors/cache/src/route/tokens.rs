//! `token-producer`: from where a pool's requests get their tokens, before the pick.
//!
//! Prompts that are token ids need nobody. Else the model's own files are used where `local` says where they are, and where those cannot
//! do it (an item that is no text, a template of the request's own) or none are given, an engine: the one at a URL, or the pool's
//! endpoints in turn. A request that gets no tokens in time goes on without.

use super::local::{Files, LocalModel};
use crate::tokens::{Engine, Estimate, FileServer, Models, Request, Source, TokenError};
use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::Mutex;
use quorate_routing::config::Fields;
use quorate_routing::config::registry::{Build, Built};
use quorate_routing::request::PromptKind;
use quorate_routing::tokens::{
    PromptTokens, TokenRequest, TokenSource, Tokenizing, TokenizingOrWhy,
};
use quorate_routing::{Endpoint, Target, now_ms};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// So many slow failures one after another, and engines are not asked for a while (ms).
const FAILURES: u32 = 3;
const PAUSE_MS: u64 = 1_000;
/// A failure that came quicker than this has held up nobody.
const SLOW: Duration = Duration::from_millis(50);
/// Endpoints that are asked for the same request at most.
const TRIES: usize = 2;
/// Clients of endpoints' tokenizers that are kept.
const MOST_CLIENTS: usize = 4096;

/// How long a request may wait for its tokens.
#[derive(Clone, Copy, Debug)]
struct Budget {
    text: Duration,
    media: Duration,
}

/// Engines that tokenize.
enum Remote {
    /// This one.
    One(Engine),
    /// Those of the pool, in turn.
    Pool {
        clients: Mutex<HashMap<String, Arc<Engine>>>,
        turn: AtomicUsize,
        limit: Duration,
    },
}

impl Remote {
    async fn tokens(
        &self,
        request: Request<'_>,
        endpoints: &[Arc<Endpoint>],
    ) -> Result<PromptTokens, TokenError> {
        let (clients, turn, limit) = match self {
            Self::One(engine) => return engine.tokens(request).await,
            Self::Pool {
                clients,
                turn,
                limit,
            } => (clients, turn, *limit),
        };
        let from = turn.fetch_add(1, Relaxed) % endpoints.len().max(1);
        let (before, after) = endpoints.split_at(from.min(endpoints.len()));
        let now = now_ms();
        let asked = after
            .iter()
            .chain(before)
            .filter(|e| e.tier(now) == Some(0) && !e.spec().target.tls)
            .take(TRIES);
        let mut last = TokenError::Unsupported("a pool without an endpoint that could be asked");
        for endpoint in asked {
            let engine = client(clients, &endpoint.spec().target, limit);
            match engine.tokens(request).await {
                Ok(tokens) => return Ok(tokens),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn client(
    clients: &Mutex<HashMap<String, Arc<Engine>>>,
    target: &Target,
    limit: Duration,
) -> Arc<Engine> {
    let mut clients = clients.lock();
    if let Some(known) = clients.get(&target.authority) {
        return Arc::clone(known);
    }
    if clients.len() >= MOST_CLIENTS {
        clients.clear();
    }
    let added = Arc::new(Engine::new(target.authority.clone(), limit));
    clients.insert(target.authority.clone(), Arc::clone(&added));
    added
}

struct Counts {
    given: Counter,
    local: Counter,
    engine: Counter,
    failed: Counter,
    timeout: Counter,
    paused: Counter,
    seconds: Histogram,
}

impl Counts {
    fn new() -> Self {
        let of = |result: &'static str| counter!("quorate_tokens_total", "result" => result);
        Self {
            given: of("given"),
            local: of("local"),
            engine: of("engine"),
            failed: of("failed"),
            timeout: of("timeout"),
            paused: of("paused"),
            seconds: histogram!("quorate_tokens_seconds"),
        }
    }
}

/// See the module's documentation.
pub struct PoolTokens {
    local: Option<Arc<LocalModel>>,
    remote: Option<Remote>,
    budget: Budget,
    failures: AtomicU32,
    paused_until: AtomicU64,
    counts: Counts,
}

impl PoolTokens {
    async fn make(
        &self,
        request: Request<'_>,
        endpoints: &[Arc<Endpoint>],
    ) -> Result<PromptTokens, TokenError> {
        if let Some(local) = self.local.as_ref().and_then(|local| local.get(endpoints)) {
            match local.tokens(request).await {
                Ok(tokens) => {
                    self.counts.local.increment(1);
                    return Ok(tokens);
                }
                // What the client got wrong is wrong for an engine as well.
                Err(error @ TokenError::Request(_)) => return Err(error),
                Err(error) if self.remote.is_none() => return Err(error),
                Err(error) => tracing::debug!(%error, "tokens: asking an engine"),
            }
        }
        let Some(remote) = &self.remote else {
            return Err(TokenError::Unsupported("no tokenizer is there yet"));
        };
        if now_ms() < self.paused_until.load(Relaxed) {
            self.counts.paused.increment(1);
            return Err(TokenError::Engine("not asked: it failed just now".into()));
        }
        let tokens = remote.tokens(request, endpoints).await?;
        self.counts.engine.increment(1);
        self.failures.store(0, Relaxed);
        Ok(tokens)
    }

    /// A failure that took long is one that others should be spared.
    fn failed(&self, error: &TokenError, took: Duration) {
        match error {
            TokenError::Timeout => self.counts.timeout.increment(1),
            _ => self.counts.failed.increment(1),
        }
        tracing::debug!(%error, "tokens: none");
        let engine = matches!(error, TokenError::Timeout | TokenError::Engine(_));
        if engine && took >= SLOW && self.failures.fetch_add(1, Relaxed) + 1 >= FAILURES {
            self.paused_until.store(now_ms() + PAUSE_MS, Relaxed);
        }
    }

    async fn within_budget(
        &self,
        request: Request<'_>,
        endpoints: &[Arc<Endpoint>],
    ) -> Option<PromptTokens> {
        let prompt = &request.info.prompt;
        match prompt.kind {
            PromptKind::None => return None,
            PromptKind::TokenIds | PromptKind::PackedTokenIds => {
                self.counts.given.increment(1);
                return Source::Estimate(Estimate).tokens(request).await.ok();
            }
            PromptKind::Json | PromptKind::Text => {}
        }
        if self.local.is_none() && self.remote.is_none() {
            return None;
        }
        let begun = Instant::now();
        let budget = match prompt.media(request.body).is_empty() {
            true => self.budget.text,
            false => self.budget.media,
        };
        let made = timeout(budget, self.make(request, endpoints)).await;
        let took = begun.elapsed();
        self.counts.seconds.record(took);
        match made.unwrap_or(Err(TokenError::Timeout)) {
            Ok(tokens) => Some(tokens),
            Err(error) => {
                self.failed(&error, took);
                None
            }
        }
    }
}

impl TokenSource for PoolTokens {
    fn prepare(&self) {
        if let Some(local) = &self.local {
            local.get(&[]);
        }
    }

    fn tokens<'a>(
        &'a self,
        request: TokenRequest<'a>,
        endpoints: &'a [Arc<Endpoint>],
    ) -> Tokenizing<'a> {
        Box::pin(self.within_budget(request, endpoints))
    }

    fn tokens_or_why<'a>(
        &'a self,
        request: TokenRequest<'a>,
        endpoints: &'a [Arc<Endpoint>],
    ) -> TokenizingOrWhy<'a> {
        Box::pin(async move {
            let made = match request.info.prompt.kind {
                PromptKind::None => return Err("the request has no prompt".to_owned()),
                PromptKind::TokenIds | PromptKind::PackedTokenIds => {
                    Source::Estimate(Estimate).tokens(request).await
                }
                PromptKind::Json | PromptKind::Text => self.make(request, endpoints).await,
            };
            made.map_err(|error| error.to_string())
        })
    }
}

/// `local`: where the model's files are.
fn files(fields: &mut Fields<'_>) -> Option<Files> {
    let Some(url) = fields.text("url") else {
        let directory = fields.required_text("directory");
        return Some(Files::Directory(directory.into()));
    };
    if fields.text("directory").is_some() {
        fields.error("url", "excludes `directory`");
    }
    match FileServer::parse(&url) {
        Ok(server) => Some(Files::Served(server)),
        Err(problem) => {
            fields.error("url", problem);
            None
        }
    }
}

/// `timeout` and `mmTimeout`.
fn budget(fields: &mut Fields<'_>, text: Duration, media: Duration) -> Budget {
    let mut positive = |key, default| {
        let duration = fields.duration(key).unwrap_or(default);
        if duration.is_zero() {
            fields.error(key, "must be more than 0");
        }
        duration
    };
    Budget {
        text: positive("timeout", text),
        media: positive("mmTimeout", media),
    }
}

pub(super) fn build(fields: &mut Fields<'_>, build: &mut Build<'_>, models: &Arc<Models>) -> Built {
    const OWN: &str = "the engine is asked for the request's own model: not needed";
    if fields.text("modelName").is_some() {
        fields.warn("modelName", OWN);
    }
    for key in ["udsTokenizerConfig", "tokenizersPoolConfig"] {
        if fields.raw(key).is_some() {
            fields.warn(key, "has no meaning here: give `local` or `vllm`");
        }
    }
    let estimate = fields.has("estimate");
    fields.object("estimate", |fields| {
        for key in ["image", "video"] {
            if fields.raw(key).is_some() {
                fields.warn(key, "is not read: what is no text counts by its length");
            }
        }
    });
    let second = Duration::from_secs(1);
    let files = fields.object_if("local", files);
    let url = fields.object_if("vllm", |fields| {
        let url = fields.text("url");
        let url = url.as_deref().unwrap_or("http://localhost:8000");
        let target = match Target::parse(url) {
            Ok(target) if !target.tls => Some(target),
            Ok(_) => {
                fields.error("url", "must begin with http://");
                None
            }
            Err(error) => {
                fields.error("url", error.to_string());
                None
            }
        };
        (target, budget(fields, 5 * second, 30 * second))
    });
    let pool = fields.object_if("endpoints", |fields| budget(fields, second, 10 * second));
    if url.is_some() && pool.is_some() {
        fields.error("endpoints", "excludes `vllm`");
    }
    let wanted = build.wants_tokens();
    if estimate && wanted && url.is_none() && pool.is_none() && files.is_none() {
        fields.warn(
            "estimate",
            "estimates never equal an engine's tokens: nothing of a prompt will be found in a cache",
        );
    }
    let none = url.is_none() && files.is_none() && !estimate;
    let pool = pool.or((none && wanted).then_some(Budget {
        text: second,
        media: 10 * second,
    }));
    let (remote, budget) = match (url, pool) {
        (Some((target, budget)), _) => {
            let engine = target.map(|t| Remote::One(Engine::new(t.authority, budget.media)));
            (engine, budget)
        }
        (None, Some(budget)) => {
            let pool = Remote::Pool {
                clients: Mutex::default(),
                turn: AtomicUsize::new(0),
                limit: budget.media,
            };
            (Some(pool), budget)
        }
        (None, None) => {
            let media = 10 * second;
            (
                None,
                Budget {
                    text: second,
                    media,
                },
            )
        }
    };
    // Without exact tokens to make, only prompts that are token ids have any.
    if remote.is_none() && files.is_none() && !wanted {
        return Built::default();
    }
    let local = files
        .flatten()
        .map(|files| LocalModel::new(files, Arc::clone(models)));
    Built {
        token_source: Some(Arc::new(PoolTokens {
            local,
            remote,
            budget,
            failures: AtomicU32::new(0),
            paused_until: AtomicU64::new(0),
            counts: Counts::new(),
        })),
        ..Built::default()
    }
}
