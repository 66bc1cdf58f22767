//! A reversible toy tokenizer: about four characters a token, deterministic, no vocabulary file.
//!
//! Known words are one token each, so generated text tokenizes back to the tokens it was generated from and a follow-up
//! turn hits the blocks of the turn before. Everything else is packed: up to four ASCII characters, or up to three raw
//! bytes, in one id. Ids below 2^24 that mean nothing else decode to a word, so a client may send any small ids.

pub mod export;
pub mod model;
mod words;

use crate::hash::HashKeyed;
use std::sync::LazyLock;
use words::WORDS;
use xxhash_rust::xxh3::xxh3_64;

/// Start of a prompt.
pub const BOS: u32 = 1;
/// End of the output.
pub const EOS: u32 = 2;
const END_OF_MESSAGE: u32 = 9;
const PERIOD: u32 = 16;
const COMMA: u32 = 17;
const FIRST_WORD: u32 = 256;
const FORMS: u32 = 3;
const PACKED_ASCII: u32 = 1 << 30;
const PACKED_BYTES: u32 = 1 << 26;
/// Image placeholder tokens that one image costs.
const IMAGE_TOKENS: u32 = 64;

struct Vocabulary {
    texts: Vec<String>,
    /// Place in [`WORDS`] by hash of the word.
    places: HashKeyed<u32>,
}

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let mut texts = Vec::with_capacity(WORDS.len() * FORMS as usize);
    for word in WORDS {
        let mut chars = word.chars();
        let capital: String = chars
            .next()
            .map(|c| c.to_ascii_uppercase())
            .into_iter()
            .chain(chars)
            .collect();
        texts.push(format!(" {word}"));
        texts.push(format!(" {capital}"));
        texts.push(capital);
    }
    let places = WORDS
        .iter()
        .enumerate()
        .map(|(at, word)| (xxh3_64(word.as_bytes()), at as u32))
        .collect();
    Vocabulary { texts, places }
});

/// How a word stands in its sentence.
#[derive(Clone, Copy)]
enum Form {
    Spaced = 0,
    SpacedCapital = 1,
    Capital = 2,
}

/// The id of a letters-only piece, with or without a space before it, if it is a word of the vocabulary.
fn word_id(letters: &str, spaced: bool) -> Option<u32> {
    const LONGEST: usize = 16;
    let bytes = letters.as_bytes();
    let (first, rest) = bytes.split_first()?;
    if bytes.len() > LONGEST || rest.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let form = match (spaced, first.is_ascii_uppercase()) {
        (true, false) => Form::Spaced,
        (true, true) => Form::SpacedCapital,
        (false, true) => Form::Capital,
        (false, false) => return None,
    };
    let mut lower = [0u8; LONGEST];
    lower[..bytes.len()].copy_from_slice(bytes);
    lower[0] = first.to_ascii_lowercase();
    let lower = &lower[..bytes.len()];
    let place = VOCABULARY.places.get(&xxh3_64(lower))?;
    let word = WORDS
        .get(*place as usize)
        .filter(|word| word.as_bytes() == lower);
    word.map(|_| FIRST_WORD + place * FORMS + form as u32)
}

/// Appends the tokens of `text`.
pub fn encode(text: &str, out: &mut Vec<u32>) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let spaced = bytes[at] == b' ';
        let start = at + usize::from(spaced);
        let letters = bytes[start..]
            .iter()
            .take_while(|b| b.is_ascii_alphabetic())
            .count();
        if letters > 0 {
            let end = start + letters;
            match word_id(&text[start..end], spaced) {
                Some(id) => out.push(id),
                None => pack_ascii(&bytes[at..end], out),
            }
            at = end;
            continue;
        }
        match bytes[at] {
            b'.' => {
                out.push(PERIOD);
                at += 1;
            }
            b',' => {
                out.push(COMMA);
                at += 1;
            }
            b if b.is_ascii() => {
                let plain = |b: &u8| {
                    b.is_ascii() && !b.is_ascii_alphabetic() && !matches!(b, b'.' | b',' | b' ')
                };
                let run = 1 + bytes[at + 1..]
                    .iter()
                    .take(3)
                    .take_while(|b| plain(b))
                    .count();
                pack_ascii(&bytes[at..at + run], out);
                at += run;
            }
            _ => {
                let run = bytes[at..]
                    .iter()
                    .take(3)
                    .take_while(|b| !b.is_ascii())
                    .count();
                out.push(PACKED_BYTES | (run as u32 - 1) << 24 | fold(&bytes[at..at + run], 8));
                at += run;
            }
        }
    }
}

fn fold(bytes: &[u8], bits: u32) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |acc, b| acc << bits | u32::from(*b))
}

fn pack_ascii(bytes: &[u8], out: &mut Vec<u32>) {
    for piece in bytes.chunks(4) {
        out.push(PACKED_ASCII | (piece.len() as u32 - 1) << 28 | fold(piece, 7));
    }
}

/// Appends the bytes that a token stands for; control tokens stand for none.
pub fn decode(token: u32, out: &mut Vec<u8>) {
    if token & PACKED_ASCII != 0 {
        for at in 0..(token >> 28 & 3) + 1 {
            out.push((token >> (7 * at) & 0x7f) as u8);
        }
    } else if token & PACKED_BYTES != 0 {
        for at in 0..(token >> 24 & 3).min(2) + 1 {
            out.push((token >> (8 * at) & 0xff) as u8);
        }
    } else {
        match token {
            PERIOD => out.push(b'.'),
            COMMA => out.push(b','),
            0..FIRST_WORD => {}
            _ => {
                let texts = &VOCABULARY.texts;
                let at = (token - FIRST_WORD) as usize % texts.len();
                out.extend_from_slice(texts[at].as_bytes());
            }
        }
    }
}

/// The text of some tokens. Broken UTF-8 becomes the replacement character.
pub fn detokenize(tokens: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * 4);
    for token in tokens {
        decode(*token, &mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The chat template: opens a message of this role.
pub fn open_message(role: &str, out: &mut Vec<u32>) {
    match role {
        "system" | "developer" => out.push(5),
        "user" => out.push(6),
        "assistant" => out.push(7),
        "tool" | "function" => out.push(8),
        other => {
            out.push(10);
            encode(other, out);
        }
    }
}

/// The chat template: closes a message.
pub fn close_message(out: &mut Vec<u32>) {
    out.push(END_OF_MESSAGE);
}

/// An image, an audio clip or the like: a fixed number of tokens that depend on its address or data.
pub fn encode_media(source: &str, out: &mut Vec<u32>) {
    let hash = xxh3_64(source.as_bytes());
    for at in 0..IMAGE_TOKENS {
        out.push((hash.rotate_left(at) as u32 & 0xff_ffff) | 0x10_0000);
    }
}

/// Any word, in small letters.
pub fn word(rng: &mut fastrand::Rng) -> &'static str {
    WORDS
        .get(rng.usize(0..WORDS.len()))
        .copied()
        .unwrap_or_default()
}

/// The token of any word inside a sentence, and its number among the words: different numbers have different texts.
pub fn word_token(rng: &mut fastrand::Rng) -> (usize, u32) {
    let at = rng.usize(0..WORDS.len());
    (at, FIRST_WORD + at as u32 * FORMS + Form::Spaced as u32)
}

/// A sentence of `length` tokens, the full stop included: its first word capital, spaced unless it opens the text.
pub fn sentence(length: usize, opens: bool, rng: &mut fastrand::Rng, out: &mut Vec<u32>) {
    for at in 0..length {
        if at + 1 == length && length > 1 {
            out.push(PERIOD);
            return;
        }
        let form = match (at, opens) {
            (0, true) => Form::Capital,
            (0, false) => Form::SpacedCapital,
            _ => Form::Spaced,
        };
        out.push(FIRST_WORD + rng.u32(0..WORDS.len() as u32) * FORMS + form as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        encode(text, &mut out);
        out
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(text in "\\PC{0,200}|[ a-zA-Z.,!é\n]{0,80}") {
            prop_assert_eq!(detokenize(&tokens(&text)), text);
        }

        #[test]
        fn any_id_decodes(token in any::<u32>()) {
            detokenize(&[token]);
        }

        #[test]
        fn generated_text_encodes_to_itself(seed in any::<u64>(), lengths in prop::collection::vec(2usize..12, 1..6)) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut out = Vec::new();
            for (at, length) in lengths.into_iter().enumerate() {
                sentence(length, at == 0, &mut rng, &mut out);
            }
            prop_assert_eq!(tokens(&detokenize(&out)), out);
        }
    }

    #[test]
    fn english_takes_about_four_characters_a_token() {
        let text =
            "Please summarise the quarterly report, and list every risk that the auditors found. "
                .repeat(20);
        let ratio = text.len() as f64 / tokens(&text).len() as f64;
        assert!((2.5..5.5).contains(&ratio), "{ratio} characters a token");
    }

    #[test]
    fn words_are_distinct() {
        let mut seen = std::collections::HashSet::new();
        for word in WORDS {
            assert!(seen.insert(word), "{word} twice");
        }
    }
}
