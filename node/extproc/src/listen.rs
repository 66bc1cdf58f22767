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
    pub sockets: UnboundedSender<TcpStream>,
}

/// Accepts until the server closes.
pub(crate) async fn accept(core: Arc<Core>, listener: TcpListener, doors: Vec<Door>) {
    accept_until(&core.closing, listener, |stream, _| {
        let least = doors
            .iter()
            .min_by_key(|door| door.worker.connections.load(Relaxed));
        if let Some(door) = least {
            // Counted here, so that connections that come together spread.
            door.worker.connections.fetch_add(1, Relaxed);
            if door.sockets.send(stream).is_err() {
                door.worker.connections.fetch_sub(1, Relaxed);
            }
        }
    })
    .await;
}

/// A connection that counts on its worker until it is closed.
pub(crate) struct Connection {
    stream: tokio::net::TcpStream,
    worker: Arc<Worker>,
}

impl Connection {
    /// Takes a socket that was counted in when it was accepted.
    ///
    /// # Errors
    /// The runtime's.
    pub fn new(stream: TcpStream, worker: Arc<Worker>) -> io::Result<Self> {
        let stream = stream
            .set_nodelay(true)
            .and_then(|()| tokio::net::TcpStream::from_std(stream));
        match stream {
            Ok(stream) => Ok(Self { stream, worker }),
            Err(error) => {
                worker.connections.fetch_sub(1, Relaxed);
                Err(error)
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.connections.fetch_sub(1, Relaxed);
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
