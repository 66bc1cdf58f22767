//! One engine's event stream: numbers batches, keeps the last ones for replays, and sends them to whoever subscribed.

use super::faults::Fate;
use super::levels::Levels;
use super::outline::Outline;
use super::{EventFaults, EventFormat, KvEventsConfig, encode};
use crate::engine::naming::Scheme;
use crate::engine::record::BlockChange;
use crate::live::unix_now;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_cache::link::Address;
use quorate_cache::link::zmtp::{self, Limits, Listener, Received, SocketType, Stream, ZmtpError};
use serde_json::{Value, json};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;

/// Batches that a slow subscriber may be behind before it loses some, as ZeroMQ's high-water mark does.
const HIGH_WATER: usize = 10_000;
/// Pause before dialling again.
const REDIAL: Duration = Duration::from_millis(100);

type Numbered = (u64, Bytes);

/// What survives a crash of the server: configuration, addresses, faults.
pub struct Publisher {
    config: KvEventsConfig,
    scheme: Scheme,
    block_size: u32,
    rank: u32,
    /// Where it listens, once it does.
    bound: Mutex<(Option<Address>, Option<Address>)>,
    faults: Mutex<EventFaults>,
    state: Mutex<State>,
    /// Live batches, for the subscribers of this moment.
    live: broadcast::Sender<Numbered>,
}

#[derive(Default)]
struct State {
    next: u64,
    buffer: VecDeque<Numbered>,
    late: Option<Numbered>,
    outline: Outline,
    levels: Levels,
    /// TensorRT-LLM's events that nobody has fetched yet.
    polled: VecDeque<Value>,
    rng: fastrand::Rng,
    lost: u64,
    doubled: u64,
    swapped: u64,
    replays: u64,
    subscribers: u64,
}

impl Publisher {
    /// Of a server with this block size and data-parallel rank.
    pub fn new(
        config: KvEventsConfig,
        block_size: u32,
        rank: u32,
        seed: u64,
    ) -> Result<Self, String> {
        Ok(Publisher {
            scheme: config.scheme()?,
            faults: Mutex::new(config.faults.clone()),
            config,
            block_size,
            rank,
            bound: Mutex::default(),
            state: Mutex::new(State {
                rng: fastrand::Rng::with_seed(seed ^ 0x6576_656e_7473),
                ..State::default()
            }),
            live: broadcast::channel(HIGH_WATER).0,
        })
    }

    /// How blocks are named.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The wire format.
    pub fn format(&self) -> EventFormat {
        self.config.format
    }

    /// Where it publishes and where it answers replays, with the ports that they got.
    pub fn addresses(&self) -> (Address, Option<Address>) {
        let (events, replay) = self.bound.lock().clone();
        (
            events.unwrap_or_else(|| self.config.endpoint.clone()),
            replay.or_else(|| self.config.replay_endpoint.clone()),
        )
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.config.topic
    }

    /// Batches kept for replays.
    pub fn buffer_steps(&self) -> usize {
        self.config.buffer_steps
    }

    /// A new incarnation: numbers start at zero, nothing is left of the old one.
    pub fn restart(&self) {
        let mut state = self.state.lock();
        state.next = 0;
        state.buffer.clear();
        state.late = None;
        state.polled.clear();
        state.outline = Outline::default();
        state.levels = Levels::default();
    }

    /// Binds what is to be bound. Ports once chosen stay.
    pub async fn listen(&self) -> io::Result<Sockets> {
        if self.config.format == EventFormat::Trtllm {
            return Ok(Sockets::default());
        }
        let (events, replay) = self.addresses();
        let mut sockets = Sockets::default();
        if self.config.bind {
            sockets.events = Some(zmtp::listen(&events).await?);
        }
        if let Some(replay) = replay {
            sockets.replay = Some(zmtp::listen(&replay).await?);
        }
        let address = |listener: &Option<Listener>| -> io::Result<Option<Address>> {
            listener.as_ref().map(Listener::address).transpose()
        };
        *self.bound.lock() = (address(&sockets.events)?, address(&sockets.replay)?);
        Ok(sockets)
    }

    /// Publishes `changes` until the engine is gone.
    pub async fn run(
        self: Arc<Self>,
        sockets: Sockets,
        mut changes: mpsc::UnboundedReceiver<Vec<BlockChange>>,
    ) {
        let mut tasks = JoinSet::new();
        match sockets.events {
            Some(listener) => {
                tasks.spawn(accept(self.clone(), listener, SocketType::Pub));
            }
            None if self.config.format != EventFormat::Trtllm => {
                tasks.spawn(dial(self.clone()));
            }
            None => {}
        }
        if let Some(listener) = sockets.replay {
            tasks.spawn(accept(self.clone(), listener, SocketType::Router));
        }
        while let Some(batch) = changes.recv().await {
            self.publish(&batch);
        }
    }

    fn publish(&self, changes: &[BlockChange]) {
        let format = self.config.format;
        let mut state = self.state.lock();
        if format == EventFormat::Trtllm {
            let State { levels, .. } = &mut *state;
            let told = changes.iter().flat_map(|c| levels.tell(c, self.block_size));
            for data in told.collect::<Vec<_>>() {
                let event = json!({"event_id": state.next, "attention_dp_rank": self.rank, "window_size": 32768, "data": data});
                state.next += 1;
                state.polled.push_back(event);
                // The oldest go when nobody fetches them; their ids are then missing.
                if state.polled.len() > self.config.buffer_steps {
                    state.polled.pop_front();
                }
            }
            return;
        }
        let told = state.outline.tell(&self.config, changes, self.block_size);
        if told.is_empty() {
            return;
        }
        let payload = encode::batch(format, unix_now(), &told, self.rank);
        let message = (state.next, Bytes::from(payload));
        state.next += 1;
        state.buffer.push_back(message.clone());
        if state.buffer.len() > self.config.buffer_steps {
            state.buffer.pop_front();
        }
        let fate = self.faults.lock().draw(&mut state.rng);
        let late = state.late.take();
        let mut out = Vec::new();
        match fate {
            Fate::Sent => out.push(message),
            Fate::Lost => state.lost += 1,
            Fate::Twice => {
                state.doubled += 1;
                out.extend([message.clone(), message]);
            }
            Fate::Late => {
                state.swapped += 1;
                state.late = Some(message);
            }
        }
        out.extend(late);
        for message in out {
            // No subscriber at the moment: a publisher drops.
            let _ = self.live.send(message);
        }
    }

    /// The faults in force.
    pub fn set_faults(&self, faults: EventFaults) {
        *self.faults.lock() = faults;
    }

    /// Numbers go back to zero without a restart or a broken connection.
    pub fn reset_sequence(&self) {
        let mut state = self.state.lock();
        state.next = 0;
        state.buffer.clear();
        state.late = None;
        state.polled.clear();
    }

    /// `GET /sim/kv-events`.
    pub fn to_json(&self) -> Value {
        let (events, replay) = self.addresses();
        let faults = self.faults.lock().to_json();
        let state = self.state.lock();
        json!({
            "format": self.config.format.name(),
            "endpoint": events.to_string(),
            "bind": self.config.bind,
            "replay-endpoint": replay.map(|replay| replay.to_string()),
            "topic": self.config.topic,
            "next-sequence": state.next,
            "buffered": state.buffer.len(),
            "subscribers": state.subscribers,
            "replays": state.replays,
            "lost": state.lost,
            "duplicated": state.doubled,
            "reordered": state.swapped,
            "faults": faults,
        })
    }

    /// TensorRT-LLM's `POST /kv_cache_events`: everything since the last call.
    pub fn poll(&self) -> Value {
        self.state.lock().polled.drain(..).collect()
    }

    /// One subscriber: what it wants of the live batches.
    async fn serve(&self, stream: Stream) -> Result<(), ZmtpError> {
        let (mut reader, mut writer) =
            zmtp::open(stream, SocketType::Pub, Limits::default()).await?;
        let mut live = self.live.subscribe();
        let mut wanted: BTreeSet<Bytes> = BTreeSet::new();
        let _counted = Counted::new(self);
        loop {
            tokio::select! {
                received = reader.receive() => match received? {
                    Received::Subscribe(prefix) => {
                        wanted.insert(prefix);
                    }
                    Received::Cancel(prefix) => {
                        wanted.remove(&prefix);
                    }
                    Received::Ping(context) => writer.pong(&context).await?,
                    _ => {}
                },
                message = live.recv() => match message {
                    Ok((seq, payload)) => {
                        let topic = self.config.topic.as_bytes();
                        if wanted.iter().any(|prefix| topic.starts_with(prefix)) {
                            writer.send(&[topic, &seq.to_be_bytes(), &payload]).await?;
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                }
            }
        }
    }

    /// One reader of the replay socket.
    async fn replay(&self, stream: Stream) -> Result<(), ZmtpError> {
        let (mut reader, mut writer) =
            zmtp::open(stream, SocketType::Router, Limits::default()).await?;
        loop {
            let parts = match reader.receive().await? {
                Received::Message(parts) => parts,
                Received::Ping(context) => {
                    writer.pong(&context).await?;
                    continue;
                }
                _ => continue,
            };
            let [empty, start] = parts.as_slice() else {
                continue;
            };
            let Ok(start) = <[u8; 8]>::try_from(start.as_ref()) else {
                continue;
            };
            if !empty.is_empty() || self.faults.lock().no_replay {
                continue;
            }
            let start = u64::from_be_bytes(start);
            let found: Vec<Numbered> = {
                let mut state = self.state.lock();
                state.replays += 1;
                let from_start = |(seq, _): &&Numbered| *seq >= start;
                state.buffer.iter().filter(from_start).cloned().collect()
            };
            let end = (u64::MAX, Bytes::new());
            for (seq, payload) in found.iter().chain([&end]) {
                let number = seq.to_be_bytes();
                let topic: &[u8] = match *seq {
                    u64::MAX => b"",
                    _ => self.config.topic.as_bytes(),
                };
                if self.config.format.topic_in_replay() {
                    writer.send(&[b"", topic, &number, payload]).await?;
                } else {
                    writer.send(&[b"", &number, payload]).await?;
                }
            }
        }
    }
}

/// The bound sockets of one incarnation.
#[derive(Default)]
pub struct Sockets {
    events: Option<Listener>,
    replay: Option<Listener>,
}

struct Counted<'p>(&'p Publisher);

impl<'p> Counted<'p> {
    fn new(publisher: &'p Publisher) -> Self {
        publisher.state.lock().subscribers += 1;
        Counted(publisher)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.subscribers = state.subscribers.saturating_sub(1);
    }
}

async fn accept(publisher: Arc<Publisher>, listener: Listener, kind: SocketType) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let publisher = publisher.clone();
                    tasks.spawn(async move {
                        let ended = match kind {
                            SocketType::Router => publisher.replay(stream).await,
                            _ => publisher.serve(stream).await,
                        };
                        if let Err(error) = ended {
                            tracing::debug!(%error, "a KV event connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a KV event connection");
                    tokio::time::sleep(REDIAL).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn dial(publisher: Arc<Publisher>) {
    loop {
        match zmtp::dial(&publisher.config.endpoint).await {
            Ok(stream) => {
                if let Err(error) = publisher.serve(stream).await {
                    tracing::debug!(%error, "a KV event connection ended");
                }
            }
            Err(error) => tracing::debug!(%error, "cannot dial the reader of KV events"),
        }
        tokio::time::sleep(REDIAL).await;
    }
}
