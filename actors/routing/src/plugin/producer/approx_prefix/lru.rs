//! The block hashes that one endpoint probably has, in the order of their last use, at most as many as it has room for. Which place a hash
//! has is kept by whoever asks.

const NONE: u32 = u32::MAX;
/// No tick.
const NEVER: u32 = u32::MAX;

struct Node {
    hash: u64,
    /// When other routers last heard of it, in ticks.
    told_at: u32,
    /// When this router last used it, in ticks.
    used_at: u32,
    newer: u32,
    older: u32,
}

/// See the module's documentation.
pub(super) struct Lru {
    nodes: Vec<Node>,
    newest: u32,
    oldest: u32,
    /// The last hash that was added was one too many.
    full: bool,
}

impl Default for Lru {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            newest: NONE,
            oldest: NONE,
            full: false,
        }
    }
}

/// Other routers hear of a block again when it is used and they heard of it so many ticks ago, so that they do not forget what is
/// used here alone.
const TELL_AGAIN: u32 = 60;
/// In a full list it is this part of the time that an unused block stays there: theirs is as full as this one.
const PART_OF_STAY: u32 = 4;

/// Milliseconds to ticks of about a second.
fn ticks(now: u64) -> u32 {
    (now >> 10) as u32
}

/// What a use changed.
pub(super) struct Used {
    /// Other routers have not heard of it, or long ago. From now on they count as told.
    pub untold: bool,
    /// It was used in this tick before, and has kept its place.
    pub lately: bool,
}

impl Lru {
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.nodes.iter().map(|node| node.hash)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Some of them, by place, with when they were last told: to be read piece by piece.
    pub fn piece(&self, from: usize, most: usize) -> impl Iterator<Item = (u32, u64)> {
        let piece = self.nodes.iter().skip(from).take(most);
        piece.map(|node| (node.told_at, node.hash))
    }

    /// Makes the hash at a place the newest, to about a second: a second use within a tick changes nothing. `heard`: another router said
    /// so, and has told the others.
    pub fn touch(&mut self, place: u32, now: u64, heard: bool) -> Used {
        let now = ticks(now);
        let (mut untold, mut lately) = (false, false);
        let again = self.tell_again(now);
        if let Some(node) = self.nodes.get_mut(place as usize) {
            if heard || now.saturating_sub(node.told_at) >= again {
                node.told_at = now;
                untold = !heard;
            }
            if !heard {
                lately = node.used_at == now;
                node.used_at = now;
            }
        }
        if place != self.newest && !lately {
            self.unlink(place);
            self.link_newest(place);
        }
        Used { untold, lately }
    }

    /// After how many ticks others are told again.
    fn tell_again(&self, now: u32) -> u32 {
        match self.nodes.get(self.oldest as usize) {
            Some(oldest) if self.full => {
                let used = if oldest.used_at == NEVER {
                    0
                } else {
                    oldest.used_at
                };
                let stay = now.saturating_sub(used.max(oldest.told_at));
                (stay / PART_OF_STAY).clamp(1, TELL_AGAIN)
            }
            _ => TELL_AGAIN,
        }
    }

    /// Adds a hash that is not there, as the newest; it counts as told. Answers its place, and which hash had to go for it.
    pub fn add(&mut self, hash: u64, capacity: usize, now: u64, heard: bool) -> (u32, Option<u64>) {
        let now = ticks(now);
        let node = Node {
            hash,
            told_at: now,
            used_at: if heard { NEVER } else { now },
            newer: NONE,
            older: NONE,
        };
        self.full = self.nodes.len() >= capacity.min(NONE as usize);
        let (place, evicted) = if self.full && self.oldest != NONE {
            let place = self.oldest;
            self.unlink(place);
            let old = self.nodes.get_mut(place as usize);
            (place, old.map(|old| std::mem::replace(old, node).hash))
        } else {
            self.nodes.push(node);
            (self.nodes.len() as u32 - 1, None)
        };
        self.link_newest(place);
        (place, evicted)
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
    use std::collections::{HashMap, VecDeque};

    proptest! {
        /// The same as a plain list in order of use.
        #[test]
        fn keeps_the_latest(touches in prop::collection::vec(0u64..12, 1..200), capacity in 1usize..8) {
            let mut lru = Lru::default();
            let mut model: VecDeque<u64> = VecDeque::new();
            let mut places = HashMap::new();
            for (now, hash) in touches.into_iter().enumerate() {
                // Each in another tick.
                let now = now as u64 * 2_000;
                match model.iter().position(|h| *h == hash) {
                    Some(at) => {
                        model.remove(at);
                        lru.touch(places[&hash], now, false);
                    }
                    None => {
                        let gone = if model.len() == capacity { model.pop_back() } else { None };
                        let (place, evicted) = lru.add(hash, capacity, now, false);
                        prop_assert_eq!(evicted, gone);
                        places.insert(hash, place);
                    }
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
