//! Words of a vocabulary that are one token each. Most words of a text are, and finding one is most of the work on a text: so a short one is
//! compared as one number that stands in the table itself, one line of memory away.

use std::collections::HashMap;
use std::ops::Range;

/// A word of so many bytes, and its length, are one number.
const SHORT: usize = 15;

/// A short word, and its token. An empty slot has the word 0: no word is without length.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    word: [u64; 2],
    id: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// Searched from a word's home on. At most five eighths are taken.
    slots: Vec<Slot>,
    long: HashMap<Box<[u8]>, u32>,
    /// Of the longest of all.
    longest: usize,
}

impl Words {
    /// Of all these words. What a text can make of them is a search that goes on for longer, never another token.
    pub fn new(words: Vec<(Box<[u8]>, u32)>) -> Self {
        let longest = words.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
        let mut slots = vec![Slot::default(); words.len() * 8 / 5 + 1];
        let mut long = HashMap::new();
        for (text, id) in words {
            let Some(word) = packed(&text, 0..text.len()) else {
                long.insert(text, id);
                continue;
            };
            let home = home(word, slots.len());
            let (before, behind) = slots.split_at_mut(home);
            let mut from = behind.iter_mut().chain(before);
            if let Some(slot) = from.find(|slot| slot.word == [0; 2] || slot.word == word) {
                *slot = Slot { word, id };
            }
        }
        Self {
            slots,
            long,
            longest,
        }
    }

    /// The token that the word at `range` of a text is.
    pub fn get(&self, text: &[u8], range: Range<usize>) -> Option<u32> {
        if range.len() > self.longest {
            return None;
        }
        let Some(word) = packed(text, range.clone()) else {
            return self.long.get(text.get(range)?).copied();
        };
        let (before, behind) = self.slots.split_at_checked(home(word, self.slots.len()))?;
        for slot in behind.iter().chain(before) {
            if slot.word == word {
                return Some(slot.id);
            }
            if slot.word == [0; 2] {
                break;
            }
        }
        None
    }
}

/// The word at `range` with its length behind it, if it is short and not empty.
fn packed(text: &[u8], range: Range<usize>) -> Option<[u64; 2]> {
    let len = range.len();
    if !(1..=SHORT).contains(&len) {
        return None;
    }
    let whole = match text.get(range.start..).and_then(<[u8]>::first_chunk::<16>) {
        Some(bytes) => u128::from_le_bytes(*bytes),
        None => {
            let mut bytes = [0; 16];
            bytes.get_mut(..len)?.copy_from_slice(text.get(range)?);
            u128::from_le_bytes(bytes)
        }
    };
    let word = whole & ((1 << (8 * len)) - 1) | (len as u128) << (8 * SHORT);
    Some([word as u64, (word >> 64) as u64])
}

/// Where the search for a word begins.
fn home(word: [u64; 2], slots: usize) -> usize {
    let [low, high] = word;
    let mixed = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xda94_2042_e4dd_58b5);
    let mixed = (mixed >> 64) as u64 ^ mixed as u64;
    ((u128::from(mixed) * slots as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_a_map(
            words in prop::collection::hash_map(prop::collection::vec(0u8..3, 1..20), any::<u32>(), 0..300),
            text in prop::collection::vec(0u8..3, 0..60),
            places in prop::collection::vec((0usize..60, 0usize..60), 0..200),
        ) {
            let table = Words::new(words.iter().map(|(word, id)| (word.as_slice().into(), *id)).collect());
            for (word, id) in &words {
                prop_assert_eq!(table.get(word, 0..word.len()), Some(*id));
            }
            for (a, b) in places {
                let range = a.min(b).min(text.len())..a.max(b).min(text.len());
                prop_assert_eq!(table.get(&text, range.clone()), words.get(&text[range]).copied());
            }
        }
    }
}
