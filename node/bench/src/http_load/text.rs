//! Pseudo-text of a known length in tokens: the same seed gives the same text.
//!
//! A token is a space and a common three-letter word. The usual BPE vocabularies have each of these as one token, and rules of
//! thumb (four bytes a token, one token a word) count the same, so that prompt lengths mean the same to any server.

use fastrand::Rng;

/// Bytes of one pseudo-token.
pub(crate) const TOKEN_BYTES: usize = 4;

#[rustfmt::skip]
const WORDS: [&[u8; 3]; 128] = [
    b"the", b"and", b"for", b"are", b"but", b"not", b"you", b"all", b"any", b"can", b"had", b"her", b"was", b"one", b"our", b"out",
    b"day", b"get", b"has", b"him", b"his", b"how", b"man", b"new", b"now", b"old", b"see", b"two", b"way", b"who", b"boy", b"did",
    b"its", b"let", b"put", b"say", b"she", b"too", b"use", b"air", b"end", b"why", b"try", b"far", b"off", b"own", b"set", b"run",
    b"car", b"eat", b"few", b"got", b"men", b"low", b"yes", b"yet", b"big", b"ask", b"act", b"add", b"age", b"ago", b"art", b"bad",
    b"bag", b"bed", b"bit", b"box", b"buy", b"cut", b"die", b"dog", b"dry", b"eye", b"fit", b"fly", b"fun", b"gas", b"god", b"gun",
    b"hit", b"hot", b"ice", b"job", b"key", b"kid", b"law", b"lay", b"led", b"leg", b"lie", b"lot", b"map", b"may", b"mix", b"net",
    b"oil", b"per", b"pay", b"red", b"sea", b"sex", b"sit", b"six", b"sky", b"son", b"sun", b"tax", b"ten", b"top", b"via", b"war",
    b"web", b"win", b"won", b"arm", b"bar", b"bus", b"cup", b"egg", b"fat", b"fix", b"hat", b"mom", b"pop", b"row", b"tea", b"van",
];

/// Appends `tokens` pseudo-tokens.
pub(crate) fn append_tokens(out: &mut Vec<u8>, rng: &mut Rng, tokens: usize) {
    out.reserve(tokens * TOKEN_BYTES);
    let (mut bits, mut left) = (0u64, 0);
    for _ in 0..tokens {
        if left == 0 {
            (bits, left) = (rng.u64(..), 9);
        }
        out.push(b' ');
        out.extend_from_slice(WORDS[(bits & 127) as usize]);
        bits >>= 7;
        left -= 1;
    }
}

/// Appends `bytes` bytes of pseudo-text; the last token may be cut.
pub(crate) fn append_bytes(out: &mut Vec<u8>, rng: &mut Rng, bytes: usize) {
    let end = out.len() + bytes;
    append_tokens(out, rng, bytes.div_ceil(TOKEN_BYTES));
    out.truncate(end);
}

/// A generator for one purpose of one run; `stream` and `index` tell apart what the seed has in common.
pub(crate) fn rng(seed: u64, stream: u64, index: u64) -> Rng {
    // fastrand's seeds are used as they are: neighbours must be spread first (the finalizer of splitmix64).
    let mut x = seed
        ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03)
        ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    Rng::with_seed(x ^ (x >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_different() {
        let mut words = WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 128);
    }

    #[test]
    fn lengths_and_seeds() {
        let text = |seed| {
            let mut out = Vec::new();
            append_tokens(&mut out, &mut rng(seed, 0, 0), 50);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(1).split_ascii_whitespace().count(), 50);
        assert_eq!(text(1).len(), 200);
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
        let mut out = b"x".to_vec();
        append_bytes(&mut out, &mut rng(1, 0, 0), 10);
        assert_eq!(out.len(), 11);
    }
}
