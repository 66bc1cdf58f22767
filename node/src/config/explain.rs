//! `[explain]`: which requests leave a record, and how much is kept.

use quorate_routing::explain::RecorderOptions;
use serde::Deserialize;

/// `[explain]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExplainConfig {
    /// Records kept in memory; the oldest go first. 0: only those are made that somebody asks for.
    pub capacity: usize,
    /// Memory that they may take, in MiB.
    pub memory_mib: usize,
    /// Share of the requests that leave a record, 0 to 1.
    pub share: f64,
    /// At most this many requests of a second leave a record, whatever the share.
    pub max_per_second: u32,
    /// Largest file of recorded decisions, in MiB.
    pub max_file_mib: u64,
}

impl Default for ExplainConfig {
    fn default() -> Self {
        Self {
            capacity: 4096,
            memory_mib: 64,
            share: 1.0,
            max_per_second: 200,
            max_file_mib: 1024,
        }
    }
}

impl ExplainConfig {
    /// # Errors
    /// Names the key that is out of its range.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            (0.0..=1.0).contains(&self.share),
            "explain.share is {}: give a number from 0 to 1",
            self.share
        );
        anyhow::ensure!(
            self.capacity <= 1_000_000,
            "explain.capacity is {}: at most 1000000",
            self.capacity
        );
        anyhow::ensure!(
            self.memory_mib <= 65_536,
            "explain.memory_mib is {}: at most 65536",
            self.memory_mib
        );
        anyhow::ensure!(
            (1..=1 << 20).contains(&self.max_file_mib),
            "explain.max_file_mib is {}: give 1 to 1048576",
            self.max_file_mib
        );
        Ok(())
    }

    /// What the recorder is made with.
    pub fn recorder(&self) -> RecorderOptions {
        RecorderOptions {
            capacity: self.capacity,
            max_bytes: self.memory_mib << 20,
            share: if self.capacity > 0 { self.share } else { 0.0 },
            max_per_second: self.max_per_second,
        }
    }
}
