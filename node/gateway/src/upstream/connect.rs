//! Opens connections to endpoints.

use super::exchange::{Channel, Link, RequestBody};
use crate::transport::{Transport, tune};
use crate::worker::Core;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use quorate_routing::Endpoint;
use rustls_pki_types::ServerName;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why no connection could be made; for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the connect timeout passed")]
    Timeout,
    #[error("name look-up failed: {0}")]
    Lookup(io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error("{0}: {1}")]
    Tcp(SocketAddr, io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("no usable certificate authority for https endpoints")]
    NoAuthority,
    #[error("not a name that a certificate can have")]
    ServerName,
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// A connection of the kind that the endpoint speaks.
pub(super) async fn open(core: &Core, endpoint: &Arc<Endpoint>) -> Result<Channel, ConnectError> {
    Ok(if endpoint.spec().h2c {
        Channel::Http2(http2(core, endpoint).await?)
    } else {
        Channel::Http1(Link::new(transport(core, endpoint, false).await?).await?)
    })
}

/// An HTTP/2 connection, driven by a task of its own until nobody uses it any more.
async fn http2(
    core: &Core,
    endpoint: &Arc<Endpoint>,
) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
    let io = TokioIo::new(transport(core, endpoint, true).await?);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(io)
        .await?;
    let name = Arc::clone(endpoint);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(endpoint = name.name(), %error, "HTTP/2 connection ended");
        }
    });
    Ok(sender)
}

async fn transport(
    core: &Core,
    endpoint: &Arc<Endpoint>,
    http2: bool,
) -> Result<Transport, ConnectError> {
    let target = &endpoint.spec().target;
    let stream = match target.ip() {
        Some(ip) => tcp(SocketAddr::new(ip, target.port)).await?,
        None => by_name(&target.host, target.port).await?,
    };
    if !target.tls {
        return Ok(Transport::Plain(stream));
    }
    let config = core
        .upstream_tls
        .get(http2)
        .ok_or(ConnectError::NoAuthority)?;
    let name = ServerName::try_from(target.host.clone()).map_err(|_| ConnectError::ServerName)?;
    let stream = TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
        .map_err(ConnectError::Tls)?;
    Ok(Transport::Tls(Box::new(stream.into())))
}

/// Tries the addresses of a name in the resolver's order. Each one before the last gets a moment only, so that a black hole does
/// not use up the connect timeout.
async fn by_name(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(ConnectError::Lookup)?
        .collect();
    let mut last = ConnectError::NoAddress;
    for (i, address) in addresses.iter().enumerate() {
        let attempt = tcp(*address);
        let result = if i + 1 < addresses.len() {
            tokio::time::timeout(Duration::from_millis(500), attempt)
                .await
                .unwrap_or(Err(ConnectError::Timeout))
        } else {
            attempt.await
        };
        match result {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn tcp(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| ConnectError::Tcp(address, e))?;
    tune(&stream).map_err(|e| ConnectError::Tcp(address, e))?;
    Ok(stream)
}
