//! `/v1/chat/completions`.

use super::{Head, Shape, StreamOptions, data, finish, finish_as, logprobs, piece, send, text};
use crate::engine::FinishReason;
use crate::http::json::{DONE, Events, number, push, string};
use crate::live::SeqHandle;
use bytes::Bytes;
use std::ops::Range;

/// vLLM's chat completion.
pub struct Chat {
    /// Of the answer.
    pub head: Head,
    /// Of the stream.
    pub options: StreamOptions,
    /// Alternatives to each token, when log probabilities are wanted.
    pub logprobs: Option<u32>,
    /// Whether the role chunks are out.
    pub opened: bool,
}

/// What one chunk of the stream tells of a choice.
struct Chunk<'a> {
    delta: &'a [u8],
    reason: &'a [u8],
    /// The sequence, and those of its tokens that the chunk spells.
    of: Option<(&'a SeqHandle, Range<u32>)>,
}

impl Chat {
    fn chunk(&self, at: usize, told: &Chunk<'_>, out: &mut Events) {
        let mut chunk = data();
        self.head.open("chat.completion.chunk", &mut chunk);
        push("\"choices\":[{\"index\":", &mut chunk);
        number(at as u64, &mut chunk);
        push(",\"delta\":", &mut chunk);
        chunk.extend_from_slice(told.delta);
        push(",\"logprobs\":", &mut chunk);
        match (self.logprobs, &told.of) {
            (Some(top), Some((seq, tokens))) if !tokens.is_empty() => {
                logprobs::chat(&seq.plan, tokens.clone(), top, &mut chunk);
            }
            _ => push("null", &mut chunk),
        }
        push(",", &mut chunk);
        chunk.extend_from_slice(told.reason);
        push("}]", &mut chunk);
        if self.options.continuous_usage {
            push(",\"usage\":", &mut chunk);
            let mut usage = self.head.usage(&[]);
            if let Some((seq, _)) = &told.of {
                usage.cached = seq.progress().cached();
                usage.completion += seq.progress().emitted();
            }
            usage.openai(&mut chunk);
        }
        push("}", &mut chunk);
        send(chunk, out);
    }

    /// Appends what a token adds to the message. Returns how many tokens it spells, itself included, or `None` when there is
    /// nothing to say yet: a call is announced once its name is complete.
    fn delta(&self, seq: &SeqHandle, token: Option<u32>, out: &mut Vec<u8>) -> Option<u32> {
        let of_call = token.and_then(|token| Some((token, seq.plan.call_of(token)?)));
        let Some((token, (number_of_call, call))) = of_call else {
            let text = piece(seq, token);
            push("{\"content\":", out);
            string(text, out);
            push("}", out);
            let said = !text.is_empty() || (token.is_some() && self.logprobs.is_some());
            return said.then_some(1);
        };
        let named = token + 1 == call.arguments;
        if token + 1 < call.arguments {
            return None;
        }
        push("{\"tool_calls\":[{", out);
        if named {
            push("\"id\":", out);
            string(&call.id, out);
            push(",\"type\":\"function\",", out);
        }
        push("\"index\":", out);
        number(number_of_call as u64, out);
        push(",\"function\":{", out);
        if named {
            push("\"name\":", out);
            string(&call.name, out);
            push(",", out);
        }
        push("\"arguments\":", out);
        string(if named { "" } else { piece(seq, Some(token)) }, out);
        push("}}]}", out);
        Some(if named { token + 1 - call.first } else { 1 })
    }

    /// Appends a whole message's `content` and `tool_calls`.
    fn message(seq: &SeqHandle, out: &mut Vec<u8>) {
        let emitted = seq.progress().emitted();
        let calls: Vec<_> = seq
            .plan
            .calls
            .iter()
            .filter_map(|call| Some((call, seq.plan.arguments(call, emitted)?)))
            .collect();
        push("\"content\":", out);
        match seq.plan.calls.is_empty() {
            true => string(text(seq), out),
            false => push("null", out),
        }
        push(",\"refusal\":null,\"tool_calls\":[", out);
        for (at, (call, arguments)) in calls.into_iter().enumerate() {
            push(if at > 0 { ",{\"id\":" } else { "{\"id\":" }, out);
            string(&call.id, out);
            push(",\"type\":\"function\",\"function\":{\"name\":", out);
            string(&call.name, out);
            push(",\"arguments\":", out);
            string(arguments, out);
            push("}}", out);
        }
        push("]", out);
    }
}

/// Appends `"finish_reason":...`; an output of calls that came to its end has its own.
fn why(seq: &SeqHandle, reason: Option<FinishReason>, out: &mut Vec<u8>) {
    if reason == Some(FinishReason::Stop) && !seq.plan.calls.is_empty() {
        return finish_as("tool_calls", None, out);
    }
    finish(reason, seq.plan.stop_reason.as_ref(), out);
}

impl Shape for Chat {
    fn token(
        &mut self,
        at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        reason: Option<FinishReason>,
        out: &mut Events,
    ) {
        if !self.opened {
            self.opened = true;
            let told = Chunk {
                delta: br#"{"role":"assistant","content":""}"#,
                reason: br#""finish_reason":null"#,
                of: None,
            };
            for at in 0..self.head.n {
                self.chunk(at as usize, &told, out);
            }
        }
        let mut delta = Vec::with_capacity(48);
        let spells = self.delta(seq, token, &mut delta);
        if spells.is_none() && reason.is_none() {
            return;
        }
        if delta.is_empty() {
            push("{\"content\":\"\"}", &mut delta);
        }
        let tokens = match (token, spells) {
            (Some(token), Some(spells)) => token + 1 - spells..token + 1,
            _ => 0..0,
        };
        let mut reason_field = Vec::with_capacity(48);
        why(seq, reason, &mut reason_field);
        let told = Chunk {
            delta: &delta,
            reason: &reason_field,
            of: Some((seq, tokens)),
        };
        self.chunk(at, &told, out);
    }

    fn close(&mut self, seqs: &[SeqHandle], out: &mut Events) {
        if self.options.include_usage {
            let mut chunk = data();
            self.head.open("chat.completion.chunk", &mut chunk);
            push("\"choices\":[],\"usage\":", &mut chunk);
            self.head.usage(seqs).openai(&mut chunk);
            push("}", &mut chunk);
            send(chunk, out);
        }
        out.push_back(Bytes::from_static(DONE));
    }

    fn whole(&mut self, seqs: &[SeqHandle]) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(512 + seqs.iter().map(|seq| seq.plan.text.len()).sum::<usize>());
        self.head.open("chat.completion", &mut out);
        push("\"choices\":[", &mut out);
        for (at, seq) in seqs.iter().enumerate() {
            push(
                if at > 0 {
                    ",{\"index\":"
                } else {
                    "{\"index\":"
                },
                &mut out,
            );
            number(at as u64, &mut out);
            push(",\"message\":{\"role\":\"assistant\",", &mut out);
            Self::message(seq, &mut out);
            push(",\"reasoning_content\":null},\"logprobs\":", &mut out);
            match self.logprobs {
                Some(top) => {
                    logprobs::chat(&seq.plan, 0..seq.progress().emitted(), top, &mut out);
                }
                None => push("null", &mut out),
            }
            push(",", &mut out);
            why(seq, seq.progress().finish(), &mut out);
            push("}", &mut out);
        }
        push(
            "],\"service_tier\":null,\"system_fingerprint\":null,\"usage\":",
            &mut out,
        );
        self.head.usage(seqs).openai(&mut out);
        push(
            ",\"prompt_logprobs\":null,\"kv_transfer_params\":null}",
            &mut out,
        );
        out
    }
}
