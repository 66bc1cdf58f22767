//! The volatile groups that this process takes part in, as the peer listener finds them.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use quorate_proto::peer::v1::{GroupProgress, Header, Refusal};
use tonic::Status;

use super::{VolatileGroup, instance::Instance};
use crate::{error::Error, network::refuse, types::CONTROL};

/// All groups but the control group.
#[derive(Default)]
pub(crate) struct Hosted {
    groups: Mutex<BTreeMap<&'static str, VolatileGroup>>,
}

impl Hosted {
    /// Opens a group under its name, unless it is open.
    pub(super) fn open(
        &self,
        name: &'static str,
        open: impl FnOnce() -> VolatileGroup,
    ) -> Result<VolatileGroup, Error> {
        if name == CONTROL || crate::state::validate::name("group", name).is_err() {
            return Err(Error::Options(format!(
                "{name:?} cannot be the name of a volatile group"
            )));
        }
        let mut groups = self.groups.lock();
        if groups.get(name).is_some_and(|group| !group.is_stopped()) {
            return Err(Error::Options(format!("group {name:?} is open already")));
        }
        let group = open();
        groups.insert(name, group.clone());
        Ok(group)
    }

    fn all(&self) -> Vec<VolatileGroup> {
        self.groups.lock().values().cloned().collect()
    }

    /// Ends this process' part in all groups.
    pub(crate) async fn shutdown(&self) {
        futures_util::future::join_all(self.all().iter().map(VolatileGroup::shutdown)).await;
    }

    /// What this node tells its peers about its groups.
    pub(crate) fn progress(&self) -> Vec<GroupProgress> {
        self.all()
            .iter()
            .filter_map(VolatileGroup::progress)
            .collect()
    }

    /// The instance that a frame is meant for: of that group, that epoch and that raft id.
    pub(crate) fn find(&self, header: &Header) -> Result<Arc<Instance>, Status> {
        let group = self.groups.lock().get(header.group.as_str()).cloned();
        let instance = group.and_then(|group| group.current()).ok_or_else(|| {
            refuse(
                Refusal::UnknownGroup,
                format!("there is no group {:?} here", header.group),
            )
        })?;
        let scope = instance.scope;
        if header.epoch != scope.epoch {
            return Err(refuse(
                Refusal::StaleEpoch,
                format!(
                    "group {:?} is in epoch {} here, the call is of epoch {}",
                    header.group, scope.epoch, header.epoch
                ),
            ));
        }
        if header.to_raft != scope.raft_id {
            return Err(refuse(
                Refusal::WrongNode,
                format!(
                    "this process is member {} of group {:?}, the call was meant for member {}",
                    scope.raft_id, header.group, header.to_raft
                ),
            ));
        }
        Ok(instance)
    }
}
