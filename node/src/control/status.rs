//! Errors as gRPC statuses with google.rpc details, as the header of control.proto promises.

use quorate_proto::store::v1::{Rejection, rejection::Code as Refusal};
use quorate_proto::v1::Kind;
use quorate_raft::state::{kind_name, validate::FieldError};
use quorate_raft::watch::WatchError;
use quorate_raft::{ChangeError, ProposeError};
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// When a client should try again after there was no leader: about the length of an election.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// INVALID_ARGUMENT for one field.
pub fn invalid(field: &str, message: impl Into<String>) -> Status {
    let message = message.into();
    let text = if field.is_empty() {
        message.clone()
    } else {
        format!("{field}: {message}")
    };
    Status::with_error_details(
        Code::InvalidArgument,
        text,
        ErrorDetails::with_bad_request_violation(field, message),
    )
}

/// INVALID_ARGUMENT for each of these fields.
pub fn all_invalid(violations: impl IntoIterator<Item = (String, String)>) -> Status {
    let violations: Vec<FieldViolation> = violations
        .into_iter()
        .map(|(field, message)| FieldViolation::new(field, message))
        .collect();
    let text: Vec<String> = violations
        .iter()
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect();
    Status::with_error_details(
        Code::InvalidArgument,
        text.join("; "),
        ErrorDetails::with_bad_request(violations),
    )
}

/// A field that the rules of a resource refuse.
pub fn field(error: FieldError) -> Status {
    invalid(&error.field, error.message)
}

/// There is no such resource.
pub fn not_found(kind: Kind, name: &str) -> Status {
    about(
        Code::NotFound,
        kind,
        name,
        format!("there is no {} {name:?}", kind_name(kind)),
    )
}

fn about(code: Code, kind: Kind, name: &str, message: String) -> Status {
    let details = ErrorDetails::with_resource_info(kind_name(kind), name, "", message.clone());
    Status::with_error_details(code, message, details)
}

/// The call does not fit the state of things.
pub fn precondition(subject: &str, message: String) -> Status {
    let details =
        ErrorDetails::with_precondition_failure_violation("STATE", subject, message.clone());
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// Not now, but perhaps soon.
pub fn unavailable(message: impl Into<String>) -> Status {
    Status::with_error_details(
        Code::Unavailable,
        message,
        ErrorDetails::with_retry_info(Some(RETRY_AFTER)),
    )
}

/// A write of this resource that the state refused.
pub fn rejected(rejection: Rejection, kind: Kind, name: &str) -> Status {
    let message = rejection.message.clone();
    match rejection.code() {
        Refusal::Invalid | Refusal::KeyReused | Refusal::Unspecified => {
            invalid(&rejection.field, message)
        }
        Refusal::NotFound => about(Code::NotFound, kind, name, message),
        Refusal::AlreadyExists => about(Code::AlreadyExists, kind, name, message),
        Refusal::VersionConflict => about(Code::Aborted, kind, name, message),
        Refusal::FailedPrecondition => {
            precondition(&format!("{}/{name}", kind_name(kind)), message)
        }
    }
}

/// A write of this resource that did not go through.
pub fn proposed(error: ProposeError, kind: Kind, name: &str) -> Status {
    match error {
        ProposeError::Rejected(rejection) => rejected(rejection, kind, name),
        ProposeError::Timeout { .. } => Status::deadline_exceeded(error.to_string()),
        ProposeError::TooLarge { .. } => invalid("resource", error.to_string()),
        ProposeError::NoSpace => Status::resource_exhausted(error.to_string()),
        ProposeError::NoLeader { .. } | ProposeError::Overloaded | ProposeError::Stopped => {
            unavailable(error.to_string())
        }
    }
}

/// A membership change that did not happen.
pub fn change(error: ChangeError) -> Status {
    let message = error.to_string();
    match error {
        ChangeError::UnknownNode(id) => about(Code::NotFound, Kind::Node, &id.to_string(), message),
        ChangeError::Refused(_) => precondition("membership", message),
        ChangeError::Unavailable(_) | ChangeError::Stopped => unavailable(message),
        ChangeError::Timeout(_) => Status::deadline_exceeded(message),
    }
}

/// A watch that cannot start or go on.
pub fn watch(error: WatchError) -> Status {
    let message = error.to_string();
    match error {
        WatchError::Compacted => Status::out_of_range(message),
        WatchError::BadToken => invalid("resume_token", message),
        WatchError::WrongCluster { .. } => precondition("resume_token", message),
        WatchError::Closed => unavailable(message),
    }
}
