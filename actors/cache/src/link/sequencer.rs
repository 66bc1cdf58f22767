//! The rule that turns numbered batches, lost, doubled, reordered or begun anew, into a sound stream. No I/O, no clock.
//!
//! The caller tells what happens and carries out what [`Sequencer::poll`] returns. Time is milliseconds from any start.

use super::stream::{Counters, Output, Policy, Reset, State};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use xxhash_rust::xxh3::xxh3_64;

enum Phase {
    Down,
    Live,
    Gap {
        until: u64,
    },
    Replaying {
        id: u64,
        from: u64,
        /// The last batch taken is still to be seen again.
        unproved: bool,
        until: u64,
    },
    Waiting {
        until: u64,
    },
}

/// One stream: one engine's one data-parallel rank.
pub struct Sequencer {
    policy: Policy,
    phase: Phase,
    /// Number expected; `None` when nothing is known.
    next: Option<u64>,
    /// Fingerprints of the last batches handed on, numbers consecutive, `next - 1` last.
    recent: VecDeque<u64>,
    held: BTreeMap<u64, Bytes>,
    held_bytes: usize,
    overflowed: bool,
    /// A batch held came after one with a higher number.
    regressed: bool,
    /// What was taken so far is of the stream that is connected now, and nothing is known to be missing.
    sure: bool,
    attempts: u32,
    attempted_at: Option<u64>,
    cool_until: u64,
    heard: u64,
    last_id: u64,
    counters: Counters,
    out: VecDeque<Output>,
}

impl Sequencer {
    /// Not connected, nothing known.
    pub fn new(policy: Policy) -> Self {
        Sequencer {
            policy,
            phase: Phase::Down,
            next: None,
            recent: VecDeque::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            overflowed: false,
            regressed: false,
            sure: true,
            attempts: 0,
            attempted_at: None,
            cool_until: 0,
            heard: 0,
            last_id: 0,
            counters: Counters::default(),
            out: VecDeque::new(),
        }
    }

    /// Before the first connection: goes on behind batch `seq` with this hash (XXH3) of its payload, if the engine proves it.
    pub fn resume(&mut self, seq: u64, mark: u64) {
        self.next = seq.checked_add(1);
        self.recent = VecDeque::from([mark]);
    }

    /// What to do next, if anything.
    pub fn poll(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// How it is.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Down => State::Down,
            Phase::Live => State::Live,
            Phase::Gap { .. } => State::Gap,
            Phase::Replaying { .. } => State::Replaying,
            Phase::Waiting { .. } => State::Waiting,
        }
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Number of the last batch handed on.
    pub fn last(&self) -> Option<u64> {
        Some(self.next?.saturating_sub(1))
    }

    /// When [`Sequencer::tick`] has something to do.
    pub fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Down => None,
            Phase::Gap { until } | Phase::Waiting { until } | Phase::Replaying { until, .. } => {
                Some(until)
            }
            Phase::Live => self
                .policy
                .replay
                .then(|| self.heard.saturating_add(self.policy.silence)),
        }
    }

    /// A connection stands, the first or another one.
    pub fn connected(&mut self, now: u64) {
        self.heard = now;
        self.drop_held();
        self.attempts = 0;
        self.sure = self.next.is_none();
        if self.policy.replay {
            self.request(now);
            return;
        }
        if !self.sure {
            self.reset(Reset::Unproved);
        }
        self.phase = Phase::Live;
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        if matches!(self.phase, Phase::Replaying { .. }) {
            self.out.push_back(Output::CancelReplay);
        }
        self.phase = Phase::Down;
        self.drop_held();
    }

    /// A batch came over the connection.
    pub fn live(&mut self, seq: u64, payload: Bytes, now: u64) {
        if seq == u64::MAX || matches!(self.phase, Phase::Down) {
            return;
        }
        self.heard = now;
        match (&self.phase, self.next) {
            (Phase::Replaying { .. } | Phase::Waiting { .. }, _) => self.hold(seq, payload, now),
            (_, Some(next)) if seq < next => {
                self.old(seq, payload, now);
            }
            (Phase::Live, Some(next)) if seq == next => self.deliver(seq, payload),
            (Phase::Live, None) if seq == 0 || !self.may_replay(now) => self.deliver(seq, payload),
            (Phase::Live, None) => {
                // Batches before it were published after the replay on connecting and never came.
                self.request(now);
                self.hold(seq, payload, now);
            }
            (Phase::Live, Some(_)) => {
                self.counters.gaps += 1;
                self.phase = Phase::Gap {
                    until: now.saturating_add(self.policy.grace),
                };
                self.hold(seq, payload, now);
            }
            (Phase::Gap { .. } | Phase::Down, _) => {
                self.hold(seq, payload, now);
                self.drain(now);
                if self.held.is_empty() && matches!(self.phase, Phase::Gap { .. }) {
                    self.phase = Phase::Live;
                }
            }
        }
    }

    /// A reply to the replay request `id`.
    pub fn replayed(&mut self, id: u64, seq: u64, payload: Bytes, now: u64) {
        let Phase::Replaying {
            id: current,
            from,
            unproved,
            until,
        } = &mut self.phase
        else {
            return;
        };
        if *current != id || seq == u64::MAX || seq < *from {
            return;
        }
        *until = now.saturating_add(self.policy.replay_timeout);
        if *unproved {
            *unproved = false;
            if seq == *from && self.recent.back() == Some(&xxh3_64(&payload)) {
                return;
            }
            if seq == *from {
                self.reset(Reset::Restarted);
                self.request(now);
                return;
            }
            // The buffer begins later: what is between is lost, or it is another stream.
            self.reset(Reset::Lost);
        }
        match self.next {
            Some(next) if seq < next => {
                self.old(seq, payload, now);
            }
            Some(next) if seq > next => self.hold(seq, payload, now),
            _ => {
                self.counters.replayed += 1;
                self.deliver(seq, payload);
            }
        }
    }

    /// The replay `id` is over: `complete` when the engine said so, not when it broke off.
    pub fn replay_ended(&mut self, id: u64, complete: bool, now: u64) {
        let Phase::Replaying {
            id: current,
            unproved,
            ..
        } = self.phase
        else {
            return;
        };
        if current != id {
            return;
        }
        if !complete {
            self.replay_failed(now);
        } else if unproved {
            // The engine does not have the last batch taken: it has begun anew and has not come that far.
            self.reset(Reset::Restarted);
            self.request(now);
        } else {
            self.phase = Phase::Live;
            self.heard = now;
            if self.regressed && self.may_replay(now) {
                // Swapped, or the numbers began anew meanwhile: only another replay tells.
                self.missing(now);
                return;
            }
            if self.next.is_none() {
                self.adopt_held();
            }
            self.drain(now);
            self.settle(now);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::Down => {}
            Phase::Gap { .. } => self.missing(now),
            Phase::Waiting { .. } => self.request(now),
            Phase::Replaying { .. } => {
                self.out.push_back(Output::CancelReplay);
                self.replay_failed(now);
            }
            Phase::Live => {
                self.heard = now;
                if self.may_replay(now) {
                    self.counters.probes += 1;
                    self.request(now);
                }
            }
        }
    }

    fn may_replay(&self, now: u64) -> bool {
        self.policy.replay && now >= self.cool_until
    }

    /// Asks for everything after the last batch taken, and for that one again, as a proof. What was held is part of the
    /// reply if it is of the engine that runs; otherwise it must not be taken for its batches.
    fn request(&mut self, now: u64) {
        self.sure &= self.held.is_empty();
        self.drop_held();
        self.last_id += 1;
        let proof = self.next.and_then(|next| next.checked_sub(1));
        let from = proof.unwrap_or(0);
        self.attempted_at = self.next;
        self.counters.replays += 1;
        self.phase = Phase::Replaying {
            id: self.last_id,
            from,
            unproved: proof.is_some(),
            until: now.saturating_add(self.policy.replay_timeout),
        };
        self.out.push_back(Output::Replay {
            id: self.last_id,
            from,
        });
    }

    fn replay_failed(&mut self, now: u64) {
        self.counters.replay_failures += 1;
        if self.sure && self.next.is_some() && !self.regressed {
            // It was a mere question.
            self.phase = Phase::Live;
            self.heard = now;
            self.drain(now);
            self.settle(now);
            return;
        }
        self.attempts += 1;
        if self.attempts < self.policy.attempts {
            self.phase = Phase::Waiting {
                until: now.saturating_add(self.policy.backoff),
            };
        } else {
            self.go_on_without(now);
        }
    }

    /// Replay does not help: what is missing is lost. Live batches are taken as they come for a while.
    fn go_on_without(&mut self, now: u64) {
        self.attempts = 0;
        self.cool_until = now.saturating_add(self.policy.cool_down);
        self.heard = now;
        self.phase = Phase::Live;
        if self.next.is_some() {
            self.reset(Reset::Lost);
        }
        if self.regressed {
            // They may be of two streams.
            self.drop_held();
        }
        self.adopt_held();
        self.drain(now);
        self.settle(now);
    }

    /// After a drain: whether batches are still missing.
    fn settle(&mut self, now: u64) {
        if !matches!(self.phase, Phase::Live) {
            return;
        }
        let overflowed = std::mem::take(&mut self.overflowed);
        if self.held.is_empty() && !overflowed {
            self.sure = true;
            self.attempts = 0;
            return;
        }
        self.missing(now);
    }

    fn missing(&mut self, now: u64) {
        if !self.may_replay(now) {
            self.reset(Reset::Lost);
            self.phase = Phase::Live;
            self.adopt_held();
            self.drain(now);
            if !self.held.is_empty() {
                // Another hole behind the first.
                self.phase = Phase::Gap { until: now };
            }
            return;
        }
        self.sure = false;
        if self.next != self.attempted_at {
            self.attempts = 0;
        }
        self.attempts += 1;
        if self.attempts > self.policy.attempts {
            self.go_on_without(now);
        } else {
            self.request(now);
        }
    }

    /// Nothing is known: the first batch held begins the stream.
    fn adopt_held(&mut self) {
        if let Some((seq, payload)) = self.held.pop_first() {
            self.held_bytes -= payload.len();
            self.deliver(seq, payload);
        }
    }

    /// Hands on what is held and follows. Stops when the stream turns out to be another one.
    fn drain(&mut self, now: u64) {
        while let Some(next) = self.next {
            let Some((&seq, _)) = self.held.first_key_value() else {
                return;
            };
            if seq > next {
                return;
            }
            let Some((seq, payload)) = self.held.pop_first() else {
                return;
            };
            self.held_bytes -= payload.len();
            if seq == next {
                self.deliver(seq, payload);
            } else if self.old(seq, payload, now) {
                return;
            }
        }
    }

    /// A number before the next one: the same batch again, or the sign of another stream. True in the latter case.
    fn old(&mut self, seq: u64, payload: Bytes, now: u64) -> bool {
        let same = self
            .next
            .and_then(|next| usize::try_from(next.checked_sub(seq)?).ok())
            .and_then(|back| self.recent.len().checked_sub(back))
            .and_then(|at| self.recent.get(at))
            .is_some_and(|print| *print == xxh3_64(&payload));
        if same {
            self.counters.duplicates += 1;
            return false;
        }
        self.doubt(seq, payload, now);
        true
    }

    /// `payload` does not belong to the stream so far. A replay proves which of them is of the engine that runs, and brings
    /// the batch back if it is; without one, the newcomer is believed.
    fn doubt(&mut self, seq: u64, payload: Bytes, now: u64) {
        if self.may_replay(now) {
            self.sure = false;
            self.request(now);
            return;
        }
        self.reset(Reset::Restarted);
        self.drop_held();
        self.phase = Phase::Live;
        self.deliver(seq, payload);
    }

    fn hold(&mut self, seq: u64, payload: Bytes, now: u64) {
        match self.held.get(&seq) {
            Some(known) if *known == payload => {
                self.counters.duplicates += 1;
                return;
            }
            Some(_) => {
                self.drop_held();
                self.doubt(seq, payload, now);
                return;
            }
            None => {}
        }
        self.regressed |= self
            .held
            .last_key_value()
            .is_some_and(|(last, _)| seq < *last);
        if self.held.len() >= self.policy.max_held
            || self.held_bytes + payload.len() > self.policy.max_held_bytes
        {
            self.counters.overflowed += 1;
            self.overflowed = true;
            return;
        }
        self.keep(seq, payload);
    }

    fn keep(&mut self, seq: u64, payload: Bytes) {
        self.held_bytes += payload.len();
        self.held.insert(seq, payload);
    }

    fn drop_held(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
        self.overflowed = false;
        self.regressed = false;
    }

    fn deliver(&mut self, seq: u64, payload: Bytes) {
        self.recent.push_back(xxh3_64(&payload));
        if self.recent.len() > self.policy.memory.max(1) {
            self.recent.pop_front();
        }
        self.next = Some(seq + 1);
        self.counters.delivered += 1;
        self.out.push_back(Output::Deliver { seq, payload });
    }

    fn reset(&mut self, why: Reset) {
        match why {
            Reset::Restarted => self.counters.restarts += 1,
            Reset::Lost => self.counters.losses += 1,
            Reset::Unproved => self.counters.unproved += 1,
        }
        self.next = None;
        self.sure = true;
        self.recent.clear();
        self.out.push_back(Output::Reset(why));
    }
}
