//! As much of gRPC framing and the protobuf wire format as routing needs: reading fields in place, without generated code.

use std::ops::Range;

/// A frame of a gRPC body: flag, length, message (gRPC over HTTP/2, "Length-Prefixed-Message").
pub const FRAME_HEADER: usize = 5;

/// What is wrong with a frame or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A compressed message cannot be looked into.
    #[error("compressed gRPC messages are not supported here")]
    Compressed,
    /// The frame is longer than the body, or the body does not begin with one.
    #[error("the gRPC frame is cut short")]
    Cut,
    /// Not protobuf.
    #[error("the gRPC message is malformed")]
    Malformed,
}

/// Where the message of the first frame of `body` lies. More frames may follow.
///
/// # Errors
/// [`WireError`].
pub fn first_message(body: &[u8]) -> Result<Range<usize>, WireError> {
    let (header, rest) = body
        .split_first_chunk::<FRAME_HEADER>()
        .ok_or(WireError::Cut)?;
    let [flag, length @ ..] = *header;
    if flag != 0 {
        return Err(WireError::Compressed);
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| WireError::Cut)?;
    if length > rest.len() {
        return Err(WireError::Cut);
    }
    Ok(FRAME_HEADER..FRAME_HEADER + length)
}

/// A field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Number and value of a varint.
    Varint(u32, u64),
    /// Number and place (in the buffer that was given) of a string, a message or a packed list.
    Bytes(u32, Range<usize>),
    /// A fixed-size field, skipped.
    Fixed(u32),
}

/// The fields of the message that lies at `at` in `buffer`. Ends after the first error.
pub fn fields(buffer: &[u8], at: Range<usize>) -> Fields<'_> {
    Fields {
        buffer: buffer.get(..at.end).unwrap_or_default(),
        at: at.start,
        failed: at.end > buffer.len(),
    }
}

/// See [`fields`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    buffer: &'a [u8],
    at: usize,
    failed: bool,
}

impl Fields<'_> {
    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.buffer.get(self.at).ok_or(WireError::Malformed)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::Malformed)
    }

    fn skip(&mut self, length: u64) -> Result<Range<usize>, WireError> {
        let end = usize::try_from(length)
            .ok()
            .and_then(|length| self.at.checked_add(length))
            .filter(|end| *end <= self.buffer.len())
            .ok_or(WireError::Malformed)?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn field(&mut self) -> Result<Field, WireError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError::Malformed)?;
        Ok(match tag & 7 {
            0 => Field::Varint(number, self.varint()?),
            2 => {
                let length = self.varint()?;
                Field::Bytes(number, self.skip(length)?)
            }
            wire @ (1 | 5) => {
                self.skip(if wire == 1 { 8 } else { 4 })?;
                Field::Fixed(number)
            }
            _ => return Err(WireError::Malformed),
        })
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            self.failed = false;
            self.at = self.buffer.len();
            return Some(Err(WireError::Malformed));
        }
        if self.at >= self.buffer.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.buffer.len();
        }
        Some(field)
    }
}

/// How many varints a packed list holds: each ends with a byte that has its top bit clear.
pub fn packed_len(list: &[u8]) -> u64 {
    list.iter().filter(|byte| **byte < 0x80).count() as u64
}

/// Writing, for tests and for those who make messages.
pub mod write {
    /// Appends a varint.
    pub fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    /// Appends a varint field.
    pub fn number(out: &mut Vec<u8>, field: u32, value: u64) {
        varint(out, u64::from(field) << 3);
        varint(out, value);
    }

    /// Appends a string, message or packed list.
    pub fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
        varint(out, u64::from(field) << 3 | 2);
        varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }

    /// A frame around `message`, not compressed.
    pub fn frame(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(
            &u32::try_from(message.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        out.extend_from_slice(message);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_checked() {
        let body = write::frame(b"abc");
        assert_eq!(first_message(&body), Ok(5..8));
        assert_eq!(first_message(&body[..7]), Err(WireError::Cut));
        assert_eq!(first_message(b""), Err(WireError::Cut));
        assert_eq!(first_message(&[1, 0, 0, 0, 0]), Err(WireError::Compressed));
        assert_eq!(first_message(&[0, 0, 0, 0, 0]), Ok(5..5));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::vec((1u32..5000, any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..10)) {
            let mut message = Vec::new();
            let mut expected = Vec::new();
            for (number, value, text) in &values {
                write::number(&mut message, *number, *value);
                expected.push(Field::Varint(*number, *value));
                write::bytes(&mut message, *number, text);
                expected.push(Field::Bytes(*number, message.len() - text.len()..message.len()));
            }
            let read: Result<Vec<_>, _> = fields(&message, 0..message.len()).collect();
            prop_assert_eq!(read, Ok(expected));
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200), end in 0usize..300) {
            let _ = first_message(&bytes);
            let read: Vec<_> = fields(&bytes, 0..end).collect();
            prop_assert!(read.iter().rev().skip(1).all(Result::is_ok));
        }
    }
}
