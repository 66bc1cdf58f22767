//! openraft's own suite for log stores and state machines, over the store of volatile groups.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use openraft::{
    StorageError as RaftStorageError,
    testing::log::{StoreBuilder, Suite},
};
use parking_lot::Mutex;

use super::{
    contents::Contents,
    machine::Machine,
    replica::{Frozen, Install, Replica},
};
use crate::{storage::MemoryLog, types::TypeConfig};

type Entries = BTreeMap<u64, Bytes>;

/// Remembers each command under its index.
#[derive(Clone, Default)]
struct Remember(Arc<Mutex<Entries>>);

struct Pieces(std::collections::btree_map::IntoIter<u64, Bytes>);

struct Taking(Remember, Entries);

impl Replica for Remember {
    fn apply(&self, index: u64, command: &[u8]) -> Bytes {
        let bytes = Bytes::copy_from_slice(command);
        self.0.lock().insert(index, bytes.clone());
        bytes
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Pieces(self.0.lock().clone().into_iter()))
    }

    fn install(&self) -> Box<dyn Install> {
        Box::new(Taking(self.clone(), Entries::new()))
    }

    fn reset(&self) {
        self.0.lock().clear();
    }
}

impl Frozen for Pieces {
    fn next_chunk(&mut self) -> Option<Bytes> {
        let (index, command) = self.0.next()?;
        Some([&index.to_le_bytes()[..], &command].concat().into())
    }
}

impl Install for Taking {
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        let (index, command) = chunk.split_first_chunk().ok_or("short")?;
        let command = Bytes::copy_from_slice(command);
        self.1.insert(u64::from_le_bytes(*index), command);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        *self.0.0.lock() = self.1;
        Ok(())
    }
}

struct Volatile;

impl StoreBuilder<TypeConfig, MemoryLog, Machine, ()> for Volatile {
    async fn build(&self) -> Result<((), MemoryLog, Machine), RaftStorageError<TypeConfig>> {
        let contents = Arc::new(Contents::new(Arc::new(Remember::default())));
        let lease = contents.follow();
        Ok((
            (),
            MemoryLog::default(),
            Machine::new(contents, lease, 1, None),
        ))
    }
}

#[tokio::test]
async fn the_volatile_store_conforms() {
    Suite::test_all(Volatile).await.unwrap();
}

#[test]
fn an_epoch_that_is_over_changes_nothing() {
    let replica = Remember::default();
    let contents = Contents::new(Arc::new(replica.clone()));
    let (old, base) = contents.found(1);
    assert_eq!(base, 0);
    contents.apply(old, 1, Some(b"a")).unwrap();
    contents.applied(old, 1, 1).unwrap();
    let (new, base) = contents.found(2);
    assert_eq!(base, 1, "the next epoch begins after what is there");
    assert!(contents.apply(old, 2, Some(b"b")).is_err());
    assert!(contents.applied(old, 1, 2).is_err());
    assert!(contents.finish(old, contents.install(), 1, 9).is_err());
    assert_eq!(replica.0.lock().len(), 1);
    contents.apply(new, 2, Some(b"c")).unwrap();
}

#[test]
fn contents_in_doubt_are_not_carried_over() {
    struct Broken;
    impl Install for Broken {
        fn chunk(&mut self, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
        fn finish(self: Box<Self>) -> Result<(), String> {
            Err("broken".into())
        }
    }
    let replica = Remember::default();
    let contents = Contents::new(Arc::new(replica.clone()));
    let (lease, _) = contents.found(1);
    contents.apply(lease, 1, Some(b"a")).unwrap();
    contents.applied(lease, 1, 1).unwrap();
    let lease = contents.follow();
    assert!(contents.finish(lease, Box::new(Broken), 2, 5).is_err());
    assert_eq!(contents.position().epoch, 0);
    let (_, base) = contents.found(3);
    assert_eq!((base, replica.0.lock().len()), (0, 0));
}
