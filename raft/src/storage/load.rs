//! Reads a store completely at start and refuses anything that is not exactly what was written.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
};

use prost::Message;
use quorate_proto::peer::v1 as peer;

use super::{
    StorageError,
    backend::Backend,
    record::{self, BadRecord, EntryAssembler, Key},
};
use crate::{
    types::{Entry, LogId, Vote},
    wire,
};

/// Everything that a store holds.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) node: Option<NodeRecord>,
    pub(crate) groups: BTreeMap<String, GroupContent>,
}

impl Loaded {
    pub(crate) fn is_empty(&self) -> bool {
        self.node.is_none() && self.groups.is_empty()
    }
}

/// What is stored for one group.
#[derive(Default)]
pub(crate) struct GroupContent {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Everything after `purged`, without a hole.
    pub(crate) entries: VecDeque<Entry>,
    /// Entries that take more than one record, by index.
    pub(crate) pieces: BTreeMap<u64, u16>,
    /// Purged entries whose records are still there (first, last).
    pub(crate) leftover: Option<(u64, u64)>,
}

impl GroupContent {
    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries
            .back()
            .map(|entry| entry.log_id)
            .or(self.purged)
    }
}

/// The owner of the store, as stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct NodeRecord {
    #[prost(string, tag = "1")]
    pub(crate) cluster_id: String,
    #[prost(uint64, tag = "2")]
    pub(crate) node_id: u64,
    #[prost(string, tag = "3")]
    pub(crate) instance: String,
}

impl NodeRecord {
    pub(crate) fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let key = Key::meta("", "identity");
        let value = record::seal(&key, 1, &self.encode_to_vec());
        (key, value)
    }
}

/// Reads and checks all records of `backend`, whose files lie in `path`.
pub(crate) fn load(backend: &dyn Backend, path: &Path) -> Result<Loaded, StorageError> {
    let mut loaded = Loaded::default();
    let mut assembler = EntryAssembler::default();
    let mut bad = None;
    let scanned = backend.scan(
        &mut |key, value| match take(&mut loaded, &mut assembler, key, value) {
            Ok(()) => true,
            Err(error) => {
                bad = Some(error);
                false
            }
        },
    );
    match scanned {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(StorageError::corrupt(path, error));
        }
        Err(error) => return Err(StorageError::io(path, error)),
    }
    match bad {
        Some(error @ BadRecord::Newer { .. }) => {
            return Err(StorageError::Newer {
                path: path.to_owned(),
                why: error.to_string(),
            });
        }
        Some(error) => return Err(StorageError::corrupt(path, error)),
        None => {}
    }
    if let Some(index) = assembler.pending() {
        return Err(StorageError::corrupt(
            path,
            format!("log entry {index} lacks its last piece"),
        ));
    }
    for (group, content) in &mut loaded.groups {
        settle(content)
            .map_err(|why| StorageError::corrupt(path, format!("group {group}: {why}")))?;
    }
    Ok(loaded)
}

fn take(
    loaded: &mut Loaded,
    assembler: &mut EntryAssembler,
    key: &[u8],
    value: &[u8],
) -> Result<(), BadRecord> {
    let (pieces, payload) = record::open(key, value)?;
    let malformed = |why: &str| BadRecord::Malformed {
        key: record::show_key(key),
        why: why.to_owned(),
    };
    match Key::parse(key).ok_or_else(|| malformed("unknown kind of key"))? {
        Key::Log {
            group,
            index,
            piece,
        } => {
            let entry = assembler.push(&group, index, piece, pieces, payload)?;
            let content = loaded.groups.entry(group).or_default();
            if pieces > 1 {
                content.pieces.insert(index, pieces);
            }
            content.entries.extend(entry);
        }
        Key::Meta { group, name } if group.is_empty() && name == "identity" => {
            loaded.node =
                Some(NodeRecord::decode(payload).map_err(|error| malformed(&error.to_string()))?);
        }
        Key::Meta { group, name } => {
            let content = loaded.groups.entry(group).or_default();
            let log_id = || {
                peer::LogId::decode(payload)
                    .map(|id| wire::to_log_id(&id))
                    .map_err(|error| malformed(&error.to_string()))
            };
            match name.as_str() {
                "vote" => {
                    let vote = peer::Vote::decode(payload)
                        .map_err(|error| malformed(&error.to_string()))?;
                    content.vote = Some(wire::to_vote(&vote));
                }
                "committed" => content.committed = Some(log_id()?),
                "purged" => content.purged = Some(log_id()?),
                _ => return Err(malformed("unknown record")),
            }
        }
    }
    Ok(())
}

/// Drops what was purged and checks that nothing is missing of the rest.
fn settle(content: &mut GroupContent) -> Result<(), String> {
    let start = content.purged.map_or(0, |purged| purged.index + 1);
    let first = content.entries.front().map(|entry| entry.log_id.index);
    while content
        .entries
        .front()
        .is_some_and(|entry| entry.log_id.index < start)
    {
        let index = content
            .entries
            .pop_front()
            .map_or(0, |entry| entry.log_id.index);
        content.leftover = Some((first.unwrap_or(index), index));
    }
    let mut previous = content.purged;
    for (expected, entry) in (start..).zip(&content.entries) {
        if entry.log_id.index != expected {
            return Err(format!(
                "log entry {expected} is missing, the next one there is {}",
                entry.log_id.index
            ));
        }
        if previous.is_some_and(|previous| previous.leader_id > entry.log_id.leader_id) {
            return Err(format!(
                "log entry {expected} is older than the one before it"
            ));
        }
        previous = Some(entry.log_id);
    }
    if content.committed > content.last() {
        return Err("more was committed than the log holds".to_owned());
    }
    if content.last().is_some() && content.vote.is_none() {
        return Err("there is a log but no vote".to_owned());
    }
    Ok(())
}
