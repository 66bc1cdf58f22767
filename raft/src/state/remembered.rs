//! The bounded table of idempotency keys and the answers that their commands got.

use std::{
    hash::{BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use imbl::{GenericHashMap, Vector, shared_ptr::DefaultSharedPtr};
use prost::Message as _;
use quorate_proto::{
    store::v1::command::Op,
    v1::{ApplyOutcome, Resource},
};
use xxhash_rust::xxh3::xxh3_64;

use super::reply::Reply;

/// Keys remembered at most.
pub(super) const MAX_KEYS: usize = 100_000;
/// Bytes of keys and answers remembered at most (encoded size): a flood of large settings must not fill the memory.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// What a key's command was answered the first time.
#[derive(Clone, Debug)]
pub(super) struct First {
    pub(super) key: Arc<str>,
    pub(super) digest: u64,
    pub(super) resource: Arc<Resource>,
    pub(super) outcome: ApplyOutcome,
    pub(super) index: u64,
    bytes: usize,
}

impl First {
    pub(super) fn reply(&self) -> Reply {
        Reply::Applied {
            resource: Arc::clone(&self.resource),
            outcome: self.outcome,
            index: self.index,
        }
    }
}

/// A hash map, as keys are random and many; its hasher has no seed, and nothing ever iterates over it.
type ByKey =
    GenericHashMap<Arc<str>, Arc<First>, BuildHasherDefault<DefaultHasher>, DefaultSharedPtr>;

/// Keys by name, and in the order in which the log brought them, which is the order in which they are forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    by_key: ByKey,
    order: Vector<Arc<First>>,
    bytes: usize,
}

impl Remembered {
    pub(super) fn get(&self, key: &str) -> Option<&First> {
        self.by_key.get(key).map(|first| &**first)
    }

    /// Remembers a new key and forgets the oldest beyond the bounds. False if the key was there: the table is of no use then.
    pub(super) fn insert(
        &mut self,
        key: &str,
        digest: u64,
        resource: Arc<Resource>,
        outcome: ApplyOutcome,
        index: u64,
    ) -> bool {
        let bytes = key.len() + resource.encoded_len();
        let first = Arc::new(First {
            key: Arc::from(key),
            digest,
            resource,
            outcome,
            index,
            bytes,
        });
        if self
            .by_key
            .insert(Arc::clone(&first.key), Arc::clone(&first))
            .is_some()
        {
            return false;
        }
        self.order.push_back(first);
        self.bytes += bytes;
        while self.order.len() > MAX_KEYS || (self.bytes > MAX_BYTES && self.order.len() > 1) {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.by_key.remove(&oldest.key);
            self.bytes -= oldest.bytes;
        }
        true
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &First> {
        self.order.iter().map(|first| &**first)
    }
}

/// A digest of what a command does. Who sent it and when are left out: a retry may come through another node, later.
pub(super) fn digest(op: &Op) -> u64 {
    let mut bytes = Vec::with_capacity(op.encoded_len());
    op.encode(&mut bytes);
    xxh3_64(&bytes)
}
