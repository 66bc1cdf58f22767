//! A small HTTP client for probes: one kept connection, limits on time and size, plain, TLS or HTTP/2 without TLS.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use quorate_routing::Target;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// A whole answer.
#[derive(Debug)]
pub struct Page {
    /// Status code.
    pub status: StatusCode,
    /// The body, at most as long as the caller allowed.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens at the address.
    #[error("connection to {0} refused")]
    Refused(String),
    /// Any other trouble on the way to a connection.
    #[error("no connection to {to}: {why}")]
    Connect {
        /// The address.
        to: String,
        /// What failed.
        why: String,
    },
    /// Took longer than allowed.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke or spoke no HTTP.
    #[error("{0}")]
    Broken(String),
    /// The answer is longer than allowed.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// What a request may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for all of it, connecting included.
    pub timeout: Duration,
    /// Longest body in bytes.
    pub body: usize,
}

/// Client for one address. Requests go one after the other; clones share the connection.
#[derive(Clone)]
pub struct Client {
    target: Target,
    h2c: bool,
    tls: Option<Arc<rustls::ClientConfig>>,
    kept: Arc<Mutex<Option<Sender>>>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// A client without a connection yet. `h2c`: HTTP/2 without TLS. `tls`: needed for https addresses.
    pub fn new(target: Target, h2c: bool, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self {
            target,
            h2c,
            tls,
            kept: Arc::default(),
        }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`FetchError`]; a status is never one.
    pub async fn get(&self, path: &str, limits: Limits) -> Result<Page, FetchError> {
        self.send(Method::GET, path, Bytes::new(), limits).await
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// [`FetchError`]; a status is never one.
    pub async fn post(&self, path: &str, json: Bytes, limits: Limits) -> Result<Page, FetchError> {
        self.send(Method::POST, path, json, limits).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limits: Limits,
    ) -> Result<Page, FetchError> {
        let work = async {
            let mut kept = self.kept.lock().await;
            if let Some(mut sender) = kept.take()
                && sender.ready().await
            {
                match self
                    .exchange(&mut sender, &method, path, &body, limits.body)
                    .await
                {
                    Ok(page) => {
                        *kept = Some(sender);
                        return Ok(page);
                    }
                    // The engine may have closed a kept connection at any time: a fresh one decides.
                    Err(FetchError::Broken(_)) => {}
                    Err(e) => return Err(e),
                }
            }
            let mut sender = self.connect().await?;
            let page = self
                .exchange(&mut sender, &method, path, &body, limits.body)
                .await?;
            *kept = Some(sender);
            Ok(page)
        };
        tokio::time::timeout(limits.timeout, work)
            .await
            .unwrap_or(Err(FetchError::Timeout(limits.timeout)))
    }

    async fn exchange(
        &self,
        sender: &mut Sender,
        method: &Method,
        path: &str,
        body: &Bytes,
        limit: usize,
    ) -> Result<Page, FetchError> {
        let request = self.request(sender, method, path, body.clone())?;
        let response = match sender {
            Sender::Http1(s) => s.send_request(request).await,
            Sender::Http2(s) => s.send_request(request).await,
        }
        .map_err(|e| FetchError::Broken(format!("no answer: {e}")))?;
        let status = response.status();
        match Limited::new(response.into_body(), limit).collect().await {
            Ok(body) => Ok(Page {
                status,
                body: body.to_bytes(),
            }),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(FetchError::TooLong(limit)),
            Err(e) => Err(FetchError::Broken(format!("the answer broke off: {e}"))),
        }
    }

    fn request(
        &self,
        sender: &Sender,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, FetchError> {
        let bad = |e: &dyn std::fmt::Display| {
            FetchError::Broken(format!("{path:?} cannot be asked for: {e}"))
        };
        let authority = self.target.authority.as_str();
        // HTTP/2 carries scheme and authority in the URI, HTTP/1.1 the authority in a header.
        let uri: Uri = match sender {
            Sender::Http1(_) => path.parse().map_err(|e| bad(&e))?,
            Sender::Http2(_) => Uri::builder()
                .scheme(if self.target.tls { "https" } else { "http" })
                .authority(authority)
                .path_and_query(path)
                .build()
                .map_err(|e| bad(&e))?,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(USER_AGENT, "quorate-probe");
        if matches!(sender, Sender::Http1(_)) {
            request = request.header(HOST, authority);
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        request.body(Full::new(body)).map_err(|e| bad(&e))
    }

    async fn connect(&self) -> Result<Sender, FetchError> {
        let failed = |why: String| FetchError::Connect {
            to: self.target.authority.clone(),
            why,
        };
        // Tries every address that the name has.
        let stream = TcpStream::connect((self.target.host.as_str(), self.target.port))
            .await
            .map_err(|e| match e.kind() {
                io::ErrorKind::ConnectionRefused => {
                    FetchError::Refused(self.target.authority.clone())
                }
                _ => failed(e.to_string()),
            })?;
        // Only a hint to the kernel: a probe works without it.
        let _ = stream.set_nodelay(true);
        if !self.target.tls {
            return handshake(TokioIo::new(stream), self.h2c)
                .await
                .map_err(|e| failed(e.to_string()));
        }
        let config = self.tls.clone().ok_or_else(|| {
            failed("no certificate authorities are configured for engines".into())
        })?;
        let name = rustls::pki_types::ServerName::try_from(self.target.host.clone())
            .map_err(|e| failed(e.to_string()))?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        handshake(TokioIo::new(stream), h2)
            .await
            .map_err(|e| failed(e.to_string()))
    }
}

async fn handshake<T>(io: T, h2: bool) -> hyper::Result<Sender>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    // The connection's task ends by itself when its sender is dropped or the peer hangs up; errors reach the sender.
    if h2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}

impl Sender {
    /// False: the connection is closed.
    async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(s) => s.ready().await.is_ok(),
            Self::Http2(s) => s.ready().await.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests;
