//! One event's fields -> its place in the batch.
//!
//! Each field reader takes exactly one value off the bytes, right or wrong, so that a wrong one costs its event only.

use super::batch::{Batch, ExtraRecord, ExtraValue, Fields, Mark, Record, Span, SpecKind};
use super::decode::DecodeError;
use super::msgpack::{Reader, Value};
use super::scalar::{
    Read, Wrong, read_hash, read_i64, read_key, read_len, read_optional, read_str, read_u32,
};
use crate::Tier;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Stored,
    Removed,
    Cleared,
}

pub(super) fn tag(name: &[u8]) -> Option<Tag> {
    match name {
        b"BlockStored" => Some(Tag::Stored),
        b"BlockRemoved" => Some(Tag::Removed),
        b"AllBlocksCleared" => Some(Tag::Cleared),
        _ => None,
    }
}

#[derive(Clone, Copy)]
enum Field {
    Hashes,
    Parent,
    Tokens,
    BlockSize,
    LoraId,
    Medium,
    /// vLLM's adapter name; in SGLang's arrays a map of further fields has this place.
    LoraName,
    ExtraKeys,
    Group,
    Kind,
    Window,
    Locality,
    Ownership,
    Session,
    CacheSalt,
    Lookahead,
}

const STORED: [Field; 11] = [
    Field::Hashes,
    Field::Parent,
    Field::Tokens,
    Field::BlockSize,
    Field::LoraId,
    Field::Medium,
    Field::LoraName,
    Field::ExtraKeys,
    Field::Group,
    Field::Kind,
    Field::Window,
];

const REMOVED: [Field; 3] = [Field::Hashes, Field::Medium, Field::Group];

fn field(name: &[u8]) -> Option<Field> {
    Some(match name {
        b"block_hashes" => Field::Hashes,
        b"parent_block_hash" => Field::Parent,
        b"token_ids" => Field::Tokens,
        b"block_size" => Field::BlockSize,
        b"lora_id" => Field::LoraId,
        b"medium" => Field::Medium,
        b"lora_name" => Field::LoraName,
        b"extra_keys" => Field::ExtraKeys,
        b"group_idx" => Field::Group,
        b"kv_cache_spec_kind" => Field::Kind,
        b"kv_cache_spec_sliding_window" => Field::Window,
        b"locality" => Field::Locality,
        b"ownership" => Field::Ownership,
        b"session_id" => Field::Session,
        b"cache_salt" => Field::CacheSalt,
        b"lookahead_token_ids" => Field::Lookahead,
        _ => return None,
    })
}

/// Decodes one event into the batch.
pub(super) struct Decoder<'b> {
    batch: &'b mut Batch,
    tag: Tag,
    fields: Fields,
    has_hashes: bool,
    /// Inside the map that has the adapter's place. It must not hold another one: nesting would cost stack.
    nested: bool,
    wrong: bool,
}

impl<'b> Decoder<'b> {
    pub fn new(batch: &'b mut Batch, tag: Tag) -> Self {
        let fields = Fields {
            tier: Some(Tier::Gpu),
            ..Fields::default()
        };
        Decoder {
            batch,
            tag,
            fields,
            has_hashes: false,
            nested: false,
            wrong: false,
        }
    }

    /// The fields after the tag of an array event.
    pub fn array(mut self, reader: &mut Reader<'_>, len: u32) -> Result<(), DecodeError> {
        let mark = self.batch.mark();
        let order: &[Field] = match self.tag {
            Tag::Stored => &STORED,
            Tag::Removed => &REMOVED,
            Tag::Cleared => &[],
        };
        for at in 0..len {
            match order.get(at as usize) {
                Some(field) => self.field(reader, *field)?,
                None => self.unknown_field(reader)?,
            }
        }
        self.finish(mark);
        Ok(())
    }

    /// The pairs of a map event.
    pub fn map(mut self, reader: &mut Reader<'_>, len: u32) -> Result<(), DecodeError> {
        let mark = self.batch.mark();
        self.named(reader, len)?;
        self.finish(mark);
        Ok(())
    }

    fn named(&mut self, reader: &mut Reader<'_>, len: u32) -> Result<(), DecodeError> {
        for _ in 0..len {
            match read_key(reader)? {
                Some(b"type") => reader.skip()?,
                Some(name) => match field(name) {
                    Some(field) => self.field(reader, field)?,
                    None => self.unknown_field(reader)?,
                },
                None => self.unknown_field(reader)?,
            }
        }
        Ok(())
    }

    fn unknown_field(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        reader.skip()?;
        self.batch.skipped.unknown_fields += 1;
        Ok(())
    }

    fn finish(self, mark: Mark) {
        let hashes_needed = self.tag != Tag::Cleared;
        if self.wrong || (hashes_needed && !self.has_hashes) {
            self.batch.rollback(mark);
            self.batch.skipped.malformed_events += 1;
            return;
        }
        self.batch.records.push(match self.tag {
            Tag::Stored => Record::Stored(self.fields),
            Tag::Removed => Record::Removed(self.fields),
            Tag::Cleared => Record::Cleared,
        });
    }

    fn field(&mut self, reader: &mut Reader<'_>, field: Field) -> Result<(), DecodeError> {
        let read = match field {
            Field::Hashes => self.hashes(reader)?.map(|span| {
                self.fields.hashes = span;
                self.has_hashes = true;
            }),
            Field::Parent => read_optional(reader, read_hash)?.map(|v| self.fields.parent = v),
            Field::Tokens => self.tokens(reader)?,
            Field::BlockSize => read_optional(reader, read_u32)?
                .map(|v| self.fields.block_size = v.unwrap_or_default()),
            Field::LoraId => read_optional(reader, read_i64)?.map(|v| self.fields.lora_id = v),
            Field::Medium => self.medium(reader)?,
            Field::LoraName => {
                let mut ahead = reader.clone();
                if let Value::Map(len) = ahead.read()?
                    && !self.nested
                {
                    *reader = ahead;
                    self.nested = true;
                    let named = self.named(reader, len);
                    self.nested = false;
                    return named;
                }
                self.text(reader)?.map(|v| self.fields.lora = v)
            }
            Field::ExtraKeys => self.extra_keys(reader)?,
            Field::Group => {
                read_optional(reader, read_u32)?.map(|v| self.fields.group = v.unwrap_or_default())
            }
            Field::Kind => {
                let name = read_optional(reader, read_str)?;
                name.map(|name| {
                    self.fields.kind = SpecKind::of_name(name.unwrap_or_default());
                })
            }
            Field::Window => {
                read_optional(reader, read_u32)?.map(|v| self.fields.sliding_window = v)
            }
            Field::Locality => read_optional(reader, read_str)?.map(|name| {
                self.fields.remote = name.is_some_and(|name| name.eq_ignore_ascii_case("REMOTE"));
            }),
            Field::Ownership => self.text(reader)?.map(|v| self.fields.ownership = v),
            Field::Session => self.text(reader)?.map(|v| self.fields.session = v),
            Field::CacheSalt => self.text(reader)?.map(|v| self.fields.cache_salt = v),
            Field::Lookahead => {
                let value = reader.read()?;
                reader.skip_rest(value)?;
                self.fields.lookahead = !matches!(value, Value::Nil | Value::Array(0));
                Ok(())
            }
        };
        self.wrong |= read.is_err();
        Ok(())
    }

    fn hashes(&mut self, reader: &mut Reader<'_>) -> Read<Span> {
        let start = self.batch.hashes.len();
        let value = reader.read()?;
        let Value::Array(len) = value else {
            reader.skip_rest(value)?;
            return Ok(Err(Wrong));
        };
        let mut wrong = false;
        for _ in 0..len {
            match read_hash(reader)? {
                Ok(hash) => self.batch.hashes.push(hash),
                Err(Wrong) => wrong = true,
            }
        }
        let span = Span::new(start, self.batch.hashes.len());
        Ok(if wrong { Err(Wrong) } else { Ok(span) })
    }

    /// A list of tokens, or of pairs of neighbours.
    fn tokens(&mut self, reader: &mut Reader<'_>) -> Read<()> {
        let start = self.batch.tokens.len();
        let Ok(len) = read_len(reader)? else {
            return Ok(Err(Wrong));
        };
        let mut wrong = false;
        for _ in 0..len {
            let mut token = reader.read()?;
            if let Value::Array(2) = token {
                token = reader.read()?;
                let second = reader.read()?;
                reader.skip_rest(second)?;
                self.fields.bigrams = true;
            }
            match token {
                Value::Unsigned(token) if u32::try_from(token).is_ok() => {
                    self.batch.tokens.push(token as u32);
                }
                other => {
                    reader.skip_rest(other)?;
                    wrong = true;
                }
            }
        }
        self.fields.tokens = Span::new(start, self.batch.tokens.len());
        Ok(if wrong { Err(Wrong) } else { Ok(()) })
    }

    fn medium(&mut self, reader: &mut Reader<'_>) -> Read<()> {
        let name = match read_optional(reader, read_str)? {
            Ok(name) => name.unwrap_or_default(),
            Err(Wrong) => return Ok(Err(Wrong)),
        };
        self.fields.medium = self.batch.put_str(name);
        self.fields.tier = Some(Tier::of_medium(name));
        Ok(Ok(()))
    }

    /// A string or nil, kept in the batch.
    fn text(&mut self, reader: &mut Reader<'_>) -> Read<Span> {
        let text = read_optional(reader, read_str)?;
        Ok(text.map(|text| self.batch.put_str(text.unwrap_or_default())))
    }

    /// One entry for each block: nil, or a list of keys.
    fn extra_keys(&mut self, reader: &mut Reader<'_>) -> Read<()> {
        let start = self.batch.extras.len();
        let Ok(blocks) = read_len(reader)? else {
            return Ok(Err(Wrong));
        };
        let mut wrong = false;
        for block in 0..blocks {
            match reader.read()? {
                Value::Nil => {}
                Value::Array(len) => {
                    for _ in 0..len {
                        match self.extra_key(reader)? {
                            Ok(Some(key)) => self.batch.extras.push(ExtraRecord { block, key }),
                            Ok(None) => {}
                            Err(Wrong) => wrong = true,
                        }
                    }
                }
                other => {
                    reader.skip_rest(other)?;
                    wrong = true;
                }
            }
        }
        self.fields.extras = Span::new(start, self.batch.extras.len());
        Ok(if wrong { Err(Wrong) } else { Ok(()) })
    }

    fn extra_key(&mut self, reader: &mut Reader<'_>) -> Read<Option<ExtraValue>> {
        Ok(Ok(Some(match reader.read()? {
            Value::Nil => return Ok(Ok(None)),
            Value::Str(text) => match std::str::from_utf8(text) {
                Ok(text) => ExtraValue::Text(self.batch.put_str(text)),
                Err(_) => return Ok(Err(Wrong)),
            },
            Value::Bin(bytes) => ExtraValue::Digest(self.batch.put_raw(bytes)),
            Value::Array(2) => {
                let (identifier, offset) = (read_str(reader)?, read_i64(reader)?);
                match (identifier, offset) {
                    (Ok(identifier), Ok(offset)) => ExtraValue::Item {
                        identifier: self.batch.put_str(identifier),
                        offset,
                    },
                    _ => return Ok(Err(Wrong)),
                }
            }
            other => {
                reader.skip_rest(other)?;
                return Ok(Err(Wrong));
            }
        })))
    }
}
