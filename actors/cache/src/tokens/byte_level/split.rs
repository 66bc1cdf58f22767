//! How a pre-tokenizer cuts text into words, by an automaton.
//!
//! The patterns of the known models are regular but for their end, `\s+(?!\S)|\s+`: a run of white space without its last character
//! where something else follows. That end is a second pattern, `\s+`, and what it finds is cut afterwards.

use super::ascii::{Ascii, End};
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::NFA;
use regex_automata::util::pool::Pool;
use regex_automata::{Anchored, Input, MatchKind};
use std::collections::HashSet;
use std::ops::Range;

/// The end of a pattern that is no regular expression.
const SPACES: &str = r"|\s+(?!\S)|\s+";

type Caches = Pool<
    Cache,
    Box<dyn Fn() -> Cache + Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>,
>;

/// What becomes of text between two matches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Gaps {
    /// It is a word as well.
    Keep,
    /// It is left out.
    Drop,
}

/// One split of a pre-tokenizer.
#[derive(Debug)]
pub(super) struct Splitter {
    dfa: DFA,
    caches: Caches,
    ascii: Option<Ascii>,
    gaps: Gaps,
    spaces: Spaces,
}

/// What happens at a space between two ASCII letters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spaces {
    /// No match goes over it, or depends on what is behind it: left and right of it can be split each for itself.
    pub kept_apart: bool,
    /// A word ends before it, since every ASCII letter is in a match.
    pub words_end: bool,
}

impl Splitter {
    /// `None`: the pattern has something that is not known to mean the same here as to the tokenizers library.
    pub fn new(pattern: &str, gaps: Gaps) -> Option<Self> {
        let main = pattern.strip_suffix(SPACES);
        let regular = main.unwrap_or(pattern);
        if !is_common(regular) {
            return None;
        }
        let alone = NFA::new(regular).ok()?;
        if alone.has_empty() || !alone.look_set_any().is_empty() {
            return None;
        }
        let mut patterns = vec![regular];
        patterns.extend(main.map(|_| r"\s+"));
        let config = DFA::config()
            .match_kind(MatchKind::LeftmostFirst)
            .cache_capacity(4 << 20);
        let dfa = DFA::builder()
            .configure(config)
            .build_many(&patterns)
            .ok()?;
        let for_caches = dfa.clone();
        let caches = Pool::new(Box::new(move || for_caches.create_cache()) as Box<_>);
        let spaces = spaces(&dfa).unwrap_or_default();
        Some(Self {
            ascii: Ascii::new(&dfa),
            dfa,
            caches,
            gaps,
            spaces,
        })
    }

    /// What happens at spaces.
    pub const fn spaces(&self) -> Spaces {
        self.spaces
    }

    /// Calls `word` with each word of `text`, first to last. `None`: the automaton or `word` gave up.
    pub fn pieces(
        &self,
        text: &str,
        mut word: impl FnMut(Range<usize>) -> Option<()>,
    ) -> Option<()> {
        let mut cache = None;
        let (mut at, mut gap) = (0, 0);
        while at < text.len() {
            let table = self.ascii.as_ref();
            let found = match table.and_then(|table| table.find(text.as_bytes(), at)) {
                Some(found) => found,
                None => self.find(text, at, cache.get_or_insert_with(|| self.caches.get()))?,
            };
            let Some((mut end, main)) = found else {
                at += text.get(at..)?.chars().next()?.len_utf8();
                continue;
            };
            if gap < at && self.gaps == Gaps::Keep {
                word(gap..at)?;
            }
            if !main && end < text.len() {
                let last = text.get(at..end)?.chars().next_back()?.len_utf8();
                if end - last > at {
                    end -= last;
                }
            }
            word(at..end)?;
            (at, gap) = (end, end);
        }
        if gap < at && self.gaps == Gaps::Keep {
            word(gap..at)?;
        }
        Some(())
    }

    /// The match that begins at `at`, if one does. `None`: the automaton gave up.
    fn find(&self, text: &str, at: usize, cache: &mut Cache) -> Option<Option<End>> {
        let input = Input::new(text).range(at..).anchored(Anchored::Yes);
        let found = self.dfa.try_search_fwd(cache, &input).ok()?;
        Some(found.map(|found| (found.offset(), found.pattern().as_usize() == 0)))
    }
}

/// Looks at every state of the automaton: wherever a letter and a space lead on, something could match both. `None`: there are too many
/// states.
fn spaces(dfa: &DFA) -> Option<Spaces> {
    const MOST_STATES: usize = 20_000;
    let mut cache = dfa.create_cache();
    let input = Input::new("").anchored(Anchored::Yes);
    let start = dfa.start_state_forward(&mut cache, &input).ok()?;
    let bytes: Vec<u8> = dfa
        .byte_classes()
        .representatives(..)
        .filter_map(|unit| unit.as_u8())
        .collect();
    let letters: Vec<u8> = bytes_of(dfa, b'A'..=b'Z')
        .chain(bytes_of(dfa, b'a'..=b'z'))
        .collect();
    let mut next = |state: LazyStateID, byte: Option<u8>| {
        let found = match byte {
            Some(byte) => dfa.next_state(&mut cache, state, byte),
            None => dfa.next_eoi_state(&mut cache, state),
        };
        // Where the cache was emptied, the numbers of states mean nothing any more.
        found
            .ok()
            .filter(|id| !id.is_quit() && cache.clear_count() == 0)
    };
    let mut spaces = Spaces {
        kept_apart: true,
        words_end: true,
    };
    for letter in &letters {
        let state = next(start, Some(*letter))?;
        spaces.words_end &= next(state, None)?.is_match();
    }
    let (mut seen, mut queue) = (HashSet::from([start]), vec![start]);
    while let Some(state) = queue.pop() {
        for letter in &letters {
            let behind = next(state, Some(*letter))?;
            let space = match behind.is_dead() {
                true => behind,
                false => next(behind, Some(b' '))?,
            };
            if space.is_dead() {
                continue;
            }
            // What was matched before the space is told one byte later.
            for byte in &bytes {
                spaces.kept_apart &= next(space, Some(*byte))?.is_dead();
            }
            spaces.kept_apart &= !next(space, None)?.is_match();
        }
        for byte in &bytes {
            let id = next(state, Some(*byte))?;
            if !id.is_dead() && seen.insert(id) {
                queue.push(id);
            }
        }
        if seen.len() > MOST_STATES {
            return None;
        }
    }
    Some(spaces)
}

fn bytes_of(dfa: &DFA, range: std::ops::RangeInclusive<u8>) -> impl Iterator<Item = u8> {
    let units = dfa.byte_classes().representatives(range);
    units.filter_map(|unit| unit.as_u8())
}

/// Only what means the same to every regular expression engine that reads it: no possessive or lazy repetition, no group but plain ones and
/// those without case, no class in a class, and of escapes only white space, Unicode properties and punctuation.
fn is_common(pattern: &str) -> bool {
    let mut rest = pattern;
    let (mut class, mut repeated) = (false, false);
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let was_repeated = std::mem::take(&mut repeated);
        rest = after;
        match c {
            '\\' => {
                let Some(escaped) = after.chars().next() else {
                    return false;
                };
                if !matches!(escaped, 'p' | 's' | 'S' | 'r' | 'n' | 't')
                    && !escaped.is_ascii_punctuation()
                {
                    return false;
                }
                rest = &after[escaped.len_utf8()..];
                if escaped == 'p' {
                    // One kind of property's names: general categories in short.
                    let Some((name, behind)) =
                        rest.strip_prefix('{').and_then(|r| r.split_once('}'))
                    else {
                        return false;
                    };
                    if name.is_empty()
                        || name.len() > 2
                        || !name.bytes().all(|b| b.is_ascii_alphabetic())
                    {
                        return false;
                    }
                    rest = behind;
                }
            }
            '[' if class => return false,
            '[' => {
                class = true;
                rest = rest.strip_prefix('^').unwrap_or(rest);
                // A bracket that is first may be meant as itself.
                if rest.starts_with(']') {
                    return false;
                }
            }
            ']' if class => class = false,
            '&' | '-' | '~' if class && rest.starts_with(c) => return false,
            _ if class => {}
            '*' | '+' | '?' | '}' => {
                if was_repeated {
                    return false;
                }
                repeated = true;
            }
            '(' => match rest.strip_prefix("?i:").or(rest.strip_prefix("?:")) {
                Some(behind) => rest = behind,
                None if rest.starts_with('?') => return false,
                None => {}
            },
            '^' | '$' | '.' => return false,
            _ => {}
        }
    }
    !class
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
    use tokenizers::tokenizer::SplitDelimiterBehavior;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    const PATTERNS: [&str; 7] = [
        super::super::GPT2,
        // Llama 3, Qwen 2, o200k, DeepSeek's three.
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\p{N}{1,3}",
        "[一-龥\u{3040}-ゟ゠-ヿ]+",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
    ];

    /// Each pattern here and in the tokenizers library, made once.
    static SPLITS: LazyLock<Vec<(Splitter, Split)>> = LazyLock::new(|| {
        let both = |pattern: &&str| {
            [Gaps::Keep, Gaps::Drop].map(|gaps| {
                let (behavior, invert) = match gaps {
                    Gaps::Keep => (SplitDelimiterBehavior::Isolated, false),
                    Gaps::Drop => (SplitDelimiterBehavior::Removed, true),
                };
                let theirs = SplitPattern::Regex((*pattern).to_owned());
                let theirs = Split::new(theirs, behavior, invert).unwrap();
                (Splitter::new(pattern, gaps).expect(pattern), theirs)
            })
        };
        PATTERNS.iter().flat_map(both).collect()
    });

    /// The words as the tokenizers library cuts them.
    fn reference(split: &Split, text: &str) -> Vec<Range<usize>> {
        let mut cut = PreTokenizedString::from(text);
        split.pre_tokenize(&mut cut).unwrap();
        let pieces = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let ranges = pieces.into_iter().map(|(_, (start, end), _)| start..end);
        ranges.filter(|range| !range.is_empty()).collect()
    }

    fn ours(splitter: &Splitter, text: &str) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        splitter
            .pieces(text, |range| {
                out.push(range);
                Some(())
            })
            .unwrap();
        out
    }

    #[test]
    fn what_goes_over_spaces_is_known() {
        let of = |pattern: &str| Splitter::new(pattern, Gaps::Keep).unwrap().spaces();
        for (i, pattern) in PATTERNS.iter().enumerate() {
            assert!(of(pattern).kept_apart, "{pattern}");
            assert_eq!(of(pattern).words_end, ![4, 5].contains(&i), "{pattern}");
        }
        for pattern in [
            r"[a-z ]+",
            r"\p{L}+ \p{L}+|\p{L}+",
            r"x|ab c d|[a-zA-Z]",
            r"a \p{N}|[a-zA-Z]+",
        ] {
            assert!(!of(pattern).kept_apart, "{pattern}");
        }
        assert!(!of(r"[a-y]+|[A-Z]").words_end);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn as_the_library_splits(
            text in prop::collection::vec(prop_oneof![
                3 => "[a-zA-Z]{1,6}",
                2 => prop::sample::select(vec![" ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "'s", "'LL", "'ſ", "12345", "½", "é", "e\u{301}", "你好", "か", "😀", "\u{0}", "\u{200d}", "/", "ǅ", "ʰ"]).prop_map(str::to_owned),
                2 => "[[:punct:]]{1,4}",
                1 => "\\PC{0,6}",
                1 => any::<String>(),
            ], 0..16).prop_map(|pieces| pieces.concat()),
        ) {
            for (splitter, split) in SPLITS.iter() {
                prop_assert!(splitter.ascii.is_some());
                prop_assert_eq!(ours(splitter, &text), reference(split, &text), "{:?}", split.pattern);
            }
        }
    }

    #[test]
    fn patterns_that_may_mean_something_else_are_left_alone() {
        for pattern in [
            r"\p{L}++|\s+",
            r"a?+",
            r"a*?",
            r"a{2}+",
            r"\s+(?!\S)",
            r"(?<!a)b",
            r"(?>a)",
            r"(?P<n>a)",
            r"^a",
            r"a$",
            r"\bword\b",
            r"[a[b]]",
            r"[a&&b]",
            r"[a--b]",
            r"[]a]",
            r"[^]a]",
            r"\h",
            r"\K",
            r"a*",
            r"",
            r"\p{Script=Greek}",
            r"\pL",
            r".",
            r"(?x: a)",
            r"[a",
            r"\",
        ] {
            assert!(Splitter::new(pattern, Gaps::Keep).is_none(), "{pattern}");
        }
    }
}
