//! Fetched files of models on disk: by the hash of their contents, and for each URL which of them it had last.
//!
//! `DIR/SHA256/` has the files of one model, `DIR/url-SHA256` has the name of such a folder. A folder appears whole (it is renamed into its place)
//! and counts only if its contents have the hash that it is called by: a half-written or changed one is as good as none.

use super::files::{NAMES, Raw};
use super::{FileServer, TokenError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A folder with all of them.
#[derive(Clone, Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Store {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn pointer(&self, server: &FileServer) -> PathBuf {
        let digest = ring::digest::digest(&ring::digest::SHA256, server.url().as_bytes());
        self.directory.join(format!("url-{}", hex(digest.as_ref())))
    }

    /// What a URL had last, if it is still here as it was.
    pub fn find(&self, server: &FileServer) -> Option<Raw> {
        let name = std::fs::read_to_string(self.pointer(server)).ok()?;
        let is_hash = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let raw = Raw::read(&self.directory.join(is_hash.then_some(&name)?)).ok()?;
        (hex(&raw.digest()) == name).then_some(raw)
    }

    /// Keeps what a URL has now; what no URL has any more is removed.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, server: &FileServer, raw: &Raw) -> Result<(), TokenError> {
        self.write(server, raw).map_err(|error| TokenError::File {
            path: self.directory.display().to_string(),
            problem: error.to_string(),
        })
    }

    fn write(&self, server: &FileServer, raw: &Raw) -> io::Result<()> {
        let name = hex(&raw.digest());
        let folder = self.directory.join(&name);
        let whole = || Raw::read(&folder).is_ok_and(|there| there.digest() == raw.digest());
        std::fs::create_dir_all(&self.directory)?;
        if !whole() {
            let new = self.directory.join(format!("new-{name}"));
            remove(&new)?;
            std::fs::create_dir(&new)?;
            for (file, bytes) in raw.files() {
                write_through(&new.join(file), bytes)?;
            }
            remove(&folder)?;
            std::fs::rename(&new, &folder)?;
        }
        let new = self.directory.join("new-url");
        write_through(&new, name.as_bytes())?;
        std::fs::rename(&new, self.pointer(server))?;
        self.prune()
    }

    /// Removes folders that no URL points to.
    fn prune(&self) -> io::Result<()> {
        let mut used = Vec::new();
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("url-") {
                used.extend(std::fs::read_to_string(entry.path()));
            } else if name.starts_with("new-") || name.len() == 64 {
                folders.push(name);
            }
        }
        for name in folders.iter().filter(|name| !used.contains(name)) {
            remove(&self.directory.join(name))?;
        }
        Ok(())
    }
}

/// Removes a folder of files by the names that models have, and nothing else.
fn remove(folder: &Path) -> io::Result<()> {
    let absent = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    if !folder.is_dir() {
        return std::fs::remove_file(folder).or_else(absent);
    }
    for name in NAMES {
        std::fs::remove_file(folder.join(name)).or_else(absent)?;
    }
    std::fs::remove_dir(folder).or_else(absent)
}

fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn raw(text: &str) -> Raw {
        let files = BTreeMap::from([
            ("tokenizer.json", text.as_bytes().to_vec()),
            ("config.json", b"{}".to_vec()),
        ]);
        Raw::new("somewhere".to_owned(), files)
    }

    fn folders(directory: &Path) -> usize {
        let entries = std::fs::read_dir(directory).unwrap();
        entries
            .filter(|e| e.as_ref().unwrap().path().is_dir())
            .count()
    }

    #[test]
    fn what_a_url_had_is_found_again_and_what_none_has_goes() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path().join("tokenizers"));
        let [one, two] = ["http://a/1", "http://{host}:8/2"].map(|u| FileServer::parse(u).unwrap());
        assert!(store.find(&one).is_none());
        store.keep(&one, &raw("x")).unwrap();
        store.keep(&two, &raw("x")).unwrap();
        assert_eq!(
            folders(&store.directory),
            1,
            "the same contents are there once"
        );
        let again = Store::new(store.directory.clone());
        assert_eq!(again.find(&one).unwrap().digest(), raw("x").digest());
        again.keep(&two, &raw("y")).unwrap();
        assert_eq!(folders(&store.directory), 2);
        again.keep(&one, &raw("y")).unwrap();
        assert_eq!(folders(&store.directory), 1);
        assert_eq!(again.find(&one).unwrap().digest(), raw("y").digest());
    }

    #[test]
    fn what_is_not_whole_counts_as_none_and_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path().to_owned());
        let server = FileServer::parse("http://a/1").unwrap();
        store.keep(&server, &raw("x")).unwrap();
        let folder = store.directory.join(hex(&raw("x").digest()));
        std::fs::write(folder.join("tokenizer.json"), "changed").unwrap();
        assert!(store.find(&server).is_none());
        // Left over from a crash.
        std::fs::create_dir(
            store
                .directory
                .join(format!("new-{}", hex(&raw("x").digest()))),
        )
        .unwrap();
        store.keep(&server, &raw("x")).unwrap();
        assert!(store.find(&server).is_some());
        std::fs::write(store.pointer(&server), "../../etc").unwrap();
        assert!(store.find(&server).is_none());
    }
}
