//! The engines' own generate APIs: vLLM's `/inference/v1/generate` (tokens) and SGLang's `/generate`.

use super::{Head, Shape, data, send};
use crate::engine::FinishReason;
use crate::http::json::{DONE, Events};
use crate::live::SeqHandle;
use bytes::Bytes;
use serde_json::{Value, json};

/// vLLM: tokens in, tokens out.
pub struct TokenGenerate {
    /// Of the answer.
    pub head: Head,
}

impl Shape for TokenGenerate {
    fn token(
        &mut self,
        at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        reason: Option<FinishReason>,
        out: &mut Events,
    ) {
        let ids: Vec<u32> = token
            .and_then(|token| seq.plan.tokens.get(token as usize))
            .copied()
            .into_iter()
            .collect();
        let choice = json!({
            "index": at, "logprobs": null, "finish_reason": reason.map(FinishReason::as_str), "token_ids": ids,
        });
        let mut event = data();
        event.extend_from_slice(
            json!({"request_id": self.head.id, "choices": [choice]})
                .to_string()
                .as_bytes(),
        );
        send(event, out);
    }

    fn close(&mut self, _seqs: &[SeqHandle], out: &mut Events) {
        out.push_back(Bytes::from_static(DONE));
    }

    fn whole(&mut self, seqs: &[SeqHandle]) -> Vec<u8> {
        let choices: Vec<Value> = seqs
            .iter()
            .enumerate()
            .map(|(at, seq)| {
                let reason = seq.progress().finish().map(FinishReason::as_str);
                let ids: Vec<u32> = seq
                    .plan
                    .tokens
                    .iter()
                    .take(seq.progress().emitted() as usize)
                    .copied()
                    .collect();
                json!({"index": at, "logprobs": null, "finish_reason": reason, "token_ids": ids})
            })
            .collect();
        json!({"request_id": self.head.id, "choices": choices, "prompt_logprobs": null, "kv_transfer_params": null})
            .to_string()
            .into_bytes()
    }
}

/// SGLang: each event repeats all text so far.
pub struct Sglang {
    /// Of the answer.
    pub head: Head,
    /// When the request came.
    pub arrived: tokio::time::Instant,
    /// Whether several prompts came in one request: the answer is then a list.
    pub batch: bool,
}

impl Sglang {
    fn answer(
        &self,
        at: usize,
        seq: &SeqHandle,
        tokens: u32,
        reason: Option<FinishReason>,
    ) -> Value {
        let finish = match reason {
            None => Value::Null,
            Some(FinishReason::Length) => json!({"type": "length", "length": tokens}),
            Some(reason) => json!({"type": reason.as_str(), "matched": null}),
        };
        let id = if self.batch {
            format!("{}-{at}", self.head.id)
        } else {
            self.head.id.clone()
        };
        let ids: Vec<u32> = seq
            .plan
            .tokens
            .iter()
            .take(tokens as usize)
            .copied()
            .collect();
        let mut meta = json!({
            "id": id, "finish_reason": finish, "prompt_tokens": self.head.prompt_tokens, "completion_tokens": tokens,
            "cached_tokens": seq.progress().cached(), "weight_version": "default",
        });
        if reason.is_some() {
            meta["e2e_latency"] = json!(self.arrived.elapsed().as_secs_f64());
        }
        let mut answer =
            json!({"text": seq.plan.prefix(tokens), "output_ids": ids, "meta_info": meta});
        if self.batch {
            answer["index"] = json!(at);
        }
        answer
    }
}

impl Shape for Sglang {
    fn token(
        &mut self,
        at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        reason: Option<FinishReason>,
        out: &mut Events,
    ) {
        let tokens = token.map_or(seq.progress().emitted(), |token| token + 1);
        let mut event = data();
        event.extend_from_slice(self.answer(at, seq, tokens, reason).to_string().as_bytes());
        send(event, out);
    }

    fn close(&mut self, _seqs: &[SeqHandle], out: &mut Events) {
        out.push_back(Bytes::from_static(DONE));
    }

    fn whole(&mut self, seqs: &[SeqHandle]) -> Vec<u8> {
        let mut answers = seqs.iter().enumerate().map(|(at, seq)| {
            self.answer(at, seq, seq.progress().emitted(), seq.progress().finish())
        });
        if self.batch {
            return Value::Array(answers.collect()).to_string().into_bytes();
        }
        answers.next().unwrap_or_default().to_string().into_bytes()
    }
}
