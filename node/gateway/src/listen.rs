//! Listeners: handing each accepted socket to the least loaded worker.

use crate::accept::accept_until;
use crate::tls::Certificate;
use crate::worker::{Core, Worker};
use rustls::ServerConfig;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often certificate files are looked at.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(1);
/// Sent in place of service when there are too many connections.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 114\r\n\r\n\
    {\"error\":{\"message\":\"too many open connections\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}";

/// A bound address.
pub(crate) struct Listener {
    pub socket: TcpListener,
    /// What its clients say about their requests in headers is believed.
    pub trusted: bool,
    pub tls: Option<Arc<ServerConfig>>,
}

/// An accepted socket on its way to a worker.
pub(crate) struct Accepted {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub trusted: bool,
    pub tls: Option<Arc<ServerConfig>>,
}

/// A worker and the way to it.
#[derive(Clone)]
pub(crate) struct WorkerDoor {
    pub worker: Arc<Worker>,
    pub sockets: mpsc::UnboundedSender<Accepted>,
}

/// Accepts on one listener until the gateway drains.
pub(crate) async fn accept(core: Arc<Core>, listener: Listener, workers: Vec<WorkerDoor>) {
    let Listener {
        socket,
        trusted,
        tls,
    } = listener;
    accept_until(&core.draining, socket, |stream, peer| {
        let tls = tls.clone();
        let accepted = Accepted {
            stream,
            peer,
            trusted,
            tls,
        };
        hand_over(&core, &workers, accepted);
    })
    .await;
}

fn hand_over(core: &Core, workers: &[WorkerDoor], mut accepted: Accepted) {
    let open: usize = workers
        .iter()
        .map(|door| door.worker.connections.load(Relaxed))
        .sum();
    if open >= core.config.max_connections {
        core.metrics.rejected.increment(1);
        if accepted.tls.is_none() {
            let _ = accepted.stream.write(FULL.as_bytes());
        }
        return;
    }
    let least = workers
        .iter()
        .min_by_key(|door| door.worker.connections.load(Relaxed));
    if let Some(door) = least {
        core.metrics.accepted.increment(1);
        core.metrics.connections.increment(1.0);
        door.worker.connections.fetch_add(1, Relaxed);
        // Fails only when the worker's thread has ended, which it does after all connections.
        let _ = door.sockets.send(accepted);
    }
}

/// Reads a certificate again whenever its files change.
pub(crate) async fn watch_certificate(core: Arc<Core>, certificate: Arc<Certificate>) {
    let mut tick = tokio::time::interval(CERTIFICATE_LOOK);
    while core
        .stopped
        .run_until_cancelled(tick.tick())
        .await
        .is_some()
    {
        match certificate.reload_if_changed() {
            Ok(true) => tracing::info!("certificate reloaded"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "certificate not reloaded; the old one stays in use")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FULL;

    #[test]
    fn the_answer_to_one_too_many_is_whole() {
        let (head, body) = FULL.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
