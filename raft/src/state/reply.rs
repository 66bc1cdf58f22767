//! What a command is answered, and the constructors of refusals.

use std::sync::Arc;

use quorate_proto::{
    store::v1::{self as store, CommandReply, Rejection, command_reply, rejection::Code},
    v1::{ApplyOutcome, Kind, Resource},
};

use super::{
    resource::{ResourceExt as _, kind_name},
    validate::FieldError,
};

/// The answer to one command. Cheap to clone; [`CommandReply`] is its form on the wire.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The command took effect, now or (a retried key) at an earlier index.
    Applied {
        /// After a put or a registration: as it is now. After a delete or a removal: as it was.
        resource: Arc<Resource>,
        /// `Unspecified` after a delete or a removal.
        outcome: ApplyOutcome,
        /// Log index of the entry that took effect.
        index: u64,
    },
    /// Nothing was changed.
    Rejected(Rejection),
}

impl From<&Reply> for CommandReply {
    fn from(reply: &Reply) -> Self {
        let result = match reply {
            Reply::Applied {
                resource,
                outcome,
                index,
            } => command_reply::Result::Applied(store::Applied {
                resource: Some(Resource::clone(resource)),
                outcome: (*outcome).into(),
                index: *index,
            }),
            Reply::Rejected(rejection) => command_reply::Result::Rejection(rejection.clone()),
        };
        CommandReply {
            result: Some(result),
        }
    }
}

/// What a command did, before it is known under which index.
pub(super) type Done = Result<(Arc<Resource>, ApplyOutcome), Rejection>;

pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Rejection {
    Rejection {
        code: Code::Invalid.into(),
        field: field.into(),
        message: message.into(),
        current_version: 0,
    }
}

pub(super) fn precondition(message: impl Into<String>) -> Rejection {
    Rejection {
        code: Code::FailedPrecondition.into(),
        message: message.into(),
        ..Rejection::default()
    }
}

pub(super) fn key_reused(key: &str) -> Rejection {
    Rejection {
        code: Code::KeyReused.into(),
        field: "idempotency_key".into(),
        message: format!("the idempotency key {key:?} was used before with another command"),
        current_version: 0,
    }
}

pub(super) fn not_found(kind: Kind, name: &str) -> Rejection {
    Rejection {
        code: Code::NotFound.into(),
        message: format!("there is no {} {name:?}", kind_name(kind)),
        ..Rejection::default()
    }
}

/// Checks an expected version of a put (0: must not exist) against what is there.
pub(super) fn expect_version(
    kind: Kind,
    name: &str,
    expected: Option<u64>,
    existing: Option<&Resource>,
) -> Result<(), Rejection> {
    let kind_name = kind_name(kind);
    match (expected, existing) {
        (None, _) | (Some(0), None) => Ok(()),
        (Some(_), None) => Err(not_found(kind, name)),
        (Some(expected), Some(existing)) if expected == existing.version() => Ok(()),
        (Some(0), Some(existing)) => Err(Rejection {
            code: Code::AlreadyExists.into(),
            message: format!("{kind_name} {name:?} exists already"),
            current_version: existing.version(),
            ..Rejection::default()
        }),
        (Some(expected), Some(existing)) => Err(Rejection {
            code: Code::VersionConflict.into(),
            message: format!(
                "{kind_name} {name:?} has version {}, not {expected}",
                existing.version()
            ),
            current_version: existing.version(),
            ..Rejection::default()
        }),
    }
}

impl From<FieldError> for Rejection {
    fn from(error: FieldError) -> Self {
        invalid(error.field, error.message)
    }
}
