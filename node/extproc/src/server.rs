//! Starting, draining and stopping: one thread that accepts, worker threads that serve.

use crate::addresses::Addresses;
use crate::config::{ConfigError, ExtProcConfig, TlsConfig};
use crate::health::NodeHealth;
use crate::listen::{Arrival, Connection, Door, accept};
use crate::metrics::Metrics;
use crate::service::Processor;
use futures_util::StreamExt;
use quorate_gateway::{GatewayShared, Picker, PickerOptions, bind, spawn_worker};
use quorate_proto::envoy::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::pb::health_server::HealthServer;

/// What a message holds besides a piece of a body.
const MESSAGE_OVERHEAD: usize = 128 << 10;
/// Bytes that Envoy may send ahead on one stream and on one connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Streams that Envoy may have reset before they were looked at. A burst of clients that go away together is no attack here, and
/// the default of 20 would end the whole connection.
const PENDING_RESETS: usize = 16_384;
/// How often a connection is checked, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// The external-processing server.
pub struct ExtProc;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A key is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No address to listen on is configured.
    #[error("ext_proc.listen is not set")]
    Off,
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (ext_proc.listen): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A certificate, key or authority cannot be read.
    #[error("cannot read {path} (ext_proc.tls): {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The files are no usable certificate and key.
    #[error("ext_proc.tls cannot be used: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// The system gives no thread or no event queue.
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
}

/// Shared by all workers.
pub(crate) struct Core {
    pub config: ExtProcConfig,
    pub addresses: Addresses,
    shared: Arc<GatewayShared>,
    drain_begun: AtomicBool,
    /// No new streams; those that are open go on.
    pub closing: CancellationToken,
    /// Everything ends now.
    stopped: CancellationToken,
}

impl Core {
    /// Has its view and may get requests.
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready() && !self.drain_begun.load(Acquire)
    }
}

/// One worker thread's own.
pub(crate) struct Worker {
    pub core: Arc<Core>,
    pub picker: Picker,
    pub metrics: Metrics,
    /// Open connections of Envoy's.
    pub connections: AtomicUsize,
}

impl Worker {
    pub fn new(core: Arc<Core>, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            picker: Picker::new(
                Arc::clone(&core.shared),
                PickerOptions {
                    trust_headers: core.config.trusts_headers(),
                    stream_usage: core.config.stream_usage,
                },
                seed,
            ),
            core,
            metrics: Metrics::new(),
            connections: AtomicUsize::new(0),
        })
    }
}

impl ExtProc {
    /// Binds the listener and starts the threads. Needs no runtime. Returns when connections are accepted.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(
        config: ExtProcConfig,
        shared: Arc<GatewayShared>,
    ) -> Result<ExtProcHandle, StartError> {
        config.validate()?;
        let address = config.listen.ok_or(StartError::Off)?;
        let tls = config.tls.as_ref().map(server_tls).transpose()?;
        let bound = bind(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (local, listener) = bound.map_err(|source| StartError::Bind { address, source })?;
        let core = core(config, shared);
        // Made before the threads: if one cannot start, this ends those that did.
        let mut handle = ExtProcHandle {
            core: Arc::clone(&core),
            address: local,
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
        let mut doors = Vec::new();
        for i in 0..count {
            let worker = Worker::new(Arc::clone(&core), seeds.u64(..));
            let (sockets, incoming) = mpsc::unbounded_channel();
            handle.workers.push(Arc::clone(&worker));
            doors.push(Door {
                worker: Arc::clone(&worker),
                sockets,
            });
            let tls = tls.clone();
            handle.thread(format!("ext-proc-{i}"), async move {
                work(worker, incoming, tls).await;
            })?;
        }
        handle.thread("ext-proc-accept".into(), async move {
            let resolving = Arc::clone(&core);
            tokio::spawn(async move { resolving.addresses.follow(resolving.shared.view()).await });
            accept(Arc::clone(&core), listener, doors).await;
            core.stopped.cancelled().await;
        })?;
        Ok(handle)
    }
}

/// What the workers of one server share.
pub(crate) fn core(config: ExtProcConfig, shared: Arc<GatewayShared>) -> Arc<Core> {
    Arc::new(Core {
        config,
        addresses: Addresses::default(),
        shared,
        drain_begun: AtomicBool::new(false),
        closing: CancellationToken::new(),
        stopped: CancellationToken::new(),
    })
}

fn server_tls(config: &TlsConfig) -> Result<ServerTlsConfig, StartError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| StartError::File {
            path: path.to_owned(),
            source,
        })
    };
    let identity = Identity::from_pem(read(&config.cert)?, read(&config.key)?);
    let mut tls = ServerTlsConfig::new().identity(identity);
    if let Some(ca) = &config.client_ca {
        tls = tls.client_ca_root(Certificate::from_pem(read(ca)?));
    }
    // Tells now whether the files are any good.
    Server::builder()
        .tls_config(tls.clone())
        .map_err(StartError::Tls)?;
    Ok(tls)
}

/// A worker's main task: serves its connections until the server has closed and they are done, or it is stopped.
async fn work(
    worker: Arc<Worker>,
    incoming: mpsc::UnboundedReceiver<Arrival>,
    tls: Option<ServerTlsConfig>,
) {
    let core = Arc::clone(&worker.core);
    let config = &core.config;
    let processor = ExternalProcessorServer::new(Processor(Arc::clone(&worker)))
        .max_decoding_message_size(config.max_body_bytes.saturating_add(MESSAGE_OVERHEAD))
        .max_encoding_message_size(usize::MAX);
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(config.max_streams_per_connection)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    if let Some(tls) = tls {
        server = match server.tls_config(tls) {
            Ok(server) => server,
            Err(error) => {
                tracing::error!(%error, "external processing without its certificate");
                return;
            }
        };
    }
    let connections = UnboundedReceiverStream::new(incoming).map(Connection::new);
    let serving = server
        .add_service(processor)
        .add_service(HealthServer::new(NodeHealth(Arc::clone(&core))))
        .serve_with_incoming_shutdown(connections, core.closing.cancelled());
    if let Some(Err(error)) = core.stopped.run_until_cancelled(serving).await {
        tracing::error!(%error, "an external-processing worker ended");
    }
}

/// A running server. Dropping it ends everything at once; see [`ExtProcHandle::drain`] for the gentle way.
pub struct ExtProcHandle {
    core: Arc<Core>,
    address: SocketAddr,
    workers: Vec<Arc<Worker>>,
    threads: Vec<JoinHandle<()>>,
}

impl ExtProcHandle {
    /// Where it listens, with the port that the system chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.workers
            .iter()
            .map(|worker| worker.connections.load(Relaxed))
            .sum()
    }

    /// Says through gRPC health that it takes no more, waits `drain_window` for Envoy to notice, then turns new streams away and
    /// lets those that are open run to their end. What still runs `deadline` after the beginning is cut off; gives how many
    /// connections that were.
    pub async fn drain(&self, deadline: Duration) -> usize {
        let end = Instant::now().checked_add(deadline);
        let in_time = || end.is_none_or(|end| Instant::now() < end);
        self.core.drain_begun.store(true, Release);
        let window = Instant::now().checked_add(self.core.config.drain_window.0);
        while self.connections() > 0
            && window.is_none_or(|window| Instant::now() < window)
            && in_time()
        {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        self.core.closing.cancel();
        while self.connections() > 0 && in_time() {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        let cut = self.connections();
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

impl Drop for ExtProcHandle {
    fn drop(&mut self) {
        self.core.drain_begun.store(true, Release);
        self.core.closing.cancel();
        self.core.stopped.cancel();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
