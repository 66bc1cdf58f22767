//! Which of our keys an engine means by a hash that cannot be computed.

use std::collections::HashMap;

/// By the engine's hash.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<u64, Name>);

#[derive(Clone, Copy, Debug)]
struct Name {
    key: u64,
    /// The engine gave the hash to blocks of different prefixes (SGLang before 0.5.18): nothing can be said to follow it.
    ambiguous: bool,
}

impl Names {
    /// The key of a block, whatever else the hash means.
    pub(super) fn get(&self, hash: u64) -> Option<u64> {
        self.0.get(&hash).map(|name| name.key)
    }

    /// The key of the one block that the hash means.
    pub(super) fn certain(&self, hash: u64) -> Option<u64> {
        self.0
            .get(&hash)
            .filter(|name| !name.ambiguous)
            .map(|name| name.key)
    }

    /// The hash means this block. False if it means another one already.
    pub(super) fn learn(&mut self, hash: u64, key: u64) -> bool {
        let name = self.0.entry(hash).or_insert(Name {
            key,
            ambiguous: false,
        });
        name.ambiguous |= name.key != key;
        !name.ambiguous
    }

    pub(super) fn forget(&mut self, hash: u64) {
        self.0.remove(&hash);
    }

    pub(super) fn clear(&mut self) {
        self.0 = HashMap::new();
    }
}
