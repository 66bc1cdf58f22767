//! The receiving side of node-to-node consensus traffic.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use openraft::errors::RaftError;
use prost::Message;
use quorate_proto::{
    peer::v1::{
        AppendFrame, AppendReply, ChangeMembershipReply, ChangeMembershipRequest, HelloReply,
        HelloRequest, JoinReply, JoinRequest, ProposeReply, ProposeRequest, ReadIndexReply,
        ReadIndexRequest, Refusal, SnapshotFrame, SnapshotReply, TransferLeaderReply,
        TransferLeaderRequest, VoteReply, VoteRequest, raft_server,
    },
    store::v1::{CommandBatch, CommandReply},
    v1::resource::Spec,
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Admission, Lane, Peers,
    client::header,
    refuse, snapshot_receiver,
    stream::{Caller, caller_of},
};
use crate::{
    group::{Group, NotAccepted, WriteError},
    snapshots::Snapshots,
    state::SCHEMA,
    types::{CONTROL, Member},
    wire::{self, Malformed},
};

/// How long the process that is already known under a node id may take to show that it is alive.
const DUPLICATE_PROBE: Duration = Duration::from_millis(500);
/// A change of membership may take this long on the leader.
const CHANGE: Duration = Duration::from_secs(15);

/// The `Raft` service of a node.
pub(crate) struct RaftService {
    pub(crate) admission: Arc<Admission>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) snapshots: Arc<Snapshots>,
    /// Set once consensus runs; until then only hellos are answered.
    pub(crate) group: Arc<OnceLock<Arc<Group>>>,
    /// One snapshot is received at a time.
    pub(crate) receiving: tokio::sync::Mutex<()>,
}

fn caller<T>(request: &Request<T>) -> Option<Caller> {
    caller_of(request.extensions())
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped<E: std::fmt::Display>(error: E) -> Status {
    Status::unavailable(error.to_string())
}

impl RaftService {
    fn group(&self) -> Result<&Arc<Group>, Status> {
        self.group.get().ok_or_else(|| {
            refuse(
                Refusal::UnknownGroup,
                format!("group {CONTROL} is not running here yet"),
            )
        })
    }

    fn leading(&self) -> Result<&Arc<Group>, Status> {
        let group = self.group()?;
        if group.is_leader() {
            Ok(group)
        } else {
            Err(refuse(
                Refusal::NotLeader,
                format!("node {} does not lead", self.peers.local.node_id),
            ))
        }
    }

    /// Whether the process already known under this node id is still there beside the one that says hello.
    async fn other_process(&self, hello: &HelloRequest, registered: &Member) -> bool {
        let address = if registered.peer_address.is_empty() {
            &hello.peer_address
        } else {
            &registered.peer_address
        };
        let Ok(channel) = self.peers.dial(address, Some(registered.name.clone())) else {
            return false;
        };
        let probe = self.peers.hello(hello.node_id, false);
        let answer =
            tokio::time::timeout(DUPLICATE_PROBE, super::raft_client(channel).hello(probe)).await;
        match answer {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                reply.node_id == hello.node_id
                    && reply.cluster_id == hello.cluster_id
                    && reply.start_id != hello.start_id
            }
            _ => false,
        }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    type AppendStream = Replies<AppendReply>;

    async fn append(
        &self,
        request: Request<Streaming<AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = caller(&request);
        let mut frames = request.into_inner();
        let (admission, group) = (Arc::clone(&self.admission), Arc::clone(self.group()?));
        // The response headers go out at once; the first frame may be long in coming.
        let replies = stream::once(async move {
            let Some(first) = frames.message().await? else {
                let none: Replies<AppendReply> = Box::pin(stream::empty());
                return Ok(none);
            };
            admission.check(first.header.as_ref(), caller.as_ref())?;
            let first = wire::to_append(first).map_err(malformed)?;
            let rest = stream::unfold(frames, |mut frames| async move {
                let frame = frames.message().await.ok()??;
                match wire::to_append(frame) {
                    Ok(request) => Some((request, frames)),
                    Err(error) => {
                        tracing::warn!(%error, "replication stream ended");
                        None
                    }
                }
            });
            let results = group
                .raft
                .stream_append(stream::once(future::ready(first)).chain(rest));
            let replies: Replies<AppendReply> = Box::pin(results.map(|result| match result {
                Ok(result) => Ok(wire::append_reply(&result)),
                Err(fatal) => Err(stopped(fatal)),
            }));
            Ok::<_, Status>(replies)
        })
        .try_flatten();
        Ok(Response::new(Box::pin(replies)))
    }

    async fn heartbeat(
        &self,
        request: Request<AppendFrame>,
    ) -> Result<Response<AppendReply>, Status> {
        let caller = caller(&request);
        let frame = request.into_inner();
        self.admission
            .check(frame.header.as_ref(), caller.as_ref())?;
        let request = wire::to_append(frame).map_err(malformed)?;
        let prev = request.prev_log_id;
        if !request.entries.is_empty() {
            return Err(Status::invalid_argument("a heartbeat carries no entries"));
        }
        let response = self
            .group()?
            .raft
            .append_entries(request)
            .await
            .map_err(stopped)?;
        wire::heartbeat_reply(response, prev)
            .map(Response::new)
            .map_err(malformed)
    }

    async fn vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        self.admission
            .check(message.header.as_ref(), caller.as_ref())?;
        let vote = wire::to_vote_request(&message).map_err(malformed)?;
        let raft = &self.group()?.raft;
        let response = if message.pre_vote {
            raft.pre_vote(vote).await
        } else {
            raft.vote(vote).await
        };
        match response {
            Ok(response) => Ok(Response::new(wire::vote_reply(&response))),
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
            Err(RaftError::APIError(never)) => match never {},
        }
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let caller = caller(&request);
        let group = Arc::clone(self.group()?);
        let _one = self
            .receiving
            .try_lock()
            .map_err(|_| Status::unavailable("another snapshot is being received"))?;
        let received = snapshot_receiver::receive(
            request.into_inner(),
            |header| self.admission.check(header, caller.as_ref()).map(|_| ()),
            &self.snapshots,
            &self.peers.local.cluster_id,
        )
        .await?;
        tracing::info!(
            bytes = received.snapshot.snapshot.length(),
            "received a snapshot"
        );
        let response = group
            .raft
            .install_full_snapshot(received.vote, received.snapshot)
            .await
            .map_err(stopped)?;
        Ok(Response::new(SnapshotReply {
            vote: Some(wire::vote(&response.vote)),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        self.admission
            .check(message.header.as_ref(), caller.as_ref())?;
        let transfer = wire::to_transfer_request(&message).map_err(malformed)?;
        let response = self
            .group()?
            .raft
            .handle_transfer_leader(transfer)
            .await
            .map_err(stopped)?;
        Ok(Response::new(wire::transfer_reply(&response)))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        self.admission
            .check(message.header.as_ref(), caller.as_ref())?;
        let group = self.leading()?;
        // What goes into the log is applied by every node: nothing enters it that this build cannot apply.
        let batch = CommandBatch::decode(message.commands.clone())
            .map_err(|error| Status::invalid_argument(format!("malformed commands: {error}")))?;
        if !(1..=SCHEMA).contains(&batch.schema) {
            return Err(refuse(
                Refusal::Schema,
                format!("schema {} is unknown here", batch.schema),
            ));
        }
        let timeout = Duration::from_millis(message.timeout_ms.into());
        match tokio::time::timeout(timeout, group.write(message.commands)).await {
            Ok(Ok((index, replies))) => {
                let replies = replies
                    .iter()
                    .map(|reply| CommandReply::from(reply).encode_to_vec().into())
                    .collect();
                Ok(Response::new(ProposeReply { index, replies }))
            }
            Ok(Err(WriteError::NotAccepted(NotAccepted::Storage))) => {
                Err(refuse(Refusal::Storage, "the leader's disk is nearly full"))
            }
            Ok(Err(WriteError::NotAccepted(why))) => Err(refuse(
                Refusal::NotLeader,
                format!("the write was not accepted ({why:?})"),
            )),
            Ok(Err(WriteError::Unknown(why))) => Err(Status::unknown(why)),
            Ok(Err(WriteError::Stopped)) => {
                Err(Status::unknown("consensus has stopped on the leader"))
            }
            Err(_) => Err(Status::deadline_exceeded(
                "the write was not answered in time",
            )),
        }
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        self.admission
            .check(message.header.as_ref(), caller.as_ref())?;
        match self.leading()?.read_index(message.lease).await {
            Ok(index) => Ok(Response::new(ReadIndexReply { index })),
            Err(why) => Err(refuse(
                Refusal::NotLeader,
                format!("the read was not confirmed ({why:?})"),
            )),
        }
    }

    async fn change_membership(
        &self,
        request: Request<ChangeMembershipRequest>,
    ) -> Result<Response<ChangeMembershipReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        self.admission
            .check(message.header.as_ref(), caller.as_ref())?;
        let change = message
            .change
            .ok_or_else(|| Status::invalid_argument("no change, or one of a newer version"))?;
        let members = self
            .leading()?
            .change_as_leader(change, Instant::now() + CHANGE)
            .await
            .map_err(|error| error.to_status())?;
        Ok(Response::new(members.into()))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let caller = caller(&request);
        let hello = request.into_inner();
        let local = &self.peers.local;
        self.admission.check_cluster(&hello.cluster_id)?;
        if hello.to != 0 && hello.to != local.node_id {
            return Err(refuse(
                Refusal::WrongNode,
                format!(
                    "this is node {}, the call was meant for node {}",
                    local.node_id, hello.to
                ),
            ));
        }
        self.admission.check_node(hello.node_id, caller.as_ref())?;
        let registered = self.admission.registered(hello.node_id);
        if let Some(known) = registered
            .as_ref()
            .filter(|known| known.instance != hello.instance)
        {
            return Err(refuse(
                Refusal::Duplicate,
                format!(
                    "node {} ({}) is registered with another data directory; if that one is lost, remove the node from the \
                     cluster and join again with an empty directory",
                    hello.node_id, known.name
                ),
            ));
        }
        if hello.starting {
            let duplicate = if hello.node_id == local.node_id {
                hello.start_id != local.start_id
            } else {
                match &registered {
                    Some(known) => self.other_process(&hello, known).await,
                    None => false,
                }
            };
            if duplicate {
                return Err(refuse(
                    Refusal::Duplicate,
                    format!(
                        "node {} ({}) is running already as another process: a copy of its data directory must not be started",
                        hello.node_id, hello.name
                    ),
                ));
            }
            self.admission
                .replace_process(hello.node_id, hello.start_id);
            if let Some(peer) = self.peers.get(hello.node_id) {
                peer.disconnect();
            }
        } else if hello.node_id != local.node_id {
            self.admission
                .check_process(hello.node_id, hello.start_id)?;
        }
        if let Some(peer) = self.peers.get(hello.node_id) {
            peer.seen();
        }
        let group = self.group.get();
        Ok(Response::new(HelloReply {
            cluster_id: local.cluster_id.clone(),
            node_id: local.node_id,
            name: local.name.clone(),
            instance: local.instance.clone(),
            start_id: local.start_id,
            timing: local.timing.name().to_owned(),
            schema: SCHEMA,
            groups: group.iter().map(|group| group.progress()).collect(),
            problem: group
                .and_then(|group| group.problem.borrow().clone())
                .unwrap_or_default(),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let caller = caller(&request);
        let mut join = request.into_inner();
        if !join.cluster_id.is_empty() {
            self.admission.check_cluster(&join.cluster_id)?;
        }
        match &join.forwarded {
            Some(header) => drop(self.admission.check(Some(header), caller.as_ref())?),
            None => {
                if let Some(name) = caller
                    .and_then(|caller| caller.name)
                    .filter(|name| *name != join.name)
                {
                    return Err(refuse(
                        Refusal::Certificate,
                        format!(
                            "the certificate is that of node {name:?}, the caller calls itself {:?}",
                            join.name
                        ),
                    ));
                }
            }
        }
        let group = self.group()?;
        match group.leader() {
            Some(leader) if leader == self.peers.local.node_id => {
                group.join_as_leader(join).await.map(Response::new)
            }
            Some(leader) if join.forwarded.is_none() => {
                let peer = self
                    .peers
                    .get(leader)
                    .ok_or_else(|| Status::unavailable("the leader is unknown"))?;
                join.forwarded = Some(header(&self.peers, CONTROL, leader));
                let mut client = self.peers.client(&peer, Lane::Urgent).map_err(stopped)?;
                client.join(join).await
            }
            _ => Err(refuse(Refusal::NotLeader, "there is no leader at present")),
        }
    }
}

impl Admission {
    /// The node as registered.
    fn registered(&self, node_id: u64) -> Option<Member> {
        let view = self.view();
        let resource = view.node_by_id(node_id)?;
        match &resource.spec {
            Some(Spec::Node(node)) => Some(Member {
                name: resource
                    .metadata
                    .as_ref()
                    .map(|metadata| metadata.name.clone())
                    .unwrap_or_default(),
                instance: node.instance.clone(),
                peer_address: node.peer_address.clone(),
            }),
            _ => None,
        }
    }
}
