//! Starting a node: identity, storage, listener, consensus, and a place in the cluster.

mod agree;
mod contact;
mod enrolment;

use std::{
    collections::BTreeMap,
    net::TcpListener,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};

use openraft::{Config, SnapshotPolicy, StepDownPolicy, async_runtime::watch::WatchReceiver};
use quorate_proto::{
    peer::v1::raft_server::RaftServer,
    store::v1::{InitCluster, RegisterNode, command::Op},
    v1::NodeSpec,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::{Cluster, Inner, Leadership},
    error::{Error, StorageError},
    group::{Freshness, Group, Proposer, Reader},
    identity::{DataDir, Identity, MemberId, fill_random},
    machine::ControlMachine,
    network::{self, Admission, Door, Local, MAX_MESSAGE, Network, Peers, RaftService, Scope, Tls},
    options::{Options, Start},
    snapshots::Snapshots,
    state::FOUNDER_ID,
    storage::{Owner, Storage},
    supervisor::Supervisor,
    types::{CONTROL, Member, Raft},
    volatile::Hosted,
};

use agree::{check_options, listen, node_spec, reconcile};
use contact::{check_alone, first_contact, join_request};
use enrolment::Enrolment;

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
    let admission = Arc::new(Admission::new(Arc::clone(&local), Arc::clone(&published)));
    let hosted = Arc::new(Hosted::default());
    let service = RaftServer::new(RaftService {
        door: Arc::new(Door {
            admission: Arc::clone(&admission),
            control: Arc::clone(&running),
            hosted: Arc::clone(&hosted),
        }),
        peers: Arc::clone(&peers),
        snapshots: Arc::clone(&snapshots),
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
    let network = Network::new(Arc::clone(&peers), Scope::control());
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
            admission,
            hosted,
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
