//! What the writer thread needs of a store, and the in-memory one.

use std::{collections::BTreeMap, io};

/// A key and its new value; `None` deletes.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// An ordered map with atomic batches.
pub(crate) trait Backend: Send + 'static {
    /// Applies all changes or none. With `sync` they survive a power cut once this returns. After an error nothing may be
    /// assumed about what is stored; the caller must not write again.
    fn commit(&mut self, changes: Vec<Change>, sync: bool) -> io::Result<()>;

    /// Calls `visit` with every pair in key order, until it returns `false`.
    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()>;
}

/// Forgets everything with the process.
#[derive(Default)]
pub(crate) struct Memory {
    pairs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Backend for Memory {
    fn commit(&mut self, changes: Vec<Change>, _sync: bool) -> io::Result<()> {
        for (key, value) in changes {
            match value {
                Some(value) => self.pairs.insert(key, value),
                None => self.pairs.remove(&key),
            };
        }
        Ok(())
    }

    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        for (key, value) in &self.pairs {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
