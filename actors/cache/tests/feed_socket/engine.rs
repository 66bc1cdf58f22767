//! An engine as far as its events go: vLLM's two sockets and arrays of events, with hashes of the real algorithm.

use super::{BLOCK, SEED};
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_cache::hash::{Algorithm, ExtraForm, Hasher};
use quorate_cache::link::Address;
use quorate_cache::link::zmtp::{self, Limits, Listener, Received, SocketType, Stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

fn hasher(seed: &str) -> Hasher {
    Hasher::vllm(Algorithm::Sha256Cbor, ExtraForm::Tagged, Some(seed)).unwrap()
}

fn word(out: &mut Vec<u8>, value: u64) {
    out.push(0xcf);
    out.extend(value.to_be_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.push(0xa0 | value.len() as u8);
    out.extend(value.bytes());
}

/// An engine with vLLM's two sockets and arrays of events.
pub struct Engine {
    hasher: Mutex<Hasher>,
    topic: &'static str,
    buffer: Mutex<Vec<(u64, Bytes)>>,
    live: broadcast::Sender<(u64, Bytes)>,
}

impl Engine {
    pub fn new(topic: &'static str) -> Arc<Self> {
        Arc::new(Self {
            hasher: Mutex::new(hasher(SEED)),
            topic,
            buffer: Mutex::default(),
            live: broadcast::channel(64).0,
        })
    }

    fn hashes(&self, tokens: &[u32]) -> Vec<u64> {
        let mut hashes = Vec::new();
        self.hasher
            .lock()
            .prompt(tokens, BLOCK as usize, &Default::default(), &mut hashes)
            .unwrap();
        hashes
    }

    pub fn publish(&self, payload: Bytes) {
        let mut buffer = self.buffer.lock();
        let message = (buffer.len() as u64, payload);
        buffer.push(message.clone());
        // Nobody connected is no error: what was said is in the buffer.
        let _ = self.live.send(message);
    }

    fn event(&self, event: &[u8]) {
        let mut out = vec![0x93];
        word(&mut out, 1 + self.buffer.lock().len() as u64);
        out.push(0x91);
        out.extend(event);
        out.push(0xc0);
        self.publish(out.into());
    }

    pub fn store(&self, tokens: &[u32]) {
        let hashes = self.hashes(tokens);
        let mut event = vec![0x96];
        text(&mut event, "BlockStored");
        event.push(0x90 | hashes.len() as u8);
        hashes.iter().for_each(|hash| word(&mut event, *hash));
        event.push(0xc0);
        event.push(0x90 | tokens.len() as u8);
        tokens
            .iter()
            .for_each(|token| word(&mut event, u64::from(*token)));
        event.push(BLOCK as u8);
        event.push(0xc0);
        self.event(&event);
    }

    pub fn remove_last(&self, tokens: &[u32]) {
        let mut event = vec![0x92];
        text(&mut event, "BlockRemoved");
        event.push(0x91);
        word(&mut event, *self.hashes(tokens).last().unwrap());
        self.event(&event);
    }

    /// Another process: its numbers begin anew.
    pub fn restart(&self, seed: &str) {
        *self.hasher.lock() = hasher(seed);
        self.buffer.lock().clear();
    }

    /// As an engine that is bound.
    pub async fn serve_events(self: Arc<Self>, listener: Listener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&self).speak(stream));
        }
    }

    /// As an engine that dials. Ends when the connection does.
    pub async fn dial(self: Arc<Self>, at: Address) {
        loop {
            if let Ok(stream) = zmtp::dial(&at).await {
                return self.speak(stream).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is published until somebody listens is lost.
    pub fn listeners(&self) -> usize {
        self.live.receiver_count()
    }

    async fn speak(self: Arc<Self>, stream: Stream) {
        let Ok((mut reader, mut writer)) =
            zmtp::open(stream, SocketType::Pub, Limits::default()).await
        else {
            return;
        };
        // A publisher sends nothing to who has not subscribed.
        if !matches!(reader.receive().await, Ok(Received::Subscribe(_))) {
            return;
        }
        let mut live = self.live.subscribe();
        loop {
            let sent = tokio::select! {
                message = live.recv() => match message {
                    Ok((seq, payload)) => writer.send(&[self.topic.as_bytes(), &seq.to_be_bytes(), &payload]).await,
                    Err(_) => return,
                },
                received = reader.receive() => match received {
                    Ok(Received::Ping(context)) => writer.pong(&context).await,
                    Ok(_) => Ok(()),
                    Err(_) => return,
                },
            };
            if sent.is_err() {
                return;
            }
        }
    }

    pub async fn serve_replays(self: Arc<Self>, listener: Listener) {
        while let Ok((stream, _)) = listener.accept().await {
            let engine = Arc::clone(&self);
            tokio::spawn(async move {
                let Ok((mut reader, mut writer)) =
                    zmtp::open(stream, SocketType::Router, Limits::default()).await
                else {
                    return;
                };
                while let Ok(received) = reader.receive().await {
                    let Received::Message(parts) = received else {
                        continue;
                    };
                    let from = u64::from_be_bytes(parts[1].as_ref().try_into().unwrap());
                    let replies: Vec<_> = engine.buffer.lock().clone();
                    for (seq, payload) in replies.iter().filter(|(seq, _)| *seq >= from) {
                        let reply = writer.send(&[b"", b"", &seq.to_be_bytes(), payload]).await;
                        if reply.is_err() {
                            return;
                        }
                    }
                    if writer
                        .send(&[b"", b"", &u64::MAX.to_be_bytes(), b""])
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    }
}
