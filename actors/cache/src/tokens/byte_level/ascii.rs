//! A split's automaton as far as ASCII leads, as a table: a step is one look into it. Where a word is cut short by another character, the
//! automaton itself has to say how it goes on.

use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::DFA;
use regex_automata::{Anchored, Input};
use std::collections::HashMap;

/// An automaton with more states than this is left as it is.
const MOST_STATES: usize = 256;
/// Bits of an entry: a match of the first pattern, or of another one, ends behind the byte.
const FIRST: u16 = 1 << 15;
const OTHER: u16 = 1 << 14;
const STATE: u16 = OTHER - 1;
/// Row of the state in which nothing can match any more, and of the first one.
const DEAD: u16 = 0;
const START: u16 = 1;

/// Where a match ends, and whether it is of the first pattern.
pub(super) type End = (usize, bool);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ascii {
    /// By state and byte: the next state, and what ends there.
    rows: Vec<[u16; 128]>,
}

impl Ascii {
    /// Of an automaton that does not look at what stands around a match. `None`: it is too large.
    pub fn new(dfa: &DFA) -> Option<Self> {
        let mut cache = dfa.create_cache();
        let input = Input::new("").anchored(Anchored::Yes);
        let start = dfa.start_state_forward(&mut cache, &input).ok()?;
        let mut states = vec![start];
        let mut entries = HashMap::from([(start, START)]);
        let mut rows = vec![[DEAD; 128]];
        let mut at = 0;
        while let Some(state) = states.get(at).copied() {
            let mut row = [DEAD; 128];
            for (byte, entry) in (0..).zip(&mut row) {
                let next = dfa.next_state(&mut cache, state, byte).ok()?;
                if let Some(known) = entries.get(&next) {
                    *entry = *known;
                    continue;
                }
                let ends = dfa.next_eoi_state(&mut cache, next).ok()?;
                let flag = match ends.is_match() {
                    false => 0,
                    true if dfa.match_pattern(&cache, ends, 0).as_usize() == 0 => FIRST,
                    true => OTHER,
                };
                *entry = match flag == 0 && leads_nowhere(dfa, &mut cache, next)? {
                    true => DEAD,
                    false => {
                        states.push(next);
                        u16::try_from(states.len()).ok()? | flag
                    }
                };
                entries.insert(next, *entry);
            }
            rows.push(row);
            at += 1;
            // Where the cache was emptied, the numbers of states mean nothing any more.
            if states.len() >= MOST_STATES || cache.clear_count() > 0 {
                return None;
            }
        }
        Some(Self { rows })
    }

    /// The match that begins at `at`, if one does. `None`: another character than ASCII would have to be looked at.
    pub fn find(&self, text: &[u8], at: usize) -> Option<Option<End>> {
        let (mut row, mut found) = (self.rows.get(usize::from(START))?, None);
        for (byte, end) in text.get(at..)?.iter().zip(at + 1..) {
            let entry = *row.get(usize::from(*byte))?;
            if entry & (FIRST | OTHER) != 0 {
                found = Some((end, entry & FIRST != 0));
            }
            if entry & STATE == DEAD {
                break;
            }
            row = self.rows.get(usize::from(entry & STATE))?;
        }
        Some(found)
    }
}

/// Whatever comes, nothing more matches.
fn leads_nowhere(
    dfa: &DFA,
    cache: &mut regex_automata::hybrid::dfa::Cache,
    state: LazyStateID,
) -> Option<bool> {
    if state.is_quit() {
        return None;
    }
    for byte in 0..=255 {
        if state.is_dead() {
            break;
        }
        if !dfa.next_state(cache, state, byte).ok()?.is_dead() {
            return Some(false);
        }
    }
    Some(true)
}
