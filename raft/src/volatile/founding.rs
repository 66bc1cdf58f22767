//! When a member asks the control group to begin the volatile group anew from what it holds.
//!
//! Asking too early costs a little: the others take a snapshot, and what was committed meanwhile without the asker is
//! forgotten. Asking too late costs more: nothing is replicated until somebody does.

use std::time::Duration;

use super::contents::Position;

/// Without a leader that has a majority for this long, the majority is taken for gone: several elections would have fitted in.
const PATIENCE: Duration = Duration::from_secs(3);
/// For a member that reaches none of the others and may be the one that is cut off.
const ALONE: Duration = Duration::from_secs(10);
/// For a member that knows of one with more contents. That one should ask, however often the group began anew of late.
const POORER: Duration = Duration::from_secs(30);
/// Each epoch of the last minutes doubles the wait, this often at most, so that a network that works one way only does not
/// make the group begin anew for ever.
const DOUBLINGS: u32 = 3;

/// What another member says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    pub(super) raft_id: u64,
    /// It leads, or takes itself for the leader.
    pub(super) leads: bool,
    /// The leader that it knows.
    pub(super) leader: Option<u64>,
    /// It heard of that leader a moment ago or, as the leader, of a majority.
    pub(super) quorate: bool,
    pub(super) position: Position,
}

/// What a member without a working leader sees around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outlook {
    pub(super) me: u64,
    pub(super) position: Position,
    /// Members beside this one.
    pub(super) others: usize,
    /// How many of them are reachable.
    pub(super) reachable: usize,
    /// What those said that are in this epoch.
    pub(super) words: Vec<Word>,
    /// Epochs that began within the last minutes, apart from the first that this process saw.
    pub(super) recent: u32,
}

impl Outlook {
    /// Whether some member has a leader that can write. A follower hears its leader also when that has lost its majority, so
    /// the leader's own word counts more.
    fn has_leader(&self) -> bool {
        let powerless = |leader: u64| {
            leader == self.me
                || self
                    .words
                    .iter()
                    .any(|word| word.raft_id == leader && word.leads && !word.quorate)
        };
        self.words.iter().any(|word| {
            word.quorate && (word.leads || word.leader.is_some_and(|leader| !powerless(leader)))
        })
    }
}

/// How long to be without a leader before asking; `None`: not at all.
pub(super) fn patience(outlook: &Outlook) -> Option<Duration> {
    if outlook.has_leader() {
        return None;
    }
    let alone = outlook.others > 0 && outlook.reachable == 0;
    let wait = if alone { ALONE } else { PATIENCE } * 2_u32.pow(outlook.recent.min(DOUBLINGS));
    let poorer = outlook
        .words
        .iter()
        .any(|word| word.position > outlook.position);
    Some(if poorer { wait + POORER } else { wait })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, index: u64) -> Position {
        Position {
            epoch,
            index: Some(index),
        }
    }

    /// Member 1, which sees member 2.
    fn two(word: Word) -> Outlook {
        Outlook {
            me: 1,
            position: at(1, 10),
            others: 1,
            reachable: 1,
            words: vec![Word { raft_id: 2, ..word }],
            recent: 0,
        }
    }

    #[test]
    fn whoever_holds_most_asks_first_however_often_the_group_began_anew() {
        let richer = Word {
            position: at(1, 11),
            ..Word::default()
        };
        let busy = Outlook {
            recent: 100,
            ..two(Word::default())
        };
        assert!(patience(&busy) < patience(&two(richer)));
        let alone = Outlook {
            reachable: 0,
            words: vec![],
            ..two(Word::default())
        };
        assert!(patience(&two(Word::default())) < patience(&alone));
    }

    #[test]
    fn nobody_asks_beside_a_leader_and_a_leader_without_a_majority_is_none() {
        let leads = Word {
            leads: true,
            leader: Some(2),
            quorate: true,
            ..Word::default()
        };
        assert_eq!(patience(&two(leads)), None);
        let lost = Word {
            quorate: false,
            ..leads
        };
        assert!(patience(&two(lost)).is_some());
        let hears = |leader| Word {
            leader: Some(leader),
            quorate: true,
            ..Word::default()
        };
        // Somebody hears a leader that this member does not reach.
        assert_eq!(patience(&two(hears(3))), None);
        // Somebody hears this member, which knows better.
        assert!(patience(&two(hears(1))).is_some());
        let mut beside = two(lost);
        beside.words.push(Word {
            raft_id: 3,
            ..hears(2)
        });
        assert!(patience(&beside).is_some());
    }

    #[test]
    fn epochs_that_follow_each_other_come_ever_more_slowly() {
        let after = |recent| {
            patience(&Outlook {
                recent,
                ..Outlook::default()
            })
        };
        assert!((0..DOUBLINGS).all(|n| after(n + 1) == after(n).map(|wait| 2 * wait)));
        assert_eq!(after(1000), after(DOUBLINGS));
    }
}
