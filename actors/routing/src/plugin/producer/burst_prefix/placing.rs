//! Where the requests of one window go.
//!
//! Requests with the same blocks are a unit; one that is alone is a unit only if it shares `min_colocate` leading blocks with another
//! request of the window (0: never). Units of several requests are placed first, and of each kind the longest first. A
//! unit's first place is the replica that has the longest common prefix of units placed before, of at least `min_colocate` blocks, as
//! long as that replica has less than its fair share, ceil(all / replicas); else the one with the least of the window. What is more
//! than `max_per_replica` goes on to the next with the least. Equals: fewer running requests, then the name.

use std::collections::HashMap;

/// How to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Requests of one unit on one replica.
    pub max_per_replica: usize,
    /// Leading blocks that different prompts must share to be placed together; 0: they never are.
    pub min_colocate: usize,
    /// What is to be equal over the replicas.
    pub balance: Balance,
}

/// What a request weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Balance {
    /// One.
    Requests,
    /// Its prompt, in blocks.
    Blocks,
}

/// Where a request can go.
#[derive(Clone, Debug)]
pub(super) struct Replica<'a> {
    pub name: &'a str,
    /// Requests that it runs.
    pub running: u32,
}

/// Requests that go together, as indexes.
struct Unit<'a> {
    members: Vec<usize>,
    blocks: &'a [u64],
}

/// The replica of each request, where it has one. Requests are chains of block hashes: equal hashes mean equal prefixes.
pub(super) fn place(
    requests: &[Vec<u64>],
    replicas: &[Replica<'_>],
    rules: &Rules,
) -> Vec<Option<usize>> {
    let mut places = vec![None; requests.len()];
    if replicas.is_empty() {
        return places;
    }
    let units = units(requests, rules);
    let weight = |unit: &Unit<'_>| match rules.balance {
        Balance::Requests => 1,
        Balance::Blocks => unit.blocks.len(),
    };
    let all: usize = units.iter().map(|u| u.members.len() * weight(u)).sum();
    let mut placing = Placing {
        replicas,
        rules,
        fair: all.div_ceil(replicas.len()),
        load: vec![0; replicas.len()],
        holders: HashMap::new(),
    };
    for unit in &units {
        placing.unit(unit, weight(unit), &mut places);
    }
    places
}

/// What is placed, in order.
fn units<'a>(requests: &'a [Vec<u64>], rules: &Rules) -> Vec<Unit<'a>> {
    // A chain's end stands for all of it.
    let mut groups: Vec<Unit<'a>> = Vec::new();
    let mut by_end: HashMap<(usize, u64), usize> = HashMap::new();
    // How many requests begin with the same `min_colocate` blocks.
    let mut sharing: HashMap<u64, usize> = HashMap::new();
    let beginning = |blocks: &[u64]| {
        let last = rules.min_colocate.checked_sub(1)?;
        blocks.get(last).copied()
    };
    for (index, blocks) in requests.iter().enumerate() {
        let Some(end) = blocks.last() else { continue };
        let group = *by_end.entry((blocks.len(), *end)).or_insert_with(|| {
            groups.push(Unit {
                members: Vec::new(),
                blocks,
            });
            groups.len() - 1
        });
        if let Some(unit) = groups.get_mut(group) {
            unit.members.push(index);
        }
        if let Some(beginning) = beginning(blocks) {
            *sharing.entry(beginning).or_default() += 1;
        }
    }
    let is_shared = |unit: &Unit<'_>| {
        beginning(unit.blocks)
            .and_then(|beginning| sharing.get(&beginning))
            .is_some_and(|requests| *requests >= 2)
    };
    groups.retain(|unit| unit.members.len() >= 2 || is_shared(unit));
    // Both sorts keep the order of arrival among equals.
    groups.sort_by_key(|unit| (unit.members.len() < 2, std::cmp::Reverse(unit.blocks.len())));
    groups
}

struct Placing<'a> {
    replicas: &'a [Replica<'a>],
    rules: &'a Rules,
    /// A replica's fair share.
    fair: usize,
    /// What each replica has of the window.
    load: Vec<usize>,
    /// Who has a block, of what was placed in this window.
    holders: HashMap<u64, Vec<usize>>,
}

impl Placing<'_> {
    fn unit(&mut self, unit: &Unit<'_>, weight: usize, places: &mut [Option<usize>]) {
        let mut here = vec![0; self.replicas.len()];
        let mut preferred = self.longest(unit.blocks);
        let mut left = unit.members.as_slice();
        while !left.is_empty() {
            let free =
                |replica: usize| here.get(replica).copied() < Some(self.rules.max_per_replica);
            let Some(replica) = preferred.take().or_else(|| self.least(free)) else {
                return;
            };
            // More than fits everywhere: one at a time, so that it spreads.
            let used = here.get(replica).copied().unwrap_or(0);
            let room = self.rules.max_per_replica.saturating_sub(used).max(1);
            let (now, later) = left.split_at(room.min(left.len()));
            for member in now {
                if let Some(place) = places.get_mut(*member) {
                    *place = Some(replica);
                }
            }
            if let (Some(here), Some(load)) = (here.get_mut(replica), self.load.get_mut(replica)) {
                *here += now.len();
                *load += now.len() * weight;
            }
            left = later;
        }
        for block in unit.blocks {
            let holders = self.holders.entry(*block).or_default();
            for (replica, requests) in here.iter().enumerate() {
                if *requests > 0 && !holders.contains(&replica) {
                    holders.push(replica);
                }
            }
        }
    }

    /// The replica below its fair share with the longest common prefix that is long enough.
    fn longest(&self, blocks: &[u64]) -> Option<usize> {
        if self.rules.min_colocate == 0 {
            return None;
        }
        let mut matched = vec![0; self.replicas.len()];
        for block in blocks {
            // Who has a block has those before it.
            let Some(holders) = self.holders.get(block) else {
                break;
            };
            for replica in holders {
                if let Some(matched) = matched.get_mut(*replica) {
                    *matched += 1;
                }
            }
        }
        let fits = |replica: &usize| {
            self.load.get(*replica).copied() < Some(self.fair)
                && matched.get(*replica).copied() >= Some(self.rules.min_colocate)
        };
        let candidates = (0..self.replicas.len()).filter(fits);
        candidates.min_by_key(|replica| {
            let matched = matched.get(*replica).copied().unwrap_or(0);
            (std::cmp::Reverse(matched), self.rank(*replica))
        })
    }

    /// The replica with the least of the window among those that are `free`, or of all if none is.
    fn least(&self, free: impl Fn(usize) -> bool) -> Option<usize> {
        let all = || 0..self.replicas.len();
        all()
            .filter(|replica| free(*replica))
            .min_by_key(|replica| self.rank(*replica))
            .or_else(|| all().min_by_key(|replica| self.rank(*replica)))
    }

    /// Less goes first.
    fn rank(&self, replica: usize) -> (usize, u32, &str) {
        let load = self.load.get(replica).copied().unwrap_or(0);
        match self.replicas.get(replica) {
            Some(of) => (load, of.running, of.name),
            None => (load, 0, ""),
        }
    }
}
