//! The sending side of consensus: openraft's network calls as gRPC calls on the shared connections.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

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
    self as peer, AppendFrame, AppendReply, Header, SnapshotBegin, SnapshotEnd, SnapshotFrame,
    snapshot_frame::Frame,
};
use tonic::{Code, Status};

use super::{Lane, Peer, Peers};
use crate::{
    snapshots::SnapshotData,
    types::{Member, TypeConfig, Vote},
    wire,
};

/// Pause before an unreachable node is tried again.
const BACKOFF: Duration = Duration::from_millis(50);
/// Size of the pieces a snapshot is sent in.
const SNAPSHOT_PIECE: usize = 1 << 20;

type Rpc<T> = Result<T, RPCError<TypeConfig>>;
type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// Makes clients for one group.
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
    pub(crate) group: &'static str,
}

impl Network {
    fn client(&self, target: u64, member: &Member, lane: Lane) -> Client {
        Client {
            peers: Arc::clone(&self.peers),
            peer: self.peers.learn(target, member),
            group: self.group,
            lane,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Lane::Data)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Lane::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, Lane::Snapshot)
    }
}

/// Calls of one group to one node over one lane.
pub(crate) struct Client {
    peers: Arc<Peers>,
    peer: Arc<Peer>,
    group: &'static str,
    lane: Lane,
}

impl Client {
    fn header(&self) -> Header {
        header(&self.peers, self.group, self.peer.node_id)
    }

    fn raft(&self, lane: Lane) -> Rpc<peer::raft_client::RaftClient<tonic::transport::Channel>> {
        self.peers
            .client(&self.peer, lane)
            .map_err(|error| RPCError::Unreachable(Unreachable::from_string(error)))
    }

    /// Waits for an answer at most as long as openraft allows.
    async fn within<T>(
        &self,
        action: RPCTypes,
        option: &RPCOption,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Rpc<T> {
        let timeout = option.soft_ttl();
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(answer)) => {
                self.peer.seen();
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.peers.local.node_id,
                target: self.peer.node_id,
                timeout,
            })),
        }
    }

    async fn single_append(&self, frame: AppendFrame, option: &RPCOption) -> Rpc<AppendReply> {
        let mut client = self.raft(Lane::Urgent)?;
        self.within(RPCTypes::AppendEntries, option, client.heartbeat(frame))
            .await
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre_vote: bool,
        option: &RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let mut client = self.raft(Lane::Urgent)?;
        let message = wire::vote_request(&request, self.header(), pre_vote);
        let reply = self
            .within(RPCTypes::Vote, option, client.vote(message))
            .await?;
        wire::to_vote_reply(&reply).map_err(malformed)
    }
}

/// The header of a call from this process.
pub(crate) fn header(peers: &Peers, group: &str, to: u64) -> Header {
    Header {
        cluster_id: peers.local.cluster_id.clone(),
        group: group.to_owned(),
        epoch: 0,
        from: peers.local.node_id,
        to,
        start_id: peers.local.start_id,
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

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let frame = wire::append(&request, Some(self.header()));
        let reply = self.single_append(frame, &option).await?;
        wire::to_append_reply(&reply)
            .map(AppendEntriesResponse::from)
            .map_err(malformed)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let header = self.header();
            if self.lane == Lane::Urgent {
                // A heartbeat: one request, one answer, no stream to set up.
                let Some(request) = input.next().await else {
                    let none: BoxStream<'s, _> = Box::pin(stream::empty());
                    return Ok(none);
                };
                let reply = self
                    .single_append(wire::append(&request, Some(header)), &option)
                    .await?;
                let result = wire::to_append_reply(&reply).map_err(malformed)?;
                let one: BoxStream<'s, _> = Box::pin(stream::once(future::ready(Ok(result))));
                return Ok(one);
            }
            let mut client = self.raft(self.lane)?;
            let mut header = Some(header);
            let frames = input.map(move |request| wire::append(&request, header.take()));
            // The callee answers the headers at once, so this wait is one round trip at most.
            let replies = client
                .append(frames)
                .await
                .map_err(|status| failed(&status))?
                .into_inner();
            let peer = Arc::clone(&self.peer);
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
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tracing::info!(
            to = self.peer.node_id,
            bytes = snapshot.snapshot.length(),
            "sending a snapshot"
        );
        let begin = SnapshotBegin {
            header: Some(self.header()),
            vote: Some(wire::vote(&vote)),
            meta: Some(wire::snapshot_meta(&snapshot.meta)),
        };
        let mut client = self.raft(Lane::Snapshot)?;
        let frames = stream::once(future::ready(SnapshotFrame {
            frame: Some(Frame::Begin(begin)),
        }))
        .chain(pieces(snapshot.snapshot));
        let send = self.within(
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
        let mut client = self.raft(Lane::Urgent)?;
        let message = wire::transfer_request(&request, self.header());
        let reply = self
            .within(
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
