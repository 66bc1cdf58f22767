//! What changes in the KV cache, for those who follow it.

use super::naming::Identity;
use super::tiers::Medium;
use super::{Engine, Naming};
use std::sync::Arc;

/// One change. Consecutive blocks of a sequence make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockChange {
    /// Blocks can now be found.
    Stored {
        /// Their names.
        names: Vec<u64>,
        /// Name of the block before the first.
        parent: Option<u64>,
        /// Tokens of all.
        tokens: Vec<u32>,
        /// Whose they are.
        identity: Arc<Identity>,
        /// Where.
        medium: Medium,
    },
    /// A block cannot be found any more.
    Removed {
        /// Its name.
        name: u64,
        /// Where it was.
        medium: Medium,
    },
    /// Nothing can be found on the GPU any more. These could.
    Cleared(Vec<u64>),
}

impl<T> Engine<T> {
    /// The changes since the last call. None unless the engine records them.
    pub fn take_changes(&mut self) -> Vec<BlockChange> {
        let mut changes = self.pool.take_changes();
        // After the GPU's: what a lower tier tells of a block says less.
        self.tiers.take_changes(&mut changes);
        changes
    }

    /// Makes the full blocks among `computed` tokens findable.
    pub(super) fn seal_full(&mut self, slot: u32, computed: u32) {
        let Some(seq) = self.seqs.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let full = (computed / self.config.block_size) as usize;
        while seq.sealed < full {
            let at = seq.sealed;
            if let (Some(block), Some(hash)) = (seq.blocks.get(at), seq.hashes().get(at)) {
                let naming = seq.naming.as_ref();
                let name = naming.and_then(|naming| naming.name(at));
                let new = self.pool.seal(*block, *hash, name);
                if let (true, Some(naming)) = (new, naming) {
                    let record = |changes: &mut Vec<_>| stored(changes, naming, at, Medium::Gpu);
                    self.pool.record(record);
                }
                let end = (at as u32 + 1) * self.config.block_size;
                if end <= seq.prompt_tokens || self.config.offload_generated {
                    self.tiers.store(*hash, name, naming, at);
                }
            }
            seq.sealed += 1;
        }
    }
}

/// Writes down that block `at` can now be found on `medium`.
pub(super) fn stored(changes: &mut Vec<BlockChange>, naming: &Naming, at: usize, on: Medium) {
    let Some(name) = naming.name(at) else {
        return;
    };
    let parent = at.checked_sub(1).and_then(|before| naming.name(before));
    if let Some(BlockChange::Stored {
        names,
        tokens,
        identity,
        medium,
        ..
    }) = changes.last_mut()
        && parent.is_some()
        && names.last().copied() == parent
        && *medium == on
        && Arc::ptr_eq(identity, naming.identity())
    {
        names.push(name);
        tokens.extend(naming.tokens(at));
        return;
    }
    changes.push(BlockChange::Stored {
        names: vec![name],
        parent,
        tokens: naming.tokens(at).to_vec(),
        identity: naming.identity().clone(),
        medium: on,
    });
}
