//! A MessagePack reader over borrowed bytes: no allocation, no recursion, every length checked against what is there.
//!
//! Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>

/// The bytes are no MessagePack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// They end inside a value.
    Truncated,
    /// A byte that begins no value (0xc1), and where.
    Reserved(usize),
}

/// The head of a value. The elements of arrays and maps follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Bool,
    Unsigned(u64),
    /// Always below zero.
    Negative(i64),
    Float(f64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    /// Number of elements.
    Array(u32),
    /// Number of pairs.
    Map(u32),
    Ext,
}

#[derive(Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Bytes that follow.
    pub fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).ok_or(Malformed::Truncated)?;
        let part = self.bytes.get(self.at..end).ok_or(Malformed::Truncated)?;
        self.at = end;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed::Truncated)
    }

    fn length(&mut self, width: u8) -> Result<u32, Malformed> {
        Ok(match width {
            1 => u32::from(u8::from_be_bytes(self.array()?)),
            2 => u32::from(u16::from_be_bytes(self.array()?)),
            _ => u32::from_be_bytes(self.array()?),
        })
    }

    /// The head of the next value.
    pub fn read(&mut self) -> Result<Value<'a>, Malformed> {
        let at = self.at;
        let [first] = self.array()?;
        let signed = |value: i64| match u64::try_from(value) {
            Ok(value) => Value::Unsigned(value),
            Err(_) => Value::Negative(value),
        };
        Ok(match first {
            0x00..=0x7f => Value::Unsigned(u64::from(first)),
            0x80..=0x8f => Value::Map(u32::from(first & 0x0f)),
            0x90..=0x9f => Value::Array(u32::from(first & 0x0f)),
            0xa0..=0xbf => Value::Str(self.take(usize::from(first & 0x1f))?),
            0xc0 => Value::Nil,
            0xc1 => return Err(Malformed::Reserved(at)),
            0xc2 | 0xc3 => Value::Bool,
            0xc4..=0xc6 => {
                let len = self.length(1 << (first - 0xc4))?;
                Value::Bin(self.take(len as usize)?)
            }
            0xc7..=0xc9 => {
                let len = self.length(1 << (first - 0xc7))?;
                self.take(len as usize + 1)?;
                Value::Ext
            }
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Value::Unsigned(u64::from(u8::from_be_bytes(self.array()?))),
            0xcd => Value::Unsigned(u64::from(u16::from_be_bytes(self.array()?))),
            0xce => Value::Unsigned(u64::from(u32::from_be_bytes(self.array()?))),
            0xcf => Value::Unsigned(u64::from_be_bytes(self.array()?)),
            0xd0 => signed(i64::from(i8::from_be_bytes(self.array()?))),
            0xd1 => signed(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => signed(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => signed(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => {
                self.take((1 << (first - 0xd4)) + 1)?;
                Value::Ext
            }
            0xd9..=0xdb => {
                let len = self.length(1 << (first - 0xd9))?;
                Value::Str(self.take(len as usize)?)
            }
            0xdc => Value::Array(self.length(2)?),
            0xdd => Value::Array(self.length(4)?),
            0xde => Value::Map(self.length(2)?),
            0xdf => Value::Map(self.length(4)?),
            0xe0..=0xff => Value::Negative(i64::from(i8::from_be_bytes([first]))),
        })
    }

    /// Passes over what follows the head `value`.
    pub fn skip_rest(&mut self, value: Value<'a>) -> Result<(), Malformed> {
        // Each pending value takes a byte at least, so a lying count ends with the bytes.
        let mut pending = children(value);
        while pending > 0 {
            let value = self.read()?;
            pending = (pending - 1).saturating_add(children(value));
        }
        Ok(())
    }

    /// Passes over one whole value.
    pub fn skip(&mut self) -> Result<(), Malformed> {
        let value = self.read()?;
        self.skip_rest(value)
    }
}

fn children(value: Value<'_>) -> u64 {
    match value {
        Value::Array(len) => u64::from(len),
        Value::Map(len) => u64::from(len) * 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width() {
        let read = |bytes: &[u8]| Reader::new(bytes).read().map(|value| format!("{value:?}"));
        assert_eq!(read(&[0xcd, 1, 44]), Ok("Unsigned(300)".into()));
        assert_eq!(read(&[0xd0, 0x80]), Ok("Negative(-128)".into()));
        assert_eq!(read(&[0xd1, 0, 7]), Ok("Unsigned(7)".into()));
        assert_eq!(read(&[0xde, 0, 12]), Ok("Map(12)".into()));
        assert_eq!(read(&[0xd9, 1, b'x']), Ok("Str([120])".into()));
        assert_eq!(read(&[0xc1]), Err(Malformed::Reserved(0)));
        assert_eq!(
            read(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1]),
            Err(Malformed::Truncated)
        );
        assert_eq!(read(&[0xd8]), Err(Malformed::Truncated));
    }

    #[test]
    fn deep_nesting_and_lying_counts_end_with_the_bytes() {
        let deep = vec![0x91; 1 << 20];
        assert_eq!(Reader::new(&deep).skip(), Err(Malformed::Truncated));
        let lying = [0xdf, 0xff, 0xff, 0xff, 0xff, 1, 2];
        assert_eq!(Reader::new(&lying).skip(), Err(Malformed::Truncated));
    }
}
