//! `/v1/completions`.

use super::{Head, Shape, StreamOptions, data, finish, piece, send, text};
use crate::engine::FinishReason;
use crate::http::json::{DONE, Events, number, push, string};
use crate::live::SeqHandle;
use bytes::Bytes;

/// vLLM's text completion.
pub struct Completion {
    /// Of the answer.
    pub head: Head,
    /// Of the stream.
    pub options: StreamOptions,
    /// What goes before each choice when the client wants its prompt back; empty otherwise.
    pub echo: Vec<String>,
}

impl Completion {
    fn prompt(&self, at: usize) -> &str {
        self.echo
            .get(at / self.head.n.max(1) as usize)
            .map_or("", String::as_str)
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
        if text.is_empty() && opening.is_empty() && reason.is_none() {
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
        push(",\"logprobs\":null,", &mut chunk);
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
            push(",\"logprobs\":null,", &mut out);
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
