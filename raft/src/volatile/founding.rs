//! When a member asks the control group to begin the volatile group anew from what it holds.
//!
//! Asking too early costs a little: the others take a snapshot, and what was committed meanwhile without the asker is
//! forgotten. Asking too late costs more: nothing is replicated until somebody does.

use std::time::Duration;

/// Without a leader that has a majority for this long, the majority is taken for gone: several elections would have fitted in.
const PATIENCE: Duration = Duration::from_secs(3);
/// For a member that reaches none of the others and may be the one that is cut off.
const ALONE: Duration = Duration::from_secs(10);
/// For a member that knows of one with more contents, which should ask first.
const POORER: Duration = Duration::from_secs(2);
/// Each epoch of the last minutes doubles the wait, this often at most, so that a network that works one way only does not
/// make the group begin anew for ever.
const DOUBLINGS: u32 = 5;

/// What a member without a working leader sees around it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlook {
    /// Another member says that it hears a leader with a majority.
    pub(super) others_lead: bool,
    /// There are other members, and none of them is reachable.
    pub(super) alone: bool,
    /// A reachable member holds more of the group's history.
    pub(super) poorer: bool,
    /// Epochs that began within the last minutes, apart from the first that this process saw.
    pub(super) recent: u32,
}

/// How long to be without a leader before asking; `None`: not at all.
pub(super) fn patience(outlook: Outlook) -> Option<Duration> {
    if outlook.others_lead {
        return None;
    }
    let mut wait = if outlook.alone { ALONE } else { PATIENCE };
    if outlook.poorer {
        wait += POORER;
    }
    Some(wait * 2_u32.pow(outlook.recent.min(DOUBLINGS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_most_asks_first_and_nobody_asks_beside_a_leader() {
        let plain = Outlook::default();
        let poorer = Outlook {
            poorer: true,
            ..plain
        };
        let alone = Outlook {
            alone: true,
            ..plain
        };
        assert!(patience(plain) < patience(poorer));
        assert!(patience(poorer) < patience(alone));
        assert_eq!(
            patience(Outlook {
                others_lead: true,
                ..alone
            }),
            None
        );
    }

    #[test]
    fn epochs_that_follow_each_other_come_ever_more_slowly() {
        let after = |recent| {
            patience(Outlook {
                recent,
                ..Outlook::default()
            })
        };
        assert!((0..DOUBLINGS).all(|n| after(n + 1) == after(n).map(|wait| 2 * wait)));
        assert_eq!(after(1000), after(DOUBLINGS));
    }
}
