//! Where an endpoint's engine publishes its events: what the pool's configuration says, or the engine itself.

use super::actor::Target;
use super::version::{self, Version};
use crate::link::{Address, EventSource, server_info, vllm_event_sources};
use bytes::Bytes;
use quorate_routing::cache::EventsFrom;
use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Pause before an engine is asked again, when it did not answer and when it did.
const AGAIN: Duration = Duration::from_secs(2);
const CHANGED: Duration = Duration::from_secs(30);
/// Pause before the name of a host that dials in is looked up again.
const LOOK_UP: Duration = Duration::from_secs(10);

/// The body of an engine's answer; `None`: it has no such page.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Option<Bytes>, String>> + Send + 'a>>;

/// Asks engines over HTTP.
pub trait Engines: Send + Sync + 'static {
    /// Gets a page of the endpoint's engine.
    fn get<'a>(&'a self, endpoint: &'a Target, path: &'a str) -> Asking<'a>;

    /// Posts JSON to a page of the endpoint's engine, which may take so long. By default engines have no page that takes any.
    fn post<'a>(
        &'a self,
        endpoint: &'a Target,
        path: &'a str,
        json: Bytes,
        within: Duration,
    ) -> Asking<'a> {
        let _ = (endpoint, path, json, within);
        Box::pin(async { Ok(None) })
    }
}

/// What is known of an endpoint's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its engine publishes here, one for each rank.
    Streams {
        /// Where.
        sources: Vec<EventSource>,
        /// Its version, if it matters and the engine says it.
        version: Option<Version>,
    },
    /// Its engine dials in.
    Dials {
        /// Where.
        at: Address,
        /// Addresses of its host.
        hosts: Vec<IpAddr>,
        /// As above.
        version: Option<Version>,
    },
    /// Its engine answers polls.
    Polled {
        /// Tokens in a block.
        block_tokens: NonZeroU32,
    },
}

/// Finds out where the engine publishes, and again from time to time, until `tell` answers that nobody wants to know.
pub(super) async fn ask(
    target: Target,
    engines: Arc<dyn Engines>,
    tell: impl Fn(Result<Found, String>) -> bool,
) {
    loop {
        let (found, pause) = match find(&target, engines.as_ref()).await {
            Ok(found) => found,
            Err(problem) => (Err(problem), AGAIN),
        };
        if !tell(found) {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

type Answer = (Result<Found, String>, Duration);

async fn find(target: &Target, engines: &dyn Engines) -> Result<Answer, String> {
    let needs = &target.needs;
    let mut sources = match &needs.events {
        EventsFrom::Off => Vec::new(),
        EventsFrom::Bind(_) => return dials(target, engines).await,
        EventsFrom::Poll => return Ok((polled(target), CHANGED)),
        EventsFrom::Port(port) => vec![at_port(target, *port, target.rank.unwrap_or(0))?],
        EventsFrom::Discover => discover(target, engines).await?,
    };
    for source in &mut sources {
        if source.topic.is_empty() {
            source.topic.clone_from(&needs.topic);
        }
        if let (None, Some(port)) = (&source.replay, needs.replay_port) {
            source.replay = Some(at_port(target, port, source.rank)?.events);
        }
    }
    let version = version_of(target, engines).await;
    let pause = if sources.is_empty() || version.is_err() {
        AGAIN
    } else {
        CHANGED
    };
    let version = version.ok().flatten();
    Ok((Ok(Found::Streams { sources, version }), pause))
}

/// The engine's version; an error: it does not answer now.
async fn version_of(target: &Target, engines: &dyn Engines) -> Result<Option<Version>, String> {
    if !version::matters(&target.needs) {
        return Ok(None);
    }
    let body = engines.get(target, "/version").await?;
    Ok(body.as_deref().and_then(Version::of_answer))
}

impl Target {
    /// Where its engine dials, if it does: ranks have ports of their own.
    ///
    /// # Errors
    /// There is no such address.
    pub(super) fn dials(&self) -> Result<Option<Address>, String> {
        let EventsFrom::Bind(address) = &self.needs.events else {
            return Ok(None);
        };
        let base = Address::parse(address).map_err(|error| error.to_string())?;
        let rank = self.rank.unwrap_or(0);
        let at = base.offset(rank);
        at.map(Some)
            .ok_or_else(|| format!("rank {rank} has no port behind {address}"))
    }
}

async fn dials(target: &Target, engines: &dyn Engines) -> Result<Answer, String> {
    let at = target.dials()?.ok_or("engines do not dial in")?;
    let host = (target.target.host.as_str(), target.target.port);
    let hosts = tokio::net::lookup_host(host)
        .await
        .map_err(|error| format!("{}: {error}", target.target.host))?;
    let hosts = hosts.map(|address| address.ip().to_canonical()).collect();
    let version = version_of(target, engines).await;
    let pause = if version.is_err() { AGAIN } else { LOOK_UP };
    let version = version.ok().flatten();
    Ok((Ok(Found::Dials { at, hosts, version }), pause))
}

fn polled(target: &Target) -> Result<Found, String> {
    if target.rank.is_some() {
        return Err(
            "a TensorRT-LLM engine is polled as a whole: reading its events empties its buffer, so declare it as one endpoint \
             without a data-parallel rank"
                .into(),
        );
    }
    let block_tokens = target.needs.block_tokens.and_then(NonZeroU32::new);
    block_tokens
        .map(|block_tokens| Found::Polled { block_tokens })
        .ok_or_else(|| {
            "the engine's events do not say how many tokens a block has, and its metrics did not say it yet; blockSize in the \
             pool's configuration does"
                .into()
        })
}

async fn discover(target: &Target, engines: &dyn Engines) -> Result<Vec<EventSource>, String> {
    if let Some(body) = engines.get(target, "/kv_event_sources").await? {
        return vllm_event_sources(&body, &target.target.host).map_err(|error| error.to_string());
    }
    match engines.get(target, "/server_info").await? {
        Some(body) => server_info(&body, &target.target.host).map_err(|error| error.to_string()),
        None => Err("the engine does not say where it publishes its KV-cache events: name the port (socketPort), or engineType: trtllm if it is TensorRT-LLM".into()),
    }
}

fn at_port(target: &Target, port: u16, rank: u32) -> Result<EventSource, String> {
    let base = Address::Tcp {
        host: target.target.host.clone(),
        port,
    };
    let events = base
        .offset(rank)
        .ok_or_else(|| format!("rank {rank} has no port behind {port}"))?;
    Ok(EventSource {
        rank,
        events,
        replay: None,
        topic: String::new(),
        block_size: None,
    })
}
