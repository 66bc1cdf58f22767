//! The block hashes that one endpoint probably has, in the order of their last use, at most as many as it has room for.

use super::hashed::ByHash;

const NONE: u32 = u32::MAX;

struct Node {
    hash: u64,
    newer: u32,
    older: u32,
}

/// See the module's documentation.
pub(super) struct Lru {
    places: ByHash<u32>,
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
}

impl Default for Lru {
    fn default() -> Self {
        Self {
            places: ByHash::default(),
            nodes: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }
}

/// What a use changed.
pub(super) struct Used {
    /// It was not there before.
    pub new: bool,
    /// This one had to go for it.
    pub evicted: Option<u64>,
}

impl Lru {
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.places.keys().copied()
    }

    /// Makes a hash the newest.
    pub fn touch(&mut self, hash: u64, capacity: usize) -> Used {
        if let Some(place) = self.places.get(&hash).copied() {
            if place != self.newest {
                self.unlink(place);
                self.link_newest(place);
            }
            return Used {
                new: false,
                evicted: None,
            };
        }
        let full = self.places.len() >= capacity || self.nodes.len() >= NONE as usize;
        let (place, evicted) = if full && self.oldest != NONE {
            let place = self.oldest;
            let evicted = self.nodes.get(place as usize).map(|node| node.hash);
            self.unlink(place);
            if let Some(evicted) = evicted {
                self.places.remove(&evicted);
            }
            if let Some(node) = self.nodes.get_mut(place as usize) {
                node.hash = hash;
            }
            (place, evicted)
        } else {
            self.nodes.push(Node {
                hash,
                newer: NONE,
                older: NONE,
            });
            (self.nodes.len() as u32 - 1, None)
        };
        self.link_newest(place);
        self.places.insert(hash, place);
        Used { new: true, evicted }
    }

    fn unlink(&mut self, place: u32) {
        let Some((newer, older)) = self.nodes.get(place as usize).map(|n| (n.newer, n.older))
        else {
            return;
        };
        match self.nodes.get_mut(newer as usize) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, place: u32) {
        let before = self.newest;
        if let Some(node) = self.nodes.get_mut(place as usize) {
            node.newer = NONE;
            node.older = before;
        }
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.newer = place,
            None => self.oldest = place,
        }
        self.newest = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// The same as a plain list in order of use.
        #[test]
        fn keeps_the_latest(touches in prop::collection::vec(0u64..12, 1..200), capacity in 1usize..8) {
            let mut lru = Lru::default();
            let mut model: VecDeque<u64> = VecDeque::new();
            for hash in touches {
                let used = lru.touch(hash, capacity);
                let known = model.iter().position(|h| *h == hash);
                prop_assert_eq!(used.new, known.is_none());
                match known {
                    Some(at) => { model.remove(at); }
                    None if model.len() == capacity => prop_assert_eq!(used.evicted, model.pop_back()),
                    None => prop_assert_eq!(used.evicted, None),
                }
                model.push_front(hash);
                let mut kept: Vec<u64> = lru.hashes().collect();
                kept.sort_unstable();
                let mut expected: Vec<u64> = model.iter().copied().collect();
                expected.sort_unstable();
                prop_assert_eq!(kept, expected);
            }
        }
    }
}
