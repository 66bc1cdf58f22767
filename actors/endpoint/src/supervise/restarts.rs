//! When a child that ended is started again, and when its supervisor gives up. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// How a supervisor treats children that end.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Wait before the first restart; doubles with each further one within the window.
    pub first: Duration,
    /// Longest wait.
    pub longest: Duration,
    /// What counts as recent.
    pub window: Duration,
    /// Restarts of one child within the window; one more and the supervisor fails itself.
    pub most: usize,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            window: Duration::from_secs(60),
            most: 10,
        }
    }
}

/// Recent restarts of one child.
#[derive(Debug, Default)]
pub struct Restarts(VecDeque<u64>);

impl Restarts {
    /// The child ended at `now` (ms): how long to wait, or `None`: give up.
    pub fn next(&mut self, policy: &RestartPolicy, now: u64) -> Option<Duration> {
        let window = u64::try_from(policy.window.as_millis()).unwrap_or(u64::MAX);
        while self
            .0
            .front()
            .is_some_and(|at| at.saturating_add(window) < now)
        {
            self.0.pop_front();
        }
        let recent = self.0.len();
        if recent >= policy.most {
            return None;
        }
        self.0.push_back(now);
        let doubled = policy.first.saturating_mul(1 << recent.min(20));
        Some(doubled.min(policy.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        first: Duration::from_millis(10),
        longest: Duration::from_millis(35),
        window: Duration::from_millis(1000),
        most: 4,
    };

    #[test]
    fn waits_double_then_it_gives_up() {
        let mut r = Restarts::default();
        let waits: Vec<_> = (0..5).map(|i| r.next(&POLICY, 100 + i)).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(waits, [ms(10), ms(20), ms(35), ms(35), None]);
    }

    #[test]
    fn a_quiet_window_forgives() {
        let mut r = Restarts::default();
        for _ in 0..4 {
            r.next(&POLICY, 100);
        }
        assert_eq!(r.next(&POLICY, 1100), None);
        assert_eq!(r.next(&POLICY, 1101), Some(POLICY.first));
    }
}
