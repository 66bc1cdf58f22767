//! `/v1/responses`.

use super::{Head, Shape, named, piece, text};
use crate::engine::FinishReason;
use crate::http::json::Events;
use crate::live::SeqHandle;
use serde_json::{Value, json};

/// OpenAI's response object.
pub struct Responses {
    /// Of the answer.
    pub head: Head,
    /// Of the request.
    pub instructions: Option<String>,
    /// Number of the next event.
    pub sequence: u64,
}

impl Responses {
    fn event(&mut self, kind: &str, mut body: Value, out: &mut Events) {
        body["type"] = json!(kind);
        body["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        named(kind, body.to_string().as_bytes(), out);
    }

    fn message_id(&self) -> String {
        format!("msg_{}", self.head.id.trim_start_matches("resp_"))
    }

    fn item(&self, status: &str, content: Value) -> Value {
        json!({"id": self.message_id(), "type": "message", "role": "assistant", "status": status, "content": content})
    }

    fn response(&self, status: &str, output: Value, seqs: Option<&[SeqHandle]>) -> Value {
        let usage = seqs.map(|seqs| {
            let usage = self.head.usage(seqs);
            json!({
                "input_tokens": usage.prompt,
                "input_tokens_details": {"cached_tokens": usage.cached},
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": u64::from(usage.prompt) + u64::from(usage.completion),
            })
        });
        let cut = status == "incomplete";
        json!({
            "id": self.head.id, "object": "response", "created_at": self.head.created, "model": self.head.model,
            "status": status, "output": output, "usage": usage, "instructions": self.instructions, "error": null,
            "incomplete_details": cut.then(|| json!({"reason": "max_output_tokens"})), "metadata": {},
            "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "text": {"format": {"type": "text"}},
        })
    }

    fn part(text: &str) -> Value {
        json!({"type": "output_text", "text": text, "annotations": []})
    }
}

fn status(seqs: &[SeqHandle]) -> &'static str {
    match seqs.first().and_then(|seq| seq.progress().finish()) {
        Some(FinishReason::Length) => "incomplete",
        _ => "completed",
    }
}

impl Shape for Responses {
    fn open(&mut self, out: &mut Events) {
        let response = self.response("in_progress", json!([]), None);
        self.event("response.created", json!({"response": response}), out);
        self.event("response.in_progress", json!({"response": response}), out);
        let item = self.item("in_progress", json!([]));
        self.event(
            "response.output_item.added",
            json!({"output_index": 0, "item": item}),
            out,
        );
        let place = json!({"item_id": self.message_id(), "output_index": 0, "content_index": 0, "part": Self::part("")});
        self.event("response.content_part.added", place, out);
    }

    fn token(
        &mut self,
        _at: usize,
        seq: &SeqHandle,
        token: Option<u32>,
        _: Option<FinishReason>,
        out: &mut Events,
    ) {
        let text = piece(seq, token);
        if !text.is_empty() {
            let id = self.message_id();
            let delta = json!({"item_id": id, "output_index": 0, "content_index": 0, "delta": text, "logprobs": []});
            self.event("response.output_text.delta", delta, out);
        }
    }

    fn close(&mut self, seqs: &[SeqHandle], out: &mut Events) {
        let text = seqs.first().map(text).unwrap_or_default();
        let id = self.message_id();
        let done = json!({"item_id": id, "output_index": 0, "content_index": 0, "text": text, "logprobs": []});
        self.event("response.output_text.done", done, out);
        let part =
            json!({"item_id": id, "output_index": 0, "content_index": 0, "part": Self::part(text)});
        self.event("response.content_part.done", part, out);
        let status = status(seqs);
        let item = self.item(status, json!([Self::part(text)]));
        self.event(
            "response.output_item.done",
            json!({"output_index": 0, "item": item}),
            out,
        );
        let response = self.response(status, json!([item]), Some(seqs));
        let kind = if status == "incomplete" {
            "response.incomplete"
        } else {
            "response.completed"
        };
        self.event(kind, json!({"response": response}), out);
    }

    fn whole(&mut self, seqs: &[SeqHandle]) -> Vec<u8> {
        let text = seqs.first().map(text).unwrap_or_default();
        let status = status(seqs);
        let item = self.item(status, json!([Self::part(text)]));
        self.response(status, json!([item]), Some(seqs))
            .to_string()
            .into_bytes()
    }
}
