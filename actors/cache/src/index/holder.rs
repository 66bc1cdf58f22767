//! Who holds blocks: the identities, and the small numbers that stand for them inside the index.

use super::digest::ElementMixer;
use crate::keys::KeySpace;
use std::collections::BTreeMap;

/// Most holders at a time.
pub const MAX_HOLDERS: usize = 4096;

/// One data-parallel rank of one endpoint. Each has a cache of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderKey {
    /// The endpoint's number, the same on all routers.
    pub endpoint: u64,
    /// The data-parallel rank, 0 where there is only one.
    pub rank: u32,
}

/// A holder in the table.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) incarnation: u64,
    pub(super) mixer: ElementMixer,
    /// Changes with each new tenant of the slot and with each incarnation: what was expected of the old one is not taken from a picker
    /// that has not heard yet.
    pub(super) stamp: u32,
    /// How its keys are made, as its owner said.
    pub(super) space: Option<KeySpace>,
}

/// The holders by slot, and the slots by key. Published as a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct HolderTable {
    /// By slot, for those who have no use for the rest; of a free slot it is what it was.
    pub(super) keys: Vec<HolderKey>,
    pub(super) slots: Vec<Option<Holder>>,
    pub(super) by_key: BTreeMap<HolderKey, u16>,
    stamps: u32,
}

impl HolderTable {
    /// The slot and entry of a key.
    pub(super) fn find(&self, key: HolderKey) -> Option<(u16, &Holder)> {
        let slot = *self.by_key.get(&key)?;
        self.slots
            .get(usize::from(slot))?
            .as_ref()
            .map(|h| (slot, h))
    }

    /// Gives the key a slot, or its slot a new incarnation. Nothing if all slots are taken.
    pub(super) fn enter(
        &mut self,
        key: HolderKey,
        incarnation: u64,
        space: Option<KeySpace>,
    ) -> Option<u16> {
        let slot = match self.by_key.get(&key) {
            Some(slot) => *slot,
            None if self.by_key.len() >= MAX_HOLDERS => return None,
            None => {
                let free = self
                    .slots
                    .iter()
                    .position(Option::is_none)
                    .unwrap_or(self.slots.len());
                if free == self.slots.len() {
                    self.slots.push(None);
                    self.keys.push(key);
                }
                free as u16
            }
        };
        // 0 is the stamp of a slot without a holder.
        self.stamps = self.stamps.wrapping_add(1).max(1);
        self.by_key.insert(key, slot);
        self.keys[usize::from(slot)] = key;
        self.slots[usize::from(slot)] = Some(Holder {
            incarnation,
            mixer: ElementMixer::new(key),
            stamp: self.stamps,
            space,
        });
        Some(slot)
    }

    /// Frees the key's slot.
    pub(super) fn leave(&mut self, key: HolderKey) {
        if let Some(slot) = self.by_key.remove(&key)
            && let Some(entry) = self.slots.get_mut(usize::from(slot))
        {
            *entry = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_with_another_stamp() {
        let mut table = HolderTable::default();
        let (a, b) = (
            HolderKey {
                endpoint: 1,
                rank: 0,
            },
            HolderKey {
                endpoint: 1,
                rank: 1,
            },
        );
        assert_eq!(
            (table.enter(a, 1, None), table.enter(b, 1, None)),
            (Some(0), Some(1))
        );
        let stamp = table.find(a).unwrap().1.stamp;
        table.leave(a);
        assert!(table.find(a).is_none());
        let c = HolderKey {
            endpoint: 2,
            rank: 0,
        };
        assert_eq!(table.enter(c, 1, None), Some(0));
        assert_ne!(table.find(c).unwrap().1.stamp, stamp);
        assert_eq!(table.enter(b, 2, None), Some(1));
        for endpoint in 10..10 + MAX_HOLDERS as u64 - 2 {
            assert!(
                table
                    .enter(HolderKey { endpoint, rank: 0 }, 1, None)
                    .is_some()
            );
        }
        assert_eq!(
            table.enter(
                HolderKey {
                    endpoint: 9,
                    rank: 0
                },
                1,
                None
            ),
            None
        );
    }
}
