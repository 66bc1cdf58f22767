//! Starting a node: identity, storage, listener, consensus, and a place in the cluster.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use openraft::{Config, SnapshotPolicy, StepDownPolicy, async_runtime::watch::WatchReceiver};
use quorate_proto::{
    peer::v1::{JoinReply, JoinRequest, Refusal, raft_server::RaftServer},
    store::v1::{Command, InitCluster, RegisterNode, command::Op},
    v1::{NodeSpec, resource::Spec},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};

use crate::{
    cluster::{Cluster, Inner, Leadership, StopReason},
    error::{Error, StorageError},
    group::{Freshness, Group, Proposer, Reader},
    identity::{DataDir, Identity, MemberId, fill_random},
    machine::ControlMachine,
    network::{
        self, Admission, Lane, Local, MAX_MESSAGE, Network, Peers, RaftService, Tls, raft_client,
        refusal_of,
    },
    options::{Options, PeerListen, Start, Timing},
    snapshots::Snapshots,
    state::{FOUNDER_ID, SCHEMA, validate},
    storage::{Owner, Storage},
    supervisor::Supervisor,
    types::{CONTROL, Member, Raft},
};

/// How long a new node asks to be taken in.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// One join call; the leader may wait for the node to catch up meanwhile.
const JOIN_CALL: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_millis(100);
/// How long a starting node waits for its peers to check that it is the only one with its id.
const START_CHECK: Duration = Duration::from_millis(1000);
/// How long a founder may take to become leader and write the first command.
const FOUND_TIMEOUT: Duration = Duration::from_secs(30);
/// No snapshot is written with less room than this, lest it fill the disk.
const SNAPSHOT_ROOM: u64 = 64 << 20;

/// How a node came to be a member.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Founded,
    Joined,
    Resumed,
}

pub(crate) async fn start(mut options: Options) -> Result<Cluster, Error> {
    check_options(&options)?;
    let (listener, peer_address) = listen(&mut options)?;
    let tls = match &options.tls {
        Some(files) => Some(Arc::new(Tls::load(files, &options.node_name)?)),
        None => None,
    };
    let data = match options.data_dir.clone() {
        Some(path) => Some(Arc::new(blocking(move || DataDir::open(&path)).await?)),
        None => None,
    };
    let identity = match &data {
        Some(data) => data.identity()?,
        None => None,
    };
    let durability = options.durability;
    let began = Instant::now();
    let mut storage = match data.clone() {
        Some(data) => blocking(move || Ok(Storage::open(data.path(), durability)?)).await?,
        None => Storage::in_memory(),
    };
    tracing::info!(
        seconds = began.elapsed().as_secs_f64(),
        "opened and checked the database"
    );
    let mut start_id = [0; 8];
    fill_random(&mut start_id)?;
    let start_id = u64::from_le_bytes(start_id);

    let mut identity = reconcile(identity, &storage, &options, data.as_deref())?;
    let origin = match (&identity.member, &options.start) {
        (Some(_), _) => Origin::Resumed,
        (None, Start::Bootstrap) => Origin::Founded,
        (None, Start::Join(_)) => Origin::Joined,
        (None, Start::Resume) => {
            return Err(Error::NoIdentity(options.data_dir.unwrap_or_default()));
        }
    };
    let spec = node_spec(&options, &identity, &peer_address);
    if identity.member.is_none() {
        if let Some(data) = &data {
            // The instance must be the same if the join has to be asked for again.
            data.write_identity(&identity)?;
        }
        let member = match (&options.start, origin) {
            (Start::Join(peers), Origin::Joined) => {
                let request = join_request(&identity, spec.clone(), start_id, "", false);
                let reply = first_contact(peers, tls.as_ref(), options.timing, request).await?;
                MemberId {
                    cluster_id: reply.cluster_id,
                    node_id: reply.node_id,
                    settled: false,
                }
            }
            _ => MemberId {
                cluster_id: crate::identity::random_id()?,
                node_id: FOUNDER_ID,
                settled: false,
            },
        };
        identity.member = Some(member);
    }
    let Some(member) = identity.member.clone() else {
        return Err(Error::Options("the node has no identity".to_owned()));
    };
    if storage.owner().is_none() {
        let owner = Owner {
            cluster_id: member.cluster_id.clone(),
            node_id: member.node_id,
            instance: identity.instance.clone(),
        };
        storage = blocking(move || {
            storage.set_owner(&owner)?;
            Ok(storage)
        })
        .await?;
    }
    if let Some(data) = &data {
        data.write_identity(&identity)?;
    }
    let local = Arc::new(Local {
        cluster_id: member.cluster_id.clone(),
        node_id: member.node_id,
        name: identity.name.clone(),
        instance: identity.instance.clone(),
        start_id,
        timing: options.timing,
        peer_address,
    });
    launch(
        options,
        listener,
        tls,
        data,
        storage,
        identity,
        local,
        NodeSpec {
            node_id: member.node_id,
            ..spec
        },
        origin,
    )
    .await
}

/// Everything from the opened storage on.
#[allow(clippy::too_many_arguments)]
async fn launch(
    mut options: Options,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    data: Option<Arc<DataDir>>,
    storage: Storage,
    identity: Identity,
    local: Arc<Local>,
    spec: NodeSpec,
    origin: Origin,
) -> Result<Cluster, Error> {
    let began = Instant::now();
    let (snapshots, restored) = match data.clone() {
        Some(data) => {
            let cluster_id = local.cluster_id.clone();
            blocking(move || Snapshots::open(&data.path().join("snapshots"), CONTROL, &cluster_id))
                .await?
        }
        None => (Snapshots::in_memory(CONTROL), None),
    };
    tracing::info!(
        seconds = began.elapsed().as_secs_f64(),
        "read and verified the snapshot"
    );
    let snapshots = Arc::new(snapshots);
    let in_snapshot = restored
        .as_ref()
        .map(|(meta, _)| meta.last_membership.membership().clone());
    let room = {
        let data = data.clone();
        Arc::new(move || {
            data.as_ref()
                .and_then(|data| data.free_bytes())
                .is_none_or(|free| free >= SNAPSHOT_ROOM)
        })
    };
    let machine = ControlMachine::new(Arc::clone(&snapshots), restored, room);
    let published = machine.published();
    let (writer, logs) = storage.start(&[CONTROL], data.clone())?;
    let log = logs
        .into_iter()
        .next()
        .ok_or_else(|| Error::Raft("no log".to_owned()))?;
    if let (Some(purged), Some(data)) = (log.purged(), &data)
        && published.applied() <= purged.index
    {
        return Err(Error::Storage(StorageError::corrupt(
            &data.path().join("snapshots"),
            format!(
                "the log begins after entry {}, and there is no snapshot of what came before",
                purged.index
            ),
        )));
    }
    let membership = log.last_membership().or(in_snapshot).unwrap_or_default();
    let peers = Arc::new(Peers::new(Arc::clone(&local), tls.clone()));
    for (id, member) in membership.nodes().filter(|(id, _)| **id != local.node_id) {
        peers.learn(*id, member);
    }

    // The listener answers hellos from here on, so that peers that are asked below can see that this is the only process.
    let running = Arc::new(OnceLock::new());
    let service = RaftServer::new(RaftService {
        admission: Arc::new(Admission::new(Arc::clone(&local), Arc::clone(&published))),
        peers: Arc::clone(&peers),
        snapshots: Arc::clone(&snapshots),
        group: Arc::clone(&running),
        receiving: tokio::sync::Mutex::default(),
    })
    .max_decoding_message_size(MAX_MESSAGE)
    .max_encoding_message_size(MAX_MESSAGE);
    let routes = options
        .extra_services
        .take()
        .unwrap_or_default()
        .add_service(service);
    let stop = CancellationToken::new();
    // Whatever fails from here on stops what was started.
    let guard = stop.clone().drop_guard();
    let tasks = TaskTracker::new();
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(|error| Error::Options(format!("the peer listener cannot be used: {error}")))?;
    tasks.spawn(network::serve(
        listener,
        tls,
        options.timing,
        routes,
        stop.clone(),
    ));

    if origin == Origin::Resumed {
        check_alone(&peers, membership.get_node(&local.node_id), &options.start).await?;
    }
    let config = raft_config(&options)?;
    let network = Network {
        peers: Arc::clone(&peers),
        group: CONTROL,
    };
    let began = Instant::now();
    let raft = Raft::new(local.node_id, config, network, log.clone(), machine)
        .await
        .map_err(|error| Error::Raft(error.to_string()))?;
    tracing::info!(
        seconds = began.elapsed().as_secs_f64(),
        "applied the committed log entries"
    );
    let group = Arc::new(Group {
        name: CONTROL,
        raft,
        log,
        writer,
        published,
        peers,
        local: Arc::clone(&local),
        auto_voters: options.auto_voters,
        changes: tokio::sync::Mutex::default(),
        writable: AtomicBool::new(true),
        problem: watch::Sender::new(None),
    });
    let _ = running.set(Arc::clone(&group));

    let (leadership, leadership_rx) = watch::channel(Leadership::default());
    let stopped = watch::Sender::new(None);
    let (settled, settled_rx) = watch::channel(false);
    let supervisor = Supervisor {
        group: Arc::clone(&group),
        data: data.clone(),
        leadership,
        stopped: stopped.clone(),
    };
    tasks.spawn(supervisor.run(stop.clone()));
    let cluster = Cluster {
        inner: Arc::new(Inner {
            proposer: Proposer::spawn(Arc::clone(&group)),
            reader: Reader::spawn(Arc::clone(&group)),
            freshness: Freshness::spawn(Arc::clone(&group), stop.clone()),
            propose_timeout: options.propose_timeout,
            group: Arc::clone(&group),
            stop: stop.clone(),
            tasks: tasks.clone(),
            stopped: stopped.clone(),
            leadership: leadership_rx,
            settled: settled_rx,
        }),
    };
    let sole_voter = membership.voter_ids().eq([local.node_id]);
    if let Err(error) = first_election(&group, &identity, &spec, sole_voter).await {
        let _ = group.raft.shutdown().await;
        return Err(error);
    }
    let enrolment = Enrolment {
        group,
        data,
        identity,
        spec,
        settled,
        stopped,
    };
    tasks.spawn(enrolment.run(stop));
    guard.disarm();
    Ok(cluster)
}

/// Forms the group if this node founds it (or was interrupted while it did), and lets a node that is its own majority lead
/// at once.
async fn first_election(
    group: &Arc<Group>,
    identity: &Identity,
    spec: &NodeSpec,
    sole_voter: bool,
) -> Result<(), Error> {
    let me = group.local.node_id;
    let founding = me == FOUNDER_ID
        && identity
            .member
            .as_ref()
            .is_some_and(|member| !member.settled);
    if founding && group.log.is_pristine() {
        let member = Member {
            name: identity.name.clone(),
            instance: identity.instance.clone(),
            peer_address: group.local.peer_address.clone(),
        };
        group
            .raft
            .initialize(BTreeMap::from([(me, member)]))
            .await
            .map_err(|error| Error::Raft(error.to_string()))?;
    } else if sole_voter {
        group
            .raft
            .trigger()
            .elect(false)
            .await
            .map_err(|error| Error::Raft(error.to_string()))?;
    }
    if !founding {
        return Ok(());
    }
    let found = async {
        while group.published.view().cluster_id().is_empty() {
            let metrics = group.raft.metrics();
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return Err(Error::Raft(fatal.to_string()));
            }
            let init = InitCluster {
                cluster_id: group.local.cluster_id.clone(),
                timing: group.timing().name().to_owned(),
                founder: Some(RegisterNode {
                    name: identity.name.clone(),
                    node: Some(spec.clone()),
                }),
            };
            match group.write_own(Op::InitCluster(init)).await {
                Ok(()) => {}
                Err(Some(rejected)) => return Err(Error::Options(rejected)),
                Err(None) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        Ok(())
    };
    tokio::time::timeout(FOUND_TIMEOUT, found)
        .await
        .unwrap_or_else(|_| {
            Err(Error::Raft(
                "the founding node did not become leader".to_owned(),
            ))
        })
}

/// Brings the node's resource and role up to date, once, as soon as there is a leader to do it with.
struct Enrolment {
    group: Arc<Group>,
    data: Option<Arc<DataDir>>,
    identity: Identity,
    spec: NodeSpec,
    settled: watch::Sender<bool>,
    stopped: watch::Sender<Option<StopReason>>,
}

impl Enrolment {
    async fn run(mut self, stop: CancellationToken) {
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = RETRY;
            let member_settled = self
                .identity
                .member
                .as_ref()
                .is_some_and(|member| member.settled);
            if member_settled {
                // Ready to serve; what remains is to tell others of a changed address or version.
                self.settled.send_replace(true);
            }
            if self.group.leader().is_none() {
                continue;
            }
            if member_settled && self.up_to_date() {
                return;
            }
            match self.ask(!member_settled).await {
                Ok(()) => {
                    if let Err(error) = self.settle() {
                        tracing::warn!(%error, "the identity file cannot be written");
                        continue;
                    }
                    self.settled.send_replace(true);
                    return;
                }
                Err(status) => match refusal_of(&status) {
                    Some(Refusal::Removed) => Inner::stop_for(&self.stopped, StopReason::Removed),
                    Some(refusal) => {
                        tracing::debug!(?refusal, why = status.message(), "enrolment refused")
                    }
                    None => tracing::debug!(why = status.message(), "enrolment failed"),
                },
            }
        }
    }

    /// Whether the registered resource says what this process is.
    fn up_to_date(&self) -> bool {
        let view = self.group.published.view();
        // Not there yet: the log has not been applied so far.
        view.node_by_id(self.spec.node_id)
            .is_some_and(|node| matches!(&node.spec, Some(Spec::Node(spec)) if *spec == self.spec))
    }

    async fn ask(&self, settle: bool) -> Result<(), Status> {
        let local = &self.group.local;
        let request = join_request(
            &self.identity,
            self.spec.clone(),
            local.start_id,
            &local.cluster_id,
            settle,
        );
        if self.group.is_leader() {
            return self.group.join_as_leader(request).await.map(drop);
        }
        let leader = self
            .group
            .leader()
            .ok_or_else(|| Status::unavailable("no leader"))?;
        let peer = self
            .group
            .peers
            .get(leader)
            .ok_or_else(|| Status::unavailable("the leader is unknown"))?;
        let mut client = self
            .group
            .peers
            .client(&peer, Lane::Urgent)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        tokio::time::timeout(JOIN_CALL, client.join(request))
            .await
            .map_err(|_| Status::deadline_exceeded("no answer"))?
            .map(drop)
    }

    fn settle(&mut self) -> Result<(), Error> {
        if let Some(member) = &mut self.identity.member {
            member.settled = true;
        }
        match &self.data {
            Some(data) => data.write_identity(&self.identity),
            None => Ok(()),
        }
    }
}

impl Group {
    /// Writes a command of the node's own as the leader. `Err(Some)`: the state refused it, with its reason.
    async fn write_own(&self, op: Op) -> Result<(), Option<String>> {
        use prost::Message;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let command = Command {
            idempotency_key: String::new(),
            time_unix_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            origin_node_id: self.local.node_id,
            op: Some(op),
        };
        let batch = quorate_proto::store::v1::CommandBatch {
            schema: SCHEMA,
            commands: vec![command],
        };
        match self.write(batch.encode_to_vec().into()).await {
            Ok((_, replies)) => match replies.into_iter().next() {
                Some(crate::state::Reply::Rejected(rejection)) => Err(Some(rejection.message)),
                _ => Ok(()),
            },
            Err(_) => Err(None),
        }
    }
}

fn check_options(options: &Options) -> Result<(), Error> {
    let bad =
        |error: validate::FieldError| Error::Options(format!("{}: {}", error.field, error.message));
    validate::name("node name", &options.node_name).map_err(bad)?;
    validate::name("region", &options.region).map_err(bad)?;
    if options.auto_voters == 0 {
        return Err(Error::Options("auto_voters must be at least 1".to_owned()));
    }
    if options.snapshot_every == 0 {
        return Err(Error::Options(
            "snapshot_every must be at least 1".to_owned(),
        ));
    }
    if let Start::Join(peers) = &options.start {
        if peers.is_empty() {
            return Err(Error::Options(
                "at least one peer to join is needed".to_owned(),
            ));
        }
        for peer in peers {
            let (host, _) = split_address(peer).ok_or_else(|| {
                Error::Options(format!("{peer:?} is not a peer address (host:port)"))
            })?;
            if let Ok(ip) = host.parse::<IpAddr>()
                && options.tls.is_none()
                && !ip.to_canonical().is_loopback()
            {
                return Err(Error::PlainText(peer.clone()));
            }
        }
    }
    Ok(())
}

/// Host (without brackets) and port.
fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}

/// Binds the peer listener; returns it with the address that peers are told.
fn listen(options: &mut Options) -> Result<(TcpListener, String), Error> {
    let unspecified = PeerListen::Address(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = match std::mem::replace(&mut options.peer_listen, unspecified) {
        PeerListen::Bound(listener) => listener,
        PeerListen::Address(address) => {
            TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?
        }
    };
    let local = listener
        .local_addr()
        .and_then(|local| listener.set_nonblocking(true).map(|()| local))
        .map_err(|error| Error::Options(format!("the peer listener cannot be used: {error}")))?;
    if options.tls.is_none() && !local.ip().to_canonical().is_loopback() {
        return Err(Error::PlainText(local.to_string()));
    }
    let address = match &options.advertise.peer {
        Some(address) => {
            let (host, _) = split_address(address).ok_or_else(|| {
                Error::Options(format!("{address:?} is not a peer address (host:port)"))
            })?;
            if options.tls.is_none()
                && host
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| !ip.to_canonical().is_loopback())
            {
                return Err(Error::PlainText(address.clone()));
            }
            address.clone()
        }
        None if local.ip().is_unspecified() => {
            return Err(Error::Options(format!(
                "{local} accepts connections on every address: say which one other nodes shall use"
            )));
        }
        None => local.to_string(),
    };
    Ok((listener, address))
}

/// Makes identity file, database and options agree, or says which two do not.
fn reconcile(
    identity: Option<Identity>,
    storage: &Storage,
    options: &Options,
    data: Option<&DataDir>,
) -> Result<Identity, Error> {
    let file = data.map_or_else(
        || Path::new("memory").to_owned(),
        |data| data.path().join("identity"),
    );
    let mismatch = |why: String| {
        Error::Storage(StorageError::Mismatch {
            path: file.clone(),
            why,
        })
    };
    let owner = storage.owner();
    let Some(mut identity) = identity else {
        return match owner {
            Some(owner) => Err(mismatch(format!(
                "the file is missing, but the database beside it belongs to node {} of cluster {}; restore the file, or \
                 start with an empty data directory",
                owner.node_id, owner.cluster_id
            ))),
            None => Identity::new(&options.node_name, options.timing),
        };
    };
    if identity.name != options.node_name {
        return Err(mismatch(format!(
            "this data directory belongs to node {:?}, not to {:?}: start it under its own name, or with another directory",
            identity.name, options.node_name
        )));
    }
    match (&identity.member, owner) {
        (Some(member), None) => {
            return Err(Error::Storage(StorageError::corrupt(
                storage.path(),
                format!(
                    "the identity file says node {} of cluster {}, but the database is empty: its log was lost",
                    member.node_id, member.cluster_id
                ),
            )));
        }
        (Some(member), Some(owner)) => {
            if (&member.cluster_id, member.node_id, &identity.instance)
                != (&owner.cluster_id, owner.node_id, &owner.instance)
            {
                return Err(mismatch(format!(
                    "it belongs to node {} of cluster {}, but the database beside it to node {} of cluster {}",
                    member.node_id, member.cluster_id, owner.node_id, owner.cluster_id
                )));
            }
        }
        // Interrupted between writing the database's owner and the identity file.
        (None, Some(owner)) if owner.instance == identity.instance => {
            identity.member = Some(MemberId {
                cluster_id: owner.cluster_id,
                node_id: owner.node_id,
                settled: false,
            });
        }
        (None, Some(owner)) => {
            return Err(mismatch(format!(
                "the database beside it belongs to another data directory (node {} of cluster {})",
                owner.node_id, owner.cluster_id
            )));
        }
        (None, None) => identity.timing = options.timing,
    }
    if identity.timing != options.timing {
        return Err(mismatch(format!(
            "the cluster uses the timing preset {}, the options say {}; all nodes must use the same",
            identity.timing, options.timing
        )));
    }
    Ok(identity)
}

fn node_spec(options: &Options, identity: &Identity, peer_address: &str) -> NodeSpec {
    NodeSpec {
        node_id: identity
            .member
            .as_ref()
            .map(|member| member.node_id)
            .unwrap_or_default(),
        instance: identity.instance.clone(),
        region: options.region.clone(),
        peer_address: peer_address.to_owned(),
        control_address: options.advertise.control.clone(),
        gateway_address: options.advertise.gateway.clone(),
        admin_address: options.advertise.admin.clone(),
        version: options.version.clone(),
    }
}

fn join_request(
    identity: &Identity,
    node: NodeSpec,
    start_id: u64,
    cluster_id: &str,
    settle: bool,
) -> JoinRequest {
    JoinRequest {
        cluster_id: cluster_id.to_owned(),
        name: identity.name.clone(),
        node: Some(node),
        start_id,
        timing: identity.timing.name().to_owned(),
        schema: SCHEMA,
        settle,
        forwarded: None,
    }
}

/// Asks the given peers, one after the other and again, until one takes the node in or refuses it.
async fn first_contact(
    addresses: &[String],
    tls: Option<&Arc<Tls>>,
    timing: Timing,
    request: JoinRequest,
) -> Result<JoinReply, Error> {
    let started = Instant::now();
    let mut last = String::from("no peer was reached");
    while started.elapsed() < JOIN_TIMEOUT {
        for address in addresses {
            let channel = network::dial(tls, address, None, timing)?;
            let why =
                match tokio::time::timeout(JOIN_CALL, raft_client(channel).join(request.clone()))
                    .await
                {
                    Ok(Ok(reply)) => return Ok(reply.into_inner()),
                    Ok(Err(status)) if is_final(&status) => {
                        return Err(Error::Refused {
                            peer: address.clone(),
                            why: status.message().to_owned(),
                        });
                    }
                    Ok(Err(status)) => format!("{address}: {}", describe(&status)),
                    Err(_) => format!("{address}: no answer"),
                };
            // Said once, not at each attempt: an operator who waits must be able to see what for.
            if why != last {
                tracing::warn!(%why, "cannot join yet, trying on");
                last = why;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    Err(Error::JoinTimeout {
        waited: JOIN_TIMEOUT,
        why: last,
    })
}

/// A status with what caused it: the transport's own message hides the reason.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Asking again would not help.
fn is_final(status: &Status) -> bool {
    match refusal_of(status) {
        Some(refusal) => !matches!(
            refusal,
            Refusal::NotLeader | Refusal::UnknownGroup | Refusal::Storage
        ),
        None => status.code() == Code::InvalidArgument,
    }
}

/// Asks the other members whether this is the only process with its identity, and whether it still belongs to them. Those
/// that do not answer in time do not hold the start up.
async fn check_alone(peers: &Peers, recorded: Option<&Member>, start: &Start) -> Result<(), Error> {
    let mut asked: Vec<(String, Option<String>, u64, bool)> = peers
        .all()
        .iter()
        .map(|peer| {
            let member = peer.member();
            (member.peer_address, Some(member.name), peer.node_id, false)
        })
        .collect();
    // Where this node was last: if somebody answers there under its id, that one is the node.
    if let Some(recorded) =
        recorded.filter(|recorded| recorded.peer_address != peers.local.peer_address)
    {
        asked.push((
            recorded.peer_address.clone(),
            Some(recorded.name.clone()),
            peers.local.node_id,
            false,
        ));
    }
    // Peers named on the command line must be of this cluster; others may live at a recorded address by now.
    if let Start::Join(named) = start {
        let strangers = named.iter().filter(|address| {
            **address != peers.local.peer_address
                && !asked.iter().any(|(known, ..)| known == *address)
        });
        let strangers: Vec<_> = strangers
            .map(|address| (address.clone(), None, 0, true))
            .collect();
        asked.extend(strangers);
    }
    let checks = asked
        .into_iter()
        .map(|(address, name, node_id, named)| async move {
            let channel = peers.dial(&address, name).ok()?;
            let hello = peers.hello(node_id, true);
            let answer = tokio::time::timeout(START_CHECK, raft_client(channel).hello(hello))
                .await
                .ok()?;
            let status = answer.err()?;
            match refusal_of(&status)? {
                Refusal::Removed | Refusal::Duplicate => {}
                Refusal::WrongCluster if named => {}
                refusal => {
                    tracing::warn!(
                        address,
                        ?refusal,
                        why = status.message(),
                        "a recorded peer refused the hello"
                    );
                    return None;
                }
            }
            Some(Error::Refused {
                peer: address,
                why: status.message().to_owned(),
            })
        });
    match join_all(checks).await.into_iter().flatten().next() {
        Some(refused) => Err(refused),
        None => Ok(()),
    }
}

fn raft_config(options: &Options) -> Result<Arc<Config>, Error> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timing = options.timing;
    let (shortest, longest) = timing.election();
    let config = Config {
        cluster_name: CONTROL.to_owned(),
        heartbeat_interval: millis(timing.heartbeat()),
        // An append that was answered just now proves as much as a heartbeat.
        heartbeat_min_interval: Some(millis(timing.heartbeat())),
        election_timeout_min: millis(shortest),
        election_timeout_max: millis(longest),
        // The budget of a whole snapshot, not of a piece.
        install_snapshot_timeout: 120_000,
        max_payload_entries: 256,
        // A follower that lacks more than what is kept behind a snapshot gets the snapshot.
        replication_lag_threshold: options.snapshot_every.saturating_add(options.keep_logs),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        max_in_snapshot_log_to_keep: options.keep_logs,
        purge_batch_size: (options.keep_logs / 4).clamp(1, 2000),
        enable_pre_vote: Some(true),
        // The committed position is persisted lazily, so a restarted leader has to be elected again.
        enable_leader_restore: Some(false),
        removed_leader_step_down: StepDownPolicy::After(millis(shortest)),
        ..Config::default()
    };
    config
        .validate()
        .map(Arc::new)
        .map_err(|error| Error::Options(error.to_string()))
}

/// Runs blocking work off the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Raft(error.to_string())))
}
