//! `/v1/messages`, Anthropic's API.

use super::{Head, Shape, named, piece, text};
use crate::engine::FinishReason;
use crate::http::json::Events;
use crate::live::SeqHandle;
use crate::text::StopReason;
use serde_json::{Value, json};

/// Anthropic's message.
pub struct Messages {
    /// Of the answer.
    pub head: Head,
    /// Whether `message_start` is out.
    pub opened: bool,
}

fn stop_fields(seq: Option<&SeqHandle>) -> (Value, Value) {
    let Some(seq) = seq else {
        return (Value::Null, Value::Null);
    };
    match (&seq.plan.stop_reason, seq.progress().finish()) {
        (Some(StopReason::Text(text)), _) => (json!("stop_sequence"), json!(text)),
        (_, Some(FinishReason::Length)) => (json!("max_tokens"), Value::Null),
        _ => (json!("end_turn"), Value::Null),
    }
}

fn event(body: &Value, out: &mut Events) {
    let name = body.get("type").and_then(Value::as_str).unwrap_or_default();
    named(name, body.to_string().as_bytes(), out);
}

impl Messages {
    fn usage(&self, seqs: &[SeqHandle]) -> Value {
        let usage = self.head.usage(seqs);
        json!({
            "input_tokens": usage.prompt.saturating_sub(usage.cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": usage.completion,
        })
    }

    fn message(&self, content: Value, seq: Option<&SeqHandle>, usage: Value) -> Value {
        let (reason, sequence) = stop_fields(seq);
        json!({
            "id": self.head.id, "type": "message", "role": "assistant", "content": content, "model": self.head.model,
            "stop_reason": reason, "stop_sequence": sequence, "usage": usage,
        })
    }
}

impl Shape for Messages {
    fn token(
        &mut self,
        _at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        _: Option<FinishReason>,
        out: &mut Events,
    ) {
        if !self.opened {
            self.opened = true;
            let cached = seq.progress().cached();
            let usage = json!({
                "input_tokens": self.head.prompt_tokens.saturating_sub(cached), "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached, "output_tokens": 0,
            });
            event(
                &json!({"type": "message_start", "message": self.message(json!([]), None, usage)}),
                out,
            );
            event(
                &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
                out,
            );
        }
        let text = piece(seq, token);
        if !text.is_empty() {
            let delta = json!({"type": "text_delta", "text": text});
            event(
                &json!({"type": "content_block_delta", "index": 0, "delta": delta}),
                out,
            );
        }
    }

    fn close(&mut self, seqs: &[SeqHandle], out: &mut Events) {
        let (reason, sequence) = stop_fields(seqs.first());
        event(&json!({"type": "content_block_stop", "index": 0}), out);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        event(
            &json!({"type": "message_delta", "delta": delta, "usage": self.usage(seqs)}),
            out,
        );
        event(&json!({"type": "message_stop"}), out);
    }

    fn whole(&mut self, seqs: &[SeqHandle]) -> Vec<u8> {
        let text = seqs.first().map(text).unwrap_or_default();
        let content = json!([{"type": "text", "text": text}]);
        self.message(content, seqs.first(), self.usage(seqs))
            .to_string()
            .into_bytes()
    }
}
