//! What plugins learn from this router's picks and other routers of the region should know too: which blocks an endpoint got,
//! where a session is bound, when an endpoint last took a cold prompt.
//!
//! The pick writes what is new into a bounded list beside what it changes anyway. Whoever carries it to other routers takes it
//! from there now and then ([`Learner::take`]), and gives the plugin what others learnt ([`Learner::learn`]). What does not
//! fit is lost and counted: a router that was not told knows less, never something wrong.

use crate::endpoint::Endpoint;
use std::sync::Arc;

/// What one plugin learnt about one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learnt {
    /// It has these blocks of prompts.
    Blocks {
        /// Tokens in a block. Hashes of blocks of another size mean nothing.
        block_tokens: u32,
        /// Hashes, those that it should forget first at the beginning.
        hashes: Vec<u64>,
    },
    /// One of its data-parallel ranks will soon have these blocks, because a request that has them was sent there.
    Expected {
        /// Which rank.
        rank: u32,
        /// Of the engine's process: another one begins without them.
        incarnation: u64,
        /// Keys of the prompt's blocks, the first one first.
        keys: Vec<u64>,
    },
    /// These sessions are bound to it.
    Sessions(Vec<SessionBinding>),
    /// It took a prompt that nobody had cached.
    Cold {
        /// So long ago, in milliseconds.
        ago_ms: u64,
    },
}

/// A session that is bound to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionBinding {
    /// Hash of its name.
    pub session: u64,
    /// When it was bound, the same on all routers and different for each endpoint: of two bindings the one with the larger stamp holds.
    pub stamp: u64,
    /// Time since its last use in milliseconds.
    pub idle_ms: u64,
}

impl Learnt {
    /// How much it is to tell, in words of eight bytes.
    pub fn words(&self) -> usize {
        match self {
            Self::Blocks { hashes, .. } => hashes.len(),
            Self::Expected { keys, .. } => keys.len() + 1,
            Self::Sessions(bindings) => bindings.len() * SESSION_WORDS,
            Self::Cold { .. } => 1,
        }
    }
}

/// A binding has three numbers.
pub(crate) const SESSION_WORDS: usize = 3;

/// What another router learnt could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLearnt {
    /// The routers cut prompts into blocks of different sizes.
    #[error("blocks of another size")]
    BlockSize,
    /// It is not what this plugin learns.
    #[error("not what this plugin learns")]
    Kind,
}

/// A plugin that learns from picks.
pub trait Learner: Send + Sync {
    /// Takes what was learnt of these endpoints and not taken yet, the newest first if it is more than `budget` words, and lowers
    /// the budget. The rest stays for the next time, as far as there is room.
    fn take(
        &self,
        endpoints: &[Arc<Endpoint>],
        budget: &mut usize,
        now: u64,
    ) -> Vec<(Arc<Endpoint>, Learnt)>;

    /// How much was lost for want of room since the last call: blocks, sessions.
    fn lost(&self) -> u64;

    /// Everything that is known of an endpoint, the newest `words` of it: for a router that has just started.
    fn copy(&self, endpoint: &Arc<Endpoint>, words: usize, now: u64) -> Option<Learnt>;

    /// Takes over what another router learnt. It is not told any further.
    ///
    /// # Errors
    /// [`NotLearnt`]; then nothing has changed.
    fn learn(&self, endpoint: &Arc<Endpoint>, learnt: &Learnt, now: u64) -> Result<(), NotLearnt>;
}

#[cfg(test)]
mod tests;
