//! The gRPC listener of the control API: plain on loopback, mutual TLS elsewhere.

use crate::config::TlsFiles;
use anyhow::Context;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// Serves until `stop` ends, then lets calls in flight finish.
///
/// # Errors
/// A certificate file is unreadable, or the listener breaks.
pub async fn serve(
    listener: TcpListener,
    tls: Option<&TlsFiles>,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(1024);
    if let Some(files) = tls {
        let read = |path: &std::path::Path| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
        let config = ServerTlsConfig::new()
            .identity(identity)
            .client_ca_root(Certificate::from_pem(read(&files.ca)?));
        server = server.tls_config(config).context("control.tls")?;
    }
    // The builder's own nodelay setting does not reach a listener that it did not open.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    server
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
        .context("the control listener failed")
}
