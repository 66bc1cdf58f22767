//! Greeting and READY: who speaks, in which version, as which socket.

use super::ZmtpError;
use super::frame::{Limits, Reader, Writer};
use super::stream::Stream;
use std::time::Duration;

/// Longest time for the whole handshake.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest READY command.
const HANDSHAKE_LIMITS: Limits = Limits {
    message: 4096,
    frames: 1,
};
const COMMAND: u8 = 4;

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// Publishes.
    Pub,
    /// Subscribes.
    Sub,
    /// Sends requests and takes any number of replies.
    Dealer,
    /// Answers requests.
    Router,
}

impl SocketType {
    fn as_str(self) -> &'static str {
        match self {
            SocketType::Pub => "PUB",
            SocketType::Sub => "SUB",
            SocketType::Dealer => "DEALER",
            SocketType::Router => "ROUTER",
        }
    }

    fn takes(self, peer: &[u8]) -> bool {
        match self {
            SocketType::Pub => matches!(peer, b"SUB" | b"XSUB"),
            SocketType::Sub => matches!(peer, b"PUB" | b"XPUB"),
            SocketType::Dealer => matches!(peer, b"ROUTER" | b"REP" | b"DEALER"),
            SocketType::Router => matches!(peer, b"DEALER" | b"REQ" | b"ROUTER"),
        }
    }
}

/// Greets the peer on a fresh connection, of which `ours` is one end.
pub async fn open(
    stream: Stream,
    ours: SocketType,
    limits: Limits,
) -> Result<(Reader, Writer), ZmtpError> {
    tokio::time::timeout(TIMEOUT, greet(stream, ours, limits))
        .await
        .map_err(|_| ZmtpError::Protocol("no handshake in time"))?
}

async fn greet(
    stream: Stream,
    ours: SocketType,
    limits: Limits,
) -> Result<(Reader, Writer), ZmtpError> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = Reader::new(read, HANDSHAKE_LIMITS, ours == SocketType::Pub);
    let mut writer = Writer::new(write);

    // Signature, version 3.0, mechanism, not a server, filler.
    let mut greeting = [0u8; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    writer.raw(&greeting).await?;

    let signature = reader.take(10).await?;
    if signature.first() != Some(&0xff) || signature.last().is_none_or(|last| last & 1 == 0) {
        return Err(ZmtpError::Protocol("not a ZMTP greeting"));
    }
    let version = reader.take(2).await?;
    if version.first().is_none_or(|major| *major < 3) {
        return Err(ZmtpError::Protocol("an older version of ZMTP"));
    }
    let rest = reader.take(52).await?;
    let mechanism: Vec<u8> = rest
        .iter()
        .copied()
        .take(20)
        .take_while(|b| *b != 0)
        .collect();
    if mechanism != b"NULL" {
        let name = String::from_utf8_lossy(&mechanism).into_owned();
        return Err(ZmtpError::Mechanism(name));
    }

    let mut metadata = Vec::new();
    property(&mut metadata, "Socket-Type", ours.as_str().as_bytes());
    if matches!(ours, SocketType::Dealer | SocketType::Router) {
        property(&mut metadata, "Identity", b"");
    }
    writer.command("READY", &metadata).await?;

    let (flags, body) = reader.frame().await?;
    if flags & COMMAND == 0 {
        return Err(ZmtpError::Protocol("a message before READY"));
    }
    if let Some(reason) = body.strip_prefix(b"\x05ERROR") {
        let reason = reason.get(1..).unwrap_or_default();
        return Err(ZmtpError::Refused(
            String::from_utf8_lossy(reason).into_owned(),
        ));
    }
    let metadata = body
        .strip_prefix(b"\x05READY")
        .ok_or(ZmtpError::Protocol("no READY command"))?;
    let theirs = socket_type(metadata).ok_or(ZmtpError::Protocol("READY without a socket type"))?;
    if !ours.takes(theirs) {
        let name = String::from_utf8_lossy(theirs).into_owned();
        return Err(ZmtpError::WrongSocket(name));
    }
    reader.set_limits(limits);
    Ok((reader, writer))
}

fn property(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend((value.len() as u32).to_be_bytes());
    out.extend(value);
}

fn socket_type(mut metadata: &[u8]) -> Option<&[u8]> {
    while let Some((&len, rest)) = metadata.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(len))?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value);
        }
        metadata = rest;
    }
    None
}
