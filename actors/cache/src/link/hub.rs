//! Between the connections and the reader: which stream a message belongs to, and what its sequencer makes of it.

use super::address::Address;
use super::replay;
use super::sequencer::Sequencer;
use super::stream::{Counters, Output, Policy, Reset, State};
use super::subscriber::{LinkConfig, ReplayAt};
use super::zmtp::Peer;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// Streams over one bound socket.
const MAX_SOURCES: usize = 4096;
/// Longest topic that names a stream, in bytes.
const MAX_NAME: usize = 512;

/// What a reader gets, in this order.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// Forget everything that this stream's batches said.
    Reset {
        /// The stream.
        source: Arc<str>,
        /// Why.
        why: Reset,
    },
    /// The next batch of a stream. One that [`decode`](crate::events::decode) refuses is a lost one: forget what the stream
    /// said before it.
    Batch {
        /// The stream.
        source: Arc<str>,
        /// Its number.
        seq: u64,
        /// The payload.
        payload: Bytes,
    },
}

/// How a stream is.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    /// Where its batches come from.
    pub state: State,
    /// Number of the last batch handed on.
    pub last: Option<u64>,
    /// Totals.
    pub counters: Counters,
    /// When the last message came, by itself or replayed.
    pub heard: Option<Instant>,
    /// Messages of a second connection that says to be the same stream.
    pub foreign: u64,
    /// Messages that were no numbered batch.
    pub unreadable: u64,
    /// Why the last replay failed.
    pub replay_error: Option<String>,
}

/// State of all streams of a link, by name.
pub(super) type Statuses = Arc<Mutex<BTreeMap<Arc<str>, SourceStatus>>>;

/// What connections and replays tell.
pub(super) enum Input {
    Up {
        conn: u64,
        peer: Peer,
    },
    Message {
        conn: u64,
        parts: Vec<Bytes>,
    },
    Down {
        conn: u64,
    },
    Replayed {
        source: usize,
        id: u64,
        seq: u64,
        payload: Bytes,
    },
    ReplayEnded {
        source: usize,
        id: u64,
        error: Option<String>,
    },
}

struct Source {
    name: Arc<str>,
    sequencer: Sequencer,
    replay: Option<Address>,
    /// The connection that is believed.
    conn: Option<u64>,
    running: Option<AbortHandle>,
    heard: Option<Instant>,
    foreign: u64,
    unreadable: u64,
    replay_error: Option<String>,
}

struct Conn {
    peer: Peer,
    /// Streams that it has begun.
    sources: HashSet<usize>,
}

pub(super) struct Hub {
    config: LinkConfig,
    /// The one stream of a link that dials.
    fixed: Option<Arc<str>>,
    sources: Vec<Source>,
    by_name: HashMap<Arc<str>, usize>,
    conns: HashMap<u64, Conn>,
    replays: JoinSet<()>,
    told: mpsc::Sender<Input>,
    out: mpsc::Sender<LinkEvent>,
    statuses: Statuses,
    started: Instant,
    full: bool,
}

impl Hub {
    pub fn new(
        config: LinkConfig,
        fixed: Option<Arc<str>>,
        told: mpsc::Sender<Input>,
        out: mpsc::Sender<LinkEvent>,
        statuses: Statuses,
    ) -> Self {
        let mut hub = Hub {
            config,
            fixed: fixed.clone(),
            sources: Vec::new(),
            by_name: HashMap::new(),
            conns: HashMap::new(),
            replays: JoinSet::new(),
            told,
            out,
            statuses,
            started: Instant::now(),
            full: false,
        };
        if let Some(name) = fixed
            && let Some(source) = hub.add(name, None)
        {
            if let Some((seq, mark)) = hub.config.resume
                && let Some(source) = hub.sources.get_mut(source)
            {
                source.sequencer.resume(seq, mark);
            }
            hub.publish(source);
        }
        hub
    }

    /// Until the reader or the connections are gone.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        loop {
            let deadline = self
                .sources
                .iter()
                .filter_map(|source| source.sequencer.deadline())
                .min()
                .map(|at| self.started + Duration::from_millis(at));
            let touched = tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                () = sleep_until(deadline) => {
                    let now = self.now();
                    for source in &mut self.sources {
                        source.sequencer.tick(now);
                    }
                    (0..self.sources.len()).collect()
                }
                Some(_) = self.replays.join_next() => continue,
            };
            for source in touched {
                if self.carry_out(source).await.is_err() {
                    return;
                }
                self.publish(source);
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The streams that something happened to.
    fn take(&mut self, input: Input) -> Vec<usize> {
        let now = self.now();
        match input {
            Input::Up { conn, peer } => {
                let sources = HashSet::new();
                self.conns.insert(conn, Conn { peer, sources });
                match self.fixed.clone() {
                    Some(name) => self.begin(conn, name, now).into_iter().collect(),
                    None => Vec::new(),
                }
            }
            Input::Message { conn, parts } => self.message(conn, &parts, now).into_iter().collect(),
            Input::Down { conn } => {
                let sources = self.conns.remove(&conn).map(|conn| conn.sources);
                let mut touched = Vec::new();
                for at in sources.into_iter().flatten() {
                    if let Some(source) = self.sources.get_mut(at)
                        && source.conn == Some(conn)
                    {
                        source.conn = None;
                        source.sequencer.disconnected();
                        touched.push(at);
                    }
                }
                touched
            }
            Input::Replayed {
                source,
                id,
                seq,
                payload,
            } => {
                if let Some(source) = self.sources.get_mut(source) {
                    source.heard = Some(Instant::now());
                    source.sequencer.replayed(id, seq, payload, now);
                }
                vec![source]
            }
            Input::ReplayEnded { source, id, error } => {
                if let Some(source) = self.sources.get_mut(source) {
                    source.sequencer.replay_ended(id, error.is_none(), now);
                    source.replay_error = error;
                }
                vec![source]
            }
        }
    }

    fn message(&mut self, conn: u64, parts: &[Bytes], now: u64) -> Option<usize> {
        let peer = self.conns.get(&conn)?.peer;
        let topic = parts.first().cloned().unwrap_or_default();
        let name = match &self.fixed {
            Some(name) => name.clone(),
            None => name_of(&topic, peer),
        };
        let at = match self.by_name.get(&name) {
            Some(at) if self.conns.get(&conn)?.sources.contains(at) => *at,
            _ => self.begin(conn, name, now)?,
        };
        let source = self.sources.get_mut(at)?;
        if source.conn != Some(conn) {
            source.foreign += 1;
            return Some(at);
        }
        source.heard = Some(Instant::now());
        let [_, seq, payload] = parts else {
            source.unreadable += 1;
            return Some(at);
        };
        match <[u8; 8]>::try_from(seq.as_ref()) {
            Ok(seq) => {
                let seq = u64::from_be_bytes(seq);
                source.sequencer.live(seq, payload.clone(), now);
            }
            Err(_) => source.unreadable += 1,
        }
        Some(at)
    }

    /// A connection begins a stream: the newest one is believed.
    fn begin(&mut self, conn: u64, name: Arc<str>, now: u64) -> Option<usize> {
        let peer = self.conns.get(&conn)?.peer;
        let at = match self.by_name.get(&name) {
            Some(at) => *at,
            None => self.add(name, Some(peer))?,
        };
        self.conns.get_mut(&conn)?.sources.insert(at);
        let source = self.sources.get_mut(at)?;
        source.conn = Some(conn);
        source.sequencer.connected(now);
        Some(at)
    }

    fn add(&mut self, name: Arc<str>, peer: Option<Peer>) -> Option<usize> {
        if self.sources.len() >= MAX_SOURCES {
            if !std::mem::replace(&mut self.full, true) {
                tracing::warn!(%name, "more than {MAX_SOURCES} KV event streams on one socket: further ones are ignored");
            }
            return None;
        }
        let replay = match (&self.config.replay, peer) {
            (ReplayAt::Nowhere, _) => None,
            (ReplayAt::Address(address), _) => Some(address.clone()),
            (ReplayAt::PeerPort(port), Some(Peer::Host(ip))) => Some(Address::Tcp {
                host: ip.to_string(),
                port: *port,
            }),
            (ReplayAt::PeerPort(_), _) => None,
        };
        let policy = Policy {
            replay: replay.is_some(),
            ..self.config.policy
        };
        let at = self.sources.len();
        self.by_name.insert(name.clone(), at);
        self.sources.push(Source {
            name,
            sequencer: Sequencer::new(policy),
            replay,
            conn: None,
            running: None,
            heard: None,
            foreign: 0,
            unreadable: 0,
            replay_error: None,
        });
        Some(at)
    }

    /// Does what the sequencer wants. An error means that nobody reads any more.
    async fn carry_out(&mut self, at: usize) -> Result<(), mpsc::error::SendError<LinkEvent>> {
        let Some(source) = self.sources.get_mut(at) else {
            return Ok(());
        };
        while let Some(output) = source.sequencer.poll() {
            match output {
                Output::Reset(why) => {
                    let source = source.name.clone();
                    self.out.send(LinkEvent::Reset { source, why }).await?;
                }
                Output::Deliver { seq, payload } => {
                    let source = source.name.clone();
                    let batch = LinkEvent::Batch {
                        source,
                        seq,
                        payload,
                    };
                    self.out.send(batch).await?;
                }
                Output::CancelReplay => {
                    if let Some(running) = source.running.take() {
                        running.abort();
                    }
                }
                Output::Replay { id, from } => {
                    if let Some(running) = source.running.take() {
                        running.abort();
                    }
                    if let Some(address) = source.replay.clone() {
                        let told = self.told.clone();
                        let limits = self.config.limits;
                        let task = fetch(at, id, from, address, limits, told);
                        source.running = Some(self.replays.spawn(task));
                    }
                }
            }
        }
        Ok(())
    }

    fn publish(&self, at: usize) {
        let Some(source) = self.sources.get(at) else {
            return;
        };
        let status = SourceStatus {
            state: source.sequencer.state(),
            last: source.sequencer.last(),
            counters: source.sequencer.counters(),
            heard: source.heard,
            foreign: source.foreign,
            unreadable: source.unreadable,
            replay_error: source.replay_error.clone(),
        };
        self.statuses.lock().insert(source.name.clone(), status);
    }
}

async fn fetch(
    source: usize,
    id: u64,
    from: u64,
    address: Address,
    limits: super::zmtp::Limits,
    told: mpsc::Sender<Input>,
) {
    let outcome = replay::replay(&address, from, limits, |seq, payload| {
        let told = told.clone();
        async move {
            let reply = Input::Replayed {
                source,
                id,
                seq,
                payload,
            };
            told.send(reply).await.is_ok()
        }
    })
    .await;
    let error = outcome.err().map(|error| error.to_string());
    // The hub is gone when this fails.
    let _ = told.send(Input::ReplayEnded { source, id, error }).await;
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The topic, as far as it is text; a publisher without one is known by its host.
fn name_of(topic: &[u8], peer: Peer) -> Arc<str> {
    if topic.is_empty() {
        return match peer {
            Peer::Host(ip) => ip.to_string().into(),
            Peer::Local => "local".into(),
        };
    }
    let topic = topic.get(..MAX_NAME).unwrap_or(topic);
    String::from_utf8_lossy(topic).into()
}
