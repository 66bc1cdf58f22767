//! Checks every call from a peer before anything is done for it: cluster, addressee, group, certificate, process.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quorate_proto::{
    peer::v1::{Header, Refusal},
    v1::{Resource, resource::Spec},
};
use tonic::{Status, metadata::MetadataValue};

use super::{Local, stream::Caller};
use crate::{machine::Published, state::ControlView};

const REFUSAL_KEY: &str = "quorate-refusal";
/// A process that has been silent this long makes way for another one with the same node id.
const TAKE_OVER: Duration = Duration::from_secs(3);

/// A refusal that the caller can act on.
pub(crate) fn refuse(refusal: Refusal, why: impl Into<String>) -> Status {
    let mut status = Status::failed_precondition(why);
    if let Ok(value) = MetadataValue::try_from(refusal.as_str_name()) {
        status.metadata_mut().insert(REFUSAL_KEY, value);
    }
    status
}

/// What a peer's status refuses for; `None` for failures of other kinds.
pub(crate) fn refusal_of(status: &Status) -> Option<Refusal> {
    let value = status.metadata().get(REFUSAL_KEY)?.to_str().ok()?;
    Refusal::from_str_name(value)
}

/// The process that was last accepted under a node id.
struct Process {
    start_id: u64,
    seen: Instant,
}

/// The door of the peer service.
pub(crate) struct Admission {
    local: Arc<Local>,
    published: Arc<Published>,
    processes: Mutex<BTreeMap<u64, Process>>,
}

impl Admission {
    pub(crate) fn new(local: Arc<Local>, published: Arc<Published>) -> Self {
        Self {
            local,
            published,
            processes: Mutex::default(),
        }
    }

    /// Checks a frame's header: that it is meant for this node and comes from the process that it names. Which group and
    /// epoch it is for is the caller's to check.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub(crate) fn check<'a>(
        &self,
        header: Option<&'a Header>,
        caller: Option<&Caller>,
    ) -> Result<&'a Header, Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("the header is missing"))?;
        self.check_cluster(&header.cluster_id)?;
        if header.to != self.local.node_id {
            return Err(refuse(
                Refusal::WrongNode,
                format!(
                    "this is node {}, the call was meant for node {}",
                    self.local.node_id, header.to
                ),
            ));
        }
        self.check_node(header.from, caller)?;
        self.check_process(header.from, header.start_id)?;
        Ok(header)
    }

    pub(crate) fn check_cluster(&self, cluster_id: &str) -> Result<(), Status> {
        if cluster_id == self.local.cluster_id {
            return Ok(());
        }
        Err(refuse(
            Refusal::WrongCluster,
            format!(
                "this node belongs to cluster {}, the caller to {cluster_id:?}",
                self.local.cluster_id
            ),
        ))
    }

    /// The node must not have been removed, and a certificate must name it.
    pub(crate) fn check_node(&self, node_id: u64, caller: Option<&Caller>) -> Result<(), Status> {
        let view = self.published.view();
        if let Some(removed) = view.removed_node_by_id(node_id) {
            return Err(refuse(
                Refusal::Removed,
                format!(
                    "node {node_id} ({}) was removed from the cluster for good",
                    removed.name
                ),
            ));
        }
        let registered = view.node_by_id(node_id).map(|node| name_of(node));
        match (caller.and_then(|caller| caller.name.as_deref()), registered) {
            (Some(name), Some(registered)) if name != registered => Err(refuse(
                Refusal::Certificate,
                format!(
                    "the certificate is that of node {name:?}, but node {node_id} is {registered:?}"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Only one process may speak for a node id. Another one is let in after the first was silent for a while, or once it
    /// has said hello ([`Admission::replace_process`]).
    pub(super) fn check_process(&self, node_id: u64, start_id: u64) -> Result<(), Status> {
        let now = Instant::now();
        let mut processes = self.processes.lock();
        let process = processes.entry(node_id).or_insert(Process {
            start_id,
            seen: now,
        });
        if process.start_id != start_id {
            if now.duration_since(process.seen) < TAKE_OVER {
                return Err(refuse(
                    Refusal::Duplicate,
                    format!("another process with node id {node_id} was heard of a moment ago"),
                ));
            }
            process.start_id = start_id;
        }
        process.seen = now;
        Ok(())
    }

    pub(super) fn view(&self) -> Arc<ControlView> {
        self.published.view()
    }

    /// Accepts a process that was found to be the only one with its node id.
    pub(crate) fn replace_process(&self, node_id: u64, start_id: u64) {
        self.processes.lock().insert(
            node_id,
            Process {
                start_id,
                seen: Instant::now(),
            },
        );
    }
}

fn name_of(resource: &Resource) -> &str {
    debug_assert!(matches!(resource.spec, Some(Spec::Node(_))));
    resource
        .metadata
        .as_ref()
        .map_or("", |metadata| metadata.name.as_str())
}
