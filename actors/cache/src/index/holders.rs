//! The holders of one moment, for whoever keeps something worked out from them.

use super::CacheIndex;
use super::holder::{HolderKey, HolderTable};
use crate::keys::KeySpace;
use std::sync::Arc;

/// Who holds blocks, and how their blocks are named. Does not change: see [`Holders::are_those_of`].
#[derive(Clone, Debug, Default)]
pub struct Holders(Arc<HolderTable>);

impl Holders {
    /// Nothing has changed since: no holder came, left, or began anew.
    #[must_use]
    pub fn are_those_of(&self, index: &CacheIndex) -> bool {
        Arc::ptr_eq(&self.0, &index.contents.load().holders.load())
    }

    /// All of them in order, with their key spaces as far as they are known.
    pub fn iter(&self) -> impl Iterator<Item = (HolderKey, Option<&KeySpace>)> {
        self.0.by_key.keys().map(|key| {
            let space = self.0.find(*key).and_then(|(_, h)| h.space.as_ref());
            (*key, space)
        })
    }
}

impl CacheIndex {
    /// The holders as of now.
    #[must_use]
    pub fn holders_now(&self) -> Holders {
        Holders(self.contents.load().holders.load_full())
    }
}
