//! Snapshots as files: they appear under their name only when they are complete and on disk.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, IntoInnerError},
    path::{Path, PathBuf},
};

use quorate_proto::store::v1::SnapshotHeader;

use super::{Expected, Input, SnapshotError, read_state, write_state};
use crate::state::ControlState;

const BUFFER: usize = 1 << 20;

fn in_file<T>(path: &Path, result: Result<T, SnapshotError>) -> Result<T, SnapshotError> {
    result.map_err(|error| SnapshotError::InFile {
        path: path.to_owned(),
        error: Box::new(error),
    })
}

/// Writes the control state to `path` and returns the file's length. A crash leaves the old file or the new one, and at
/// worst a `.tmp` beside it.
///
/// # Errors
/// [`SnapshotError::InFile`]; what was at `path` is untouched then.
pub fn write_file(
    path: &Path,
    header: &SnapshotHeader,
    state: &ControlState,
) -> Result<u64, SnapshotError> {
    let temporary = temporary(path);
    let write = || {
        let mut out = BufWriter::with_capacity(BUFFER, File::create(&temporary)?);
        let length = write_state(&mut out, header, state)?;
        out.into_inner()
            .map_err(IntoInnerError::into_error)?
            .sync_all()?;
        persist(&temporary, path)?;
        Ok(length)
    };
    let result = write();
    if result.is_err() {
        // Half a snapshot is worth nothing, and a full disk needs the space.
        let _ = fs::remove_file(&temporary);
    }
    in_file(path, result)
}

/// Moves a completely written file (one received from another node, say) to its name: file, then name, then directory
/// reach the disk.
///
/// # Errors
/// Any of the system calls'.
pub fn persist(temporary: &Path, path: &Path) -> io::Result<()> {
    File::open(temporary)?.sync_all()?;
    fs::rename(temporary, path)?;
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Reads the control state and verifies the file to its last byte.
///
/// # Errors
/// [`SnapshotError::InFile`] with what is wrong.
pub fn read_file(
    path: &Path,
    expected: Expected<'_>,
) -> Result<(SnapshotHeader, ControlState), SnapshotError> {
    let read = || {
        read_state(
            BufReader::with_capacity(BUFFER, File::open(path)?),
            expected,
        )
    };
    in_file(path, read())
}

/// Reads only the header: enough to choose among files, not to trust one.
///
/// # Errors
/// [`SnapshotError::InFile`] with what is wrong.
pub fn read_header(path: &Path, expected: Expected<'_>) -> Result<SnapshotHeader, SnapshotError> {
    let read = || {
        let input = BufReader::new(File::open(path)?);
        Input {
            input,
            digest: xxhash_rust::xxh3::Xxh3::new(),
            offset: 0,
        }
        .header(expected)
    };
    in_file(path, read())
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}
