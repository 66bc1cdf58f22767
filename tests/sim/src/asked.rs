//! What the latest requests asked for besides text, and what became of it: `GET /sim/requests`.

use crate::fleet::Arrival;
use crate::live::Progress;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests that are remembered.
const KEPT: usize = 256;

/// One prompt of one request.
pub struct Asked {
    /// Id of the request.
    pub id: String,
    /// Model or adapter that it named.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// What was cached when it arrived.
    pub arrival: Arrival,
    /// Its hints, as they were understood.
    pub hints: Value,
    /// How far its first choice is.
    pub progress: Arc<Progress>,
}

/// The latest requests.
#[derive(Default)]
pub struct AskedLog(Mutex<VecDeque<Asked>>);

impl AskedLog {
    /// One more.
    pub fn push(&self, asked: Asked) {
        let mut log = self.0.lock();
        if log.len() >= KEPT {
            log.pop_front();
        }
        log.push_back(asked);
    }

    /// The latest first.
    pub fn to_json(&self) -> Value {
        let show = |asked: &Asked| {
            let progress = &asked.progress;
            json!({
                "id": asked.id,
                "model": asked.model,
                "prompt_tokens": asked.prompt_tokens,
                "on_arrival": {
                    "gpu_tokens": asked.arrival.gpu,
                    "lower_tokens": asked.arrival.below,
                    "best_tokens": asked.arrival.best,
                },
                "cached_tokens": progress.cached(),
                "loaded_tokens": progress.loaded(),
                "generated_tokens": progress.emitted(),
                "finish_reason": progress.finish().map(|reason| reason.as_str()),
                "hints": asked.hints,
            })
        };
        self.0.lock().iter().rev().map(show).collect()
    }
}
