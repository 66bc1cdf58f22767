//! Byte-level BPE (GPT-2, Llama 3, Qwen, DeepSeek), text to ids without the bookkeeping of the general library.
//!
//! The library keeps for every character where it came from, and runs a backtracking matcher over the text: a router needs
//! neither. What is known here to be the same is done here, read from the same `tokenizer.json`: a list of regular splits, the byte alphabet, merges
//! in order of rank. Any other tokenizer is the library's alone: [`ByteLevel::read`] says so by `None`. Tests hold both against
//! each other.

mod ascii;
mod merges;
mod split;
mod words;

use aho_corasick::{AhoCorasick, MatchKind};
use merges::{Merges, Scratch};
use serde::Deserialize;
use split::{Gaps, Splitter};
use std::collections::HashMap;
use std::ops::Range;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper, Tokenizer};

/// What `ByteLevel` splits by when it splits by itself: GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Bytes of a text behind which it is cut, where it can be.
const CUT: usize = 1 << 10;

/// A tokenizer of this kind.
#[derive(Debug)]
pub(super) struct ByteLevel {
    normalizer: Option<NormalizerWrapper>,
    /// Normalising leaves ASCII as it is.
    ascii_is_normal: bool,
    /// Added tokens that are looked for in the normalised text.
    inner: Option<(AhoCorasick, Vec<u32>)>,
    splitters: Vec<Splitter>,
    merges: Merges,
    /// A text may be cut at a space between two ASCII letters: left and right of it have the ids that they have for themselves.
    spaces_cut: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Option<Typed>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizer>,
    model: Model,
}

#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
    Split {
        pattern: Pattern,
        behavior: String,
        #[serde(default)]
        invert: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    #[serde(other)]
    Other,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Model {
    r#type: String,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    fn halves(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Line(line) => line
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' ')),
        }
    }
}

impl ByteLevel {
    /// Reads a `tokenizer.json`, from which `library` was made; `None`: it is of another kind, or has something that is done
    /// otherwise here.
    pub fn read(json: &[u8], library: &Tokenizer) -> Option<Self> {
        let normalizer = library.get_normalizer();
        let file: File = serde_json::from_slice(json).ok()?;
        let model = &file.model;
        let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        let plain = model.r#type == "BPE"
            && model.dropout.is_none_or(|dropout| dropout == 0.0)
            && empty(&model.continuing_subword_prefix)
            && empty(&model.end_of_word_suffix);
        if !plain {
            return None;
        }
        let mut splitters = Vec::new();
        let mut byte_level = false;
        collect(file.pre_tokenizer?, &mut splitters, &mut byte_level)?;
        // The library gives added tokens that the vocabulary lacks ids of its own, whatever the file says.
        let added = library.get_added_tokens_decoder();
        let (inner, ids): (Vec<_>, Vec<_>) = added
            .iter()
            .filter(|(_, token)| token.normalized && !token.content.is_empty())
            .map(|(id, token)| (token.content.as_str(), *id))
            .unzip();
        // The library normalises these tokens as well, before it looks for them.
        if !byte_level || (!inner.is_empty() && normalizer.is_some()) {
            return None;
        }
        let inner = match inner.as_slice() {
            [] => None,
            inner => {
                let finder = AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(inner)
                    .ok()?;
                Some((finder, ids))
            }
        };
        let pairs: Option<Vec<_>> = model.merges.iter().map(Merge::halves).collect();
        let merges = Merges::new(&model.vocab, &pairs?, model.ignore_merges)?;
        let forms = ["NFC", "NFD", "NFKC", "NFKD"];
        let kind = file.normalizer.map(|normalizer| normalizer.r#type);
        let ascii_is_normal = kind.is_none_or(|kind| forms.contains(&kind.as_str()));
        let apart = splitters.iter().all(|split| split.spaces().kept_apart);
        let words_end = splitters
            .last()
            .is_some_and(|split| split.spaces().words_end);
        Some(Self {
            spaces_cut: apart && words_end && inner.is_none() && ascii_is_normal,
            ascii_is_normal,
            normalizer: normalizer.cloned(),
            inner,
            splitters,
            merges,
        })
    }

    /// Cuts a text, the same beginning always in the same places; the ids of the pieces one after the other are those of the text.
    pub fn cut<'a>(&self, text: &'a str) -> (&'a str, &'a str) {
        let bytes = text.as_bytes();
        let letter = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphabetic);
        let mut from = CUT;
        while let Some(space) = bytes.get(from..).filter(|_| self.spaces_cut) {
            let Some(space) = memchr::memchr(b' ', space) else {
                break;
            };
            let at = from + space;
            if letter(at - 1) && letter(at + 1) {
                return text.split_at(at);
            }
            from = at + 1;
        }
        (text, "")
    }

    /// Puts the ids of `text` behind `out`. `text` has no token in it that is looked for before it is normalised. `None`: it
    /// cannot be done here, and `out` may have a part of it.
    pub fn encode(&self, text: &str, out: &mut Vec<u32>) -> Option<()> {
        match &self.normalizer {
            Some(normalizer) if !(self.ascii_is_normal && text.is_ascii()) => {
                let mut normalized = NormalizedString::from(text);
                normalizer.normalize(&mut normalized).ok()?;
                self.normal(normalized.get(), out)
            }
            _ => self.normal(text, out),
        }
    }

    fn normal(&self, text: &str, out: &mut Vec<u32>) -> Option<()> {
        let mut scratch = Scratch::default();
        let Some((finder, ids)) = &self.inner else {
            return self.split(&self.splitters, text, 0..text.len(), &mut scratch, out);
        };
        let mut at = 0;
        for found in finder.find_iter(text) {
            self.split(&self.splitters, text, at..found.start(), &mut scratch, out)?;
            out.push(*ids.get(found.pattern().as_usize())?);
            at = found.end();
        }
        self.split(&self.splitters, text, at..text.len(), &mut scratch, out)
    }

    /// What each splitter leaves is the next one's text, for itself.
    fn split(
        &self,
        splitters: &[Splitter],
        text: &str,
        range: Range<usize>,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) -> Option<()> {
        match splitters.split_first() {
            _ if range.is_empty() => Some(()),
            None => {
                self.merges.word(text.as_bytes(), range, scratch, out);
                Some(())
            }
            Some((splitter, rest)) => {
                let text = text.get(range)?;
                splitter.pieces(text, |range| self.split(rest, text, range, scratch, out))
            }
        }
    }
}

/// The splits, in order. The step to bytes must be the last and must not add a space.
fn collect(step: PreTokenizer, splitters: &mut Vec<Splitter>, byte_level: &mut bool) -> Option<()> {
    if *byte_level {
        return None;
    }
    match step {
        PreTokenizer::Sequence { pretokenizers } => {
            for step in pretokenizers {
                collect(step, splitters, byte_level)?;
            }
        }
        PreTokenizer::Split {
            pattern: Pattern::Regex(pattern),
            behavior,
            invert,
        } => {
            let gaps = match (behavior.as_str(), invert) {
                ("Isolated", _) => Gaps::Keep,
                ("Removed", true) => Gaps::Drop,
                _ => return None,
            };
            splitters.push(Splitter::new(&pattern, gaps)?);
        }
        PreTokenizer::ByteLevel {
            add_prefix_space: false,
            use_regex,
        } => {
            if use_regex {
                splitters.push(Splitter::new(GPT2, Gaps::Keep)?);
            }
            *byte_level = true;
        }
        _ => return None,
    }
    Some(())
}
