//! The only place that touches sled, and what makes it durable.
//!
//! sled 0.34.7's `flush` ends in `sync_file_range`, which writes neither the file's size nor its extents and leaves the drive's
//! cache alone: after a power cut acknowledged records can be gone and the file may not even open. One `fdatasync` of sled's
//! `db` file on a descriptor of our own, after `flush` has issued every write, closes that hole. The periodic flusher stays on
//! because segment clean-up lives in it; nothing relies on it for durability.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::{
    StorageError,
    backend::{Backend, Change},
};
use crate::options::Durability;

/// sled's page cache; the log itself is kept in memory, so this only serves segment clean-up.
const CACHE_BYTES: u64 = 32 << 20;

/// A sled tree whose commits survive a power cut.
pub(crate) struct DurableTree {
    db: sled::Db,
    /// A second descriptor of `<dir>/db`.
    file: File,
    dir: PathBuf,
    durability: Durability,
}

impl DurableTree {
    /// Opens or creates the database in `dir`. Blocking.
    pub(crate) fn open(dir: &Path, durability: Durability) -> Result<Self, StorageError> {
        std::fs::create_dir_all(dir).map_err(|error| StorageError::io(dir, error))?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(Some(500))
            .use_compression(false)
            .print_profile_on_drop(false);
        // Damage that sled does not expect makes it panic while it recovers.
        let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
        let db = match opened {
            Ok(Ok(db)) => db,
            Ok(Err(sled::Error::Io(error))) => return Err(StorageError::io(dir, error)),
            Ok(Err(error)) => {
                return Err(StorageError::corrupt(
                    dir,
                    format!("the database does not open: {error}"),
                ));
            }
            Err(panic) => {
                let why = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("recovery failed");
                return Err(StorageError::corrupt(
                    dir,
                    format!("the database is damaged: {why}"),
                ));
            }
        };
        let path = dir.join("db");
        let file = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| StorageError::io(&path, error))?;
        // The names must survive as well as the content.
        file.sync_all()
            .map_err(|error| StorageError::io(&path, error))?;
        for parent in [Some(dir), dir.parent()].into_iter().flatten() {
            sync_dir(parent)?;
        }
        Ok(Self {
            db,
            file,
            dir: dir.to_owned(),
            durability,
        })
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| StorageError::io(dir, error))
}

fn to_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

impl Backend for DurableTree {
    fn commit(&mut self, changes: Vec<Change>, sync: bool) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        // A full disk makes some of sled's paths panic instead of returning an error.
        let written = catch_unwind(AssertUnwindSafe(|| -> io::Result<()> {
            self.db.apply_batch(batch).map_err(to_io)?;
            if sync {
                self.db.flush().map_err(to_io)?;
            }
            Ok(())
        }));
        match written {
            Ok(result) => result?,
            Err(_) => return Err(io::Error::other("the database gave up while writing")),
        }
        if sync && self.durability == Durability::Synced {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn scan(&self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let scanned = catch_unwind(AssertUnwindSafe(|| -> io::Result<()> {
            for pair in self.db.iter() {
                let (key, value) = pair.map_err(to_io)?;
                if !visit(&key, &value) {
                    break;
                }
            }
            Ok(())
        }));
        scanned.unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged: a page cannot be read", self.dir.display()),
            ))
        })
    }
}
