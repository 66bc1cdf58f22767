//! One client connection from the accepted socket to its end: TLS, the choice between HTTP/1.1 and HTTP/2, timeouts while no
//! request is under way, drain.

use crate::body::GatewayBody;
use crate::client::{Client, Phase};
use crate::client_io::ClientIo;
use crate::config::GatewayConfig;
use crate::deadline::{Deadline, after};
use crate::listen::Accepted;
use crate::service::GatewayService;
use crate::transport::{Transport, tune};
use crate::worker::Worker;
use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use quorate_routing::now_ms;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// What a client that speaks HTTP/2 without TLS sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most memory that waits to be written to one client, beyond the kernel's buffer.
const WRITE_BUFFER: usize = 64 << 10;
/// How long and how much is read from a client whose request was refused before it had sent it all.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 4 << 20;

/// Serves a connection until it ends. A gateway that is stopped, not drained, drops this with its runtime.
pub(crate) async fn serve(worker: Arc<Worker>, accepted: Accepted) {
    let peer = accepted.peer;
    if let Err(error) = serve_socket(&worker, accepted).await {
        tracing::debug!(%peer, %error, "connection failed");
    }
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the client sent nothing useful in time")]
    Timeout,
}

async fn serve_socket(worker: &Arc<Worker>, accepted: Accepted) -> Result<(), ServeError> {
    let config = &worker.core.config;
    let Accepted {
        stream,
        peer,
        trusted,
        tls,
    } = accepted;
    let stream = TcpStream::from_std(stream)?;
    tune(&stream)?;
    let client = Arc::new(Client::new(
        peer,
        tls.is_some(),
        trusted,
        Arc::clone(&worker.in_flight),
    ));
    let (mut transport, by_alpn) = match tls {
        None => (Transport::Plain(stream), None),
        Some(tls) => {
            let handshake = TlsAcceptor::from(tls).accept(stream);
            let stream = tokio::time::timeout(config.header_timeout.0, handshake)
                .await
                .map_err(|_| ServeError::Timeout)??;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            (Transport::Tls(Box::new(stream.into())), Some(http2))
        }
    };
    let (http2, prefix) = match by_alpn {
        Some(http2) => (http2, Bytes::new()),
        None => sniff(worker, &mut transport).await?,
    };
    if http2 {
        client.set_http2();
    }
    let io = ClientIo::new(
        transport,
        prefix,
        http2,
        Arc::clone(&client),
        config.write_timeout.0,
    );
    let (io, service) = (TokioIo::new(io), GatewayService::new(worker, &client));
    if http2 {
        let connection = http2_builder(config).serve_connection(io, service);
        run(worker, &client, connection).await
    } else {
        let mut connection = Http1(http1_builder(config).serve_connection(io, service));
        run(worker, &client, &mut connection).await?;
        close(connection.0.into_parts().io, client.linger.load(Relaxed)).await;
        Ok(())
    }
}

fn http1_builder(config: &GatewayConfig) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_buf_size(config.max_header_bytes.max(WRITE_BUFFER))
        .max_header_size(config.max_header_bytes);
    // hyper keeps its default on the stack and clears a heap block for any other number.
    if config.max_headers != 100 {
        builder.max_headers(config.max_headers);
    }
    builder
}

fn http2_builder(config: &GatewayConfig) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams_per_connection)
        .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(4 << 20)
        .max_send_buf_size(WRITE_BUFFER)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Reads until it is clear which protocol the client speaks. Nothing at all within the idle timeout, or half of a preface within the
/// header timeout, is an error; so is a drain, since nothing is under way yet.
async fn sniff(worker: &Worker, transport: &mut Transport) -> Result<(bool, Bytes), ServeError> {
    let config = &worker.core.config;
    let mut read = BytesMut::with_capacity(8 << 10);
    let mut draining = pin!(worker.core.draining.cancelled());
    loop {
        let limit = if read.is_empty() {
            config.idle_timeout.0
        } else {
            config.header_timeout.0
        };
        let mut more = pin!(tokio::time::timeout(limit, transport.read_buf(&mut read)));
        // What has come already is served, even if a drain began in the same moment.
        let more = poll_fn(|cx| match more.as_mut().poll(cx) {
            Poll::Pending => draining.as_mut().poll(cx).map(|()| None),
            Poll::Ready(more) => Poll::Ready(more.ok()),
        });
        if more.await.ok_or(ServeError::Timeout)?? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let common = read.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
        if common == PREFACE.len() {
            return Ok((true, read.freeze()));
        }
        if common < read.len() {
            return Ok((false, read.freeze()));
        }
    }
}

/// What [`run`] needs of a hyper connection.
trait Connection: Future<Output = Result<(), hyper::Error>> {
    /// No more requests after those under way; says so to the client.
    fn finish(self: Pin<&mut Self>);
}

/// An HTTP/1.1 connection that leaves the socket open at its end, for lingering.
struct Http1(http1::Connection<TokioIo<ClientIo>, GatewayService>);

impl Future for &mut Http1 {
    type Output = Result<(), hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_without_shutdown(cx)
    }
}

impl Connection for &mut Http1 {
    fn finish(mut self: Pin<&mut Self>) {
        Pin::new(&mut self.0).graceful_shutdown();
    }
}

impl<S, E> Connection for http2::Connection<TokioIo<ClientIo>, S, E>
where
    S: hyper::service::Service<Request<Incoming>, Response = http::Response<GatewayBody>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, GatewayBody>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection; closes it when it idles or dawdles too long, and lets it finish when the gateway drains.
async fn run(
    worker: &Worker,
    client: &Client,
    connection: impl Connection,
) -> Result<(), ServeError> {
    let config = &worker.core.config;
    let mut connection = pin!(connection);
    let mut draining = pin!(worker.core.draining.cancelled());
    let mut listening = false;
    let mut finishing = false;
    let mut timer = Deadline::default();
    // One timer serves all limits and is not touched by requests: it looks at the connection's state at least this often.
    let limits = [
        config.header_timeout,
        config.idle_timeout,
        config.write_timeout,
    ];
    let often = limits.iter().map(|limit| limit.0).min().unwrap_or_default();
    let mut look_at = after(Instant::now(), often);
    poll_fn(|cx| {
        // The waker is left with the token once; after that its flag tells.
        let mut finish = false;
        if !finishing && (!listening || worker.core.is_draining()) {
            listening = true;
            finish = draining.as_mut().poll(cx).is_ready();
        }
        // An answer under way shall say that the connection ends; a request that has come and was not read yet shall be served.
        if finish && client.waiting().is_none() {
            finishing = true;
            connection.as_mut().finish();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result.map_err(ServeError::from));
        }
        while timer.has_passed(cx, look_at) {
            client.cut_stalled(config.write_timeout.0);
            let left = match client.waiting() {
                None => often,
                Some((phase, since)) => {
                    let limit = match phase {
                        Phase::Idle => config.idle_timeout.0,
                        Phase::Head => config.header_timeout.0,
                    };
                    limit.saturating_sub(Duration::from_millis(now_ms().saturating_sub(since)))
                }
            };
            if left.is_zero() {
                if finishing {
                    return Poll::Ready(Err(ServeError::Timeout));
                }
                finish = true;
            }
            look_at = after(
                Instant::now(),
                if left.is_zero() {
                    often
                } else {
                    left.min(often)
                },
            );
        }
        if finish && !finishing {
            finishing = true;
            connection.as_mut().finish();
            return connection.as_mut().poll(cx).map_err(ServeError::from);
        }
        Poll::Pending
    })
    .await
}

/// Closes the socket in order. With `linger`, what the client still sends is read for a while: a socket closed with unread bytes in
/// it would reset the connection, and the client would lose the answer.
async fn close(mut io: TokioIo<ClientIo>, linger: bool) {
    let io = io.inner_mut();
    if io.shutdown().await.is_err() || !linger {
        return;
    }
    let drained = async {
        let mut sink = vec![0; 16 << 10];
        let mut read = 0;
        while read < LINGER_BYTES {
            match io.read(&mut sink).await {
                Ok(0) | Err(_) => break,
                Ok(n) => read += n,
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, drained).await;
}
