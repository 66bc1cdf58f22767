//! What all workers of a gateway share, and the state of one worker.

use crate::budget::RetryBudget;
use crate::config::GatewayConfig;
use crate::metrics::Metrics;
use crate::tls::{TlsError, UpstreamTls};
use crate::upstream::Upstreams;
use arc_swap::ArcSwap;
use quorate_routing::explain::Recorder;
use quorate_routing::identity::Authenticator;
use quorate_routing::{SharedView, now_ms};
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, OnceLock};
use tokio_util::sync::CancellationToken;

/// What the node gives to its gateway and may change while it runs.
pub struct GatewayShared {
    view: SharedView,
    node: ArcSwap<String>,
    ready: AtomicBool,
    authenticator: OnceLock<Arc<Authenticator>>,
    recorder: OnceLock<Arc<Recorder>>,
}

impl GatewayShared {
    /// Routes by `view`, which also has the pools' policies. `node` is the name shown by `/health`. Not ready until
    /// [`GatewayShared::set_ready`].
    pub fn new(view: SharedView, node: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            view,
            node: ArcSwap::from_pointee(node.into()),
            ready: AtomicBool::new(false),
            authenticator: OnceLock::new(),
            recorder: OnceLock::new(),
        })
    }

    /// The view that requests are routed by.
    pub fn view(&self) -> &SharedView {
        &self.view
    }

    /// From here on clients are asked who they are, by this one. Only the first call counts.
    pub fn set_authenticator(&self, authenticator: Arc<Authenticator>) {
        let _ = self.authenticator.set(authenticator);
    }

    /// Knows who the clients are; `None`: nobody is asked.
    pub(crate) fn authenticator(&self) -> Option<&Authenticator> {
        self.authenticator
            .get()
            .map(|authenticator| &**authenticator)
    }

    /// From here on requests are recorded by this one. Only the first call counts.
    pub fn set_recorder(&self, recorder: Arc<Recorder>) {
        let _ = self.recorder.set(recorder);
    }

    /// Keeps records of requests; `None`: nobody does.
    pub(crate) fn recorder(&self) -> Option<&Arc<Recorder>> {
        self.recorder.get()
    }

    /// Changes the node's name.
    pub fn set_node(&self, node: impl Into<String>) {
        self.node.store(Arc::new(node.into()));
    }

    /// The node's name.
    pub fn node(&self) -> Arc<String> {
        self.node.load_full()
    }

    /// What `/ready` answers: the node has its view and may get traffic. Requests are served either way.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Relaxed);
    }

    /// The last [`GatewayShared::set_ready`].
    pub fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }
}

/// Shared by all workers.
pub(crate) struct Core {
    pub config: GatewayConfig,
    pub shared: Arc<GatewayShared>,
    pub metrics: Arc<Metrics>,
    pub budget: RetryBudget,
    pub upstream_tls: UpstreamTls,
    /// No new connections; those that are open finish their requests. Wakes them once; [`Core::is_draining`] tells after that.
    pub draining: CancellationToken,
    drain_begun: AtomicBool,
    /// Everything ends now.
    pub stopped: CancellationToken,
}

impl Core {
    /// What the workers share.
    ///
    /// # Errors
    /// [`TlsError`] if the authorities that the configuration names cannot be used.
    pub fn new(config: GatewayConfig, shared: Arc<GatewayShared>) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            metrics: Arc::new(Metrics::new()),
            budget: RetryBudget::new(&config.retry, now_ms()),
            upstream_tls: UpstreamTls::new(&config.upstream)?,
            draining: CancellationToken::new(),
            drain_begun: AtomicBool::new(false),
            stopped: CancellationToken::new(),
            shared,
            config,
        }))
    }

    /// Begins the drain.
    pub fn drain(&self) {
        self.drain_begun.store(true, Release);
        self.draining.cancel();
    }

    /// Whether the drain has begun; unlike the token's own, this look takes no lock.
    pub fn is_draining(&self) -> bool {
        self.drain_begun.load(Acquire)
    }
}

/// One worker thread's own.
pub(crate) struct Worker {
    pub core: Arc<Core>,
    pub upstreams: Upstreams,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// Requests under way.
    pub in_flight: Arc<AtomicUsize>,
    random: AtomicU64,
}

impl Worker {
    pub fn new(core: Arc<Core>, seed: u64) -> Arc<Self> {
        let upstream = &core.config.upstream;
        Arc::new(Self {
            upstreams: Upstreams::new(upstream.max_idle, upstream.idle_timeout.0),
            core,
            connections: AtomicUsize::new(0),
            in_flight: Arc::default(),
            random: AtomicU64::new(seed),
        })
    }

    /// The next number of the worker's generator (splitmix64, as in Steele, Lea and Flood 2014).
    pub fn random(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(GAMMA, Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
