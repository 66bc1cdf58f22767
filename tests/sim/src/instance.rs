//! One listening server: accepts connections, crashes and comes back on demand.

use crate::config::{ConfigError, SimConfig};
use crate::fault::Faults;
use crate::fleet::Fleet;
use crate::http;
use crate::kv_events::{Publisher, Sockets};
use crate::live::Live;
use crate::shared::{Shared, SimStats};
use crate::tls::TlsError;
use futures_util::FutureExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It cannot speak HTTPS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A socket for KV events cannot be bound.
    #[error("cannot bind the sockets for KV events: {0}")]
    KvEvents(io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running server. It runs on the runtime that started it and stops when this is dropped.
pub struct Sim {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    down: watch::Receiver<bool>,
}

impl Sim {
    /// Starts a server by itself; it listens when this returns.
    pub async fn start(config: SimConfig) -> Result<Sim, SimError> {
        Sim::start_among(config, &Arc::default()).await
    }

    /// Starts a server among others; it listens when this returns.
    pub async fn start_among(config: SimConfig, fleet: &Arc<Fleet>) -> Result<Sim, SimError> {
        config.validate()?;
        let tls = match &config.tls {
            Some(files) => Some(files.acceptor()?),
            None => None,
        };
        let listener = listen(config.listen).map_err(|source| SimError::Listen {
            addr: config.listen,
            source,
        })?;
        let addr = listener.local_addr().map_err(|source| SimError::Listen {
            addr: config.listen,
            source,
        })?;
        let events = match &config.kv_events {
            Some(events) => {
                let size = config.engine.block_size;
                let publisher = Publisher::new(events.clone(), size, config.rank, config.seed);
                Some(Arc::new(publisher.map_err(ConfigError)?))
            }
            None => None,
        };
        let sockets = match &events {
            Some(events) => events.listen().await.map_err(SimError::KvEvents)?,
            None => Sockets::default(),
        };
        let shared = Arc::new(Shared::new(config, events, fleet.clone(), addr));
        fleet.join(&shared);
        let live = Live::new(shared.clone());
        *shared.live.lock() = Some(live.clone());
        let (tell, down) = watch::channel(false);
        let task = tokio::spawn(supervise(
            shared.clone(),
            tls,
            listener,
            sockets,
            live,
            tell,
        ));
        Ok(Sim { shared, task, down })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &SimConfig {
        &self.shared.config
    }

    /// What it has counted.
    pub fn stats(&self) -> SimStats {
        self.shared.stats()
    }

    /// Replaces the faults in force.
    pub fn set_fault(&self, faults: Faults) {
        self.shared.set_faults(faults);
    }

    /// Returns when the server has crashed for good.
    pub async fn crashed(&self) {
        let mut down = self.down.clone();
        // An error means that the server was stopped instead: there is nothing left to wait for.
        let _ = down.wait_for(|down| *down).await;
    }

    /// Closes the listener and all connections.
    pub async fn stop(mut self) {
        self.task.abort();
        let ended = (&mut self.task).await;
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "the simulator's accept loop panicked");
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.task.abort();
        // The incarnation and the shared state point at each other.
        *self.shared.live.lock() = None;
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A server that comes back takes its port although old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(4096)
}

async fn supervise(
    shared: Arc<Shared>,
    tls: Option<TlsAcceptor>,
    mut listener: TcpListener,
    mut sockets: Sockets,
    mut live: Arc<Live>,
    down: watch::Sender<bool>,
) {
    loop {
        let mut tasks = JoinSet::new();
        if let Some(events) = &shared.events {
            let changes = live.follow_changes();
            tasks.spawn(events.clone().run(sockets, changes));
        }
        tasks.spawn(live.clone().drive());
        accept_until_crash(&shared, tls.as_ref(), &listener, &live, &mut tasks).await;
        shared.stats.crashes.fetch_add(1, Ordering::Relaxed);
        live.crashed.store(true, Ordering::Relaxed);
        drop(listener);
        *shared.live.lock() = None;
        tasks.shutdown().await;
        // Several requests may have asked for the same crash.
        let _ = shared.crash.notified().now_or_never();
        let Some(delay) = shared.spend_crash() else {
            down.send_replace(true);
            return;
        };
        tokio::time::sleep(delay).await;
        listener = loop {
            match listen(shared.addr) {
                Ok(listener) => break listener,
                Err(error) => {
                    tracing::warn!(addr = %shared.addr, %error, "cannot listen again yet");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        sockets = match &shared.events {
            Some(events) => {
                events.restart();
                bind_again(events).await
            }
            None => Sockets::default(),
        };
        live = Live::new(shared.clone());
        *shared.live.lock() = Some(live.clone());
    }
}

async fn bind_again(events: &Publisher) -> Sockets {
    loop {
        match events.listen().await {
            Ok(sockets) => return sockets,
            Err(error) => {
                tracing::warn!(%error, "cannot bind the sockets for KV events again yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn accept_until_crash(
    shared: &Arc<Shared>,
    tls: Option<&TlsAcceptor>,
    listener: &TcpListener,
    live: &Arc<Live>,
    tasks: &mut JoinSet<()>,
) {
    loop {
        tokio::select! {
            () = shared.crash.notified() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    shared.stats.connections.fetch_add(1, Ordering::Relaxed);
                    tasks.spawn(connection(stream, tls.cloned(), live.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: the next accept would fail at once.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(ended) = tasks.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection task panicked");
                }
            }
        }
    }
}

/// What a request may do to its connection.
#[derive(Default)]
pub struct Conn {
    reset: AtomicBool,
    kill: Notify,
}

impl Conn {
    /// Resets the connection.
    pub fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        self.kill.notify_one();
    }

    /// Closes the connection in order.
    pub fn close(&self) {
        self.kill.notify_one();
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, live: Arc<Live>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let _open = OpenConnection::new(live.shared.clone());
    let conn = Arc::new(Conn::default());
    let stream = FaultyStream {
        stream,
        conn: conn.clone(),
        live: live.clone(),
    };
    match tls {
        None => serve(stream, live, conn).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => serve(stream, live, conn).await,
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        },
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    live: Arc<Live>,
    conn: Arc<Conn>,
) {
    let kill = conn.clone();
    let service = service_fn(move |request| http::handle(live.clone(), conn.clone(), request));
    let builder = auto::Builder::new(TokioExecutor::new());
    tokio::select! {
        ended = builder.serve_connection(TokioIo::new(stream), service) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        }
        () = kill.kill.notified() => {}
    }
}

/// Counts a connection for as long as its task lives.
struct OpenConnection(Arc<Shared>);

impl OpenConnection {
    fn new(shared: Arc<Shared>) -> Self {
        shared
            .stats
            .open_connections
            .fetch_add(1, Ordering::Relaxed);
        OpenConnection(shared)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0
            .stats
            .open_connections
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// A TCP stream that is reset rather than closed when a fault or a crash says so.
struct FaultyStream {
    stream: TcpStream,
    conn: Arc<Conn>,
    live: Arc<Live>,
}

impl Drop for FaultyStream {
    fn drop(&mut self) {
        if (self.conn.reset.load(Ordering::Relaxed) || self.live.crashed.load(Ordering::Relaxed))
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection is closed rather than reset");
        }
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
