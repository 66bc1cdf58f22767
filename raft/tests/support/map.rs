//! A replica for tests: what was put under which key, and how often each command was applied.
#![allow(dead_code, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use quorate_raft::{Frozen, Install, Replica};

pub type Entries = BTreeMap<u64, Bytes>;

/// Keys with the values put last. A command is a key (8 bytes) and a value; its answer is the value that was there.
#[derive(Clone, Default)]
pub struct Map(pub Arc<Mutex<Entries>>);

pub fn command(key: u64, value: &[u8]) -> Bytes {
    [&key.to_le_bytes()[..], value].concat().into()
}

fn split(bytes: &[u8]) -> Option<(u64, Bytes)> {
    let (key, value) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*key), Bytes::copy_from_slice(value)))
}

impl Map {
    pub fn entries(&self) -> Entries {
        self.0.lock().unwrap().clone()
    }
}

impl Replica for Map {
    fn apply(&self, _: u64, command: &[u8]) -> Bytes {
        let (key, value) = split(command).unwrap();
        let before = self.0.lock().unwrap().insert(key, value);
        before.unwrap_or_default()
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Pieces(self.entries().into_iter()))
    }

    fn install(&self) -> Box<dyn Install> {
        Box::new(Taking(self.clone(), Entries::new()))
    }

    fn reset(&self) {
        self.0.lock().unwrap().clear();
    }
}

struct Pieces(std::collections::btree_map::IntoIter<u64, Bytes>);

impl Frozen for Pieces {
    fn next_chunk(&mut self) -> Option<Bytes> {
        let (key, value) = self.0.next()?;
        Some(command(key, &value))
    }
}

struct Taking(Map, Entries);

impl Install for Taking {
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        let (key, value) = split(chunk).ok_or("short")?;
        self.1.insert(key, value);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        *self.0.0.lock().unwrap() = self.1;
        Ok(())
    }
}
