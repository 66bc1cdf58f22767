//! A listening socket and the loop that accepts on it, for every server whose connections go to worker threads.

use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Connections that the kernel completes before they are accepted.
const BACKLOG: i32 = 4096;
/// Pause after an error that trying again at once would not mend: out of file descriptors or memory.
const BREATH: Duration = Duration::from_millis(50);

/// Binds an address.
///
/// # Errors
/// The system's: in use, not ours, not allowed.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Gives each connection to `take` until `until`. The listener is closed then, and new connections are refused.
pub async fn accept_until(
    until: &CancellationToken,
    listener: TcpListener,
    mut take: impl FnMut(TcpStream, SocketAddr),
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "listener lost");
            return;
        }
    };
    while let Some(accepted) = until.run_until_cancelled(listener.accept()).await {
        match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
            Ok((stream, peer)) => take(stream, peer),
            // The client was gone again before it was accepted.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
