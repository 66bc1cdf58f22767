//! Snapshot files: the state of a group as of one log entry, written whole or not at all, and verified whole before use.
//!
//! ```text
//! "QRTSNAP\0"  format version (u32)
//! frame*       tag (u8)  payload length (u32)  crc32 of tag, length and payload (u32)  payload
//! ```
//! Numbers are little-endian. The first frame (tag `H`) holds a [`SnapshotHeader`], each following one (`R`) a
//! [`SnapshotRecord`], the last one (`T`) the number of records (u64) and the XXH3-128 of every byte before it (u128).
//! The checksum of a frame says where a file is broken, the digest of the whole catches what the frames cannot: frames that
//! are missing, repeated or in another order. The same bytes go to other nodes.

mod file;

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use prost::Message as _;
use quorate_proto::store::v1::{SnapshotHeader, SnapshotRecord};
use xxhash_rust::xxh3::Xxh3;

use crate::state::{ControlState, SCHEMA, StateRestore};

pub use file::{persist, read_file, read_header, write_file};

const MAGIC: [u8; 8] = *b"QRTSNAP\0";
const FORMAT: u32 = 1;
const PREAMBLE: usize = MAGIC.len() + 4;
const FRAME_HEAD: usize = 9;
/// Far above any record (a resource is at most about 1 MiB): a broken length must not allocate the machine's memory.
const MAX_PAYLOAD: usize = 64 << 20;

const HEADER: u8 = b'H';
const RECORD: u8 = b'R';
const TRAILER: u8 = b'T';
const TRAILER_LEN: usize = 8 + 16;

/// Why a snapshot cannot be used, or could not be written. Nothing of a refused snapshot was used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Reading or writing failed.
    #[error("cannot read or write the snapshot: {0}")]
    Io(#[from] io::Error),
    /// It does not begin as a snapshot does.
    #[error("not a snapshot file")]
    NotASnapshot,
    /// The end is missing: the write or the transfer was cut off.
    #[error("torn snapshot: it ends at byte {offset}, before its trailer")]
    Torn {
        /// Length of what is there.
        offset: u64,
    },
    /// A frame is damaged.
    #[error("corrupt frame at byte {offset} of the snapshot: {what}")]
    CorruptFrame {
        /// Where the frame begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Each frame is whole, but together they are not what was written.
    #[error("corrupt snapshot: {0}")]
    Corrupt(&'static str),
    /// Written by a newer build.
    #[error(
        "the snapshot has a newer schema ({found}) than this build knows ({known}): run a newer build"
    )]
    NewerSchema {
        /// Format version or schema of the snapshot.
        found: u32,
        /// The newest one that this build reads.
        known: u32,
    },
    /// It belongs to another cluster.
    #[error("the snapshot belongs to cluster {found:?}, this node to {expected:?}")]
    OtherCluster {
        /// The cluster in its header.
        found: String,
        /// This node's cluster.
        expected: String,
    },
    /// It belongs to another group.
    #[error("the snapshot belongs to group {found:?}, not {expected:?}")]
    OtherGroup {
        /// The group in its header.
        found: String,
        /// The group that it was read for.
        expected: String,
    },
    /// It is intact, but its records do not make up a state.
    #[error("invalid snapshot record at byte {offset}: {reason}")]
    Invalid {
        /// Where the record begins.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A frame too large to write.
    #[error("a snapshot record of {0} bytes is too large")]
    TooLarge(usize),
    /// One of the above, in a file.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        #[source]
        error: Box<SnapshotError>,
    },
}

/// What a snapshot must belong to.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// None: any cluster (a node that is about to learn which).
    pub cluster_id: Option<&'a str>,
    /// The group's name.
    pub group: &'a str,
}

/// A header of the present schema.
pub fn header(
    cluster_id: &str,
    group: &str,
    applied_index: u64,
    applied_term: u64,
    meta: &[u8],
) -> SnapshotHeader {
    SnapshotHeader {
        schema: SCHEMA,
        cluster_id: cluster_id.to_owned(),
        group: group.to_owned(),
        applied_index,
        applied_term,
        meta: meta.to_vec(),
    }
}

/// Writes a snapshot and returns its length in bytes. The writer is not flushed.
///
/// # Errors
/// [`SnapshotError::Io`] if writing fails, [`SnapshotError::TooLarge`] for a record beyond 64 MiB.
pub fn write_to(
    out: impl Write,
    header: &SnapshotHeader,
    records: impl IntoIterator<Item = SnapshotRecord>,
) -> Result<u64, SnapshotError> {
    let mut out = Frames {
        out,
        digest: Xxh3::new(),
        written: 0,
    };
    out.put(&MAGIC)?;
    out.put(&FORMAT.to_le_bytes())?;
    out.frame(HEADER, &header.encode_to_vec())?;
    let mut count = 0u64;
    for record in records {
        out.frame(RECORD, &record.encode_to_vec())?;
        count += 1;
    }
    let trailer = trailer(count, &out.digest);
    out.frame(TRAILER, &trailer)?;
    Ok(out.written)
}

struct Frames<W> {
    out: W,
    digest: Xxh3,
    written: u64,
}

impl<W: Write> Frames<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.digest.update(bytes);
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self, tag: u8, payload: &[u8]) -> Result<(), SnapshotError> {
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= MAX_PAYLOAD)
            .ok_or(SnapshotError::TooLarge(payload.len()))?;
        let mut head = [0; FRAME_HEAD];
        head[0] = tag;
        head[1..5].copy_from_slice(&length.to_le_bytes());
        let crc = checksum(&head, payload);
        head[5..].copy_from_slice(&crc.to_le_bytes());
        self.put(&head)?;
        self.put(payload)
    }
}

/// Payload of the trailer: the number of records, and the digest of what came before the trailer's frame.
fn trailer(records: u64, digest: &Xxh3) -> [u8; TRAILER_LEN] {
    let mut payload = [0; TRAILER_LEN];
    payload[..8].copy_from_slice(&records.to_le_bytes());
    payload[8..].copy_from_slice(&digest.digest128().to_le_bytes());
    payload
}

/// CRC-32 of a frame's tag, length and payload.
fn checksum(head: &[u8; FRAME_HEAD], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..5]);
    crc.update(payload);
    crc.finalize()
}

/// Writes the control state. See [`write_to`].
///
/// # Errors
/// As [`write_to`].
pub fn write_state(
    out: impl Write,
    header: &SnapshotHeader,
    state: &ControlState,
) -> Result<u64, SnapshotError> {
    write_to(out, header, state.records())
}

/// Reads and verifies a snapshot to its last byte, handing each record to `sink` on the way. What `sink` built must be
/// thrown away unless this returns `Ok`.
///
/// # Errors
/// A [`SnapshotError`] that says what is wrong; a refusal of `sink` becomes [`SnapshotError::Invalid`].
pub fn read_from(
    input: impl Read,
    expected: Expected<'_>,
    mut sink: impl FnMut(SnapshotRecord) -> Result<(), String>,
) -> Result<SnapshotHeader, SnapshotError> {
    let mut input = Input {
        input,
        digest: Xxh3::new(),
        offset: 0,
    };
    let header = input.header(expected)?;
    let mut count = 0u64;
    loop {
        let offset = input.offset;
        match input.frame()? {
            (RECORD, payload) => {
                let invalid = |reason| SnapshotError::Invalid { offset, reason };
                let record =
                    SnapshotRecord::decode(&*payload).map_err(|e| invalid(e.to_string()))?;
                sink(record).map_err(invalid)?;
                count += 1;
            }
            (TRAILER, payload) => {
                if payload != trailer(count, &input.digest) {
                    return Err(SnapshotError::Corrupt(
                        "its records are not those that its trailer counts",
                    ));
                }
                if (&mut input.input).take(1).read_to_end(&mut Vec::new())? != 0 {
                    return Err(SnapshotError::Corrupt("there are bytes after its trailer"));
                }
                return Ok(header);
            }
            _ => {
                return Err(SnapshotError::CorruptFrame {
                    offset,
                    what: "unknown tag",
                });
            }
        }
    }
}

/// Reads and verifies a snapshot of the control state.
///
/// # Errors
/// As [`read_from`].
pub fn read_state(
    input: impl Read,
    expected: Expected<'_>,
) -> Result<(SnapshotHeader, ControlState), SnapshotError> {
    let mut restore = StateRestore::default();
    let header = read_from(input, expected, |record| {
        restore.push(record).map_err(|e| e.to_string())
    })?;
    let invalid = |reason: String| SnapshotError::Invalid {
        offset: PREAMBLE as u64,
        reason,
    };
    let state = restore.finish().map_err(|e| invalid(e.to_string()))?;
    if state.cluster_id() != header.cluster_id {
        return Err(invalid(
            "its header and its facts name different clusters".into(),
        ));
    }
    Ok((header, state))
}

struct Input<R> {
    input: R,
    digest: Xxh3,
    offset: u64,
}

impl<R: Read> Input<R> {
    fn header(&mut self, expected: Expected<'_>) -> Result<SnapshotHeader, SnapshotError> {
        let mut magic = [0; MAGIC.len()];
        let whole = self.fill(&mut magic);
        // What begins like a snapshot but is shorter than the magic is torn; anything else is not ours.
        if magic
            .iter()
            .zip(MAGIC)
            .zip(0..self.offset)
            .any(|((read, magic), _)| *read != magic)
        {
            return Err(SnapshotError::NotASnapshot);
        }
        whole?;
        self.digest.update(&magic);
        let mut format = [0; 4];
        self.fill(&mut format)?;
        self.digest.update(&format);
        check_schema(u32::from_le_bytes(format), FORMAT)?;
        let offset = self.offset;
        let (tag, payload) = self.frame()?;
        if tag != HEADER {
            return Err(SnapshotError::CorruptFrame {
                offset,
                what: "the header is missing",
            });
        }
        let header = SnapshotHeader::decode(&*payload).map_err(|e| SnapshotError::Invalid {
            offset,
            reason: e.to_string(),
        })?;
        check_schema(header.schema, SCHEMA)?;
        if let Some(cluster_id) = expected.cluster_id.filter(|id| *id != header.cluster_id) {
            return Err(SnapshotError::OtherCluster {
                found: header.cluster_id,
                expected: cluster_id.to_owned(),
            });
        }
        if header.group != expected.group {
            return Err(SnapshotError::OtherGroup {
                found: header.group,
                expected: expected.group.to_owned(),
            });
        }
        Ok(header)
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), SnapshotError> {
        let offset = self.offset;
        let corrupt = |what| SnapshotError::CorruptFrame { offset, what };
        let mut head = [0; FRAME_HEAD];
        self.fill(&mut head)?;
        let [tag, l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > MAX_PAYLOAD {
            return Err(corrupt("impossible length"));
        }
        // Grows with what is really there, whatever the length claims.
        let mut payload = Vec::new();
        let read = (&mut self.input)
            .take(length.into())
            .read_to_end(&mut payload)?;
        self.offset += read as u64;
        if read < length as usize {
            return Err(SnapshotError::Torn {
                offset: self.offset,
            });
        }
        if checksum(&head, &payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(corrupt("wrong checksum"));
        }
        if tag != TRAILER {
            self.digest.update(&head);
            self.digest.update(&payload);
        }
        Ok((tag, payload))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) => {
                    return Err(SnapshotError::Torn {
                        offset: self.offset,
                    });
                }
                Ok(n) => {
                    filled += n;
                    self.offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn check_schema(found: u32, known: u32) -> Result<(), SnapshotError> {
    match found {
        0 => Err(SnapshotError::Corrupt("it has no schema version")),
        found if found > known => Err(SnapshotError::NewerSchema { found, known }),
        _ => Ok(()),
    }
}
