//! `/v1/embeddings`: a unit vector that depends on the prompt alone.

use super::{Head, Shape};
use crate::engine::FinishReason;
use crate::http::json::Events;
use crate::live::SeqHandle;
use serde_json::{Value, json};

/// OpenAI's list of embeddings.
pub struct Embeddings {
    /// Of the answer.
    pub head: Head,
    /// A value for each input that depends on it alone.
    pub seeds: Vec<u64>,
    /// Length of each vector.
    pub dimensions: usize,
    /// Whether vectors go out as base64 of little-endian floats.
    pub base64: bool,
}

fn vector(seed: u64, dimensions: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let raw: Vec<f32> = (0..dimensions).map(|_| rng.f32() * 2.0 - 1.0).collect();
    let norm = raw
        .iter()
        .map(|x| x * x)
        .sum::<f32>()
        .sqrt()
        .max(f32::MIN_POSITIVE);
    raw.into_iter().map(|x| x / norm).collect()
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0u32, |bits, (at, byte)| {
            bits | u32::from(*byte) << (16 - 8 * at)
        });
        for at in 0..4 {
            let six = (bits >> (18 - 6 * at) & 63) as usize;
            out.push(if at <= group.len() {
                char::from(ALPHABET[six])
            } else {
                '='
            });
        }
    }
    out
}

impl Shape for Embeddings {
    fn token(
        &mut self,
        _: usize,
        _: &SeqHandle,
        _: Option<u32>,
        _: Option<FinishReason>,
        _: &mut Events,
    ) {
    }

    fn close(&mut self, _seqs: &[SeqHandle], _out: &mut Events) {}

    fn whole(&mut self, _seqs: &[SeqHandle]) -> Vec<u8> {
        let data: Vec<Value> = self
            .seeds
            .iter()
            .enumerate()
            .map(|(at, seed)| {
                let vector = vector(*seed, self.dimensions);
                let embedding = if self.base64 {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    json!(base64(&bytes))
                } else {
                    json!(vector)
                };
                json!({"index": at, "object": "embedding", "embedding": embedding})
            })
            .collect();
        let tokens = self.head.prompt_tokens;
        json!({
            "id": self.head.id, "object": "list", "created": self.head.created, "model": self.head.model, "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": null},
        })
        .to_string()
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn vectors_have_length_one() {
        let v = vector(5, 384);
        assert!((v.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);
        assert_ne!(v, vector(6, 384));
    }
}
