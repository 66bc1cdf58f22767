//! The byte stream to a client as hyper uses it: with the bytes read while sniffing put back in front, a note of when bytes
//! came, and a limit on how long the client may take none.

use crate::client::Client;
use crate::deadline::{Deadline, after};
use crate::transport::Transport;
use bytes::{Buf, Bytes};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module's documentation.
pub(crate) struct ClientIo {
    transport: Transport,
    /// Read already, not yet handed on.
    prefix: Bytes,
    client: Arc<Client>,
    /// Bytes outside a request begin a head. Not so with HTTP/2, whose frames may come at any time.
    heads: bool,
    write_timeout: Duration,
    /// When the client stopped taking bytes.
    stalled: Option<Instant>,
    timer: Deadline,
}

impl ClientIo {
    /// Wraps a transport of which `prefix` has been read.
    pub fn new(
        transport: Transport,
        prefix: Bytes,
        http2: bool,
        client: Arc<Client>,
        write_timeout: Duration,
    ) -> Self {
        if !http2 && !prefix.is_empty() {
            client.bytes_came();
        }
        Self {
            transport,
            prefix,
            client,
            heads: !http2,
            write_timeout,
            stalled: None,
            timer: Deadline::default(),
        }
    }

    /// Notes how a write went. A pending one becomes an error once the client has taken nothing for the write timeout.
    fn check_stall<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.timer.disarm();
            }
            return written;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        if self.timer.has_passed(cx, after(since, self.write_timeout)) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(self.prefix.get(..n).unwrap_or_default());
            self.prefix.advance(n);
            if self.prefix.is_empty() {
                // Gives its memory back.
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(cx, buf);
        if self.heads && buf.filled().len() > before {
            self.client.bytes_came();
        }
        read
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.check_stall(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.check_stall(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.transport, Transport::Plain(_)) {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        self.check_stall(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.transport).poll_shutdown(cx);
        self.check_stall(cx, done)
    }
}
