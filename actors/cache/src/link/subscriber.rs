//! The sockets: dials an engine, or lets engines dial in, and feeds the hub.

use super::address::Address;
use super::hub::{Hub, Input, LinkEvent, SourceStatus, Statuses};
use super::stream::Policy;
use super::zmtp::{self, Limits, Listener, Peer, Received, SocketType, Stream, ZmtpError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

/// Connections to one bound socket.
const MAX_CONNECTIONS: usize = 4096;
/// Messages between connections and hub.
const QUEUE: usize = 256;

/// Who dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The engine is bound, we dial.
    Dial(Address),
    /// We are bound, engines dial.
    Bind(Address),
}

/// Where missing batches can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReplayAt {
    /// Nowhere.
    #[default]
    Nowhere,
    /// At one address, for the one engine that is dialled.
    Address(Address),
    /// On this port of whoever dialled in.
    PeerPort(u16),
}

/// One link.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Who dials.
    pub direction: Direction,
    /// Only topics with this beginning.
    pub topic: String,
    /// Where missing batches can be had.
    pub replay: ReplayAt,
    /// Limits and times of each stream. `replay` in it is set by the link.
    pub policy: Policy,
    /// What a peer may send.
    pub limits: Limits,
    /// What was taken of the stream before: the number of the last batch and the hash (XXH3) of its payload. For a link that dials.
    pub resume: Option<(u64, u64)>,
    /// First pause before dialling again; doubled up to fifty times as much.
    pub redial: Duration,
    /// How often a silent peer is asked for a sign of life.
    pub heartbeat: Duration,
}

impl LinkConfig {
    /// The usual limits and times, no replay, every topic.
    pub fn new(direction: Direction) -> Self {
        LinkConfig {
            direction,
            topic: String::new(),
            replay: ReplayAt::Nowhere,
            policy: Policy::default(),
            limits: Limits::default(),
            resume: None,
            redial: Duration::from_millis(100),
            heartbeat: Duration::from_secs(10),
        }
    }
}

/// A running link. It ends when this is dropped.
pub struct Subscriber {
    statuses: Statuses,
    trouble: Arc<Mutex<Option<String>>>,
    bound: Option<Address>,
    tasks: Vec<JoinHandle<()>>,
}

impl Subscriber {
    /// Starts a link that sends what comes to `out`. While `out` is full nothing is read: the engine then drops batches, and
    /// the link has them replayed. Only binding can fail; an engine that cannot be dialled is dialled again.
    pub async fn start(config: LinkConfig, out: mpsc::Sender<LinkEvent>) -> io::Result<Subscriber> {
        let statuses: Statuses = Arc::default();
        let trouble: Arc<Mutex<Option<String>>> = Arc::default();
        let (told, inputs) = mpsc::channel(QUEUE);
        let link = Link {
            topic: config.topic.clone().into_bytes().into(),
            limits: config.limits,
            heartbeat: config.heartbeat.max(Duration::from_millis(1)),
            told: told.clone(),
            trouble: trouble.clone(),
        };
        let mut bound = None;
        let (fixed, sockets) = match &config.direction {
            Direction::Dial(address) => {
                let dialling = tokio::spawn(dial(link, address.clone(), config.redial));
                (Some(Arc::from(address.to_string())), dialling)
            }
            Direction::Bind(address) => {
                let listener = zmtp::listen(address).await?;
                bound = Some(listener.address()?);
                (None, tokio::spawn(accept(link, listener)))
            }
        };
        let hub = Hub::new(config, fixed, told, out, statuses.clone());
        let hub = tokio::spawn(hub.run(inputs));
        Ok(Subscriber {
            statuses,
            trouble,
            bound,
            tasks: vec![sockets, hub],
        })
    }

    /// Where it is bound, if it is.
    pub fn bound(&self) -> Option<&Address> {
        self.bound.as_ref()
    }

    /// How each stream is. A link that dials has one, named by its address.
    pub fn status(&self) -> BTreeMap<Arc<str>, SourceStatus> {
        self.statuses.lock().clone()
    }

    /// Why the last connection failed or ended; `None` while all is well.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[derive(Clone)]
struct Link {
    topic: Arc<[u8]>,
    limits: Limits,
    heartbeat: Duration,
    told: mpsc::Sender<Input>,
    trouble: Arc<Mutex<Option<String>>>,
}

async fn dial(link: Link, address: Address, redial: Duration) {
    let mut pause = redial;
    for conn in 0.. {
        let stream = tokio::time::timeout(Duration::from_secs(5), zmtp::dial(&address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let ended = match stream {
            Ok(stream) => link.follow(conn, stream, Peer::Local).await,
            Err(error) => Err((error.into(), false)),
        };
        match ended {
            // The hub is gone.
            Ok(()) => return,
            Err((error, was_up)) => {
                if was_up {
                    pause = redial;
                }
                link.report(&address.to_string(), &error);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(redial * 50);
    }
}

async fn accept(link: Link, listener: Listener) {
    let mut tasks = JoinSet::new();
    for conn in 0.. {
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept(), if tasks.len() < MAX_CONNECTIONS => break accepted,
                Some(_) = tasks.join_next() => {}
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                let link = link.clone();
                tasks.spawn(async move {
                    if let Err((error, _)) = link.follow(conn, stream, peer).await {
                        link.report(&format!("{peer:?}"), &error);
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: the next accept would fail at once.
                link.report("accept", &error.into());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Why a connection ended, and whether it had been of use.
type Ended = (ZmtpError, bool);

impl Link {
    fn report(&self, peer: &str, error: &ZmtpError) {
        let text = error.to_string();
        let mut trouble = self.trouble.lock();
        if trouble.as_ref() != Some(&text) {
            tracing::info!(peer, error = %text, "a KV event connection failed");
            *trouble = Some(text);
        }
    }

    /// Reads one connection to its end. `Ok` when the hub is gone.
    async fn follow(&self, conn: u64, stream: Stream, peer: Peer) -> Result<(), Ended> {
        let failed = |error| (error, false);
        let opened = zmtp::open(stream, SocketType::Sub, self.limits).await;
        let (mut reader, mut writer) = opened.map_err(failed)?;
        writer.subscribe(&self.topic).await.map_err(failed)?;
        *self.trouble.lock() = None;
        if self.told.send(Input::Up { conn, peer }).await.is_err() {
            return Ok(());
        }
        let ended = self.read(conn, &mut reader, &mut writer).await;
        match self.told.send(Input::Down { conn }).await {
            Ok(()) => ended.map_err(|error| (error, true)),
            Err(_) => Ok(()),
        }
    }

    async fn read(
        &self,
        conn: u64,
        reader: &mut zmtp::Reader,
        writer: &mut zmtp::Writer,
    ) -> Result<(), ZmtpError> {
        let mut beat = tokio::time::interval(self.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut answers = false;
        loop {
            let received = tokio::select! {
                received = reader.receive() => received?,
                _ = beat.tick() => {
                    let silent = heard.elapsed();
                    // A peer that never answered may not know pings.
                    if answers && silent > self.heartbeat * 3 {
                        return Err(ZmtpError::Protocol("no sign of life"));
                    }
                    if silent >= self.heartbeat {
                        writer.ping().await?;
                    }
                    continue;
                }
            };
            heard = Instant::now();
            match received {
                Received::Message(parts) => {
                    let message = Input::Message { conn, parts };
                    if self.told.send(message).await.is_err() {
                        return Ok(());
                    }
                }
                Received::Ping(context) => writer.pong(&context).await?,
                Received::Pong => answers = true,
                _ => {}
            }
        }
    }
}
