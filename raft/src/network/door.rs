//! Which of the groups on this node a call is for, once it is known who calls.

use std::sync::{Arc, OnceLock};

use quorate_proto::peer::v1::{Header, Refusal};
use tonic::Status;

use super::{Admission, refuse, stream::Caller};
use crate::{
    group::Group,
    types::CONTROL,
    volatile::{Hosted, Instance},
};

/// The door of the peer service, with what lies behind it.
pub(crate) struct Door {
    pub(crate) admission: Arc<Admission>,
    /// Set once consensus runs; until then only hellos are answered.
    pub(crate) control: Arc<OnceLock<Arc<Group>>>,
    pub(crate) hosted: Arc<Hosted>,
}

/// What a call is for.
pub(super) enum Addressed {
    Control(Arc<Group>),
    Volatile(Arc<Instance>),
}

impl Door {
    pub(super) fn control(&self) -> Result<&Arc<Group>, Status> {
        self.control.get().ok_or_else(|| {
            refuse(
                Refusal::UnknownGroup,
                format!("group {CONTROL} is not running here yet"),
            )
        })
    }

    /// Checks a call and finds its group.
    pub(super) fn addressed(
        &self,
        header: Option<&Header>,
        caller: Option<&Caller>,
    ) -> Result<Addressed, Status> {
        let header = self.admission.check(header, caller)?;
        if header.group != CONTROL {
            return self.hosted.find(header).map(Addressed::Volatile);
        }
        if header.epoch != 0 {
            return Err(refuse(
                Refusal::StaleEpoch,
                format!("epoch {} of group {CONTROL} is unknown", header.epoch),
            ));
        }
        self.control().cloned().map(Addressed::Control)
    }

    /// Checks a call that only the control group answers.
    pub(super) fn for_control(
        &self,
        header: Option<&Header>,
        caller: Option<&Caller>,
    ) -> Result<Arc<Group>, Status> {
        match self.addressed(header, caller)? {
            Addressed::Control(group) => Ok(group),
            Addressed::Volatile(instance) => Err(Status::unimplemented(format!(
                "group {:?} does not answer this call",
                instance.scope.group
            ))),
        }
    }
}
