//! The self-check at an engine's start: a small prompt of its own, and whether its blocks are announced.
//!
//! The prompt is token ids, so that no tokenizer is needed to know what the engine's hashes are to be. It is sent only where nothing else
//! came: an engine whose first blocks were announced and compared has shown what the probe would show. Whether the hashes are right
//! is the mirror's to say ([`Mirror::finding`](super::Mirror::finding)).

use crate::events::{Batch, Event};
use bytes::Bytes;
use serde_json::json;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Looks (about a second each) at a sound stream without any block before the probe is sent.
const PATIENCE: u8 = 3;
/// So long after the engine has answered its blocks should be announced.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(10);
/// Tokens of a block that every engine has at least one of, where nothing is known.
const USUAL_BLOCK: u32 = 128;
/// Blocks of the prompt; then a token more, since an engine always computes the last one.
const BLOCKS: u32 = 2;
const MOST_TOKENS: u32 = 4096;
/// Token ids that every model has and that are no special ones of most.
const IDS: std::ops::Range<u64> = 1_000..9_000;
/// Longest wait for the engine's answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Where it is sent.
pub(super) const PATH: &str = "/v1/completions";

/// How far the self-check is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Probe {
    /// Looks that found a stream and no blocks.
    #[default]
    Idle,
    Waiting(u8),
    /// The prompt is with the engine, or was answered then.
    Sent {
        tokens: Vec<u32>,
        answered: Option<Instant>,
    },
    /// Blocks were announced, or the pool wants no probe.
    Done,
    /// The engine did not take the prompt.
    Refused(String),
    /// It took the prompt, and announced nothing.
    Silent(Vec<u32>),
}

impl Probe {
    /// A look at the endpoint: whether its stream is `live`, and whether blocks of its engine are known. True if the prompt is to be sent now.
    pub fn look(&mut self, live: bool, heard: bool, now: Instant) -> bool {
        match self {
            _ if heard => *self = Self::Done,
            Self::Idle if live => *self = Self::Waiting(1),
            Self::Waiting(_) if !live => *self = Self::Idle,
            Self::Waiting(looks) if *looks >= PATIENCE => return true,
            Self::Waiting(looks) => *looks += 1,
            Self::Sent {
                tokens,
                answered: Some(at),
            } if now.saturating_duration_since(*at) >= ANNOUNCED_WITHIN => {
                *self = Self::Silent(std::mem::take(tokens));
            }
            _ => {}
        }
        false
    }

    /// The prompt for an engine with blocks of so many tokens, different from any other with another `salt`. Answers the request.
    pub fn send(&mut self, model: &str, block_tokens: Option<u32>, salt: u64) -> Bytes {
        let block = block_tokens.unwrap_or(USUAL_BLOCK).max(1);
        let count = block.saturating_mul(BLOCKS).min(MOST_TOKENS) + 1;
        let id = |at: u32| {
            let drawn = xxh3_64_with_seed(&at.to_le_bytes(), salt);
            (IDS.start + drawn % (IDS.end - IDS.start)) as u32
        };
        let tokens: Vec<u32> = (0..count).map(id).collect();
        let body = json!({"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0.0});
        *self = Self::Sent {
            tokens,
            answered: None,
        };
        body.to_string().into()
    }

    /// The engine answered the prompt.
    pub fn answered(&mut self, answer: Result<(), String>, now: Instant) {
        if let Self::Sent { answered, .. } = self {
            match answer {
                Ok(()) => *answered = Some(now),
                Err(why) => *self = Self::Refused(why),
            }
        }
    }

    /// Events of the engine. True if they announce the prompt.
    pub fn sees(&mut self, batch: &Batch) -> bool {
        let (Self::Sent { tokens, .. } | Self::Silent(tokens)) = self else {
            return false;
        };
        let found = batch.events().any(|event| match event {
            Event::Stored(stored) => {
                let begun = stored.parent.is_none() && !stored.tokens.is_empty();
                begun && tokens.starts_with(stored.tokens)
            }
            _ => false,
        });
        if found {
            *self = Self::Done;
        }
        found
    }

    /// How many tokens were sent in vain.
    pub fn unheard(&self) -> Option<usize> {
        match self {
            Self::Silent(tokens) => Some(tokens.len()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::decode;

    /// A vLLM 0.10 batch that stores one block.
    fn stored(tokens: &[u32]) -> Batch {
        let mut out = vec![0x93, 0x01, 0x91, 0x97, 0xab];
        out.extend(b"BlockStored");
        out.extend([0x91, 0x07, 0xc0, 0xdc]);
        out.extend((tokens.len() as u16).to_be_bytes());
        for token in tokens {
            out.push(0xce);
            out.extend(token.to_be_bytes());
        }
        out.extend([tokens.len() as u8, 0xc0, 0xa3]);
        out.extend(b"GPU");
        out.push(0xc0);
        let mut batch = Batch::new();
        decode(&out, &mut batch).unwrap();
        assert_eq!(batch.events().count(), 1);
        batch
    }

    fn sent() -> (Probe, Vec<u32>, Instant) {
        let (mut probe, now) = (Probe::default(), Instant::now());
        for _ in 0..PATIENCE {
            assert!(!probe.look(true, false, now));
        }
        assert!(probe.look(true, false, now));
        let body = probe.send("m", Some(16), 7);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let Probe::Sent { tokens, .. } = probe.clone() else {
            panic!("{probe:?}");
        };
        assert_eq!(body["prompt"], json!(tokens));
        assert_eq!(tokens.len(), 33);
        (probe, tokens, now)
    }

    #[test]
    fn what_is_announced_is_seen_and_what_is_not_is_said() {
        let (mut probe, tokens, now) = sent();
        assert!(!probe.sees(&stored(&[5, 6])));
        assert!(probe.clone().sees(&stored(&tokens[..16])));
        probe.answered(Ok(()), now);
        probe.look(true, false, now + ANNOUNCED_WITHIN / 2);
        assert_eq!(probe.unheard(), None);
        probe.look(true, false, now + ANNOUNCED_WITHIN);
        assert_eq!(probe.unheard(), Some(33));
        // Late is better than never.
        assert!(probe.sees(&stored(&tokens[..16])));
        assert_eq!(probe, Probe::Done);
    }

    #[test]
    fn not_sent_where_it_would_show_nothing() {
        let now = Instant::now();
        let mut heard = Probe::default();
        assert!(!heard.look(true, false, now) && !heard.look(true, true, now));
        assert_eq!(heard, Probe::Done);
        let mut down = Probe::default();
        for _ in 0..20 {
            assert!(!down.look(true, false, now) && !down.look(false, false, now));
        }
        let (mut refused, _, now) = sent();
        refused.answered(Err("status 401".into()), now);
        assert!(!refused.look(true, false, now + ANNOUNCED_WITHIN * 2));
        assert_eq!(refused, Probe::Refused("status 401".into()));
    }

    #[test]
    fn prompts_differ() {
        let prompt = |salt| Probe::default().send("m", Some(1 << 30), salt);
        assert_ne!(prompt(1), prompt(2));
        assert!(prompt(1).len() < 64 << 10);
    }
}
