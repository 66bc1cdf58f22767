//! What is left of the limits of a tenant or a key: token buckets and a count, shared by all worker threads of a router and kept
//! in step with the other routers.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How far a balance may go below zero, in full buckets: a limit that is raised after a flood takes hold within this.
const DEEPEST: f64 = 5.0;
/// A caller that has too many requests open is told to come back after this.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

/// The most that may be used. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Requests in a second; a second's worth, and at least one, may come at once.
    pub requests_per_second: Option<f64>,
    /// Tokens in a minute; a minute's worth may come at once.
    pub tokens_per_minute: Option<u64>,
    /// Requests at the same time.
    pub concurrent: Option<u32>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Which limit is reached, and when it is worth trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Requests a second.
    #[error("the limit of requests per second is reached")]
    Requests(Duration),
    /// Tokens a minute.
    #[error("the limit of tokens per minute is reached")]
    Tokens(Duration),
    /// Requests at the same time.
    #[error("the limit of concurrent requests is reached")]
    Concurrent(Duration),
}

impl Exhausted {
    /// Time until there may be room.
    pub fn retry_after(self) -> Duration {
        match self {
            Self::Requests(after) | Self::Tokens(after) | Self::Concurrent(after) => after,
        }
    }
}

/// What this router has used of a budget since it started, for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests admitted.
    pub requests: u64,
    /// Tokens used.
    pub tokens: u64,
    /// Requests open now.
    pub open: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Budget {
    name: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    requests: Bucket,
    tokens: Bucket,
    used: Totals,
    /// What each other router said last, by a number that is another one for each start of a router.
    others: HashMap<u64, Totals>,
    /// Requests open on the others.
    open_elsewhere: u32,
}

/// A balance that grows with time up to a full bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at_ms: u64,
}

impl Bucket {
    /// A full one.
    fn full(capacity: f64, now_ms: u64) -> Self {
        Self {
            level: capacity,
            at_ms: now_ms,
        }
    }

    fn refill(&mut self, rate_per_ms: f64, capacity: f64, now_ms: u64) {
        // Worker threads read the clock before they take the lock: time does not go back here.
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = self.at_ms.max(now_ms);
        self.level = (self.level + passed as f64 * rate_per_ms).min(capacity);
    }

    fn take(&mut self, amount: f64, capacity: f64) {
        self.level = (self.level - amount).max(-DEEPEST * capacity);
    }

    /// Time until the level is above `wanted`.
    fn wait(&self, wanted: f64, rate_per_ms: f64) -> Duration {
        let ms = ((wanted - self.level) / rate_per_ms).ceil().max(1.0);
        Duration::from_millis(ms as u64)
    }
}

/// Per millisecond, and a full bucket.
fn request_rate(rate: f64) -> (f64, f64) {
    (rate / 1e3, rate.max(1.0))
}

fn token_rate(rate: u64) -> (f64, f64) {
    (rate as f64 / 60e3, rate as f64)
}

impl State {
    fn refill(&mut self, now_ms: u64) {
        if let Some(rate) = self.limits.requests_per_second {
            let (rate, capacity) = request_rate(rate);
            self.requests.refill(rate, capacity, now_ms);
        }
        if let Some(rate) = self.limits.tokens_per_minute {
            let (rate, capacity) = token_rate(rate);
            self.tokens.refill(rate, capacity, now_ms);
        }
    }

    fn check(&self) -> Result<(), Exhausted> {
        if let Some(most) = self.limits.concurrent
            && self.used.open.saturating_add(self.open_elsewhere) >= most
        {
            return Err(Exhausted::Concurrent(CONCURRENT_RETRY));
        }
        if let Some(rate) = self.limits.tokens_per_minute
            && self.tokens.level <= 0.0
        {
            let (rate, _) = token_rate(rate);
            return Err(Exhausted::Tokens(self.tokens.wait(0.0, rate)));
        }
        if let Some(rate) = self.limits.requests_per_second
            && self.requests.level < 1.0
        {
            let (rate, _) = request_rate(rate);
            return Err(Exhausted::Requests(self.requests.wait(1.0, rate)));
        }
        Ok(())
    }

    fn take_requests(&mut self, amount: u64) {
        if let Some(rate) = self.limits.requests_per_second {
            self.requests.take(amount as f64, request_rate(rate).1);
        }
    }

    fn take_tokens(&mut self, amount: u64) {
        if let Some(rate) = self.limits.tokens_per_minute {
            self.tokens.take(amount as f64, token_rate(rate).1);
        }
    }
}

impl Budget {
    /// A full budget. `now_ms` is [`crate::now_ms`], here and below.
    pub fn new(name: Arc<str>, limits: Limits, now_ms: u64) -> Self {
        let capacity_of = |rate: Option<f64>| rate.unwrap_or(0.0);
        let requests = capacity_of(limits.requests_per_second.map(|rate| request_rate(rate).1));
        let tokens = capacity_of(limits.tokens_per_minute.map(|rate| token_rate(rate).1));
        Self {
            name,
            state: Mutex::new(State {
                limits,
                requests: Bucket::full(requests, now_ms),
                tokens: Bucket::full(tokens, now_ms),
                used: Totals::default(),
                others: HashMap::new(),
                open_elsewhere: 0,
            }),
        }
    }

    /// Whose it is; the same on all routers.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Other limits from now on. What was used stays used.
    pub fn set_limits(&self, limits: Limits, now_ms: u64) {
        let mut state = self.state.lock();
        if state.limits == limits {
            return;
        }
        state.refill(now_ms);
        let before = state.limits;
        state.limits = limits;
        // A limit that was not there begins with a full bucket; another one keeps the share that was left.
        let share = |level: f64, old: Option<f64>, new: Option<f64>| match (old, new) {
            (Some(old), Some(new)) => level / old * new,
            (None, Some(new)) => new,
            (_, None) => 0.0,
        };
        let full = |rate: Option<f64>| rate.map(|rate| request_rate(rate).1);
        state.requests.level = share(
            state.requests.level,
            full(before.requests_per_second),
            full(limits.requests_per_second),
        );
        let full = |rate: Option<u64>| rate.map(|rate| token_rate(rate).1);
        state.tokens.level = share(
            state.tokens.level,
            full(before.tokens_per_minute),
            full(limits.tokens_per_minute),
        );
        state.requests.at_ms = now_ms;
        state.tokens.at_ms = now_ms;
    }

    /// Takes one request out of each of the budgets, or of none. What comes back counts as open until it is dropped.
    ///
    /// # Errors
    /// The first budget that has no room, and until when.
    pub fn begin(budgets: &[Arc<Budget>], now_ms: u64) -> Result<Ongoing, Exhausted> {
        let mut ongoing = Ongoing {
            budgets: Vec::with_capacity(budgets.len()),
        };
        for budget in budgets {
            let mut state = budget.state.lock();
            state.refill(now_ms);
            if let Err(exhausted) = state.check() {
                drop(state);
                ongoing.undo();
                return Err(exhausted);
            }
            state.take_requests(1);
            state.used.requests += 1;
            state.used.open += 1;
            drop(state);
            ongoing.budgets.push(Arc::clone(budget));
        }
        Ok(ongoing)
    }

    /// What this router used.
    pub fn totals(&self) -> Totals {
        self.state.lock().used
    }

    /// Whether another router's use makes a difference here.
    pub fn is_limited(&self) -> bool {
        !self.state.lock().limits.is_unlimited()
    }

    /// Takes in what another router used; `origin` is another number for each start of it. What it used before it was heard of
    /// first counts nothing.
    pub fn absorb(&self, origin: u64, said: Totals, now_ms: u64) {
        let mut state = self.state.lock();
        state.refill(now_ms);
        let before = state.others.insert(origin, said);
        let open_before = before.map_or(0, |b| b.open);
        if let Some(before) = before {
            state.take_requests(said.requests.saturating_sub(before.requests));
            state.take_tokens(said.tokens.saturating_sub(before.tokens));
        }
        state.open_elsewhere = state
            .open_elsewhere
            .saturating_sub(open_before)
            .saturating_add(said.open);
    }

    /// Another router is gone: its open requests are.
    pub fn forget(&self, origin: u64) {
        let mut state = self.state.lock();
        if let Some(said) = state.others.remove(&origin) {
            state.open_elsewhere = state.open_elsewhere.saturating_sub(said.open);
        }
    }
}

/// A request that counts as open in its budgets until this is dropped.
#[derive(Debug, Default)]
pub struct Ongoing {
    budgets: Vec<Arc<Budget>>,
}

impl Ongoing {
    /// Takes tokens out of the budgets, as soon as they are known.
    pub fn tokens(&self, tokens: u64, now_ms: u64) {
        for budget in &self.budgets {
            let mut state = budget.state.lock();
            state.refill(now_ms);
            state.take_tokens(tokens);
            state.used.tokens = state.used.tokens.saturating_add(tokens);
        }
    }

    /// As if it had not begun.
    fn undo(&mut self) {
        for budget in self.budgets.drain(..) {
            let mut state = budget.state.lock();
            if let Some(rate) = state.limits.requests_per_second {
                state.requests.level = (state.requests.level + 1.0).min(request_rate(rate).1);
            }
            state.used.requests = state.used.requests.saturating_sub(1);
            state.used.open = state.used.open.saturating_sub(1);
        }
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        for budget in &self.budgets {
            let mut state = budget.state.lock();
            state.used.open = state.used.open.saturating_sub(1);
        }
    }
}
