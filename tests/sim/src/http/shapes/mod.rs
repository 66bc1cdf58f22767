//! How each API writes its answers, streamed and whole.

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod logprobs;
pub mod messages;
pub mod responses;
pub mod tokens;

use super::json::{Events, Usage, number, push, string};
use crate::engine::FinishReason;
use crate::live::SeqHandle;
use crate::text::StopReason;

/// Writes the answer of one request. Sequences are numbered as choices are.
pub trait Shape: Send {
    /// Events before anything is generated.
    fn open(&mut self, _out: &mut Events) {}

    /// Sequence `at` has one more token, or has ended, or both.
    fn token(
        &mut self,
        at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        finish: Option<FinishReason>,
        out: &mut Events,
    );

    /// All sequences have ended.
    fn close(&mut self, seqs: &[SeqHandle], out: &mut Events);

    /// The whole answer at once.
    fn whole(&mut self, seqs: &[SeqHandle]) -> Vec<u8>;
}

/// What every answer says of its request.
pub struct Head {
    /// Id of the answer.
    pub id: String,
    /// Name of the model as the answer gives it.
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u32,
    /// Choices per prompt.
    pub n: u32,
}

impl Head {
    /// Usage of all sequences. Choices of one prompt share it: it counts once, and so does what was cached of it.
    pub fn usage(&self, seqs: &[SeqHandle]) -> Usage {
        let firsts = seqs.iter().step_by(self.n.max(1) as usize);
        Usage {
            prompt: self.prompt_tokens,
            completion: seqs.iter().map(|seq| seq.progress().emitted()).sum(),
            cached: firsts.map(|seq| seq.progress().cached()).sum(),
        }
    }

    /// Appends `{"id":...,"object":...,"created":...,"model":...,`.
    fn open(&self, object: &str, out: &mut Vec<u8>) {
        push("{\"id\":", out);
        string(&self.id, out);
        push(",\"object\":\"", out);
        push(object, out);
        push("\",\"created\":", out);
        number(self.created, out);
        push(",\"model\":", out);
        string(&self.model, out);
        push(",", out);
    }
}

/// Appends `"finish_reason":...`, and with a reason also `"stop_reason":...`.
fn finish(reason: Option<FinishReason>, stop: Option<&StopReason>, out: &mut Vec<u8>) {
    match reason {
        None => push("\"finish_reason\":null", out),
        Some(reason) => finish_as(reason.as_str(), stop, out),
    }
}

/// Appends `"finish_reason":...,"stop_reason":...`.
fn finish_as(reason: &str, stop: Option<&StopReason>, out: &mut Vec<u8>) {
    push("\"finish_reason\":", out);
    string(reason, out);
    push(",\"stop_reason\":", out);
    match stop {
        Some(StopReason::Text(text)) => string(text, out),
        Some(StopReason::Token(token)) => number(u64::from(*token), out),
        None => push("null", out),
    }
}

/// The text that a token adds.
fn piece(seq: &SeqHandle, token: Option<u32>) -> &str {
    token.map_or("", |token| seq.plan.piece(token))
}

/// The whole text of a sequence that has ended.
fn text(seq: &SeqHandle) -> &str {
    seq.plan.prefix(seq.progress().emitted())
}

/// A buffer that starts with `data: `.
fn data() -> Vec<u8> {
    let mut out = Vec::with_capacity(320);
    push("data: ", &mut out);
    out
}

/// Queues a buffer as one event.
fn send(mut event: Vec<u8>, out: &mut Events) {
    event.extend_from_slice(b"\n\n");
    out.push_back(event.into());
}

/// Queues a named event.
fn named(name: &str, body: &[u8], out: &mut Events) {
    let mut event = Vec::with_capacity(body.len() + name.len() + 20);
    push("event: ", &mut event);
    push(name, &mut event);
    push("\ndata: ", &mut event);
    event.extend_from_slice(body);
    send(event, out);
}

/// What a client asked of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// Usage in every chunk.
    pub continuous_usage: bool,
}
