//! Connections on their way to the worker with the fewest.

use crate::server::{Core, Worker};
use quorate_gateway::accept_until;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::UnboundedSender;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A worker and the way to it.
pub(crate) struct Door {
    pub worker: Arc<Worker>,
    pub sockets: UnboundedSender<Arrival>,
}

/// Accepts until the server closes.
pub(crate) async fn accept(core: Arc<Core>, listener: TcpListener, doors: Vec<Door>) {
    accept_until(&core.closing, listener, |stream, _| {
        let least = doors
            .iter()
            .min_by_key(|door| door.worker.connections.load(Relaxed));
        if let Some(door) = least {
            // Counted here, so that connections that come together spread. Fails when the worker has ended: then it is closed.
            let _ = door.sockets.send(Arrival {
                stream,
                counted: Counted::new(&door.worker),
            });
        }
    })
    .await;
}

/// One of a worker's connections, wherever it is: on its way, served, or dropped because the worker closed before it took it.
struct Counted(Arc<Worker>);

impl Counted {
    fn new(worker: &Arc<Worker>) -> Self {
        worker.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(worker))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

/// A connection on its way to its worker.
pub(crate) struct Arrival {
    stream: TcpStream,
    counted: Counted,
}

/// A connection at its worker.
pub(crate) struct Connection {
    stream: tokio::net::TcpStream,
    _counted: Counted,
}

impl Connection {
    /// Takes a socket to the runtime that it is called in.
    ///
    /// # Errors
    /// The runtime's.
    pub fn new(arrival: Arrival) -> io::Result<Self> {
        let Arrival { stream, counted } = arrival;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: tokio::net::TcpStream::from_std(stream)?,
            _counted: counted,
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExtProcConfig;
    use crate::server::core;
    use quorate_gateway::GatewayShared;
    use std::time::{Duration, Instant};

    /// A drain waits for connections that are open, and one that nobody took is not.
    #[tokio::test]
    async fn a_connection_that_its_worker_never_took_does_not_count() {
        let shared = GatewayShared::new(Arc::default(), "node");
        let core = core(ExtProcConfig::default(), shared);
        let worker = Worker::new(Arc::clone(&core), 1);
        let (sockets, incoming) = tokio::sync::mpsc::unbounded_channel();
        let door = Door {
            worker: Arc::clone(&worker),
            sockets,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(accept(Arc::clone(&core), listener, vec![door]));
        let _client = tokio::net::TcpStream::connect(address).await.unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while worker.connections.load(Relaxed) == 0 {
            assert!(Instant::now() < end, "not accepted");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(incoming);
        assert_eq!(worker.connections.load(Relaxed), 0);
        core.closing.cancel();
        accepting.await.unwrap();
    }
}
