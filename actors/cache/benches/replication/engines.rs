//! Engines as they speak: each publishes vLLM's KV-cache events on a ZeroMQ socket of its own, with chains of real hashes, as many blocks stored
//! as evicted.

use quorate_cache::hash::ExtraForm;
use quorate_cache::keys::{KeySpace, Scheme};
use quorate_cache::link::Address;
use quorate_cache::link::zmtp::{Limits, Listener, Received, SocketType, Writer, listen, open};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Tokens in a block, and blocks in a chain.
pub const BLOCK: usize = 16;
const CHAIN: usize = 512;
/// Blocks in a message while an engine fills, and the time between its messages afterwards.
const FILL: usize = 256;
const STEP: Duration = Duration::from_millis(20);
/// Of so many messages one is watched on its way.
const WATCHED: u64 = 20;

/// How the engines name their blocks.
pub fn space() -> KeySpace {
    let scheme = Scheme::of(Some("sha256_cbor"), None, ExtraForm::Tagged);
    KeySpace::new("m", BLOCK as u32, scheme).expect("a scheme that is known")
}

/// A block that an engine has just told of.
pub struct Told {
    pub hash: u64,
    pub at: Instant,
}

/// What all engines share.
pub struct Fleet {
    /// Block operations a second of each engine.
    pub pace: watch::Receiver<f64>,
    /// Blocks that each engine holds.
    pub blocks: usize,
    pub filled: AtomicU64,
    pub told: std::sync::mpsc::Sender<Told>,
}

struct Chain {
    tokens: Vec<u32>,
    hashes: Vec<u64>,
    /// Blocks that were told of.
    at: usize,
}

struct Engine {
    number: u64,
    chains: u64,
    space: KeySpace,
    now: Option<Chain>,
    /// Chains that are held, the oldest first; they are evicted from their ends.
    held: VecDeque<Vec<u64>>,
    blocks: usize,
    sequence: u64,
    events: Vec<u8>,
    count: u16,
}

/// Binds an engine's socket, and publishes to whoever subscribes first.
pub async fn start(number: u64, fleet: Arc<Fleet>) -> u16 {
    let any = Address::parse("tcp://127.0.0.1:0").expect("an address");
    let listener = listen(&any).await.expect("a free port");
    let port = match listener.address().expect("it is bound") {
        Address::Tcp { port, .. } => port,
        other => panic!("{other}"),
    };
    tokio::spawn(run(number, listener, fleet));
    port
}

async fn run(number: u64, listener: Listener, fleet: Arc<Fleet>) {
    let (stream, _) = listener.accept().await.expect("a subscriber");
    let opened = open(stream, SocketType::Pub, Limits::default()).await;
    let (mut reader, mut writer) = opened.expect("a ZeroMQ peer");
    let subscribed = reader.receive().await.expect("a subscription");
    assert!(
        matches!(subscribed, Received::Subscribe(_)),
        "{subscribed:?}"
    );
    let mut engine = Engine {
        number,
        chains: 0,
        space: space(),
        now: None,
        held: VecDeque::new(),
        blocks: 0,
        sequence: 0,
        events: Vec::new(),
        count: 0,
    };
    while engine.blocks < fleet.blocks {
        engine.store(FILL.min(fleet.blocks - engine.blocks));
        if engine.publish(&mut writer).await.is_err() {
            return;
        }
    }
    fleet.filled.fetch_add(1, Ordering::Relaxed);
    let mut owed = 0.0;
    tokio::time::sleep(STEP.mul_f64(fastrand::f64())).await;
    let mut steps = tokio::time::interval(STEP);
    loop {
        steps.tick().await;
        owed += *fleet.pace.borrow() * STEP.as_secs_f64() / 2.0;
        let blocks = owed as usize;
        owed -= blocks as f64;
        if blocks == 0 {
            continue;
        }
        let last = engine.store(blocks);
        engine.evict(blocks);
        let watched = engine.sequence % WATCHED == number % WATCHED;
        let at = Instant::now();
        if engine.publish(&mut writer).await.is_err() {
            return;
        }
        if let Some(hash) = last.filter(|_| watched) {
            // An error means that nobody watches any more.
            let _ = fleet.told.send(Told { hash, at });
        }
    }
}

impl Engine {
    fn chain(&mut self) -> Chain {
        self.chains += 1;
        let mut random = fastrand::Rng::with_seed(self.number << 32 | self.chains);
        let tokens: Vec<u32> = (0..CHAIN * BLOCK).map(|_| random.u32(..128_000)).collect();
        let mut hashes = Vec::with_capacity(CHAIN);
        let hasher = self.space.hasher().expect("hashes that can be computed");
        hasher
            .prompt(&tokens, BLOCK, &Default::default(), &mut hashes)
            .expect("no extra keys");
        self.held.push_back(Vec::with_capacity(CHAIN));
        Chain {
            tokens,
            hashes,
            at: 0,
        }
    }

    /// Stores blocks, an event for each chain that they are of. The last one.
    fn store(&mut self, mut blocks: usize) -> Option<u64> {
        let mut last = None;
        while blocks > 0 {
            let mut chain = match self.now.take() {
                Some(chain) => chain,
                None => self.chain(),
            };
            let end = (chain.at + blocks).min(CHAIN);
            let hashes = &chain.hashes[chain.at..end];
            let out = &mut self.events;
            head(out, 6, "BlockStored");
            array(out, hashes.len());
            hashes.iter().for_each(|hash| word(out, *hash));
            match chain.at.checked_sub(1) {
                Some(before) => word(out, chain.hashes[before]),
                None => out.push(0xc0),
            }
            array(out, hashes.len() * BLOCK);
            for token in &chain.tokens[chain.at * BLOCK..end * BLOCK] {
                out.push(0xce);
                out.extend(token.to_be_bytes());
            }
            out.extend([BLOCK as u8, 0xc0]);
            self.count += 1;
            last = hashes.last().copied();
            blocks -= hashes.len();
            self.blocks += hashes.len();
            if let Some(held) = self.held.back_mut() {
                held.extend(hashes);
            }
            chain.at = end;
            self.now = (end < CHAIN).then_some(chain);
        }
        last
    }

    /// Evicts blocks, an event for each.
    fn evict(&mut self, blocks: usize) {
        for _ in 0..blocks {
            let hash = loop {
                match self.held.front_mut().map(Vec::pop) {
                    Some(Some(hash)) => break hash,
                    Some(None) => drop(self.held.pop_front()),
                    None => return,
                }
            };
            head(&mut self.events, 2, "BlockRemoved");
            array(&mut self.events, 1);
            word(&mut self.events, hash);
            self.count += 1;
            self.blocks -= 1;
        }
    }

    async fn publish(&mut self, writer: &mut Writer) -> Result<(), ()> {
        let mut payload = vec![0x93, 0xcb];
        payload.extend((self.sequence as f64).to_be_bytes());
        array(&mut payload, usize::from(self.count));
        payload.append(&mut self.events);
        payload.push(0xc0);
        self.count = 0;
        let parts: [&[u8]; 3] = [b"kv", &self.sequence.to_be_bytes(), &payload];
        self.sequence += 1;
        writer.send(&parts).await.map_err(|_| ())
    }
}

fn head(out: &mut Vec<u8>, fields: u8, name: &str) {
    out.push(0x90 | fields);
    out.push(0xa0 | name.len() as u8);
    out.extend(name.as_bytes());
}

fn array(out: &mut Vec<u8>, len: usize) {
    out.push(0xdc);
    out.extend((len as u16).to_be_bytes());
}

fn word(out: &mut Vec<u8>, value: u64) {
    out.push(0xcf);
    out.extend(value.to_be_bytes());
}
