//! The sending side of consensus: openraft's network calls as gRPC calls on the shared connections.

use std::{future::Future, marker::PhantomData, pin::pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, future, stream};
use openraft::{
    OptionalSend, RPCTypes,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use quorate_proto::peer::v1::{
    self as peer, AppendReply, Header, SnapshotBegin, SnapshotEnd, SnapshotFrame,
    snapshot_frame::Frame,
};
use tonic::{Code, Status};

use super::{Lane, Peer, Peers};
use crate::{
    snapshots::SnapshotData,
    types::{CONTROL, Member, TypeConfig, Vote},
    wire,
};

/// Pause before an unreachable node is tried again.
const BACKOFF: Duration = Duration::from_millis(50);
/// Size of the pieces a snapshot is sent in.
const SNAPSHOT_PIECE: usize = 1 << 20;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type Snapshot<S> = openraft::alias::SnapshotOf<TypeConfig, S>;

/// A snapshot that can be sent.
pub(crate) trait Outgoing: Send + 'static {
    /// What the log says of it.
    fn describe(&self) -> String;
    /// Its bytes as frames, with the end. Cut short if they cannot be read, which the receiver notices by the missing end.
    fn frames(self) -> impl Stream<Item = SnapshotFrame> + Send + 'static;
}

/// Which group the calls are of, and which member makes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub(crate) group: &'static str,
    /// 0: control.
    pub(crate) epoch: u64,
    /// Raft id of this process in a volatile group; 0: control, where it is the node's.
    pub(crate) raft_id: u64,
}

impl Scope {
    pub(crate) const fn control() -> Self {
        Self {
            group: CONTROL,
            epoch: 0,
            raft_id: 0,
        }
    }

    fn is_volatile(&self) -> bool {
        self.epoch != 0
    }
}

/// Makes clients for one group whose snapshots are of type `S`.
pub(crate) struct Network<S> {
    peers: Arc<Peers>,
    scope: Scope,
    snapshots: PhantomData<fn() -> S>,
}

impl<S> Network<S> {
    pub(crate) fn new(peers: Arc<Peers>, scope: Scope) -> Self {
        Self {
            peers,
            scope,
            snapshots: PhantomData,
        }
    }

    fn client(&self, target: u64, member: &Member, lane: Lane) -> Client<S> {
        let target = if self.scope.is_volatile() {
            Target::Process {
                raft_id: target,
                instance: member.instance.clone(),
            }
        } else {
            Target::Node(self.peers.learn(target, member))
        };
        Client {
            peers: Arc::clone(&self.peers),
            target,
            scope: self.scope,
            lane,
            snapshots: PhantomData,
        }
    }
}

impl<S: Outgoing> RaftNetworkFactory<TypeConfig> for Network<S> {
    type Network = Client<S>;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client<S> {
        let lane = if self.scope.is_volatile() {
            Lane::Bulk
        } else {
            Lane::Data
        };
        self.client(target, node, lane)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Client<S> {
        self.client(target, node, Lane::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Member) -> Client<S> {
        let lane = if self.scope.is_volatile() {
            Lane::BulkSnapshot
        } else {
            Lane::Snapshot
        };
        self.client(target, node, lane)
    }
}

/// Whom a client calls.
enum Target {
    /// A member of the control group.
    Node(Arc<Peer>),
    /// A process on a node, in a volatile group.
    Process { raft_id: u64, instance: String },
}

/// Calls of one group to one member over one lane.
pub(crate) struct Client<S> {
    peers: Arc<Peers>,
    target: Target,
    scope: Scope,
    lane: Lane,
    snapshots: PhantomData<fn() -> S>,
}

impl<S> Client<S> {
    /// The node to call, and the header to call it with.
    fn callee(&self) -> Rpc<(Arc<Peer>, Header)> {
        match &self.target {
            Target::Node(peer) => {
                let header = header(&self.peers, self.scope.group, peer.node_id);
                Ok((Arc::clone(peer), header))
            }
            Target::Process { raft_id, instance } => {
                let peer = self.peers.by_instance(instance).ok_or_else(|| {
                    RPCError::Unreachable(Unreachable::from_string("the node is not known here"))
                })?;
                let header = self.scope.header(&self.peers, peer.node_id, *raft_id);
                Ok((peer, header))
            }
        }
    }

    fn raft(
        &self,
        peer: &Peer,
        lane: Lane,
    ) -> Rpc<peer::raft_client::RaftClient<tonic::transport::Channel>> {
        self.peers
            .client(peer, lane)
            .map_err(|error| RPCError::Unreachable(Unreachable::from_string(error)))
    }

    /// Waits for an answer at most as long as openraft allows.
    async fn within<T>(
        &self,
        peer: &Peer,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Rpc<T> {
        let timeout = option.soft_ttl();
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(answer)) => {
                peer.seen();
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.peers.local.node_id,
                target: peer.node_id,
                timeout,
            })),
        }
    }

    async fn single_append(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
        option: &RPCOption,
    ) -> Rpc<AppendReply> {
        let (peer, header) = self.callee()?;
        let mut client = self.raft(&peer, Lane::Urgent)?;
        let call = client.heartbeat(wire::append(request, Some(header)));
        self.within(&peer, RPCTypes::AppendEntries, option, call)
            .await
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: &RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let (peer, header) = self.callee()?;
        let mut client = self.raft(&peer, Lane::Urgent)?;
        let message = wire::vote_request(&request, header, pre_vote);
        let reply = self
            .within(&peer, RPCTypes::Vote, option, client.vote(message))
            .await?;
        wire::to_vote_reply(&reply).map_err(malformed)
    }
}

impl Scope {
    /// The header of a call to a process in a volatile group.
    pub(crate) fn header(&self, peers: &Peers, node_id: u64, raft_id: u64) -> Header {
        Header {
            epoch: self.epoch,
            from_raft: self.raft_id,
            to_raft: raft_id,
            ..header(peers, self.group, node_id)
        }
    }
}

/// The header of a call of the control group.
pub(crate) fn header(peers: &Peers, group: &str, to: u64) -> Header {
    Header {
        cluster_id: peers.local.cluster_id.clone(),
        group: group.to_owned(),
        epoch: 0,
        from: peers.local.node_id,
        to,
        start_id: peers.local.start_id,
        from_raft: 0,
        to_raft: 0,
    }
}

/// Anything but a clear answer means that the node cannot be worked with now: back off instead of spinning.
fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => {
            RPCError::Network(NetworkError::from_string(status))
        }
        _ => RPCError::Unreachable(Unreachable::from_string(status)),
    }
}

fn malformed(error: wire::Malformed) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl<S: Outgoing> RaftNetworkV2<TypeConfig> for Client<S> {
    type SnapshotData = S;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let reply = self.single_append(&request, &option).await?;
        wire::to_append_reply(&reply)
            .map(AppendEntriesResponse::from)
            .map_err(malformed)
    }

    fn stream_append<'s, I>(
        &'s mut self,
        mut input: I,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        I: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            // openraft's pause after an error is before the next request: without one no connection is tried.
            let Some(request) = input.next().await else {
                let none: BoxStream<'s, _> = Box::pin(stream::empty());
                return Ok(none);
            };
            if self.lane == Lane::Urgent {
                // A heartbeat: one request, one answer, no stream to set up.
                let reply = self.single_append(&request, &option).await?;
                let result = wire::to_append_reply(&reply).map_err(malformed)?;
                let one: BoxStream<'s, _> = Box::pin(stream::once(future::ready(Ok(result))));
                return Ok(one);
            }
            let (peer, header) = self.callee()?;
            let mut client = self.raft(&peer, self.lane)?;
            let mut header = Some(header);
            let requests = stream::once(future::ready(request)).chain(input);
            let frames = requests.map(move |request| wire::append(&request, header.take()));
            // The callee answers the headers at once, so this wait is one round trip at most.
            let replies = client
                .append(frames)
                .await
                .map_err(|status| failed(&status))?
                .into_inner();
            let results: BoxStream<'s, _> = Box::pin(replies.map(move |reply| match reply {
                Ok(reply) => {
                    peer.seen();
                    wire::to_append_reply(&reply).map_err(malformed)
                }
                Err(status) => Err(failed(&status)),
            }));
            Ok(results)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask_vote(request, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask_vote(request, true, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<S>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (peer, header) = self.callee()?;
        tracing::info!(
            group = self.scope.group,
            to = peer.node_id,
            what = snapshot.snapshot.describe(),
            "sending a snapshot"
        );
        let begin = SnapshotBegin {
            header: Some(header),
            vote: Some(wire::vote(&vote)),
            meta: Some(wire::snapshot_meta(&snapshot.meta)),
        };
        let mut client = self.raft(&peer, self.lane)?;
        let frames = stream::once(future::ready(SnapshotFrame {
            frame: Some(Frame::Begin(begin)),
        }))
        .chain(snapshot.snapshot.frames());
        let send = self.within(
            &peer,
            RPCTypes::InstallSnapshot,
            &option,
            client.install_snapshot(frames),
        );
        let reply = match future::select(pin!(cancel), pin!(send)).await {
            future::Either::Left((closed, _)) => return Err(StreamingError::Closed(closed)),
            future::Either::Right((reply, _)) => reply?,
        };
        let vote = reply
            .vote
            .ok_or_else(|| Unreachable::from_string("snapshot reply without a vote"))?;
        Ok(SnapshotResponse::new(wire::to_vote(&vote)))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let (peer, header) = self.callee()?;
        let mut client = self.raft(&peer, Lane::Urgent)?;
        let message = wire::transfer_request(&request, header);
        let reply = self
            .within(
                &peer,
                RPCTypes::TransferLeader,
                &option,
                client.transfer_leader(message),
            )
            .await?;
        wire::to_transfer_reply(&reply, &request).map_err(malformed)
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(BACKOFF)))
    }
}

impl Outgoing for SnapshotData {
    fn describe(&self) -> String {
        format!("{} bytes", self.length())
    }

    fn frames(self) -> impl Stream<Item = SnapshotFrame> + Send + 'static {
        pieces(self)
    }
}

/// The bytes of a snapshot as frames. A read error cuts the stream short, which the receiver notices by the missing end.
fn pieces(data: SnapshotData) -> impl Stream<Item = SnapshotFrame> + Send + 'static {
    stream::unfold(Some((data, 0_u64)), |state| async move {
        let (data, offset) = state?;
        let length = data.length();
        if offset >= length {
            let end = SnapshotFrame {
                frame: Some(Frame::End(SnapshotEnd { length })),
            };
            return Some((end, None));
        }
        let read = tokio::task::spawn_blocking(move || {
            data.read_at(offset, SNAPSHOT_PIECE)
                .map(|bytes| (bytes, data))
        });
        match read.await {
            Ok(Ok((bytes, data))) if !bytes.is_empty() => {
                let next = offset + bytes.len() as u64;
                Some((
                    SnapshotFrame {
                        frame: Some(Frame::Data(bytes)),
                    },
                    Some((data, next)),
                ))
            }
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::warn!(%error, "reading a snapshot to send failed");
                None
            }
            Err(_) => None,
        }
    })
}
