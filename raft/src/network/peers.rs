//! The other nodes: where they are, the connections to them, and what they last said about themselves.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use quorate_proto::peer::v1::{HelloReply, HelloRequest, raft_client::RaftClient};
use tonic::transport::Channel;

use super::{Local, Tls, connector, raft_client};
use crate::{error::Error, types::Member};

/// What a connection is used for, so that bulk traffic delays nothing that keeps a leader in office.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Appends and forwarded proposals of the control group, other services.
    Data = 0,
    /// Heartbeats, votes, read indexes, hellos.
    Urgent = 1,
    /// Snapshots; opened when there is one to send.
    Snapshot = 2,
    /// Appends and forwarded proposals of volatile groups, which carry far more than the control group does.
    Bulk = 3,
    /// Snapshots of volatile groups.
    BulkSnapshot = 4,
}

const LANES: usize = 5;

/// One other node.
pub(crate) struct Peer {
    pub(crate) node_id: u64,
    state: Mutex<State>,
}

struct State {
    member: Member,
    channels: [Option<Channel>; LANES],
    last_seen: Option<Instant>,
    /// Its last answer to a hello.
    report: Option<HelloReply>,
}

impl Peer {
    pub(crate) fn member(&self) -> Member {
        self.state.lock().member.clone()
    }

    /// Notes that the peer has just answered or sent something.
    pub(crate) fn seen(&self) {
        self.state.lock().last_seen = Some(Instant::now());
    }

    pub(crate) fn reported(&self, report: HelloReply) {
        let mut state = self.state.lock();
        // A new process behind the same address: connections made to the old one must not linger.
        if state
            .report
            .as_ref()
            .is_some_and(|known| known.start_id != report.start_id)
        {
            state.channels = Default::default();
        }
        state.last_seen = Some(Instant::now());
        state.report = Some(report);
    }

    pub(crate) fn report(&self) -> Option<HelloReply> {
        self.state.lock().report.clone()
    }

    pub(crate) fn silent_for(&self) -> Option<Duration> {
        self.state.lock().last_seen.map(|seen| seen.elapsed())
    }

    /// Drops the connections; the next call makes new ones.
    pub(crate) fn disconnect(&self) {
        self.state.lock().channels = Default::default();
    }
}

/// All other nodes that this one knows of.
pub(crate) struct Peers {
    pub(crate) local: Arc<Local>,
    tls: Option<Arc<Tls>>,
    table: RwLock<BTreeMap<u64, Arc<Peer>>>,
}

impl Peers {
    pub(crate) fn new(local: Arc<Local>, tls: Option<Arc<Tls>>) -> Self {
        Self {
            local,
            tls,
            table: RwLock::default(),
        }
    }

    pub(crate) fn get(&self, node_id: u64) -> Option<Arc<Peer>> {
        self.table.read().get(&node_id).cloned()
    }

    /// The node with this data directory.
    pub(crate) fn by_instance(&self, instance: &str) -> Option<Arc<Peer>> {
        let table = self.table.read();
        let mut nodes = table.values();
        nodes
            .find(|peer| peer.state.lock().member.instance == instance)
            .cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.table.read().values().cloned().collect()
    }

    /// Adds a node or updates where it is.
    pub(crate) fn learn(&self, node_id: u64, member: &Member) -> Arc<Peer> {
        if let Some(peer) = self.get(node_id) {
            let mut state = peer.state.lock();
            if state.member != *member {
                state.member = member.clone();
                state.channels = Default::default();
            }
            drop(state);
            return peer;
        }
        let peer = Arc::new(Peer {
            node_id,
            state: Mutex::new(State {
                member: member.clone(),
                channels: Default::default(),
                last_seen: None,
                report: None,
            }),
        });
        Arc::clone(self.table.write().entry(node_id).or_insert(peer))
    }

    /// Forgets all nodes but these.
    pub(crate) fn retain(&self, keep: impl Fn(u64) -> bool) {
        self.table.write().retain(|id, _| keep(*id));
    }

    /// The shared connection to a node; it is opened when first used.
    ///
    /// # Errors
    /// [`Error::Options`] if the node's address is malformed.
    pub(crate) fn channel(&self, peer: &Peer, lane: Lane) -> Result<Channel, Error> {
        let mut state = peer.state.lock();
        if let Some(Some(channel)) = state.channels.get(lane as usize) {
            return Ok(channel.clone());
        }
        let channel = self.dial(&state.member.peer_address, Some(state.member.name.clone()))?;
        if let Some(slot) = state.channels.get_mut(lane as usize) {
            *slot = Some(channel.clone());
        }
        Ok(channel)
    }

    pub(crate) fn client(&self, peer: &Peer, lane: Lane) -> Result<RaftClient<Channel>, Error> {
        Ok(raft_client(self.channel(peer, lane)?))
    }

    /// A connection to an address, outside the table.
    pub(crate) fn dial(&self, address: &str, name: Option<String>) -> Result<Channel, Error> {
        dial(self.tls.as_ref(), address, name, self.local.timing)
    }

    /// The hello of this process.
    pub(crate) fn hello(&self, to: u64, starting: bool) -> HelloRequest {
        HelloRequest {
            cluster_id: self.local.cluster_id.clone(),
            node_id: self.local.node_id,
            name: self.local.name.clone(),
            instance: self.local.instance.clone(),
            start_id: self.local.start_id,
            peer_address: self.local.peer_address.clone(),
            starting,
            to,
        }
    }
}

/// See [`Peers::dial`].
pub(crate) fn dial(
    tls: Option<&Arc<Tls>>,
    address: &str,
    name: Option<String>,
    timing: crate::options::Timing,
) -> Result<Channel, Error> {
    let config = match tls {
        Some(tls) => Some(
            tls.client(name)
                .map_err(|error| Error::Options(format!("TLS: {error}")))?,
        ),
        None => None,
    };
    connector::channel(address, config, timing)
}
