//! When the next entry may go while others are under way.

use std::time::{Duration, Instant};

use super::proposer::BATCH_COMMANDS;

/// Entries under way at a time.
pub(super) const IN_FLIGHT: usize = 2;
/// An entry with at most this many commands does not keep the next one waiting; a larger one does for this long.
const FEW: usize = 8;
const PATIENCE: Duration = Duration::from_millis(5);

/// The entry that was sent last.
#[derive(Default)]
pub(super) struct Newest {
    commands: usize,
    since: Option<Instant>,
}

impl Newest {
    /// An entry of `commands` commands goes out now.
    pub fn sent(commands: usize) -> Self {
        Self {
            commands,
            since: Some(Instant::now()),
        }
    }

    /// Whether the next entry may go while `under_way` entries are out and `queued` commands wait. With few callers it goes
    /// at once; with many, two half-filled entries would cost twice as much as one full one, so the second goes when it is
    /// full or when the first takes long (over a WAN).
    pub fn lets_another_go(&self, under_way: usize, queued: usize) -> bool {
        match under_way {
            0 => true,
            IN_FLIGHT.. => false,
            _ => {
                self.commands <= FEW
                    || queued >= BATCH_COMMANDS
                    || self.until().is_none_or(|then| then <= Instant::now())
            }
        }
    }

    /// When patience with it ends.
    pub fn until(&self) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_callers_do_not_wait_and_many_share_an_entry() {
        let now = Some(Instant::now());
        let small = Newest {
            commands: FEW,
            since: now,
        };
        assert!(small.lets_another_go(1, 1));
        assert!(!small.lets_another_go(IN_FLIGHT, 1));
        let large = Newest {
            commands: 60,
            since: Some(Instant::now() + PATIENCE),
        };
        assert!(large.lets_another_go(0, 1));
        assert!(!large.lets_another_go(1, 5));
        assert!(large.lets_another_go(1, BATCH_COMMANDS));
        let slow = Newest {
            commands: 60,
            since: now.and_then(|now| now.checked_sub(PATIENCE)),
        };
        assert!(slow.lets_another_go(1, 1));
    }
}
