//! The actor: follows the engines of the endpoints that this node owns, and tells the log what they hold.

mod look;
mod parts;
mod streams;

use super::holder::Verdict;
use super::outcome::decode_outcomes;
use super::proposals::{Answer, Proposals};
use super::sources;
use super::status::Statuses;
use crate::events::Batch;
use crate::index::HolderKey;
use crate::link::Address;
use bytes::Bytes;
use metrics::{counter, histogram};
use quorate_routing::cache::{CacheNeeds, EventsFrom};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(50);
/// The same as long as there is nothing to follow and nothing in the map.
const IDLE_TICK: Duration = Duration::from_millis(500);
/// Ticks between two audits, and between two looks at the links.
const AUDIT: u64 = 100;
const LOOK: u64 = 20;
/// Ticks between two checks of the replicas' digests, and before a holder of no declared endpoint is removed.
const CHECK: u64 = 600;
const ORPHAN: Duration = Duration::from_secs(60);
/// Pause before an owner that was outbid, or found no room, tries again.
const AGAIN: Duration = Duration::from_secs(2);
/// Pause before a batch without an answer is proposed again.
const REPEAT: Duration = Duration::from_millis(200);
/// Engine messages that wait for the actor.
const WAITING: usize = 256;

use parts::Follow;
pub use parts::{FeederHandle, FeederOptions, Log, Msg, Proposing, State, Target, Targets};

/// See the module's documentation.
pub struct CacheFeeder {
    options: FeederOptions,
    statuses: Statuses,
}

impl CacheFeeder {
    /// Starts it.
    ///
    /// # Errors
    /// The actor does not start.
    pub async fn start(options: FeederOptions) -> Result<FeederHandle, ractor::SpawnErr> {
        let statuses = Statuses::default();
        let feeder = Self {
            options,
            statuses: statuses.clone(),
        };
        let (actor, _) = Self::spawn(None, feeder, ()).await?;
        Ok(FeederHandle { actor, statuses })
    }
}

impl Actor for CacheFeeder {
    type Msg = Msg;
    type State = State;
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Msg>, (): ()) -> Result<State, ActorProcessingErr> {
        let mut targets = self.options.targets.clone();
        targets.mark_changed();
        let (watching, ticking) = (myself.clone(), myself.clone());
        let (no_targets, replica) = (targets.clone(), Arc::clone(&self.options.replica));
        let watcher = tokio::spawn(async move {
            while targets.changed().await.is_ok() {
                if watching.cast(Msg::Targets).is_err() {
                    return;
                }
            }
        });
        let ticker = tokio::spawn(async move {
            loop {
                let nothing = no_targets.borrow().owned.is_empty()
                    && replica.index().holders_now().iter().next().is_none();
                tokio::time::sleep(if nothing { IDLE_TICK } else { TICK }).await;
                if ticking.cast(Msg::Tick).is_err() {
                    return;
                }
            }
        });
        Ok(State {
            myself,
            proposals: Proposals::default(),
            follows: BTreeMap::new(),
            links: BTreeMap::new(),
            bound: BTreeMap::new(),
            later: Vec::new(),
            orphans: HashMap::new(),
            ticks: 0,
            generations: 0,
            batch: Batch::new(),
            tasks: vec![watcher.abort_handle(), ticker.abort_handle()],
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Msg>,
        message: Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Targets => self.targets(state),
            Msg::Tick => self.tick(state),
            Msg::Sources(endpoint, generation, found) => {
                self.sources(state, endpoint, generation, found).await;
            }
            Msg::Link(key, generation, event, _permit) => {
                self.linked(state, key, generation, event).await;
                self.send(state, false);
            }
            Msg::Dialled(at, generation, event, _permit) => {
                self.dialled(state, &at, generation, event);
                self.send(state, false);
            }
            Msg::Polled(endpoint, generation, polled, _permit) => {
                self.polled(state, endpoint, generation, polled);
                self.send(state, false);
            }
            Msg::Probed(endpoint, generation, answer) => {
                self.probed(state, endpoint, generation, answer);
            }
            Msg::Answered(id, answer) => self.answered(state, id, answer),
        }
        Ok(())
    }
}

impl CacheFeeder {
    fn targets(&self, state: &mut State) {
        let targets = self.options.targets.borrow().clone();
        let owned: BTreeMap<u64, &Target> = targets.owned.iter().map(|t| (t.endpoint, t)).collect();
        let gone: Vec<u64> = state
            .follows
            .iter()
            .filter(|(endpoint, follow)| owned.get(endpoint) != Some(&&follow.target))
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in gone {
            if let Some(mut follow) = state.follows.remove(&endpoint) {
                look::say(&mut follow, Vec::new());
            }
            state.bound.values_mut().for_each(|b| b.streams.clear());
            state.links.retain(|key, _| key.endpoint != endpoint);
            let removed = targets
                .declared
                .as_ref()
                .is_some_and(|declared| !declared.contains(&endpoint));
            let keys: Vec<(HolderKey, u64)> = state
                .proposals
                .holders
                .iter()
                .filter(|(key, _)| key.endpoint == endpoint)
                .map(|(key, holder)| (*key, holder.epoch()))
                .collect();
            self.statuses.keep(endpoint, &[]);
            for (key, epoch) in keys {
                if removed {
                    state.proposals.remove(key, epoch);
                } else {
                    state.proposals.holders.remove(&key);
                }
            }
        }
        for (endpoint, target) in owned {
            if state.follows.contains_key(&endpoint) {
                continue;
            }
            let generation = state.generation();
            let asking = tokio::spawn(sources::ask(
                target.clone(),
                Arc::clone(&self.options.engines),
                {
                    let actor = state.myself.clone();
                    move |found| {
                        actor
                            .cast(Msg::Sources(endpoint, generation, found))
                            .is_ok()
                    }
                },
            ));
            let follow = Follow::new(target.clone(), generation, asking.abort_handle());
            state.follows.insert(endpoint, follow);
        }
        // One socket serves all that are to dial its address; of pools that want it in other ways, the first one has its.
        let dialled: BTreeSet<(Address, String, Option<u16>)> = state
            .follows
            .values()
            .filter_map(|follow| {
                let (target, needs) = (&follow.target, &follow.target.needs);
                let at = target.dials().ok().flatten()?;
                Some((at, needs.topic.clone(), needs.replay_port))
            })
            .collect();
        state.bound.retain(|at, bound| {
            let (topic, replay) = bound.config.clone();
            dialled.contains(&(at.clone(), topic, replay))
        });
    }

    fn send(&self, state: &mut State, tick: bool) {
        while let Some((id, bytes)) = state.proposals.next(tick) {
            histogram!("quorate_cache_delta_bytes").record(bytes.len() as f64);
            self.propose(state, id, bytes, Duration::ZERO);
        }
    }

    fn propose(&self, state: &State, id: u64, bytes: Bytes, pause: Duration) {
        let (log, actor) = (Arc::clone(&self.options.log), state.myself.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            let answer = log.propose(bytes).await;
            histogram!("quorate_cache_propose_seconds").record(began.elapsed().as_secs_f64());
            // An error means that the feeder has ended.
            let _ = actor.cast(Msg::Answered(id, answer));
        });
    }

    fn answered(&self, state: &mut State, id: u64, answer: Result<Bytes, String>) {
        let answer = match answer.map(|bytes| decode_outcomes(&bytes)) {
            Ok(Ok(outcomes)) => Answer::Outcomes(outcomes),
            // What is no answer names no holder: all of them are told again.
            Ok(Err(_)) => Answer::Outcomes(Vec::new()),
            Err(error) => {
                tracing::debug!(%error, "the cache group gives no answer");
                counter!("quorate_cache_proposals_repeated_total").increment(1);
                Answer::Unknown
            }
        };
        let (verdicts, again) = state.proposals.answered(id, answer);
        if let Some(bytes) = again {
            self.propose(state, id, bytes, REPEAT);
        }
        let at = Instant::now() + AGAIN;
        for (key, verdict) in verdicts {
            match verdict {
                Verdict::Fine => {}
                Verdict::Again => counter!("quorate_cache_full_sets_total").increment(1),
                Verdict::NoRoom => state.later.push((at, key, None)),
                Verdict::Outbid(epoch) => state.later.push((at, key, Some(epoch))),
            }
        }
        self.send(state, false);
    }

    fn tick(&self, state: &mut State) {
        state.ticks += 1;
        let now = Instant::now();
        let due: Vec<_> = state.later.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, key, epoch) in due {
            if epoch.is_some() && self.has_left(state, key.endpoint) {
                // Its engine dialled another router, which has the holder now.
                state.proposals.holders.remove(&key);
                if let Some(follow) = state.follows.get_mut(&key.endpoint) {
                    follow.stream = None;
                }
                continue;
            }
            // Still here: ownership says that it is ours.
            if let Some(holder) = state.proposals.holders.get_mut(&key) {
                match epoch {
                    Some(epoch) => holder.outbid(epoch, self.options.part),
                    None => holder.untell(),
                }
            }
        }
        if state.ticks.is_multiple_of(AUDIT) {
            let told = self.options.replica.index().holders();
            let differing = state.proposals.audit(&told);
            counter!("quorate_cache_digest_mismatches_total", "between" => "owner and map")
                .increment(differing as u64);
            self.orphans(
                state,
                now,
                told.iter().map(|status| (status.holder, status.epoch)),
            );
        }
        if state.ticks.is_multiple_of(LOOK) {
            self.look(state);
        }
        if state.ticks.is_multiple_of(CHECK) {
            self.note(self.options.replica.next_check());
        }
        if let Some(remedy) = self.options.replica.remedy() {
            self.note(remedy);
        }
        self.send(state, true);
    }

    /// Proposes an entry of which no answer is needed: if it gets lost, the next one comes.
    fn note(&self, entry: Bytes) {
        let log = Arc::clone(&self.options.log);
        tokio::spawn(async move {
            if let Err(error) = log.propose(entry).await {
                tracing::debug!(%error, "the cache group took no check");
            }
        });
    }

    /// Holders whose endpoint is not declared any more, and whose owner did not say so.
    fn orphans(
        &self,
        state: &mut State,
        now: Instant,
        holders: impl Iterator<Item = (HolderKey, u64)>,
    ) {
        let targets = self.options.targets.borrow();
        let Some(declared) = &targets.declared else {
            return;
        };
        let mut still = HashMap::new();
        for (key, epoch) in holders.filter(|(key, _)| !declared.contains(&key.endpoint)) {
            let since = state.orphans.get(&key).copied().unwrap_or(now);
            if now.duration_since(since) >= ORPHAN {
                state.proposals.remove(key, epoch);
            } else {
                still.insert(key, since);
            }
        }
        state.orphans = still;
    }
}

/// Whether a pool's engines are followed at all.
#[must_use]
pub fn follows(needs: &CacheNeeds) -> bool {
    needs.events != EventsFrom::Off
}
