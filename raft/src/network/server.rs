//! The receiving side of node-to-node consensus traffic.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{TryStreamExt, stream};
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
    Admission, Door, Lane, Peers,
    client::header,
    consensus::{self, Replies, stopped},
    door::Addressed,
    refuse, snapshot_receiver,
    stream::{Caller, caller_of},
};
use crate::{
    group::{Group, NotAccepted, WriteError},
    snapshots::Snapshots,
    state::SCHEMA,
    types::{CONTROL, Member},
    wire,
};

/// How long the process that is already known under a node id may take to show that it is alive.
const DUPLICATE_PROBE: Duration = Duration::from_millis(500);
/// A change of membership may take this long on the leader.
const CHANGE: Duration = Duration::from_secs(15);

/// The `Raft` service of a node.
pub(crate) struct RaftService {
    pub(crate) door: Arc<Door>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) snapshots: Arc<Snapshots>,
    /// One snapshot of the control group is received at a time.
    pub(crate) receiving: tokio::sync::Mutex<()>,
}

fn caller<T>(request: &Request<T>) -> Option<Caller> {
    caller_of(request.extensions())
}

impl RaftService {
    fn not_leader(&self) -> Status {
        refuse(
            Refusal::NotLeader,
            format!("node {} does not lead", self.peers.local.node_id),
        )
    }

    fn leading(&self, group: Arc<Group>) -> Result<Arc<Group>, Status> {
        if group.is_leader() {
            Ok(group)
        } else {
            Err(self.not_leader())
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

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    type AppendStream = Replies;

    async fn append(
        &self,
        request: Request<Streaming<AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = caller(&request);
        let mut frames = request.into_inner();
        let door = Arc::clone(&self.door);
        // The response headers go out at once; the first frame may be long in coming.
        let replies = stream::once(async move {
            let Some(first) = frames.message().await? else {
                let none: Replies = Box::pin(stream::empty());
                return Ok(none);
            };
            match door.addressed(first.header.as_ref(), caller.as_ref())? {
                Addressed::Control(group) => consensus::append(&group.raft, first, frames, || {}),
                Addressed::Volatile(instance) => {
                    let heard = Arc::clone(&instance);
                    consensus::append(&instance.raft, first, frames, move || heard.heard())
                }
            }
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
        let reply = match self
            .door
            .addressed(frame.header.as_ref(), caller.as_ref())?
        {
            Addressed::Control(group) => consensus::heartbeat(&group.raft, frame).await?.0,
            Addressed::Volatile(instance) => {
                let (reply, leads) = consensus::heartbeat(&instance.raft, frame).await?;
                if leads {
                    instance.heard();
                }
                reply
            }
        };
        Ok(Response::new(reply))
    }

    async fn vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        let reply = match self
            .door
            .addressed(message.header.as_ref(), caller.as_ref())?
        {
            Addressed::Control(group) => consensus::vote(&group.raft, &message).await?,
            Addressed::Volatile(instance) => consensus::vote(&instance.raft, &message).await?,
        };
        Ok(Response::new(reply))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let caller = caller(&request);
        let mut frames = request.into_inner();
        let begin = snapshot_receiver::begin(&mut frames).await?;
        let vote = match self
            .door
            .addressed(begin.header.as_ref(), caller.as_ref())?
        {
            Addressed::Volatile(instance) => instance.receive(begin, frames).await?,
            Addressed::Control(group) => {
                let _one = self
                    .receiving
                    .try_lock()
                    .map_err(|_| Status::unavailable("another snapshot is being received"))?;
                let received = snapshot_receiver::receive(
                    begin,
                    frames,
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
                wire::vote(&response.vote)
            }
        };
        Ok(Response::new(SnapshotReply { vote: Some(vote) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        let reply = match self
            .door
            .addressed(message.header.as_ref(), caller.as_ref())?
        {
            Addressed::Control(group) => consensus::transfer(&group.raft, &message).await?,
            Addressed::Volatile(instance) => consensus::transfer(&instance.raft, &message).await?,
        };
        Ok(Response::new(reply))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let caller = caller(&request);
        let message = request.into_inner();
        let group = match self
            .door
            .addressed(message.header.as_ref(), caller.as_ref())?
        {
            Addressed::Control(group) => self.leading(group)?,
            Addressed::Volatile(instance) => {
                return instance.propose_here(message).await.map(Response::new);
            }
        };
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
        let group = self
            .door
            .for_control(message.header.as_ref(), caller.as_ref())?;
        match self.leading(group)?.read_index(message.lease).await {
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
        let group = self
            .door
            .for_control(message.header.as_ref(), caller.as_ref())?;
        let change = message
            .change
            .ok_or_else(|| Status::invalid_argument("no change, or one of a newer version"))?;
        let members = self
            .leading(group)?
            .change_as_leader(change, Instant::now() + CHANGE)
            .await
            .map_err(|error| error.to_status())?;
        Ok(Response::new(members.into()))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let caller = caller(&request);
        let hello = request.into_inner();
        let local = &self.peers.local;
        self.door.admission.check_cluster(&hello.cluster_id)?;
        if hello.to != 0 && hello.to != local.node_id {
            return Err(refuse(
                Refusal::WrongNode,
                format!(
                    "this is node {}, the call was meant for node {}",
                    local.node_id, hello.to
                ),
            ));
        }
        self.door
            .admission
            .check_node(hello.node_id, caller.as_ref())?;
        let registered = self.door.admission.registered(hello.node_id);
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
            self.door
                .admission
                .replace_process(hello.node_id, hello.start_id);
            if let Some(peer) = self.peers.get(hello.node_id) {
                peer.disconnect();
            }
        } else if hello.node_id != local.node_id {
            self.door
                .admission
                .check_process(hello.node_id, hello.start_id)?;
        }
        if let Some(peer) = self.peers.get(hello.node_id) {
            peer.seen();
        }
        let group = self.door.control.get();
        Ok(Response::new(HelloReply {
            cluster_id: local.cluster_id.clone(),
            node_id: local.node_id,
            name: local.name.clone(),
            instance: local.instance.clone(),
            start_id: local.start_id,
            timing: local.timing.name().to_owned(),
            schema: SCHEMA,
            groups: group
                .iter()
                .map(|group| group.progress())
                .chain(self.door.hosted.progress())
                .collect(),
            problem: group
                .and_then(|group| group.problem.borrow().clone())
                .unwrap_or_default(),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let caller = caller(&request);
        let mut join = request.into_inner();
        if !join.cluster_id.is_empty() {
            self.door.admission.check_cluster(&join.cluster_id)?;
        }
        match &join.forwarded {
            Some(header) => drop(self.door.for_control(Some(header), caller.as_ref())?),
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
        let group = self.door.control()?;
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
