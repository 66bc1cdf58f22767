//! From streams to holders: opening them, and what they say.

use super::parts::{Bound, Follow, Link, Msg, State, Target};
use super::{CacheFeeder, WAITING};
use crate::events::decode;
use crate::events::trtllm::Continuity;
use crate::feed::dialled::{Dialler, whose};
use crate::feed::holder::Holder;
use crate::feed::mirror::Naming;
use crate::feed::polled::{self, Polled};
use crate::feed::probe::Probe;
use crate::feed::sources::Found;
use crate::feed::version::{self, Version};
use crate::index::HolderKey;
use crate::keys::Scheme;
use crate::link::{
    Address, Counters, Direction, EventSource, LinkConfig, LinkEvent, ReplayAt, Reset,
    SourceStatus, State as LinkState, Subscriber,
};
use metrics::counter;
use quorate_routing::cache::EventsFrom;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

impl CacheFeeder {
    /// What is known now of where an endpoint's events come from.
    pub(super) async fn sources(
        &self,
        state: &mut State,
        endpoint: u64,
        generation: u64,
        found: Result<Found, String>,
    ) {
        let Some(follow) = state.follows.get_mut(&endpoint) else {
            return;
        };
        if follow.generation != generation {
            return;
        }
        let target = follow.target.clone();
        match found {
            Err(problem) => follow.problem = Some(problem),
            Ok(Found::Streams { sources, version }) => {
                follow.problem = sources
                    .is_empty()
                    .then(|| "the engine publishes no KV-cache events".to_owned());
                let renamed = renames(follow, version);
                self.dial(state, &target, sources, renamed).await;
            }
            Ok(Found::Dials { at, hosts, version }) => {
                let before = follow.problem.take();
                let renamed = renames(follow, version);
                let dialler = Dialler {
                    endpoint,
                    name: Arc::clone(&target.name),
                    authority: target.target.authority.clone(),
                    host: target.target.host.clone(),
                    addresses: hosts,
                };
                let dials = Some((at.clone(), dialler));
                if renamed {
                    // What was taken so far was taken for something else: from the next batch on.
                    follow.stream = None;
                }
                if follow.dials != dials {
                    follow.dials = dials;
                    state.bound.values_mut().for_each(|b| b.streams.clear());
                }
                if !state.bound.contains_key(&at)
                    && let Err(problem) = self.bind(state, &target, at).await
                    && let Some(follow) = state.follows.get_mut(&endpoint)
                {
                    if before.as_ref() != Some(&problem) {
                        // Another router may have the stream, whose status then says nothing of this one.
                        tracing::warn!(endpoint = %target.name, "{problem}");
                    }
                    follow.problem = Some(problem);
                }
            }
            Ok(Found::Polled { block_tokens }) => {
                if follow.polling.is_none() {
                    let polling = self.poll(state, target, generation, block_tokens);
                    if let Some(follow) = state.follows.get_mut(&endpoint) {
                        follow.polling = Some(polling);
                    }
                }
            }
        }
    }

    async fn dial(
        &self,
        state: &mut State,
        target: &Target,
        found: Vec<EventSource>,
        renamed: bool,
    ) {
        let endpoint = target.endpoint;
        let wanted: BTreeMap<HolderKey, EventSource> = found
            .into_iter()
            .filter(|source| target.rank.is_none_or(|rank| rank == source.rank))
            .map(|source| {
                let rank = source.rank;
                (HolderKey { endpoint, rank }, source)
            })
            .collect();
        let ended = |key: &HolderKey, link: &Link| {
            key.endpoint == endpoint && (renamed || wanted.get(key) != Some(&link.source))
        };
        state.links.retain(|key, link| !ended(key, link));
        for (key, source) in wanted {
            if !state.links.contains_key(&key) {
                self.begin(state, target, key, source, None).await;
            }
        }
    }

    /// Takes a holder over, from what the log has of it if the engine can prove its stream. Answers where the stream goes on.
    fn hold(
        &self,
        state: &mut State,
        target: &Target,
        key: HolderKey,
        block_tokens: Option<u32>,
        resumes: bool,
    ) -> Option<(u64, u64)> {
        let needs = &target.needs;
        let version = state.follows.get(&key.endpoint).and_then(|f| f.version);
        let scheme = match needs.events {
            // Its hashes cannot be computed, whatever the pool says.
            EventsFrom::Poll => Scheme::Own,
            _ => version::scheme(needs, version),
        };
        let naming = Naming {
            model: Arc::clone(&target.model),
            block_tokens: block_tokens.or(needs.block_tokens),
            scheme,
        };
        let known = self.options.replica.index().copy(key);
        let (holder, resume) =
            Holder::take_over(key, naming, self.options.part, known.as_ref(), resumes);
        state.proposals.holders.insert(key, holder);
        resume
    }

    /// Takes a holder over and opens the link to its engine's stream. `finding`: the engine does not hash as its settings say.
    async fn begin(
        &self,
        state: &mut State,
        target: &Target,
        key: HolderKey,
        source: EventSource,
        finding: Option<Arc<str>>,
    ) {
        let resumes = finding.is_none() && source.replay.is_some();
        let resume = self.hold(state, target, key, source.block_size, resumes);
        if let (Some(finding), Some(holder)) = (finding, state.proposals.holders.get_mut(&key)) {
            holder.distrust(finding);
        }
        let mut config = LinkConfig::new(Direction::Dial(source.events.clone()));
        config.topic.clone_from(&source.topic);
        config.resume = resume;
        if let Some(replay) = &source.replay {
            config.replay = ReplayAt::Address(replay.clone());
        }
        let generation = state.generation();
        let tell = move |event, permit| Msg::Link(key, generation, event, permit);
        match self.open(state, config, tell).await {
            Ok((subscriber, forward)) => {
                let link = Link {
                    generation,
                    subscriber,
                    forward,
                    source,
                };
                state.links.insert(key, link);
            }
            Err(error) => {
                tracing::warn!(endpoint = %target.name, %error, "no link to the engine's KV-cache events");
            }
        }
    }

    /// Opens the socket that engines dial.
    async fn bind(&self, state: &mut State, target: &Target, at: Address) -> Result<(), String> {
        let needs = &target.needs;
        let mut config = LinkConfig::new(Direction::Bind(at.clone()));
        config.topic.clone_from(&needs.topic);
        if let Some(port) = needs.replay_port {
            let rank = target.rank.unwrap_or(0);
            let port = u32::from(port).saturating_add(rank);
            let port = u16::try_from(port)
                .map_err(|_| format!("rank {rank} has no port for replays: {port}"))?;
            config.replay = ReplayAt::PeerPort(port);
        }
        let generation = state.generation();
        let address = at.clone();
        let tell = move |event, permit| Msg::Dialled(address.clone(), generation, event, permit);
        let (subscriber, forward) = self.open(state, config, tell).await.map_err(|error| {
            format!("{at}, which engines are to dial for their KV-cache events: {error}")
        })?;
        tracing::info!(address = %at, "engines may dial in for their KV-cache events");
        let bound = Bound {
            generation,
            subscriber,
            forward,
            config: (needs.topic.clone(), needs.replay_port),
            streams: BTreeMap::new(),
        };
        state.bound.insert(at, bound);
        Ok(())
    }

    async fn open(
        &self,
        state: &State,
        config: LinkConfig,
        tell: impl Fn(LinkEvent, OwnedSemaphorePermit) -> Msg + Send + 'static,
    ) -> std::io::Result<(Subscriber, AbortHandle)> {
        let (out, mut events) = mpsc::channel(WAITING);
        let subscriber = Subscriber::start(config, out).await?;
        let actor = state.myself.clone();
        let room = Arc::new(Semaphore::new(WAITING));
        let forward = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                    return;
                };
                if actor.cast(tell(event, permit)).is_err() {
                    return;
                }
            }
        });
        Ok((subscriber, forward.abort_handle()))
    }

    fn poll(
        &self,
        state: &State,
        target: Target,
        generation: u64,
        block_tokens: NonZeroU32,
    ) -> AbortHandle {
        let actor = state.myself.clone();
        let endpoint = target.endpoint;
        // One poll's events at a time: the rest waits in the engine.
        let room = Arc::new(Semaphore::new(1));
        let tell = move |polled: Polled| {
            let (actor, room) = (actor.clone(), Arc::clone(&room));
            async move {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                    return false;
                };
                let told = actor.cast(Msg::Polled(endpoint, generation, polled, permit));
                // Until the actor has taken it.
                told.is_ok() && room.acquire_owned().await.is_ok()
            }
        };
        let engines = Arc::clone(&self.options.engines);
        tokio::spawn(polled::poll(target, block_tokens, engines, tell)).abort_handle()
    }

    /// A stream that this node opened says something.
    pub(super) async fn linked(
        &self,
        state: &mut State,
        key: HolderKey,
        generation: u64,
        event: LinkEvent,
    ) {
        let current = state
            .links
            .get(&key)
            .is_some_and(|link| link.generation == generation);
        if !current || !self.take(state, key, event) {
            return;
        }
        // From the beginning of the engine's buffer, with keys of our own.
        counter!("quorate_cache_resets_total", "reason" => "hash mismatch").increment(1);
        let holder = state.proposals.holders.get(&key);
        let finding = holder.and_then(|holder| holder.mirror().finding());
        let target = state.follows.get(&key.endpoint).map(|f| f.target.clone());
        if let (Some(target), Some(link)) = (target, state.links.remove(&key)) {
            let source = link.source.clone();
            drop(link);
            self.begin(state, &target, key, source, finding).await;
        }
    }

    /// A stream of an engine that dialled in says something.
    pub(super) fn dialled(
        &self,
        state: &mut State,
        at: &Address,
        generation: u64,
        event: LinkEvent,
    ) {
        let (LinkEvent::Reset { source, .. } | LinkEvent::Batch { source, .. }) = &event;
        let Some(bound) = state.bound.get_mut(at) else {
            return;
        };
        if bound.generation != generation {
            return;
        }
        let whose = *bound.streams.entry(Arc::clone(source)).or_insert_with(|| {
            let diallers = state.follows.values().filter_map(|f| f.dials.as_ref());
            let here: Vec<&Dialler> = diallers.filter(|(a, _)| a == at).map(|(_, d)| d).collect();
            let whose = whose(source, &here);
            if let Err(why) = whose {
                tracing::warn!(stream = %source, address = %at, ?why, "KV-cache events that no endpoint can be found for");
            }
            whose
        });
        let Ok(endpoint) = whose else {
            counter!("quorate_cache_unattributed_total").increment(1);
            return;
        };
        let Some(follow) = state.follows.get_mut(&endpoint) else {
            return;
        };
        let rank = follow.target.rank.unwrap_or(0);
        let key = HolderKey { endpoint, rank };
        if follow.stream.as_ref() != Some(source) {
            // Another stream of the same engine is believed as long as it is there.
            let other = follow.stream.as_ref().and_then(|other| {
                let status = bound.subscriber.status();
                status.get(other).map(|status| status.state)
            });
            if other.is_some_and(|state| state != LinkState::Down) {
                counter!("quorate_cache_unattributed_total").increment(1);
                return;
            }
            follow.stream = Some(Arc::clone(source));
            let target = follow.target.clone();
            self.hold(state, &target, key, None, false);
        }
        if self.take(state, key, event) {
            counter!("quorate_cache_resets_total", "reason" => "hash mismatch").increment(1);
        }
    }

    /// What an engine had since the last poll.
    pub(super) fn polled(&self, state: &mut State, endpoint: u64, generation: u64, polled: Polled) {
        let Some(follow) = state.follows.get_mut(&endpoint) else {
            return;
        };
        if follow.generation != generation {
            return;
        }
        let found = match polled {
            Ok(found) => {
                follow.problem = None;
                found
            }
            Err(problem) => {
                follow.problem = Some(problem);
                for status in follow.polled.values_mut() {
                    status.state = LinkState::Down;
                }
                return;
            }
        };
        let target = follow.target.clone();
        follow.polled.entry(0).or_insert_with(unheard);
        for status in follow.polled.values_mut() {
            status.state = LinkState::Live;
        }
        for events in found {
            let rank = events.batch.rank.unwrap_or(0);
            let key = HolderKey { endpoint, rank };
            let Some(follow) = state.follows.get_mut(&endpoint) else {
                return;
            };
            let restarted = events.continuity == Continuity::Restarted;
            let status = follow.polled.entry(rank).or_insert_with(unheard);
            status.heard = Some(Instant::now());
            status.last = Some(events.last_id);
            status.counters.delivered += 1;
            match events.continuity {
                Continuity::Continuous => {}
                Continuity::Restarted => status.counters.restarts += 1,
                Continuity::Lost(_) => {
                    status.counters.gaps += 1;
                    status.counters.losses += 1;
                }
            }
            follow.probe.sees(&events.batch);
            if restarted {
                follow.probe = Probe::default();
            }
            if !state.proposals.holders.contains_key(&key) {
                self.hold(state, &target, key, None, false);
            }
            if let Some(holder) = state.proposals.holders.get_mut(&key) {
                counter!("quorate_cache_event_batches_total").increment(1);
                if events.continuity != Continuity::Continuous {
                    let why = if restarted {
                        Reset::Restarted
                    } else {
                        Reset::Lost
                    };
                    counter!("quorate_cache_resets_total", "reason" => why.as_str()).increment(1);
                    holder.reset(restarted);
                }
                // No mark: an engine that was emptied proves nothing to the next owner.
                holder.apply(Some(events.last_id), 0, &events.batch);
            }
        }
    }

    /// Takes what a stream says. True if the engine should say everything again: it does not hash as its settings say.
    fn take(&self, state: &mut State, key: HolderKey, event: LinkEvent) -> bool {
        let Some(holder) = state.proposals.holders.get_mut(&key) else {
            return false;
        };
        let follow = state.follows.get_mut(&key.endpoint);
        match event {
            LinkEvent::Reset { why, .. } => {
                counter!("quorate_cache_resets_total", "reason" => why.as_str()).increment(1);
                holder.reset(why == Reset::Restarted);
                if let (Reset::Restarted, Some(follow)) = (why, follow) {
                    follow.probe = Probe::default();
                }
            }
            LinkEvent::Batch { seq, payload, .. } => {
                counter!("quorate_cache_event_batches_total").increment(1);
                match decode(&payload, &mut state.batch) {
                    Ok(()) => {
                        if let Some(follow) = follow
                            && follow.probe.sees(&state.batch)
                        {
                            tracing::info!(endpoint = %follow.target.name, "self-check: the engine announces what it computes");
                        }
                        return holder.apply(Some(seq), xxh3_64(&payload), &state.batch);
                    }
                    Err(error) => {
                        // What it said is lost, and with it the proof of what came before.
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
}

/// Whether the engine's version is now known to be another: it may name its blocks differently.
fn renames(follow: &mut Follow, version: Option<Version>) -> bool {
    let needs = &follow.target.needs;
    let before = version::scheme(needs, follow.version);
    follow.version = version.or(follow.version);
    version::scheme(needs, follow.version) != before
}

fn unheard() -> SourceStatus {
    SourceStatus {
        state: LinkState::Live,
        last: None,
        counters: Counters::default(),
        heard: None,
        foreign: 0,
        unreadable: 0,
        replay_error: None,
    }
}
