//! The types that openraft is instantiated with, and the short names the rest of the crate uses for them.

use std::fmt;

use bytes::Bytes;
use quorate_proto::peer::v1 as peer;

use crate::state::Reply;

openraft::declare_raft_types!(
    /// Type configuration shared by all groups.
    pub(crate) TypeConfig:
        D = Commands,
        R = Replies,
        NodeId = u64,
        Node = Member,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, crate::machine::ControlMachine>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub(crate) type Payload = openraft::alias::EntryPayloadOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type IoFlushed = openraft::storage::IOFlushed<TypeConfig>;
pub(crate) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// A log entry's content: an encoded `CommandBatch`, or what a volatile group's replica takes. Cloning shares the bytes, which travel unchanged from the proposer to
/// the disk, the wire and the state machine.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Commands(pub(crate) Bytes);

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of commands", self.0.len())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answered.
#[derive(Debug)]
pub(crate) enum Replies {
    /// One reply for each command of the control group, none for blank and membership entries.
    Control(Vec<Reply>),
    /// What a volatile group's replica answered.
    Volatile(Bytes),
}

/// What a group needs to know of a member to reach it and to tell it from an impostor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) instance: String,
    /// `host:port` of node-to-node traffic.
    pub(crate) peer_address: String,
}

impl Member {
    pub(crate) fn to_wire(&self, node_id: u64) -> peer::Member {
        peer::Member {
            node_id,
            name: self.name.clone(),
            instance: self.instance.clone(),
            peer_address: self.peer_address.clone(),
        }
    }
}

impl From<peer::Member> for Member {
    fn from(wire: peer::Member) -> Self {
        Self {
            name: wire.name,
            instance: wire.instance,
            peer_address: wire.peer_address,
        }
    }
}

/// The group that every cluster has; others are named by who opens them. Storage keys, wire headers and metrics labels carry the name.
pub(crate) const CONTROL: &str = "control";
