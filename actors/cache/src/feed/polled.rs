//! Polls a TensorRT-LLM engine. Reading empties the engine's buffer, so that nobody else may poll it.

use super::actor::Target;
use super::sources::Engines;
use crate::events::trtllm::{Poller, RankEvents};
use bytes::Bytes;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two polls. Engines that wait for events before they answer are asked again as soon.
const PAUSE: Duration = Duration::from_millis(100);
/// The same after a failure.
const AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for an answer: an engine that has no events holds it back for some seconds.
const WITHIN: Duration = Duration::from_secs(15);
const PATH: &str = "/kv_cache_events";

/// What one poll gave.
pub type Polled = Result<Vec<RankEvents>, String>;

/// Polls until `tell` answers that nobody listens. The next poll waits for it, so that what is not taken stays in the engine.
pub(super) async fn poll<F>(
    target: Target,
    block_tokens: NonZeroU32,
    engines: Arc<dyn Engines>,
    tell: impl Fn(Polled) -> F,
) where
    F: Future<Output = bool>,
{
    let mut poller = Poller::new(block_tokens);
    loop {
        let answer = engines.post(&target, PATH, Bytes::new(), WITHIN).await;
        let polled = match answer {
            Ok(Some(body)) => poller.decode(&body).map_err(|error| error.to_string()),
            Ok(None) => Err(format!(
                "the engine has no {PATH}: it is no TensorRT-LLM server, or one without KV-cache events"
            )),
            Err(error) => Err(error),
        };
        let pause = if polled.is_ok() { PAUSE } else { AGAIN };
        if !tell(polled).await {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}
