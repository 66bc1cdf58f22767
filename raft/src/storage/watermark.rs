//! A second witness of what was acknowledged: a small file outside the database that says how far log and vote had come.
//!
//! sled treats a damaged tail like one that was never written and drops it without a word. A node that came back that way could
//! vote for a leader that lacks what it had acknowledged. The watermark is written after each sync of the database and not
//! synced itself, so it costs microseconds and never runs ahead of the database: if the database now holds less than the mark
//! says, it was damaged, and the node refuses to start. It is lowered, and synced, *before* the log is truncated.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use prost::Message;

use super::{StorageError, load::GroupContent, sled::sync_dir};
use crate::types::{LeaderId, LogId, Vote};

/// Two slots that take turns: a torn write leaves the other one whole.
const SLOT: usize = 4096;
const MAGIC: &[u8; 8] = b"quormrk1";
/// Magic, length, CRC-32.
const HEADER: usize = 16;

/// How far one group had come.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Mark {
    #[prost(bool, tag = "1")]
    has_log: bool,
    #[prost(uint64, tag = "2")]
    log_term: u64,
    #[prost(uint64, tag = "3")]
    log_leader: u64,
    #[prost(uint64, tag = "4")]
    log_index: u64,
    #[prost(bool, tag = "5")]
    has_vote: bool,
    #[prost(uint64, tag = "6")]
    vote_term: u64,
    #[prost(uint64, tag = "7")]
    vote_leader: u64,
    #[prost(bool, tag = "8")]
    vote_committed: bool,
}

impl Mark {
    fn last(&self) -> Option<LogId> {
        use openraft::vote::RaftLeaderId;
        self.has_log.then(|| {
            LogId::new(
                LeaderId::new(self.log_term, self.log_leader),
                self.log_index,
            )
        })
    }

    fn vote(&self) -> Option<Vote> {
        self.has_vote.then(|| {
            if self.vote_committed {
                Vote::new_committed(self.vote_term, self.vote_leader)
            } else {
                Vote::new(self.vote_term, self.vote_leader)
            }
        })
    }

    pub(crate) fn set_last(&mut self, last: Option<LogId>) {
        self.has_log = last.is_some();
        (self.log_term, self.log_leader, self.log_index) = last.map_or((0, 0, 0), |last| {
            (last.leader_id.term, last.leader_id.node_id, last.index)
        });
    }

    pub(crate) fn set_vote(&mut self, vote: &Vote) {
        self.has_vote = true;
        (self.vote_term, self.vote_leader, self.vote_committed) =
            (vote.leader_id.term, vote.leader_id.node_id, vote.committed);
    }

    /// Whether the database holds at least what the mark says.
    pub(crate) fn check(
        &self,
        group: &str,
        content: Option<&GroupContent>,
        db: &Path,
        mark: &Path,
    ) -> Result<(), StorageError> {
        let show = |id: Option<LogId>| {
            id.map_or("nothing".to_owned(), |id| {
                format!("log entry {} of term {}", id.index, id.leader_id.term)
            })
        };
        let (last, vote) = content.map_or((None, None), |content| (content.last(), content.vote));
        if last < self.last() {
            return Err(StorageError::corrupt(
                db,
                format!(
                    "the database of group {group} ends at {}, but {} had been acknowledged (see {}): its tail was lost",
                    show(last),
                    show(self.last()),
                    mark.display()
                ),
            ));
        }
        if vote < self.vote() {
            return Err(StorageError::corrupt(
                db,
                format!(
                    "the database of group {group} has forgotten a vote (see {})",
                    mark.display()
                ),
            ));
        }
        Ok(())
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Slot {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(btree_map = "string, message", tag = "2")]
    groups: BTreeMap<String, Mark>,
}

/// The opened file.
pub(crate) struct Watermark {
    file: File,
    path: PathBuf,
    slot: Slot,
}

impl Watermark {
    /// Opens the file, or creates it if the database is empty (`fresh`).
    pub(crate) fn open(path: &Path, fresh: bool) -> Result<Self, StorageError> {
        let fail = |error| StorageError::io(path, error);
        let exists = path.try_exists().map_err(fail)?;
        if !exists && !fresh {
            return Err(StorageError::corrupt(
                path,
                "the file is missing although the database is not empty",
            ));
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(fail)?;
        let mut content = vec![0; 2 * SLOT];
        let filled = read_fully(&file, &mut content).map_err(fail)?;
        let slots = [content.get(..SLOT), content.get(SLOT..)];
        let newest = slots
            .into_iter()
            .flatten()
            .filter_map(read_slot)
            .max_by_key(|slot| slot.sequence);
        let slot = match newest {
            Some(slot) => slot,
            None if filled == 0 && fresh => Slot::default(),
            None => {
                return Err(StorageError::corrupt(
                    path,
                    "neither copy of the watermark can be read",
                ));
            }
        };
        let mut watermark = Self {
            file,
            path: path.to_owned(),
            slot,
        };
        if !exists {
            watermark.write(true).map_err(fail)?;
            if let Some(parent) = path.parent() {
                sync_dir(parent)?;
            }
        }
        Ok(watermark)
    }

    pub(crate) fn marks(&self) -> impl Iterator<Item = (&String, &Mark)> {
        self.slot.groups.iter()
    }

    /// The mark of a group, to be changed; [`Watermark::write`] makes it count.
    pub(crate) fn mark(&mut self, group: &str) -> &mut Mark {
        if !self.slot.groups.contains_key(group) {
            self.slot.groups.insert(group.to_owned(), Mark::default());
        }
        self.slot.groups.entry(group.to_owned()).or_default()
    }

    /// Writes the marks into the older slot.
    pub(crate) fn write(&mut self, sync: bool) -> io::Result<()> {
        self.slot.sequence += 1;
        let payload = self.slot.encode_to_vec();
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        if bytes.len() > SLOT {
            return Err(io::Error::other(format!(
                "{}: too many groups",
                self.path.display()
            )));
        }
        bytes.resize(SLOT, 0);
        let offset = if self.slot.sequence.is_multiple_of(2) {
            0
        } else {
            SLOT as u64
        };
        self.file.write_all_at(&bytes, offset)?;
        if sync {
            self.file.sync_all()?;
        }
        Ok(())
    }
}

fn read_fully(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

fn read_slot(bytes: &[u8]) -> Option<Slot> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.get(..u32::from_le_bytes(*len) as usize)?;
    if magic != MAGIC || crc32fast::hash(payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    Slot::decode(payload).ok()
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;

    fn id(index: u64) -> Option<LogId> {
        Some(LogId::new(LeaderId::new(2, 1), index))
    }

    fn reopen(path: &Path) -> Result<Option<LogId>, StorageError> {
        let mark = Watermark::open(path, false)?;
        Ok(mark.marks().next().and_then(|(_, mark)| mark.last()))
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let mut mark = Watermark::open(&path, true).unwrap();
        for index in 1..=3 {
            mark.mark("control").set_last(id(index));
            mark.write(false).unwrap();
        }
        assert_eq!(reopen(&path).unwrap(), id(3));
        // Tear the newest slot (sequence 4: the first one): the one before it is used.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(reopen(&path).unwrap(), id(2));
        bytes[SLOT + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(reopen(&path), Err(StorageError::Corrupt { .. })));
    }

    #[test]
    fn a_missing_file_beside_a_used_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Watermark::open(&dir.path().join("watermark"), false),
            Err(StorageError::Corrupt { .. })
        ));
    }
}
