//! The actor: follows the engines of the endpoints that this node owns, and tells the log what they hold.

mod parts;

use super::holder::{Holder, Verdict};
use super::mirror::Naming;
use super::outcome::decode_outcomes;
use super::proposals::{Answer, Proposals};
use super::sources;
use super::status::{FeederStatus, Statuses};
use crate::events::{Batch, decode};
use crate::hash::ExtraForm;
use crate::index::HolderKey;
use crate::keys::Scheme;
use crate::link::{Direction, EventSource, LinkConfig, LinkEvent, ReplayAt, Reset, Subscriber};
use bytes::Bytes;
use metrics::{counter, histogram};
use quorate_routing::cache::{CacheNeeds, EventsFrom};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use xxhash_rust::xxh3::xxh3_64;

const TICK: Duration = Duration::from_millis(50);
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

pub use parts::{FeederHandle, FeederOptions, Log, Msg, Proposing, State, Target, Targets};
use parts::{Follow, Link};

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
        let watcher = tokio::spawn(async move {
            while targets.changed().await.is_ok() {
                if watching.cast(Msg::Targets).is_err() {
                    return;
                }
            }
        });
        let ticker = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
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
                if self.link(state, key, generation, event) {
                    self.rewind(state, key).await;
                }
                self.send(state, false);
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
            state.follows.remove(&endpoint);
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
            for (key, epoch) in keys {
                self.statuses.remove(key);
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
            state.generations += 1;
            let generation = state.generations;
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
            let follow = Follow {
                target: target.clone(),
                generation,
                asking: asking.abort_handle(),
                problem: None,
            };
            state.follows.insert(endpoint, follow);
        }
    }

    async fn sources(
        &self,
        state: &mut State,
        endpoint: u64,
        generation: u64,
        found: Result<Vec<EventSource>, String>,
    ) {
        let Some(follow) = state.follows.get_mut(&endpoint) else {
            return;
        };
        if follow.generation != generation {
            return;
        }
        let found = match found {
            Ok(found) => found,
            Err(problem) => {
                follow.problem = Some(problem);
                return;
            }
        };
        follow.problem = found
            .is_empty()
            .then(|| "the engine publishes no KV-cache events".to_owned());
        let target = follow.target.clone();
        let wanted: BTreeMap<HolderKey, EventSource> = found
            .into_iter()
            .filter(|source| target.rank.is_none_or(|rank| rank == source.rank))
            .map(|source| {
                let rank = source.rank;
                (HolderKey { endpoint, rank }, source)
            })
            .collect();
        let ended = |key: &HolderKey, link: &Link| {
            key.endpoint == endpoint && wanted.get(key) != Some(&link.source)
        };
        state.links.retain(|key, link| !ended(key, link));
        for (key, source) in wanted {
            if !state.links.contains_key(&key) {
                self.begin(state, &target, key, source, true).await;
            }
        }
    }

    /// Takes a holder over and opens the link to its engine's stream.
    async fn begin(
        &self,
        state: &mut State,
        target: &Target,
        key: HolderKey,
        source: EventSource,
        adopt: bool,
    ) {
        let needs = &target.needs;
        let naming = Naming {
            model: Arc::clone(&target.model),
            block_tokens: source.block_size.or(needs.block_tokens),
            scheme: Scheme::of(
                needs.algorithm.as_deref().filter(|_| adopt),
                needs.hash_seed.as_deref(),
                ExtraForm::Tagged,
            ),
        };
        let known = self.options.replica.index().copy(key);
        let resumes = adopt && source.replay.is_some();
        let (holder, resume) =
            Holder::take_over(key, naming, self.options.part, known.as_ref(), resumes);
        state.proposals.holders.insert(key, holder);
        let mut config = LinkConfig::new(Direction::Dial(source.events.clone()));
        config.topic.clone_from(&source.topic);
        config.resume = resume;
        if let Some(replay) = &source.replay {
            config.replay = ReplayAt::Address(replay.clone());
        }
        let (out, mut events) = mpsc::channel(WAITING);
        let subscriber = match Subscriber::start(config, out).await {
            Ok(subscriber) => subscriber,
            Err(error) => {
                tracing::warn!(endpoint = %target.name, %error, "no link to the engine's KV-cache events");
                return;
            }
        };
        state.generations += 1;
        let generation = state.generations;
        let actor = state.myself.clone();
        let room = Arc::new(Semaphore::new(WAITING));
        let forward = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                    return;
                };
                if actor
                    .cast(Msg::Link(key, generation, event, permit))
                    .is_err()
                {
                    return;
                }
            }
        });
        let link = Link {
            generation,
            subscriber,
            forward: forward.abort_handle(),
            source,
        };
        state.links.insert(key, link);
    }

    /// Takes what a stream says. True if the engine should say everything again.
    fn link(&self, state: &mut State, key: HolderKey, generation: u64, event: LinkEvent) -> bool {
        let current = state
            .links
            .get(&key)
            .is_some_and(|l| l.generation == generation);
        let Some(holder) = state.proposals.holders.get_mut(&key).filter(|_| current) else {
            return false;
        };
        match event {
            LinkEvent::Reset { why, .. } => {
                counter!("quorate_cache_resets_total", "reason" => why.as_str()).increment(1);
                holder.reset(why == Reset::Restarted);
            }
            LinkEvent::Batch { seq, payload, .. } => {
                counter!("quorate_cache_event_batches_total").increment(1);
                match decode(&payload, &mut state.batch) {
                    Ok(()) => return holder.apply(Some(seq), xxh3_64(&payload), &state.batch),
                    Err(error) => {
                        counter!("quorate_cache_resets_total", "reason" => "unreadable")
                            .increment(1);
                        tracing::warn!(endpoint = key.endpoint, rank = key.rank, %error, "a batch of KV-cache events cannot be read");
                        holder.unreadable();
                    }
                }
            }
        }
        false
    }

    /// The engine does not hash as its settings say: from the beginning of its buffer, with keys of our own.
    async fn rewind(&self, state: &mut State, key: HolderKey) {
        counter!("quorate_cache_resets_total", "reason" => "hash mismatch").increment(1);
        let target = state.follows.get(&key.endpoint).map(|f| f.target.clone());
        if let (Some(target), Some(link)) = (target, state.links.remove(&key)) {
            let source = link.source.clone();
            drop(link);
            self.begin(state, &target, key, source, false).await;
        }
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

    fn look(&self, state: &State) {
        for (endpoint, follow) in &state.follows {
            let keys = state.proposals.holders.range(
                HolderKey {
                    endpoint: *endpoint,
                    rank: 0,
                }..=HolderKey {
                    endpoint: *endpoint,
                    rank: u32::MAX,
                },
            );
            let mut any = false;
            for (key, holder) in keys {
                any = true;
                let link = state.links.get(key).map(|link| &link.subscriber);
                let status =
                    FeederStatus::of(&follow.target.name, holder, link, follow.problem.as_deref());
                self.statuses.set(*key, status);
            }
            if !any {
                let key = HolderKey {
                    endpoint: *endpoint,
                    rank: follow.target.rank.unwrap_or(0),
                };
                let status =
                    FeederStatus::without_source(&follow.target.name, follow.problem.as_deref());
                self.statuses.set(key, status);
            }
        }
    }
}

/// Whether a pool's engines are followed at all.
#[must_use]
pub fn follows(needs: &CacheNeeds) -> bool {
    needs.events != EventsFrom::Off
}
