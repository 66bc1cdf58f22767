//! Payload of an event message of vLLM or SGLang -> [`Batch`].
//!
//! A batch is `[timestamp, events, rank?]` or a map with those names. An event is an array with its tag first, a map with
//! the key `type`, or either of them once more inside a `bin`. Array fields are known by their place, map fields by name.

use super::batch::Batch;
use super::event::{Decoder, Tag, tag};
use super::msgpack::{Malformed, Reader, Value};
use super::scalar::{read_key, read_u32};

/// Longest payload that is looked at, in bytes. An engine's largest batches have a few megabytes.
pub const MAX_PAYLOAD: usize = 16 << 20;

/// Why a payload has no events. The consumer has lost a batch and must treat it as a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends inside a value.
    #[error("the payload ends inside a value")]
    Truncated,
    /// It is no MessagePack.
    #[error("byte {0} of the payload begins no MessagePack value")]
    NotMessagePack(usize),
    /// It is MessagePack, and no batch of events.
    #[error("the payload is no batch of events")]
    NotABatch,
    /// It is longer than [`MAX_PAYLOAD`].
    #[error("the payload has {0} bytes")]
    TooLong(usize),
}

impl From<Malformed> for DecodeError {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Truncated => DecodeError::Truncated,
            Malformed::Reserved(at) => DecodeError::NotMessagePack(at),
        }
    }
}

/// Replaces the content of `batch` with the events of `payload`. After an error the batch is empty.
pub fn decode(payload: &[u8], batch: &mut Batch) -> Result<(), DecodeError> {
    batch.clear();
    if payload.len() > MAX_PAYLOAD {
        return Err(DecodeError::TooLong(payload.len()));
    }
    let mut reader = Reader::new(payload);
    let decoded = read_batch(&mut reader, batch).and_then(|()| match reader.remaining() {
        0 => Ok(()),
        _ => Err(DecodeError::NotABatch),
    });
    if decoded.is_err() {
        batch.clear();
    }
    decoded
}

fn read_batch(reader: &mut Reader<'_>, batch: &mut Batch) -> Result<(), DecodeError> {
    match reader.read()? {
        Value::Array(len) if len >= 2 => {
            read_timestamp(reader, batch)?;
            read_events(reader, batch)?;
            for at in 2..len {
                if at == 2 {
                    batch.rank = read_u32(reader)?.ok();
                } else {
                    batch.skipped.unknown_fields += 1;
                    reader.skip()?;
                }
            }
            Ok(())
        }
        Value::Map(len) => {
            let mut found = false;
            for _ in 0..len {
                match read_key(reader)? {
                    Some(b"ts") => read_timestamp(reader, batch)?,
                    Some(b"events") if !found => {
                        found = true;
                        read_events(reader, batch)?;
                    }
                    Some(b"data_parallel_rank" | b"attn_dp_rank") => {
                        batch.rank = read_u32(reader)?.ok();
                    }
                    _ => {
                        batch.skipped.unknown_fields += 1;
                        reader.skip()?;
                    }
                }
            }
            if found {
                Ok(())
            } else {
                Err(DecodeError::NotABatch)
            }
        }
        _ => Err(DecodeError::NotABatch),
    }
}

fn read_timestamp(reader: &mut Reader<'_>, batch: &mut Batch) -> Result<(), DecodeError> {
    match reader.read()? {
        Value::Float(seconds) if seconds.is_finite() => batch.timestamp = seconds,
        Value::Unsigned(seconds) => batch.timestamp = seconds as f64,
        other => reader.skip_rest(other)?,
    }
    Ok(())
}

fn read_events(reader: &mut Reader<'_>, batch: &mut Batch) -> Result<(), DecodeError> {
    match reader.read()? {
        Value::Nil => Ok(()),
        Value::Array(len) => {
            for _ in 0..len {
                read_event(reader, batch, false)?;
            }
            Ok(())
        }
        _ => Err(DecodeError::NotABatch),
    }
}

fn read_event(
    reader: &mut Reader<'_>,
    batch: &mut Batch,
    wrapped: bool,
) -> Result<(), DecodeError> {
    match reader.read()? {
        Value::Array(len) if len > 0 => {
            let name = reader.read()?;
            let Value::Str(text) = name else {
                reader.skip_rest(name)?;
                return unknown(reader, batch, u64::from(len) - 1);
            };
            match tag(text) {
                Some(tag) => Decoder::new(batch, tag).array(reader, len - 1),
                None => unknown(reader, batch, u64::from(len) - 1),
            }
        }
        Value::Map(len) => match map_tag(reader, len)? {
            Some(tag) => Decoder::new(batch, tag).map(reader, len),
            None => unknown(reader, batch, u64::from(len) * 2),
        },
        Value::Bin(inner) if !wrapped => {
            // Broken inside its own bytes, so what follows in the batch is still whole.
            let mark = batch.mark();
            let skipped = batch.skipped;
            let mut reader = Reader::new(inner);
            if read_event(&mut reader, batch, true).is_err() {
                batch.rollback(mark);
                batch.skipped = skipped;
                batch.skipped.malformed_events += 1;
            }
            Ok(())
        }
        other => {
            reader.skip_rest(other)?;
            batch.skipped.unknown_events += 1;
            Ok(())
        }
    }
}

fn unknown(reader: &mut Reader<'_>, batch: &mut Batch, values: u64) -> Result<(), DecodeError> {
    for _ in 0..values {
        reader.skip()?;
    }
    batch.skipped.unknown_events += 1;
    Ok(())
}

/// The tag of a map event, wherever its key stands. Does not move the reader.
fn map_tag(reader: &Reader<'_>, len: u32) -> Result<Option<Tag>, DecodeError> {
    let mut reader = reader.clone();
    for _ in 0..len {
        if read_key(&mut reader)? == Some(b"type") {
            return Ok(match reader.read()? {
                Value::Str(name) => tag(name),
                _ => None,
            });
        }
        reader.skip()?;
    }
    Ok(None)
}
