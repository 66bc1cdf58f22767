//! The part of Python's pickle format (protocol 5) that vLLM's `sha256` and `xxhash` algorithms hash.
//!
//! CPython writes an object a second time as a reference to the first. Whether two equal strings are one object depends on
//! the engine's internals, so a triple in which one could repeat is refused; the constant tags are one object each. Opcodes:
//! `Lib/pickletools.py` of CPython.

use super::hasher::{Extra, ExtraForm};

/// The frame rules change at 64 KiB; no block comes near.
const MAX_FRAME: usize = 64 << 10;

/// An equal string could be the same object, or the triple is too long.
pub(super) struct Ambiguous;

struct Pickler<'a, 'o> {
    out: &'o mut Vec<u8>,
    /// Objects memoised so far.
    memoized: u32,
    /// Texts written, and whether each is one of the constant tags.
    texts: Vec<(&'a str, bool, u32)>,
}

/// A text, as the seed is.
pub(super) fn text(out: &mut Vec<u8>, text: &str) -> Result<(), Ambiguous> {
    framed(out, |pickler| pickler.text(text, false))
}

/// `(parent, tokens, extras or None)`.
pub(super) fn block(
    out: &mut Vec<u8>,
    parent: &[u8],
    tokens: &[u32],
    extras: &[Extra<'_>],
    form: ExtraForm,
) -> Result<(), Ambiguous> {
    framed(out, |pickler| {
        pickler.bytes(parent)?;
        pickler.tuple(tokens.len(), |pickler| {
            for token in tokens {
                pickler.int(i64::from(*token));
            }
            Ok(())
        })?;
        if extras.is_empty() {
            pickler.out.push(b'N');
        } else {
            pickler.tuple(extras.len(), |pickler| {
                extras
                    .iter()
                    .try_for_each(|extra| pickler.extra(extra, form))
            })?;
        }
        // The outer tuple of three.
        pickler.out.push(0x87);
        pickler.memoize();
        Ok(())
    })
}

fn framed<'a>(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Pickler<'a, '_>) -> Result<(), Ambiguous>,
) -> Result<(), Ambiguous> {
    out.extend([0x80, 5, 0x95]);
    let length_at = out.len();
    out.extend([0; 8]);
    let start = out.len();
    write(&mut Pickler {
        out,
        memoized: 0,
        texts: Vec::new(),
    })?;
    out.push(b'.');
    let length = out.len() - start;
    if length >= MAX_FRAME {
        return Err(Ambiguous);
    }
    if let Some(place) = out.get_mut(length_at..start) {
        place.copy_from_slice(&(length as u64).to_le_bytes());
    }
    Ok(())
}

impl<'a> Pickler<'a, '_> {
    fn memoize(&mut self) {
        self.out.push(0x94);
        self.memoized += 1;
    }

    fn tuple(
        &mut self,
        len: usize,
        items: impl FnOnce(&mut Self) -> Result<(), Ambiguous>,
    ) -> Result<(), Ambiguous> {
        if len > 3 {
            self.out.push(b'(');
        }
        items(self)?;
        match len {
            0 => {
                self.out.push(b')');
                return Ok(());
            }
            1 => self.out.push(0x85),
            2 => self.out.push(0x86),
            3 => self.out.push(0x87),
            _ => self.out.push(b't'),
        }
        self.memoize();
        Ok(())
    }

    fn int(&mut self, value: i64) {
        if let Ok(byte) = u8::try_from(value) {
            self.out.extend([b'K', byte]);
        } else if let Ok(short) = u16::try_from(value) {
            self.out.push(b'M');
            self.out.extend(short.to_le_bytes());
        } else if let Ok(int) = i32::try_from(value) {
            self.out.push(b'J');
            self.out.extend(int.to_le_bytes());
        } else {
            // LONG1: the shortest two's complement, little end first.
            let bytes = value.to_le_bytes();
            let fill = if value < 0 { 0xff } else { 0 };
            let mut len = bytes.len();
            while len > 1 && bytes[len - 1] == fill && (bytes[len - 2] ^ fill) & 0x80 == 0 {
                len -= 1;
            }
            self.out.extend([0x8a, len as u8]);
            self.out.extend(&bytes[..len]);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Ambiguous> {
        let len = u8::try_from(bytes.len()).map_err(|_| Ambiguous)?;
        self.out.extend([b'C', len]);
        self.out.extend(bytes);
        self.memoize();
        Ok(())
    }

    fn text(&mut self, text: &'a str, tag: bool) -> Result<(), Ambiguous> {
        if let Some((_, seen_tag, index)) = self.texts.iter().find(|(seen, ..)| *seen == text) {
            if !(tag && *seen_tag) {
                return Err(Ambiguous);
            }
            let index = u8::try_from(*index).map_err(|_| Ambiguous)?;
            self.out.extend([b'h', index]);
            return Ok(());
        }
        match u8::try_from(text.len()) {
            Ok(len) => self.out.extend([0x8c, len]),
            Err(_) => {
                let len = u32::try_from(text.len()).map_err(|_| Ambiguous)?;
                self.out.push(b'X');
                self.out.extend(len.to_le_bytes());
            }
        }
        self.out.extend(text.as_bytes());
        self.texts.push((text, tag, self.memoized));
        self.memoize();
        Ok(())
    }

    fn extra(&mut self, extra: &Extra<'a>, form: ExtraForm) -> Result<(), Ambiguous> {
        let tagged = form == ExtraForm::Tagged;
        let fields = match extra {
            Extra::Lora { .. } | Extra::Item { .. } => 2,
            Extra::Salt(_) | Extra::Embeds(_) => 1,
        } + usize::from(tagged);
        let alone = !tagged && !matches!(extra, Extra::Item { .. });
        let write = |pickler: &mut Self| {
            if tagged {
                pickler.text(extra.tag(), true)?;
            }
            match extra {
                Extra::Lora { name, path } => {
                    pickler.text(name, false)?;
                    if tagged {
                        pickler.text(path, false)?;
                    }
                    Ok(())
                }
                Extra::Item { identifier, offset } => {
                    pickler.text(identifier, false)?;
                    pickler.int(*offset);
                    Ok(())
                }
                Extra::Salt(salt) => pickler.text(salt, false),
                Extra::Embeds(digest) => pickler.bytes(digest),
            }
        };
        if alone {
            write(self)
        } else {
            self.tuple(fields, write)
        }
    }
}
