//! Who owns what: rendezvous hashing of a name over the nodes that are alive. Pure; no node has to tell another.

use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The nodes that this node believes alive, itself included, with their regions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveNodes(BTreeMap<u64, Arc<str>>);

impl LiveNodes {
    /// Adds a node or changes its region.
    pub fn insert(&mut self, node_id: u64, region: Arc<str>) {
        self.0.insert(node_id, region);
    }

    /// Whether the node is alive.
    pub fn contains(&self, node_id: u64) -> bool {
        self.0.contains_key(&node_id)
    }

    /// Node ids with their regions, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Arc<str>)> {
        self.0.iter().map(|(id, region)| (*id, region))
    }

    /// How many are alive.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all; a running node always sees itself.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The node that owns an endpoint of `region`: one of the region's live nodes, or of all live nodes if it has none.
    pub fn endpoint_owner(&self, name: &str, region: &str) -> Option<u64> {
        let near = self.0.iter().filter(|(_, r)| r.as_ref() == region);
        rendezvous(name, near.map(|(id, _)| *id)).or_else(|| self.owner(name))
    }

    /// The node that owns something without a region, such as a pool's discovery.
    pub fn owner(&self, name: &str) -> Option<u64> {
        rendezvous(name, self.0.keys().copied())
    }
}

impl FromIterator<(u64, Arc<str>)> for LiveNodes {
    fn from_iter<T: IntoIterator<Item = (u64, Arc<str>)>>(nodes: T) -> Self {
        Self(nodes.into_iter().collect())
    }
}

/// Highest random weight: each node draws a number from (name, node), the largest wins. When a node comes or goes, only the
/// names that it wins or had won move.
fn rendezvous(name: &str, nodes: impl Iterator<Item = u64>) -> Option<u64> {
    nodes.max_by_key(|id| (xxh3_64_with_seed(name.as_bytes(), *id), *id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn live(nodes: &[(u64, &str)]) -> LiveNodes {
        nodes.iter().map(|(id, r)| (*id, Arc::from(*r))).collect()
    }

    #[test]
    fn the_region_owns_its_endpoints_as_long_as_it_has_nodes() {
        let both = live(&[(1, "a"), (2, "a"), (3, "b")]);
        for i in 0..200 {
            let name = format!("e{i}");
            assert!(matches!(both.endpoint_owner(&name, "a"), Some(1 | 2)));
            assert_eq!(both.endpoint_owner(&name, "b"), Some(3));
            assert_eq!(both.endpoint_owner(&name, "c"), both.owner(&name));
        }
        assert_eq!(LiveNodes::default().owner("e"), None);
    }

    #[test]
    fn names_spread_evenly() {
        let nodes = live(&[(1, "a"), (2, "a"), (3, "a"), (4, "a")]);
        let mut counts = BTreeMap::new();
        for i in 0..4000 {
            *counts.entry(nodes.owner(&format!("pool-{i}"))).or_insert(0) += 1;
        }
        assert!(
            counts.values().all(|n| (850..1150).contains(n)),
            "{counts:?}"
        );
    }

    proptest! {
        /// A node that leaves takes only its own names with it; one that joins takes names only for itself.
        #[test]
        fn movement_is_minimal(ids in prop::collection::btree_set(0u64..1000, 2..9), gone in any::<prop::sample::Index>()) {
            let all: Vec<u64> = ids.into_iter().collect();
            let gone = *gone.get(&all);
            let before: LiveNodes = all.iter().map(|id| (*id, Arc::from("r"))).collect();
            let after: LiveNodes =
                all.iter().filter(|id| **id != gone).map(|id| (*id, Arc::from("r"))).collect();
            for i in 0..100 {
                let name = format!("e{i}");
                let was = before.endpoint_owner(&name, "r");
                let is = after.endpoint_owner(&name, "r");
                prop_assert!(was == is || was == Some(gone));
                prop_assert_ne!(is, Some(gone));
            }
        }
    }
}
