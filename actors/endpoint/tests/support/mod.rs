//! A fake engine and a fake cluster on loopback.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod cluster;
pub mod engine;

use std::future::Future;
use std::time::{Duration, Instant};

/// Generous: only a broken program takes that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition and returns how long it took.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited too long for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    begun.elapsed()
}

/// Waits for a future, with patience.
pub async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("waited too long for: {what}"))
}
