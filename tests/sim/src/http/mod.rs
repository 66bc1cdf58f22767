//! The HTTP surface: which path does what, with faults, limits and headers around all of them.

mod admin;
pub mod body;
mod embeddings;
pub mod error;
mod generate;
mod health;
mod hints;
mod input;
mod json;
mod kv_events;
mod models;
mod shapes;
mod tokenize;

use crate::fault::{CutAction, Faults, RequestFault};
use crate::instance::Conn;
use crate::live::Live;
use body::SimBody;
use bytes::Bytes;
use error::ApiError;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SIM_FAULT: HeaderName = HeaderName::from_static("x-sim-fault");
const RETURN_ERROR: HeaderName = HeaderName::from_static("x-return-error");

/// A request whose body has been read.
pub struct Call {
    /// The server.
    pub live: Arc<Live>,
    /// Its connection.
    pub conn: Arc<Conn>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Query string.
    pub query: String,
    /// Its body.
    pub body: Bytes,
    /// Its id: the client's, or a new one.
    pub id: String,
    /// What it suffers.
    pub fault: RequestFault,
}

/// What a path does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Chat,
    Completions,
    Responses,
    Messages,
    Embeddings,
    TokenGenerate,
    SglangGenerate,
    CountTokens,
    RenderChat,
    RenderCompletions,
    Tokenize,
    Detokenize,
    Models,
    Health,
    Version,
    Metrics,
    LoadLora,
    UnloadLora,
    Sleep,
    ResetPrefixCache,
    KvEventSources,
    KvCacheEvents,
    KvEvents,
    SetKvEvents,
    WakeUp,
    IsSleeping,
    ServerInfo,
    ModelInfo,
    TokenizerInfo,
    TokenizerFile(&'static str),
    Config,
    SetConfig,
    Fault,
    SetFault,
    Stats,
    Oracle,
    ResetOracle,
    Requests,
}

impl Action {
    /// Whether it makes the engine work: these suffer faults and random failures.
    fn generates(self) -> bool {
        use Action::*;
        matches!(
            self,
            Chat | Completions | Responses | Messages | Embeddings | TokenGenerate | SglangGenerate
        )
    }

    /// Whether it steers the simulator: these never suffer.
    fn steers(self) -> bool {
        matches!(
            self,
            Action::Config
                | Action::SetConfig
                | Action::Fault
                | Action::SetFault
                | Action::Stats
                | Action::Oracle
                | Action::ResetOracle
                | Action::Requests
                | Action::KvEvents
                | Action::SetKvEvents
        )
    }
}

/// The action of a path, for each method it takes.
fn route(path: &str, trtllm: bool) -> &'static [(Method, Action)] {
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    use Action::*;
    match path {
        "/v1/chat/completions" => &[(POST, Chat)],
        "/v1/completions" => &[(POST, Completions)],
        "/v1/responses" => &[(POST, Responses)],
        "/v1/messages" => &[(POST, Messages)],
        "/v1/messages/count_tokens" => &[(POST, CountTokens)],
        "/v1/embeddings" => &[(POST, Embeddings)],
        "/v1/chat/completions/render" => &[(POST, RenderChat)],
        "/v1/completions/render" => &[(POST, RenderCompletions)],
        "/inference/v1/generate" => &[(POST, TokenGenerate)],
        "/generate" => &[(POST, SglangGenerate)],
        "/v1/models" => &[(GET, Models)],
        "/tokenize" => &[(POST, Tokenize)],
        "/detokenize" => &[(POST, Detokenize)],
        "/health" | "/health/ready" => &[(GET, Health)],
        "/ping" => &[(GET, Health), (POST, Health)],
        "/version" => &[(GET, Version)],
        "/metrics" => &[(GET, Metrics)],
        "/prometheus/metrics" if trtllm => &[(GET, Metrics)],
        "/v1/load_lora_adapter" => &[(POST, LoadLora)],
        "/v1/unload_lora_adapter" => &[(POST, UnloadLora)],
        "/reset_prefix_cache" => &[(POST, ResetPrefixCache)],
        "/kv_event_sources" => &[(GET, KvEventSources)],
        "/kv_cache_events" => &[(POST, KvCacheEvents)],
        "/sim/kv-events" => &[(GET, KvEvents), (POST, SetKvEvents)],
        "/sleep" => &[(POST, Sleep)],
        "/wake_up" => &[(POST, WakeUp)],
        "/is_sleeping" => &[(GET, IsSleeping)],
        "/server_info" | "/get_server_info" => &[(GET, ServerInfo)],
        "/model_info" | "/get_model_info" => &[(GET, ModelInfo)],
        "/tokenizer_info" => &[(GET, TokenizerInfo)],
        "/sim/tokenizer/tokenizer.json" => &[(GET, TokenizerFile("tokenizer.json"))],
        "/sim/tokenizer/tokenizer_config.json" => &[(GET, TokenizerFile("tokenizer_config.json"))],
        "/sim/tokenizer/chat_template.jinja" => &[(GET, TokenizerFile("chat_template.jinja"))],
        "/sim/tokenizer/config.json" => &[(GET, TokenizerFile("config.json"))],
        "/admin/config" => &[(GET, Config), (POST, SetConfig)],
        "/sim/fault" => &[(GET, Fault), (POST, SetFault)],
        "/sim/stats" => &[(GET, Stats)],
        "/sim/oracle" => &[(GET, Oracle), (POST, ResetOracle)],
        "/sim/requests" => &[(GET, Requests)],
        _ => &[],
    }
}

/// Answers one request.
pub async fn handle(
    live: Arc<Live>,
    conn: Arc<Conn>,
    request: Request<Incoming>,
) -> Result<Response<SimBody>, Infallible> {
    let shared = live.shared.clone();
    let log = shared
        .config
        .log_http
        .then(|| format!("{} {}", request.method(), request.uri()));
    let given = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned);
    let id = given.unwrap_or_else(|| shared.request_id());
    let mut response = match dispatch(&live, conn, request, &id).await {
        Ok(response) => response,
        Err(error) => error_response(&error),
    };
    if response.status().as_u16() >= 400 {
        shared.stats.errors.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(line) = log {
        tracing::info!(status = response.status().as_u16(), "{line}");
    }
    let config = &shared.config;
    let headers = response.headers_mut();
    for (name, value) in &config.response_headers {
        headers.insert(name.clone(), value.clone());
    }
    if let Some(name) = &config.port_header {
        headers.insert(name.clone(), HeaderValue::from(shared.addr.port()));
    }
    if config.request_id_headers {
        headers.extend(HeaderValue::try_from(id).ok().map(|id| (REQUEST_ID, id)));
    }
    Ok(response)
}

async fn dispatch(
    live: &Arc<Live>,
    conn: Arc<Conn>,
    request: Request<Incoming>,
    id: &str,
) -> Result<Response<SimBody>, ApiError> {
    let (parts, incoming) = request.into_parts();
    let path = parts.uri.path();
    let trtllm = live.config().dialect == crate::config::Dialect::Trtllm;
    let routes = route(path, trtllm);
    if routes.is_empty() {
        live.shared.count_unknown(path);
        return Ok(respond(
            404,
            json_type(),
            br#"{"detail":"Not Found"}"#.to_vec(),
        ));
    }
    let Some((_, action)) = routes.iter().find(|(method, _)| *method == parts.method) else {
        return Ok(respond(
            405,
            json_type(),
            br#"{"detail":"Method Not Allowed"}"#.to_vec(),
        ));
    };
    let action = *action;
    if action.generates() {
        live.shared.stats.requests.fetch_add(1, Ordering::Relaxed);
    }
    let body = read_body(incoming, live.config().max_body).await?;
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let fault = if action.steers() {
        RequestFault::default()
    } else {
        draw_fault(live, &parts.headers, action)?
    };
    let call = Call {
        live: live.clone(),
        conn,
        headers: parts.headers,
        query,
        body,
        id: id.to_owned(),
        fault,
    };
    suffer(&call, action).await?;
    let limit = call.fault.slow_body;
    let response = perform(call, action).await?;
    Ok(match limit {
        Some(rate) => response.map(|body| body.slowed(rate)),
        None => response,
    })
}

fn draw_fault(live: &Live, headers: &HeaderMap, action: Action) -> Result<RequestFault, ApiError> {
    let own = match headers.get(&SIM_FAULT) {
        None => None,
        Some(value) => {
            let text = value
                .to_str()
                .map_err(|_| ApiError::bad("the x-sim-fault header is not text"))?;
            Some(
                Faults::parse(text)
                    .map_err(|error| ApiError::bad(format!("x-sim-fault: {error}")))?,
            )
        }
    };
    Ok(live.shared.draw_fault(own, action.generates()))
}

/// Everything that strikes before the request is looked at.
async fn suffer(call: &Call, action: Action) -> Result<(), ApiError> {
    let fault = &call.fault;
    if fault.hang {
        return std::future::pending().await;
    }
    if let Some(delay) = fault.slow_headers {
        tokio::time::sleep(delay).await;
    }
    if let Some(cut) = fault.cut.filter(|cut| cut.after == 0) {
        match cut.action {
            CutAction::Stall => {}
            CutAction::Close => call.conn.close(),
            CutAction::Reset => call.conn.reset(),
            CutAction::Crash => call.live.shared.crash_for(fault),
        }
        return std::future::pending().await;
    }
    if let Some(status) = fault.status {
        return Err(ApiError::new(
            status,
            format!("Simulated failure with status {status}."),
        ));
    }
    if !action.generates() {
        return Ok(());
    }
    if call.live.starting() {
        return Err(ApiError::new(503, "The model is still being loaded."));
    }
    if call.live.asleep.load(Ordering::Relaxed) {
        return Err(ApiError::new(503, "The engine is asleep."));
    }
    if let Some(value) = call.headers.get(&RETURN_ERROR) {
        let status = value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|status| (400..=599).contains(status));
        let status = status.ok_or_else(|| {
            ApiError::bad("the X-Return-Error header is not a status from 400 to 599")
        })?;
        return Err(ApiError::new(
            status,
            format!("Simulated failure with status {status}."),
        ));
    }
    match call.live.shared.draw_failure() {
        Some(kind) => Err(kind.error(call.live.config().display_name())),
        None => Ok(()),
    }
}

async fn perform(call: Call, action: Action) -> Result<Response<SimBody>, ApiError> {
    match action {
        Action::Chat => generate::chat(call).await,
        Action::Completions => generate::completions(call).await,
        Action::Responses => generate::responses(call).await,
        Action::Messages => generate::messages(call).await,
        Action::TokenGenerate => generate::tokens(call).await,
        Action::SglangGenerate => generate::sglang(call).await,
        Action::Embeddings => embeddings::embeddings(call).await,
        Action::CountTokens => tokenize::count_tokens(&call),
        Action::RenderChat => tokenize::render_chat(&call),
        Action::RenderCompletions => tokenize::render_completions(&call),
        Action::Tokenize => tokenize::tokenize(&call),
        Action::Detokenize => tokenize::detokenize(&call),
        Action::Models => Ok(models::list(&call)),
        Action::LoadLora => models::load_lora(&call),
        Action::UnloadLora => models::unload_lora(&call),
        Action::Health => Ok(health::health(&call)),
        Action::Version => Ok(health::version(&call)),
        Action::Metrics => Ok(health::metrics(&call)),
        Action::ResetPrefixCache => Ok(health::reset_prefix_cache(&call)),
        Action::KvEventSources => Ok(kv_events::sources(&call)),
        Action::KvCacheEvents => kv_events::poll(&call),
        Action::KvEvents => kv_events::show(&call),
        Action::SetKvEvents => kv_events::set(&call),
        Action::Sleep => Ok(health::sleep(&call)),
        Action::WakeUp => Ok(health::wake_up(&call)),
        Action::IsSleeping => Ok(health::is_sleeping(&call)),
        Action::ServerInfo => Ok(health::server_info(&call)),
        Action::ModelInfo => Ok(health::model_info(&call)),
        Action::TokenizerInfo => Ok(tokenize::info(&call)),
        Action::TokenizerFile(name) => Ok(tokenize::file(&call, name)),
        Action::Config => Ok(admin::config(&call)),
        Action::SetConfig => admin::set_config(&call),
        Action::Fault => Ok(admin::fault(&call)),
        Action::SetFault => admin::set_fault(&call),
        Action::Stats => Ok(admin::stats(&call)),
        Action::Oracle => Ok(admin::oracle(&call)),
        Action::ResetOracle => Ok(admin::reset_oracle(&call)),
        Action::Requests => Ok(admin::requests(&call)),
    }
}

async fn read_body(incoming: Incoming, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(incoming, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            413,
            format!("The request body is larger than {limit} bytes."),
        )),
        Err(error) => Err(ApiError::bad(format!(
            "The request body could not be read: {error}"
        ))),
    }
}

fn json_type() -> HeaderValue {
    HeaderValue::from_static("application/json")
}

fn respond(status: u16, content_type: HeaderValue, body: Vec<u8>) -> Response<SimBody> {
    let mut response = Response::new(SimBody::full(body));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn error_response(error: &ApiError) -> Response<SimBody> {
    respond(error.status, json_type(), error.body())
}

fn ok_json(value: &serde_json::Value) -> Response<SimBody> {
    respond(200, json_type(), value.to_string().into_bytes())
}
