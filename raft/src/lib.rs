//! The replicated part of a Quorate node: what every router agrees on, and how it comes to be agreed.
//!
//! * [`Cluster`] is the handle of a running node: write with [`Cluster::propose`], read [`Cluster::view`], follow changes with
//!   [`Cluster::watch`], change the membership, ask for the status. [`Options`] say what to start.
//! * [`state`] is the pure state machine, [`watch`] publishes its changes, [`snapshot`] is its file format.
//! * Inside, consensus is openraft, its log is kept by sled with an fdatasync of our own, and nodes talk gRPC over mutual TLS.
//!   None of these shows outside of this crate.
//!
//! Groups: `control` holds the declared state of the whole cluster, durably. [`Cluster::volatile_group`] adds groups of one
//! region that replicate bulk state in memory only. Wire headers carry the group's name, so all share one listener. See
//! `OVERVIEW.md` for the whole picture.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod alone;
mod cluster;
mod error;
mod group;
mod identity;
mod machine;
mod network;
mod options;
pub mod snapshot;
mod snapshots;
mod start;
pub mod state;
mod storage;
mod supervisor;
mod types;
mod volatile;
pub mod watch;
mod wire;

pub use cluster::{Cluster, Consistency, Leadership, PeerInfo, ReadStamp, StopReason};
pub use error::{ChangeError, Error, ProposeError, ReadError, StorageError};
pub use group::{Applied, ClusterStatus, MemberStatus, Members, Role};
pub use network::NODE_URI_PREFIX;
pub use options::{
    Advertise, Durability, Options, PeerListen, PeerTls, Start, Timing, UnknownTiming,
};
pub use volatile::{Frozen, Install, Replica, VolatileGroup, VolatileMemberStatus, VolatileStatus};
