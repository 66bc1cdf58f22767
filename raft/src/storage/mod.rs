//! The durable side of consensus: one store for all groups of a node, written by one thread in order.
//!
//! ```text
//! LogStore (one per group) --ops--> writer thread --one batch--> Backend (sled + fdatasync, or memory)
//!      ^ reads: in-memory log          '--after each sync--> watermark file
//! ```
//!
//! Nothing is read from disk after start: the log between the last purge and its end is kept in memory, bounded by
//! compaction.

mod backend;
mod load;
mod log;
mod memory_log;
mod record;
mod sled;
mod tail;
mod watermark;
mod writer;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod faults;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use log::LogStore;
pub(crate) use memory_log::MemoryLog;
pub(crate) use writer::Writer;

use self::{
    backend::{Backend, Memory},
    load::{Loaded, NodeRecord},
    sled::DurableTree,
    watermark::Watermark,
};
use crate::{identity::DataDir, options::Durability};

/// Why a data directory cannot be used. Every variant names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// What was being opened, read or written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The database, a record in it or a snapshot is damaged.
    #[error(
        "{path}: {why}. The node does not start, because it could answer with wrong state. Keep the directory for inspection, \
         remove this node from the cluster, and let it join again with an empty data directory; if no other copy is left, \
         restore the directory from a backup"
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it, with the key of the record where one is concerned.
        why: String,
    },
    /// The directory belongs to something else.
    #[error("{path}: {why}")]
    Mismatch {
        /// The file that says so.
        path: PathBuf,
        /// Which two things do not fit together.
        why: String,
    },
    /// Written by a newer version.
    #[error("{path}: {why}; start the version that wrote it, or a later one")]
    Newer {
        /// The file that is newer.
        path: PathBuf,
        /// Found and known schema.
        why: String,
    },
}

impl StorageError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn corrupt(path: &Path, why: impl ToString) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Who the database belongs to; kept in it so that a database and an identity file of different nodes are never mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    pub(crate) instance: String,
}

/// An opened store, before its groups are started.
pub(crate) struct Storage {
    backend: Box<dyn Backend>,
    watermark: Option<Watermark>,
    loaded: Loaded,
    path: PathBuf,
}

impl Storage {
    /// A store that lives as long as the process.
    pub(crate) fn in_memory() -> Self {
        Self {
            backend: Box::new(Memory::default()),
            watermark: None,
            loaded: Loaded::default(),
            path: PathBuf::from("memory"),
        }
    }

    /// Opens `dir`, reads and checks every record. Blocking.
    ///
    /// # Errors
    /// [`StorageError`]: anything that could make this node answer with less than it had acknowledged.
    pub(crate) fn open(dir: &Path, durability: Durability) -> Result<Self, StorageError> {
        let db = dir.join("raft");
        let backend = DurableTree::open(&db, durability)?;
        let loaded = load::load(&backend, &db)?;
        let mark_path = dir.join("watermark");
        let watermark = Watermark::open(&mark_path, loaded.is_empty())?;
        for (group, mark) in watermark.marks() {
            mark.check(group, loaded.groups.get(group), &db, &mark_path)?;
        }
        Ok(Self {
            backend: Box::new(backend),
            watermark: Some(watermark),
            loaded,
            path: db,
        })
    }

    /// Who the database says it belongs to.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.loaded.node.as_ref().map(|node| Owner {
            cluster_id: node.cluster_id.clone(),
            node_id: node.node_id,
            instance: node.instance.clone(),
        })
    }

    /// The directory of the database.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the owner into the database, durably. Blocking.
    pub(crate) fn set_owner(&mut self, owner: &Owner) -> Result<(), StorageError> {
        let node = NodeRecord {
            cluster_id: owner.cluster_id.clone(),
            node_id: owner.node_id,
            instance: owner.instance.clone(),
        };
        let (key, value) = node.encode();
        self.backend
            .commit(vec![(key, Some(value))], true)
            .map_err(|error| StorageError::io(&self.path, error))?;
        self.loaded.node = Some(node);
        Ok(())
    }

    /// Starts the writer thread and the given groups' logs.
    /// `lock` is kept until the store is closed.
    pub(crate) fn start(
        self,
        groups: &[&str],
        lock: Option<Arc<DataDir>>,
    ) -> Result<(Arc<Writer>, Vec<LogStore>), StorageError> {
        let Self {
            backend,
            watermark,
            mut loaded,
            path,
        } = self;
        let (mut pieces, mut last) = (BTreeMap::new(), BTreeMap::new());
        let mut logs = Vec::with_capacity(groups.len());
        for group in groups {
            let group: Arc<str> = Arc::from(*group);
            let content = loaded.groups.remove(&*group).unwrap_or_default();
            pieces.insert(Arc::clone(&group), content.pieces.clone());
            last.extend(content.last().map(|id| (Arc::clone(&group), id.index)));
            logs.push((group, content));
        }
        let writer = Writer::spawn(backend, watermark, pieces, last, lock)
            .map_err(|error| StorageError::io(&path, error))?;
        let logs = logs
            .into_iter()
            .map(|(group, content)| LogStore::new(group, content, &writer))
            .collect();
        Ok((writer, logs))
    }
}
