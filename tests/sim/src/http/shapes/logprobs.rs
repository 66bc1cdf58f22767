//! Log probabilities as vLLM writes them for chats and completions.
//!
//! Nothing was sampled, so the figures are made up, from the token and the one before it: the same text has the same ones.
//! They are plausible: the probabilities of one place add up to less than one.

use super::completion::Echo;
use crate::http::json::{number, push, string};
use crate::text::Plan;
use crate::tokenizer::{self, EOS};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many alternatives vLLM gives at most.
pub const MAX_TOP: u32 = 20;

/// How the end of the output is spelled where tokens are listed.
const EOS_TEXT: &str = "</s>";

/// A token that could stand in a place.
struct Candidate {
    token: u32,
    logprob: f64,
}

/// The token in place `at`, then `top` others, the likelier ones first.
fn candidates(tokens: &[u32], at: usize, top: u32) -> Vec<Candidate> {
    let Some(&token) = tokens.get(at) else {
        return Vec::new();
    };
    let before = at.checked_sub(1).and_then(|at| tokens.get(at)).copied();
    let seed = xxh3_64_with_seed(&token.to_le_bytes(), u64::from(before.unwrap_or(0)));
    let mut rng = fastrand::Rng::with_seed(seed);
    let share = 0.3 + 0.69 * rng.f64();
    let mut out = vec![Candidate {
        token,
        logprob: share.ln(),
    }];
    let mut rest = 1.0 - share;
    let mut used = Vec::new();
    while out.len() <= top as usize {
        let (word, other) = tokenizer::word_token(&mut rng);
        if other == token || used.contains(&word) {
            continue;
        }
        used.push(word);
        // At most half of what is left: each alternative is rarer than the one before.
        let part = rest * 0.5;
        rest -= part;
        out.push(Candidate {
            token: other,
            logprob: part.ln(),
        });
    }
    out
}

fn bytes(token: u32) -> Vec<u8> {
    if token == EOS {
        return EOS_TEXT.into();
    }
    let mut bytes = Vec::with_capacity(16);
    tokenizer::decode(token, &mut bytes);
    bytes
}

/// A model's token without text is the end, or waits for the rest of its character.
fn shown(piece: &str) -> &str {
    if piece.is_empty() { EOS_TEXT } else { piece }
}

fn spelled(token: u32) -> String {
    String::from_utf8_lossy(&bytes(token)).into_owned()
}

fn float(value: f64, out: &mut Vec<u8>) {
    push(&format!("{value:.6}"), out);
}

fn list<T>(
    items: impl IntoIterator<Item = T>,
    out: &mut Vec<u8>,
    mut write: impl FnMut(T, &mut Vec<u8>),
) {
    push("[", out);
    for (at, item) in items.into_iter().enumerate() {
        if at > 0 {
            push(",", out);
        }
        write(item, out);
    }
    push("]", out);
}

/// The fields of a chat's token, without the closing brace.
fn chat_token(candidate: &Candidate, own: Option<&str>, out: &mut Vec<u8>) {
    let bytes = match own {
        Some(own) => shown(own).into(),
        None => bytes(candidate.token),
    };
    push("{\"token\":", out);
    string(&String::from_utf8_lossy(&bytes), out);
    push(",\"logprob\":", out);
    float(candidate.logprob, out);
    push(",\"bytes\":", out);
    list(bytes, out, |byte, out| number(byte.into(), out));
}

/// Appends a chat's logprobs object for some tokens of an output.
pub fn chat(plan: &Plan, places: std::ops::Range<u32>, top: u32, out: &mut Vec<u8>) {
    push("{\"content\":", out);
    list(places, out, |at, out| {
        let candidates = candidates(&plan.tokens, at as usize, top);
        let text = plan.pieces.then(|| plan.piece(at));
        if let Some(own) = candidates.first() {
            chat_token(own, text, out);
        }
        push(",\"top_logprobs\":", out);
        list(
            candidates.iter().take(top as usize).enumerate(),
            out,
            |(place, candidate), out| {
                chat_token(candidate, text.filter(|_| place == 0), out);
                push("}", out);
            },
        );
        push("}", out);
    });
    push("}", out);
}

/// The lists of a completion's logprobs object.
pub struct Lists {
    top: u32,
    offsets: Vec<usize>,
    tokens: Vec<String>,
    logprobs: Vec<Option<f64>>,
    alternatives: Vec<Vec<Candidate>>,
}

impl Lists {
    /// Empty lists with so many alternatives to each token.
    pub fn new(top: u32) -> Self {
        Lists {
            top,
            offsets: Vec::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
        }
    }

    /// Adds the tokens of a prompt. The first one has no probability: nothing comes before it.
    pub fn prompt(&mut self, echo: &Echo) {
        let text = echo.text.as_str();
        let (mut start, mut offset) = (0, 0);
        for (at, end) in echo.ends.iter().enumerate() {
            let end = *end as usize;
            let own = text.get(start..end).filter(|_| echo.pieces);
            self.add(&echo.tokens, at, offset, own);
            if at == 0 {
                self.logprobs.fill(None);
                self.alternatives.iter_mut().for_each(Vec::clear);
            }
            offset += text.get(start..end).map_or(0, |text| text.chars().count());
            start = end;
        }
    }

    /// Adds token `at`, whose text starts at `offset` characters; `text` is that text where the token's number does not tell it.
    pub fn add(&mut self, tokens: &[u32], at: usize, offset: usize, text: Option<&str>) {
        let candidates = candidates(tokens, at, self.top);
        let Some(own) = candidates.first() else {
            return;
        };
        self.offsets.push(offset);
        self.tokens.push(match text {
            Some(text) => shown(text).to_owned(),
            None => spelled(own.token),
        });
        self.logprobs.push(Some(own.logprob));
        self.alternatives.push(candidates);
    }

    /// Appends the object.
    pub fn write(&self, out: &mut Vec<u8>) {
        push("{\"text_offset\":", out);
        list(&self.offsets, out, |offset, out| {
            number(*offset as u64, out);
        });
        push(",\"token_logprobs\":", out);
        list(&self.logprobs, out, |logprob, out| match logprob {
            Some(logprob) => float(*logprob, out),
            None => push("null", out),
        });
        push(",\"tokens\":", out);
        list(&self.tokens, out, |token, out| string(token, out));
        push(",\"top_logprobs\":", out);
        list(&self.alternatives, out, |candidates, out| {
            if candidates.is_empty() {
                return push("null", out);
            }
            push("{", out);
            for (at, candidate) in candidates.iter().enumerate() {
                if at > 0 {
                    push(",", out);
                }
                string(&spelled(candidate.token), out);
                push(":", out);
                float(candidate.logprob, out);
            }
            push("}", out);
        });
        push("}", out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn probabilities_are_probabilities(tokens in prop::collection::vec(any::<u32>(), 1..6), top in 0..=MAX_TOP) {
            for at in 0..tokens.len() {
                let all = candidates(&tokens, at, top);
                prop_assert_eq!(all.len(), top as usize + 1);
                prop_assert_eq!(all[0].token, tokens[at]);
                prop_assert!(all.iter().all(|c| c.logprob < 0.0 && c.logprob.is_finite()));
                prop_assert!(all.iter().map(|c| c.logprob.exp()).sum::<f64>() <= 1.0 + 1e-9);
                prop_assert!(all[1..].windows(2).all(|pair| pair[0].logprob > pair[1].logprob));
                let mut texts: Vec<String> = all[1..].iter().map(|c| spelled(c.token)).collect();
                texts.sort();
                texts.dedup();
                prop_assert_eq!(texts.len(), top as usize);
            }
        }
    }
}
