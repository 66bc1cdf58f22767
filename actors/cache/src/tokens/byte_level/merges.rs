//! The merges of byte-level BPE: of a word's bytes, the neighbours with the lowest rank become one token, the leftmost first, until
//! no two neighbours are a pair.

use super::words::Words;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

/// Longer words go through a heap: `n log n` whatever the text is.
const SHORT: usize = 48;
const NO_PAIR: Pair = Pair {
    rank: u32::MAX,
    id: u32::MAX,
};
/// No symbol.
const END: usize = usize::MAX;

/// What two tokens become.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pair {
    rank: u32,
    id: u32,
}

/// A vocabulary with its merges.
#[derive(Debug)]
pub(super) struct Merges {
    bytes: [u32; 256],
    pairs: HashMap<u64, Pair, BuildHasherDefault<Mix>>,
    /// Those that are one token, so that most need no merge.
    words: Words,
}

/// Memory that one call after the other uses.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    ids: Vec<u32>,
    pairs: Vec<Pair>,
    next: Vec<usize>,
    before: Vec<usize>,
    queue: BinaryHeap<Reverse<(u32, usize, u32)>>,
}

impl Merges {
    /// `None`: a byte has no token, a merge is of unknown tokens, or a token's text cannot be what its merge makes.
    pub fn new(
        vocab: &HashMap<String, u32>,
        merges: &[(&str, &str)],
        words_first: bool,
    ) -> Option<Self> {
        let mut bytes = [0; 256];
        let mut alphabet = HashMap::new();
        for (byte, letter) in (0..=255).zip(letters()) {
            *bytes.get_mut(usize::from(byte))? = *vocab.get(letter.encode_utf8(&mut [0; 4]))?;
            alphabet.insert(letter, byte);
        }
        let mut pairs = HashMap::with_capacity_and_hasher(merges.len(), Default::default());
        let mut joined = String::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let pair = Pair {
                rank: u32::try_from(rank).ok().filter(|rank| *rank < u32::MAX)?,
                id: *vocab.get(&joined)?,
            };
            pairs.insert(key(*vocab.get(*left)?, *vocab.get(*right)?), pair);
        }
        let mut merges = Self {
            bytes,
            pairs,
            words: Words::default(),
        };
        let mut words = Vec::new();
        let (mut scratch, mut made) = (Scratch::default(), Vec::new());
        for (token, id) in vocab {
            let text: Option<Box<[u8]>> =
                token.chars().map(|c| alphabet.get(&c).copied()).collect();
            let Some(text) = text.filter(|text| !text.is_empty()) else {
                continue;
            };
            made.clear();
            merges.merge(&text, &mut scratch, &mut made);
            // A token that its own bytes do not lead to is no word, unless words go before merges.
            if words_first || made == [*id] {
                words.push((text, *id));
            }
        }
        merges.words = Words::new(words);
        Some(merges)
    }

    /// Puts the ids of the word at `range` of a text behind `out`.
    pub fn word(
        &self,
        text: &[u8],
        range: Range<usize>,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        match self.words.get(text, range.clone()) {
            Some(id) => out.push(id),
            None => self.merge(text.get(range).unwrap_or_default(), scratch, out),
        }
    }

    fn merge(&self, word: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        scratch.ids.clear();
        let ids = word.iter().filter_map(|b| self.bytes.get(usize::from(*b)));
        scratch.ids.extend(ids);
        if word.len() <= SHORT {
            self.merge_short(scratch);
            out.extend_from_slice(&scratch.ids);
        } else {
            self.merge_long(scratch, out);
        }
    }

    fn pair(&self, left: u32, right: u32) -> Pair {
        self.pairs
            .get(&key(left, right))
            .copied()
            .unwrap_or(NO_PAIR)
    }

    fn merge_short(&self, scratch: &mut Scratch) {
        let Scratch { ids, pairs, .. } = scratch;
        pairs.clear();
        // Of each token with the next one.
        pairs.extend(ids.windows(2).map(|two| match two {
            [left, right] => self.pair(*left, *right),
            _ => NO_PAIR,
        }));
        // The first of those with the lowest rank.
        while let Some((at, best)) = pairs
            .iter()
            .copied()
            .enumerate()
            .min_by_key(|(_, p)| p.rank)
            && best.rank != u32::MAX
        {
            ids.remove(at + 1);
            pairs.remove(at);
            if let Some(id) = ids.get_mut(at) {
                *id = best.id;
            }
            for left in [at.checked_sub(1), Some(at)].into_iter().flatten() {
                if let (Some(pair), Some([a, b])) = (pairs.get_mut(left), ids.get(left..left + 2)) {
                    *pair = self.pair(*a, *b);
                }
            }
        }
    }

    /// The same over a list of symbols and a queue of pairs. An entry whose place has another pair by now is passed over.
    fn merge_long(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch {
            ids,
            next,
            before,
            queue,
            ..
        } = scratch;
        let count = ids.len();
        next.clear();
        next.extend((1..count).chain([END]));
        before.clear();
        before.extend([END].into_iter().chain(0..count - 1));
        queue.clear();
        let found = |ids: &[u32], left: usize, right: usize| {
            let pair = self.pair(*ids.get(left)?, *ids.get(right)?);
            (pair.rank != u32::MAX).then_some(Reverse((pair.rank, left, pair.id)))
        };
        queue.extend((1..count).filter_map(|right| found(ids, right - 1, right)));
        while let Some(Reverse((rank, at, id))) = queue.pop() {
            let Some(&right) = next.get(at).filter(|right| **right != END) else {
                continue;
            };
            if found(ids, at, right) != Some(Reverse((rank, at, id))) {
                continue;
            }
            let behind = next.get(right).copied().unwrap_or(END);
            if let (Some(symbol), Some(link)) = (ids.get_mut(at), next.get_mut(at)) {
                (*symbol, *link) = (id, behind);
            }
            // Gone: nothing starts there any more.
            if let Some(link) = next.get_mut(right) {
                *link = END;
            }
            if let Some(link) = before.get_mut(behind) {
                *link = at;
            }
            queue.extend(found(ids, at, behind));
            let left = before.get(at).copied().unwrap_or(END);
            queue.extend(found(ids, left, at));
        }
        let mut at = 0;
        while let (Some(id), Some(link)) = (ids.get(at), next.get(at)) {
            out.push(*id);
            at = *link;
        }
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The letter for each byte: itself where it is printed, else one of those from 256 on.
fn letters() -> impl Iterator<Item = char> {
    let printed = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut more = 256..;
    (0..256)
        .filter_map(move |byte| char::from_u32(if printed(&byte) { byte } else { more.next()? }))
}

/// Hashes of keys that come from a model's file alone.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    fn write_u64(&mut self, key: u64) {
        let mixed = u128::from(key ^ 0x9e37_79b9_7f4a_7c15) * 0xda94_2042_e4dd_58b5;
        self.0 = (mixed >> 64) as u64 ^ mixed as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All bytes, and as many merges of what is there already as `picks` says.
    fn made(picks: &[(u32, u32)]) -> Merges {
        let letters: Vec<String> = letters().map(String::from).collect();
        let mut vocab: HashMap<String, u32> = letters.iter().cloned().zip(0..).collect();
        // Few letters, so that merges meet.
        let mut tokens: Vec<String> = letters[usize::from(b'a')..=usize::from(b'c')].to_vec();
        let mut merges = Vec::new();
        for (left, right) in picks {
            let pick = |n: &u32| tokens[*n as usize % tokens.len()].clone();
            let (left, right) = (pick(left), pick(right));
            let joined = format!("{left}{right}");
            if joined.len() <= 12 && !vocab.contains_key(&joined) {
                vocab.insert(joined.clone(), vocab.len() as u32);
                tokens.push(joined);
                merges.push((left, right));
            }
        }
        let merges: Vec<_> = merges
            .iter()
            .map(|(l, r)| (l.as_str(), r.as_str()))
            .collect();
        Merges::new(&vocab, &merges, false).unwrap()
    }

    proptest! {
        /// By scan and by queue the same, and words that are one token are what their merges make.
        #[test]
        fn short_and_long(picks in prop::collection::vec(any::<(u32, u32)>(), 0..60), word in "[abc]{1,80}") {
            let merges = made(&picks);
            let start = || Scratch {
                ids: word.bytes().map(|b| merges.bytes[usize::from(b)]).collect(),
                ..Scratch::default()
            };
            let mut short = start();
            merges.merge_short(&mut short);
            let mut long = Vec::new();
            merges.merge_long(&mut start(), &mut long);
            prop_assert_eq!(&short.ids, &long);
            let mut by_word = Vec::new();
            merges.word(word.as_bytes(), 0..word.len(), &mut Scratch::default(), &mut by_word);
            prop_assert_eq!(by_word, long);
        }
    }

    #[test]
    fn letters_of_bytes() {
        let letters: Vec<char> = letters().collect();
        assert_eq!(letters.len(), 256);
        for (byte, letter) in [
            (0, 'Ā'),
            (b' ', 'Ġ'),
            (b'\n', 'Ċ'),
            (b'a', 'a'),
            (0xad, 'Ń'),
            (0xff, 'ÿ'),
        ] {
            assert_eq!(letters[usize::from(byte)], letter);
        }
    }
}
