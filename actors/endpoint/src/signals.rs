//! What the hot path tells the actors: flags and a short bounded list, never a wait.

use crate::exchange::Key;
use metrics::counter;
use parking_lot::Mutex;
use quorate_routing::turns::{HEAVY_TOKENS, Turn, Turns};
use quorate_routing::{Endpoint, EndpointObserver, Failure, now_ms};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use tokio::sync::Notify;

/// Suspicions that wait to be looked at; more are dropped and counted, as each of them is only a hint.
const MOST_SUSPECTS: usize = 1_024;

/// The observer of every endpoint.
pub struct Signals {
    dirty: AtomicBool,
    wake: Notify,
    heavy: AtomicBool,
    hurry: Notify,
    suspects: Mutex<HashSet<Key>>,
    /// When this router and the others of its region place heavy requests.
    pub turns: Arc<Turns>,
}

impl Signals {
    /// With the turns of this router.
    pub fn new(turns: Turns) -> Self {
        Self {
            dirty: AtomicBool::default(),
            wake: Notify::default(),
            heavy: AtomicBool::default(),
            hurry: Notify::default(),
            suspects: Mutex::default(),
            turns: Arc::new(turns),
        }
    }

    /// Completes when something happened since the last [`Self::take`].
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Completes when a heavy request was placed since the last time.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    /// Begins a look at the counts: clears the flags and returns the endpoints whose breaker opened, and whether a heavy request was
    /// placed.
    pub fn take(&self) -> (HashSet<Key>, bool) {
        self.dirty.store(false, SeqCst);
        let heavy = self.heavy.swap(false, SeqCst);
        (std::mem::take(&mut *self.suspects.lock()), heavy)
    }

    fn raise(&self) {
        // The common case under load is a flag that is up already: one relaxed read.
        if !self.dirty.load(Relaxed) && !self.dirty.swap(true, SeqCst) {
            self.wake.notify_one();
        }
    }
}

impl EndpointObserver for Signals {
    fn breaker_opened(&self, endpoint: &Endpoint, why: Failure) {
        let spec = endpoint.spec();
        tracing::warn!(endpoint = %spec.name, ?why, "circuit breaker opened");
        counter!("quorate_endpoint_breaker_opened_total").increment(1);
        let key = Key {
            name: spec.name.clone(),
            incarnation: spec.incarnation,
        };
        let mut suspects = self.suspects.lock();
        if suspects.len() < MOST_SUSPECTS {
            suspects.insert(key);
        } else {
            counter!("quorate_endpoint_signals_dropped_total").increment(1);
        }
        drop(suspects);
        self.raise();
    }

    fn breaker_closed(&self, endpoint: &Endpoint) {
        tracing::info!(endpoint = endpoint.name(), "circuit breaker closed");
    }

    fn in_flight_changed(&self, began: u64) {
        if began >= HEAVY_TOKENS {
            self.turns.heavy_placed(now_ms());
            if !self.heavy.swap(true, SeqCst) {
                self.hurry.notify_one();
            }
        }
        self.raise();
    }

    fn turn(&self) -> Option<Turn> {
        self.turns.ask(now_ms())
    }
}
