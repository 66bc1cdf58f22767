//! One client connection as its requests and its timers see it.

use crate::watched::Watched;
use http::HeaderValue;
use parking_lot::Mutex;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed,
};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What a connection is doing while no request is under way on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Nothing has come since it was opened or since the last request.
    Idle = 0,
    /// The first bytes of a request head have come.
    Head = 1,
}

/// Facts and state of a client connection. Shared by its I/O wrapper, its service and its timer; all run on one worker.
pub(crate) struct Client {
    pub ip: IpAddr,
    /// The address as it goes into `x-forwarded-for`.
    pub forwarded_for: HeaderValue,
    pub tls: bool,
    /// What it says about its requests in headers is believed.
    pub trusted: bool,
    /// A refused request's body is still coming: close only after reading some more of it.
    pub linger: AtomicBool,
    requests: AtomicU32,
    /// With HTTP/2, the answers under way; HTTP/1.1 has one at a time, and its socket tells whether the client takes it.
    http2: AtomicBool,
    answers: Mutex<Vec<Weak<Watched>>>,
    phase: AtomicU8,
    since: AtomicU64,
    /// Requests in flight on the worker.
    in_flight: Arc<AtomicUsize>,
}

impl Client {
    pub fn new(peer: SocketAddr, tls: bool, trusted: bool, in_flight: Arc<AtomicUsize>) -> Self {
        // An IPv4 client of a dual-stack listener is shown as what it is.
        let ip = peer.ip().to_canonical();
        Self {
            ip,
            forwarded_for: HeaderValue::from_str(&ip.to_string())
                .unwrap_or(HeaderValue::from_static("unknown")),
            tls,
            trusted,
            linger: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            answers: Mutex::default(),
            phase: AtomicU8::new(Phase::Idle as u8),
            since: AtomicU64::new(quorate_routing::now_ms()),
            in_flight,
        }
    }

    /// The connection speaks HTTP/2.
    pub fn set_http2(&self) {
        self.http2.store(true, Relaxed);
    }

    /// Whether it speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Watches over an answer.
    pub fn watch(&self, answer: &Arc<Watched>) {
        let mut answers = self.answers.lock();
        answers.retain(|answer| answer.strong_count() > 0);
        answers.push(Arc::downgrade(answer));
    }

    /// Gives up the answers of which the client has taken nothing for `limit`.
    pub fn cut_stalled(&self, limit: Duration) {
        if self.is_http2() {
            let answers: Vec<_> = self
                .answers
                .lock()
                .iter()
                .filter_map(Weak::upgrade)
                .collect();
            answers
                .iter()
                .for_each(|answer| answer.cut_if_stalled(limit));
        }
    }

    /// Bytes came from the client.
    pub fn bytes_came(&self) {
        if self.requests.load(Relaxed) == 0 && self.phase.load(Relaxed) == Phase::Idle as u8 {
            self.enter(Phase::Head);
        }
    }

    /// The phase and since when (ms); `None` while a request is under way.
    pub fn waiting(&self) -> Option<(Phase, u64)> {
        let phase = if self.phase.load(Relaxed) == Phase::Head as u8 {
            Phase::Head
        } else {
            Phase::Idle
        };
        (self.requests.load(Relaxed) == 0).then(|| (phase, self.since.load(Relaxed)))
    }

    /// Counts a request in until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    fn enter(&self, phase: Phase) {
        self.since.store(quorate_routing::now_ms(), Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }
}

/// A request under way: lives until its answer is written or given up.
pub(crate) struct InFlight(Arc<Client>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
        if self.0.requests.fetch_sub(1, Relaxed) == 1 {
            self.0.enter(Phase::Idle);
        }
    }
}
