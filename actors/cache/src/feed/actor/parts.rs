//! What the feeder is made from, is told and has in hand.

use super::super::condition::Condition;
use super::super::dialled::{Dialler, Nobody};
use super::super::polled::Polled;
use super::super::probe::Probe;
use super::super::proposals::Proposals;
use super::super::replica::Replicated;
use super::super::sources::{Engines, Found};
use super::super::status::{FeederStatus, Statuses};
use super::super::version::Version;
use crate::events::Batch;
use crate::index::HolderKey;
use crate::link::{Address, EventSource, LinkEvent, SourceStatus, Subscriber};
use bytes::Bytes;
use quorate_routing::cache::CacheNeeds;
use ractor::ActorRef;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::AbortHandle;

/// A proposal's way into the group; the answer is a replica's.
pub type Proposing<'a> = Pin<Box<dyn Future<Output = Result<Bytes, String>> + Send + 'a>>;

/// The replicated log.
pub trait Log: Send + Sync + 'static {
    /// Has an entry applied on all replicas. After an error it may be applied all the same.
    fn propose(&self, entry: Bytes) -> Proposing<'_>;
}

/// An endpoint to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub endpoint: u64,
    /// Its name.
    pub name: Arc<str>,
    /// Where its engine listens.
    pub target: quorate_routing::Target,
    /// The base model that it serves.
    pub model: Arc<str>,
    /// Its data-parallel rank; `None`: all that its engine has.
    pub rank: Option<u32>,
    /// What is known of its engine's cache.
    pub needs: Arc<CacheNeeds>,
}

/// What there is to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// The endpoints that this node owns and whose pools want it. Where engines dial in, those of all nodes of the region: whichever the engine
    /// came to has its stream.
    pub owned: Vec<Target>,
    /// The numbers of all that are declared. `None`: not known yet, so that nothing is removed.
    pub declared: Option<BTreeSet<u64>>,
}

/// What the feeder is made from.
pub struct FeederOptions {
    /// Tells this owner from others: its node's number, and something of the process' own.
    pub part: u32,
    /// This node's replica.
    pub replica: Arc<Replicated>,
    /// The group.
    pub log: Arc<dyn Log>,
    /// How to ask engines.
    pub engines: Arc<dyn Engines>,
    /// What to follow.
    pub targets: watch::Receiver<Targets>,
}

/// Messages of [`CacheFeeder`](super::CacheFeeder).
pub enum Msg {
    /// Look at the targets.
    Targets,
    /// Time has passed.
    Tick,
    /// Where an engine publishes.
    Sources(u64, u64, Result<Found, String>),
    /// An engine's stream says something.
    Link(HolderKey, u64, LinkEvent, OwnedSemaphorePermit),
    /// A stream that an engine opened by dialling in says something.
    Dialled(Address, u64, LinkEvent, OwnedSemaphorePermit),
    /// What a poll of an engine gave.
    Polled(u64, u64, Polled, OwnedSemaphorePermit),
    /// What an engine answered to the prompt of the self-check.
    Probed(u64, u64, Result<(), String>),
    /// What came of a batch.
    Answered(u64, Result<Bytes, String>),
}

/// A stream that this node opened.
pub(super) struct Link {
    pub(super) generation: u64,
    pub(super) subscriber: Subscriber,
    pub(super) forward: AbortHandle,
    pub(super) source: EventSource,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

/// A socket that engines dial, with their streams.
pub(super) struct Bound {
    pub(super) generation: u64,
    pub(super) subscriber: Subscriber,
    pub(super) forward: AbortHandle,
    /// Beginning of the topics that are read, and the port where engines answer replays.
    pub(super) config: (String, Option<u16>),
    /// Whose each stream is.
    pub(super) streams: BTreeMap<Arc<str>, Result<u64, Nobody>>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.forward.abort();
    }
}

pub(super) struct Follow {
    pub(super) target: Target,
    pub(super) generation: u64,
    pub(super) asking: AbortHandle,
    pub(super) problem: Option<String>,
    /// The engine's version, where that matters and it said it.
    pub(super) version: Option<Version>,
    pub(super) probe: Probe,
    /// Its engine dials in here.
    pub(super) dials: Option<(Address, Dialler)>,
    /// The stream that is believed to be its.
    pub(super) stream: Option<Arc<str>>,
    /// Polls its engine.
    pub(super) polling: Option<AbortHandle>,
    /// What came of that, by rank.
    pub(super) polled: BTreeMap<u32, SourceStatus>,
    /// The conditions that were told last.
    pub(super) said: Vec<Condition>,
}

impl Follow {
    pub(super) fn new(target: Target, generation: u64, asking: AbortHandle) -> Self {
        Self {
            target,
            generation,
            asking,
            problem: None,
            version: None,
            probe: Probe::default(),
            dials: None,
            stream: None,
            polling: None,
            polled: BTreeMap::new(),
            said: Vec::new(),
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.asking.abort();
        if let Some(polling) = &self.polling {
            polling.abort();
        }
    }
}

/// What the actor has in hand.
pub struct State {
    pub(super) myself: ActorRef<Msg>,
    pub(super) proposals: Proposals,
    pub(super) follows: BTreeMap<u64, Follow>,
    pub(super) links: BTreeMap<HolderKey, Link>,
    pub(super) bound: BTreeMap<Address, Bound>,
    pub(super) later: Vec<(Instant, HolderKey, Option<u64>)>,
    pub(super) orphans: HashMap<HolderKey, Instant>,
    pub(super) ticks: u64,
    pub(super) generations: u64,
    pub(super) batch: Batch,
    pub(super) tasks: Vec<AbortHandle>,
}

impl State {
    /// A number that nothing else has.
    pub(super) fn generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// A running feeder. It ends when this is dropped.
pub struct FeederHandle {
    pub(super) actor: ActorRef<Msg>,
    pub(super) statuses: Statuses,
}

impl FeederHandle {
    /// How each holder that this node owns is fed. Cheap.
    #[must_use]
    pub fn status(&self) -> BTreeMap<HolderKey, FeederStatus> {
        self.statuses.all()
    }

    /// What is wrong with how an endpoint's cache is followed, as far as this node follows it; none: nothing.
    #[must_use]
    pub fn conditions(&self, endpoint: &str) -> Vec<Condition> {
        self.statuses.conditions(endpoint)
    }

    /// Ends it and waits for that.
    pub async fn shutdown(&self) {
        self.actor.stop(None);
        // An error means that it has ended before.
        let _ = self.actor.get_cell().wait(None).await;
    }
}

impl Drop for FeederHandle {
    fn drop(&mut self) {
        self.actor.kill();
    }
}
