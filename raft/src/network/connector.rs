//! Opens connections to peers: TCP without Nagle's delay, then TLS if configured.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;

use super::{
    listener::{CONNECTION_WINDOW, STREAM_WINDOW},
    stream::{Caller, PeerStream},
};
use crate::{error::Error, options::Timing};

/// A connection to a peer, made when first used and again whenever it breaks.
///
/// # Errors
/// [`Error::Options`] if `address` is not `host:port`.
pub(crate) fn channel(
    address: &str,
    tls: Option<Arc<ClientConfig>>,
    timing: Timing,
) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Error::Options(format!("{address:?} is not a peer address (host:port)")))?
        .tcp_nodelay(true)
        .connect_timeout(timing.connect())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(timing.keepalive())
        .keep_alive_timeout(timing.keepalive())
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(Connector { tls }))
}

#[derive(Clone)]
struct Connector {
    tls: Option<Arc<ClientConfig>>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<PeerStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<PeerStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let host = uri
                .host()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            let port = uri
                .port_u16()
                .ok_or_else(|| io::Error::other(format!("{uri}: no port")))?;
            Ok(TokioIo::new(connect(&host, port, tls).await?))
        })
    }
}

async fn connect(host: &str, port: u16, tls: Option<Arc<ClientConfig>>) -> io::Result<PeerStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host}: no address found"));
    for address in tokio::net::lookup_host((host, port)).await? {
        if tls.is_none() && !address.ip().to_canonical().is_loopback() {
            last = io::Error::new(
                io::ErrorKind::PermissionDenied,
                Error::PlainText(address.to_string()),
            );
            continue;
        }
        match open(address, host, tls.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open(
    address: SocketAddr,
    host: &str,
    tls: Option<Arc<ClientConfig>>,
) -> io::Result<PeerStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(PeerStream::plain(stream));
    };
    let name =
        ServerName::try_from(host.to_owned()).unwrap_or_else(|_| ServerName::from(address.ip()));
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    Ok(PeerStream::tls(stream, Caller::default()))
}
