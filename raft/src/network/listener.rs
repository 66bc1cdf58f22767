//! The peer listener: accepts connections, does the TLS handshake off the accept loop, and serves gRPC on them.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

use super::{
    stream::{Caller, PeerStream},
    tls::{self, Tls},
};
use crate::options::Timing;

/// A stranger that connects and says nothing is dropped after this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at a time.
const HANDSHAKES: usize = 128;
/// What connections get to end by themselves when the node stops.
const GOODBYE: Duration = Duration::from_millis(500);
/// HTTP/2 flow-control windows: a bulk stream must not starve its neighbours on the same connection.
pub(super) const STREAM_WINDOW: u32 = 8 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;

/// Serves `routes` on `listener` until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    timing: Timing,
    routes: Routes,
    stop: CancellationToken,
) {
    let (accepted, incoming) = mpsc::channel::<io::Result<PeerStream>>(64);
    let accept = accept(listener, tls, accepted, stop.clone());
    let served = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(timing.keepalive()))
        .http2_keepalive_timeout(Some(timing.keepalive()))
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled());
    let ended = async {
        stop.cancelled().await;
        // Consensus has stopped, so its streams end; a stream of another service must not hold the node up.
        tokio::time::sleep(GOODBYE).await;
    };
    tokio::select! {
        () = accept => {}
        result = served => {
            if let Err(error) = result {
                tracing::error!(%error, "the peer listener ended");
            }
        }
        () = ended => {}
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    accepted: mpsc::Sender<io::Result<PeerStream>>,
    stop: CancellationToken,
) {
    let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::clone(&tls.server)));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                // Out of descriptors, or a connection that was gone before it was taken.
                tracing::warn!(%error, "accepting a peer connection failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        // Without this, Nagle's algorithm holds small frames back for 40 ms.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "peer connection");
            continue;
        }
        let Some(acceptor) = acceptor.clone() else {
            if !remote.ip().to_canonical().is_loopback() {
                tracing::warn!(%remote, "refused a plain-text peer connection from another machine");
                continue;
            }
            if accepted.send(Ok(PeerStream::plain(stream))).await.is_err() {
                return;
            }
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let (accepted, stop) = (accepted.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let handshake = tokio::time::timeout(HANDSHAKE, handshake(acceptor, stream));
            let stream = tokio::select! {
                stream = handshake => stream,
                () = stop.cancelled() => return,
            };
            match stream {
                Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                Ok(Err(error)) => refused(remote, &error.to_string()),
                Err(_) => refused(remote, "no TLS handshake in time"),
            }
        });
    }
}

fn refused(remote: SocketAddr, why: &str) {
    metrics::counter!("quorate_raft_refused_connections_total").increment(1);
    tracing::warn!(%remote, why, "refused a peer connection");
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<PeerStream> {
    let stream = acceptor.accept(stream).await?;
    let name = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or_else(|| io::Error::other("no client certificate"))
        .and_then(|cert| tls::node_name_of(cert).map_err(io::Error::other))?;
    Ok(PeerStream::tls(stream, Caller { name: Some(name) }))
}
