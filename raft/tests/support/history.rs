//! A replica for tests that remembers which commands were applied, in order; and a node's part in its group.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quorate_raft::{Frozen, Install, ProposeError, Replica, Role, VolatileGroup, VolatileStatus};

use crate::support::{Fleet, Node, WAIT, until};

/// Numbers in the order in which they were applied, each with padding that is kept as well. A command is a number (8 bytes)
/// and its padding; the answer is how many were there before.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Vec<(u64, Bytes)>>>);

/// A command of this size in all.
pub fn command(number: u64, size: usize) -> Bytes {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(size.max(8), number as u8);
    bytes.into()
}

fn split(bytes: &[u8]) -> Option<(u64, Bytes)> {
    let (number, padding) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), Bytes::copy_from_slice(padding)))
}

impl History {
    pub fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().iter().map(|(n, _)| *n).collect()
    }
}

impl Replica for History {
    fn apply(&self, _: u64, command: &[u8]) -> Bytes {
        let mut all = self.0.lock().unwrap();
        all.push(split(command).unwrap());
        Bytes::copy_from_slice(&(all.len() as u64 - 1).to_le_bytes())
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(Pieces(self.0.lock().unwrap().clone().into_iter()))
    }

    fn install(&self) -> Box<dyn Install> {
        Box::new(Taking(self.clone(), Vec::new()))
    }

    fn reset(&self) {
        self.0.lock().unwrap().clear();
    }
}

struct Pieces(std::vec::IntoIter<(u64, Bytes)>);

impl Frozen for Pieces {
    fn next_chunk(&mut self) -> Option<Bytes> {
        let (number, padding) = self.0.next()?;
        Some([&number.to_le_bytes()[..], &padding].concat().into())
    }
}

struct Taking(History, Vec<(u64, Bytes)>);

impl Install for Taking {
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), String> {
        self.1.push(split(chunk).ok_or("short")?);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        *self.0.0.lock().unwrap() = self.1;
        Ok(())
    }
}

/// A node's part in the group. Numbers are written under its own runtime.
#[derive(Clone)]
pub struct Part {
    pub history: History,
    pub group: VolatileGroup,
    runtime: tokio::runtime::Handle,
}

impl Part {
    pub fn open(node: &Node) -> Self {
        let history = History::default();
        let replica = Arc::new(history.clone());
        let group = node.block_on(node.cluster.volatile_group("cache", replica));
        Self {
            history,
            group: group.unwrap(),
            runtime: node.handle(),
        }
    }

    /// A part in a group that is up to date.
    pub fn warm(node: &Node) -> Self {
        let part = Self::open(node);
        part.wait_warm();
        part
    }

    pub fn wait_warm(&self) {
        let warm = async { tokio::time::timeout(WAIT, self.group.warm()).await };
        let warm = self.runtime.block_on(warm);
        assert!(warm.is_ok(), "not warm: {:?}", self.group.status());
    }

    pub fn status(&self) -> VolatileStatus {
        self.group.status()
    }

    pub fn leads(&self) -> bool {
        let status = self.status();
        status.quorate && status.leader == Some(status.raft_id)
    }

    /// Writes until it is acknowledged; returns how many were there before.
    pub fn write(&self, number: u64) -> u64 {
        until("a command is applied", || self.try_write(number, 8).ok())
    }

    pub fn try_write(&self, number: u64, size: usize) -> Result<u64, ProposeError> {
        let answer = self
            .runtime
            .block_on(self.group.propose(command(number, size)))?;
        Ok(u64::from_le_bytes(answer[..].try_into().unwrap()))
    }

    pub fn shutdown(&self) {
        self.runtime.block_on(self.group.shutdown());
    }
}

/// Parts of all nodes, up to date, all of them voters.
pub fn all_warm(fleet: &Fleet) -> Vec<Part> {
    let parts: Vec<Part> = fleet.nodes.iter().map(Part::open).collect();
    for part in &parts {
        part.wait_warm();
    }
    settled(&parts, parts.len());
    parts
}

pub fn leader(parts: &[Part]) -> usize {
    until("a leader", || parts.iter().position(Part::leads))
}

/// Waits until these parts are the group's only members and so many of them vote.
pub fn settled(parts: &[Part], voters: usize) {
    let mut last = None;
    let done = |last: &mut Option<VolatileStatus>| {
        let status = parts.iter().find(|part| part.leads())?.status();
        let votes = status.members.iter().filter(|m| m.role == Role::Voter);
        let done = votes.count() == voters && status.members.len() == parts.len();
        *last = Some(status);
        done.then_some(())
    };
    let started = std::time::Instant::now();
    while done(&mut last).is_none() {
        assert!(started.elapsed() < WAIT, "not settled: {last:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Waits until all parts hold the same; returns it.
pub fn equal(parts: &[Part]) -> Vec<u64> {
    until("all hold the same", || {
        let first = parts[0].history.numbers();
        let epoch = parts[0].status().contents_epoch;
        let same =
            |part: &Part| part.history.numbers() == first && part.status().contents_epoch == epoch;
        parts.iter().all(same).then_some(first)
    })
}
