//! How much of the prompts that went to an endpoint was in its engine's cache: as picks believed, and as the engine said.

use super::Endpoint;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Totals of this node since the endpoint is known to it.
#[derive(Debug, Default)]
pub struct CacheUse {
    picks: AtomicU64,
    prompt_tokens: AtomicU64,
    predicted_tokens: AtomicU64,
    answers: AtomicU64,
    answered_tokens: AtomicU64,
    found_tokens: AtomicU64,
}

/// A [`CacheUse`] as it was at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheTotals {
    /// Picks that knew the tokens of their prompt.
    pub picks: u64,
    /// Tokens of these prompts.
    pub prompt_tokens: u64,
    /// Of these, tokens that the picked engine was believed to have cached.
    pub predicted_tokens: u64,
    /// Answers whose engine said how much of the prompt it had cached.
    pub answers: u64,
    /// Tokens of these answers' prompts, as the engine counts them.
    pub answered_tokens: u64,
    /// Of these, tokens that it had cached.
    pub found_tokens: u64,
}

impl CacheUse {
    /// A pick of a prompt of so many tokens, of which the endpoint is believed to have some cached.
    pub fn picked(&self, prompt: u64, predicted: u64) {
        self.picks.fetch_add(1, Relaxed);
        self.prompt_tokens.fetch_add(prompt, Relaxed);
        self.predicted_tokens.fetch_add(predicted, Relaxed);
    }

    /// The engine's answer to a prompt of so many tokens, of which it had some cached.
    pub fn answered(&self, prompt: u64, found: u64) {
        self.answers.fetch_add(1, Relaxed);
        self.answered_tokens.fetch_add(prompt, Relaxed);
        self.found_tokens.fetch_add(found, Relaxed);
    }

    /// The totals. Those of one event may be there in part only.
    pub fn totals(&self) -> CacheTotals {
        CacheTotals {
            picks: self.picks.load(Relaxed),
            prompt_tokens: self.prompt_tokens.load(Relaxed),
            predicted_tokens: self.predicted_tokens.load(Relaxed),
            answers: self.answers.load(Relaxed),
            answered_tokens: self.answered_tokens.load(Relaxed),
            found_tokens: self.found_tokens.load(Relaxed),
        }
    }
}

impl CacheTotals {
    /// What has come since `before`. An endpoint that went away took its totals along: what is less than before counts as nothing.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            picks: self.picks.saturating_sub(before.picks),
            prompt_tokens: self.prompt_tokens.saturating_sub(before.prompt_tokens),
            predicted_tokens: self
                .predicted_tokens
                .saturating_sub(before.predicted_tokens),
            answers: self.answers.saturating_sub(before.answers),
            answered_tokens: self.answered_tokens.saturating_sub(before.answered_tokens),
            found_tokens: self.found_tokens.saturating_sub(before.found_tokens),
        }
    }
}

impl AddAssign for CacheTotals {
    fn add_assign(&mut self, other: Self) {
        self.picks += other.picks;
        self.prompt_tokens += other.prompt_tokens;
        self.predicted_tokens += other.predicted_tokens;
        self.answers += other.answers;
        self.answered_tokens += other.answered_tokens;
        self.found_tokens += other.found_tokens;
    }
}

impl Endpoint {
    /// How much of its prompts was cached.
    pub const fn cache_use(&self) -> &CacheUse {
        &self.cache_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_and_subtract() {
        let used = CacheUse::default();
        used.picked(100, 60);
        let before = used.totals();
        used.picked(50, 0);
        used.answered(101, 64);
        let mut since = used.totals().since(&before);
        let expected = CacheTotals {
            picks: 1,
            prompt_tokens: 50,
            answers: 1,
            answered_tokens: 101,
            found_tokens: 64,
            ..CacheTotals::default()
        };
        assert_eq!(since, expected);
        since += before;
        assert_eq!(since, used.totals());
        assert_eq!(before.since(&used.totals()), CacheTotals::default());
    }
}
