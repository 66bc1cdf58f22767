//! Where an endpoint's engine publishes its events: what the pool's configuration says, or the engine itself.

use super::actor::Target;
use crate::link::{Address, EventSource, server_info, vllm_event_sources};
use bytes::Bytes;
use quorate_routing::cache::EventsFrom;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Pause before an engine is asked again, when it did not answer and when it did.
const AGAIN: Duration = Duration::from_secs(2);
const CHANGED: Duration = Duration::from_secs(30);

/// The body of an engine's answer; `None`: it has no such page.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Option<Bytes>, String>> + Send + 'a>>;

/// Asks engines over HTTP.
pub trait Engines: Send + Sync + 'static {
    /// Gets a page of the endpoint's engine.
    fn get<'a>(&'a self, endpoint: &'a Target, path: &'a str) -> Asking<'a>;
}

/// Finds out where the engine publishes, and again from time to time, until `tell` answers that nobody wants to know.
pub(super) async fn ask(
    target: Target,
    engines: Arc<dyn Engines>,
    tell: impl Fn(Result<Vec<EventSource>, String>) -> bool,
) {
    loop {
        let found = find(&target, engines.as_ref()).await;
        let pause = match &found {
            Ok(found) if !found.is_empty() => CHANGED,
            _ => AGAIN,
        };
        if !tell(found) {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn find(target: &Target, engines: &dyn Engines) -> Result<Vec<EventSource>, String> {
    let needs = &target.needs;
    let mut found = match &needs.events {
        EventsFrom::Off => Vec::new(),
        EventsFrom::Bind(address) => {
            return Err(format!(
                "engines that dial in ({address}) are not followed yet"
            ));
        }
        EventsFrom::Port(port) => vec![at_port(target, *port, target.rank.unwrap_or(0))?],
        EventsFrom::Discover => discover(target, engines).await?,
    };
    for source in &mut found {
        if source.topic.is_empty() {
            source.topic.clone_from(&needs.topic);
        }
        if let (None, Some(port)) = (&source.replay, needs.replay_port) {
            source.replay = Some(at_port(target, port, source.rank)?.events);
        }
    }
    Ok(found)
}

async fn discover(target: &Target, engines: &dyn Engines) -> Result<Vec<EventSource>, String> {
    if let Some(body) = engines.get(target, "/kv_event_sources").await? {
        return vllm_event_sources(&body, &target.target.host).map_err(|error| error.to_string());
    }
    match engines.get(target, "/server_info").await? {
        Some(body) => server_info(&body, &target.target.host).map_err(|error| error.to_string()),
        None => Err("the engine does not say where it publishes its KV-cache events".into()),
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
