//! Single values, each taken off the bytes whole whether it is what it should be or not.

use super::decode::DecodeError;
use super::msgpack::{Reader, Value};

/// A value that cannot stand where it stands. It has been passed over.
pub(super) struct Wrong;

/// Outer error: the bytes are broken. Inner: this value is.
pub(super) type Read<T> = Result<Result<T, Wrong>, DecodeError>;

pub(super) fn read_optional<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Read<T>,
) -> Read<Option<T>> {
    let mut ahead = reader.clone();
    if ahead.read()? == Value::Nil {
        *reader = ahead;
        return Ok(Ok(None));
    }
    Ok(read(reader)?.map(Some))
}

/// The low 64 bits of a hash: integers of any width and sign, or the last eight bytes of a digest.
pub(super) fn read_hash(reader: &mut Reader<'_>) -> Read<u64> {
    Ok(match reader.read()? {
        Value::Unsigned(hash) => Ok(hash),
        Value::Negative(hash) => Ok(hash.cast_unsigned()),
        Value::Bin(digest) => match digest.last_chunk::<8>() {
            Some(low) => Ok(u64::from_be_bytes(*low)),
            None => Err(Wrong),
        },
        other => {
            reader.skip_rest(other)?;
            Err(Wrong)
        }
    })
}

/// The length of a list, whose items follow; nil is an empty one.
pub(super) fn read_len(reader: &mut Reader<'_>) -> Read<u32> {
    Ok(match reader.read()? {
        Value::Nil => Ok(0),
        Value::Array(len) => Ok(len),
        other => {
            reader.skip_rest(other)?;
            Err(Wrong)
        }
    })
}

pub(super) fn read_u32(reader: &mut Reader<'_>) -> Read<u32> {
    Ok(match reader.read()? {
        Value::Unsigned(value) => u32::try_from(value).map_err(|_| Wrong),
        other => {
            reader.skip_rest(other)?;
            Err(Wrong)
        }
    })
}

pub(super) fn read_i64(reader: &mut Reader<'_>) -> Read<i64> {
    Ok(match reader.read()? {
        Value::Unsigned(value) => i64::try_from(value).map_err(|_| Wrong),
        Value::Negative(value) => Ok(value),
        other => {
            reader.skip_rest(other)?;
            Err(Wrong)
        }
    })
}

pub(super) fn read_str<'a>(reader: &mut Reader<'a>) -> Read<&'a str> {
    Ok(match reader.read()? {
        Value::Str(text) => std::str::from_utf8(text).map_err(|_| Wrong),
        other => {
            reader.skip_rest(other)?;
            Err(Wrong)
        }
    })
}

/// A map key; `None` when it is no string.
pub(super) fn read_key<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, DecodeError> {
    match reader.read()? {
        Value::Str(key) => Ok(Some(key)),
        other => {
            reader.skip_rest(other)?;
            Ok(None)
        }
    }
}
