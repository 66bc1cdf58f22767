//! A small HTTP/1.1 client on one connection, and a reader of server-sent events.

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// No request of a test takes longer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none; shows it.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON ({}): {}", self.status, self.text()))
    }

    /// Fails unless the status is 200.
    ///
    /// # Errors
    /// As said, with the body.
    pub fn ok(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.status == StatusCode::OK,
            "{}: {}",
            self.status,
            self.text()
        );
        Ok(self)
    }
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream =
            tokio::time::timeout(Duration::from_secs(3), TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // How it ended is seen by the request in flight.
            let _ = connection.await;
        });
        Ok(Self {
            address,
            sender,
            driver,
        })
    }

    /// Whether the server has closed it.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// The connection broke, or nothing came in time.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        self.send_with(method, path, &[], body).await
    }

    async fn send_with(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string());
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let answer = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        Ok(tokio::time::timeout(TIMEOUT, answer)
            .await
            .context("no answer in time")??)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The connection broke, or the answer did not end in time.
    pub async fn call(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Reply> {
        self.call_with(method, path, &[], body).await
    }

    /// Sends a request with these headers and reads the whole answer.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_with(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Reply> {
        let (head, body) = self
            .send_with(method, path, headers, body)
            .await?
            .into_parts();
        let body = tokio::time::timeout(TIMEOUT, body.collect())
            .await
            .context("the answer does not end")??;
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }

    /// Asks for a stream.
    ///
    /// # Errors
    /// As [`Client::send`], or the status is not 200.
    pub async fn stream(&mut self, path: &str, body: &Value) -> anyhow::Result<Events> {
        let response = self
            .send(Method::POST, path, body.to_string().into())
            .await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(Events {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Closes the socket now, whatever is in flight: that is what a client that goes away looks like.
        self.driver.abort();
    }
}

/// The events of a stream.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
}

impl Events {
    /// The `data` of the next event; none after the end of the body.
    ///
    /// # Errors
    /// The stream was cut, or nothing came in time.
    pub async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let event = self.buffer.split_to(end + 2);
                let event = std::str::from_utf8(&event).context("not UTF-8")?;
                let data: Vec<&str> = event
                    .lines()
                    .filter_map(|line| line.strip_prefix("data:"))
                    .collect();
                if data.is_empty() {
                    continue;
                }
                return Ok(Some(data.join("\n").trim_start().to_owned()));
            }
            let frame = tokio::time::timeout(TIMEOUT, self.body.frame())
                .await
                .context("the stream stalls")?;
            match frame.transpose().context("the stream was cut")? {
                None if self.buffer.is_empty() => return Ok(None),
                None => bail!("the stream ends within an event: {:?}", self.buffer),
                Some(frame) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }

    /// Reads on to the end: the events' texts put together, and whether `[DONE]` came.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub async fn rest(&mut self) -> anyhow::Result<(String, bool)> {
        let (mut text, mut done) = (String::new(), false);
        while let Some(data) = self.next().await? {
            if data == "[DONE]" {
                done = true;
                continue;
            }
            text.push_str(&delta(&data)?);
        }
        Ok((text, done))
    }
}

/// The text that one chat or completion event adds.
///
/// # Errors
/// It is not JSON, or an error event.
pub fn delta(data: &str) -> anyhow::Result<String> {
    let event: Value = serde_json::from_str(data).with_context(|| format!("not JSON: {data}"))?;
    if let Some(error) = event.get("error") {
        bail!("error event: {error}");
    }
    let choice = &event["choices"][0];
    let text = choice["delta"]["content"]
        .as_str()
        .or_else(|| choice["text"].as_str());
    Ok(text.unwrap_or_default().to_owned())
}

/// A GET on a connection of its own.
///
/// # Errors
/// No answer.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Reply> {
    Client::connect(address)
        .await?
        .call(Method::GET, path, Bytes::new())
        .await
}

/// A POST on a connection of its own.
///
/// # Errors
/// No answer.
pub async fn post(address: SocketAddr, path: &str, body: &Value) -> anyhow::Result<Reply> {
    Client::connect(address)
        .await?
        .call(Method::POST, path, body.to_string().into())
        .await
}

/// A chat request with one user message.
pub fn chat(model: &str, content: &str, max_tokens: u32, stream: bool) -> Value {
    serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "stream": stream,
    })
}

/// One value of a metrics page: the sum over all series of `name` whose labels contain `labels`.
pub fn metric(page: &str, name: &str, labels: &str) -> Option<f64> {
    let mut sum = None;
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let (found, with) = series.split_once('{').unwrap_or((series, ""));
        if found == name && with.contains(labels) {
            *sum.get_or_insert(0.0) += value.parse::<f64>().unwrap_or(f64::NAN);
        }
    }
    sum
}
