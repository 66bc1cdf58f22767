//! Waiting for conditions.

use anyhow::bail;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// One look may take this long; a process that is paused or dead must not hang the test.
const LOOK: Duration = Duration::from_secs(5);

/// Looks again and again until `check` gives a value; its error says what it saw instead.
///
/// # Errors
/// Nothing within `within`: says what was waited for and what was seen last.
pub async fn until<T, E: Display>(
    what: &str,
    within: Duration,
    mut check: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let seen = match tokio::time::timeout(LOOK, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => format!("{seen:#}"),
            Err(_) => "no answer".into(),
        };
        if Instant::now() >= deadline {
            bail!(
                "waited {} s for {what}; seen last: {seen}",
                within.as_secs_f32()
            );
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}
