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
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    StorageError,
    backend::{Backend, Change},
};
use crate::options::Durability;

/// How long another holder of the database may take to let go of it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// sled's page cache; the log itself is kept in memory, so this only serves segment clean-up.
const CACHE_BYTES: u64 = 32 << 20;

/// sled's lock between batches and everything else is one for all databases of the process: a batch that waits for it keeps the
/// periodic flushers of all of them out, and a flush holds it while it may wait for its own flusher. Two databases could so wait
/// for each other for ever; hence only one of them writes at a time. A router has one.
static TURN: Mutex<()> = Mutex::new(());

/// A sled tree whose commits survive a power cut.
pub(crate) struct DurableTree {
    db: OneAtATime,
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
        // Damage that sled does not expect makes it panic while it recovers. A database that was closed a moment ago may still be
        // locked: sled's threads let go of it last.
        let begun = Instant::now();
        let opened = loop {
            match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Err(sled::Error::Io(error)))
                    if is_locked(&error) && begun.elapsed() < LOCK_PATIENCE =>
                {
                    thread::sleep(Duration::from_millis(20));
                }
                opened => break opened,
            }
        };
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
            db: OneAtATime(Some(db)),
            file,
            dir: dir.to_owned(),
            durability,
        })
    }
}

/// sled keeps only the text of the reason.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

/// A database that is closed, and thereby flushed, when it is its turn.
struct OneAtATime(Option<sled::Db>);

impl OneAtATime {
    fn get(&self) -> io::Result<&sled::Db> {
        self.0
            .as_ref()
            .ok_or_else(|| io::Error::other("the database is closed"))
    }
}

impl Drop for OneAtATime {
    fn drop(&mut self) {
        let _turn = TURN.lock();
        drop(self.0.take());
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
        let db = self.db.get()?;
        let written = catch_unwind(AssertUnwindSafe(|| -> io::Result<()> {
            let _turn = TURN.lock();
            db.apply_batch(batch).map_err(to_io)?;
            if sync {
                db.flush().map_err(to_io)?;
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
        let db = self.db.get()?;
        let scanned = catch_unwind(AssertUnwindSafe(|| -> io::Result<()> {
            for pair in db.iter() {
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
