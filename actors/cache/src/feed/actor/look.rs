//! The look at all endpoints about once a second: conditions, self-checks and statuses.

use super::CacheFeeder;
use super::parts::{Follow, Msg, State};
use crate::feed::check::name_of;
use crate::feed::condition::{self, Condition};
use crate::feed::dialled::Nobody;
use crate::feed::holder::Holder;
use crate::feed::probe::{self, Probe};
use crate::feed::status::FeederStatus;
use crate::feed::version;
use crate::index::HolderKey;
use crate::link::{Address, SourceStatus, State as LinkState, Subscriber};
use metrics::gauge;
use quorate_routing::cache::EventsFrom;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// Streams by the address that they dialled, and by name.
type Dialled = BTreeMap<Address, BTreeMap<Arc<str>, SourceStatus>>;

/// One holder's stream, and what is wrong with it.
struct Stream {
    status: Option<SourceStatus>,
    trouble: Option<String>,
}

impl CacheFeeder {
    pub(super) fn look(&self, state: &mut State) {
        let dialled: Dialled = state
            .bound
            .iter()
            .map(|(at, bound)| (at.clone(), bound.subscriber.status()))
            .collect();
        // Whose engines came to this or another router.
        let fed: BTreeSet<u64> = match state.follows.values().any(|f| f.dials.is_some()) {
            false => BTreeSet::new(),
            true => {
                let holders = self.options.replica.index().holders();
                holders.iter().map(|held| held.holder.endpoint).collect()
            }
        };
        let endpoints: Vec<u64> = state.follows.keys().copied().collect();
        for endpoint in endpoints {
            self.look_at(state, endpoint, &dialled, &fed);
        }
    }

    fn look_at(&self, state: &mut State, endpoint: u64, dialled: &Dialled, fed: &BTreeSet<u64>) {
        let streams = streams_of(state, endpoint, dialled);
        let lost = lost_streams(state, endpoint, dialled);
        let Some(follow) = state.follows.get_mut(&endpoint) else {
            return;
        };
        let holders = || state.proposals.holders.range(ranks(endpoint));
        let live = |stream: &Stream| {
            let status = stream.status.as_ref();
            status.is_some_and(|status| status.state == LinkState::Live)
        };
        let is_live = streams.values().any(live);
        let heard = holders().any(|(_, holder)| holder.mirror().has_heard());
        if follow.target.needs.self_check && follow.probe.look(is_live, heard, Instant::now()) {
            let block = holders().find_map(|(_, h)| h.mirror().space().map(|s| s.block_tokens()));
            self.probe(&state.myself, follow, block);
            for (_, holder) in state.proposals.holders.range_mut(ranks(endpoint)) {
                holder.recheck();
            }
        }
        let mut now: Vec<Condition> = Vec::new();
        let here = state.proposals.holders.range(ranks(endpoint));
        let mut shown = Vec::new();
        for (key, holder) in here {
            shown.push(*key);
            let stream = streams.get(key);
            let conditions = conditions(follow, Some(holder), stream);
            now.extend(conditions.iter().cloned());
            let status = FeederStatus::of(
                &follow.target.name,
                holder,
                stream.and_then(|stream| stream.status.as_ref()),
                problem(follow, stream),
                conditions,
            );
            self.statuses.set(*key, status);
        }
        if shown.is_empty() {
            let key = HolderKey {
                endpoint,
                rank: follow.target.rank.unwrap_or(0),
            };
            // Else it came to another router, whose status says how it is.
            if follow.dials.is_none() || !fed.contains(&endpoint) {
                shown.push(key);
                let conditions = match &follow.dials {
                    Some((at, _)) if follow.problem.is_none() => {
                        vec![Condition::new(condition::NEVER_CAME, never_came(at, &lost))]
                    }
                    _ => conditions(follow, None, streams.get(&key)),
                };
                now.extend(conditions.iter().cloned());
                let stream = streams.get(&key);
                let status = FeederStatus::without_blocks(
                    &follow.target.name,
                    stream.and_then(|stream| stream.status.as_ref()),
                    problem(follow, stream),
                    conditions,
                );
                self.statuses.set(key, status);
            }
        }
        self.statuses.keep(endpoint, &shown);
        say(follow, now);
    }

    /// Sends the prompt of the self-check.
    fn probe(&self, myself: &ractor::ActorRef<Msg>, follow: &mut Follow, block: Option<u32>) {
        let block = block.or(follow.target.needs.block_tokens);
        let salt = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let salt = salt.map_or(0, |since| since.as_nanos() as u64) ^ follow.target.endpoint;
        let body = follow.probe.send(&follow.target.model, block, salt);
        let (actor, engines) = (myself.clone(), Arc::clone(&self.options.engines));
        let (target, generation) = (follow.target.clone(), follow.generation);
        tokio::spawn(async move {
            let answer = engines
                .post(&target, probe::PATH, body, probe::ANSWER_WITHIN)
                .await;
            let answer = answer.and_then(|page| {
                let none = || format!("it has no {}", probe::PATH);
                page.map(|_| ()).ok_or_else(none)
            });
            // An error means that the feeder has ended.
            let _ = actor.cast(Msg::Probed(target.endpoint, generation, answer));
        });
    }

    pub(super) fn probed(
        &self,
        state: &mut State,
        endpoint: u64,
        generation: u64,
        answer: Result<(), String>,
    ) {
        if let Some(follow) = state.follows.get_mut(&endpoint)
            && follow.generation == generation
        {
            follow.probe.answered(answer, Instant::now());
            if let Probe::Refused(why) = &follow.probe {
                tracing::info!(endpoint = %follow.target.name, why, "self-check: the engine did not take a prompt of token ids; its first requests will show");
            }
        }
    }

    /// Whether an engine that dialled in here is still there. One that is not may have gone to another router.
    pub(super) fn has_left(&self, state: &State, endpoint: u64) -> bool {
        let Some(follow) = state.follows.get(&endpoint) else {
            return false;
        };
        let Some((at, _)) = &follow.dials else {
            return false;
        };
        let streams = state.bound.get(at).map(|bound| bound.subscriber.status());
        let status = streams
            .as_ref()
            .zip(follow.stream.as_ref())
            .and_then(|(streams, name)| streams.get(name));
        status.is_none_or(|status| status.state == LinkState::Down)
    }
}

fn ranks(endpoint: u64) -> std::ops::RangeInclusive<HolderKey> {
    HolderKey { endpoint, rank: 0 }..=HolderKey {
        endpoint,
        rank: u32::MAX,
    }
}

fn streams_of(state: &State, endpoint: u64, dialled: &Dialled) -> BTreeMap<HolderKey, Stream> {
    let mut streams = BTreeMap::new();
    for (key, link) in state.links.range(ranks(endpoint)) {
        let status = link.subscriber.status().into_values().next();
        let replay = status.as_ref().and_then(|s| s.replay_error.clone());
        let trouble = link.subscriber.trouble().or(replay);
        streams.insert(*key, Stream { status, trouble });
    }
    let Some(follow) = state.follows.get(&endpoint) else {
        return streams;
    };
    for (rank, status) in &follow.polled {
        let key = HolderKey {
            endpoint,
            rank: *rank,
        };
        let stream = Stream {
            status: Some(status.clone()),
            trouble: None,
        };
        streams.insert(key, stream);
    }
    if let (Some((at, _)), Some(name)) = (&follow.dials, &follow.stream) {
        let status = dialled.get(at).and_then(|streams| streams.get(name));
        let trouble = state.bound.get(at).map(|bound| &bound.subscriber);
        let rank = follow.target.rank.unwrap_or(0);
        let stream = Stream {
            trouble: status
                .and_then(|s| s.replay_error.clone())
                .or_else(|| trouble.and_then(Subscriber::trouble)),
            status: status.cloned(),
        };
        streams.insert(HolderKey { endpoint, rank }, stream);
    }
    streams
}

/// Streams on an endpoint's socket that are nobody's.
fn lost_streams(state: &State, endpoint: u64, dialled: &Dialled) -> Vec<(Arc<str>, Nobody)> {
    let follow = state.follows.get(&endpoint);
    let Some((at, _)) = follow.and_then(|follow| follow.dials.as_ref()) else {
        return Vec::new();
    };
    let up = |name: &Arc<str>| {
        let streams = dialled.get(at);
        let status = streams.and_then(|streams| streams.get(name));
        status.is_some_and(|status| status.state != LinkState::Down)
    };
    let streams = state.bound.get(at).map(|bound| bound.streams.iter());
    let lost = streams
        .into_iter()
        .flatten()
        .filter(|(name, _)| up(name))
        .filter_map(|(name, whose)| Some((Arc::clone(name), whose.err()?)));
    lost.take(3).collect()
}

fn never_came(at: &Address, lost: &[(Arc<str>, Nobody)]) -> String {
    let mut text =
        format!("the engine was to dial {at} and has not come, here or to another router");
    for (name, why) in lost {
        text.push_str(&match why {
            Nobody::Unknown => format!("; the stream {name:?} is of no endpoint that is known"),
            Nobody::Ambiguous => {
                format!("; the stream {name:?} could be of several endpoints, give their engines topics such as kv@HOST:PORT@MODEL")
            }
        });
    }
    text
}

fn problem(follow: &Follow, stream: Option<&Stream>) -> Option<String> {
    let refused = match &follow.probe {
        Probe::Refused(why) => Some(format!(
            "the engine did not take the self-check's prompt: {why}"
        )),
        _ => None,
    };
    stream
        .and_then(|stream| stream.trouble.clone())
        .or_else(|| follow.problem.clone())
        .or(refused)
}

fn conditions(follow: &Follow, holder: Option<&Holder>, stream: Option<&Stream>) -> Vec<Condition> {
    let needs = &follow.target.needs;
    let mut conditions = Vec::new();
    if let Some(finding) = holder.and_then(|holder| holder.mirror().finding()) {
        let message =
            format!("{finding}; its blocks are learnt from the tokens in its events instead");
        conditions.push(Condition::new(condition::HASH_MISMATCH, message));
    }
    if let Some((set, found)) = holder.and_then(|holder| holder.mirror().block_sizes()) {
        let message =
            format!("its blocks have {found} tokens, by the settings {set}: {found} is used");
        conditions.push(Condition::new(condition::BLOCK_SIZE_MISMATCH, message));
    }
    if needs.events != EventsFrom::Poll
        && let Some(version) = version::draws_seed(needs, follow.version)
    {
        let message = format!(
            "vLLM {version} draws the seed of its hashes at random unless PYTHONHASHSEED is set: set it, and hashSeed in the pool's \
             configuration to the same; until then keys are {}",
            name_of(&version::scheme(needs, follow.version))
        );
        conditions.push(Condition::new(condition::RANDOM_SEED, message));
    }
    if let Some(tokens) = follow.probe.unheard() {
        let message = format!(
            "the engine computed a prompt of {tokens} tokens and announced no block of it: its KV-cache events or its prefix caching are \
             off, or they are published elsewhere"
        );
        conditions.push(Condition::new(condition::SILENT, message));
    }
    let status = stream.and_then(|stream| stream.status.as_ref());
    if status.is_none_or(|status| status.state == LinkState::Down) {
        let why = problem(follow, stream);
        let why = why.unwrap_or_else(|| "the engine's stream of events is not there".to_owned());
        conditions.push(Condition::new(condition::NO_STREAM, why));
    }
    conditions
}

/// One line for each condition that comes or goes.
pub(super) fn say(follow: &mut Follow, now: Vec<Condition>) {
    let endpoint = &follow.target.name;
    let publish = |condition: &Condition, holds: f64| {
        let labels = [
            ("endpoint", endpoint.to_string()),
            ("condition", condition.name.to_owned()),
        ];
        gauge!("quorate_cache_endpoint_condition", &labels).set(holds);
    };
    let has = |all: &[Condition], one: &Condition| all.iter().any(|c| c.name == one.name);
    for gone in follow.said.iter().filter(|c| !has(&now, c)) {
        publish(gone, 0.0);
        tracing::info!(%endpoint, condition = gone.name, "this condition is over");
    }
    for (at, new) in now.iter().enumerate() {
        let told = has(&follow.said, new) || has(now.get(..at).unwrap_or_default(), new);
        if told {
            continue;
        }
        publish(new, 1.0);
        if matches!(new.name, condition::NO_STREAM | condition::NEVER_CAME) {
            // Engines that start are without a stream for a while.
            tracing::info!(%endpoint, condition = new.name, "{}", new.message);
        } else {
            tracing::warn!(%endpoint, condition = new.name, "{}", new.message);
        }
    }
    follow.said = now;
}
