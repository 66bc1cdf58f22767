//! Plans the whole output of a request before the engine starts it: tokens, text, and why it ends.

use crate::config::{Mode, OutputLength};
use crate::dataset::Dataset;
use crate::engine::FinishReason;
use crate::tokenizer::{self, EOS};
use crate::tools::PlannedCall;
use std::sync::Arc;

/// What a client asked for, as far as it decides the output.
#[derive(Clone, Debug, Default)]
pub struct Sampling {
    /// Upper limit of generated tokens.
    pub max_tokens: Option<u32>,
    /// Lower limit.
    pub min_tokens: u32,
    /// Never end before `max_tokens`.
    pub ignore_eos: bool,
    /// Strings that end the output; the output does not hold them.
    pub stop: Vec<String>,
    /// Token ids that end the output.
    pub stop_token_ids: Vec<u32>,
    /// Seed of this request.
    pub seed: Option<u64>,
    /// Keep the stop string in the output.
    pub include_stop: bool,
}

/// A planned output.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// Generated tokens; a final [`EOS`] is one of them.
    pub tokens: Arc<[u32]>,
    /// All text.
    pub text: String,
    /// Where the text of each token ends in `text`.
    pub ends: Vec<u32>,
    /// Why it ends.
    pub finish: FinishReason,
    /// The stop string or token that ended it.
    pub stop_reason: Option<StopReason>,
    /// Tool calls, when the output is calls rather than text.
    pub calls: Vec<PlannedCall>,
    /// The tokens are a model's: what each of them spells is in `text` and `ends` only.
    pub pieces: bool,
}

/// vLLM's `stop_reason`.
#[derive(Clone, Debug, PartialEq)]
pub enum StopReason {
    /// A stop string.
    Text(String),
    /// A stop token.
    Token(u32),
}

impl Plan {
    /// The text that token `index` adds.
    pub fn piece(&self, index: u32) -> &str {
        let index = index as usize;
        let end = self
            .ends
            .get(index)
            .copied()
            .unwrap_or(self.text.len() as u32);
        let start = match index.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(end),
            None => 0,
        };
        self.text
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }

    /// The text of the first `tokens` tokens.
    pub fn prefix(&self, tokens: u32) -> &str {
        match tokens.checked_sub(1) {
            None => "",
            Some(last) => {
                let end = self
                    .ends
                    .get(last as usize)
                    .copied()
                    .unwrap_or(self.text.len() as u32);
                self.text.get(..end as usize).unwrap_or_default()
            }
        }
    }
}

/// What the text comes from.
pub struct Source<'a> {
    /// Random or echo.
    pub mode: Mode,
    /// Seed of the server.
    pub seed: u64,
    /// A value that depends on the prompt alone.
    pub prompt_hash: u64,
    /// Which of the `n` choices.
    pub choice: u32,
    /// What echo mode repeats.
    pub echo: &'a [u32],
    /// What random output takes after, and the part of the prompt to look up in it.
    pub dataset: Option<(&'a Dataset, &'a [u32])>,
    /// Length of a random output whose request has no limit.
    pub length: &'a OutputLength,
    /// Room left in the model's context window.
    pub room: u32,
}

impl Source<'_> {
    /// Randomness of one output; `stream` keeps independent draws apart.
    pub fn rng(&self, sampling: &Sampling, stream: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(
            self.seed.rotate_left(17)
                ^ self.prompt_hash
                ^ sampling
                    .seed
                    .unwrap_or(0)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ u64::from(self.choice).wrapping_mul(0xff51_afd7_ed55_8ccd)
                ^ stream.wrapping_mul(0xc4ce_b9fe_1a85_ec53),
        )
    }

    /// Most tokens that the output may have.
    pub fn limit(&self, sampling: &Sampling) -> u32 {
        sampling
            .max_tokens
            .unwrap_or(self.room)
            .min(self.room)
            .max(1)
    }
}

/// Plans one output. It depends on the server's seed, the prompt, the request's seed and the choice, and on nothing else:
/// a retried request gets the same answer from any server with the same seed.
pub fn plan(sampling: &Sampling, source: &Source<'_>) -> Plan {
    let limit = source.limit(sampling) as usize;
    let mut tokens = match source.mode {
        Mode::Random => random(sampling, source, limit),
        Mode::Echo => echo(sampling, source, limit),
    };
    let mut finish = FinishReason::Length;
    let mut stop_reason = None;
    if tokens.last() == Some(&EOS) {
        finish = FinishReason::Stop;
    }
    let stop_token = tokens.iter().enumerate().position(|(at, token)| {
        at as u32 >= sampling.min_tokens && sampling.stop_token_ids.contains(token)
    });
    if let Some(at) = stop_token {
        stop_reason = tokens.get(at).map(|token| StopReason::Token(*token));
        tokens.truncate(at + 1);
        finish = FinishReason::Stop;
    }

    let (mut bytes, mut ends) = decode(&tokens);
    if stop_token.is_some() && !sampling.include_stop {
        // The stop token itself adds no text.
        let before = ends
            .len()
            .checked_sub(2)
            .and_then(|at| ends.get(at))
            .copied()
            .unwrap_or(0);
        bytes.truncate(before as usize);
    }
    let mut text = sound(bytes);
    if let Some((start, stop)) = find_stop(&text, &ends, sampling) {
        let end = start + stop.len();
        let last = ends
            .iter()
            .position(|at| *at as usize >= end)
            .unwrap_or(tokens.len().saturating_sub(1));
        tokens.truncate(last + 1);
        ends.truncate(last + 1);
        text.truncate(if sampling.include_stop { end } else { start });
        finish = FinishReason::Stop;
        stop_reason = Some(StopReason::Text(stop.to_owned()));
    }
    settle(&mut ends, &text);
    Plan {
        tokens: tokens.into(),
        text,
        ends,
        finish,
        stop_reason,
        calls: Vec::new(),
        pieces: false,
    }
}

/// The text of some tokens, and where the text of each ends.
pub fn spell(tokens: &[u32]) -> (String, Vec<u32>) {
    let (bytes, mut ends) = decode(tokens);
    let text = sound(bytes);
    settle(&mut ends, &text);
    (text, ends)
}

/// The same with the replacement character in the place of broken bytes.
pub fn spell_lossy(tokens: &[u32]) -> (String, Vec<u32>) {
    let (text, ends) = spell(tokens);
    match ends.last() {
        Some(end) if *end as usize == decode(tokens).0.len() => (text, ends),
        _ => (tokenizer::detokenize(tokens), ends),
    }
}

fn decode(tokens: &[u32]) -> (Vec<u8>, Vec<u32>) {
    let mut bytes = Vec::with_capacity(tokens.len() * 5);
    let mut ends = Vec::with_capacity(tokens.len());
    for token in tokens {
        tokenizer::decode(*token, &mut bytes);
        ends.push(bytes.len() as u32);
    }
    (bytes, ends)
}

/// Bytes as text. Token ids from a client may decode to anything: cut at the first broken byte.
fn sound(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let valid = error.utf8_error().valid_up_to();
        String::from_utf8(error.into_bytes().into_iter().take(valid).collect()).unwrap_or_default()
    })
}

/// A token may end inside a character; its text then waits for the token that completes it.
fn settle(ends: &mut [u32], text: &str) {
    for end in ends {
        *end = (*end).min(text.len() as u32);
        while !text.is_char_boundary(*end as usize) {
            *end -= 1;
        }
    }
}

fn find_stop<'a>(text: &str, ends: &[u32], sampling: &'a Sampling) -> Option<(usize, &'a str)> {
    // Text of the tokens below min_tokens cannot end the output.
    let from = match sampling.min_tokens.checked_sub(1) {
        Some(last) => ends
            .get(last as usize)
            .map_or(text.len(), |end| *end as usize),
        None => 0,
    };
    sampling
        .stop
        .iter()
        .filter(|stop| !stop.is_empty())
        .filter_map(|stop| {
            let at = text
                .match_indices(stop.as_str())
                .find(|(at, _)| at + stop.len() > from)?
                .0;
            Some((at, stop.as_str()))
        })
        .min_by_key(|(at, stop)| at + stop.len())
}

fn random(sampling: &Sampling, source: &Source<'_>, limit: usize) -> Vec<u32> {
    let mut rng = source.rng(sampling, 0);
    let known = source
        .dataset
        .and_then(|(dataset, prompt)| dataset.find(prompt));
    if let Some(text) = known.and_then(|answer| answer.tokens.as_deref()) {
        return repeat(text, sampling, limit);
    }
    // With a limit the output fills it; without one its length is drawn. A dataset's lengths are below any limit.
    let drawn = match (source.dataset, sampling.max_tokens) {
        _ if sampling.ignore_eos => None,
        (Some((dataset, _)), _) => {
            Some(known.map_or_else(|| dataset.sample(&mut rng), |answer| answer.length))
        }
        (None, None) => Some(source.length.sample(&mut rng)),
        (None, Some(_)) => None,
    };
    let drawn = drawn.map(|length| length.max(sampling.min_tokens).max(1) as usize);
    let words = drawn.map_or(limit, |drawn| drawn.min(limit));
    let mut tokens = Vec::with_capacity(words + 1);
    while tokens.len() < words {
        let left = words - tokens.len();
        let length = rng.usize(6..16).min(left);
        // No sentence of one token: the last one takes it in.
        let length = if left - length == 1 { left } else { length };
        tokenizer::sentence(length, tokens.is_empty(), &mut rng, &mut tokens);
    }
    if drawn.is_some() && tokens.len() < limit {
        tokens.push(EOS);
    }
    tokens
}

fn echo(sampling: &Sampling, source: &Source<'_>, limit: usize) -> Vec<u32> {
    repeat(source.echo, sampling, limit)
}

/// A text that is there already, over and over where its end does not count.
fn repeat(text: &[u32], sampling: &Sampling, limit: usize) -> Vec<u32> {
    if sampling.ignore_eos && sampling.max_tokens.is_some() && !text.is_empty() {
        return text.iter().copied().cycle().take(limit).collect();
    }
    let mut tokens: Vec<u32> = text.iter().copied().take(limit).collect();
    if tokens.len() < limit {
        tokens.push(EOS);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source<'a>(echo: &'a [u32], length: &'a OutputLength) -> Source<'a> {
        let mode = if echo.is_empty() {
            Mode::Random
        } else {
            Mode::Echo
        };
        Source {
            mode,
            seed: 7,
            prompt_hash: 99,
            choice: 0,
            echo,
            dataset: None,
            length,
            room: 1000,
        }
    }

    fn encoded(text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        tokenizer::encode(text, &mut out);
        out
    }

    #[test]
    fn limit_is_filled_and_reported_as_length() {
        let length = OutputLength::Fixed(20);
        for max_tokens in 1..40 {
            let sampling = Sampling {
                max_tokens: Some(max_tokens),
                ..Sampling::default()
            };
            let plan = plan(&sampling, &source(&[], &length));
            assert_eq!(plan.tokens.len(), max_tokens as usize);
            assert_eq!(plan.finish, FinishReason::Length);
            let joined: String = (0..max_tokens).map(|i| plan.piece(i)).collect();
            assert_eq!(joined, plan.text);
        }
    }

    #[test]
    fn without_limit_the_length_is_drawn_and_ends_with_eos() {
        let length = OutputLength::Fixed(20);
        let plan = plan(&Sampling::default(), &source(&[], &length));
        assert_eq!(plan.tokens.len(), 21);
        assert_eq!(plan.tokens.last(), Some(&EOS));
        assert_eq!(plan.finish, FinishReason::Stop);
        assert_eq!(plan.piece(20), "");
    }

    #[test]
    fn text_depends_on_seed_prompt_and_choice_only() {
        let length = OutputLength::Fixed(20);
        let base = plan(&Sampling::default(), &source(&[], &length));
        assert_eq!(base, plan(&Sampling::default(), &source(&[], &length)));
        let seeded = Sampling {
            seed: Some(3),
            ..Sampling::default()
        };
        assert_ne!(base, plan(&seeded, &source(&[], &length)));
        assert_ne!(
            base,
            plan(
                &Sampling::default(),
                &Source {
                    choice: 1,
                    ..source(&[], &length)
                }
            )
        );
        assert_ne!(
            base,
            plan(
                &Sampling::default(),
                &Source {
                    prompt_hash: 1,
                    ..source(&[], &length)
                }
            )
        );
        assert_ne!(
            base,
            plan(
                &Sampling::default(),
                &Source {
                    seed: 8,
                    ..source(&[], &length)
                }
            )
        );
    }

    #[test]
    fn stop_string_cuts_text_and_counts_its_tokens() {
        let echo = encoded("abcd efgh. Then more");
        let length = OutputLength::Fixed(1);
        let sampling = Sampling {
            stop: vec!["gh".into(), "zz".into()],
            ..Sampling::default()
        };
        let cut = plan(&sampling, &source(&echo, &length));
        assert_eq!(cut.text, "abcd ef");
        assert_eq!(cut.finish, FinishReason::Stop);
        assert_eq!(cut.stop_reason, Some(StopReason::Text("gh".into())));
        assert_eq!(cut.tokens.len(), 3, "abcd, ' efg', 'h'");
        let late = plan(
            &Sampling {
                min_tokens: 4,
                ..sampling.clone()
            },
            &source(&echo, &length),
        );
        assert_eq!(late.text, "abcd efgh. Then more");
        let kept = plan(
            &Sampling {
                include_stop: true,
                ..sampling
            },
            &source(&echo, &length),
        );
        assert_eq!(kept.text, "abcd efgh");
    }

    #[test]
    fn stop_token_adds_no_text() {
        let echo = encoded("abcd. more");
        let length = OutputLength::Fixed(1);
        let sampling = Sampling {
            stop_token_ids: vec![echo[1]],
            ..Sampling::default()
        };
        let cut = plan(&sampling, &source(&echo, &length));
        assert_eq!((cut.text.as_str(), cut.tokens.len()), ("abcd", 2));
        assert_eq!(cut.stop_reason, Some(StopReason::Token(echo[1])));
    }

    #[test]
    fn pieces_never_split_a_character() {
        let text = "naïve — 日本語 😀😀";
        let echo = encoded(text);
        let length = OutputLength::Fixed(1);
        let whole = plan(&Sampling::default(), &source(&echo, &length));
        assert_eq!(whole.text, text);
        let joined: String = (0..whole.tokens.len() as u32)
            .map(|i| whole.piece(i))
            .collect();
        assert_eq!(joined, text);
        for max_tokens in 1..echo.len() as u32 {
            let sampling = Sampling {
                max_tokens: Some(max_tokens),
                ..Sampling::default()
            };
            let cut = plan(&sampling, &source(&echo, &length));
            assert!(text.starts_with(&cut.text));
            assert_eq!(cut.prefix(max_tokens), cut.text);
        }
    }
}
