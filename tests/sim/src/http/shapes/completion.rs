//! `/v1/completions`.

use super::logprobs::Lists;
use super::{Head, Shape, StreamOptions, data, finish, piece, send, text};
use crate::engine::FinishReason;
use crate::http::json::{DONE, Events, number, push, string};
use crate::live::SeqHandle;
use bytes::Bytes;
use std::ops::Range;

/// vLLM's text completion.
pub struct Completion {
    /// Of the answer.
    pub head: Head,
    /// Of the stream.
    pub options: StreamOptions,
    /// What goes before each choice when the client wants its prompt back; empty otherwise.
    pub echo: Vec<Echo>,
    /// Alternatives to each token, when log probabilities are wanted.
    pub logprobs: Option<u32>,
    /// Characters of each choice that a stream has sent.
    pub offsets: Vec<usize>,
}

/// A prompt that its client wants back.
pub struct Echo {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Where the text of each token ends.
    pub ends: Vec<u32>,
    /// The tokens are a model's.
    pub pieces: bool,
}

impl Completion {
    fn echo(&self, at: usize) -> Option<&Echo> {
        self.echo.get(at / self.head.n.max(1) as usize)
    }

    fn prompt(&self, at: usize) -> &str {
        self.echo(at).map_or("", |echo| echo.text.as_str())
    }

    /// Appends the logprobs of some tokens of a choice, or null. `offset` is where their text starts, in characters; returns
    /// where it ends.
    fn logprobs(
        &self,
        at: usize,
        seq: &SeqHandle,
        tokens: Range<u32>,
        mut offset: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let Some(top) = self.logprobs.filter(|_| !tokens.is_empty()) else {
            push("null", out);
            return offset;
        };
        let mut lists = Lists::new(top);
        if let Some(echo) = self.echo(at).filter(|_| tokens.start == 0) {
            lists.prompt(echo);
            offset += echo.text.chars().count();
        }
        for token in tokens {
            let own = seq.plan.pieces.then(|| seq.plan.piece(token));
            lists.add(&seq.plan.tokens, token as usize, offset, own);
            offset += seq.plan.piece(token).chars().count();
        }
        lists.write(out);
        offset
    }
}

impl Shape for Completion {
    fn token(
        &mut self,
        at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        reason: Option<FinishReason>,
        out: &mut Events,
    ) {
        let text = piece(seq, token);
        let opening = if token == Some(0) {
            self.prompt(at)
        } else {
            ""
        };
        let silent = self.logprobs.is_none() || token.is_none();
        if silent && text.is_empty() && opening.is_empty() && reason.is_none() {
            return;
        }
        let mut chunk = data();
        self.head.open("text_completion", &mut chunk);
        push("\"choices\":[{\"index\":", &mut chunk);
        number(at as u64, &mut chunk);
        push(",\"text\":", &mut chunk);
        match opening {
            "" => string(text, &mut chunk),
            opening => string(&format!("{opening}{text}"), &mut chunk),
        }
        push(",\"logprobs\":", &mut chunk);
        let tokens = token.map_or(0..0, |token| token..token + 1);
        let offset = self.offsets.get(at).copied().unwrap_or_default();
        let offset = self.logprobs(at, seq, tokens, offset, &mut chunk);
        if let Some(kept) = self.offsets.get_mut(at) {
            *kept = offset;
        }
        push(",", &mut chunk);
        finish(reason, seq.plan.stop_reason.as_ref(), &mut chunk);
        if reason.is_none() {
            push(",\"stop_reason\":null", &mut chunk);
        }
        push("}]", &mut chunk);
        if self.options.continuous_usage {
            push(",\"usage\":", &mut chunk);
            let mut usage = self.head.usage(&[]);
            usage.completion = seq.progress().emitted();
            usage.cached = seq.progress().cached();
            usage.openai(&mut chunk);
        }
        push("}", &mut chunk);
        send(chunk, out);
    }

    fn close(&mut self, seqs: &[SeqHandle], out: &mut Events) {
        if self.options.include_usage {
            let mut chunk = data();
            self.head.open("text_completion", &mut chunk);
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
        self.head.open("text_completion", &mut out);
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
            push(",\"text\":", &mut out);
            match self.prompt(at) {
                "" => string(text(seq), &mut out),
                opening => string(&format!("{opening}{}", text(seq)), &mut out),
            }
            push(",\"logprobs\":", &mut out);
            self.logprobs(at, seq, 0..seq.progress().emitted(), 0, &mut out);
            push(",", &mut out);
            finish(
                seq.progress().finish(),
                seq.plan.stop_reason.as_ref(),
                &mut out,
            );
            push(",\"prompt_logprobs\":null}", &mut out);
        }
        push(
            "],\"service_tier\":null,\"system_fingerprint\":null,\"usage\":",
            &mut out,
        );
        self.head.usage(seqs).openai(&mut out);
        push(",\"kv_transfer_params\":null}", &mut out);
        out
    }
}
