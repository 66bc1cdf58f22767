//! Where a group's snapshots are kept: one file at a time in `snapshots/`, or in memory for a node without a data directory.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use quorate_proto::peer::v1 as peer;

use crate::{
    error::StorageError,
    snapshot::{self, Expected, SnapshotError},
    state::ControlState,
    types::{LogId, SnapshotMeta},
    wire,
};

const SUFFIX: &str = "snap";
const INCOMING: &str = "incoming";

/// A complete snapshot, readable even after a newer one has replaced it.
#[derive(Clone, Debug)]
pub(crate) enum SnapshotData {
    Memory(Bytes),
    File {
        path: PathBuf,
        file: Arc<File>,
        length: u64,
    },
}

impl SnapshotData {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::File {
            path: path.to_owned(),
            file: Arc::new(file),
            length,
        })
    }

    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    /// A piece of the snapshot, shorter than `len` only at its end. Blocking for files.
    pub(crate) fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                Ok(bytes.slice(from..(from.saturating_add(len)).min(bytes.len())))
            }
            Self::File { file, length, .. } => {
                let len = usize::try_from(length.saturating_sub(offset))
                    .unwrap_or(usize::MAX)
                    .min(len);
                let mut buffer = vec![0; len];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(Bytes::from(buffer))
            }
        }
    }
}

/// A snapshot with what consensus keeps beside it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: SnapshotData,
}

/// The snapshots of one group.
pub(crate) struct Snapshots {
    /// `None`: memory.
    dir: Option<PathBuf>,
    group: &'static str,
    current: Mutex<Option<Stored>>,
}

impl Snapshots {
    pub(crate) fn in_memory(group: &'static str) -> Self {
        Self {
            dir: None,
            group,
            current: Mutex::new(None),
        }
    }

    /// Opens the directory, and reads and verifies the newest snapshot in it. Blocking.
    pub(crate) fn open(
        dir: &Path,
        group: &'static str,
        cluster_id: &str,
    ) -> Result<(Self, Option<(SnapshotMeta, ControlState)>), crate::Error> {
        fs::create_dir_all(dir).map_err(|error| StorageError::io(dir, error))?;
        let mut newest: Option<(u64, PathBuf)> = None;
        let mut older = Vec::new();
        for item in fs::read_dir(dir).map_err(|error| StorageError::io(dir, error))? {
            let path = item.map_err(|error| StorageError::io(dir, error))?.path();
            match index_of(&path, group) {
                Some(index) if newest.as_ref().is_none_or(|(known, _)| *known < index) => {
                    older.extend(newest.replace((index, path)));
                }
                Some(index) => older.push((index, path)),
                None if is_partial(&path, group) => {
                    let _ = fs::remove_file(&path);
                }
                None => {}
            }
        }
        let snapshots = Self {
            dir: Some(dir.to_owned()),
            group,
            current: Mutex::new(None),
        };
        let Some((_, path)) = newest else {
            return Ok((snapshots, None));
        };
        let (header, state) = snapshot::read_file(
            &path,
            Expected {
                cluster_id: Some(cluster_id),
                group,
            },
        )?;
        let meta = decode_meta(&header.meta).map_err(|why| StorageError::corrupt(&path, why))?;
        let data = SnapshotData::open(&path).map_err(|error| StorageError::io(&path, error))?;
        *snapshots.current.lock() = Some(Stored {
            meta: meta.clone(),
            data,
        });
        for (_, path) in older {
            let _ = fs::remove_file(path);
        }
        Ok((snapshots, Some((meta, state))))
    }

    pub(crate) fn current(&self) -> Option<Stored> {
        self.current.lock().clone()
    }

    /// Writes the state and makes it the current snapshot. Blocking.
    pub(crate) fn write(
        &self,
        meta: &SnapshotMeta,
        state: &ControlState,
    ) -> Result<SnapshotData, SnapshotError> {
        let started = std::time::Instant::now();
        let (index, term) = position(meta);
        let header = snapshot::header(
            state.cluster_id(),
            self.group,
            index,
            term,
            &wire::snapshot_meta(meta).encode_to_vec(),
        );
        let data = match &self.dir {
            None => {
                let mut bytes = Vec::new();
                snapshot::write_state(&mut bytes, &header, state)?;
                SnapshotData::Memory(Bytes::from(bytes))
            }
            Some(dir) => {
                let path = self.path(dir, meta);
                snapshot::write_file(&path, &header, state)?;
                SnapshotData::open(&path)?
            }
        };
        metrics::histogram!("quorate_raft_snapshot_write_seconds", "group" => self.group)
            .record(started.elapsed().as_secs_f64());
        metrics::gauge!("quorate_raft_snapshot_bytes", "group" => self.group)
            .set(data.length() as f64);
        self.replace(Stored {
            meta: meta.clone(),
            data: data.clone(),
        });
        Ok(data)
    }

    /// Takes in a snapshot received from another node: verifies all of it, moves it to its place and returns the state.
    /// Blocking.
    pub(crate) fn install(
        &self,
        meta: &SnapshotMeta,
        data: SnapshotData,
        cluster_id: Option<&str>,
    ) -> Result<ControlState, SnapshotError> {
        let expected = Expected {
            cluster_id,
            group: self.group,
        };
        let (header, state) = match &data {
            SnapshotData::Memory(bytes) => snapshot::read_state(&bytes[..], expected)?,
            SnapshotData::File { path, .. } => snapshot::read_file(path, expected)?,
        };
        if (header.applied_index, header.applied_term) != position(meta) {
            return Err(SnapshotError::Corrupt(
                "it ends at another log entry than the sender said",
            ));
        }
        let data = match (&self.dir, data) {
            (Some(dir), SnapshotData::File { path, .. }) => {
                let place = self.path(dir, meta);
                if path != place {
                    snapshot::persist(&path, &place)?;
                }
                SnapshotData::open(&place)?
            }
            (_, data) => data,
        };
        self.replace(Stored {
            meta: meta.clone(),
            data,
        });
        Ok(state)
    }

    /// Where a snapshot that another node sends is collected.
    pub(crate) fn incoming(&self, unique: u64) -> io::Result<Incoming> {
        match &self.dir {
            None => Ok(Incoming::Memory(Vec::new())),
            Some(dir) => {
                let path = dir.join(format!("{}-{unique:016x}.{INCOMING}", self.group));
                let file = File::create(&path)?;
                Ok(Incoming::File {
                    path,
                    file: Some(file),
                })
            }
        }
    }

    fn path(&self, dir: &Path, meta: &SnapshotMeta) -> PathBuf {
        let (index, term) = position(meta);
        dir.join(format!("{}-{index:020}-{term}.{SUFFIX}", self.group))
    }

    /// Makes `stored` the current snapshot unless a newer one was installed meanwhile, and deletes the other.
    fn replace(&self, stored: Stored) {
        let mut current = self.current.lock();
        let newer = current
            .as_ref()
            .is_none_or(|known| known.meta.last_log_id <= stored.meta.last_log_id);
        let same = current
            .as_ref()
            .is_some_and(|known| match (&known.data, &stored.data) {
                (SnapshotData::File { path: a, .. }, SnapshotData::File { path: b, .. }) => a == b,
                _ => false,
            });
        let loser = if newer {
            current.replace(stored)
        } else {
            Some(stored)
        };
        if let (
            false,
            Some(Stored {
                data: SnapshotData::File { path, .. },
                ..
            }),
        ) = (same, loser)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Index and term of the last entry in a snapshot; zeros before the first.
fn position(meta: &SnapshotMeta) -> (u64, u64) {
    meta.last_log_id
        .map_or((0, 0), |id: LogId| (id.index, id.leader_id.term))
}

pub(crate) fn decode_meta(bytes: &[u8]) -> Result<SnapshotMeta, String> {
    let meta = peer::SnapshotMeta::decode(bytes).map_err(|error| error.to_string())?;
    wire::to_snapshot_meta(meta).map_err(|error| error.to_string())
}

fn index_of(path: &Path, group: &str) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let (index, _) = name
        .strip_prefix(group)?
        .strip_prefix('-')?
        .strip_suffix(".snap")?
        .split_once('-')?;
    index.parse().ok()
}

fn is_partial(path: &Path, group: &str) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| {
            name.starts_with(group) && (name.ends_with(".tmp") || name.ends_with(".incoming"))
        })
}

/// A snapshot being received. Dropped before [`Incoming::finish`], it leaves nothing behind.
pub(crate) enum Incoming {
    Memory(Vec<u8>),
    File { path: PathBuf, file: Option<File> },
}

impl Incoming {
    /// Adds a piece. Blocking for files.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Memory(all) => {
                all.extend_from_slice(bytes);
                Ok(())
            }
            Self::File {
                file: Some(file), ..
            } => file.write_all(bytes),
            Self::File { file: None, .. } => {
                Err(io::Error::other("the snapshot is complete already"))
            }
        }
    }

    /// The received bytes as a snapshot, not verified yet.
    pub(crate) fn finish(mut self) -> io::Result<SnapshotData> {
        match &mut self {
            Self::Memory(bytes) => Ok(SnapshotData::Memory(Bytes::from(std::mem::take(bytes)))),
            Self::File { path, file } => {
                if let Some(mut file) = file.take() {
                    file.flush()?;
                }
                SnapshotData::open(path)
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Self::File {
            path,
            file: Some(_),
        } = self
        {
            let _ = fs::remove_file(path);
        }
    }
}
