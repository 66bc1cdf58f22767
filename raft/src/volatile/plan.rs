//! What the leader of a volatile group does about its membership: take in who is registered, give votes to who has caught
//! up, drop who was replaced, has left or is dead. One step at a time, pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::Member;

/// Voters at most; further members only learn.
pub(super) const MAX_VOTERS: usize = 5;

/// The group as its leader sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The leader.
    pub(super) me: u64,
    /// Who should be in the group, as the control group has it.
    pub(super) wanted: BTreeMap<u64, Member>,
    pub(super) voters: BTreeSet<u64>,
    /// All members with their data directories, voters and learners.
    pub(super) members: BTreeMap<u64, Member>,
    /// Wanted or present, but not heard of for long.
    pub(super) dead: BTreeSet<u64>,
    /// Members that have nearly all of the log.
    pub(super) caught_up: BTreeSet<u64>,
}

/// One change of membership.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Adds learners.
    Add(BTreeMap<u64, Member>),
    /// These vote from now on; voters that are not among them are out.
    Voters(BTreeSet<u64>),
    /// Takes learners out.
    Drop(BTreeSet<u64>),
    /// The leader is not wanted any more: another one takes over.
    HandOver(u64),
}

/// The next step, if one is due.
pub(super) fn next(seen: &Seen) -> Option<Step> {
    let alive = |id: &u64| seen.wanted.contains_key(id) && !seen.dead.contains(id);
    let missing: BTreeMap<u64, Member> = seen
        .wanted
        .iter()
        .filter(|(id, _)| alive(id) && !seen.members.contains_key(id))
        .map(|(id, member)| (*id, member.clone()))
        .collect();
    if !missing.is_empty() {
        return Some(Step::Add(missing));
    }
    if !seen.wanted.contains_key(&seen.me) {
        let successor = |id: &&u64| **id != seen.me && alive(id) && seen.caught_up.contains(id);
        return seen
            .voters
            .iter()
            .find(successor)
            .copied()
            .map(Step::HandOver);
    }
    let keep: BTreeSet<u64> = seen
        .voters
        .iter()
        .filter(|id| **id == seen.me || alive(id))
        .copied()
        .collect();
    let learners = || seen.members.keys().filter(|id| !seen.voters.contains(id));
    let ready = learners().filter(|id| alive(id) && seen.caught_up.contains(id));
    let mut voters = keep.clone();
    voters.extend(ready.take(MAX_VOTERS.saturating_sub(keep.len())));
    // A voter whose node is about to come back under a new id goes in the same change as that id comes.
    let returning: BTreeSet<&str> = learners()
        .filter(|id| alive(id) && !seen.caught_up.contains(id))
        .filter_map(|id| Some(seen.members.get(id)?.instance.as_str()))
        .collect();
    let goes = |id: &u64| {
        let returns = |member: &Member| returning.contains(member.instance.as_str());
        !keep.contains(id) && !seen.members.get(id).is_some_and(returns)
    };
    if voters.len() > keep.len() || seen.voters.iter().any(goes) {
        return Some(Step::Voters(voters));
    }
    let surplus: BTreeSet<u64> = learners().filter(|id| !alive(id)).copied().collect();
    (!surplus.is_empty()).then_some(Step::Drop(surplus))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(node: u64) -> Member {
        Member {
            name: format!("n{node}"),
            instance: format!("i{node}"),
            peer_address: format!("127.0.0.1:{node}"),
        }
    }

    fn set(ids: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
        ids.into_iter().collect()
    }

    /// Node `id % 10` for each id.
    fn members(ids: impl IntoIterator<Item = u64>) -> BTreeMap<u64, Member> {
        ids.into_iter().map(|id| (id, member(id % 10))).collect()
    }

    fn three() -> Seen {
        Seen {
            me: 1,
            wanted: members([1, 2, 3]),
            voters: set([1, 2, 3]),
            members: members([1, 2, 3]),
            dead: set([]),
            caught_up: set([1, 2, 3]),
        }
    }

    #[test]
    fn a_restarted_process_takes_the_place_of_the_old_one_in_one_change() {
        let mut seen = three();
        seen.wanted = members([1, 2, 13]);
        assert_eq!(next(&seen), Some(Step::Add(members([13]))));
        seen.members = members([1, 2, 3, 13]);
        assert_eq!(
            next(&seen),
            None,
            "the old one goes when the new one has caught up"
        );
        seen.caught_up.insert(13);
        assert_eq!(next(&seen), Some(Step::Voters(set([1, 2, 13]))));
        seen.voters = set([1, 2, 13]);
        seen.members = members([1, 2, 13]);
        assert_eq!(next(&seen), None);
    }

    #[test]
    fn the_dead_and_the_removed_go_and_come_back() {
        let mut seen = three();
        seen.dead = set([3]);
        assert_eq!(next(&seen), Some(Step::Voters(set([1, 2]))));
        seen.voters = set([1, 2]);
        seen.members = members([1, 2]);
        assert_eq!(next(&seen), None);
        seen.dead = set([]);
        assert_eq!(next(&seen), Some(Step::Add(members([3]))));
        seen.members = members([1, 2, 3]);
        assert_eq!(next(&seen), Some(Step::Voters(set([1, 2, 3]))));
        seen.voters = set([1, 2, 3]);
        seen.wanted = members([1, 3]);
        assert_eq!(next(&seen), Some(Step::Voters(set([1, 3]))));
    }

    #[test]
    fn a_leader_that_is_not_wanted_hands_over() {
        let mut seen = three();
        seen.wanted = members([2, 3]);
        seen.dead = set([2]);
        assert_eq!(next(&seen), Some(Step::HandOver(3)));
        seen.dead = set([2, 3]);
        assert_eq!(next(&seen), None);
    }

    proptest! {
        #[test]
        fn it_settles_on_who_is_wanted_and_alive(
            wanted in prop::collection::btree_set(2..30_u64, 0..9),
            present in prop::collection::btree_set(2..30_u64, 0..9),
            votes in prop::collection::btree_set(2..30_u64, 0..5),
            dead in prop::collection::btree_set(2..30_u64, 0..9),
        ) {
            let voters: BTreeSet<u64> = votes.intersection(&present).copied().chain([1]).collect();
            let mut seen = Seen {
                me: 1,
                wanted: members(wanted.iter().copied().chain([1])),
                voters,
                members: members(present.iter().copied().chain([1])),
                dead,
                caught_up: present.iter().copied().chain([1]).collect(),
            };
            let mut steps = 0;
            while let Some(step) = next(&seen) {
                steps += 1;
                prop_assert!(steps < 10, "{seen:?}");
                match step {
                    Step::Add(new) => {
                        seen.caught_up.extend(new.keys());
                        seen.members.extend(new);
                    }
                    Step::Voters(voters) => {
                        prop_assert!(voters.contains(&1) && voters.len() <= MAX_VOTERS);
                        prop_assert!(voters.iter().all(|id| *id == 1 || !seen.dead.contains(id)));
                        let out: Vec<u64> = seen.voters.difference(&voters).copied().collect();
                        seen.members.retain(|id, _| !out.contains(id));
                        seen.voters = voters;
                    }
                    Step::Drop(out) => {
                        prop_assert!(out.is_disjoint(&seen.voters));
                        seen.members.retain(|id, _| !out.contains(id));
                    }
                    Step::HandOver(_) => prop_assert!(false, "the leader is wanted"),
                }
            }
            let alive: BTreeSet<u64> = seen.wanted.keys().filter(|id| !seen.dead.contains(id)).copied().collect();
            prop_assert_eq!(seen.members.keys().copied().collect::<BTreeSet<_>>(), alive.clone());
            prop_assert_eq!(seen.voters.len(), alive.len().min(MAX_VOTERS));
        }
    }
}
