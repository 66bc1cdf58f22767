//! Maps by block hash, which are not hashed again. The hashes begin with a secret of the process, so nobody outside can make them collide.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Takes a 64-bit hash as it is.
#[derive(Clone, Copy, Default)]
pub(super) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// By block hash.
pub(super) type ByHash<V> = HashMap<u64, V, BuildHasherDefault<AlreadyHashed>>;
