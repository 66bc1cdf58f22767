//! Node-to-node traffic: one listener for all groups and services, and per peer one connection for appends of the control
//! group, one for heartbeats and questions, one for snapshots, and two more for appends and snapshots of volatile groups.

mod admission;
mod client;
mod connector;
mod consensus;
mod door;
mod listener;
mod peers;
mod server;
mod snapshot_receiver;
mod stream;
mod tls;

pub(crate) use admission::{Admission, refusal_of, refuse};
pub(crate) use client::{Network, Outgoing, Scope, header};
pub(crate) use door::Door;
pub(crate) use listener::serve;
pub(crate) use peers::{Lane, Peer, Peers, dial};
pub(crate) use server::RaftService;
pub(crate) use snapshot_receiver::bad as bad_snapshot;
pub(crate) use stream::caller_of;
pub use tls::NODE_URI_PREFIX;
pub(crate) use tls::Tls;

use quorate_proto::peer::v1::raft_client::RaftClient;
use tonic::transport::Channel;

/// Largest message between nodes. An append carries about 1 MiB of entries, or one larger entry.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// A client for a peer.
pub(crate) fn raft_client(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Who this process is towards its peers.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) cluster_id: String,
    pub(crate) node_id: u64,
    pub(crate) name: String,
    pub(crate) instance: String,
    /// Drawn at random when the process starts.
    pub(crate) start_id: u64,
    pub(crate) timing: crate::options::Timing,
    /// `host:port` that peers are told.
    pub(crate) peer_address: String,
}
