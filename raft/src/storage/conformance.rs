//! openraft's own suite for log stores and state machines, over the real database and over memory.

use std::sync::Arc;

use openraft::{
    StorageError as RaftStorageError,
    testing::log::{StoreBuilder, Suite},
};

use super::{LogStore, Storage};
use crate::{
    machine::ControlMachine,
    options::Durability,
    snapshots::Snapshots,
    types::{CONTROL, TypeConfig},
};

struct OnDisk;
struct InMemory;

fn machine() -> ControlMachine {
    ControlMachine::new(
        Arc::new(Snapshots::in_memory(CONTROL)),
        None,
        Arc::new(|| true),
    )
}

fn log(storage: Storage) -> LogStore {
    storage.start(&[CONTROL], None).unwrap().1.remove(0)
}

impl StoreBuilder<TypeConfig, LogStore, ControlMachine, Option<tempfile::TempDir>> for OnDisk {
    async fn build(
        &self,
    ) -> Result<(Option<tempfile::TempDir>, LogStore, ControlMachine), RaftStorageError<TypeConfig>>
    {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Durability::Unsynced).unwrap();
        Ok((Some(dir), log(storage), machine()))
    }
}

impl StoreBuilder<TypeConfig, LogStore, ControlMachine, Option<tempfile::TempDir>> for InMemory {
    async fn build(
        &self,
    ) -> Result<(Option<tempfile::TempDir>, LogStore, ControlMachine), RaftStorageError<TypeConfig>>
    {
        Ok((None, log(Storage::in_memory()), machine()))
    }
}

#[tokio::test]
async fn the_store_on_disk_conforms() {
    Suite::test_all(OnDisk).await.unwrap();
}

#[tokio::test]
async fn the_store_in_memory_conforms() {
    Suite::test_all(InMemory).await.unwrap();
}
