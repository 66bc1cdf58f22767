//! What is wrong with how an endpoint's cache is followed, by name.

use std::fmt;

/// The engine's hashes are not what its pool's settings make them.
pub const HASH_MISMATCH: &str = "KvEventsHashMismatch";
/// The engine's blocks are larger or smaller than its pool's settings say.
pub const BLOCK_SIZE_MISMATCH: &str = "KvEventsBlockSizeMismatch";
/// The engine draws the seed of its hashes at random.
pub const RANDOM_SEED: &str = "KvEventsRandomSeed";
/// The engine computed a prompt and announced none of its blocks.
pub const SILENT: &str = "KvEventsSilent";
/// The engine was to dial in and never did.
pub const NEVER_CAME: &str = "KvEventsNeverCame";
/// There is no stream of events from the engine.
pub const NO_STREAM: &str = "KvEventsNoStream";

/// One condition, while it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// One of the names of this module.
    pub name: &'static str,
    /// What it is and what to do, in a sentence.
    pub message: String,
}

impl Condition {
    pub(super) fn new(name: &'static str, message: impl Into<String>) -> Self {
        Self {
            name,
            message: message.into(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}
