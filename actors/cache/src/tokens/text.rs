//! Text to token ids, and only what is new of it.
//!
//! Special tokens cut a text before anything else looks at it: what stands between two of them is normalised, split and merged for
//! itself. So the ids of a prompt are the ids of its pieces one after the other, and a piece that was seen before need not
//! be tokenized again: of a conversation's next turn that is all but the new messages. Where a tokenizer has added tokens that take
//! white space or look at their neighbours, this does not hold, and every text is tokenized as a whole.

use super::TokenError;
use super::byte_level::ByteLevel;
use super::segments::Segments;
use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Tokenizer};

/// A tokenizer with what it remembers.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// The same without its bookkeeping, where it is of that kind.
    byte_level: Option<ByteLevel>,
    cuts: Option<Cuts>,
    segments: Segments,
    /// What the post-processor puts around a text, where it is that simple.
    around: Option<(Vec<u32>, Vec<u32>)>,
}

/// The tokens at which a text may be cut.
#[derive(Debug)]
struct Cuts {
    finder: AhoCorasick,
    tokens: Vec<(String, u32)>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`; remembers at most about `cache_bytes` of pieces.
    ///
    /// # Errors
    /// [`TokenError::Tokenizer`] where it cannot be read.
    pub fn new(json: &[u8], cache_bytes: usize) -> Result<Self, TokenError> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(failed)?;
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
        let added = tokenizer.get_added_tokens_decoder();
        let added = added.iter().map(|(id, token)| (*id, token));
        let cuts = Cuts::new(added, &tokenizer);
        let around = around(&tokenizer);
        let byte_level = cuts
            .as_ref()
            .and_then(|_| ByteLevel::read(json, &tokenizer));
        Ok(Self {
            tokenizer,
            byte_level,
            cuts,
            segments: Segments::new(cache_bytes),
            around,
        })
    }

    /// Only what is new of a text is tokenized.
    pub fn is_incremental(&self) -> bool {
        self.cuts.is_some()
    }

    /// New text is tokenized here and not by the general library, which comes to the same ids more slowly.
    pub fn is_byte_level(&self) -> bool {
        self.byte_level.is_some()
    }

    /// Bytes that the remembered pieces take.
    pub fn cached_bytes(&self) -> usize {
        self.segments.bytes()
    }

    /// The id of a token of the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The ids of `text`. `special`: with what the model wants before and behind a text (a chat template writes that itself).
    ///
    /// # Errors
    /// [`TokenError::Tokenizer`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenError> {
        let Some(cuts) = &self.cuts else {
            return self.whole(text, special);
        };
        let (before, behind) = match (&self.around, special) {
            (_, false) => (&[][..], &[][..]),
            (Some((before, behind)), true) => (&before[..], &behind[..]),
            (None, true) => return self.whole(text, true),
        };
        let mut out = Vec::with_capacity(text.len() / 3 + before.len() + behind.len());
        out.extend_from_slice(before);
        for piece in cuts.pieces(text) {
            self.piece(&piece, &mut out)?;
            out.extend(piece.then);
        }
        out.extend_from_slice(behind);
        Ok(out)
    }

    /// Bytes of `text` that would have to be tokenized anew.
    pub fn new_bytes(&self, text: &str) -> usize {
        let Some(cuts) = &self.cuts else {
            return text.len();
        };
        let new = |piece: Piece<'_>| {
            let known = |text| self.segments.contains(text, piece.after.is_none());
            let new = self.parts(piece.text).filter(|part| !known(part));
            match known(piece.text) {
                true => 0,
                false => new.map(str::len).sum::<usize>(),
            }
        };
        cuts.pieces(text).map(new).sum()
    }

    /// A piece as it is remembered: long ones in parts, so that what begins like another one is not tokenized again.
    fn parts<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let (part, behind) = match &self.byte_level {
                Some(byte_level) => byte_level.cut(rest),
                None => (rest, ""),
            };
            rest = behind;
            (!part.is_empty()).then_some(part)
        })
    }

    /// The ids of `text` from the library, nothing remembered: what everything else must be equal to.
    ///
    /// # Errors
    /// [`TokenError::Tokenizer`].
    pub fn whole(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenError> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Puts the ids of a piece behind `out`. One in parts that are all known is remembered as a whole too, to be found by one look.
    fn piece(&self, piece: &Piece<'_>, out: &mut Vec<u32>) -> Result<(), TokenError> {
        let first = piece.after.is_none();
        if piece.text.is_empty() || self.segments.extend(piece.text, first, out) {
            return Ok(());
        }
        let (from, mut known) = (out.len(), true);
        for text in self.parts(piece.text) {
            let is_part = text.len() < piece.text.len();
            if !(is_part && self.segments.extend(text, first, out)) {
                self.part(&Piece { text, ..*piece }, out)?;
                known = false;
            }
        }
        if known {
            let ids = out.get(from..).unwrap_or_default();
            self.segments.insert(piece.text, first, ids);
        }
        Ok(())
    }

    /// Puts the ids of new text behind `out`, and remembers them.
    fn part(&self, piece: &Piece<'_>, out: &mut Vec<u32>) -> Result<(), TokenError> {
        let first = piece.after.is_none();
        let from = out.len();
        if let Some(byte_level) = &self.byte_level {
            if byte_level.encode(piece.text, out).is_some() {
                let ids = out.get(from..).unwrap_or_default();
                self.segments.insert(piece.text, first, ids);
                return Ok(());
            }
            out.truncate(from);
        }
        match piece.after {
            None => out.extend(self.whole(piece.text, false)?),
            // Some tokenizers treat the beginning of a text in another way: so the token before is there as well.
            Some((token, id)) => {
                let ids = self.whole(&[token, piece.text].concat(), false)?;
                match ids.split_first() {
                    Some((first, rest)) if *first == id => out.extend_from_slice(rest),
                    _ => return Err(TokenError::Tokenizer(format!("{token:?} is not one token"))),
                }
            }
        }
        let ids = out.get(from..).unwrap_or_default();
        self.segments.insert(piece.text, first, ids);
        Ok(())
    }
}

/// Text between two cuts.
struct Piece<'a> {
    text: &'a str,
    /// The token before it; none at the beginning.
    after: Option<(&'a str, u32)>,
    /// The token behind it; none at the end.
    then: Option<u32>,
}

impl Cuts {
    fn new<'t>(
        added: impl Iterator<Item = (u32, &'t AddedToken)>,
        tokenizer: &Tokenizer,
    ) -> Option<Self> {
        let mut tokens = Vec::new();
        for (id, token) in added {
            if token.lstrip || token.rstrip || token.single_word {
                return None;
            }
            if !token.normalized && !token.content.is_empty() {
                tokens.push((token.content.clone(), id));
            }
        }
        tokens.sort();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(content, _)| content))
            .ok()?;
        // What is taken for granted below.
        let alone = |(content, id): &(String, u32)| {
            let encoding = tokenizer.encode_fast(content.as_str(), false);
            encoding.is_ok_and(|encoding| encoding.get_ids() == [*id])
        };
        tokens.iter().all(alone).then_some(Self { finder, tokens })
    }

    fn pieces<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Piece<'a>> {
        let mut matches = self.finder.find_iter(text);
        let (mut at, mut after, mut done) = (0, None, false);
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            let found = matches.next().and_then(|found| {
                let (token, id) = self.tokens.get(found.pattern().as_usize())?;
                Some((found.start(), found.end(), token.as_str(), *id))
            });
            let end = found.map_or(text.len(), |(start, ..)| start);
            let piece = Piece {
                text: text.get(at..end).unwrap_or_default(),
                after,
                then: found.map(|(.., id)| id),
            };
            match found {
                Some((_, end, token, id)) => {
                    at = end;
                    after = Some((token, id));
                }
                None => done = true,
            }
            Some(piece)
        })
    }
}

/// What stands before and behind a text when the tokenizer adds its special tokens, if that does not depend on the text.
fn around(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let mut found: Option<(Vec<u32>, Vec<u32>)> = None;
    for text in ["a", "hello world 12"] {
        let plain = tokenizer.encode_fast(text, false).ok()?;
        let special = tokenizer.encode_fast(text, true).ok()?;
        let (plain, special) = (plain.get_ids(), special.get_ids());
        let more = special.len().checked_sub(plain.len())?;
        let before = (0..=more).find(|n| special.get(*n..n + plain.len()) == Some(plain))?;
        let ends = (
            special[..before].to_vec(),
            special[before + plain.len()..].to_vec(),
        );
        if found.as_ref().is_some_and(|found| *found != ends) {
            return None;
        }
        found = Some(ends);
    }
    found
}

fn failed(error: tokenizers::Error) -> TokenError {
    TokenError::Tokenizer(error.to_string())
}
