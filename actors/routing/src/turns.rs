//! Several routers that get heavy requests at the same moment place them one router after the other.
//!
//! Requests often come in bursts, and then each router finds the same endpoints to be the least loaded, before any of them has heard of the
//! others' picks. So where that happens a router asks for its turn before it places what is heavy: the first of the region's live routers keeps
//! the turns. A router whose turn it is places all of its requests that wait for it, tells every router what it placed, and then that its turn is
//! over. The next turn names the one before it, and begins where both have been heard of: what was placed before is known by then.
//!
//! ```text
//! Ask(n)  ----> keeper          router: may I place? It is the nth time that I ask.
//! Yours(n, after) <---- keeper  as soon as you have heard that the turn `after` is over
//! (counts) Over(n) ----> all    placed, and what was placed
//! ```
//!
//! Nothing depends on it: a turn that does not come within [`LATE_MS`] is not waited for, and one that does not end within it is passed over, so
//! that lost messages, dead routers and routers that disagree on who keeps the turns cost a moment and no more. Alone, or where requests come
//! one by one, nobody asks.
//!
//! * takes: asks of requests, messages of other routers
//! * sends: messages to other routers, through a [`Carrier`]

#[cfg(test)]
mod tests;

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Prompt tokens to compute from which on a request is placed in turn, and other routers should know of it before they place theirs: about a
/// tenth of a second of an engine's time.
pub const HEAVY_TOKENS: u64 = 2_048;
/// How long (ms) a request waits for its turn, and the others for the end of one.
pub const LATE_MS: u64 = 20;
/// How much of the chance a moment decides.
const STEP: f32 = 0.25;
/// Below this chance nobody asks for a turn.
const LEAST: f32 = 0.25;

/// What routers of a region say to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// To the keeper: the sender wants to place, for the nth time.
    Ask(u64),
    /// From the keeper: the receiver's nth turn begins when the turn before it is over.
    Yours {
        /// As asked.
        turn: u64,
        /// The router of the turn before, and which of its turns that was.
        after: Option<(u64, u64)>,
    },
    /// To all: the sender's nth turn is over, and what it placed was said before.
    Over(u64),
}

/// Brings messages to other routers. Called on the request path: must not wait.
pub trait Carrier: Send + Sync {
    /// Sends to one router.
    fn send(&self, to: u64, message: Message);
    /// All of this turn's requests have their places: the others are to be told of these, and then [`Turns::finish`] called.
    fn placed(&self);
}

/// The turns of a region as one of its routers sees them.
pub struct Turns {
    me: u64,
    carrier: Arc<dyn Carrier>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Live routers of the region; the first one keeps the turns.
    routers: BTreeSet<u64>,
    chance: Chance,
    /// Which of its own turns this router asked for last.
    turn: u64,
    /// When it asked for that turn, or the turn began; `None`: it is over.
    since: Option<u64>,
    /// The turn was given, but the one before it has not been heard to be over.
    given_after: Option<(u64, u64)>,
    /// What waits for a turn that has not begun.
    waiting: Vec<Arc<Seat>>,
    /// The turn has begun, with so many requests still to be placed.
    placing: Option<usize>,
    /// The last turn of each router that is over.
    over: BTreeMap<u64, u64>,
    keeper: Keeper,
}

fn is_late(since: u64, now: u64) -> bool {
    now.saturating_sub(since) > LATE_MS
}

/// What the keeper knows.
#[derive(Default)]
struct Keeper {
    /// Whose turn it is, which of its turns, since when.
    holder: Option<(u64, u64, u64)>,
    /// The last one that ended.
    last: Option<(u64, u64)>,
    queue: VecDeque<(u64, u64)>,
}

impl Keeper {
    /// Gives the next turn if none is under way.
    fn advance(&mut self, routers: &BTreeSet<u64>, now: u64) -> Option<(u64, Message)> {
        if let Some((router, _, since)) = self.holder
            && routers.contains(&router)
            && !is_late(since, now)
        {
            return None;
        }
        self.holder = None;
        loop {
            let (router, turn) = self.queue.pop_front()?;
            if routers.contains(&router) {
                self.holder = Some((router, turn, now));
                let after = self.last;
                return Some((router, Message::Yours { turn, after }));
            }
        }
    }
}

/// How likely others are to place heavy requests when this router does: the share of its moments of heavy requests, of which it heard that others had
/// placed some shortly before or after. The last few count most.
#[derive(Default)]
struct Chance {
    value: f32,
    /// When the last heavy request was placed here; when another router was last heard to have placed some.
    placed_at: Option<u64>,
    heard_at: Option<u64>,
    /// In the moment of the last heavy request, others were heard of.
    met: bool,
}

impl Chance {
    fn placed(&mut self, now: u64) {
        let within = |at: Option<u64>| at.is_some_and(|at| !is_late(at, now));
        if !within(self.placed_at) {
            if self.placed_at.is_some() {
                self.value += STEP * (f32::from(u8::from(self.met)) - self.value);
            }
            self.met = within(self.heard_at);
        }
        self.placed_at = Some(now);
    }

    fn heard(&mut self, now: u64) {
        self.heard_at = Some(now);
        self.met |= self.placed_at.is_some_and(|at| !is_late(at, now));
    }
}

/// Where one request waits.
#[derive(Default)]
struct Seat(Mutex<Call>);

#[derive(Default)]
enum Call {
    #[default]
    Quiet,
    Waits(Waker),
    Called,
    /// Called and heard, or no longer waiting.
    Left,
}

/// What a change leads to, done without the lock.
#[derive(Default)]
struct Effects {
    messages: Vec<(u64, Message)>,
    wake: Vec<Waker>,
    placed: bool,
}

impl Turns {
    /// Of the router with this id; alone until it hears of others. `start` is more than any turn that a former process of this router can have
    /// asked for, such as the milliseconds of a clock.
    pub fn new(me: u64, start: u64, carrier: Arc<dyn Carrier>) -> Self {
        let state = State {
            turn: start,
            ..State::default()
        };
        Self {
            me,
            carrier,
            state: Mutex::new(state),
        }
    }

    /// The region's live routers, this one among them.
    pub fn set_routers(&self, routers: BTreeSet<u64>, now: u64) {
        self.change(|state, effects| {
            state.over.retain(|router, _| routers.contains(router));
            let keeper = state.routers.first() != routers.first();
            state.routers = routers;
            if keeper {
                state.keeper = Keeper::default();
                if state.since.is_some() && state.placing.is_none() {
                    self.ask_anew(state, now, effects);
                }
            }
            self.advance(state, now, effects);
        });
    }

    /// A heavy request was placed here.
    pub fn heavy_placed(&self, now: u64) {
        self.state.lock().chance.placed(now);
    }

    /// Another router said that it has placed one.
    pub fn heavy_heard(&self, now: u64) {
        self.state.lock().chance.heard(now);
    }

    /// Whether others are likely to be placing heavy requests at the same moment.
    pub fn is_likely(&self) -> bool {
        let state = self.state.lock();
        state.routers.len() > 1 && state.chance.value >= LEAST
    }

    /// Waits for a turn to place a heavy request; `None`: there is no need.
    pub fn ask(self: &Arc<Self>, now: u64) -> Option<Turn> {
        if !self.is_likely() {
            return None;
        }
        let seat = Arc::new(Seat::default());
        self.change(|state, effects| {
            state.waiting.push(Arc::clone(&seat));
            // An answer that does not come any more is not waited for by those who come later.
            if state.since.is_none_or(|at| is_late(at, now)) {
                self.ask_anew(state, now, effects);
            }
        });
        Some(Turn {
            turns: Arc::clone(self),
            seat,
        })
    }

    /// Another router's message came.
    pub fn hear(&self, from: u64, message: Message, now: u64) {
        self.change(|state, effects| match message {
            Message::Ask(turn) => {
                state.keeper.queue.retain(|(router, _)| *router != from);
                state.keeper.queue.push_back((from, turn));
                self.advance(state, now, effects);
            }
            Message::Yours { turn, after } => {
                if !self.given(state, turn, after, now, effects) {
                    // Asked for by a former process, or given up.
                    effects.messages.push((from, Message::Over(turn)));
                }
            }
            Message::Over(turn) => self.over(state, from, turn, now, effects),
        });
    }

    /// What was placed in this router's turn is on its way to the others, ahead of what is sent from now on.
    pub fn finish(&self, now: u64) {
        self.change(|state, effects| {
            if state.placing.take().is_none() {
                return;
            }
            state.since = None;
            let (me, turn) = (self.me, state.turn);
            let others = state.routers.iter().filter(|router| **router != me);
            effects
                .messages
                .extend(others.map(|router| (*router, Message::Over(turn))));
            self.over(state, me, turn, now, effects);
            state.waiting.retain(|seat| seat.waits());
            if !state.waiting.is_empty() {
                self.ask_anew(state, now, effects);
            }
        });
    }

    fn ask_anew(&self, state: &mut State, now: u64, effects: &mut Effects) {
        state.turn += 1;
        state.since = Some(now);
        state.placing = None;
        state.given_after = None;
        match state.routers.first() {
            Some(keeper) if *keeper != self.me => {
                effects.messages.push((*keeper, Message::Ask(state.turn)));
            }
            _ => {
                let (me, queue) = (self.me, &mut state.keeper.queue);
                queue.retain(|(router, _)| *router != me);
                queue.push_back((me, state.turn));
                self.advance(state, now, effects);
            }
        }
    }

    /// As the keeper: gives the next turn, to this router itself as well.
    fn advance(&self, state: &mut State, now: u64, effects: &mut Effects) {
        match state.keeper.advance(&state.routers, now) {
            Some((router, Message::Yours { turn, after })) if router == self.me => {
                self.given(state, turn, after, now, effects);
            }
            Some(message) => effects.messages.push(message),
            None => {}
        }
    }

    /// False: nobody waits for this turn.
    fn given(
        &self,
        state: &mut State,
        turn: u64,
        after: Option<(u64, u64)>,
        now: u64,
        effects: &mut Effects,
    ) -> bool {
        let wanted = turn == state.turn && state.since.is_some() && state.placing.is_none();
        if wanted {
            state.given_after = Some(after.unwrap_or((self.me, 0)));
            self.begin_if_known(state, now, effects);
        }
        wanted
    }

    fn over(&self, state: &mut State, from: u64, turn: u64, now: u64, effects: &mut Effects) {
        let known = state.over.entry(from).or_default();
        *known = turn.max(*known);
        self.begin_if_known(state, now, effects);
        if let Some((router, held, _)) = state.keeper.holder
            && (router, held) == (from, turn)
        {
            state.keeper.last = Some((from, turn));
            state.keeper.holder = None;
            self.advance(state, now, effects);
        }
    }

    /// Begins the turn that was given, if the one before it is known to be over.
    fn begin_if_known(&self, state: &mut State, now: u64, effects: &mut Effects) {
        let Some((router, turn)) = state.given_after else {
            return;
        };
        let known = state.over.get(&router).is_some_and(|over| *over >= turn);
        if router != self.me && !known && state.routers.contains(&router) {
            return;
        }
        state.given_after = None;
        state.since = Some(now);
        let mut called = 0;
        for seat in state.waiting.drain(..) {
            if let Some(waker) = seat.call() {
                called += 1;
                effects.wake.extend(waker);
            }
        }
        state.placing = Some(called);
        effects.placed |= called == 0;
    }

    /// One request of the turn has its place, or wants none any more.
    fn one_placed(&self) {
        self.change(|state, effects| {
            if let Some(placing) = &mut state.placing {
                *placing = placing.saturating_sub(1);
                effects.placed |= *placing == 0;
            }
        });
    }

    fn change(&self, what: impl FnOnce(&mut State, &mut Effects)) {
        let mut effects = Effects::default();
        what(&mut self.state.lock(), &mut effects);
        for waker in effects.wake {
            waker.wake();
        }
        for (to, message) in effects.messages {
            self.carrier.send(to, message);
        }
        if effects.placed {
            self.carrier.placed();
        }
    }
}

impl Seat {
    fn waits(&self) -> bool {
        matches!(*self.0.lock(), Call::Quiet | Call::Waits(_))
    }

    /// Calls the request; `None`: it does not wait any more.
    fn call(&self) -> Option<Option<Waker>> {
        let mut call = self.0.lock();
        match std::mem::replace(&mut *call, Call::Called) {
            Call::Quiet => Some(None),
            Call::Waits(waker) => Some(Some(waker)),
            left @ (Call::Called | Call::Left) => {
                *call = left;
                None
            }
        }
    }
}

/// A turn to come. Dropped, the request waits no longer.
#[must_use = "the turn is waited for"]
pub struct Turn {
    turns: Arc<Turns>,
    seat: Arc<Seat>,
}

impl Future for Turn {
    type Output = Placing;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Placing> {
        let mut call = self.seat.0.lock();
        if matches!(*call, Call::Called) {
            *call = Call::Left;
            return Poll::Ready(Placing(Arc::clone(&self.turns)));
        }
        *call = Call::Waits(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let call = std::mem::replace(&mut *self.seat.0.lock(), Call::Left);
        if matches!(call, Call::Called) {
            self.turns.one_placed();
        }
    }
}

/// A turn: held while one request is placed.
#[must_use = "the turn lasts until this is dropped"]
pub struct Placing(Arc<Turns>);

impl Drop for Placing {
    fn drop(&mut self) {
        self.0.one_placed();
    }
}
