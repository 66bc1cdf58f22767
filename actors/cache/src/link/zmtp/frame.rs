//! Frames, messages and commands on an open connection.

use super::ZmtpError;
use super::stream::Stream;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;
/// Memory for incoming bytes that is kept between messages.
const READ_CHUNK: usize = 64 << 10;

/// What a peer may send.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes in a message, all frames together.
    pub message: usize,
    /// Frames in a message.
    pub frames: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message: crate::events::MAX_PAYLOAD + 4096,
            frames: 16,
        }
    }
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Vec<Bytes>),
    /// A subscriber wants topics with this prefix.
    Subscribe(Bytes),
    /// A subscriber does not want them any more.
    Cancel(Bytes),
    /// The peer wants an answer with the same bytes.
    Ping(Bytes),
    /// The answer to a ping.
    Pong,
    /// A command of no meaning here.
    Command,
}

/// The incoming half.
pub struct Reader {
    half: ReadHalf<Stream>,
    buffer: BytesMut,
    parts: Vec<Bytes>,
    size: usize,
    limits: Limits,
    /// Messages of one frame that begin with 1 or 0 are subscriptions.
    publisher: bool,
}

impl Reader {
    pub(super) fn new(half: ReadHalf<Stream>, limits: Limits, publisher: bool) -> Self {
        Reader {
            half,
            buffer: BytesMut::new(),
            parts: Vec::new(),
            size: 0,
            limits,
            publisher,
        }
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Exactly `len` bytes, for the greeting.
    pub(super) async fn take(&mut self, len: usize) -> Result<Bytes, ZmtpError> {
        while self.buffer.len() < len {
            self.fill().await?;
        }
        Ok(self.buffer.split_to(len).freeze())
    }

    async fn fill(&mut self) -> Result<(), ZmtpError> {
        self.buffer.reserve(READ_CHUNK);
        match self.half.read_buf(&mut self.buffer).await? {
            0 => Err(ZmtpError::Closed),
            _ => Ok(()),
        }
    }

    /// The next frame and its flags. Keeps its place when dropped half-way.
    pub(super) async fn frame(&mut self) -> Result<(u8, Bytes), ZmtpError> {
        loop {
            if let Some((head, len)) = self.head()? {
                if self.buffer.len() >= head + len {
                    let flags = self.buffer.first().copied().unwrap_or_default();
                    self.buffer.advance(head);
                    return Ok((flags, self.buffer.split_to(len).freeze()));
                }
                // One allocation for a long frame, whose length is within the limit.
                self.buffer.reserve(head + len - self.buffer.len());
            }
            self.fill().await?;
        }
    }

    /// Length of the head and of the body of the frame at hand, once both are known.
    fn head(&self) -> Result<Option<(usize, usize)>, ZmtpError> {
        let Some(&flags) = self.buffer.first() else {
            return Ok(None);
        };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(ZmtpError::Protocol("a frame with reserved flags"));
        }
        let (head, len) = if flags & LONG == 0 {
            match self.buffer.get(1) {
                Some(len) => (2, u64::from(*len)),
                None => return Ok(None),
            }
        } else {
            match self.buffer.get(1..).and_then(<[u8]>::first_chunk::<8>) {
                Some(len) => (9, u64::from_be_bytes(*len)),
                None => return Ok(None),
            }
        };
        let room = self.limits.message - self.size.min(self.limits.message);
        match usize::try_from(len) {
            Ok(len) if len <= room => Ok(Some((head, len))),
            _ => Err(ZmtpError::TooLong(self.limits.message)),
        }
    }

    /// The next message or command. Nothing is lost when the future is dropped.
    pub async fn receive(&mut self) -> Result<Received, ZmtpError> {
        loop {
            let (flags, body) = self.frame().await?;
            if flags & COMMAND != 0 {
                return Ok(command(body));
            }
            self.size += body.len();
            self.parts.push(body);
            if flags & MORE == 0 {
                self.size = 0;
                let parts = std::mem::take(&mut self.parts);
                return Ok(match parts.as_slice() {
                    [one] if self.publisher => match one.first() {
                        Some(1) => Received::Subscribe(one.slice(1..)),
                        Some(0) => Received::Cancel(one.slice(1..)),
                        _ => Received::Command,
                    },
                    _ => Received::Message(parts),
                });
            }
            if self.parts.len() >= self.limits.frames {
                return Err(ZmtpError::Protocol("a message of too many frames"));
            }
        }
    }
}

fn command(body: Bytes) -> Received {
    let after = |name: &[u8]| {
        body.strip_prefix(&[name.len() as u8][..])
            .and_then(|rest| rest.strip_prefix(name))
            .map(|rest| body.slice_ref(rest))
    };
    if let Some(rest) = after(b"PING") {
        // Two bytes of time to live, then the context.
        return Received::Ping(rest.slice(rest.len().min(2)..));
    }
    if after(b"PONG").is_some() {
        return Received::Pong;
    }
    match (after(b"SUBSCRIBE"), after(b"CANCEL")) {
        (Some(topic), _) => Received::Subscribe(topic),
        (_, Some(topic)) => Received::Cancel(topic),
        _ => Received::Command,
    }
}

/// The outgoing half.
pub struct Writer {
    half: WriteHalf<Stream>,
    buffer: BytesMut,
}

impl Writer {
    pub(super) fn new(half: WriteHalf<Stream>) -> Self {
        Writer {
            half,
            buffer: BytesMut::new(),
        }
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) -> Result<(), ZmtpError> {
        self.half.write_all(bytes).await?;
        Ok(())
    }

    pub(super) async fn command(&mut self, name: &str, rest: &[u8]) -> Result<(), ZmtpError> {
        let mut body = Vec::with_capacity(1 + name.len() + rest.len());
        body.push(name.len() as u8);
        body.extend(name.as_bytes());
        body.extend(rest);
        self.put(COMMAND, &body);
        self.flush().await
    }

    fn put(&mut self, flags: u8, body: &[u8]) {
        match u8::try_from(body.len()) {
            Ok(len) => self.buffer.extend_from_slice(&[flags, len]),
            Err(_) => {
                self.buffer.extend_from_slice(&[flags | LONG]);
                self.buffer
                    .extend_from_slice(&(body.len() as u64).to_be_bytes());
            }
        }
        self.buffer.extend_from_slice(body);
    }

    async fn flush(&mut self) -> Result<(), ZmtpError> {
        let sent = self.half.write_all(&self.buffer).await;
        self.buffer.clear();
        Ok(sent?)
    }

    /// Sends one message. When the future is dropped half-way, the connection is of no use any more.
    pub async fn send(&mut self, parts: &[&[u8]]) -> Result<(), ZmtpError> {
        for (at, part) in parts.iter().enumerate() {
            let flags = if at + 1 < parts.len() { MORE } else { 0 };
            self.put(flags, part);
        }
        self.flush().await
    }

    /// Subscribes to topics with this prefix, as a message of ZMTP 3.0.
    pub async fn subscribe(&mut self, prefix: &[u8]) -> Result<(), ZmtpError> {
        let mut body = vec![1];
        body.extend(prefix);
        self.send(&[&body]).await
    }

    /// Asks for a sign of life.
    pub async fn ping(&mut self) -> Result<(), ZmtpError> {
        self.command("PING", &[0, 0]).await
    }

    /// Answers a ping.
    pub async fn pong(&mut self, context: &[u8]) -> Result<(), ZmtpError> {
        self.command("PONG", context.get(..16).unwrap_or(context))
            .await
    }
}
