//! A small HTTP client that shows what really crossed the wire.
#![allow(dead_code)]

use quorate_sim::{Sim, SimConfig};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
    /// Data of each event of a stream.
    pub fn events(&self) -> Vec<String> {
        let text = self.text();
        let events = text.split("\n\n").filter(|e| !e.is_empty());
        events
            .map(|e| e.split_once("data: ").unwrap().1.to_owned())
            .collect()
    }
}

pub async fn start(change: impl FnOnce(&mut SimConfig)) -> Sim {
    let mut config = SimConfig::default();
    change(&mut config);
    Sim::start(config).await.unwrap()
}

/// Sends a request; the connection is closed by the server after its answer.
pub async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

pub async fn call(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut stream = send(addr, method, path, headers, body).await;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.unwrap();
    answer(&raw).unwrap()
}

pub async fn post(addr: SocketAddr, path: &str, body: &Value) -> Answer {
    call(addr, "POST", path, &[], &body.to_string()).await
}

pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    call(addr, "GET", path, &[], "").await
}

/// Splits a whole answer; an error when its body is cut short.
pub fn answer(raw: &[u8]) -> io::Result<Answer> {
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let end = raw
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or_else(cut)?;
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect();
    let rest = &raw[end + 4..];
    let header = |name: &str| {
        headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    };
    let body = if header("transfer-encoding") == Some("chunked") {
        let (chunks, ended) = chunks(rest);
        if !ended {
            return Err(cut());
        }
        chunks.concat()
    } else {
        let length: usize = header("content-length").map_or(0, |v| v.parse().unwrap());
        rest.get(..length).ok_or_else(cut)?.to_vec()
    };
    Ok(Answer {
        status,
        headers,
        body,
    })
}

/// The chunks of a chunked body, and whether it ended as it should.
pub fn chunks(mut raw: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut chunks = Vec::new();
    while let Some(at) = raw.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            return (chunks, true);
        }
        let Some(chunk) = raw.get(at + 2..at + 2 + size) else {
            break;
        };
        chunks.push(chunk.to_vec());
        raw = raw.get(at + 2 + size + 2..).unwrap_or_default();
    }
    (chunks, false)
}

/// Everything that came before the connection ended or stayed silent for `silence`, and how it ended.
pub async fn read_until(stream: &mut TcpStream, silence: Duration) -> (Vec<u8>, End) {
    let mut raw = Vec::new();
    let mut buffer = [0u8; 16 * 1024];
    loop {
        match tokio::time::timeout(silence, stream.read(&mut buffer)).await {
            Err(_) => return (raw, End::Silent),
            Ok(Ok(0)) => return (raw, End::Closed),
            Ok(Ok(n)) => raw.extend_from_slice(&buffer[..n]),
            Ok(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                return (raw, End::Reset);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Silent,
    Closed,
    Reset,
}

/// Waits for a condition, however long the machine takes.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
