//! Starting and stopping: one thread that accepts, worker threads that serve.

use crate::accept::bind;
use crate::config::{ConfigError, GatewayConfig};
use crate::listen::{Accepted, Listener, WorkerDoor, accept, watch_certificate};
use crate::serve::serve;
use crate::thread::spawn_worker;
use crate::tls::{Certificate, TlsError};
use crate::worker::{Core, GatewayShared, Worker};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often idle upstream connections are looked over.
const SWEEP: Duration = Duration::from_secs(1);
/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// The L7 gateway.
pub struct Gateway;

/// Why the gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificates or authorities cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no thread or no event queue.
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
}

impl Gateway {
    /// Binds the listeners and starts the threads. Needs no runtime. Returns when connections are accepted.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(
        config: GatewayConfig,
        shared: Arc<GatewayShared>,
    ) -> Result<GatewayHandle, StartError> {
        config.validate()?;
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        let mut listen = |address: SocketAddr, tls| -> Result<SocketAddr, StartError> {
            let bound = bind(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
            let (local, socket) = bound.map_err(|source| StartError::Bind { address, source })?;
            listeners.push(Listener {
                socket,
                trusted: config.trust_headers.unwrap_or(local.ip().is_loopback()),
                tls,
            });
            Ok(local)
        };
        for address in &config.listen {
            addresses.push(listen(*address, None)?);
        }
        let mut certificate = None;
        let mut tls_addresses = Vec::new();
        if let Some(tls) = &config.tls {
            let loaded = Certificate::load(tls)?;
            let server = loaded.server_config()?;
            for address in &tls.listen {
                tls_addresses.push(listen(*address, Some(Arc::clone(&server)))?);
            }
            certificate = Some(loaded);
        }
        let core = Core::new(config, shared)?;
        // Made before the threads: if one cannot start, this ends those that did.
        let mut handle = GatewayHandle {
            core: Arc::clone(&core),
            addresses,
            tls_addresses,
            certificate,
            workers: Vec::new(),
            threads: Vec::new(),
        };
        let count = match core.config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let mut seeds = core
            .config
            .seed
            .map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        for i in 0..count {
            let worker = Worker::new(Arc::clone(&core), seeds.u64(..));
            let (sockets, incoming) = mpsc::unbounded_channel();
            let running = Arc::clone(&worker);
            handle.thread(format!("gateway-{i}"), async move {
                work(running, incoming).await
            })?;
            handle.workers.push(WorkerDoor { worker, sockets });
        }
        let workers = handle.workers.clone();
        let certificate = handle.certificate.clone();
        handle.thread("gateway-accept".into(), async move {
            for listener in listeners {
                tokio::spawn(accept(Arc::clone(&core), listener, workers.clone()));
            }
            if let Some(certificate) = certificate {
                tokio::spawn(watch_certificate(Arc::clone(&core), certificate));
            }
            drop(workers);
            core.stopped.cancelled().await;
        })?;
        Ok(handle)
    }
}

/// A worker's main task.
async fn work(worker: Arc<Worker>, mut incoming: mpsc::UnboundedReceiver<Accepted>) {
    let core = Arc::clone(&worker.core);
    let sweeper = Arc::clone(&worker);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            sweeper.upstreams.sweep(&sweeper.core.shared.view().load());
        }
    });
    while let Some(Some(accepted)) = core.stopped.run_until_cancelled(incoming.recv()).await {
        let counted = Counted(Arc::clone(&worker));
        tokio::spawn(async move {
            serve(Arc::clone(&counted.0), accepted).await;
            drop(counted);
        });
    }
}

/// Counts a connection out when it is over, however it ends.
struct Counted(Arc<Worker>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
        self.0.core.metrics.connections.decrement(1.0);
    }
}

/// A running gateway. Dropping it ends everything at once; see [`GatewayHandle::drain`] for the gentle way.
pub struct GatewayHandle {
    core: Arc<Core>,
    addresses: Vec<SocketAddr>,
    tls_addresses: Vec<SocketAddr>,
    certificate: Option<Arc<Certificate>>,
    workers: Vec<WorkerDoor>,
    threads: Vec<JoinHandle<()>>,
}

impl GatewayHandle {
    /// Addresses without TLS, in the order of the configuration, with the ports that the system chose for port 0.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Addresses with TLS.
    pub fn tls_addrs(&self) -> &[SocketAddr] {
        &self.tls_addresses
    }

    /// Requests under way, streams included.
    pub fn in_flight(&self) -> usize {
        self.workers
            .iter()
            .map(|door| door.worker.in_flight.load(Relaxed))
            .sum()
    }

    /// Open client connections.
    pub fn connections(&self) -> usize {
        self.workers
            .iter()
            .map(|door| door.worker.connections.load(Relaxed))
            .sum()
    }

    /// Reads the certificate files again now; they are also looked at every second.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificate stays in use.
    pub fn reload_certificate(&self) -> Result<(), TlsError> {
        self.certificate
            .as_ref()
            .map_or(Ok(()), |certificate| certificate.reload())
    }

    /// Stops accepting at once, lets every open request and stream run to its end, and returns as soon as the last connection is
    /// closed. Idle connections are closed at once, HTTP/1.1 answers say `connection: close`, HTTP/2 clients get GOAWAY. What
    /// still runs after `deadline` is cut off; returns how many requests that were.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.core.drain();
        let end = crate::deadline::after(Instant::now(), deadline);
        while self.connections() > 0 && Instant::now() < end {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        let cut = self.in_flight();
        self.core.stopped.cancel();
        cut
    }

    fn thread(
        &mut self,
        name: String,
        main: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartError> {
        let thread = spawn_worker(name, main).map_err(StartError::Worker)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for GatewayHandle {
    fn drop(&mut self) {
        self.core.drain();
        self.core.stopped.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
