//! Who a data directory is: a small text file with a checksum, and the lock that keeps a second process out.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    error::{Error, StorageError},
    options::Timing,
};

/// Newest layout of the data directory that this build reads, and the one it writes.
const SCHEMA: u32 = 1;
const FILE: &str = "identity";

/// The content of the `identity` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    /// Drawn once for each data directory; a wiped directory is another instance.
    pub(crate) instance: String,
    pub(crate) timing: Timing,
    /// Known once the node has founded or joined a cluster.
    pub(crate) member: Option<MemberId>,
}

/// The node's place in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberId {
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    /// Its role has been settled: joining is over.
    pub(crate) settled: bool,
}

impl Identity {
    pub(crate) fn new(name: &str, timing: Timing) -> Result<Self, Error> {
        Ok(Self {
            name: name.to_owned(),
            instance: random_id()?,
            timing,
            member: None,
        })
    }

    fn encode(&self) -> String {
        let mut text = String::from(
            "# Who this data directory is. Do not edit, and do not copy to a second node.\n",
        );
        let _ = writeln!(text, "schema {SCHEMA}");
        let _ = writeln!(text, "name {}", self.name);
        let _ = writeln!(text, "instance {}", self.instance);
        let _ = writeln!(text, "timing {}", self.timing);
        if let Some(member) = &self.member {
            let _ = writeln!(text, "cluster {}", member.cluster_id);
            let _ = writeln!(text, "node {}", member.node_id);
            let _ = writeln!(text, "settled {}", member.settled);
        }
        let crc = crc32fast::hash(text.as_bytes());
        let _ = writeln!(text, "crc32 {crc:08x}");
        text
    }

    fn decode(text: &str) -> Result<Self, String> {
        let (body, crc) = text
            .trim_end()
            .rsplit_once("\ncrc32 ")
            .ok_or("the checksum is missing")?;
        let body = format!("{body}\n");
        let crc = u32::from_str_radix(crc, 16).map_err(|_| "the checksum is malformed")?;
        if crc32fast::hash(body.as_bytes()) != crc {
            return Err("the checksum does not match: the file was damaged or edited".to_owned());
        }
        let field = |name: &str| {
            body.lines().find_map(|line| {
                line.strip_prefix(name)
                    .and_then(|rest| rest.strip_prefix(' '))
            })
        };
        let need = |name: &str| field(name).ok_or_else(|| format!("the line {name:?} is missing"));
        let schema: u32 = need("schema")?
            .parse()
            .map_err(|_| "the schema is malformed")?;
        if schema > SCHEMA {
            return Err(format!(
                "its schema is {schema}, this version knows up to {SCHEMA}: start a later version"
            ));
        }
        let member = match (field("cluster"), field("node")) {
            (Some(cluster), Some(node)) => Some(MemberId {
                cluster_id: cluster.to_owned(),
                node_id: node.parse().map_err(|_| "the node id is malformed")?,
                settled: field("settled") == Some("true"),
            }),
            _ => None,
        };
        Ok(Self {
            name: need("name")?.to_owned(),
            instance: need("instance")?.to_owned(),
            timing: need("timing")?
                .parse()
                .map_err(|error: crate::options::UnknownTiming| error.to_string())?,
            member,
        })
    }
}

/// 128 random bits in hexadecimal, for ids that must never meet.
pub(crate) fn random_id() -> Result<String, Error> {
    let mut bytes = [0_u8; 16];
    fill_random(&mut bytes)?;
    Ok(bytes
        .iter()
        .fold(String::with_capacity(32), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

/// Random bytes from the kernel.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    let failed = |error: rustix::io::Errno| {
        Error::Options(format!("the kernel gives no random numbers: {error}"))
    };
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled +=
            rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

/// A data directory that this process has to itself.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(|error| StorageError::io(path, error))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| StorageError::io(&lock_path, error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(path.to_owned())),
            Err(error) => Err(StorageError::io(&lock_path, error.into()).into()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the identity, if there is one.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, Error> {
        let path = self.path.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(&path, error).into()),
        };
        match Identity::decode(&text) {
            Ok(identity) => Ok(Some(identity)),
            Err(why) => Err(StorageError::corrupt(&path, why).into()),
        }
    }

    /// Replaces the identity, durably.
    pub(crate) fn write_identity(&self, identity: &Identity) -> Result<(), Error> {
        let path = self.path.join(FILE);
        let temporary = self.path.join("identity.tmp");
        let written = File::create(&temporary)
            .and_then(|mut file| {
                file.write_all(identity.encode().as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| crate::snapshot::persist(&temporary, &path));
        written.map_err(|error| StorageError::io(&path, error).into())
    }

    /// Bytes that may still be written to the directory's file system.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.path).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            name: "router-1".into(),
            instance: random_id().unwrap(),
            timing: Timing::Wan,
            member: Some(MemberId {
                cluster_id: "abc".into(),
                node_id: 7,
                settled: true,
            }),
        }
    }

    #[test]
    fn comes_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.identity().unwrap(), None);
        let mut id = identity();
        data.write_identity(&id).unwrap();
        assert_eq!(data.identity().unwrap(), Some(id.clone()));
        id.member = None;
        data.write_identity(&id).unwrap();
        assert_eq!(data.identity().unwrap(), Some(id));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let text = identity().encode();
        // The comment and the closing line break are covered by the checksum or do not matter.
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(Identity::decode(&changed).is_err(), "byte {at}");
            }
            assert!(Identity::decode(&text[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_second_process_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(Error::Locked(_))));
        drop(first);
        assert!(DataDir::open(dir.path()).is_ok());
    }
}
