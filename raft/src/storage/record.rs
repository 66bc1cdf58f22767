//! Keys and values of the durable store: every value carries its schema and a checksum that covers its key, so that a flipped
//! bit, a misplaced record or one from a newer version is noticed before it is used.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::peer::v1 as peer;

use crate::{types::Entry, wire};

/// Newest version of the record layout that this build reads and the one it writes.
pub(crate) const SCHEMA: u16 = 1;

/// Longest piece of a value. sled keeps values above a quarter of its 512 KiB segments in files that it never syncs; 48 KiB
/// stays far below that and lets several records share a segment.
pub(crate) const MAX_CHUNK: usize = 48 * 1024;

/// schema (2), number of pieces (2), CRC-32 of key, schema, pieces and payload (4); little-endian.
const HEADER: usize = 8;

/// A record that cannot be used. The caller adds the file and the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BadRecord {
    #[error("record {key}: checksum mismatch")]
    Checksum { key: String },
    #[error("record {key}: too short")]
    Short { key: String },
    #[error("record {key} has schema {found}, this version reads up to {SCHEMA}")]
    Newer { key: String, found: u16 },
    #[error("record {key}: {why}")]
    Malformed { key: String, why: String },
    #[error("log entry {index} of group {group}: {why}")]
    Log {
        group: String,
        index: u64,
        why: String,
    },
}

/// What a key names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// One piece of a log entry.
    Log {
        group: String,
        index: u64,
        piece: u16,
    },
    /// A single value: `vote`, `committed`, `purged` of a group, or `identity` of the node (group "").
    Meta { group: String, name: String },
}

impl Key {
    pub(crate) fn log(group: &str, index: u64, piece: u16) -> Vec<u8> {
        let mut key = Vec::with_capacity(group.len() + 12);
        key.push(b'l');
        key.push(u8::try_from(group.len()).unwrap_or(u8::MAX));
        key.extend_from_slice(group.as_bytes());
        // Big-endian: the order of the keys is the order of the log.
        key.extend_from_slice(&index.to_be_bytes());
        key.extend_from_slice(&piece.to_be_bytes());
        key
    }

    pub(crate) fn meta(group: &str, name: &str) -> Vec<u8> {
        let mut key = Vec::with_capacity(group.len() + name.len() + 2);
        key.push(b'm');
        key.push(u8::try_from(group.len()).unwrap_or(u8::MAX));
        key.extend_from_slice(group.as_bytes());
        key.extend_from_slice(name.as_bytes());
        key
    }

    pub(crate) fn parse(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        let (len, rest) = rest.split_first()?;
        let (group, rest) = rest.split_at_checked(usize::from(*len))?;
        let group = String::from_utf8(group.to_vec()).ok()?;
        match kind {
            b'l' => {
                let (index, piece) = rest.split_at_checked(8)?;
                Some(Self::Log {
                    group,
                    index: u64::from_be_bytes(index.try_into().ok()?),
                    piece: u16::from_be_bytes(piece.try_into().ok()?),
                })
            }
            b'm' => Some(Self::Meta {
                group,
                name: String::from_utf8(rest.to_vec()).ok()?,
            }),
            _ => None,
        }
    }
}

/// A key for people.
pub(crate) fn show_key(key: &[u8]) -> String {
    match Key::parse(key) {
        Some(Key::Log {
            group,
            index,
            piece,
        }) => format!("{group}/log/{index}.{piece}"),
        Some(Key::Meta { group, name }) if group.is_empty() => name,
        Some(Key::Meta { group, name }) => format!("{group}/{name}"),
        None => key.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn checksum(key: &[u8], schema: u16, pieces: u16, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(&schema.to_le_bytes());
    crc.update(&pieces.to_le_bytes());
    crc.update(payload);
    crc.finalize()
}

/// Wraps one piece.
pub(crate) fn seal(key: &[u8], pieces: u16, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + payload.len());
    value.extend_from_slice(&SCHEMA.to_le_bytes());
    value.extend_from_slice(&pieces.to_le_bytes());
    value.extend_from_slice(&checksum(key, SCHEMA, pieces, payload).to_le_bytes());
    value.extend_from_slice(payload);
    value
}

/// Checks one piece and returns the number of pieces of its record and its payload.
pub(crate) fn open<'v>(key: &[u8], value: &'v [u8]) -> Result<(u16, &'v [u8]), BadRecord> {
    let short = || BadRecord::Short { key: show_key(key) };
    let (schema, rest) = value.split_first_chunk::<2>().ok_or_else(short)?;
    let (pieces, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (crc, payload) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (schema, pieces) = (u16::from_le_bytes(*schema), u16::from_le_bytes(*pieces));
    if checksum(key, schema, pieces, payload) != u32::from_le_bytes(*crc) {
        return Err(BadRecord::Checksum { key: show_key(key) });
    }
    if schema > SCHEMA {
        return Err(BadRecord::Newer {
            key: show_key(key),
            found: schema,
        });
    }
    Ok((pieces, payload))
}

/// A log entry as key-value pairs; all but very large entries are one pair.
pub(crate) fn encode_entry(group: &str, entry: &Entry) -> Vec<(Vec<u8>, Vec<u8>)> {
    let bytes = wire::entry(entry).encode_to_vec();
    let pieces = u16::try_from(bytes.len().div_ceil(MAX_CHUNK).max(1)).unwrap_or(u16::MAX);
    (0..pieces)
        .map(|piece| {
            let from = usize::from(piece) * MAX_CHUNK;
            let upto = (from + MAX_CHUNK).min(bytes.len());
            let key = Key::log(group, entry.log_id.index, piece);
            let value = seal(&key, pieces, bytes.get(from..upto).unwrap_or_default());
            (key, value)
        })
        .collect()
}

/// Puts the pieces of one entry together again; they arrive in key order.
#[derive(Default)]
pub(crate) struct EntryAssembler {
    index: u64,
    pieces: u16,
    next: u16,
    bytes: BytesMut,
}

impl EntryAssembler {
    /// Adds a checked piece; returns the entry when it is complete.
    pub(crate) fn push(
        &mut self,
        group: &str,
        index: u64,
        piece: u16,
        pieces: u16,
        payload: &[u8],
    ) -> Result<Option<Entry>, BadRecord> {
        let bad = |why: &str| BadRecord::Log {
            group: group.to_owned(),
            index,
            why: why.to_owned(),
        };
        if piece == 0 {
            if self.next != 0 {
                return Err(BadRecord::Log {
                    group: group.to_owned(),
                    index: self.index,
                    why: format!("only {} of {} pieces are there", self.next, self.pieces),
                });
            }
            (self.index, self.pieces) = (index, pieces);
            self.bytes.clear();
        } else if self.next == 0
            || index != self.index
            || piece != self.next
            || pieces != self.pieces
        {
            return Err(bad("its pieces do not follow each other"));
        }
        self.bytes.put_slice(payload);
        self.next = piece + 1;
        if self.next < self.pieces {
            return Ok(None);
        }
        self.next = 0;
        let wire = peer::Entry::decode(Bytes::from(self.bytes.split()))
            .map_err(|error| bad(&error.to_string()))?;
        let entry = wire::to_entry(wire).map_err(|error| bad(&error.to_string()))?;
        if entry.log_id.index != index {
            return Err(bad(&format!(
                "it claims to be entry {}",
                entry.log_id.index
            )));
        }
        Ok(Some(entry))
    }

    /// Whether a record is still missing pieces.
    pub(crate) fn pending(&self) -> Option<u64> {
        (self.next != 0).then_some(self.index)
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Commands, LeaderId, LogId, Payload};

    fn entry(index: u64, bytes: Vec<u8>) -> Entry {
        Entry {
            log_id: LogId::new(LeaderId::new(3, 7), index),
            payload: Payload::Normal(Commands(Bytes::from(bytes))),
        }
    }

    fn decode(pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<Vec<Entry>, BadRecord> {
        let mut assembler = EntryAssembler::default();
        let mut entries = Vec::new();
        for (key, value) in pairs {
            let (pieces, payload) = open(key, value)?;
            let Some(Key::Log {
                group,
                index,
                piece,
            }) = Key::parse(key)
            else {
                panic!("not a log key");
            };
            entries.extend(assembler.push(&group, index, piece, pieces, payload)?);
        }
        Ok(entries)
    }

    proptest! {
        #[test]
        fn entries_of_any_size_come_back(index in 0u64..1 << 40, len in 0usize..200_000) {
            let sent = entry(index, vec![0xa5; len]);
            let pairs = encode_entry("control", &sent);
            prop_assert!(pairs.iter().all(|(_, value)| value.len() <= MAX_CHUNK + HEADER));
            prop_assert_eq!(decode(&pairs).unwrap(), vec![sent]);
        }

        #[test]
        fn a_flipped_bit_is_noticed(bit in 0usize..8 * 60) {
            let mut pairs = encode_entry("control", &entry(5, vec![1; 40]));
            let value = &mut pairs[0].1;
            let bit = bit % (value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&pairs).is_err());
        }

        #[test]
        fn keys_sort_like_the_log(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(Key::log("g", a, 0).cmp(&Key::log("g", b, 0)), a.cmp(&b));
        }
    }

    #[test]
    fn a_record_under_another_key_is_refused() {
        let pairs = encode_entry("control", &entry(5, vec![1; 40]));
        let other = Key::log("control", 6, 0);
        assert_eq!(
            open(&other, &pairs[0].1),
            Err(BadRecord::Checksum {
                key: "control/log/6.0".into()
            })
        );
    }

    #[test]
    fn a_lost_piece_is_refused() {
        let mut pairs = encode_entry("control", &entry(5, vec![1; 3 * MAX_CHUNK]));
        pairs.remove(1);
        assert!(matches!(
            decode(&pairs),
            Err(BadRecord::Log { index: 5, .. })
        ));
    }

    #[test]
    fn a_newer_schema_is_refused_by_number() {
        let key = Key::meta("control", "vote");
        let mut value = seal(&key, 1, b"x");
        value[0] = 9;
        let crc = checksum(&key, 9, 1, b"x");
        value[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            open(&key, &value),
            Err(BadRecord::Newer {
                key: "control/vote".into(),
                found: 9
            })
        );
    }
}
