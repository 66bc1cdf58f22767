//! `/v1/chat/completions`.

use super::{Head, Shape, StreamOptions, data, finish, piece, send, text};
use crate::engine::FinishReason;
use crate::http::json::{DONE, Events, number, push, string};
use crate::live::SeqHandle;
use bytes::Bytes;

/// vLLM's chat completion.
pub struct Chat {
    /// Of the answer.
    pub head: Head,
    /// Of the stream.
    pub options: StreamOptions,
    /// Whether the role chunks are out.
    pub opened: bool,
}

impl Chat {
    fn chunk(&self, at: usize, delta: &[u8], reason: &[u8], seqs: &[&SeqHandle], out: &mut Events) {
        let mut chunk = data();
        self.head.open("chat.completion.chunk", &mut chunk);
        push("\"choices\":[{\"index\":", &mut chunk);
        number(at as u64, &mut chunk);
        push(",\"delta\":", &mut chunk);
        chunk.extend_from_slice(delta);
        push(",\"logprobs\":null,", &mut chunk);
        chunk.extend_from_slice(reason);
        push("}]", &mut chunk);
        if self.options.continuous_usage {
            push(",\"usage\":", &mut chunk);
            let mut usage = self.head.usage(&[]);
            for seq in seqs {
                usage.cached = seq.progress().cached();
                usage.completion += seq.progress().emitted();
            }
            usage.openai(&mut chunk);
        }
        push("}", &mut chunk);
        send(chunk, out);
    }
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
            for at in 0..self.head.n {
                let delta = br#"{"role":"assistant","content":""}"#;
                self.chunk(at as usize, delta, br#""finish_reason":null"#, &[], out);
            }
        }
        let text = piece(seq, token);
        if text.is_empty() && reason.is_none() {
            return;
        }
        let mut delta = Vec::with_capacity(text.len() + 16);
        push("{\"content\":", &mut delta);
        string(text, &mut delta);
        push("}", &mut delta);
        let mut why = Vec::with_capacity(48);
        finish(reason, seq.plan.stop_reason.as_ref(), &mut why);
        self.chunk(at, &delta, &why, &[seq], out);
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
            push(
                ",\"message\":{\"role\":\"assistant\",\"content\":",
                &mut out,
            );
            string(text(seq), &mut out);
            push(
                ",\"refusal\":null,\"tool_calls\":[],\"reasoning_content\":null},\"logprobs\":null,",
                &mut out,
            );
            finish(
                seq.progress().finish(),
                seq.plan.stop_reason.as_ref(),
                &mut out,
            );
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
